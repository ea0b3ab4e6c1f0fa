/* pthread_cancel of threads blocked in calls that are cancellation points: every clean-up handler runs once, innermost
 * first, and the thread ends as cancelled. The unwinder must find its way out of every call, so the addresses on the
 * stack must be those of the call sites.
 *
 * cancel [ROUNDS] */
#include "guest.h"
#include <poll.h>
#include <semaphore.h>
#include <sys/epoll.h>
#include <sys/socket.h>

struct victim { int kind, depth, order; sem_t ready; int ends[2], sockets[2], events; };

static void block(struct victim *is) {
    char byte;
    struct timespec long_time = {1000, 0};
    struct pollfd set = {is->ends[0], POLLIN, 0};
    struct epoll_event event;
    sem_t never;
    pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
    CHECK(sem_post(&is->ready) == 0);
    switch (is->kind) {
    case 0: (void)!read(is->ends[0], &byte, 1); break;
    case 1: nanosleep(&long_time, NULL); break;
    case 2: pause(); break;
    case 3: poll(&set, 1, -1); break;
    case 4: recv(is->sockets[0], &byte, 1, 0); break;
    case 5: epoll_wait(is->events, &event, 1, -1); break;
    case 6: sem_init(&never, 0, 0), sem_wait(&never); break;
    case 7: pthread_mutex_lock(&mutex), pthread_cond_wait(&condition, &mutex); break;
    case 8: for (;;) pthread_testcancel();
    default: for (;;) getppid(), pthread_testcancel();
    }
    FAIL("kind %d went on", is->kind);
}

static void clean_inner(void *argument_) {
    struct victim *is = argument_;
    CHECK(is->order++ == 0);
}

static void clean_outer(void *argument_) {
    struct victim *is = argument_;
    CHECK(is->order++ == 1);
}

__attribute__((noinline)) static void inner(struct victim *is) {
    pthread_cleanup_push(clean_inner, is);
    block(is);
    pthread_cleanup_pop(0);
}

static void *work(void *argument_) {
    struct victim *is = argument_;
    pthread_cleanup_push(clean_outer, is);
    inner(is);
    pthread_cleanup_pop(0);
    return NULL;
}

static void *lived(void *argument_) {
    CHECK(pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL) == 0);
    sleep_us(1500);
    return argument_;
}

static void cancel_one(struct victim *is) {
    pthread_t thread;
    void *value;
    is->order = 0;
    CHECK(pthread_create(&thread, NULL, work, is) == 0);
    while (sem_wait(&is->ready) != 0) CHECK(errno == EINTR);
    /* Half of them are not yet blocked when the cancellation comes. */
    if (is->depth++ % 2) sleep_us(1500);
    CHECK(pthread_cancel(thread) == 0);
    CHECK(pthread_join(thread, &value) == 0);
    CHECK(value == PTHREAD_CANCELED);
    if (is->order != 2) FAIL("kind %d: %d clean-up handlers ran", is->kind, is->order);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 60);
    struct victim victim = {.kind = 0};
    CHECK(sem_init(&victim.ready, 0, 0) == 0 && pipe(victim.ends) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, victim.sockets) == 0);
    CHECK((victim.events = epoll_create1(EPOLL_CLOEXEC)) >= 0);
    for (long round = 0; round < rounds; round++)
        for (victim.kind = 0; victim.kind < 10; victim.kind++) {
            pthread_t thread;
            void *value;
            for (int twice = 0; twice < 2; twice++) cancel_one(&victim);
            CHECK(pthread_create(&thread, NULL, lived, &victim) == 0 && pthread_cancel(thread) == 0);
            CHECK(pthread_join(thread, &value) == 0 && (value == &victim || value == PTHREAD_CANCELED));
        }
    printf("cancel: %ld rounds of ten kinds, every clean-up handler ran once\n", rounds);
    return 0;
}
