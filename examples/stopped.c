/* Waits that the kernel ends with EINTR where the process is stopped for a while, without any handler (signal(7)). Under
 * zhuque they go on: a power failure that another thread hears of first would end them in the same way.
 *
 * stopped [ROUNDS] */
#include "guest.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>

static int events;
static long rounds;

static void *feed(void *unused) {
    for (long i = 0; i < rounds; i++) {
        sleep_us(4000);
        CHECK(eventfd_write(events, 1) == 0);
    }
    return unused;
}

static void *wait_for_signal(void *unused) {
    sigset_t set;
    struct timespec moment = {0, 4000000};
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, SIGUSR1) == 0);
    for (long i = 0; i < rounds; i++) CHECK(sigtimedwait(&set, NULL, &moment) == -1 && errno == EAGAIN);
    return unused;
}

static void *wait_in_vain(void *unused) {
    struct epoll_event event;
    int set = epoll_create1(EPOLL_CLOEXEC);
    for (long i = 0; i < rounds; i++) CHECK(epoll_wait(set, &event, 1, 4) == 0);
    CHECK(close(set) == 0);
    return unused;
}

int main(int count, char **values) {
    pthread_t others[3];
    void *(*const work[3])(void *) = {feed, wait_for_signal, wait_in_vain};
    struct epoll_event event = {EPOLLIN, {.u64 = 7}};
    int set = epoll_create1(EPOLL_CLOEXEC);
    rounds = argument(count, values, 1, 100);
    CHECK(set >= 0 && (events = eventfd(0, EFD_CLOEXEC)) >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, events, &event) == 0);
    for (int i = 0; i < 3; i++) CHECK(pthread_create(&others[i], NULL, work[i], NULL) == 0);
    for (eventfd_t all = 0, some; all < (eventfd_t)rounds; all += some) {
        CHECK(epoll_wait(set, &event, 1, -1) == 1 && event.data.u64 == 7);
        CHECK(eventfd_read(events, &some) == 0);
    }
    for (int i = 0; i < 3; i++) CHECK(pthread_join(others[i], NULL) == 0);
    printf("%ld rounds\n", rounds);
    return 0;
}
