/* A program that is mostly suspended by vfork: a failure during one is not forgotten, and a child that had ended before
 * shows its own status.
 *
 * vforks [ROUNDS [MILLISECONDS]]: how long a child runs. */
#include "guest.h"

/* 1: lost in a power failure. */
static int lost(int status) { return WIFSIGNALED(status) && WTERMSIG(status) == SIGPWR; }

static void wait_for(pid_t child, int expected, int may_be_lost) {
    int status;
    while (waitpid(child, &status, 0) != child) CHECK(errno == EINTR);
    if (may_be_lost && lost(status)) return;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != expected) FAIL("status %#x instead of exit %d", status, expected);
}

int main(int count, char **values) {
    volatile long rounds = argument(count, values, 1, 60);
    volatile long lasts = argument(count, values, 2, 20);
    for (volatile long round = 0; round < rounds; round++) {
        siginfo_t info;
        pid_t ended = fork();
        CHECK(ended >= 0);
        if (ended == 0) _exit(3);
        while (waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT) != 0) CHECK(errno == EINTR);
        int was_lost = info.si_code == CLD_KILLED;
        pid_t child = vfork();
        CHECK(child >= 0);
        if (child == 0) {
            struct timespec time = {lasts / 1000, lasts % 1000 * 1000000};
            nanosleep(&time, NULL);
            _exit(5);
        }
        wait_for(child, 5, 1);
        wait_for(ended, 3, was_lost);
    }
    printf("rounds %ld\n", (long)rounds);
    return 0;
}
