/* POSIX timers of all kinds: each expiration is told once, to whom it should be, with its value, and never early.
 *
 * alarms [ROUNDS] */
#include "guest.h"
#include <poll.h>

enum { TIMERS = 6, MS = 1000000, PERIOD = 2 * MS, SIGNAL_ONCE = 40, SIGNAL_TO_THREAD = 41, SIGNAL_FLOOD = 42, SIGNAL_PERIOD = 43 };

static int64_t time_of(clockid_t clock) {
    struct timespec now;
    CHECK(clock_gettime(clock, &now) == 0);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static struct timespec of_ns(int64_t ns) {
    return (struct timespec){ns / 1000000000, ns % 1000000000};
}

static timer_t new_timer(clockid_t clock, int notify, int signal, long value) {
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal, .sigev_value.sival_ptr = (void *)value};
    timer_t timer;
    if (notify == SIGEV_THREAD_ID) event._sigev_un._tid = (int)value;
    CHECK(timer_create(clock, &event, &timer) == 0);
    return timer;
}

static void set(timer_t timer, int flags, int64_t value, int64_t period) {
    struct itimerspec times = {of_ns(period), of_ns(value)};
    CHECK(timer_settime(timer, flags, &times, NULL) == 0);
}

static int64_t remaining(timer_t timer) {
    struct itimerspec times;
    CHECK(timer_gettime(timer, &times) == 0);
    return times.it_value.tv_sec * 1000000000ll + times.it_value.tv_nsec;
}

static sigset_t only(int signal) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    return set;
}

/* Takes the next of a signal; 0 if there is none in that many seconds. */
static int take(int signal, siginfo_t *info, int seconds) {
    sigset_t set = only(signal);
    struct timespec limit = {seconds, 0};
    int taken;
    while ((taken = sigtimedwait(&set, info, &limit)) < 0 && errno == EINTR) {}
    CHECK(taken == signal || errno == EAGAIN);
    return taken == signal;
}

/* Several at once, each told once and not early, beside one that expires all the time and whose signal nobody takes. */
static void check_once(uint64_t *random) {
    timer_t flood = new_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGNAL_FLOOD, 77), timers[TIMERS];
    int64_t due[TIMERS];
    int told[TIMERS] = {0};
    set(flood, 0, MS / 20, MS / 20);
    for (int i = 0; i < TIMERS; i++) {
        clockid_t clock = i % 3 == 2 ? CLOCK_BOOTTIME : CLOCK_MONOTONIC;
        int64_t delay = (int64_t)(next_random(random) % (4 * MS)) + 1, now = time_of(clock);
        timers[i] = new_timer(clock, SIGEV_SIGNAL, SIGNAL_ONCE, i + 1);
        due[i] = time_of(clock) + delay;
        if (i % 2) set(timers[i], TIMER_ABSTIME, due[i], 0);
        else set(timers[i], 0, delay, 0);
        CHECK(now <= due[i] && remaining(timers[i]) <= 4 * MS);
    }
    for (int count = 0; count < TIMERS; count++) {
        siginfo_t info;
        if (!take(SIGNAL_ONCE, &info, 20)) FAIL("only %d of %d timers were told", count, TIMERS);
        long i = (long)info.si_value.sival_ptr - 1;
        CHECK(info.si_code == SI_TIMER && i >= 0 && i < TIMERS && info.si_overrun == 0);
        CHECK(info.si_timerid == (int)(intptr_t)timers[i]);
        if (told[i]++) FAIL("timer %ld was told twice", i);
        int64_t now = time_of(i % 3 == 2 ? CLOCK_BOOTTIME : CLOCK_MONOTONIC);
        if (now < due[i]) FAIL("timer %ld was told %ld ns early", i, (long)(due[i] - now));
        CHECK(remaining(timers[i]) == 0);
    }
    siginfo_t info;
    CHECK(!take(SIGNAL_ONCE, &info, 0));
    CHECK(take(SIGNAL_FLOOD, &info, 20) && (long)info.si_value.sival_ptr == 77 && info.si_overrun >= 0);
    for (int i = 0; i < TIMERS; i++) CHECK(timer_delete(timers[i]) == 0);
    CHECK(timer_delete(flood) == 0);
    while (take(SIGNAL_FLOOD, &info, 0)) {}
}

static volatile sig_atomic_t expirations, wrong;
static timer_t periodic;

static void on_period(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    int missed = timer_getoverrun(periodic);
    wrong |= info->si_code != SI_TIMER || (long)info->si_value.sival_ptr != 9 || missed < 0;
    expirations += 1 + missed;
}

/* A period, by a handler: never more expirations than there is time for. */
static void check_periods(void) {
    struct sigaction action = {.sa_sigaction = on_period, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGNAL_PERIOD, &action, NULL) == 0);
    expirations = 0;
    periodic = new_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGNAL_PERIOD, 9);
    int64_t since = time_of(CLOCK_MONOTONIC);
    set(periodic, 0, PERIOD, PERIOD);
    while (expirations < 6) {
        sleep_us(500);
        int64_t counted = expirations, now = time_of(CLOCK_MONOTONIC);
        if (counted * PERIOD > now - since) FAIL("%ld periods in %ld ns", (long)counted, (long)(now - since));
        int64_t left = remaining(periodic);
        CHECK(left > 0 && left <= PERIOD && !wrong);
    }
    CHECK(timer_delete(periodic) == 0);
}

static int tid_of_waiter;
static pthread_barrier_t barrier;

static void *wait_for_timer(void *rounds) {
    tid_of_waiter = gettid();
    pthread_barrier_wait(&barrier);
    for (long left = (long)rounds; left > 0; left--) {
        siginfo_t info;
        CHECK(take(SIGNAL_TO_THREAD, &info, 20) && info.si_code == SI_TIMER);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static volatile int busy;

/* A thread that takes long to stop, so that timers expire when others stand still already. */
static void *map_much(void *unused) {
    const size_t bytes = 24 << 20;
    while (busy) {
        void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        CHECK(at != MAP_FAILED && munmap(at, bytes) == 0);
    }
    return unused;
}

/* One that tells a thread alone: it comes to that one, each time once. */
static void check_thread(void) {
    enum { ROUNDS = 3 };
    pthread_t waiter, slow;
    if (busy) CHECK(pthread_create(&slow, NULL, map_much, NULL) == 0);
    CHECK(pthread_barrier_init(&barrier, NULL, 2) == 0);
    CHECK(pthread_create(&waiter, NULL, wait_for_timer, (void *)(long)ROUNDS) == 0);
    pthread_barrier_wait(&barrier);
    timer_t timer = new_timer(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGNAL_TO_THREAD, tid_of_waiter);
    for (int round = 0; round < ROUNDS; round++) {
        siginfo_t info;
        set(timer, 0, MS / 2 + round * MS / 3, 0);
        pthread_barrier_wait(&barrier);
        CHECK(!take(SIGNAL_TO_THREAD, &info, 0));
    }
    CHECK(pthread_join(waiter, NULL) == 0);
    if (busy) {
        busy = 0;
        CHECK(pthread_join(slow, NULL) == 0);
    }
    /* Tells nobody any more. */
    set(timer, 0, MS, 0);
    CHECK(timer_delete(timer) == 0 && pthread_barrier_destroy(&barrier) == 0);
}

static volatile int called;

static void by_thread(union sigval value) {
    CHECK(value.sival_int == 5);
    __atomic_fetch_add(&called, 1, __ATOMIC_RELEASE);
}

/* The C library's own way to call a function. */
static void check_function(void) {
    struct sigevent event = {
        .sigev_notify = SIGEV_THREAD, .sigev_notify_function = by_thread, .sigev_value.sival_int = 5};
    timer_t timer;
    called = 0;
    CHECK(timer_create(CLOCK_REALTIME, &event, &timer) == 0);
    set(timer, 0, MS, 0);
    for (int i = 0; i < 20000 && !__atomic_load_n(&called, __ATOMIC_ACQUIRE); i++) sleep_us(1000);
    sleep_us(1000);
    CHECK(called == 1 && timer_delete(timer) == 0);
}

/* Time on a processor, the calendar's time, one that tells nobody, and one with the usual signal. */
static void check_clocks(void) {
    siginfo_t info;
    sigset_t set_of = only(SIGALRM);
    CHECK(pthread_sigmask(SIG_BLOCK, &set_of, NULL) == 0);
    clockid_t own;
    CHECK(pthread_getcpuclockid(pthread_self(), &own) == 0);
    clockid_t clocks[] = {CLOCK_THREAD_CPUTIME_ID, CLOCK_PROCESS_CPUTIME_ID, own};
    for (int i = 0; i < 3; i++) {
        timer_t timer = new_timer(clocks[i], SIGEV_SIGNAL, SIGNAL_ONCE, i);
        set(timer, 0, 2 * MS, 0);
        volatile uint64_t work = 0;
        while (!take(SIGNAL_ONCE, &info, 0)) {
            for (int n = 0; n < 20000; n++) work += n;
        }
        CHECK((long)info.si_value.sival_ptr == i && timer_delete(timer) == 0);
    }
    timer_t silent = new_timer(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0), usual;
    set(silent, 0, 1000000000ll * 1000, 0);
    int64_t first = remaining(silent);
    sleep_us(100);
    CHECK(remaining(silent) < first && first <= 1000000000ll * 1000);
    CHECK(timer_create(CLOCK_REALTIME, NULL, &usual) == 0);
    int64_t due = time_of(CLOCK_REALTIME) + MS;
    set(usual, TIMER_ABSTIME, due, 0);
    CHECK(take(SIGALRM, &info, 20) && time_of(CLOCK_REALTIME) >= due);
    CHECK(info.si_timerid == (int)(intptr_t)usual);
    /* The kernel's own way to be asked for nothing particular. */
    int id;
    struct itimerspec soon = {{0, 0}, {0, MS}};
    CHECK(syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, &id) == 0);
    CHECK(syscall(SYS_timer_settime, id, 0, &soon, NULL) == 0);
    CHECK(take(SIGALRM, &info, 20) && info.si_timerid == id && info.si_value.sival_int == id);
    CHECK(syscall(SYS_timer_delete, id) == 0);
    CHECK(timer_delete(silent) == 0 && timer_delete(usual) == 0);
}

static void check_errors(void) {
    struct itimerspec times = {{0, 0}, {0, 1000000000}};
    timer_t timer = new_timer(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGNAL_ONCE, 1), other;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 65};
    CHECK(timer_settime(timer, 0, &times, NULL) == -1 && errno == EINVAL);
    CHECK(timer_settime(timer, 0, NULL, NULL) == -1 && errno == EINVAL);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &other) == -1 && errno == EINVAL);
    CHECK(timer_create(77, NULL, &other) == -1 && errno == EINVAL);
    int id = (int)(intptr_t)timer;
    CHECK(syscall(SYS_timer_gettime, id, 8) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_timer_create, CLOCK_MONOTONIC, 8, &other) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_timer_create, CLOCK_MONOTONIC, NULL, 8) == -1 && errno == EFAULT);
    CHECK(timer_delete(timer) == 0);
    CHECK(syscall(SYS_timer_delete, id) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_timer_gettime, id, &times) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_timer_settime, id, 0, 8, NULL) == -1 && errno == EFAULT);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 40);
    uint64_t random = 7;
    int blocked[] = {SIGNAL_ONCE, SIGNAL_TO_THREAD, SIGNAL_FLOOD};
    for (int i = 0; i < 3; i++) {
        sigset_t set = only(blocked[i]);
        CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    }
    check_errors();
    for (long round = 0; round < rounds; round++) {
        check_once(&random);
        check_periods();
        busy = rounds > 2;
        check_thread();
        check_function();
        check_clocks();
    }
    printf("%ld rounds of timers\n", rounds);
    return 0;
}
