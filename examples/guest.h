/* What the C guests share: an error that names its line, a seeded generator, arguments, time.
 *
 * Every guest checks itself while it runs and ends with output that does not depend on when it was interrupted, so that
 * a run with power failures can be compared byte by byte with one without. */
#ifndef GUEST_H
#define GUEST_H

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Ends the guest with the place and the reason: a guest never goes on with a wrong state. */
#define FAIL(...)                                                                                                      \
    do {                                                                                                               \
        int error_ = errno;                                                                                            \
        fprintf(stderr, "%s:%d: ", __FILE__, __LINE__);                                                                \
        fprintf(stderr, __VA_ARGS__);                                                                                  \
        fprintf(stderr, " (errno %d: %s)\n", error_, strerror(error_));                                                \
        _exit(1);                                                                                                      \
    } while (0)

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) FAIL("not true: %s", #condition);                                                            \
    } while (0)

/* splitmix64: small, seedable, good enough to choose what to do next. */
static inline uint64_t next_random(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* FNV-1a over 64-bit words, for digests. */
static inline uint64_t mix(uint64_t digest, uint64_t word) {
    return (digest ^ word) * 0x100000001b3ull + (digest >> 29);
}

/* The numeric argument `index`, or `otherwise`. */
static inline long argument(int count, char **values, int index, long otherwise) {
    return count > index ? strtol(values[index], NULL, 0) : otherwise;
}

/* CLOCK_MONOTONIC in ns. It stands still while the program does not run. */
static inline int64_t now_ns(void) {
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* Sleeps that long, signals or not. */
static inline void sleep_us(long us) {
    struct timespec left = {us / 1000000, us % 1000000 * 1000};
    while (nanosleep(&left, &left) != 0) CHECK(errno == EINTR);
}

#endif
