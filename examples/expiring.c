/* Threads that each wait for a timer of their own that is about to expire, all the time: each expires, once, and tells the
 * thread that it is for.
 *
 * expiring [THREADS] [ROUNDS] */
#include "guest.h"

enum { PATIENCE_S = 20, MOST = 64 };
static long rounds;

static void *wait_for_mine(void *number_) {
    long number = (long)number_;
    uint64_t seed = (uint64_t)number * 77 + 1;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    sigaddset(&set, SIGUSR2);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = number % 2 ? SIGRTMIN + 2 : SIGUSR2};
    event.sigev_value.sival_int = (int)number;
    event._sigev_un._tid = gettid();
    timer_t timer;
    CHECK(timer_create(number % 3 ? CLOCK_MONOTONIC : CLOCK_REALTIME, &event, &timer) == 0);
    for (long round = 0; round < rounds; round++) {
        struct itimerspec soon = {{0, 0}, {0, 30000 + (long)(next_random(&seed) % 500000)}};
        struct timespec limit = {PATIENCE_S, 0}, now = {0, 0};
        siginfo_t info;
        int taken;
        CHECK(timer_settime(timer, 0, &soon, NULL) == 0);
        while ((taken = sigtimedwait(&set, &info, &limit)) == -1 && errno == EINTR) {}
        if (taken == -1) FAIL("thread %ld, round %ld: its timer has not expired", number, round);
        CHECK(taken == event.sigev_signo && info.si_code == SI_TIMER && info.si_value.sival_int == number);
        if (sigtimedwait(&set, NULL, &now) != -1) FAIL("thread %ld, round %ld: once too often", number, round);
    }
    CHECK(timer_delete(timer) == 0);
    return NULL;
}

int main(int count, char **values) {
    long threads = argument(count, values, 1, 8);
    rounds = argument(count, values, 2, 2500);
    CHECK(threads <= MOST);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 2);
    sigaddset(&set, SIGUSR2);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    pthread_t all[MOST];
    for (long i = 0; i < threads; i++) CHECK(pthread_create(&all[i], NULL, wait_for_mine, (void *)i) == 0);
    for (long i = 0; i < threads; i++) CHECK(pthread_join(all[i], NULL) == 0);
    puts("each of them, once");
    return 0;
}
