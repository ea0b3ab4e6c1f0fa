/* The process itself as a program leaves it: mask, limits, directory, names, processors, niceness, interval timers, the
 * alternate stacks, masks and names of two threads, and what is pending: for the process and for a thread, queued in
 * order, with values.
 *
 * process [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <sched.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>

enum { QUEUED = 4, HOUR = 3600 };
static volatile sig_atomic_t step, alarms;
static long rounds;
/* Of the two threads; 19 is the most there is, and tests may run with it. */
static int niceness[2];
static pid_t second_thread;
static cpu_set_t processors;
static char *stacks[2];

static void on_alarm(int number) {
    (void)number;
    alarms++;
}

static void set_up_limits(void) {
    struct rlimit limit = {123 << 20, 456 << 20};
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    limit = (struct rlimit){100, 200};
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit = (struct rlimit){0, 0};
    CHECK(setrlimit(RLIMIT_CORE, &limit) == 0);
    limit = (struct rlimit){50, 60};
    CHECK(setrlimit(RLIMIT_MSGQUEUE, &limit) == 0);
}

static void set_up(void) {
    struct itimerval hour = {{HOUR, 0}, {HOUR, 0}}, half = {{0, 0}, {HOUR / 2, 0}};
    sigset_t set;
    CHECK(mkdir("below", 0700) == 0 && chdir("below") == 0);
    umask(027);
    set_up_limits();
    for (int i = 0; i < 2; i++) niceness[i] = getpriority(PRIO_PROCESS, 0) + 3 * i + 3;
    for (int i = 0; i < 2; i++) niceness[i] = niceness[i] > 19 ? 19 : niceness[i];
    CHECK(setpriority(PRIO_PROCESS, 0, niceness[0]) == 0);
    CHECK(sched_getaffinity(0, sizeof processors, &processors) == 0);
    int first = 0;
    while (!CPU_ISSET(first, &processors)) first++;
    CPU_ZERO(&processors);
    CPU_SET(first, &processors);
    CHECK(sched_setaffinity(0, sizeof processors, &processors) == 0);
    CHECK(prctl(PR_SET_NAME, "a (name) here") == 0 && prctl(PR_SET_TIMERSLACK, 70000) == 0);
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && personality(ADDR_COMPAT_LAYOUT | personality(-1)) >= 0);
    CHECK(setitimer(ITIMER_VIRTUAL, &hour, NULL) == 0 && setitimer(ITIMER_PROF, &half, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &hour, NULL) == 0);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGUSR2);
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && signal(SIGUSR2, SIG_IGN) != SIG_ERR);
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGRTMIN + 2);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    for (int i = 0; i < 2; i++) CHECK((stacks[i] = malloc((size_t)SIGSTKSZ)) != NULL);
}

static void expect_limit(int resource, rlim_t soft, rlim_t hard) {
    struct rlimit limit;
    CHECK(getrlimit(resource, &limit) == 0);
    if (limit.rlim_cur != soft || limit.rlim_max != hard)
        FAIL("limit %d is %ld, %ld", resource, (long)limit.rlim_cur, (long)limit.rlim_max);
}

static void expect_timer(int which, long seconds, long interval) {
    struct itimerval timer;
    CHECK(getitimer(which, &timer) == 0);
    if (timer.it_interval.tv_sec != interval || timer.it_value.tv_sec > seconds || timer.it_value.tv_sec < seconds - 60)
        FAIL("%ld s of %ld s, every %ld s", (long)timer.it_value.tv_sec, seconds, (long)timer.it_interval.tv_sec);
}

static void check_process(void) {
    char path[4096];
    cpu_set_t now;
    CHECK(umask(027) == 027 && getcwd(path, sizeof path) != NULL && strcmp(strrchr(path, '/'), "/below") == 0);
    expect_limit(RLIMIT_FSIZE, 123 << 20, 456 << 20);
    expect_limit(RLIMIT_NOFILE, 100, 200);
    expect_limit(RLIMIT_CORE, 0, 0);
    expect_limit(RLIMIT_MSGQUEUE, 50, 60);
    CHECK(fcntl(0, F_DUPFD, 100) == -1 && errno == EINVAL);
    CHECK(getpriority(PRIO_PROCESS, 0) == niceness[0]);
    CHECK(sched_getaffinity(0, sizeof now, &now) == 0 && CPU_EQUAL(&now, &processors));
    CHECK(prctl(PR_GET_NAME, path) == 0 && strcmp(path, "a (name) here") == 0);
    CHECK(prctl(PR_GET_TIMERSLACK) == 70000 && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
    CHECK(personality(0xffffffff) & ADDR_COMPAT_LAYOUT);
    expect_timer(ITIMER_REAL, HOUR, HOUR);
    expect_timer(ITIMER_VIRTUAL, HOUR, HOUR);
    expect_timer(ITIMER_PROF, HOUR / 2, 0);
    int file = open("masked", O_WRONLY | O_CREAT | O_EXCL, 0666);
    struct stat is;
    CHECK(file >= 0 && fstat(file, &is) == 0 && (is.st_mode & 07777) == 0640);
    CHECK(close(file) == 0 && unlink("masked") == 0);
}

static void check_actions(int which) {
    struct sigaction action;
    stack_t stack;
    CHECK(sigaction(SIGALRM, NULL, &action) == 0 && action.sa_handler == on_alarm && (action.sa_flags & SA_RESTART));
    CHECK(sigismember(&action.sa_mask, SIGUSR2) && !sigismember(&action.sa_mask, SIGUSR1));
    CHECK(sigaction(SIGUSR2, NULL, &action) == 0 && action.sa_handler == SIG_IGN);
    CHECK(sigaltstack(NULL, &stack) == 0 && stack.ss_sp == stacks[which] && stack.ss_flags == 0);
    long before = alarms;
    CHECK(raise(SIGALRM) == 0 && alarms == before + 1 && raise(SIGUSR2) == 0);
}

static void send_all(void) {
    for (int i = 0; i < QUEUED; i++) {
        CHECK(sigqueue(getpid(), SIGRTMIN + 2, (union sigval){.sival_int = 20 + i}) == 0);
        CHECK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){.sival_int = 10 + i}) == 0);
    }
    CHECK(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR1) == 0);
}

/* By number, and each number in the order that they came in. */
static void check_pending(void) {
    struct timespec none = {0, 0};
    siginfo_t info;
    sigset_t set, pending;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0 && sigpending(&pending) == 0);
    CHECK(sigismember(&set, SIGUSR1) && sigismember(&set, SIGRTMIN + 1) && !sigismember(&set, SIGUSR2));
    CHECK(sigismember(&pending, SIGUSR1) && sigismember(&pending, SIGRTMIN + 1) && !sigismember(&pending, SIGALRM));
    CHECK(sigtimedwait(&set, &info, &none) == SIGUSR1 && info.si_code == SI_USER && info.si_pid == getpid());
    for (int which = 1; which <= 2; which++)
        for (int i = 0; i < QUEUED; i++) {
            CHECK(sigtimedwait(&set, &info, &none) == SIGRTMIN + which);
            if (info.si_value.sival_int != 10 * which + i || info.si_code != SI_QUEUE || info.si_pid != getpid())
                FAIL("number %d of signal %d carries %d", i, which, info.si_value.sival_int);
        }
    CHECK(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN);
}

/* The other thread: a mask, a name, a niceness and a queue of its own. */
static void *second(void *unused) {
    struct timespec none = {0, 0};
    siginfo_t info;
    sigset_t set, now;
    stack_t stack = {.ss_sp = stacks[1], .ss_size = (size_t)SIGSTKSZ};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    CHECK(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0 && sigaltstack(&stack, NULL) == 0);
    sigaddset(&set, SIGUSR1), sigaddset(&set, SIGRTMIN + 1), sigaddset(&set, SIGRTMIN + 2);
    CHECK(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
    CHECK(prctl(PR_SET_NAME, "other") == 0 && setpriority(PRIO_PROCESS, (id_t)gettid(), niceness[1]) == 0);
    second_thread = gettid();
    for (int i = 0; i < QUEUED; i++)
        CHECK(pthread_sigqueue(pthread_self(), SIGRTMIN + 5, (union sigval){.sival_int = 50 + i}) == 0);
    step = 1;
    while (step != 2) sleep_us(1000);
    char name[16];
    CHECK(prctl(PR_GET_NAME, name) == 0 && strcmp(name, "other") == 0 && gettid() == second_thread);
    CHECK(getpriority(PRIO_PROCESS, (id_t)gettid()) == niceness[1]);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &now) == 0 && memcmp(&now, &set, 8) == 0);
    check_actions(1);
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 5);
    for (int i = 0; i < QUEUED; i++)
        CHECK(sigtimedwait(&set, &info, &none) == SIGRTMIN + 5 && info.si_value.sival_int == 50 + i);
    CHECK(sigtimedwait(&set, &info, &none) == -1 && errno == EAGAIN);
    return unused;
}

int main(int count, char **values) {
    pthread_t thread;
    stack_t stack = {.ss_size = (size_t)SIGSTKSZ};
    rounds = argument(count, values, 1, 120);
    set_up();
    stack.ss_sp = stacks[0];
    CHECK(sigaltstack(&stack, NULL) == 0 && pthread_create(&thread, NULL, second, NULL) == 0);
    while (step != 1) sleep_us(1000);
    send_all();
    for (long round = 0; round < rounds; round++) {
        check_process();
        check_actions(0);
        check_pending();
        send_all();
        if (rounds > 4) sleep_us(2000);
    }
    check_pending();
    step = 2;
    CHECK(pthread_join(thread, NULL) == 0);
    printf("%ld rounds, %ld alarms\n", rounds, (long)alarms);
    return 0;
}
