/* What a process has given up, or asked the kernel for, stays so: capabilities, dumpability, what it may execute,
 * membarrier(2), being the reaper of orphans; and a working directory that was removed stays removed.
 *
 * privileges [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/membarrier.h>
#include <linux/securebits.h>
#include <sys/prctl.h>
#include <sys/stat.h>

#ifndef PR_SET_MDWE
#define PR_SET_MDWE 65
#define PR_GET_MDWE 66
#endif

static struct __user_cap_data_struct capabilities[2];
static int barrier, denied, securebits;

static void get_capabilities(struct __user_cap_data_struct *to) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    CHECK(syscall(SYS_capget, &header, to) == 0);
}

static void give_up(void) {
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0);
    get_capabilities(capabilities);
    for (int i = 0; i < 2; i++) {
        capabilities[i].permitted &= ~(i == 0 ? CAP_TO_MASK(CAP_SYS_ADMIN) : 0);
        capabilities[i].effective = capabilities[i].permitted;
    }
    capabilities[0].effective &= ~CAP_TO_MASK(CAP_SYS_TIME);
    CHECK(syscall(SYS_capset, &header, capabilities) == 0);
    /* A user without capabilities may not. */
    (void)prctl(PR_SET_SECUREBITS, SECBIT_KEEP_CAPS_LOCKED, 0, 0, 0);
    securebits = prctl(PR_GET_SECUREBITS, 0, 0, 0, 0);
    barrier = syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) == 0;
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0);
    CHECK(prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0);
    denied = prctl(PR_SET_MDWE, 1, 0, 0, 0) == 0;
    CHECK(mkdir("gone", 0700) == 0 && chdir("gone") == 0 && rmdir("../gone") == 0);
}

static void check(void) {
    struct __user_cap_data_struct now[2];
    struct stat file;
    char path[4096];
    int reaper = 0, ptrace = prctl(PR_CAPBSET_READ, CAP_SYS_PTRACE, 0, 0, 0);
    get_capabilities(now);
    for (int i = 0; i < 2; i++) {
        CHECK(now[i].effective == capabilities[i].effective);
        CHECK(now[i].permitted == capabilities[i].permitted);
        CHECK(now[i].inheritable == capabilities[i].inheritable);
    }
    CHECK(prctl(PR_GET_SECUREBITS, 0, 0, 0, 0) == securebits);
    CHECK(ptrace == 0 || geteuid() != 0);
    CHECK(!barrier || syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0);
    CHECK(prctl(PR_GET_CHILD_SUBREAPER, &reaper, 0, 0, 0) == 0 && reaper == 1);
    CHECK(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0);
    CHECK(!denied || prctl(PR_GET_MDWE, 0, 0, 0, 0) == 1);
    CHECK(getcwd(path, sizeof path) == NULL && errno == ENOENT);
    CHECK(stat(".", &file) == 0 && S_ISDIR(file.st_mode) && file.st_nlink == 0);
    /* A child of it has a copy of everything, code included. */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) _exit(7);
    int status;
    while (waitpid(child, &status, 0) != child) CHECK(errno == EINTR);
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 7) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGPWR));
    CHECK(open("new", O_CREAT | O_WRONLY, 0600) == -1 && errno == ENOENT);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 900);
    give_up();
    for (long round = 0; round < rounds; round++) {
        check();
        sleep_us(1000);
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
