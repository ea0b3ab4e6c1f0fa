/* A handler for SIGPWR that prints a line for each recovery signal: see recovery.c, and the tests that read them. */
#ifndef ON_POWER_H
#define ON_POWER_H
#include "guest.h"

static volatile sig_atomic_t recovered, last_value;

/* Only what may be called in a handler. */
static void on_power(int number, siginfo_t *info, void *context) {
    char line[160];
    int length;
    (void)context;
    recovered++;
    length = snprintf(line, sizeof line, "recovery %d signal %d code %d value %d main %d growing %d\n", (int)recovered,
                      number, info->si_code, info->si_value.sival_int, gettid() == getpid(),
                      info->si_value.sival_int > last_value);
    last_value = info->si_value.sival_int;
    if (write(1, line, (size_t)length) != length) _exit(3);
}

#endif
