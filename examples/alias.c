/* Memory shared with a child that never stops writing into it: nothing that the parent maps later, wherever that is, is
 * ever written by the child. What cannot be kept apart is refused (ENOMEM), never mixed up.
 *
 * alias [ROUNDS] */
#include "guest.h"
#include <fcntl.h>

enum { BYTES = 1 << 16 };

static char *shared(void) {
    char *at = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(at != MAP_FAILED);
    memset(at, 0x55, BYTES);
    return at;
}

static void check_zero(const char *at, size_t from, size_t bytes, const char *what) {
    usleep(3000);
    for (size_t i = from; i < bytes; i++)
        if (at[i] != 0) FAIL("%s: byte %zu is %#x", what, i, at[i]);
}

/* Private memory at a fixed address, or the refusal. */
static char *over(char *at, int flags, int file) {
    char *mapped = mmap(at, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | flags, file, 0);
    CHECK(mapped == at || (mapped == MAP_FAILED && errno == ENOMEM));
    return mapped == at ? at : NULL;
}

/* Moving it keeps it shared, as long as the child lives. Its size. */
static size_t move(char **at, pid_t child) {
    char *moved = mremap(*at, BYTES, 4 * BYTES, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED || errno == ENOMEM);
    if (moved == MAP_FAILED) return BYTES;
    *at = moved;
    memset(moved, 0, BYTES);
    /* The child writes there, sooner or later, unless a failure has ended it. */
    while (*(volatile char *)moved != 1) {
        siginfo_t info = {0};
        usleep(1000);
        CHECK(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT | WNOHANG) == 0);
        if (info.si_pid == child) break;
    }
    return 4 * BYTES;
}

static void round_of(int file) {
    char *one = shared(), *two = shared(), *three = shared(), *four = shared(), *five = shared();
    pid_t child = fork();
    CHECK(child >= 0);
    /* It ends with its parent, whatever that dies of. */
    pid_t parent = child == 0 ? getppid() : 0;
    if (child == 0)
        while (getppid() == parent) {
            memset(one, 1, BYTES), memset(two, 1, BYTES), memset(three, 1, BYTES), memset(four, 1, BYTES);
            memset(five, 1, BYTES);
            usleep(200);
        }
    if (child == 0) _exit(0);
    usleep(1000);
    char *mapped = over(one, MAP_ANONYMOUS, -1);
    if (mapped) check_zero(mapped, 0, BYTES, "over shared memory");
    /* Unmapped twice, then mapped where the system likes. */
    CHECK(munmap(two, BYTES) == 0 && munmap(two, BYTES) == 0);
    mapped = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(mapped != MAP_FAILED);
    check_zero(mapped, 0, BYTES, "after two unmappings");
    CHECK(munmap(mapped, BYTES) == 0);
    /* A file over what was unmapped: zero behind its end, and after it. */
    CHECK(munmap(three, BYTES) == 0);
    mapped = over(three, 0, file);
    if (mapped) {
        CHECK(memcmp(mapped, "hello", 5) == 0);
        check_zero(mapped, 5, 8192, "behind the end of a file");
    }
    size_t bytes = move(&five, child);
    CHECK(munmap(four, BYTES) == 0);
    CHECK(kill(child, SIGKILL) == 0 || errno == ESRCH);
    while (waitpid(child, NULL, 0) != child) CHECK(errno == EINTR);
    mapped = over(four, MAP_ANONYMOUS, -1);
    if (mapped) check_zero(mapped, 0, BYTES, "when the child has gone");
    for (char **at = (char *[]){one, three, four, NULL}; *at; at++) CHECK(munmap(*at, BYTES) == 0);
    CHECK(munmap(five, bytes) == 0);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 60);
    char name[] = "/tmp/alias-XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0 && unlink(name) == 0);
    CHECK(write(file, "hello", 5) == 5 && ftruncate(file, 8192 - 100) == 0);
    for (long round = 0; round < rounds; round++) round_of(file);
    printf("rounds %ld\n", rounds);
    return 0;
}
