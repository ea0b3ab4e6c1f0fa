/* Threads blocked in every kind of call that waits, with known time-outs or with another thread that wakes them: each
 * ends for its own reason, neither early nor lost nor reported as interrupted, whatever happens meanwhile.
 *
 * Time-outs are measured with CLOCK_MONOTONIC, which stands still while the program does not run, so what is left of a
 * time-out after a failure is what was left before.
 *
 * waits [ROUNDS] */
#include "guest.h"
#include <arpa/inet.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

/* How long the waits last, and how much later than that they may end: a machine that is busy with others may stand still for
 * seconds. */
enum { WAIT_MS = 120, SLACK_MS = 10000 };
static long rounds;

static void check_elapsed(int64_t since, const char *what) {
    int64_t ms = (now_ns() - since) / 1000000;
    if (ms < WAIT_MS - 1 || ms > WAIT_MS + SLACK_MS) FAIL("%s lasted %ld ms instead of %d", what, (long)ms, WAIT_MS);
}

static const struct timespec wait_time = {0, WAIT_MS * 1000000l};

static void wait_sleep(void) { CHECK(nanosleep(&wait_time, NULL) == 0); }

static void wait_until(void) {
    struct timespec until;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &until) == 0);
    until.tv_nsec += wait_time.tv_nsec;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == 0);
}

static void wait_futex(void) {
    int word = 7;
    CHECK(syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 7, &wait_time, NULL, 0) == -1 && errno == ETIMEDOUT);
}

static void wait_condition(void) {
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_condattr_t attributes;
    pthread_cond_t condition;
    struct timespec until;
    pthread_condattr_init(&attributes);
    CHECK(pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC) == 0);
    CHECK(pthread_cond_init(&condition, &attributes) == 0);
    CHECK(clock_gettime(CLOCK_MONOTONIC, &until) == 0);
    until.tv_nsec += wait_time.tv_nsec;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    CHECK(pthread_mutex_lock(&mutex) == 0);
    int result;
    while ((result = pthread_cond_timedwait(&condition, &mutex, &until)) == 0) continue;
    CHECK(result == ETIMEDOUT);
    CHECK(pthread_mutex_unlock(&mutex) == 0);
}

static void wait_poll(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    struct pollfd set = {ends[0], POLLIN, 0};
    int64_t since = now_ns();
    /* poll's, epoll_wait's and select's time-outs are not restarted by the kernel if a handler runs; none does. */
    CHECK(poll(&set, 1, WAIT_MS) == 0);
    check_elapsed(since, "poll");
    CHECK(ppoll(&set, 1, &wait_time, NULL) == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void wait_epoll(void) {
    struct epoll_event event = {EPOLLIN, {.u64 = 42}};
    int events = eventfd(0, EFD_CLOEXEC), set = epoll_create1(0);
    CHECK(events >= 0 && set >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, events, &event) == 0);
    CHECK(epoll_wait(set, &event, 1, WAIT_MS) == 0);
    CHECK(eventfd_write(events, 3) == 0);
    CHECK(epoll_wait(set, &event, 1, -1) == 1 && event.data.u64 == 42);
    eventfd_t value;
    CHECK(eventfd_read(events, &value) == 0 && value == 3);
    CHECK(close(events) == 0 && close(set) == 0);
}

static void wait_select(void) {
    int ends[2];
    fd_set set;
    struct timeval time = {0, WAIT_MS * 1000};
    CHECK(pipe(ends) == 0);
    FD_ZERO(&set);
    FD_SET(ends[0], &set);
    CHECK(select(ends[0] + 1, &set, NULL, NULL, &time) == 0);
    CHECK(time.tv_sec == 0 && time.tv_usec == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void wait_timerfd(void) {
    int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
    struct itimerspec once = {{0, 0}, wait_time};
    uint64_t expirations = 0;
    CHECK(timer >= 0 && timerfd_settime(timer, 0, &once, NULL) == 0);
    CHECK(read(timer, &expirations, 8) == 8 && expirations == 1);
    CHECK(close(timer) == 0);
}

static void *write_late(void *argument_) {
    sleep_us(WAIT_MS * 1000);
    CHECK(write(*(int *)argument_, "late", 4) == 4);
    return NULL;
}

static void wait_pipe(void) {
    int ends[2];
    char text[8];
    pthread_t thread;
    CHECK(pipe(ends) == 0 && pthread_create(&thread, NULL, write_late, &ends[1]) == 0);
    CHECK(read(ends[0], text, sizeof text) == 4 && memcmp(text, "late", 4) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void *post_late(void *argument_) {
    sleep_us(WAIT_MS * 1000);
    CHECK(sem_post(argument_) == 0);
    return NULL;
}

/* sem_wait may only say EINTR if a handler has run; there is none. */
static void wait_semaphore(void) {
    sem_t semaphore;
    pthread_t thread;
    CHECK(sem_init(&semaphore, 0, 0) == 0 && pthread_create(&thread, NULL, post_late, &semaphore) == 0);
    CHECK(sem_wait(&semaphore) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

/* One exchange with the server; 0 if a failure has reset the connection. */
static int ask(const struct sockaddr_in *address) {
    char answer = 0;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), good;
    CHECK(fd >= 0);
    good = connect(fd, (const struct sockaddr *)address, sizeof *address) == 0;
    good = good && send(fd, "q", 1, MSG_NOSIGNAL) == 1 && recv(fd, &answer, 1, 0) == 1;
    CHECK(!good || answer == 'a');
    CHECK(close(fd) == 0);
    return good;
}

static void *client(void *argument_) {
    int tries = 0;
    sleep_us(WAIT_MS * 1000);
    while (!ask(argument_)) {
        if (++tries > 1000) FAIL("no answer after %d tries", tries);
        sleep_us(2000);
    }
    return NULL;
}

/* A blocked accept goes on waiting; a connection that a failure reset is followed by another. */
static void wait_accept(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t bytes = sizeof address;
    pthread_t thread;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), answered = 0;
    CHECK(listener >= 0 && bind(listener, (struct sockaddr *)&address, bytes) == 0 && listen(listener, 8) == 0);
    CHECK(getsockname(listener, (struct sockaddr *)&address, &bytes) == 0);
    CHECK(pthread_create(&thread, NULL, client, &address) == 0);
    while (!answered) {
        char question;
        int fd = accept(listener, NULL, NULL);
        if (fd == -1 && errno == ECONNABORTED) continue;
        CHECK(fd >= 0);
        answered = recv(fd, &question, 1, 0) == 1 && send(fd, "a", 1, MSG_NOSIGNAL) == 1;
        /* Wait for the client to close: it may have seen a reset where the answer was sent. */
        if (answered && recv(fd, &question, 1, 0) != 0) answered = 0;
        CHECK(close(fd) == 0);
        /* A client that is content does not come again. */
        if (!answered && pthread_tryjoin_np(thread, NULL) == 0) break;
        if (!answered) {
            struct pollfd set = {listener, POLLIN, 0};
            while (poll(&set, 1, 20) == 0)
                if (pthread_tryjoin_np(thread, NULL) == 0) goto joined;
        }
    }
    if (answered) CHECK(pthread_join(thread, NULL) == 0);
joined:
    CHECK(close(listener) == 0);
}

static const struct { const char *name; void (*wait)(void); int measured; } kinds[] = {
    {"nanosleep", wait_sleep, 1}, {"clock_nanosleep", wait_until, 1}, {"futex", wait_futex, 1},
    {"pthread_cond_timedwait", wait_condition, 1}, {"poll", wait_poll, 0}, {"epoll_wait", wait_epoll, 1},
    {"select", wait_select, 1}, {"timerfd", wait_timerfd, 1}, {"read", wait_pipe, 1},
    {"sem_wait", wait_semaphore, 1}, {"accept", wait_accept, 0},
};
enum { KINDS = sizeof kinds / sizeof *kinds };
static long done[KINDS];

static void *work(void *argument_) {
    long kind = (long)argument_;
    for (long round = 0; round < rounds; round++) {
        int64_t since = now_ns();
        kinds[kind].wait();
        if (kinds[kind].measured) check_elapsed(since, kinds[kind].name);
        done[kind]++;
    }
    return NULL;
}

int main(int count, char **values) {
    pthread_t threads[KINDS];
    rounds = argument(count, values, 1, 16);
    for (long i = 0; i < KINDS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (long i = 0; i < KINDS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    for (long i = 0; i < KINDS; i++) printf("%s %ld\n", kinds[i].name, done[i]);
    return 0;
}
