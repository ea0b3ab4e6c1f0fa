/* The recovery signal: a handler of the program's own for SIGPWR runs exactly once per failure, after the resume, on
 * the main thread, with si_code SI_QUEUE and the new generation as its value.
 *
 * Every call prints a line, so that the test can count; natively none comes. A second thread computes meanwhile: it
 * must not be the one that is interrupted.
 *
 * recovery [STEPS] */
#include "guest.h"
#include "on_power.h"

static volatile int stop;

static void *compute(void *argument_) {
    double *x = argument_;
    while (!stop) *x = *x * 1.0000001 + 0.5;
    return NULL;
}

int main(int count, char **values) {
    long steps = argument(count, values, 1, 2000), done = 0;
    struct sigaction action = {.sa_sigaction = on_power, .sa_flags = SA_SIGINFO}, seen;
    static double x = 1;
    pthread_t thread;
    CHECK(sigaction(SIGPWR, &action, NULL) == 0);
    CHECK(sigaction(SIGPWR, NULL, &seen) == 0);
    CHECK(seen.sa_sigaction == on_power && (seen.sa_flags & SA_SIGINFO));
    CHECK(pthread_create(&thread, NULL, compute, &x) == 0);
    /* Without SA_RESTART an interrupted sleep ends with EINTR, but only if the handler has run. */
    while (done < steps) {
        int before = recovered;
        struct timespec pause = {0, 1000000};
        if (nanosleep(&pause, NULL) != 0) {
            CHECK(errno == EINTR);
            CHECK(recovered > before);
        }
        done++;
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    printf("steps %ld\n", done);
    return 0;
}
