/* Timers among many descriptors, which a save takes a while to look at: none expires early by the program's clock.
 *
 * timers [ROUNDS] */
#include "guest.h"
#include <poll.h>
#include <sys/time.h>
#include <sys/timerfd.h>

enum { WAIT_MS = 60, DESCRIPTORS = 600 };
static volatile sig_atomic_t alarms;

static void on_alarm(int signal) {
    (void)signal;
    alarms++;
}

static void check_elapsed(int64_t since, const char *what) {
    int64_t us = (now_ns() - since) / 1000;
    if (us < WAIT_MS * 1000) FAIL("%s came after %ld us instead of %d ms", what, (long)us, WAIT_MS);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 25);
    int first[2];
    CHECK(pipe(first) == 0);
    for (int i = 0; i < DESCRIPTORS; i++) CHECK(dup(first[i % 2]) >= 0);
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    CHECK(timer >= 0 && signal(SIGALRM, on_alarm) != SIG_ERR);
    for (long round = 0; round < rounds; round++) {
        struct itimerspec once = {{0, 0}, {0, WAIT_MS * 1000000l}};
        struct itimerval alarm = {{0, 0}, {0, WAIT_MS * 1000l}};
        uint64_t ticks;
        int64_t since = now_ns();
        CHECK(timerfd_settime(timer, 0, &once, NULL) == 0);
        while (read(timer, &ticks, sizeof ticks) != sizeof ticks) CHECK(errno == EINTR);
        check_elapsed(since, "the timerfd");
        long before = alarms;
        since = now_ns();
        CHECK(setitimer(ITIMER_REAL, &alarm, NULL) == 0);
        while (alarms == before) poll(NULL, 0, 10);
        check_elapsed(since, "the alarm");
    }
    printf("%ld rounds, %ld alarms\n", rounds, (long)alarms);
    return 0;
}
