/* Descriptors that tell of events, as a program leaves them: epoll with every kind of registration, an instance within
 * another, counters, timers of all clocks, signals as a descriptor, watched files; and poll and select over them.
 *
 * events [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/timerfd.h>

enum { LEVEL = 0x1001, EDGE, ONCE, FIRED, INNER, COPY, WRITER, HOUR = 3600 };
static int outer, inner, level[2], edge[2], once[2], fired[2], copied, counter, semaphore, huge;
static int hourly, daily, since_boot, running, signals, watched, directory_watch, file_watch;

static void add(int instance, int file, uint32_t events, uint64_t data) {
    struct epoll_event event = {events, {.u64 = data << 32 | data}};
    CHECK(epoll_ctl(instance, EPOLL_CTL_ADD, file, &event) == 0);
}

static void modify(int instance, int file, uint32_t events, uint64_t data) {
    struct epoll_event event = {events, {.u64 = data << 32 | data}};
    CHECK(epoll_ctl(instance, EPOLL_CTL_MOD, file, &event) == 0);
}

/* What an instance reports, a bit for each of the registrations. */
static unsigned ready(int instance) {
    struct epoll_event found[16];
    unsigned seen = 0;
    int count = epoll_wait(instance, found, 16, 0);
    CHECK(count >= 0);
    for (int i = 0; i < count; i++) {
        uint64_t data = found[i].data.u64;
        CHECK(data >> 32 == (data & 0xffffffff) && data >> 32 >= LEVEL && data >> 32 <= WRITER);
        CHECK(found[i].events == ((data >> 32) == WRITER ? EPOLLOUT : EPOLLIN));
        seen |= 1u << ((data >> 32) - LEVEL);
    }
    return seen;
}

static void expect_ready(int instance, unsigned always, unsigned perhaps) {
    unsigned seen = ready(instance);
    if ((seen & ~perhaps) != always) FAIL("%#x are ready, not %#x", seen, always);
}

#define BIT(name) (1u << ((name) - LEVEL))

static void set_up_epoll(void) {
    outer = epoll_create1(EPOLL_CLOEXEC);
    inner = epoll_create1(0);
    CHECK(outer >= 0 && inner >= 0);
    CHECK(pipe(level) == 0 && pipe(edge) == 0 && pipe(once) == 0 && pipe(fired) == 0);
    add(outer, level[0], EPOLLIN, LEVEL);
    add(outer, edge[0], EPOLLIN | EPOLLET, EDGE);
    add(outer, once[0], EPOLLIN | EPOLLONESHOT, ONCE);
    add(outer, fired[0], EPOLLIN | EPOLLONESHOT, FIRED);
    add(inner, counter, EPOLLIN, LEVEL);
    add(outer, inner, EPOLLIN, INNER);
    /* Registered under a number that means something else by now. */
    copied = dup(level[0]);
    CHECK(copied >= 0);
    add(outer, copied, EPOLLIN, COPY);
    CHECK(dup2(once[1], copied) == copied);
    CHECK(write(fired[1], "x", 1) == 1);
    expect_ready(outer, BIT(INNER) | BIT(FIRED), 0);
    add(outer, level[1], EPOLLOUT | EPOLLET, WRITER);
    expect_ready(outer, BIT(INNER) | BIT(WRITER), 0);
}

static void arm(int timer, int flags, long seconds, long interval) {
    struct itimerspec spec = {{interval, 0}, {seconds, 0}};
    CHECK(timerfd_settime(timer, flags, &spec, NULL) == 0);
}

static void set_up_timers(void) {
    struct timespec now;
    hourly = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    daily = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    since_boot = timerfd_create(CLOCK_BOOTTIME, TFD_NONBLOCK);
    running = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    CHECK(hourly >= 0 && daily >= 0 && since_boot >= 0 && running >= 0);
    arm(hourly, 0, HOUR, 2 * HOUR);
    CHECK(clock_gettime(CLOCK_REALTIME, &now) == 0);
    arm(daily, TFD_TIMER_ABSTIME, now.tv_sec + 24 * HOUR, 0);
    CHECK(clock_gettime(CLOCK_BOOTTIME, &now) == 0);
    arm(since_boot, TFD_TIMER_ABSTIME, now.tv_sec + HOUR, HOUR);
}

static void set_up_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    signals = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    CHECK(signals >= 0);
    for (int i = 0; i < 3; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 70 + i}) == 0);
}

static void set_up(void) {
    counter = eventfd(5, EFD_NONBLOCK);
    semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC);
    huge = eventfd(0, EFD_NONBLOCK);
    uint64_t most = UINT64_MAX - 1;
    CHECK(counter >= 0 && semaphore >= 0 && huge >= 0 && write(huge, &most, 8) == 8);
    set_up_epoll();
    set_up_timers();
    set_up_signals();
    CHECK(mkdir("watched", 0700) == 0);
    int file = open("watched/file", O_WRONLY | O_CREAT, 0600);
    CHECK(file >= 0 && close(file) == 0);
    watched = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    int gone = inotify_add_watch(watched, ".", IN_CREATE);
    directory_watch = inotify_add_watch(watched, "watched", IN_CREATE | IN_DELETE | IN_ONLYDIR);
    file_watch = inotify_add_watch(watched, "watched/file", IN_MODIFY | IN_ATTRIB);
    CHECK(watched >= 0 && gone >= 0 && directory_watch >= 0 && file_watch >= 0 && inotify_rm_watch(watched, gone) == 0);
    char ignored[256];
    ssize_t got = read(watched, ignored, sizeof ignored);
    CHECK(got == sizeof(struct inotify_event) || (got == -1 && errno == EAGAIN));
}

static void check_epoll(void) {
    char byte;
    /* An edge may be reported again: whether it was is nothing that the kernel tells. */
    unsigned edges = BIT(EDGE) | BIT(WRITER);
    expect_ready(outer, BIT(INNER), edges);
    expect_ready(inner, BIT(LEVEL), 0);
    CHECK(write(level[1], "x", 1) == 1);
    expect_ready(outer, BIT(INNER) | BIT(LEVEL) | BIT(COPY), edges);
    CHECK(read(level[0], &byte, 1) == 1);
    CHECK(write(edge[1], "x", 1) == 1);
    expect_ready(outer, BIT(INNER) | BIT(EDGE), BIT(WRITER));
    expect_ready(outer, BIT(INNER), edges);
    CHECK(read(edge[0], &byte, 1) == 1);
    CHECK(write(once[1], "x", 1) == 1);
    expect_ready(outer, BIT(INNER) | BIT(ONCE), edges);
    expect_ready(outer, BIT(INNER), edges);
    CHECK(read(once[0], &byte, 1) == 1);
    modify(outer, once[0], EPOLLIN | EPOLLONESHOT, ONCE);
    CHECK(write(fired[1], "x", 1) == 1);
    expect_ready(outer, BIT(INNER), edges);
    CHECK(fcntl(outer, F_GETFD) == FD_CLOEXEC && fcntl(inner, F_GETFD) == 0);
    struct epoll_event none = {0};
    CHECK(epoll_ctl(outer, EPOLL_CTL_ADD, level[0], &none) == -1 && errno == EEXIST);
    CHECK(epoll_ctl(outer, EPOLL_CTL_DEL, copied, &none) == -1 && errno == ENOENT);
}

static void check_counters(void) {
    uint64_t value, one = 1;
    CHECK(read(counter, &value, 8) == 8 && value == 5 && read(counter, &value, 8) == -1 && errno == EAGAIN);
    expect_ready(inner, 0, 0);
    value = 5;
    CHECK(write(counter, &value, 8) == 8);
    for (int i = 0; i < 3; i++) CHECK(read(semaphore, &value, 8) == 8 && value == 1);
    CHECK(read(semaphore, &value, 8) == -1 && errno == EAGAIN);
    value = 3;
    CHECK(write(semaphore, &value, 8) == 8 && write(huge, &one, 8) == -1 && errno == EAGAIN);
    struct pollfd all[3] = {{counter, POLLIN | POLLOUT, 0}, {huge, POLLIN | POLLOUT, 0}, {semaphore, POLLIN, 0}};
    CHECK(poll(all, 3, -1) == 3 && all[0].revents == (POLLIN | POLLOUT) && all[1].revents == POLLIN);
    fd_set in, out;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_SET(counter, &in);
    FD_SET(hourly, &in);
    FD_SET(huge, &out);
    FD_SET(semaphore, &out);
    CHECK(select(64, &in, &out, NULL, NULL) == 2 && FD_ISSET(counter, &in) && FD_ISSET(semaphore, &out));
}

static void expect_timer(int timer, long seconds, long interval) {
    struct itimerspec spec;
    uint64_t ticks;
    CHECK(timerfd_gettime(timer, &spec) == 0);
    if (spec.it_interval.tv_sec != interval || spec.it_value.tv_sec > seconds || spec.it_value.tv_sec < seconds - 60)
        FAIL("%ld s remain of %ld s, every %ld s", (long)spec.it_value.tv_sec, seconds, (long)spec.it_interval.tv_sec);
    CHECK(read(timer, &ticks, sizeof ticks) == -1 && errno == EAGAIN);
}

static void check_timers(void) {
    uint64_t ticks;
    expect_timer(hourly, HOUR, 2 * HOUR);
    expect_timer(daily, 24 * HOUR, 0);
    expect_timer(since_boot, HOUR, HOUR);
    CHECK(fcntl(daily, F_GETFD) == FD_CLOEXEC);
    struct itimerspec soon = {{0, 0}, {0, 2000000}}, off = {{0, 0}, {0, 0}};
    struct pollfd one = {running, POLLIN, 0};
    CHECK(timerfd_settime(running, 0, &soon, NULL) == 0 && poll(&one, 1, 10000) == 1);
    CHECK(read(running, &ticks, sizeof ticks) == sizeof ticks && ticks == 1);
    CHECK(timerfd_settime(running, 0, &off, &soon) == 0 && soon.it_value.tv_nsec == 0);
    expect_timer(running, 0, 0);
}

static void check_signals(void) {
    struct signalfd_siginfo info[4];
    for (int i = 0; i < 3; i++) {
        CHECK(read(signals, info, sizeof *info) == sizeof *info);
        CHECK(info->ssi_signo == (uint32_t)SIGRTMIN + 3 && info->ssi_int == 70 + i && info->ssi_code == SI_QUEUE);
        CHECK(info->ssi_pid == (uint32_t)getpid());
    }
    CHECK(read(signals, info, sizeof info) == -1 && errno == EAGAIN);
    for (int i = 0; i < 3; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 70 + i}) == 0);
    CHECK(raise(SIGUSR1) == 0 && read(signals, info, sizeof *info) == sizeof *info && info->ssi_signo == SIGUSR1);
}

/* The next event, unless a failure has taken it (what was not read is lost). */
static void expect_event(int watch, uint32_t mask, const char *name) {
    char room[256] __attribute__((aligned(8)));
    struct inotify_event *event = (struct inotify_event *)room;
    ssize_t got = read(watched, room, sizeof room);
    if (got == -1 && errno == EAGAIN) return;
    CHECK(got == (ssize_t)(sizeof *event + event->len));
    if (event->wd != watch || event->mask != mask || strcmp(event->len ? event->name : "", name) != 0)
        FAIL("event %#x of watch %d, not %#x of %d", event->mask, event->wd, mask, watch);
}

static void check_watches(void) {
    CHECK(chmod("watched/file", 0640) == 0);
    expect_event(file_watch, IN_ATTRIB, "");
    int file = open("watched/new", O_WRONLY | O_CREAT, 0600);
    CHECK(file >= 0 && close(file) == 0);
    expect_event(directory_watch, IN_CREATE, "new");
    CHECK(unlink("watched/new") == 0);
    expect_event(directory_watch, IN_DELETE, "new");
    CHECK(inotify_add_watch(watched, "watched/file", IN_MODIFY | IN_ATTRIB) == file_watch);
    CHECK(inotify_add_watch(watched, "watched", IN_CREATE | IN_DELETE | IN_ONLYDIR) == directory_watch);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 120);
    set_up();
    for (long round = 0; round < rounds; round++) {
        check_epoll();
        check_counters();
        check_timers();
        check_signals();
        check_watches();
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
