/* Sixty thousand mappings (the kernel's default limit is 65,530), used, protected, split and unmapped.
 *
 * Neighbours have different protections, so that nothing merges.
 *
 * manymaps [MAPPINGS] [PASSES] */
#include "guest.h"

enum { PAGE = 4096 };

int main(int count, char **values) {
    long mappings = argument(count, values, 1, 60000), passes = argument(count, values, 2, 12);
    size_t bytes = (size_t)mappings * PAGE;
    uint64_t seed = 5, sum = 0;
    char *base = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    CHECK(munmap(base, bytes) == 0);
    /* One call per mapping: even ones stay read-only, odd ones are written. */
    for (long i = 0; i < mappings; i++) {
        int protection = i % 2 ? PROT_READ | PROT_WRITE : PROT_READ;
        char *at = mmap(base + i * PAGE, PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (at != base + i * PAGE) FAIL("mapping %ld", i);
        if (i % 2) *(long *)at = i;
    }
    printf("mapped %ld\n", mappings);
    fflush(stdout);
    for (long pass = 1; pass <= passes; pass++) {
        for (long i = 0; i < mappings; i++) {
            long found = *(volatile long *)(base + i * PAGE);
            if (found != (i % 2 ? i * pass : 0)) FAIL("pass %ld: mapping %ld holds %ld", pass, i, found);
            if (i % 2) *(long *)(base + i * PAGE) = i * (pass + 1);
        }
        /* Some change their protection and back, which merges and splits three at a time. */
        for (int k = 0; k < 5000; k++) {
            long i = (long)(next_random(&seed) % (uint64_t)mappings);
            CHECK(mprotect(base + i * PAGE, PAGE, i % 2 ? PROT_READ : PROT_READ | PROT_WRITE) == 0);
            CHECK(mprotect(base + i * PAGE, PAGE, i % 2 ? PROT_READ | PROT_WRITE : PROT_READ) == 0);
        }
        printf("pass %ld\n", pass);
        fflush(stdout);
    }
    for (long i = 0; i < mappings; i += 3) CHECK(munmap(base + i * PAGE, PAGE) == 0);
    for (long i = 0; i < mappings; i++)
        if (i % 3) sum += *(uint64_t *)(base + i * PAGE);
    CHECK(munmap(base, bytes) == 0);
    printf("sum %lu\n", sum);
    return 0;
}
