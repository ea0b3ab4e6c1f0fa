/* Files in memory and memory of files, as a program leaves them: memfds, sealed ones too, shared memory without a
 * name, files that are written by way of memory, private copies of a file's pages.
 *
 * mapped [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <sys/stat.h>

enum { PAGE = 4096, BYTES = 4 * PAGE };
static int loose, beside, mapped_file, sealed, reader, named, gone, backing;
static char *of_memfd, *of_named, *of_gone, *anonymous, *private, *read_only_view, *of_zero, *private_read, *future, *grown;

static char *map(int prot, int flags, int file, off_t offset) {
    char *at = mmap(NULL, BYTES, prot, flags, file, offset);
    CHECK(at != MAP_FAILED);
    return at;
}

static void set_up_memfds(void) {
    loose = memfd_create("loose", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(loose >= 0 && write(loose, "abcdef", 6) == 6 && lseek(loose, 2, SEEK_SET) == 2);
    mapped_file = memfd_create("mapped", 0);
    CHECK(mapped_file >= 0 && ftruncate(mapped_file, BYTES) == 0);
    of_memfd = map(PROT_READ | PROT_WRITE, MAP_SHARED, mapped_file, 0);
    strcpy(of_memfd + PAGE, "written by way of memory");
    sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
    CHECK(sealed >= 0 && write(sealed, "for good", 8) == 8);
    CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", loose);
    beside = open(path, O_RDONLY);
    CHECK(beside >= 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", sealed);
    reader = open(path, O_RDONLY);
    CHECK(reader >= 0 && lseek(reader, 4, SEEK_SET) == 4);
    int constant = memfd_create("constant", MFD_ALLOW_SEALING);
    CHECK(constant >= 0 && ftruncate(constant, BYTES) == 0 && pwrite(constant, "constant", 8, 0) == 8);
    CHECK(fcntl(constant, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SEAL) == 0);
    read_only_view = map(PROT_READ, MAP_SHARED, constant, 0);
    CHECK(close(constant) == 0);
    int writable = memfd_create("future", MFD_ALLOW_SEALING);
    CHECK(writable >= 0 && ftruncate(writable, BYTES) == 0);
    future = map(PROT_READ | PROT_WRITE, MAP_SHARED, writable, 0);
    CHECK(close(writable) == 0);
    /* Longer than it was when it was mapped. */
    int growing = memfd_create("growing", 0);
    CHECK(growing >= 0 && ftruncate(growing, PAGE) == 0);
    grown = map(PROT_READ | PROT_WRITE, MAP_SHARED, growing, 0);
    CHECK(ftruncate(growing, BYTES) == 0 && close(growing) == 0);
    strcpy(grown + 3 * PAGE, "grown");
}

static void set_up(void) {
    set_up_memfds();
    named = open("named", O_RDWR | O_CREAT, 0600);
    gone = open("gone", O_RDWR | O_CREAT, 0600);
    backing = open("backing", O_RDWR | O_CREAT, 0600);
    CHECK(ftruncate(named, BYTES) == 0 && ftruncate(gone, BYTES) == 0 && ftruncate(backing, BYTES) == 0);
    of_named = map(PROT_READ | PROT_WRITE, MAP_SHARED, named, 0);
    of_gone = map(PROT_READ | PROT_WRITE, MAP_SHARED, gone, 0);
    CHECK(unlink("gone") == 0 && pwrite(backing, "original", 8, 0) == 8 && pwrite(backing, "second", 6, PAGE) == 6);
    private = map(PROT_READ | PROT_WRITE, MAP_PRIVATE, backing, 0);
    memcpy(private, "changed!", 8);
    private_read = map(PROT_READ, MAP_PRIVATE, backing, PAGE);
    anonymous = map(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int zero = open("/dev/zero", O_RDWR);
    CHECK(zero >= 0);
    of_zero = map(PROT_READ | PROT_WRITE, MAP_SHARED, zero, 0);
    CHECK(close(zero) == 0);
}

static void expect_at(int file, off_t offset, const char *text) {
    char bytes[64] = {0};
    CHECK(pread(file, bytes, strlen(text), offset) == (ssize_t)strlen(text));
    if (strcmp(bytes, text) != 0) FAIL("descriptor %d has \"%s\" at %ld, not \"%s\"", file, bytes, (long)offset, text);
}

static void check_seals(long round) {
    struct stat file;
    char number = (char)('0' + round % 10), again = 0;
    CHECK(fcntl(loose, F_GET_SEALS) == 0 && fcntl(mapped_file, F_GET_SEALS) == F_SEAL_SEAL);
    CHECK(fcntl(sealed, F_GET_SEALS) == (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE));
    CHECK(pwrite(sealed, "x", 1, 0) == -1 && errno == EPERM && ftruncate(sealed, 2) == -1 && errno == EPERM);
    expect_at(sealed, 0, "for good");
    expect_at(reader, 4, "good");
    CHECK(lseek(reader, 0, SEEK_CUR) == 4 && write(reader, "x", 1) == -1 && errno == EBADF);
    /* Two openings of one file. */
    CHECK(pwrite(loose, &number, 1, 5) == 1 && pread(beside, &again, 1, 5) == 1 && again == number);
    CHECK(lseek(sealed, 0, SEEK_CUR) == 8 && ftruncate(loose, 7) == 0 && ftruncate(loose, 6) == 0);
    CHECK(lseek(loose, 0, SEEK_CUR) == 2 && fcntl(loose, F_GETFD) == FD_CLOEXEC);
    expect_at(loose, 0, "abcde");
    CHECK(fstat(loose, &file) == 0 && file.st_size == 6 && fstat(mapped_file, &file) == 0 && file.st_size == BYTES);
    char *view = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, sealed, 0);
    CHECK(view == MAP_FAILED && errno == EPERM);
}

/* What is written by way of memory is in the file, and the other way round. */
static void check_both_ways(int file, char *memory, long round) {
    char text[32];
    snprintf(text, sizeof text, "round %ld by memory", round);
    strcpy(memory + 2 * PAGE + 17, text);
    expect_at(file, 2 * PAGE + 17, text);
    CHECK(msync(memory, BYTES, round % 2 ? MS_SYNC : MS_ASYNC) == 0);
    snprintf(text, sizeof text, "round %ld by file", round);
    CHECK(pwrite(file, text, strlen(text) + 1, 3 * PAGE) == (ssize_t)strlen(text) + 1);
    CHECK(strcmp(memory + 3 * PAGE, text) == 0);
    /* A second mapping of the same pages. */
    char *again = map(PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    CHECK(strcmp(again + 3 * PAGE, text) == 0);
    again[PAGE - 1] = (char)round;
    CHECK(memory[PAGE - 1] == (char)round && munmap(again, BYTES) == 0);
}

static void check_private(long round) {
    CHECK(memcmp(private, "changed!", 8) == 0 && memcmp(private + PAGE, "second", 6) == 0);
    expect_at(backing, 0, "original");
    CHECK(memcmp(private_read, "second", 6) == 0);
    private[2 * PAGE] = (char)(round + 1);
    CHECK(mprotect(private, PAGE, PROT_READ) == 0 && mprotect(private, PAGE, PROT_READ | PROT_WRITE) == 0);
    CHECK(memcmp(private, "changed!", 8) == 0 && private[2 * PAGE] == (char)(round + 1));
}

/* What removes pages from files does not touch private memory: with a file it may not, and without one it cannot. */
static void check_removal(void) {
    CHECK(madvise(private + 2 * PAGE, PAGE, MADV_REMOVE) == -1 && errno == EACCES);
    CHECK(memcmp(private + PAGE, "second", 6) == 0);
    char *none = map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    none[0] = 'n';
    CHECK(madvise(none, PAGE, MADV_REMOVE) == -1 && errno == EINVAL && none[0] == 'n');
    CHECK(munmap(none + PAGE, PAGE) == 0);
    CHECK(madvise(none, BYTES, MADV_REMOVE) == -1 && errno == EINVAL && none[0] == 'n');
    CHECK(madvise(none + PAGE, PAGE, MADV_REMOVE) == -1 && errno == ENOMEM);
    CHECK(munmap(none, BYTES) == 0);
}

/* Memory that a child shares. */
static void check_shared(long round) {
    char *all[] = {anonymous, of_zero, of_memfd + PAGE, future, of_named};
    for (int i = 0; i < 5; i++) {
        CHECK(round == 0 || all[i][5] == (char)(round + 10 + i));
        all[i][5] = (char)(round + 11 + i);
    }
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (int i = 0; i < 5; i++)
            if (all[i][5] != (char)(round + 11 + i)) _exit(1);
        anonymous[9] = 1;
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0 || (WIFSIGNALED(status) && WTERMSIG(status) == SIGPWR));
    if (status == 0) CHECK(anonymous[9] == 1);
    anonymous[9] = 0;
    CHECK(memcmp(read_only_view, "constant", 8) == 0 && strcmp(grown + 3 * PAGE, "grown") == 0);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 60);
    set_up();
    for (long round = 0; round < rounds; round++) {
        check_seals(round);
        check_both_ways(mapped_file, of_memfd, round);
        check_both_ways(named, of_named, round);
        check_both_ways(gone, of_gone, round);
        check_private(round);
        check_removal();
        check_shared(round);
        if (rounds > 4) sleep_us(2000);
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
