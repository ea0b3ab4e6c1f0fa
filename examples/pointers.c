/* Calls with pointers that lead nowhere, to where nothing may be written, and over the end of a mapping: EFAULT, also
 * where the signals of faults are blocked, as they are in a crash handler that looks about (and in every handler of
 * libraries that block all). A SIGSEGV that somebody has sent stays pending meanwhile. A vfork child's mask is its own.
 *
 * pointers [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>

enum { MOST = 128, PAGE = 4096 };
/* 4 bytes before the end of what is mapped. */
static uint64_t edge, readonly, writeonly;
static int events, timer;
static long results[MOST];
static const char *names[MOST];
static int used, blocked, printing;

/* A call that fails in the same way each time, and natively. */
static void call(const char *name, long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f) {
    long result = syscall(number, a, b, c, d, e, f);
    long found = result == -1 ? -errno : result;
    CHECK(used < MOST);
    if (printing) printf("%s%s: %ld\n", name, blocked ? ", blocked" : "", found);
    if (names[used] && results[used] != found)
        FAIL("%s: %ld, and %ld before, blocked: %d", name, found, results[used], blocked);
    names[used] = name;
    results[used++] = found;
}

/* With `bad` for whatever is read. */
static void reading(uint64_t bad) {
    static char *const none[] = {NULL};
    call("clock_nanosleep", SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, bad, 0, 0, 0);
    call("nanosleep", SYS_nanosleep, bad, 0, 0, 0, 0, 0);
    call("ppoll", SYS_ppoll, 0, 0, bad, 0, 8, 0);
    call("ppoll's mask", SYS_ppoll, 0, 0, 0, bad, 8, 0);
    call("pselect6", SYS_pselect6, 0, 0, 0, 0, bad, 0);
    call("pselect6's mask", SYS_pselect6, 0, 0, 0, 0, 0, bad);
    call("select", SYS_select, 0, 0, 0, 0, bad, 0);
    call("epoll_pwait", SYS_epoll_pwait, events, readonly, 1, 0, bad, 8);
    call("rt_sigaction", SYS_rt_sigaction, SIGUSR2, bad, 0, 8, 0, 0);
    call("rt_sigprocmask", SYS_rt_sigprocmask, SIG_BLOCK, bad, 0, 8, 0, 0);
    call("is it readable", SYS_rt_sigprocmask, ~0ull, bad, 0, 8, 0, 0);
    call("sigaltstack", SYS_sigaltstack, bad, 0, 0, 0, 0, 0);
    call("rt_sigsuspend", SYS_rt_sigsuspend, bad, 8, 0, 0, 0, 0);
    call("rt_sigtimedwait", SYS_rt_sigtimedwait, bad, 0, 0, 8, 0, 0);
    call("signalfd4", SYS_signalfd4, -1ull, bad, 8, 0, 0, 0);
    call("timerfd_settime", SYS_timerfd_settime, timer, 0, bad, 0, 0, 0);
    call("prlimit64", SYS_prlimit64, 0, RLIMIT_CORE, bad, 0, 0, 0);
    call("setrlimit", SYS_setrlimit, RLIMIT_CORE, bad, 0, 0, 0, 0);
    call("clone3", SYS_clone3, bad, 88, 0, 0, 0, 0);
    call("rt_sigqueueinfo", SYS_rt_sigqueueinfo, (uint64_t)getpid(), SIGUSR2, bad, 0, 0, 0);
    call("open", SYS_open, bad, 0, 0, 0, 0, 0);
    call("openat2", SYS_openat2, (uint64_t)AT_FDCWD, (uint64_t) "/dev/null", bad, 24, 0, 0);
    call("execve's name", SYS_execve, bad, (uint64_t)none, (uint64_t)none, 0, 0, 0);
    call("execve's arguments", SYS_execve, (uint64_t) "/bin/true", bad, (uint64_t)none, 0, 0, 0);
    call("execve's environment", SYS_execve, (uint64_t) "/bin/true", (uint64_t)none, bad, 0, 0, 0);
}

/* With `bad` for whatever is written. */
static void writing(uint64_t bad) {
    call("rt_sigaction's old", SYS_rt_sigaction, SIGUSR2, 0, bad, 8, 0, 0);
    call("rt_sigprocmask's old", SYS_rt_sigprocmask, SIG_BLOCK, 0, bad, 8, 0, 0);
    call("sigaltstack's old", SYS_sigaltstack, 0, bad, 0, 0, 0, 0);
    call("getrlimit", SYS_getrlimit, RLIMIT_CORE, bad, 0, 0, 0, 0);
    call("clock_gettime", SYS_clock_gettime, CLOCK_MONOTONIC, bad, 0, 0, 0, 0);
    call("get_robust_list", SYS_get_robust_list, 0, bad, bad, 0, 0, 0);
    pid_t child = fork();
    if (child == 0) _exit(3);
    CHECK(child > 0);
    call("wait4's status", SYS_wait4, (uint64_t)child, bad, 0, 0, 0, 0);
}

static volatile sig_atomic_t handled;

static void handle(int signal) { handled += signal; }

/* Two signals become deliverable in one call, which has an error all the same. */
static void two_at_once(const sigset_t *none) {
    struct sigaction ours = {.sa_handler = handle}, normal = {.sa_handler = SIG_DFL};
    sigset_t two, before;
    CHECK(sigemptyset(&two) == 0 && sigaddset(&two, SIGBUS) == 0 && sigaddset(&two, SIGSEGV) == 0);
    CHECK(sigprocmask(SIG_BLOCK, &two, &before) == 0);
    CHECK(sigaction(SIGBUS, &ours, NULL) == 0 && sigaction(SIGSEGV, &ours, NULL) == 0);
    CHECK(kill(getpid(), SIGSEGV) == 0 && kill(getpid(), SIGBUS) == 0);
    handled = 0;
    call("rt_sigprocmask with two signals", SYS_rt_sigprocmask, SIG_SETMASK, (uint64_t)none, readonly, 8, 0, 0);
    CHECK(handled == SIGBUS + SIGSEGV);
    CHECK(sigaction(SIGBUS, &normal, NULL) == 0 && sigaction(SIGSEGV, &normal, NULL) == 0);
    CHECK(sigprocmask(SIG_SETMASK, &before, NULL) == 0);
}

/* What is sent to a thread that blocks it waits for whoever asks. */
static void pending(int signal) {
    sigset_t set;
    CHECK(sigpending(&set) == 0 && sigismember(&set, signal));
    CHECK(sigemptyset(&set) == 0 && sigaddset(&set, signal) == 0);
    CHECK(sigwaitinfo(&set, NULL) == signal);
}

static void masks_of_children(const sigset_t *all) {
    sigset_t before, after;
    CHECK(sigprocmask(SIG_SETMASK, NULL, &before) == 0);
    pid_t child = vfork();
    if (child == 0) {
        sigprocmask(SIG_SETMASK, all, NULL);
        _exit(4);
    }
    CHECK(child > 0 && sigprocmask(SIG_SETMASK, NULL, &after) == 0);
    for (int n = 1; n < 65; n++)
        if (sigismember(&before, n) != sigismember(&after, n)) FAIL("a vfork child has changed what is done with %d", n);
    int status;
    pid_t ended;
    do ended = waitpid(child, &status, 0);
    while (ended < 0 && errno == EINTR);
    /* Or lost to a power failure. */
    int lost = WIFSIGNALED(status) && WTERMSIG(status) == SIGPWR;
    CHECK(ended == child && (lost || (WIFEXITED(status) && WEXITSTATUS(status) == 4)));
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 400);
    char *two = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *one = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *write = mmap(NULL, PAGE, PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(write != MAP_FAILED && two != MAP_FAILED && one != MAP_FAILED && munmap(two + PAGE, PAGE) == 0);
    edge = (uint64_t)two + PAGE - 4, readonly = (uint64_t)one, writeonly = (uint64_t)write;
    CHECK((events = epoll_create1(0)) >= 0 && (timer = timerfd_create(CLOCK_MONOTONIC, 0)) >= 0);
    struct sigaction action = {.sa_handler = SIG_DFL};
    CHECK(sigaction(SIGCHLD, &action, NULL) == 0);
    sigset_t all, none;
    CHECK(sigfillset(&all) == 0 && sigemptyset(&none) == 0);
    /* Whoever steps a program takes this one out of its mask (kernel/signal.c, force_sig_info_to_task). */
    CHECK(sigdelset(&all, SIGTRAP) == 0);
    for (long round = 0; round < rounds; round++) {
        printing = round == 0;
        for (blocked = 0; blocked < 2; blocked++) {
            /* The same results, blocked or not. */
            used = 0;
            CHECK(sigprocmask(SIG_SETMASK, blocked ? &all : &none, NULL) == 0);
            masks_of_children(blocked ? &none : &all);
            reading(8);
            writing(8);
            if (blocked && round % 2) {
                CHECK(kill(getpid(), SIGSEGV) == 0 && kill(getpid(), SIGBUS) == 0);
                reading(edge);
                pending(SIGSEGV);
                pending(SIGBUS);
            } else {
                reading(edge);
            }
            writing(readonly);
            two_at_once(&none);
            /* The processor reads what may be written. */
            call("nanosleep of what cannot be read", SYS_nanosleep, writeonly, 0, 0, 0, 0, 0);
        }
    }
    printf("%d calls, %ld rounds\n", used, rounds);
    return 0;
}
