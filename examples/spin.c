/* Many threads that never stop, over a given amount of touched memory, for measuring how long a save and a resume take.
 *
 * Whichever thread runs first after a pause of more than 30 ms writes the wall clock's time: that is the first
 * instruction after a resume, to a microsecond. Ends by itself after the given time of its own.
 *
 * spin [THREADS] [MIB of touched memory] [SECONDS] */
#include "guest.h"

static int64_t last;
static volatile int stop;

static int64_t wall_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000000000ll + now.tv_nsec;
}

static void *spin(void *argument_) {
    (void)argument_;
    while (!stop) {
        int64_t now = wall_ns(), before = __atomic_exchange_n(&last, now, __ATOMIC_SEQ_CST);
        if (before != 0 && now - before > 30000000) {
            char line[64];
            int length = snprintf(line, sizeof line, "first %ld\n", (long)now);
            CHECK(write(1, line, (size_t)length) == length);
        }
    }
    return NULL;
}

int main(int count, char **values) {
    long threads = argument(count, values, 1, 64), mib = argument(count, values, 2, 64);
    long seconds = argument(count, values, 3, 60);
    size_t bytes = (size_t)mib << 20;
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    pthread_t thread;
    CHECK(memory != MAP_FAILED);
    for (size_t at = 0; at < bytes; at += 4096) memory[at] = (char)(at >> 12 | 1);
    for (long i = 1; i < threads; i++) CHECK(pthread_create(&thread, NULL, spin, NULL) == 0);
    CHECK(write(1, "ready\n", 6) == 6);
    for (int64_t end = now_ns() + seconds * 1000000000; now_ns() < end;) sleep_us(1000);
    stop = 1;
    for (size_t at = 0; at < bytes; at += 4096) CHECK(memory[at] == (char)(at >> 12 | 1));
    return 0;
}
