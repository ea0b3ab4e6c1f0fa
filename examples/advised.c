/* Locked memory, of which the kernel keeps an account, stays locked while other mappings come and go: a failure in the
 * middle of a change to the table of mappings must not lose what has been said of those that do not change.
 *
 * advised [ROUNDS] */
#include "guest.h"
#include <fcntl.h>

enum { PAGE = 4096, LOCKED = 6, OTHERS = 12 };

/* What the kernel has of this process as locked, KiB. */
static long locked(void) {
    char text[4096], *line;
    int file = open("/proc/self/status", O_RDONLY);
    ssize_t bytes = read(file, text, sizeof text - 1);
    CHECK(file >= 0 && bytes > 0 && close(file) == 0);
    text[bytes] = 0;
    CHECK((line = strstr(text, "VmLck:")) != NULL);
    return strtol(line + 6, NULL, 10);
}

static char *map(int pages) {
    char *at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 4);
    char *others[OTHERS];
    for (int i = 0; i < LOCKED; i++) {
        char *at = map(4);
        CHECK(mprotect(at + PAGE, PAGE, PROT_NONE) == 0 && mlock(at, PAGE) == 0 && mlock(at + 2 * PAGE, PAGE) == 0);
    }
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i < OTHERS; i++) {
            others[i] = map(3);
            CHECK(mprotect(others[i] + PAGE, PAGE, PROT_READ) == 0);
        }
        for (int i = 0; i < OTHERS; i++) CHECK(munmap(others[i], 3 * PAGE) == 0);
        if (locked() != 2 * LOCKED * PAGE / 1024) FAIL("%ld KiB are locked", locked());
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
