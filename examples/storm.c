/* A storm of signals, those of faults among them, on a thread that changes its mask, executes what cannot be executed,
 * and hands in bad pointers, while another thread forks: the mask stays what it was set to, and errors are errors.
 *
 * storm [ROUNDS] */
#include "guest.h"

enum { VARIABLES = 200 };
static pthread_t target;
static volatile int ends;
static volatile sig_atomic_t handled;

static void handle(int signal) { handled += signal != 0; }

static void *send_signals(void *unused) {
    while (!ends) {
        CHECK(pthread_kill(target, SIGUSR1) == 0 && pthread_kill(target, SIGSEGV) == 0);
        CHECK(pthread_kill(target, SIGBUS) == 0);
        usleep(30);
    }
    return unused;
}

static void *fork_children(void *unused) {
    while (!ends) {
        pid_t child = fork();
        if (child == 0) _exit(0);
        CHECK(child > 0);
        while (waitpid(child, NULL, 0) < 0) CHECK(errno == EINTR);
    }
    return unused;
}

/* An exec with something in it that cannot be read. */
static void fails(long round) {
    static char *environment[VARIABLES + 1], *arguments[] = {"true", NULL};
    char **bad = (char **)8;
    for (int i = 0; i < VARIABLES; i++) environment[i] = "VARIABLE=value";
    environment[150] = round % 3 == 2 ? (char *)16 : environment[0];
    int result = execve("/bin/true", round % 3 == 0 ? bad : arguments, round % 3 == 1 ? bad : environment);
    CHECK(result == -1 && errno == EFAULT);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 2500);
    struct sigaction action = {.sa_handler = handle};
    target = pthread_self();
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0);
    CHECK(sigaction(SIGBUS, &action, NULL) == 0);
    pthread_t threads[2];
    CHECK(pthread_create(&threads[0], NULL, send_signals, NULL) == 0);
    CHECK(pthread_create(&threads[1], NULL, fork_children, NULL) == 0);
    for (long round = 0; round < rounds; round++) {
        sigset_t wanted, found;
        CHECK(sigemptyset(&wanted) == 0);
        if (round & 1) CHECK(sigaddset(&wanted, SIGSEGV) == 0);
        if (round & 2) CHECK(sigaddset(&wanted, SIGBUS) == 0);
        if (round & 4) CHECK(sigaddset(&wanted, SIGUSR1) == 0);
        CHECK(pthread_sigmask(SIG_SETMASK, &wanted, NULL) == 0);
        fails(round);
        CHECK(pthread_sigmask(SIG_SETMASK, NULL, &found) == 0);
        for (int n = 1; n < 65; n++)
            if (sigismember(&found, n) != sigismember(&wanted, n)) FAIL("round %ld: signal %d in the mask", round, n);
        CHECK(syscall(SYS_rt_sigprocmask, SIG_SETMASK, 8, 0, 8) == -1 && errno == EFAULT);
    }
    ends = 1;
    for (int i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(handled > 0);
    printf("%ld rounds\n", rounds);
    return 0;
}
