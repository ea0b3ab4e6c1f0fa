/* Runs a command on a machine that has booted at another time, by its clocks: in a time namespace, every other time one
 * that has just booted, or one that runs for a day longer. As any user; ends with 77 where the kernel does not let it.
 *
 * rebooted PROGRAM [ARGUMENT...] */
#include "guest.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/prctl.h>

#ifndef CLONE_NEWTIME
#define CLONE_NEWTIME 0x80
#endif

static int tell(const char *file, const char *text) {
    int opened = open(file, O_WRONLY);
    if (opened < 0) return 0;
    int told = write(opened, text, strlen(text)) == (ssize_t)strlen(text);
    CHECK(close(opened) == 0);
    return told;
}

/* What time it is there. */
static int set_clocks(void) {
    struct timespec up;
    char text[80];
    CHECK(clock_gettime(CLOCK_BOOTTIME, &up) == 0);
    long shift = up.tv_nsec / 1000 % 2 ? 86400 : 3 - up.tv_sec;
    snprintf(text, sizeof text, "monotonic %ld 0\nboottime %ld 0\n", shift, shift);
    return tell("/proc/self/timens_offsets", text);
}

int main(int count, char **values) {
    CHECK(count > 1);
    uid_t user = geteuid();
    gid_t group = getegid();
    char users[32], groups[32];
    snprintf(users, sizeof users, "%u %u 1", user, user);
    snprintf(groups, sizeof groups, "%u %u 1", group, group);
    if (unshare(CLONE_NEWUSER | CLONE_NEWTIME) != 0) return 77;
    if (!tell("/proc/self/uid_map", users) || !tell("/proc/self/setgroups", "deny")) return 77;
    if (!tell("/proc/self/gid_map", groups) || !set_clocks()) return 77;
    /* What is born from now on is there. */
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        execv(values[1], values + 1);
        FAIL("cannot execute %s", values[1]);
    }
    int status;
    while (waitpid(child, &status, 0) != child) CHECK(errno == EINTR);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
