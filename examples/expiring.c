/* Timers whose signals wait: many of one number, of a period that goes on, and of threads that all wait for the same
 * number. Each is told once, to whom it should be, with all of its expirations.
 *
 * expiring [ROUNDS [TIMERS]] */
#include "guest.h"

enum { THREADS = 4, MS = 1000000, PERIOD = 5 * MS };

static timer_t new_timer(int notify, int signal, long value, int tid) {
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal, .sigev_value.sival_ptr = (void *)value};
    timer_t timer;
    event._sigev_un._tid = tid;
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    return timer;
}

static void set(timer_t timer, long value, long period) {
    struct itimerspec times = {{0, period}, {0, value}};
    CHECK(timer_settime(timer, 0, &times, NULL) == 0);
}

static int take(int signal, siginfo_t *info, int seconds) {
    sigset_t set;
    struct timespec limit = {seconds, 0};
    int taken;
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, signal) == 0);
    while ((taken = sigtimedwait(&set, info, &limit)) < 0 && errno == EINTR) {}
    CHECK(taken == signal || errno == EAGAIN);
    CHECK(taken < 0 || info->si_code == SI_TIMER);
    return taken == signal;
}

/* One number, of which a process could not send itself two: each timer has its own, also where some of them were deleted. */
static void check_many(long count, int signal) {
    timer_t *timers = calloc((size_t)count, sizeof *timers);
    char *told = calloc((size_t)count, 1);
    CHECK(timers && told);
    for (long i = 0; i < count; i++) {
        timers[i] = new_timer(SIGEV_SIGNAL, signal, i, 0);
        if (i % 5 == 4) {
            CHECK(timer_delete(timers[i]) == 0);
            timers[i] = new_timer(SIGEV_SIGNAL, signal, i, 0);
        }
        set(timers[i], 1 + i % 7 * MS, 0);
    }
    sleep_us(2000);
    for (long left = count; left > 0; left--) {
        siginfo_t info;
        if (!take(signal, &info, 30)) FAIL("%ld of %ld timers were not told", left, count);
        long i = (long)info.si_value.sival_ptr;
        CHECK(i >= 0 && i < count && info.si_timerid == (int)(intptr_t)timers[i]);
        if (told[i]++) FAIL("timer %ld was told twice", i);
    }
    siginfo_t info;
    CHECK(!take(signal, &info, 0));
    for (long i = 0; i < count; i++) CHECK(timer_delete(timers[i]) == 0);
    free(timers);
    free(told);
}

/* A period whose signal waits: one signal, which stands for all of its expirations. */
static void check_period(void) {
    timer_t timer = new_timer(SIGEV_SIGNAL, SIGUSR2, 3, 0);
    int64_t since = now_ns();
    set(timer, PERIOD, PERIOD);
    sleep_us(30000);
    siginfo_t info;
    CHECK(take(SIGUSR2, &info, 30) && info.si_timerid == (int)(intptr_t)timer);
    int64_t expired = info.si_overrun + 1, gone = now_ns() - since;
    if (expired * PERIOD > gone || gone > 4000l * MS + 2 * expired * PERIOD)
        FAIL("%ld expirations in %ld ns", (long)expired, (long)gone);
    CHECK(timer_getoverrun(timer) == info.si_overrun && timer_delete(timer) == 0);
}

static void *one_of_many(void *self) {
    long own = (long)self;
    timer_t timer = new_timer(SIGEV_THREAD_ID, SIGRTMIN + 3, own, gettid());
    for (int i = 0; i < 8; i++) {
        siginfo_t info;
        set(timer, 1 + (own + i) % 3 * MS, 0);
        sleep_us(own * 200);
        if (!take(SIGRTMIN + 3, &info, 30)) FAIL("thread %ld was not told", own);
        if ((long)info.si_value.sival_ptr != own) FAIL("thread %ld was told of another's", own);
        CHECK(!take(SIGRTMIN + 3, &info, 0));
    }
    CHECK(timer_delete(timer) == 0);
    return NULL;
}

static void check_threads(void) {
    pthread_t all[THREADS];
    for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&all[i], NULL, one_of_many, (void *)i) == 0);
    for (long i = 0; i < THREADS; i++) CHECK(pthread_join(all[i], NULL) == 0);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 20), timers = argument(count, values, 2, 200);
    const int blocked[] = {SIGUSR1, SIGUSR2, SIGRTMIN + 3, SIGRTMIN + 4};
    sigset_t set;
    CHECK(sigemptyset(&set) == 0);
    for (int i = 0; i < 4; i++) CHECK(sigaddset(&set, blocked[i]) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    for (long round = 0; round < rounds; round++) {
        check_many(timers, round % 2 ? SIGRTMIN + 4 : SIGUSR1);
        check_period();
        check_threads();
    }
    printf("%ld rounds of %ld timers\n", rounds, timers);
    return 0;
}
