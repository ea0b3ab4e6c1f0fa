/* Many timers that expire one right after the other, in no order: each fires, once.
 *
 * A timer whose time has come may not have fired yet, which the kernel shows as a timer that is not armed.
 *
 * due [ROUNDS] */
#include "guest.h"
#include <poll.h>
#include <sys/timerfd.h>

enum { TIMERS = 900, APART_NS = 10000 };

static void arm(int timer, long ns) {
    struct itimerspec once = {{0, 0}, {ns / 1000000000, ns % 1000000000}};
    CHECK(timerfd_settime(timer, 0, &once, NULL) == 0);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 60);
    static struct pollfd timers[TIMERS];
    for (int i = 0; i < TIMERS; i++) {
        timers[i].fd = timerfd_create(i % 2 ? CLOCK_MONOTONIC : CLOCK_REALTIME, TFD_NONBLOCK);
        timers[i].events = POLLIN;
        CHECK(timers[i].fd >= 0);
    }
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < TIMERS; i++) arm(timers[i].fd, (i * 331 % TIMERS + 1) * APART_NS);
        for (int i = 0; i < TIMERS; i++) {
            uint64_t ticks = 0;
            if (poll(&timers[i], 1, 20000) != 1) FAIL("round %ld: timer %d has not fired", round, i);
            CHECK(read(timers[i].fd, &ticks, sizeof ticks) == sizeof ticks);
            if (ticks != 1) FAIL("round %ld: timer %d has fired %lu times", round, i, ticks);
            CHECK(read(timers[i].fd, &ticks, sizeof ticks) == -1 && errno == EAGAIN);
        }
    }
    puts("all of them, once");
    return 0;
}
