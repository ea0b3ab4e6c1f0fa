/* Pipes as a program leaves them: half read, full, of another size, with packets, with one end only; FIFOs, also those
 * whose name is gone; and the calls that move bytes between them.
 *
 * pipes [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/stat.h>
#include <sys/uio.h>

enum { SMALL = 4096, LARGE = 1 << 18, STREAM = 300000 };
static int half[2], full[2], large[2], packets[2], deaf[2], ended[2], spliced[2], twice[2];
static int fifo_in, fifo_out, fifo_both, gone_in, gone_out, quiet, posted, taken;
static char block[LARGE];

static void set_up_fifos(void) {
    CHECK(mkfifo("fifo", 0600) == 0 && mkfifo("gone", 0600) == 0 && mkfifo("quiet", 0600) == 0);
    fifo_in = open("fifo", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    fifo_out = open("fifo", O_WRONLY);
    fifo_both = open("fifo", O_RDWR);
    CHECK(fifo_in >= 0 && fifo_out >= 0 && fifo_both >= 0 && write(fifo_out, "0123456789", 10) == 10);
    gone_in = open("gone", O_RDONLY | O_NONBLOCK);
    gone_out = open("gone", O_WRONLY);
    CHECK(gone_in >= 0 && gone_out >= 0 && unlink("gone") == 0 && write(gone_out, "unseen", 6) == 6);
    quiet = open("quiet", O_RDONLY | O_NONBLOCK);
    CHECK(quiet >= 0 && mkfifo("post", 0600) == 0);
    taken = open("post", O_RDONLY | O_NONBLOCK);
    posted = open("post", O_WRONLY);
    CHECK(taken >= 0 && posted >= 0 && fcntl(posted, F_SETFL, O_DIRECT) == 0);
    CHECK(fcntl(posted, F_SETPIPE_SZ, LARGE) == LARGE);
    CHECK(write(posted, "one", 3) == 3 && write(posted, "three", 5) == 5);
}

static void set_up(void) {
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    CHECK(pipe(half) == 0 && write(half[1], "0123456789", 10) == 10 && read(half[0], block, 3) == 3);
    CHECK(pipe2(full, O_NONBLOCK) == 0 && fcntl(full[1], F_SETPIPE_SZ, SMALL) == SMALL);
    CHECK(write(full[1], block, SMALL) == SMALL);
    CHECK(pipe(large) == 0 && fcntl(large[0], F_SETPIPE_SZ, LARGE) == LARGE);
    for (int i = 0; i < LARGE; i++) block[i] = (char)(i * 7 + i / 251);
    CHECK(write(large[1], block, LARGE) == LARGE);
    CHECK(pipe2(packets, O_DIRECT | O_CLOEXEC) == 0);
    CHECK(write(packets[1], "one", 3) == 3 && write(packets[1], "three", 5) == 5);
    CHECK(pipe(deaf) == 0 && close(deaf[0]) == 0);
    CHECK(pipe(ended) == 0 && write(ended[1], "rest", 4) == 4 && close(ended[1]) == 0);
    CHECK(pipe2(spliced, O_NONBLOCK) == 0 && pipe2(twice, O_NONBLOCK) == 0);
    set_up_fifos();
}

static int events_of(int file) {
    struct pollfd one = {file, POLLIN | POLLOUT, 0};
    CHECK(poll(&one, 1, 0) >= 0);
    return one.revents;
}

static void expect(int file, const char *text, size_t most) {
    char bytes[64] = {0};
    ssize_t got = read(file, bytes, most);
    if (got != (ssize_t)strlen(text) || strcmp(bytes, text) != 0)
        FAIL("descriptor %d gives %zd bytes \"%s\", not \"%s\"", file, got, bytes, text);
}

static void check_pipes(long round) {
    char digit[2] = {(char)('3' + round % 7), 0};
    expect(half[0], digit, 1);
    CHECK(write(half[1], digit, 1) == 1);
    CHECK(events_of(full[1]) == 0 && events_of(full[0]) == POLLIN);
    CHECK(write(full[1], "x", 1) == -1 && errno == EAGAIN && fcntl(full[0], F_GETPIPE_SZ) == SMALL);
    CHECK(fcntl(full[0], F_GETFL) == (O_RDONLY | O_NONBLOCK) && fcntl(full[1], F_GETFL) == (O_WRONLY | O_NONBLOCK));
    if (round == 0) {
        static char read_back[LARGE];
        CHECK(fcntl(large[1], F_GETPIPE_SZ) == LARGE && read(large[0], read_back, LARGE) == LARGE);
        CHECK(memcmp(read_back, block, LARGE) == 0 && write(large[1], block, LARGE / 2) == LARGE / 2);
    }
    CHECK(fcntl(packets[1], F_GETFL) == (O_WRONLY | O_DIRECT) && fcntl(packets[1], F_GETFD) == FD_CLOEXEC);
    expect(packets[0], "one", 64);
    CHECK(write(packets[1], "one", 3) == 3);
    expect(packets[0], "th", 2);
    CHECK(write(packets[1], "three", 5) == 5);
    CHECK(write(deaf[1], "x", 1) == -1 && errno == EPIPE && events_of(deaf[1]) == (POLLOUT | POLLERR));
    CHECK(events_of(ended[0]) == (POLLHUP | (round == 0 ? POLLIN : 0)));
    expect(ended[0], round == 0 ? "rest" : "", 64);
}

static void check_fifos(long round) {
    char digit[2] = {(char)('0' + round % 10), 0};
    expect(round % 2 == 0 ? fifo_in : fifo_both, digit, 1);
    CHECK(write(round % 3 == 0 ? fifo_both : fifo_out, digit, 1) == 1);
    CHECK((fcntl(fifo_in, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDONLY | O_NONBLOCK));
    CHECK((fcntl(fifo_both, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == O_RDWR);
    expect(gone_in, "unseen", 64);
    CHECK(events_of(gone_in) == 0 && read(gone_in, block, 1) == -1 && errno == EAGAIN);
    CHECK(write(gone_out, "unseen", 6) == 6 && access("gone", F_OK) == -1);
    CHECK(fcntl(taken, F_GETPIPE_SZ) == LARGE && (fcntl(posted, F_GETFL) & O_DIRECT));
    expect(taken, "on", 2);
    expect(taken, "three", 64);
    CHECK(write(posted, "one", 3) == 3 && write(posted, "three", 5) == 5);
    expect(quiet, "", 1);
    int writer = open("quiet", O_WRONLY | O_NONBLOCK);
    CHECK(writer >= 0 && read(quiet, block, 1) == -1 && errno == EAGAIN);
    CHECK(write(writer, "now", 3) == 3 && close(writer) == 0);
    expect(quiet, "now", 64);
    CHECK(events_of(quiet) == POLLHUP);
}

static void check_moving(void) {
    static char text[] = "moved without a copy";
    char bytes[64];
    loff_t offset = 6;
    struct iovec part = {text, 5};
    int file = open("moved", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0 && write(file, text, sizeof text - 1) == sizeof text - 1);
    CHECK(splice(file, &offset, spliced[1], NULL, 7, 0) == 7 && offset == 13);
    CHECK(tee(spliced[0], twice[1], 64, 0) == 7 && splice(spliced[0], NULL, twice[1], NULL, 64, 0) == 7);
    CHECK(splice(spliced[0], NULL, twice[1], NULL, 1, SPLICE_F_NONBLOCK) == -1 && errno == EAGAIN);
    CHECK(vmsplice(twice[1], &part, 1, 0) == 5 && read(twice[0], bytes, sizeof bytes) == 19);
    CHECK(memcmp(bytes, "withoutwithoutmoved", 19) == 0 && write(spliced[1], "end", 3) == 3);
    CHECK(lseek(file, 2, SEEK_SET) == 2 && splice(spliced[0], NULL, file, NULL, 3, 0) == 3);
    CHECK(pread(file, bytes, 6, 0) == 6 && memcmp(bytes, "moend ", 6) == 0 && lseek(file, 0, SEEK_CUR) == 5);
    CHECK(close(file) == 0);
}

static void *drain(void *from) {
    uint64_t digest = 0;
    size_t total = 0;
    static char bytes[STREAM];
    while (total < STREAM) {
        ssize_t got = read(*(int *)from, bytes, 30011);
        CHECK(got > 0);
        for (ssize_t i = 0; i < got; i++) digest = mix(digest, (unsigned char)bytes[i]);
        total += (size_t)got;
    }
    return (void *)digest;
}

/* More than fits, to a reader that takes it in other pieces: a write says how much of it was done. */
static uint64_t stream(void) {
    static char bytes[STREAM];
    int ends[2];
    pthread_t reader;
    void *digest;
    for (int i = 0; i < STREAM; i++) bytes[i] = (char)(i * 13 + i / 257);
    CHECK(pipe(ends) == 0 && pthread_create(&reader, NULL, drain, &ends[0]) == 0);
    for (size_t done = 0; done < STREAM;) {
        ssize_t written = write(ends[1], bytes + done, STREAM - done);
        CHECK(written > 0);
        done += (size_t)written;
    }
    CHECK(pthread_join(reader, &digest) == 0 && close(ends[0]) == 0 && close(ends[1]) == 0);
    return (uint64_t)digest;
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 100);
    uint64_t digest = 0;
    set_up();
    for (long round = 0; round < rounds; round++) {
        check_pipes(round);
        check_fifos(round);
        check_moving();
        digest = mix(digest, stream());
        if (rounds > 4) sleep_us(1000);
    }
    printf("%ld rounds, digest %016lx\n", rounds, (unsigned long)digest);
    return 0;
}
