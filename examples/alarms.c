/* POSIX timers: each kind of notification, relative and absolute, once and by periods. A timer that is armed expires, once,
 * whatever happens in between; what it sends has its number, its value, and goes to whom it is for.
 *
 * alarms [ROUNDS] */
#include "guest.h"
#include <semaphore.h>
#include <sys/time.h>

enum { PERIODS = 3, HOUR = 3600, SOON_NS = 1500000, PATIENCE_S = 20 };
static timer_t queued, periodic, to_thread, by_thread, silent, hourly, at_noon;
static sem_t called;
static pid_t other;
static pthread_t reader;
static volatile sig_atomic_t handled;

static struct timespec patience(void) { return (struct timespec){PATIENCE_S, 0}; }

static timer_t make(clockid_t clock, int notify, int signal, int value) {
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal, .sigev_value.sival_int = value};
    if (notify == SIGEV_THREAD_ID) event._sigev_un._tid = other;
    timer_t timer;
    CHECK(timer_create(clock, &event, &timer) == 0);
    return timer;
}

static void call(union sigval value) {
    CHECK(value.sival_int == 77);
    CHECK(sem_post(&called) == 0);
}

static void handle(int signal, siginfo_t *info, void *context) {
    (void)context;
    CHECK(signal == SIGUSR1 && info->si_code == SI_TIMER && info->si_value.sival_int == 5);
    handled++;
}

static void arm(timer_t timer, int flags, int64_t ns, int64_t period) {
    struct itimerspec spec = {{period / 1000000000, period % 1000000000}, {ns / 1000000000, ns % 1000000000}};
    CHECK(timer_settime(timer, flags, &spec, NULL) == 0);
}

static int64_t remaining(timer_t timer) {
    struct itimerspec spec;
    CHECK(timer_gettime(timer, &spec) == 0);
    return spec.it_value.tv_sec * 1000000000ll + spec.it_value.tv_nsec;
}

static int64_t now_of(clockid_t clock) {
    struct timespec now;
    CHECK(clock_gettime(clock, &now) == 0);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* The next signal of a timer. */
static siginfo_t take(int signal) {
    sigset_t set;
    siginfo_t info;
    struct timespec limit = patience();
    sigemptyset(&set);
    sigaddset(&set, signal);
    int taken;
    while ((taken = sigtimedwait(&set, &info, &limit)) == -1 && errno == EINTR) {}
    if (taken != signal) FAIL("signal %d of a timer has not come", signal);
    CHECK(info.si_code == SI_TIMER);
    return info;
}

static void none(int signal) {
    sigset_t set;
    struct timespec now = {0, 0};
    sigemptyset(&set);
    sigaddset(&set, signal);
    if (sigtimedwait(&set, NULL, &now) != -1) FAIL("signal %d came once too often", signal);
    CHECK(errno == EAGAIN || errno == EINTR);
}

/* Signals that are for this thread alone: says so to the main one. */
static void *take_mine(void *pipe_) {
    int *ends = pipe_;
    other = gettid();
    CHECK(write(ends[1], "r", 1) == 1);
    for (;;) {
        siginfo_t info = take(SIGRTMIN + 2);
        CHECK(info.si_value.sival_int == 9);
        none(SIGRTMIN + 2);
        char what;
        CHECK(write(ends[1], "x", 1) == 1 && read(ends[0 + 2], &what, 1) == 1);
        if (what == 'e') return NULL;
    }
}

static int ends[4];

static void set_up(void) {
    sigset_t set;
    sigemptyset(&set);
    for (int i = 0; i < 4; i++) sigaddset(&set, SIGRTMIN + i);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0 && sem_init(&called, 0, 0) == 0);
    struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    CHECK(pipe(ends) == 0 && pipe(ends + 2) == 0 && pthread_create(&reader, NULL, take_mine, ends) == 0);
    char ready;
    CHECK(read(ends[0], &ready, 1) == 1);
    /* Numbers need not be without gaps. */
    timer_t gone = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR2, 0);
    queued = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 3);
    CHECK(timer_delete(gone) == 0);
    periodic = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGUSR1, 5);
    to_thread = make(CLOCK_BOOTTIME, SIGEV_THREAD_ID, SIGRTMIN + 2, 9);
    silent = make(CLOCK_MONOTONIC, SIGEV_NONE, 0, 0);
    hourly = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGUSR2, 0);
    at_noon = make(CLOCK_REALTIME, SIGEV_SIGNAL, SIGRTMIN + 1, 4);
    struct sigevent event = {.sigev_notify = SIGEV_THREAD, .sigev_notify_function = call, .sigev_value.sival_int = 77};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &by_thread) == 0);
    arm(hourly, TIMER_ABSTIME, now_ns() + HOUR * 1000000000ll, HOUR * 1000000000ll);
}

static void check_round(void) {
    siginfo_t info;
    arm(queued, 0, SOON_NS, 0);
    info = take(SIGRTMIN);
    CHECK(info.si_value.sival_int == 3 && info.si_overrun == 0 && remaining(queued) == 0);
    none(SIGRTMIN);
    arm(queued, TIMER_ABSTIME, now_ns() + SOON_NS, 0);
    info = take(SIGRTMIN);
    none(SIGRTMIN);
    arm(at_noon, TIMER_ABSTIME, now_of(CLOCK_REALTIME) + SOON_NS, 0);
    info = take(SIGRTMIN + 1);
    CHECK(info.si_value.sival_int == 4);
    none(SIGRTMIN + 1);
    handled = 0;
    arm(periodic, 0, SOON_NS, SOON_NS);
    for (int64_t began = now_ns(); handled < PERIODS;) {
        sleep_us(500);
        if (now_ns() - began > PATIENCE_S * 1000000000ll) FAIL("%d periods", (int)handled);
    }
    arm(periodic, 0, 0, 0);
    arm(to_thread, 0, SOON_NS, 0);
    char what;
    CHECK(read(ends[0], &what, 1) == 1 && what == 'x' && write(ends[3], "g", 1) == 1);
    arm(by_thread, 0, SOON_NS, 0);
    struct timespec limit = {now_of(CLOCK_REALTIME) / 1000000000 + PATIENCE_S, 0};
    int posted;
    while ((posted = sem_timedwait(&called, &limit)) == -1 && errno == EINTR) {}
    if (posted != 0) FAIL("a timer's function has not been called");
    arm(silent, 0, HOUR * 1000000000ll, 0);
    CHECK(remaining(silent) > (HOUR - 60) * 1000000000ll && remaining(silent) <= HOUR * 1000000000ll);
    int64_t left = remaining(hourly);
    CHECK(left > (HOUR - 120) * 1000000000ll && left <= HOUR * 1000000000ll);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 80);
    set_up();
    for (long round = 0; round < rounds; round++) check_round();
    /* Numbers of timers that are gone are not in use. */
    CHECK(timer_delete(queued) == 0 && syscall(SYS_timer_delete, (long)queued) == -1 && errno == EINVAL);
    timer_t fresh = make(CLOCK_MONOTONIC, SIGEV_SIGNAL, SIGRTMIN, 3);
    arm(fresh, 0, SOON_NS, 0);
    take(SIGRTMIN);
    arm(to_thread, 0, SOON_NS, 0);
    char what;
    CHECK(read(ends[0], &what, 1) == 1 && write(ends[3], "e", 1) == 1 && pthread_join(reader, NULL) == 0);
    /* It is for a thread that is gone. */
    arm(to_thread, 0, SOON_NS, SOON_NS);
    sleep_us(5000);
    puts("all of them");
    return 0;
}
