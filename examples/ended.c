/* Children that have ended but have not been waited for when power fails show how they ended, by wait4 and waitid;
 * those that nobody waits for are not heard of again.
 *
 * ended [ROUNDS] */
#include "guest.h"

static pid_t child(int how) {
    pid_t pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        if (how < 0) {
            signal(-how, SIG_DFL);
            raise(-how);
        }
        _exit(how);
    }
    return pid;
}

/* Waits until the child is a zombie, which it then stays for a while. */
static void leave(pid_t pid) {
    siginfo_t info;
    while (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) != 0) CHECK(errno == EINTR);
    for (int i = 0; i < 8; i++) usleep(1000);
}

/* A child lost in a power failure before it has ended is no error: 1 if so. */
static int lost(int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGPWR; }

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 60);
    for (long round = 0; round < rounds; round++) {
        int status;
        pid_t pid = child(5);
        siginfo_t info = {0};
        leave(pid);
        while (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT) != 0) CHECK(errno == EINTR);
        CHECK(info.si_signo == SIGCHLD && info.si_pid == pid);
        int was_lost = info.si_code == CLD_KILLED && info.si_status == SIGPWR;
        CHECK(was_lost || (info.si_code == CLD_EXITED && info.si_status == 5));
        while (waitpid(-1, &status, 0) != pid) CHECK(errno == EINTR);
        CHECK(was_lost ? lost(status) : WIFEXITED(status) && WEXITSTATUS(status) == 5);
        CHECK(waitpid(pid, &status, 0) == -1 && errno == ECHILD);
        pid = child(-SIGTERM);
        leave(pid);
        while (waitpid(pid, &status, 0) != pid) CHECK(errno == EINTR);
        CHECK(lost(status) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM));
        CHECK(signal(SIGCHLD, SIG_IGN) != SIG_ERR);
        child(6);
        usleep(3000);
        CHECK(signal(SIGCHLD, SIG_DFL) != SIG_ERR);
        usleep(3000);
        pid = waitpid(-1, &status, 0);
        /* It may not have ended by itself before SIGCHLD was heard again. */
        CHECK((pid == -1 && errno == ECHILD) || lost(status) || WEXITSTATUS(status) == 6);
    }
    printf("rounds %ld\n", rounds);
    return 0;
}
