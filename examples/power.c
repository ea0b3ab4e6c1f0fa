/* Threads stop each other with SIGPWR and let each other go on with SIGXCPU, as garbage collectors do. The recovery
 * signal of a power failure comes to the same handler, and is told apart by its si_code.
 *
 * power [ROUNDS] */
#include "guest.h"
#include <poll.h>
#include <semaphore.h>

enum { WORKERS = 20, SPINNING = 2 };
static pthread_t workers[WORKERS];
static volatile long steps[WORKERS];
static volatile int stop, go, ready;
static __thread int number = -1;
static sem_t stopped;

static void on_restart(int signal) { (void)signal; }

static void on_power(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    if (info->si_code == SI_QUEUE) return; /* a power failure */
    int error = errno;
    sigset_t others;
    CHECK(number >= 0 && info->si_code == SI_TKILL && info->si_pid == getpid());
    long before = steps[number];
    int round = go;
    sigfillset(&others);
    sigdelset(&others, SIGXCPU);
    CHECK(sem_post(&stopped) == 0);
    while (go == round) sigsuspend(&others);
    CHECK(steps[number] == before);
    CHECK(sem_post(&stopped) == 0);
    errno = error;
}

static void *work(void *argument) {
    number = (int)(intptr_t)argument;
    __sync_fetch_and_add(&ready, 1);
    while (!stop) {
        steps[number]++;
        /* Some are stopped in a loop, some in a call that ends soon, the others in one that does not. */
        if (number == SPINNING) usleep(50);
        if (number > SPINNING && !stop) pause();
    }
    return NULL;
}

static void wait_for(int count) {
    while (count > 0)
        if (sem_wait(&stopped) == 0) count--;
        else if (errno != EINTR) FAIL("sem_wait");
}

/* In a thread of its own, the youngest: others are saved before it. */
static void *control(void *argument_) {
    long rounds = *(long *)argument_;
    while (ready < WORKERS) sched_yield();
    for (long round = 0; round < rounds; round++) {
        long seen[WORKERS];
        for (int i = 0; i < WORKERS; i++) CHECK(pthread_kill(workers[i], SIGPWR) == 0);
        wait_for(WORKERS);
        for (int i = 0; i < WORKERS; i++) seen[i] = steps[i];
        sched_yield();
        for (int i = 0; i < WORKERS; i++) CHECK(steps[i] == seen[i]);
        go++;
        for (int i = 0; i < WORKERS; i++) CHECK(pthread_kill(workers[i], SIGXCPU) == 0);
        wait_for(WORKERS);
    }
    stop = 1;
    for (int i = 0; i < WORKERS; i++)
        do pthread_kill(workers[i], SIGXCPU);
        while (pthread_tryjoin_np(workers[i], NULL) != 0 && usleep(500) <= 0);
    return NULL;
}

/* To a thread that has it blocked: one is kept, and taken when it is asked for. */
static void test_blocked(void) {
    sigset_t power;
    sigemptyset(&power);
    sigaddset(&power, SIGPWR);
    CHECK(pthread_sigmask(SIG_BLOCK, &power, NULL) == 0);
    CHECK(raise(SIGPWR) == 0 && raise(SIGPWR) == 0);
    siginfo_t info;
    do CHECK(sigwaitinfo(&power, &info) == SIGPWR);
    while (info.si_code == SI_QUEUE);
    /* glibc shows tgkill as kill here. */
    CHECK(info.si_code == SI_USER || info.si_code == SI_TKILL);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &power, NULL) == 0);
}

static void *disturb(void *thread) {
    for (int i = 0; i < 20; i++) {
        usleep(1000);
        CHECK(pthread_kill(*(pthread_t *)thread, SIGPWR) == 0);
    }
    return NULL;
}

/* Ignored, it disturbs nobody. */
static void test_ignored(void) {
    pthread_t self = pthread_self(), thread;
    CHECK(signal(SIGPWR, SIG_IGN) != SIG_ERR);
    CHECK(pthread_create(&thread, NULL, disturb, &self) == 0);
    CHECK(poll(NULL, 0, 30) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 300);
    pthread_t thread;
    struct sigaction action = {.sa_sigaction = on_power, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigfillset(&action.sa_mask);
    CHECK(sigaction(SIGPWR, &action, NULL) == 0);
    struct sigaction restart = {.sa_handler = on_restart, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGXCPU, &restart, NULL) == 0);
    CHECK(sem_init(&stopped, 0, 0) == 0);
    for (intptr_t i = 0; i < WORKERS; i++) CHECK(pthread_create(&workers[i], NULL, work, (void *)i) == 0);
    CHECK(pthread_create(&thread, NULL, control, &rounds) == 0);
    CHECK(pthread_join(thread, NULL) == 0);
    test_blocked();
    test_ignored();
    printf("rounds %ld\n", rounds);
    return 0;
}
