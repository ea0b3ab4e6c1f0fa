/* What becomes of descriptors that tell of events, of timers, and of what several processes use to talk. See kept.h. */
#include "kept.h"
#include <linux/aio_abi.h>
#include <linux/io_uring.h>
#include <linux/perf_event.h>
#include <mqueue.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/timerfd.h>

enum { HOUR = 3600, CLOCKS = 6 };
static const clockid_t clocks[CLOCKS] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_BOOTTIME,
                                         CLOCK_TAI, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID};
static const char *const clock_names[CLOCKS] = {"CLOCK_REALTIME", "CLOCK_MONOTONIC", "CLOCK_BOOTTIME",
                                                "CLOCK_TAI", "CLOCK_PROCESS_CPUTIME_ID", "CLOCK_THREAD_CPUTIME_ID"};
static int outer, inner, level[2], once[2], copied[2], copy, counter, semaphore, signals, watched, watch, own, other;
static int descriptors[3], expired, cancelled;
static timer_t timers[CLOCKS], absolute, silent, to_thread;
static pid_t child;

static void add(int instance, int file, uint32_t events, uint64_t data) {
    struct epoll_event event = {events, {.u64 = data}};
    CHECK(epoll_ctl(instance, EPOLL_CTL_ADD, file, &event) == 0);
}

static void set_up_descriptors(void) {
    counter = eventfd(5, EFD_NONBLOCK | EFD_CLOEXEC);
    semaphore = eventfd(3, EFD_SEMAPHORE | EFD_NONBLOCK);
    outer = epoll_create1(EPOLL_CLOEXEC);
    inner = epoll_create1(0);
    CHECK(counter >= 0 && semaphore >= 0 && outer >= 0 && inner >= 0);
    CHECK(pipe(level) == 0 && pipe(once) == 0 && pipe(copied) == 0 && write(once[1], "x", 1) == 1);
    add(outer, level[0], EPOLLIN, 0x123456789abcdef0);
    add(outer, once[0], EPOLLIN | EPOLLONESHOT, 2);
    struct epoll_event event;
    CHECK(epoll_wait(outer, &event, 1, 0) == 1 && event.data.u64 == 2);
    add(inner, counter, EPOLLIN, 3);
    add(outer, inner, EPOLLIN, 4);
    CHECK((copy = dup(copied[0])) >= 0);
    add(outer, copy, EPOLLIN, 5);
    CHECK(dup2(semaphore, copy) == copy);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 3);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    CHECK((signals = signalfd(-1, &set, SFD_NONBLOCK)) >= 0);
    for (int i = 0; i < 2; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 70 + i}) == 0);
    CHECK(mkdir("watched", 0700) == 0 && (watched = inotify_init1(IN_NONBLOCK)) >= 0);
    CHECK((watch = inotify_add_watch(watched, "watched", IN_CREATE)) >= 0);
    CHECK(mknod("watched/before", S_IFREG | 0600, 0) == 0);
    if ((child = fork()) == 0) {
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        pause();
        _exit(0);
    }
    own = (int)syscall(SYS_pidfd_open, getpid(), 0);
    other = (int)syscall(SYS_pidfd_open, child, 0);
    CHECK(child > 0 && own >= 0);
}

static void arm(int timer, int flags, long seconds, long interval) {
    struct itimerspec spec = {{interval, 0}, {seconds, 0}};
    CHECK(timerfd_settime(timer, flags, &spec, NULL) == 0);
}

static long now_of(clockid_t clock) {
    struct timespec now;
    CHECK(clock_gettime(clock, &now) == 0);
    return now.tv_sec;
}

static void set_up_timers(void) {
    struct itimerval hour = {{2 * HOUR, 0}, {HOUR, 0}};
    struct itimerspec spec = {{2 * HOUR, 0}, {HOUR, 0}};
    for (int i = 0; i < 3; i++) {
        CHECK((descriptors[i] = timerfd_create(clocks[i], TFD_NONBLOCK)) >= 0);
        arm(descriptors[i], 0, HOUR, 2 * HOUR);
    }
    CHECK((cancelled = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK)) >= 0);
    arm(cancelled, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, now_of(CLOCK_REALTIME) + HOUR, 0);
    CHECK((expired = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK)) >= 0);
    struct itimerspec soon = {{HOUR, 0}, {0, 1}};
    CHECK(timerfd_settime(expired, 0, &soon, NULL) == 0);
    for (int i = 0; i < CLOCKS; i++) {
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 5, .sigev_value.sival_int = i};
        CHECK(timer_create(clocks[i], &event, &timers[i]) == 0 && timer_settime(timers[i], 0, &spec, NULL) == 0);
    }
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    struct itimerspec late = {{0, 0}, {now_of(CLOCK_REALTIME) + HOUR, 0}};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &silent) == 0 && timer_settime(silent, 0, &spec, NULL) == 0);
    CHECK(timer_create(CLOCK_REALTIME, &event, &absolute) == 0 && timer_settime(absolute, TIMER_ABSTIME, &late, NULL) == 0);
    event = (struct sigevent){.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGRTMIN + 5};
    event._sigev_un._tid = gettid();
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &to_thread) == 0 && timer_settime(to_thread, 0, &spec, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &hour, NULL) == 0 && setitimer(ITIMER_VIRTUAL, &hour, NULL) == 0);
    CHECK(setitimer(ITIMER_PROF, &hour, NULL) == 0);
}

static void set_up(void) {
    set_up_descriptors();
    set_up_timers();
}

/* What an instance reports. */
static const char *reported(int instance, uint64_t wanted) {
    struct epoll_event found[8];
    int count = epoll_wait(instance, found, 8, 0);
    for (int i = 0; i < count; i++)
        if (found[i].data.u64 == wanted) return "reported";
    return "quiet";
}

static void through(const int ends[2], const char *name, uint64_t data) {
    char byte;
    const char *before = reported(outer, data);
    CHECK(write(ends[1], "x", 1) == 1);
    note("epoll", name, "%s, %s", before, reported(outer, data));
    CHECK(read(ends[0], &byte, 1) == 1);
}

static void look_at_descriptors(void) {
    uint64_t value = 0;
    char room[256];
    through(level, "a registration, with its data", 0x123456789abcdef0);
    note("epoll", "EPOLLONESHOT, after its report", "%s", reported(outer, 2));
    note("epoll", "within another", "%s", reported(outer, 4));
    through(copied, "of a number that was closed", 5);
    holds("epoll", "close-on-exec", fcntl(outer, F_GETFD) == FD_CLOEXEC);
    CHECK(read(counter, &value, 8) == 8 && write(counter, &value, 8) == 8);
    note("eventfd", "count", "%ld", (long)value);
    CHECK(read(semaphore, &value, 8) == 8 && value == 1 && write(semaphore, &value, 8) == 8);
    int units = 0;
    while (read(semaphore, &value, 8) == 8) units += (int)value;
    value = (uint64_t)units;
    CHECK(write(semaphore, &value, 8) == 8);
    note("eventfd", "EFD_SEMAPHORE, units", "%d", units);
    holds("eventfd", "O_NONBLOCK", fcntl(counter, F_GETFL) & O_NONBLOCK);
    struct signalfd_siginfo info[4];
    ssize_t got = read(signals, info, sizeof info);
    note("signalfd", "signals that wait", "%ld: %d", (long)got / (long)sizeof *info, got > 0 ? info->ssi_int : -1);
    for (int i = 0; i < 2; i++) CHECK(sigqueue(getpid(), SIGRTMIN + 3, (union sigval){.sival_int = 70 + i}) == 0);
    holds("signalfd", "is readable", poll(&(struct pollfd){signals, POLLIN, 0}, 1, 0) == 1);
    got = looks == 0 ? 1 : read(watched, room, sizeof room);
    note("inotify", "an event that waits", "%s", got > 0 ? "there" : "gone");
    instead("gone", "reading it would take it from the program");
    while (looks == 1 && read(watched, room, sizeof room) > 0) continue;
    /* An event that a failure comes before is gone: then there is another one. */
    for (int tries = 0; tries == 0 || (got < 0 && tries < 3); tries++) {
        snprintf(room, sizeof room, "watched/%d.%d", looks, tries);
        CHECK(mknod(room, S_IFREG | 0600, 0) == 0);
        if (looks == 1) got = read(watched, room, sizeof room);
    }
    note("inotify", "a watch, under its number", "%s", got > 0 ? "tells" : "quiet");
    CHECK(inotify_add_watch(watched, "watched", IN_CREATE) == watch);
    holds("pidfd", "of itself", syscall(SYS_pidfd_send_signal, own, 0, NULL, 0) == 0);
    int lives = syscall(SYS_pidfd_send_signal, other, 0, NULL, 0) == 0;
    note("pidfd", "of a child", "%s", lives ? "lives" : strerrorname_np(errno));
    instead("ESRCH", "a failure ends children");
}

/* Hours that remain, and the interval's. */
static void remains(const char *object, const char *name, struct timespec left, struct timespec interval) {
    note(object, name, "%ld h, every %ld h", (long)(left.tv_sec + HOUR / 2) / HOUR, (long)interval.tv_sec / HOUR);
}

static void look_at_timers(void) {
    static const char *const intervals[] = {"ITIMER_REAL, alarm(2)", "ITIMER_VIRTUAL", "ITIMER_PROF"};
    struct itimerspec spec;
    uint64_t ticks = 0;
    for (int i = 0; i < 3; i++) {
        CHECK(timerfd_gettime(descriptors[i], &spec) == 0);
        remains("timerfd", clock_names[i], spec.it_value, spec.it_interval);
    }
    ssize_t got = looks == 0 ? 8 : read(expired, &ticks, 8);
    note("timerfd", "an expiration that waits", "%s", got == 8 ? "there" : "gone");
    CHECK(timerfd_gettime(cancelled, &spec) == 0);
    remains("timerfd", "TFD_TIMER_CANCEL_ON_SET", spec.it_value, spec.it_interval);
    for (int i = 0; i < CLOCKS; i++) {
        CHECK(timer_gettime(timers[i], &spec) == 0);
        remains("POSIX timer", clock_names[i], spec.it_value, spec.it_interval);
    }
    CHECK(timer_gettime(silent, &spec) == 0);
    remains("POSIX timer", "SIGEV_NONE", spec.it_value, spec.it_interval);
    CHECK(timer_gettime(absolute, &spec) == 0);
    remains("POSIX timer", "TIMER_ABSTIME", spec.it_value, spec.it_interval);
    CHECK(timer_gettime(to_thread, &spec) == 0);
    remains("POSIX timer", "SIGEV_THREAD_ID", spec.it_value, spec.it_interval);
    for (int i = 0; i < 3; i++) {
        struct itimerval timer;
        CHECK(getitimer(i, &timer) == 0);
        struct timespec left = {timer.it_value.tv_sec, 0}, interval = {timer.it_interval.tv_sec, 0};
        remains("interval timer", intervals[i], left, interval);
    }
}

static void look_at_the_rest(void) {
    struct io_uring_params ring = {0};
    struct perf_event_attr event = {.size = sizeof event, .type = PERF_TYPE_SOFTWARE, .config = PERF_COUNT_SW_CPU_CLOCK};
    aio_context_t requests = 0;
    long made = mq_open("/kept", O_RDWR | O_CREAT, 0600, NULL);
    refused("POSIX message queue", made);
    if (made >= 0) CHECK(mq_close((mqd_t)made) == 0 && mq_unlink("/kept") == 0);
    refused("System V message queue", made = msgget(IPC_PRIVATE, 0600));
    if (made >= 0) CHECK(msgctl((int)made, IPC_RMID, NULL) == 0);
    refused("System V semaphores", made = semget(IPC_PRIVATE, 1, 0600));
    if (made >= 0) CHECK(semctl((int)made, 0, IPC_RMID) == 0);
    refused("System V shared memory", made = shmget(IPC_PRIVATE, 4096, 0600));
    if (made >= 0) CHECK(shmctl((int)made, IPC_RMID, NULL) == 0);
    refused("io_uring", made = syscall(SYS_io_uring_setup, 4, &ring));
    if (made >= 0) CHECK(close((int)made) == 0);
    refused("asynchronous requests (io_setup)", made = syscall(SYS_io_setup, 4, &requests));
    if (made >= 0) CHECK(syscall(SYS_io_destroy, requests) == 0);
    refused("userfaultfd", made = syscall(SYS_userfaultfd, 1));
    if (made >= 0) CHECK(close((int)made) == 0);
    refused("performance counter", made = syscall(SYS_perf_event_open, &event, 0, -1, -1, 0));
    if (made >= 0) CHECK(close((int)made) == 0);
    refused("fanotify", made = fanotify_init(FAN_REPORT_FID, 0));
    if (made >= 0) CHECK(close((int)made) == 0);
}

static void look(void) {
    look_at_descriptors();
    look_at_timers();
    look_at_the_rest();
    if (looks == 1) kill(child, SIGKILL);
}

int main(int count, char **values) { return keep(count, values, set_up, look); }
