/* The calls that change what the gate keeps, or what the kernel keeps for the program, one after the other, each with a
 * look at what has become of it: wherever a failure comes, a call has been made or it has not.
 *
 * gate [ROUNDS [memory|files|sockets|streams|signals|senders|threads|clocks|timers|leaving]] */
#include "guest.h"
#include "on_power.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <netinet/in.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#define PAGE 4096ul

static uint64_t digest;
static volatile sig_atomic_t handled;

static void fill(char *at, size_t bytes, char with) { memset(at, with, bytes); }

static void holds(const char *at, size_t bytes, char what) {
    for (size_t i = 0; i < bytes; i += 64) CHECK(at[i] == what);
}

/* Whether a page is mapped, without touching it. */
static int mapped(void *page) {
    unsigned char resident;
    int result = mincore(page, PAGE, &resident);
    CHECK(result == 0 || errno == ENOMEM);
    return result == 0;
}

static void memory(int round) {
    const int rw = PROT_READ | PROT_WRITE, anonymous = MAP_PRIVATE | MAP_ANONYMOUS;
    char *a = mmap(NULL, 16 * PAGE, rw, anonymous, -1, 0);
    CHECK(a != MAP_FAILED);
    holds(a, 16 * PAGE, 0);
    fill(a, 16 * PAGE, 'a');
    CHECK(munmap(a + 4 * PAGE, 4 * PAGE) == 0);
    CHECK(!mapped(a + 4 * PAGE) && !mapped(a + 7 * PAGE) && mapped(a + 3 * PAGE) && mapped(a + 8 * PAGE));
    CHECK(mprotect(a + 2 * PAGE, PAGE, PROT_READ) == 0);
    CHECK(mprotect(a + 2 * PAGE, PAGE, rw) == 0);
    holds(a, 4 * PAGE, 'a');
    char *b = mremap(a + 8 * PAGE, 8 * PAGE, 24 * PAGE, MREMAP_MAYMOVE);
    CHECK(b != MAP_FAILED);
    holds(b, 8 * PAGE, 'a');
    holds(b + 8 * PAGE, 16 * PAGE, 0);
    b[23 * PAGE] = 'z';
    CHECK(mremap(b, 24 * PAGE, 2 * PAGE, 0) == b && !mapped(b + 2 * PAGE));
    char *c = mmap(a + 4 * PAGE, 2 * PAGE, rw, anonymous | MAP_FIXED, -1, 0);
    CHECK(c == a + 4 * PAGE);
    holds(c, 2 * PAGE, 0);
    fill(c, 2 * PAGE, 'c');
    CHECK(madvise(a, PAGE, MADV_DONTNEED) == 0);
    holds(a, PAGE, 0);
    char *reserved = mmap(NULL, 64 * PAGE, PROT_NONE, anonymous | MAP_NORESERVE, -1, 0);
    CHECK(reserved != MAP_FAILED && mprotect(reserved + PAGE, PAGE, rw) == 0);
    reserved[PAGE] = (char)round;
    CHECK(munmap(reserved, 64 * PAGE) == 0);
    for (int i = 0; i < 6; i++) digest = mix(digest, (unsigned char)a[i * PAGE]);
    CHECK(munmap(a, 6 * PAGE) == 0 && munmap(b, 2 * PAGE) == 0);
    char *old = sbrk(0);
    CHECK(sbrk(5 * PAGE + 100) == old);
    holds(old, 5 * PAGE, 0);
    fill(old, 5 * PAGE, 'h');
    CHECK(brk(old) == 0 && sbrk(0) == old);
}

static void files(void) {
    int one = open("gate.file", O_CREAT | O_RDWR | O_TRUNC | O_APPEND, 0600);
    CHECK(one >= 0 && write(one, "0123456789", 10) == 10);
    int two = dup(one), three = fcntl(one, F_DUPFD_CLOEXEC, 40);
    CHECK(two > one && three == 40 && (fcntl(three, F_GETFD) & FD_CLOEXEC));
    CHECK(dup2(one, 30) == 30 && lseek(30, 3, SEEK_SET) == 3 && lseek(two, 0, SEEK_CUR) == 3);
    char *mapping = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, one, 0);
    CHECK(mapping != MAP_FAILED && memcmp(mapping, "0123456789", 10) == 0);
    char *private = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, one, 0);
    CHECK(private != MAP_FAILED && private[9] == '9');
    private[9] = 'x';
    CHECK(mapping[9] == '9' && munmap(mapping, PAGE) == 0 && private[9] == 'x' && munmap(private, PAGE) == 0);
    CHECK(close(one) == 0 && close(two) == 0 && close(30) == 0 && close(40) == 0);
    CHECK(close(one) == -1 && errno == EBADF && fcntl(40, F_GETFD) == -1 && errno == EBADF);
    CHECK(unlink("gate.file") == 0);
}

/* A failure takes what has not been accepted: then the client tries again. */
static void accepts(int listener, struct sockaddr_un *name) {
    int accepted = -1;
    CHECK(fcntl(listener, F_SETFL, O_NONBLOCK) == 0);
    while (accepted < 0) {
        int client = socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(client >= 0 && connect(client, (void *)name, sizeof *name) == 0);
        accepted = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        CHECK(accepted >= 0 || errno == EAGAIN);
        CHECK(accepted < 0 || (accepted != client && (fcntl(accepted, F_GETFD) & FD_CLOEXEC)));
        CHECK(close(client) == 0);
    }
    CHECK(close(accepted) == 0);
}

static void sockets(void) {
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "gate.socket"};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(listener >= 0 && client > listener);
    CHECK(bind(listener, (void *)&name, sizeof name) == 0 && listen(listener, 4) == 0);
    accepts(listener, &name);
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 7};
    CHECK(epoll >= 0 && epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == 0);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) == -1 && errno == EEXIST);
    event.data.u64 = 8;
    CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, listener, &event) == 0 && epoll_wait(epoll, &event, 1, 0) == 0);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, listener, NULL) == 0);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_DEL, listener, NULL) == -1 && errno == ENOENT);
    CHECK(close(epoll) == 0 && close(client) == 0 && close(listener) == 0 && unlink("gate.socket") == 0);
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && write(pair[0], "ping", 4) == 4);
    char text[8];
    CHECK(read(pair[1], text, sizeof text) == 4 && memcmp(text, "ping", 4) == 0);
    CHECK(close(pair[0]) == 0 && read(pair[1], text, sizeof text) == 0 && close(pair[1]) == 0);
}

/* A stream that is connected is one also where it is used at once: after a failure it has been reset, not forgotten, and
 * cannot be connected again. */
static void streams(void) {
    struct sockaddr_in name = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof name;
    int listener = socket(AF_INET, SOCK_STREAM, 0), client = socket(AF_INET, SOCK_STREAM, 0);
    char byte;
    CHECK(listener >= 0 && client > listener && bind(listener, (void *)&name, length) == 0);
    CHECK(listen(listener, 4) == 0 && getsockname(listener, (void *)&name, &length) == 0);
    CHECK(connect(client, (void *)&name, length) == 0);
    ssize_t got = recv(client, &byte, 1, MSG_DONTWAIT);
    if (got != 0 && !(got == -1 && (errno == EAGAIN || errno == ECONNRESET))) FAIL("%zd bytes of a stream", got);
    CHECK(connect(client, (void *)&name, length) == -1);
    CHECK(errno == EISCONN);
    CHECK(close(client) == 0 && close(listener) == 0);
}

static void note(int signal) { handled += signal; }

static volatile int sender, code;

static void whose(int signal, siginfo_t *info, void *context) {
    (void)context;
    handled += signal;
    sender = info->si_pid;
    code = info->si_code;
}

/* Each call that sends one, each while the thread waits in a call: the sender is this process, under the id it knows. */
static void senders(void) {
    struct sigaction action = {.sa_sigaction = whose, .sa_flags = SA_SIGINFO}, old;
    sigset_t set, none;
    siginfo_t queued = {.si_code = SI_QUEUE}, taken;
    pid_t process = getpid(), self = (pid_t)syscall(SYS_gettid);
    queued.si_pid = process;
    CHECK(sigemptyset(&none) == 0 && sigemptyset(&set) == 0 && sigaddset(&set, SIGUSR1) == 0);
    CHECK(sigaction(SIGUSR1, &action, &old) == 0 && pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    for (int way = 0; way < 8; way++) {
        handled = sender = 0;
        switch (way % 4) {
        case 0: CHECK(syscall(SYS_kill, process, SIGUSR1) == 0); break;
        case 1: CHECK(syscall(SYS_tkill, self, SIGUSR1) == 0); break;
        case 2: CHECK(syscall(SYS_tgkill, process, self, SIGUSR1) == 0); break;
        default: CHECK(syscall(SYS_rt_tgsigqueueinfo, process, self, SIGUSR1, &queued) == 0);
        }
        if (way == 3) {
            CHECK(sigwaitinfo(&set, &taken) == SIGUSR1);
            sender = taken.si_pid, code = taken.si_code, handled = SIGUSR1;
        } else if (way < 6) {
            CHECK(sigsuspend(&none) == -1 && errno == EINTR);
        } else {
            CHECK(ppoll(NULL, 0, NULL, &none) == -1 && errno == EINTR);
        }
        const int expected[] = {SI_USER, SI_TKILL, SI_TKILL, SI_QUEUE};
        if (handled != SIGUSR1 || sender != process || code != expected[way % 4])
            FAIL("way %d: %d handled, from %d instead of %d, code %d", way, handled, sender, process, code);
    }
    action.sa_handler = SIG_DFL, action.sa_flags = 0;
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
}

/* What a handler's return puts back is what was there: the mask, and no alternate stack. */
static void check_back(const sigset_t *blocked) {
    sigset_t now;
    stack_t stack;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0 && sigaltstack(NULL, &stack) == 0);
    CHECK(sigismember(&now, SIGPWR) == sigismember(blocked, SIGPWR) && !sigismember(&now, SIGUSR1));
    if (stack.ss_flags != SS_DISABLE) FAIL("an alternate stack at %p, %zu bytes", stack.ss_sp, stack.ss_size);
}

static void signals(void) {
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART}, old;
    sigset_t power;
    handled = 0;
    CHECK(sigemptyset(&power) == 0 && sigaddset(&power, SIGPWR) == 0);
    CHECK(sigaction(SIGUSR1, &action, &old) == 0 && old.sa_handler == SIG_DFL);
    CHECK(pthread_sigmask(SIG_BLOCK, &power, NULL) == 0);
    CHECK(raise(SIGUSR1) == 0 && handled == SIGUSR1);
    check_back(&power);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &power, NULL) == 0);
    action.sa_handler = SIG_IGN;
    CHECK(sigaction(SIGUSR1, &action, &old) == 0 && old.sa_handler == note);
    CHECK(raise(SIGUSR1) == 0 && handled == SIGUSR1);
    action.sa_handler = SIG_DFL;
    CHECK(sigaction(SIGUSR1, &action, &old) == 0 && old.sa_handler == SIG_IGN);
    sigset_t set, before;
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, SIGUSR2) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, &before) == 0 && raise(SIGUSR2) == 0);
    CHECK(sigpending(&before) == 0 && sigismember(&before, SIGUSR2));
    int taken = 0;
    CHECK(sigwait(&set, &taken) == 0 && taken == SIGUSR2);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
}

static int64_t kernel_now(clockid_t clock) {
    struct timespec now;
    /* Not by the vdso. */
    CHECK(syscall(SYS_clock_gettime, clock, &now) == 0);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* Nothing is over before its time, and no clock runs backwards, whichever way it is asked for. */
static void clocks(void) {
    const struct timespec pause = {0, 4000000};
    const int64_t wait = 4000000;
    int epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, 0);
    CHECK(epoll >= 0 && timer >= 0);
    struct epoll_event event;
    struct pollfd one = {timer, POLLIN, 0};
    int64_t began = now_ns();
    CHECK(epoll_wait(epoll, &event, 1, 4) == 0 && now_ns() - began >= wait);
    began = now_ns();
    CHECK(nanosleep(&pause, NULL) == 0 && now_ns() - began >= wait);
    began = now_ns();
    struct itimerspec at = {{0, 0}, {(began + wait) / 1000000000, (began + wait) % 1000000000}};
    CHECK(timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL) == 0 && poll(&one, 1, 60000) == 1);
    CHECK(now_ns() - began >= wait);
    began = now_ns();
    at.it_value = (struct timespec){(began + wait) / 1000000000, (began + wait) % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at.it_value, NULL) == EINTR) {}
    CHECK(now_ns() - began >= wait);
    int64_t last = now_ns();
    for (int i = 0; i < 20; i++) {
        int64_t now = i % 2 ? now_ns() : kernel_now(CLOCK_MONOTONIC);
        if (now < last) FAIL("the clock ran backwards by %ld ns", (long)(last - now));
        last = now;
    }
    CHECK(close(epoll) == 0 && close(timer) == 0);
}

/* Each timer is told once, with its number, its value, and no sooner than it should be; and is gone when it is deleted. */
static void timers(void) {
    const int64_t wait = 2000000;
    sigset_t set;
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, SIGRTMIN) == 0 && pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    for (long way = 0; way < 4; way++) {
        struct sigevent event = {.sigev_signo = SIGRTMIN, .sigev_value.sival_ptr = (void *)(way + 5)};
        timer_t timer;
        siginfo_t taken;
        struct itimerspec now;
        event.sigev_notify = way % 2 ? SIGEV_THREAD_ID : SIGEV_SIGNAL;
        event._sigev_un._tid = (int)syscall(SYS_gettid);
        CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
        CHECK(timer_gettime(timer, &now) == 0 && now.it_value.tv_sec == 0 && now.it_value.tv_nsec == 0);
        int64_t due = now_ns() + wait;
        struct itimerspec at = {{0, 0}, {0, wait}};
        if (way > 1) at.it_value = (struct timespec){due / 1000000000, due % 1000000000};
        CHECK(timer_settime(timer, way > 1 ? TIMER_ABSTIME : 0, &at, NULL) == 0);
        CHECK(timer_gettime(timer, &now) == 0 && now.it_value.tv_sec == 0 && now.it_value.tv_nsec <= wait);
        CHECK(sigwaitinfo(&set, &taken) == SIGRTMIN && now_ns() >= due);
        CHECK(taken.si_code == SI_TIMER && taken.si_timerid == (int)(intptr_t)timer);
        CHECK((long)taken.si_value.sival_ptr == way + 5 && taken.si_overrun == 0 && timer_getoverrun(timer) == 0);
        CHECK(timer_gettime(timer, &now) == 0 && now.it_value.tv_sec == 0 && now.it_value.tv_nsec == 0);
        const struct timespec none = {0, 0};
        CHECK(sigtimedwait(&set, &taken, &none) == -1 && errno == EAGAIN && timer_delete(timer) == 0);
        CHECK(syscall(SYS_timer_delete, (int)(intptr_t)timer) == -1 && errno == EINVAL);
    }
    CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
}

static void *thread(void *value) {
    sched_yield();
    return (char *)value + 1;
}

static void threads(void) {
    pthread_t all[3];
    for (long i = 0; i < 3; i++) CHECK(pthread_create(&all[i], NULL, thread, (void *)(i * 10)) == 0);
    for (long i = 0; i < 3; i++) {
        void *result;
        CHECK(pthread_join(all[i], &result) == 0);
        digest = mix(digest, (uint64_t)result);
    }
}

static void *stays(void *main_thread) {
    CHECK(pthread_join(*(pthread_t *)main_thread, NULL) == 0);
    sleep_us(2000);
    printf("left\n");
    exit(0);
}

/* The main thread ends, and may have been given the recovery signal by then: it is another one's. */
static void leaving(void) {
    struct sigaction action = {.sa_sigaction = on_power, .sa_flags = SA_SIGINFO};
    static pthread_t self, other;
    self = pthread_self();
    CHECK(sigaction(SIGPWR, &action, NULL) == 0 && pthread_create(&other, NULL, stays, &self) == 0);
    /* It waits by now: nothing comes in between any more. */
    sleep_us(5000);
    pthread_exit(NULL);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 3);
    const char *only = count > 2 ? values[2] : NULL;
    for (long round = 0; round < rounds; round++) {
        if (!only || !strcmp(only, "memory")) memory((int)round);
        if (!only || !strcmp(only, "files")) files();
        if (!only || !strcmp(only, "sockets")) sockets();
        if (!only || !strcmp(only, "streams")) streams();
        if (!only || !strcmp(only, "signals")) signals();
        if (!only || !strcmp(only, "senders")) senders();
        if (!only || !strcmp(only, "threads")) threads();
        if (!only || !strcmp(only, "clocks")) clocks();
        if (!only || !strcmp(only, "timers")) timers();
    }
    if (only && !strcmp(only, "leaving")) leaving();
    printf("%016lx\n", digest);
    return 0;
}
