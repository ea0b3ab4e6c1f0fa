/* Signals that are ignored, of the kinds that an instruction may cause, sent all the while: no wait ends for them, and no
 * sleep becomes shorter. But where they are blocked they wait, as signal(7) has it, whatever else comes.
 *
 * ignored [ROUNDS] */
#include "guest.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>

enum { WAITERS = 6, MOMENT_MS = 5, KINDS = 5 };
static const int kinds[KINDS] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGSYS};
static long rounds;
static int events, signalled, silent;
static volatile int waiting = WAITERS;

static void sleep_on(void) {
    struct timespec left = {0, MOMENT_MS * 1000000};
    CHECK(nanosleep(&left, &left) == 0);
}

static void wait_for_signal(void) {
    sigset_t set;
    struct timespec moment = {0, MOMENT_MS * 1000000};
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, SIGUSR1) == 0);
    CHECK(sigtimedwait(&set, NULL, &moment) == -1 && errno == EAGAIN);
}

static void wait_in_epoll(void) {
    struct epoll_event event;
    CHECK(epoll_wait(events, &event, 1, MOMENT_MS) == 0);
}

static void wait_in_poll(void) {
    struct pollfd one = {silent, POLLIN, 0};
    CHECK(poll(&one, 1, MOMENT_MS) == 0);
}

static void wait_in_pause(void) {
    sigset_t set;
    CHECK(sigfillset(&set) == 0);
    for (int i = 0; i < KINDS; i++) CHECK(sigdelset(&set, kinds[i]) == 0);
    struct timespec moment = {0, MOMENT_MS * 1000000};
    CHECK(ppoll(NULL, 0, &moment, &set) == 0);
}

static void wait_in_read(void) {
    eventfd_t value;
    CHECK(eventfd_read(signalled, &value) == 0 && value == 1);
}

static void (*const waits[WAITERS])(void) = {sleep_on,     wait_for_signal, wait_in_epoll,
                                             wait_in_poll, wait_in_pause,   wait_in_read};

static void *wait_always(void *number) {
    void (*wait)(void) = waits[(intptr_t)number];
    for (long i = 0; i < rounds; i++) {
        int64_t since = now_ns();
        wait();
        if (wait != wait_in_read && now_ns() - since < MOMENT_MS * 1000000 - 1000)
            FAIL("wait %d, round %ld: %ld us of %d ms", (int)(intptr_t)number, i, (long)(now_ns() - since) / 1000, MOMENT_MS);
    }
    __atomic_fetch_sub(&waiting, 1, __ATOMIC_SEQ_CST);
    return number;
}

static pthread_t taker;
static volatile long taken;

static void nothing(int signal) { (void)signal; }

static void *take_blocked(void *unused) {
    sigset_t set;
    struct timespec patience = {20, 0};
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, SIGSEGV) == 0);
    for (long i = 0; i < rounds * 10; i++) {
        int signal;
        int64_t since = now_ns();
        while ((signal = sigtimedwait(&set, NULL, &patience)) == -1 && errno == EINTR && now_ns() - since < 20000000000) {}
        if (signal != SIGSEGV) FAIL("signal %ld that is blocked has not come", i);
        taken++;
    }
    return unused;
}

static void *disturb(void *unused) {
    while (taken < rounds * 10) {
        pthread_kill(taker, SIGUSR1);
        sleep_us(20);
    }
    return unused;
}

static void check_blocked(void) {
    sigset_t set;
    pthread_t other;
    struct sigaction action = {.sa_handler = nothing};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigemptyset(&set) == 0 && sigaddset(&set, SIGSEGV) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    CHECK(pthread_create(&taker, NULL, take_blocked, NULL) == 0 && pthread_create(&other, NULL, disturb, NULL) == 0);
    for (long i = 0; i < rounds * 10; i++) {
        CHECK(pthread_kill(taker, SIGSEGV) == 0);
        while (taken <= i) sleep_us(20);
    }
    CHECK(pthread_join(other, NULL) == 0 && pthread_join(taker, NULL) == 0);
}

int main(int count, char **values) {
    pthread_t threads[WAITERS];
    rounds = argument(count, values, 1, 150);
    CHECK((events = epoll_create1(EPOLL_CLOEXEC)) >= 0 && (signalled = eventfd(0, EFD_CLOEXEC)) >= 0);
    CHECK((silent = eventfd(0, EFD_CLOEXEC)) >= 0);
    for (int i = 0; i < KINDS; i++) CHECK(signal(kinds[i], SIG_IGN) != SIG_ERR);
    for (intptr_t i = 0; i < WAITERS; i++) CHECK(pthread_create(&threads[i], NULL, wait_always, (void *)i) == 0);
    /* The one that reads is woken now and then; a wake that it has not seen yet is not given once more. */
    long given = 0;
    for (long step = 0; waiting > 0; step++) {
        for (int i = 0; i < WAITERS; i++) pthread_kill(threads[i], kinds[(step + i) % KINDS]);
        sleep_us(200);
        struct pollfd one = {signalled, POLLIN, 0};
        if (given < rounds && poll(&one, 1, 0) == 0) {
            CHECK(eventfd_write(signalled, 1) == 0);
            given++;
        }
    }
    for (int i = 0; i < WAITERS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    check_blocked();
    printf("%ld rounds\n", rounds);
    return 0;
}
