/* Open files as a program leaves them: offsets, flags, numbers that share a description, files without a name or with
 * another one, holes, a listing in the middle, locks of three kinds; and the calls that go on from there.
 *
 * files [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>

enum { LETTERS = 26, ENTRIES = 9, HOLE = 1 << 20 };
static const char letters[] = "abcdefghijklmnopqrstuvwxyz";

/* Offsets that a second number shares, and that a second opening does not. */
static int first, same, other;
static int appended, unlinked, replaced, nameless, forbidden, path_only, link_only, holes, directory, removed;
static int locked, rival;

static int filled(const char *name, int flags, mode_t mode) {
    int file = open(name, flags | O_CREAT, mode);
    CHECK(file >= 0 && write(file, letters, LETTERS) == LETTERS);
    return file;
}

static void set_up_names(void) {
    unlinked = filled("unlinked", O_RDWR, 0600);
    CHECK(unlink("unlinked") == 0);
    replaced = filled("replaced", O_RDWR | O_CLOEXEC, 0600);
    int newer = open("newer", O_WRONLY | O_CREAT, 0600);
    CHECK(write(newer, "new", 3) == 3 && close(newer) == 0 && rename("newer", "replaced") == 0);
    nameless = open(".", O_TMPFILE | O_RDWR, 0640);
    CHECK(nameless >= 0 && write(nameless, letters, LETTERS) == LETTERS);
    /* Open for more than its mode allows. */
    forbidden = filled("forbidden", O_RDWR | O_EXCL, 0);
    path_only = open("shared", O_PATH | O_NOFOLLOW);
    CHECK(path_only >= 0 && symlink("nowhere", "link") == 0);
    link_only = open("link", O_PATH | O_NOFOLLOW);
    CHECK(link_only >= 0);
    CHECK(mkdir("removed", 0700) == 0);
    removed = open("removed", O_RDONLY | O_DIRECTORY);
    CHECK(removed >= 0 && rmdir("removed") == 0);
    CHECK(mkdir("directory", 0700) == 0);
    for (int i = 0; i < ENTRIES; i++) {
        char name[32];
        snprintf(name, sizeof name, "directory/entry-%d", i);
        int entry = open(name, O_WRONLY | O_CREAT | O_EXCL, 0600);
        CHECK(entry >= 0 && close(entry) == 0);
    }
    directory = open("directory", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(directory >= 0);
}

static struct flock range(short type, off_t start, off_t length) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static void set_up_locks(void) {
    locked = filled("locked", O_RDWR, 0600);
    rival = open("locked", O_RDWR);
    CHECK(rival >= 0 && flock(locked, LOCK_EX) == 0);
    struct flock posix_write = range(F_WRLCK, 2, 3), posix_read = range(F_RDLCK, 5, 4);
    CHECK(fcntl(locked, F_SETLK, &posix_write) == 0 && fcntl(locked, F_SETLK, &posix_read) == 0);
    struct flock of_description = range(F_WRLCK, 20, 0);
    CHECK(fcntl(locked, F_OFD_SETLK, &of_description) == 0);
}

static void set_up(void) {
    first = filled("shared", O_RDWR | O_CLOEXEC, 0600);
    same = dup(first);
    other = open("shared", O_RDONLY | O_NOATIME);
    CHECK(same >= 0 && other >= 0 && lseek(first, 0, SEEK_SET) == 0 && lseek(other, 11, SEEK_SET) == 11);
    CHECK(fcntl(other, F_DUPFD, 100) == 100 && fcntl(other, F_DUPFD_CLOEXEC, 200) == 200);
    appended = filled("appended", O_RDWR | O_APPEND | O_DSYNC, 0600);
    CHECK(fcntl(appended, F_SETFL, O_APPEND | O_NONBLOCK) == 0);
    holes = open("holes", O_RDWR | O_CREAT, 0600);
    CHECK(ftruncate(holes, HOLE) == 0 && pwrite(holes, letters, LETTERS, HOLE / 2) == LETTERS);
    CHECK(unlink("holes") == 0);
    set_up_names();
    set_up_locks();
}

static void expect_at(int file, off_t offset, const char *text) {
    char bytes[64] = {0};
    CHECK(pread(file, bytes, strlen(text), offset) == (ssize_t)strlen(text));
    if (strcmp(bytes, text) != 0) FAIL("descriptor %d has \"%s\" at %ld, not \"%s\"", file, bytes, (long)offset, text);
}

static void check_offsets(long round) {
    char byte;
    off_t at = round % 10;
    CHECK(lseek(first, 0, SEEK_CUR) == at && lseek(same, 0, SEEK_CUR) == at && lseek(other, 0, SEEK_CUR) == 11);
    CHECK(read(same, &byte, 1) == 1 && byte == letters[at] && lseek(first, 0, SEEK_CUR) == at + 1);
    CHECK(lseek(100, 0, SEEK_CUR) == 11 && lseek(other, 1, SEEK_CUR) == 12);
    CHECK(read(200, &byte, 1) == 1 && byte == letters[12] && lseek(100, 11, SEEK_SET) == 11);
    if (at == 9) CHECK(lseek(first, 0, SEEK_SET) == 0);
    CHECK(fcntl(first, F_GETFD) == FD_CLOEXEC && fcntl(same, F_GETFD) == 0);
    CHECK(fcntl(100, F_GETFD) == 0 && fcntl(200, F_GETFD) == FD_CLOEXEC);
    CHECK((fcntl(other, F_GETFL) & (O_ACCMODE | O_NOATIME | O_APPEND | O_NONBLOCK)) == (O_RDONLY | O_NOATIME));
    CHECK((fcntl(appended, F_GETFL) & (O_ACCMODE | O_APPEND | O_NONBLOCK | O_DSYNC)) ==
          (O_RDWR | O_APPEND | O_NONBLOCK | O_DSYNC));
    struct stat one, two;
    CHECK(fstat(first, &one) == 0 && fstat(path_only, &two) == 0 && one.st_ino == two.st_ino);
    CHECK(read(path_only, &byte, 1) == -1 && errno == EBADF);
    CHECK(fstat(link_only, &one) == 0 && S_ISLNK(one.st_mode));
}

static void check_names(long round) {
    struct stat file;
    char text[8] = {0};
    expect_at(unlinked, 3, "defg");
    CHECK(lseek(unlinked, 0, SEEK_CUR) == LETTERS + round);
    CHECK(write(unlinked, "+", 1) == 1 && fstat(unlinked, &file) == 0 && file.st_size == LETTERS + round + 1);
    CHECK(access("unlinked", F_OK) == -1 && errno == ENOENT);
    expect_at(replaced, 0, "abc");
    int newer = open("replaced", O_RDONLY);
    CHECK(newer >= 0 && read(newer, text, sizeof text) == 3 && strcmp(text, "new") == 0 && close(newer) == 0);
    expect_at(nameless, 20, "uvwxyz");
    expect_at(forbidden, 0, "abc");
    CHECK(pwrite(forbidden, "abc", 3, 0) == 3);
    CHECK(stat("forbidden", &file) == 0 && (file.st_mode & 07777) == 0);
    CHECK(fstat(removed, &file) == 0 && S_ISDIR(file.st_mode) && file.st_nlink == 0);
    CHECK(mkdirat(removed, "below", 0700) == -1 && errno == ENOENT);
}

static void check_content(long round) {
    char bytes[8], more[8];
    struct iovec parts[2] = {{bytes, 2}, {more, 3}};
    off_t size = LETTERS + 5 * round;
    /* Whatever its offset is, it is written at the end. */
    CHECK(lseek(appended, 4, SEEK_SET) == 4 && readv(appended, parts, 2) == 5);
    CHECK(memcmp(bytes, "ef", 2) == 0 && memcmp(more, "ghi", 3) == 0);
    CHECK(writev(appended, parts, 2) == 5 && lseek(appended, 0, SEEK_CUR) == size + 5);
    expect_at(appended, size, "efghi");
    CHECK(lseek(holes, 0, SEEK_DATA) <= HOLE / 2 && lseek(holes, 0, SEEK_DATA) > 0);
    CHECK(lseek(holes, HOLE / 2, SEEK_HOLE) < HOLE && lseek(holes, 0, SEEK_END) == HOLE);
    expect_at(holes, HOLE / 2, letters);
    int copy = open("copy", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(copy >= 0 && lseek(replaced, 1, SEEK_SET) == 1 && sendfile(copy, replaced, NULL, 5) == 5);
    CHECK(lseek(replaced, 0, SEEK_CUR) == 6 && lseek(copy, 0, SEEK_CUR) == 5);
    loff_t from = 10;
    CHECK(copy_file_range(replaced, &from, copy, NULL, 3, 0) == 3 && from == 13 && lseek(replaced, 0, SEEK_CUR) == 6);
    expect_at(copy, 0, "bcdefklm");
    CHECK(ftruncate(copy, 2) == 0 && lseek(copy, 0, SEEK_CUR) == 8 && write(copy, "x", 1) == 1);
    CHECK(pread(copy, bytes, 8, 2) == 7 && memcmp(bytes, "\0\0\0\0\0\0x", 7) == 0);
    CHECK(truncate("copy", 1) == 0 && lseek(copy, 0, SEEK_END) == 1 && close(copy) == 0 && unlink("copy") == 0);
}

static void expect_lock(short type, off_t at, off_t start, off_t length) {
    struct flock found = range(F_WRLCK, at, 1);
    CHECK(fcntl(rival, F_OFD_GETLK, &found) == 0);
    if (found.l_type != type || (type != F_UNLCK && (found.l_start != start || found.l_len != length)))
        FAIL("byte %ld: %d from %ld, %ld bytes", (long)at, found.l_type, (long)found.l_start, (long)found.l_len);
}

static void check_locks(void) {
    CHECK(flock(rival, LOCK_SH | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    CHECK(flock(locked, LOCK_SH) == 0 && flock(rival, LOCK_SH | LOCK_NB) == 0);
    CHECK(flock(locked, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    CHECK(flock(rival, LOCK_UN) == 0 && flock(locked, LOCK_EX | LOCK_NB) == 0);
    expect_lock(F_WRLCK, 3, 2, 3);
    expect_lock(F_RDLCK, 8, 5, 4);
    expect_lock(F_UNLCK, 9, 0, 0);
    expect_lock(F_WRLCK, 25, 20, 0);
    /* The program's own, and so is what it may take besides. */
    struct flock mine = range(F_WRLCK, 12, 1);
    CHECK(fcntl(locked, F_SETLKW, &mine) == 0);
    expect_lock(F_WRLCK, 12, 12, 1);
    mine.l_type = F_UNLCK;
    CHECK(fcntl(locked, F_SETLK, &mine) == 0);
    expect_lock(F_UNLCK, 12, 0, 0);
}

/* Each entry comes once, however long the listing takes. */
static void check_listing(void) {
    struct entry {
        uint64_t inode;
        int64_t offset;
        uint16_t length;
        uint8_t type;
        char name[];
    };
    char room[96];
    long got;
    unsigned seen = 0;
    CHECK(lseek(directory, 0, SEEK_SET) == 0);
    while ((got = syscall(SYS_getdents64, directory, room, sizeof room)) > 0)
        for (long at = 0; at < got;) {
            struct entry *entry = (struct entry *)(room + at);
            int number = -1;
            if (sscanf(entry->name, "entry-%d", &number) == 1) {
                CHECK((seen & 1u << number) == 0);
                seen |= 1u << number;
            }
            at += entry->length;
        }
    CHECK(got == 0 && seen == (1u << ENTRIES) - 1);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 120);
    set_up();
    for (long round = 0; round < rounds; round++) {
        check_offsets(round);
        check_names(round);
        check_content(round);
        check_locks();
        check_listing();
        if (rounds > 4) sleep_us(2000);
    }
    /* What never had a name gets one. */
    char path[64];
    struct stat file;
    snprintf(path, sizeof path, "/proc/self/fd/%d", nameless);
    CHECK(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0);
    CHECK(stat("named", &file) == 0 && file.st_size == LETTERS && (file.st_mode & 07777) == 0640);
    printf("%ld rounds, %ld bytes unlinked\n", rounds, (long)lseek(unlinked, 0, SEEK_END));
    return 0;
}
