/* Signals as the program sees them: handlers, timers, small alternate stacks, leaving a handler by siglongjmp, sigwait,
 * signalfd, queued values, masks, SA_RESTART and EINTR, a handler that interrupts a handler.
 *
 * signals [ROUNDS] */
#include "guest.h"
#include <poll.h>
#include <setjmp.h>
#include <sys/signalfd.h>
#include <sys/time.h>

static volatile sig_atomic_t ticks, usr1, nested, depth, value_sum, on_other_stack;
static sigjmp_buf out;
static char *other_stack;
static size_t other_stack_bytes;

static void install(int number, void (*handler)(int), int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    CHECK(sigaction(number, &action, NULL) == 0);
}

static void on_tick(int number) { (void)number, ticks++; }
static void on_usr1(int number) { (void)number, usr1++; }
static void on_jump(int number) { (void)number, siglongjmp(out, 1); }

static void set_timer(long us) {
    struct itimerval timer = {{us / 1000000, us % 1000000}, {us / 1000000, us % 1000000}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

/* Ticks go on coming; vector registers and errno are as they were before a handler ran. */
static void test_timer(void) {
    double x = 1, y = 1;
    install(SIGALRM, on_tick, SA_RESTART);
    ticks = 0;
    set_timer(2000);
    while (ticks < 20) {
        x = x * 1.000001 + 1;
        y = y * 1.000001 + 1;
        if (x != y) FAIL("a handler changed a register");
    }
    set_timer(0);
}

struct feeder { int fd; long bytes; long pause_us; };

static void *feed(void *argument_) {
    struct feeder *is = argument_;
    sigset_t all;
    sigfillset(&all);
    CHECK(pthread_sigmask(SIG_BLOCK, &all, NULL) == 0);
    for (long i = 0; i < is->bytes; i++) {
        char byte = (char)('a' + i % 26);
        sleep_us(is->pause_us);
        CHECK(write(is->fd, &byte, 1) == 1);
    }
    return NULL;
}

/* A read that handlers interrupt all the time: with SA_RESTART it never says so, without only if one has run. */
static void test_read(int flags) {
    int ends[2];
    pthread_t thread;
    CHECK(pipe(ends) == 0);
    struct feeder feeder = {ends[1], 20, 3000};
    install(SIGALRM, on_tick, flags);
    CHECK(pthread_create(&thread, NULL, feed, &feeder) == 0);
    set_timer(1000);
    for (long i = 0; i < feeder.bytes;) {
        char byte;
        int before = ticks;
        ssize_t got = read(ends[0], &byte, 1);
        if (got == -1 && errno == EINTR) {
            CHECK(!(flags & SA_RESTART));
            CHECK(ticks > before);
            continue;
        }
        CHECK(got == 1 && byte == 'a' + i % 26);
        i++;
    }
    set_timer(0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

/* A handler leaves a blocked read for good by siglongjmp. */
static void test_jump(void) {
    int ends[2];
    char byte;
    volatile int jumps = 0;
    CHECK(pipe(ends) == 0);
    install(SIGALRM, on_jump, 0);
    for (volatile int i = 0; i < 10; i++) {
        if (sigsetjmp(out, 1) == 0) {
            struct itimerval once = {{0, 0}, {0, 3000}};
            CHECK(setitimer(ITIMER_REAL, &once, NULL) == 0);
            (void)!read(ends[0], &byte, 1);
            FAIL("the read has ended");
        }
        jumps++;
    }
    CHECK(jumps == 10);
    /* What the jump restored: the signal is not blocked. */
    sigset_t now;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0 && !sigismember(&now, SIGALRM));
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void on_small_stack(int number) {
    char here;
    (void)number;
    if (&here > other_stack && &here < other_stack + other_stack_bytes) on_other_stack++;
    CHECK(getppid() > 0);
}

/* The smallest alternate stack that the kernel's own frames fit on, and a kilobyte for the handler. */
static void test_alternate_stack(void) {
    stack_t stack = {0}, seen;
    other_stack_bytes = (size_t)sysconf(_SC_MINSIGSTKSZ) + 1024;
    other_stack = malloc(other_stack_bytes);
    /* ld.so's resolver would need more than is there. */
    CHECK(getppid() > 0);
    stack.ss_sp = other_stack;
    stack.ss_size = other_stack_bytes;
    CHECK(sigaltstack(&stack, NULL) == 0);
    CHECK(sigaltstack(NULL, &seen) == 0 && seen.ss_sp == other_stack && seen.ss_size == other_stack_bytes);
    install(SIGUSR2, on_small_stack, SA_ONSTACK);
    on_other_stack = 0;
    for (int i = 0; i < 200; i++) CHECK(raise(SIGUSR2) == 0);
    CHECK(on_other_stack == 200);
    stack.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&stack, NULL) == 0);
    free(other_stack);
}

static void on_value(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    CHECK(info->si_code == SI_QUEUE && info->si_pid == getpid());
    value_sum += info->si_value.sival_int;
}

/* Queued while blocked: all come, none twice, when the mask opens; and one by one through sigtimedwait. */
static void test_queue(void) {
    struct sigaction action = {.sa_sigaction = on_value, .sa_flags = SA_SIGINFO};
    sigset_t set, old;
    siginfo_t info;
    int number = SIGRTMIN + 3;
    struct timespec none = {0, 0};
    CHECK(sigaction(number, &action, NULL) == 0);
    sigemptyset(&set);
    sigaddset(&set, number);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, &old) == 0);
    value_sum = 0;
    for (int i = 1; i <= 8; i++) CHECK(sigqueue(getpid(), number, (union sigval){.sival_int = i}) == 0);
    sleep_us(2000);
    CHECK(value_sum == 0);
    for (int i = 1; i <= 3; i++) {
        while (sigtimedwait(&set, &info, &none) != number) CHECK(errno == EINTR);
        CHECK(info.si_value.sival_int == i);
    }
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    CHECK(value_sum == 4 + 5 + 6 + 7 + 8);
}

static void *kill_later(void *argument_) {
    pthread_t target = *(pthread_t *)argument_;
    sleep_us(3000);
    CHECK(pthread_kill(target, SIGUSR1) == 0);
    return NULL;
}

/* sigwait and sigsuspend in one thread, pthread_kill from another; a blocked signal in a signalfd. */
static void test_waiting(void) {
    sigset_t set, old;
    pthread_t self = pthread_self(), thread;
    int number;
    install(SIGUSR1, on_usr1, 0);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, &old) == 0);
    CHECK(pthread_create(&thread, NULL, kill_later, &self) == 0);
    CHECK(sigwait(&set, &number) == 0 && number == SIGUSR1);
    CHECK(pthread_join(thread, NULL) == 0);
    int before = usr1;
    CHECK(pthread_create(&thread, NULL, kill_later, &self) == 0);
    CHECK(sigsuspend(&old) == -1 && errno == EINTR);
    CHECK(usr1 == before + 1);
    CHECK(pthread_join(thread, NULL) == 0);
    int fd = signalfd(-1, &set, SFD_CLOEXEC);
    CHECK(fd >= 0);
    CHECK(pthread_create(&thread, NULL, kill_later, &self) == 0);
    struct signalfd_siginfo info;
    CHECK(read(fd, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR1);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(close(fd) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
}

static void on_outer(int number) {
    (void)number;
    depth++;
    CHECK(raise(SIGUSR2) == 0);
    depth--;
}

static void on_inner(int number) {
    (void)number;
    if (depth == 1) nested++;
}

/* A handler inside a handler; sa_mask keeps one out until the other has ended. */
static void test_nesting(void) {
    struct sigaction action = {.sa_handler = on_outer};
    install(SIGUSR1, on_outer, 0);
    install(SIGUSR2, on_inner, 0);
    nested = 0;
    for (int i = 0; i < 50; i++) CHECK(raise(SIGUSR1) == 0);
    CHECK(nested == 50);
    sigaddset(&action.sa_mask, SIGUSR2);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int i = 0; i < 50; i++) CHECK(raise(SIGUSR1) == 0);
    CHECK(nested == 50);
    struct sigaction reset = {.sa_handler = on_usr1, .sa_flags = (int)SA_RESETHAND}, seen;
    CHECK(sigaction(SIGUSR1, &reset, NULL) == 0 && raise(SIGUSR1) == 0);
    CHECK(sigaction(SIGUSR1, NULL, &seen) == 0 && seen.sa_handler == SIG_DFL);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 10);
    for (long round = 1; round <= rounds; round++) {
        test_timer();
        test_read(SA_RESTART);
        test_read(0);
        test_jump();
        test_alternate_stack();
        test_queue();
        test_waiting();
        test_nesting();
        printf("round %ld\n", round);
        fflush(stdout);
    }
    puts("signals: all as they should be");
    return 0;
}
