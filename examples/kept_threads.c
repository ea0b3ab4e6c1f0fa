/* What becomes of threads, of what they hold and wait for, and of signals. See kept.h. */
#include "kept.h"
#include <linux/futex.h>
#include <sched.h>
#include <semaphore.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { QUEUED = 3 };
static pthread_t thread;
static pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER, recursive, checking, robust, shared, inheriting, gate = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static sem_t semaphore, posted;
static pthread_key_t key;
static __thread int local = 5;
static volatile int stage, told, woken, passed, read_locked, answers[8];
static pid_t ids[2];
static char stacks[2][1 << 16];
static void *robust_heads[2];
static int made_inheriting;
static volatile sig_atomic_t caught;

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)number, (void)info, (void)context;
    caught++;
}

static void mutex(pthread_mutex_t *made, int type, int stays, int visible) {
    pthread_mutexattr_t kind;
    CHECK(pthread_mutexattr_init(&kind) == 0 && pthread_mutexattr_settype(&kind, type) == 0);
    CHECK(pthread_mutexattr_setrobust(&kind, stays) == 0 && pthread_mutexattr_setpshared(&kind, visible) == 0);
    CHECK(pthread_mutex_init(made, &kind) == 0);
}

static void *robust_head(void) {
    void *head = NULL;
    size_t bytes;
    (void)syscall(SYS_get_robust_list, 0, &head, &bytes);
    return head;
}

/* Waits three times while power fails: for a mutex that the main thread holds, a condition, a barrier. */
static void *second(void *unused) {
    sigset_t set;
    stack_t stack = {.ss_sp = stacks[1], .ss_size = sizeof stacks[1]};
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 6);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0 && sigaltstack(&stack, NULL) == 0);
    CHECK(prctl(PR_SET_NAME, "second") == 0 && pthread_setspecific(key, "second's") == 0);
    local = 7;
    ids[1] = gettid();
    robust_heads[1] = robust_head();
    for (int i = 0; i < QUEUED; i++)
        CHECK(pthread_sigqueue(pthread_self(), SIGRTMIN + 6, (union sigval){.sival_int = i}) == 0);
    stage = 1;
    CHECK(pthread_mutex_lock(&plain) == 0 && pthread_mutex_unlock(&plain) == 0);
    passed = 1;
    struct timespec none = {0, 0};
    siginfo_t info;
    char name[16];
    answers[0] = gettid() == ids[1];
    answers[1] = prctl(PR_GET_NAME, name) == 0 && strcmp(name, "second") == 0;
    answers[2] = local == 7 && strcmp(pthread_getspecific(key), "second's") == 0;
    answers[3] = sigaltstack(NULL, &stack) == 0 && stack.ss_sp == stacks[1];
    answers[4] = pthread_sigmask(SIG_BLOCK, NULL, &set) == 0 && sigismember(&set, SIGRTMIN + 6) == 1;
    answers[5] = robust_head() == robust_heads[1];
    answers[6] = 1;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 6);
    for (int i = 0; i < QUEUED; i++)
        answers[6] &= sigtimedwait(&set, &info, &none) == SIGRTMIN + 6 && info.si_value.sival_int == i && info.si_pid == getpid();
    return unused;
}

static void *waits_for_condition(void *unused) {
    CHECK(pthread_mutex_lock(&gate) == 0);
    while (!told) CHECK(pthread_cond_wait(&condition, &gate) == 0);
    woken = 1;
    CHECK(pthread_mutex_unlock(&gate) == 0);
    return unused;
}

static void *waits_at_barrier(void *unused) {
    int last = pthread_barrier_wait(&barrier);
    CHECK(last == 0 || last == PTHREAD_BARRIER_SERIAL_THREAD);
    return unused;
}

static void *waits_for_post(void *unused) {
    while (sem_wait(&semaphore) != 0) CHECK(errno == EINTR);
    return unused;
}

static pthread_t more[3];

static void set_up_signals(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART | SA_NODEFER | SA_ONSTACK};
    sigset_t set;
    sigemptyset(&action.sa_mask);
    sigaddset(&action.sa_mask, SIGUSR2);
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && signal(SIGURG, SIG_IGN) != SIG_ERR);
    sigemptyset(&set);
    for (int i = 1; i <= 3; i++) sigaddset(&set, SIGRTMIN + i);
    sigaddset(&set, SIGHUP);
    CHECK(pthread_sigmask(SIG_BLOCK, &set, NULL) == 0);
    stack_t stack = {.ss_sp = stacks[0], .ss_size = sizeof stacks[0]};
    CHECK(sigaltstack(&stack, NULL) == 0);
    for (int i = 0; i < QUEUED; i++)
        for (int which = 3; which > 0; which--)
            CHECK(sigqueue(getpid(), SIGRTMIN + which, (union sigval){.sival_int = 10 * which + i}) == 0);
    CHECK(kill(getpid(), SIGHUP) == 0);
}

static void set_up(void) {
    mutex(&recursive, PTHREAD_MUTEX_RECURSIVE, PTHREAD_MUTEX_STALLED, PTHREAD_PROCESS_PRIVATE);
    mutex(&checking, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_MUTEX_STALLED, PTHREAD_PROCESS_PRIVATE);
    mutex(&robust, PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_ROBUST, PTHREAD_PROCESS_PRIVATE);
    mutex(&shared, PTHREAD_MUTEX_NORMAL, PTHREAD_MUTEX_STALLED, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_t kind;
    CHECK(pthread_mutexattr_init(&kind) == 0 && pthread_mutexattr_setprotocol(&kind, PTHREAD_PRIO_INHERIT) == 0);
    made_inheriting = pthread_mutex_init(&inheriting, &kind);
    CHECK(pthread_mutex_lock(&plain) == 0 && pthread_mutex_lock(&recursive) == 0 && pthread_mutex_lock(&recursive) == 0);
    CHECK(pthread_mutex_lock(&checking) == 0 && pthread_mutex_lock(&robust) == 0 && pthread_mutex_lock(&shared) == 0);
    CHECK(pthread_rwlock_rdlock(&lock) == 0 && pthread_barrier_init(&barrier, NULL, 2) == 0);
    CHECK(sem_init(&semaphore, 0, 0) == 0 && sem_init(&posted, 1, 3) == 0 && pthread_key_create(&key, NULL) == 0);
    CHECK(pthread_setspecific(key, "first's") == 0);
    local = 6;
    ids[0] = gettid();
    robust_heads[0] = robust_head();
    set_up_signals();
    CHECK(pthread_create(&thread, NULL, second, NULL) == 0 && pthread_create(&more[0], NULL, waits_for_condition, NULL) == 0);
    CHECK(pthread_create(&more[1], NULL, waits_at_barrier, NULL) == 0 && pthread_create(&more[2], NULL, waits_for_post, NULL) == 0);
    while (stage == 0) sleep_us(1000);
}

static void look_at_mutexes(void) {
    int value = -1;
    note("mutex", "held", "%s", pthread_mutex_trylock(&plain) == EBUSY ? "yes" : "no");
    CHECK(pthread_mutex_unlock(&recursive) == 0 && pthread_mutex_lock(&recursive) == 0);
    holds("mutex", "recursive, held twice", pthread_mutex_lock(&recursive) == 0 && pthread_mutex_unlock(&recursive) == 0);
    holds("mutex", "error-checking, held", pthread_mutex_lock(&checking) == EDEADLK);
    holds("mutex", "robust, held", pthread_mutex_trylock(&robust) == EBUSY);
    holds("mutex", "of several processes, held", pthread_mutex_trylock(&shared) == EBUSY);
    int got = made_inheriting ? made_inheriting : pthread_mutex_lock(&inheriting);
    if (got == 0) CHECK(pthread_mutex_unlock(&inheriting) == 0);
    note("mutex", "with priority inheritance", "%s%s", got ? "refused: " : "yes", got ? strerrorname_np(got) : "");
    because(NULL);
    holds("read-write lock", "held for reading", pthread_rwlock_trywrlock(&lock) == EBUSY && pthread_rwlock_tryrdlock(&lock) == 0);
    CHECK(pthread_rwlock_unlock(&lock) == 0 && sem_getvalue(&posted, &value) == 0);
    note("semaphore (sem_init)", "value", "%d", value);
}

static void look_at_first(void) {
    struct sigaction action;
    stack_t stack;
    sigset_t set;
    struct timespec none = {0, 0};
    siginfo_t info;
    char all[TEXT] = "";
    holds("thread", "id of the first", gettid() == ids[0]);
    holds("thread", "its own variables (TLS)", local == 6 && strcmp(pthread_getspecific(key), "first's") == 0);
    holds("thread", "list of robust mutexes", robust_head() == robust_heads[0]);
    CHECK(sigaction(SIGUSR1, NULL, &action) == 0);
    holds("signal", "handler", action.sa_sigaction == on_signal && sigismember(&action.sa_mask, SIGUSR2) == 1);
    note("signal", "flags", "%#x", (unsigned)action.sa_flags & ~0x04000000u);
    CHECK(sigaction(SIGURG, NULL, &action) == 0);
    holds("signal", "ignored", action.sa_handler == SIG_IGN);
    int before = caught;
    holds("signal", "is handled", raise(SIGUSR1) == 0 && caught == before + 1);
    CHECK(sigaltstack(NULL, &stack) == 0);
    holds("signal", "alternate stack", stack.ss_sp == stacks[0] && stack.ss_size == sizeof stacks[0]);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0);
    holds("signal", "mask", sigismember(&set, SIGRTMIN + 1) && sigismember(&set, SIGHUP) && !sigismember(&set, SIGUSR1));
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    int got = sigtimedwait(&set, &info, &none);
    holds("signal", "a standard one that waits", got == SIGHUP && info.si_code == SI_USER && info.si_pid == getpid());
    CHECK(kill(getpid(), SIGHUP) == 0);
    for (int i = 1; i <= 3; i++) sigaddset(&set, SIGRTMIN + i);
    sigdelset(&set, SIGHUP);
    for (int i = 0; i < 3 * QUEUED && sigtimedwait(&set, &info, &none) > 0; i++)
        snprintf(all + strlen(all), sizeof all - strlen(all), "%d ", info.si_value.sival_int);
    note("signal", "real-time ones that wait, in order, with values", "%s", all);
    for (int i = 0; i < QUEUED; i++)
        for (int which = 3; which > 0; which--)
            CHECK(sigqueue(getpid(), SIGRTMIN + which, (union sigval){.sival_int = 10 * which + i}) == 0);
}

/* All of them wait until here. */
static void look_at_others(void) {
    static const char *const names[] = {"id", "name", "its own variables (TLS)", "alternate stack", "signal mask",
                                        "list of robust mutexes", "signals that wait for it alone"};
    if (looks == 1) {
        int held = !passed && !woken;
        CHECK(pthread_mutex_unlock(&plain) == 0 && pthread_join(thread, NULL) == 0);
        CHECK(pthread_mutex_lock(&gate) == 0);
        told = 1;
        CHECK(pthread_cond_signal(&condition) == 0 && pthread_mutex_unlock(&gate) == 0 && pthread_join(more[0], NULL) == 0);
        waits_at_barrier(NULL);
        CHECK(pthread_join(more[1], NULL) == 0 && sem_post(&semaphore) == 0 && pthread_join(more[2], NULL) == 0);
        note("thread", "waits for a mutex, a condition, a barrier, a semaphore", "%s", held && woken ? "goes on waiting" : "woke");
    } else
        note("thread", "waits for a mutex, a condition, a barrier, a semaphore", "goes on waiting");
    for (int i = 0; i < 7; i++) holds("thread", names[i], looks == 0 || answers[i]);
}

static void look(void) {
    look_at_mutexes();
    look_at_first();
    look_at_others();
}

int main(int count, char **values) { return keep(count, values, set_up, look); }
