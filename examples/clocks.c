/* No clock but the wall clock may run backwards, in one thread or between threads, whatever happens between two reads;
 * and CLOCK_MONOTONIC does not count the time in which the program did not run.
 *
 * clocks [READS per thread] [longest gap in ms that is not a failure of the clock] */
#include "guest.h"
#include <sys/time.h>

enum { THREADS = 4, CLOCKS = 4 };
static const clockid_t ids[CLOCKS] = {CLOCK_MONOTONIC, CLOCK_BOOTTIME, CLOCK_MONOTONIC_RAW, CLOCK_MONOTONIC_COARSE};
static int64_t newest[CLOCKS];
static long reads, longest_ms;

static int64_t read_clock(clockid_t id) {
    struct timespec now;
    CHECK(clock_gettime(id, &now) == 0);
    CHECK(now.tv_nsec >= 0 && now.tv_nsec < 1000000000);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

/* What another thread has read before must not be newer than what is read now. */
static void check_clock(int which, int64_t *last) {
    int64_t others = __atomic_load_n(&newest[which], __ATOMIC_SEQ_CST), now = read_clock(ids[which]);
    if (now < *last) FAIL("clock %d ran backwards by %ld ns", (int)ids[which], (long)(*last - now));
    /* MONOTONIC_RAW is read per processor without a barrier between them: only its order in one thread counts. */
    if (ids[which] != CLOCK_MONOTONIC_RAW && now < others)
        FAIL("clock %d ran backwards by %ld ns between threads", (int)ids[which], (long)(others - now));
    if (longest_ms > 0 && ids[which] != CLOCK_MONOTONIC_RAW && *last != 0 && now - *last > longest_ms * 1000000)
        FAIL("clock %d leapt %ld ms", (int)ids[which], (long)((now - *last) / 1000000));
    *last = now;
    while (others < now &&
           !__atomic_compare_exchange_n(&newest[which], &others, now, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
    }
}

/* The three ways to ask for the wall clock agree with each other to a second. */
static void check_wall(void) {
    struct timeval day;
    struct timespec real;
    time_t seconds = time(NULL);
    CHECK(gettimeofday(&day, NULL) == 0 && clock_gettime(CLOCK_REALTIME, &real) == 0);
    CHECK(seconds > 1600000000 && day.tv_usec >= 0 && day.tv_usec < 1000000);
    CHECK(day.tv_sec >= seconds && real.tv_sec >= day.tv_sec);
}

static void *work(void *argument_) {
    int64_t last[CLOCKS] = {0};
    (void)argument_;
    for (long i = 0; i < reads; i++) {
        for (int which = 0; which < CLOCKS; which++) check_clock(which, &last[which]);
        if (i % 64 == 0) check_wall();
        if (i % 256 == 0) CHECK(sched_getcpu() >= 0);
    }
    return NULL;
}

int main(int count, char **values) {
    pthread_t threads[THREADS];
    reads = argument(count, values, 1, 4000000);
    longest_ms = argument(count, values, 2, 0);
    for (long i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (long i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    printf("%d threads read %d clocks %ld times: never backwards\n", THREADS, CLOCKS, reads);
    return 0;
}
