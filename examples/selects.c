/* select and pselect with more descriptors asked for than sets have bits, as in `select(getdtablesize(), ...)`: what lies
 * behind a set is neither taken for bits nor written to. Then sets that are as large as they say.
 *
 * selects [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <limits.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/wait.h>

enum { FAR = 1500, BITS = 2048, WORDS = BITS / 64 };
static int ends[2];
static long asked;

/* A set as the C library has it, and something else behind it. */
static struct {
    fd_set set;
    uint64_t behind[WORDS];
} one;

static void fill(long round) {
    FD_ZERO(&one.set);
    FD_SET(ends[0], &one.set);
    for (int i = 0; i < WORDS; i++) one.behind[i] = round % 2 ? ~0ull : mix((uint64_t)round, (uint64_t)i) | 1;
}

static void expect(long round, int result, int ready) {
    CHECK(result == ready && !FD_ISSET(ends[0], &one.set) == !ready);
    for (int i = 0; i < WORDS; i++)
        if (one.behind[i] != (round % 2 ? ~0ull : mix((uint64_t)round, (uint64_t)i) | 1))
            FAIL("round %ld: word %d behind the set is %#lx", round, i, (unsigned long)one.behind[i]);
}

static void ask_for_too_many(long round) {
    struct timeval short_time = {0, 300};
    struct timespec none = {0, 0};
    char byte;
    fill(round);
    expect(round, select((int)asked, &one.set, NULL, NULL, &short_time), 0);
    fill(round);
    CHECK(write(ends[1], "x", 1) == 1);
    expect(round, select(INT_MAX, &one.set, NULL, NULL, NULL), 1);
    fill(round);
    expect(round, pselect((int)asked, &one.set, NULL, NULL, &none, NULL), 1);
    CHECK(read(ends[0], &byte, 1) == 1);
}

/* A child has a table of its own, made after its parent's. One that is lost in a power failure is started again. */
static void ask_in_a_child(long round) {
    int status;
    do {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            fill(round);
            expect(round, select((int)asked, &one.set, NULL, NULL, &(struct timeval){0, 0}), 0);
            _exit(7);
        }
        CHECK(waitpid(child, &status, 0) == child);
    } while (WIFSIGNALED(status) && WTERMSIG(status) == SIGPWR);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
}

static void set_bit(uint64_t *set, int bit) { set[bit / 64] |= 1ull << bit % 64; }

/* A descriptor that an fd_set has no bit for. */
static void ask_for_many(long round) {
    static uint64_t in[WORDS], out[WORDS];
    memset(in, 0, sizeof in), memset(out, 0, sizeof out);
    set_bit(in, FAR);
    set_bit(out, FAR + 1);
    CHECK(select(round % 2 ? BITS : FAR + 2, (void *)in, (void *)out, NULL, NULL) == 1);
    CHECK(in[FAR / 64] == 0 && out[(FAR + 1) / 64] == 1ull << (FAR + 1) % 64);
    /* Closed, below what is open and behind it. */
    set_bit(in, FAR + (round % 3 ? -100 : 100));
    CHECK(select(BITS, (void *)in, (void *)out, NULL, NULL) == -1 && errno == EBADF);
    set_bit(in, 1100);
    CHECK(select(1100, (void *)in, NULL, NULL, &(struct timeval){0, 0}) == 0);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 2000);
    struct rlimit limit;
    CHECK(pipe(ends) == 0 && getrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(limit.rlim_max >= BITS);
    asked = (long)limit.rlim_cur;
    for (long round = 0; round < rounds; round++) {
        ask_for_too_many(round);
        if (round % 100 == 1) ask_in_a_child(round);
    }
    limit.rlim_cur = BITS;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(dup2(ends[0], FAR) == FAR && dup2(ends[1], FAR + 1) == FAR + 1);
    for (long round = 0; round < rounds; round++) ask_for_many(round);
    puts("nothing is behind them");
    return 0;
}
