/* Memory that one thread makes accessible while another already waits to write into it loses nothing of what is written,
 * and an unmapping that the kernel refuses (too many mappings) leaves the content alone.
 *
 * late [ROUNDS] [MAPPINGS] */
#include "guest.h"
#include <sched.h>

enum { BYTES = 1 << 20, PAGE = 4096, OTHERS = 8 };
static volatile long token, done;
static volatile int stop;
static char *volatile at;

static void on_fault(int number) {
    (void)number;
    sched_yield();
}

static void *store(void *unused) {
    long last = 0;
    while (!stop) {
        long now = token;
        if (now == last) continue;
        *(volatile long *)(at + BYTES - 8) = now;
        last = now;
        done = now;
    }
    return unused;
}

static char *map(size_t bytes, int protection) {
    char *mapped = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(mapped != MAP_FAILED);
    return mapped;
}

static void test_late(long rounds) {
    pthread_t thread;
    CHECK(signal(SIGSEGV, on_fault) != SIG_ERR);
    CHECK(pthread_create(&thread, NULL, store, NULL) == 0);
    for (long round = 1; round <= rounds; round++) {
        /* Used before, so that something may have to be cleared. */
        char *used = map(BYTES, PROT_READ | PROT_WRITE);
        memset(used, 1, BYTES);
        CHECK(munmap(used, BYTES) == 0);
        at = mmap(used, BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(at != MAP_FAILED);
        token = round;
        for (volatile int i = 0; i < 2000; i++) {}
        CHECK(mprotect(at, BYTES, PROT_READ | PROT_WRITE) == 0);
        while (done != round) sched_yield();
        CHECK(*(volatile long *)(at + BYTES - 8) == round);
        for (long i = 0; i < BYTES - 8; i += 512) CHECK(at[i] == 0);
        CHECK(munmap(at, BYTES) == 0);
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(signal(SIGSEGV, SIG_DFL) != SIG_ERR);
}

static void test_refused(size_t mappings) {
    char *kept = map(3 * PAGE, PROT_READ | PROT_WRITE), *others[OTHERS];
    memset(kept, 'A', 3 * PAGE);
    for (int i = 0; i < OTHERS; i++) {
        others[i] = map(4 * BYTES, PROT_READ | PROT_WRITE);
        memset(others[i], 1, 4 * BYTES);
    }
    /* Every other page protected: until the kernel has enough. */
    char *many = map(mappings * PAGE, PROT_READ | PROT_WRITE);
    size_t page = 0;
    while (page < mappings && mprotect(many + page * PAGE, PAGE, PROT_READ) == 0) page += 2;
    int refused = munmap(kept + PAGE, PAGE) != 0;
    if (refused) CHECK(errno == ENOMEM && kept[PAGE] == 'A');
    for (int i = 0; i < OTHERS; i++) CHECK(munmap(others[i], 4 * BYTES) == 0);
    if (refused) CHECK(kept[PAGE] == 'A' && kept[2 * PAGE - 1] == 'A');
    CHECK(kept[PAGE - 1] == 'A' && kept[2 * PAGE] == 'A');
    CHECK(munmap(many, mappings * PAGE) == 0);
    CHECK(munmap(kept, 3 * PAGE) == 0);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 600);
    test_late(rounds);
    test_refused((size_t)argument(count, values, 2, 140000));
    printf("rounds %ld\n", rounds);
    return 0;
}
