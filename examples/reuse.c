/* Fresh anonymous memory reads zero, also where addresses are used again by other threads, and MADV_DONTNEED zeroes.
 *
 * Threads map, check, fill, check and unmap blocks as fast as they can, so that addresses wander between them. A
 * system that unmaps before it forgets the content shows another thread's bytes here, or loses them.
 *
 * reuse [THREADS] [ROUNDS] */
#include "guest.h"

enum { PAGE = 4096, MOST = 16, HELD = 4 };
static long threads, rounds;

static void check_pages(const uint64_t *block, size_t pages, uint64_t expected, const char *when) {
    for (size_t page = 0; page < pages; page++)
        for (size_t word = 0; word < PAGE / 8; word += 73) {
            uint64_t found = block[page * (PAGE / 8) + word];
            if (found != expected)
                FAIL("%s: page %zu of %zu at %p holds %#lx, not %#lx", when, page, pages, (void *)block, found, expected);
        }
}

static void fill_pages(uint64_t *block, size_t pages, uint64_t value) {
    for (size_t page = 0; page < pages; page++)
        for (size_t word = 0; word < PAGE / 8; word += 73) block[page * (PAGE / 8) + word] = value;
}

static void *work(void *argument_) {
    uint64_t seed = 77 + (uint64_t)argument_, owner = (uint64_t)argument_ << 48;
    struct { uint64_t *block, value; size_t pages; } held[HELD] = {{0, 0, 0}};
    for (long round = 1; round <= rounds; round++) {
        int i = (int)(next_random(&seed) % HELD);
        if (held[i].block != NULL) {
            check_pages(held[i].block, held[i].pages, held[i].value, "held");
            if (next_random(&seed) % 4 == 0) {
                size_t from = next_random(&seed) % held[i].pages;
                CHECK(madvise(held[i].block + from * (PAGE / 8), (held[i].pages - from) * PAGE, MADV_DONTNEED) == 0);
                check_pages(held[i].block + from * (PAGE / 8), held[i].pages - from, 0, "after MADV_DONTNEED");
                check_pages(held[i].block, from, held[i].value, "below MADV_DONTNEED");
            }
            CHECK(munmap(held[i].block, held[i].pages * PAGE) == 0);
        }
        held[i].pages = 1 + next_random(&seed) % (next_random(&seed) % 8 ? 8 : 200);
        held[i].value = owner | (uint64_t)round;
        held[i].block = mmap(NULL, held[i].pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(held[i].block != MAP_FAILED);
        check_pages(held[i].block, held[i].pages, 0, "fresh");
        fill_pages(held[i].block, held[i].pages, held[i].value);
    }
    for (int i = 0; i < HELD; i++)
        if (held[i].block != NULL) check_pages(held[i].block, held[i].pages, held[i].value, "at the end");
    return NULL;
}

int main(int count, char **values) {
    pthread_t ids[MOST];
    threads = argument(count, values, 1, 4);
    rounds = argument(count, values, 2, 8000);
    CHECK(threads >= 1 && threads <= MOST);
    for (long i = 0; i < threads; i++) CHECK(pthread_create(&ids[i], NULL, work, (void *)(i + 1)) == 0);
    for (long i = 0; i < threads; i++) CHECK(pthread_join(ids[i], NULL) == 0);
    printf("threads %ld rounds %ld: every fresh page was zero\n", threads, rounds);
    return 0;
}
