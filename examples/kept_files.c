/* What becomes of files, directories, locks, and the memory of files. See kept.h. */
#include "kept.h"
#include <sys/file.h>
#include <sys/stat.h>

enum { PAGE = 4096, BYTES = 4 * PAGE, ENTRIES = 40 };
static int first, same, other, appended, synchronous, unlinked, replaced, nameless, renamed, forbidden, holes;
static int path_only, link_only, directory, removed, locked, rival, signalled, leased, device[4];
static struct stat at_first[2];
static struct timespec touched[2];
static long listed;
static int memfd, sealed, reader, no_leases;
static char *shared, *private, *anonymous, *of_memfd, *of_unlinked;

static int filled(const char *name, int flags) {
    int file = open(name, flags | O_CREAT, 0600);
    CHECK(file >= 0 && write(file, "abcdefghijklmnopqrstuvwxyz", 26) == 26);
    return file;
}

static void set_up_names(void) {
    unlinked = filled("unlinked", O_RDWR);
    CHECK(unlink("unlinked") == 0);
    replaced = filled("replaced", O_RDWR);
    CHECK(close(filled("newer", O_RDWR)) == 0 && rename("newer", "replaced") == 0);
    renamed = filled("old-name", O_RDWR);
    CHECK(rename("old-name", "new-name") == 0);
    nameless = open(".", O_TMPFILE | O_RDWR, 0640);
    CHECK(nameless >= 0 && write(nameless, "nameless", 8) == 8);
    forbidden = filled("forbidden", O_RDWR);
    CHECK(fchmod(forbidden, 0) == 0);
    path_only = open("shared", O_PATH);
    CHECK(path_only >= 0 && symlink("nowhere", "link") == 0);
    link_only = open("link", O_PATH | O_NOFOLLOW);
    CHECK(link_only >= 0 && mkdir("removed", 0700) == 0);
    removed = open("removed", O_RDONLY | O_DIRECTORY);
    CHECK(removed >= 0 && rmdir("removed") == 0 && mkdir("directory", 0700) == 0);
    for (int i = 0; i < ENTRIES; i++) {
        char name[32];
        snprintf(name, sizeof name, "directory/entry-%d", i);
        CHECK(mknod(name, S_IFREG | 0600, 0) == 0);
    }
    directory = open("directory", O_RDONLY | O_DIRECTORY);
    CHECK(directory >= 0);
}

static struct flock range(short type, off_t start, off_t length) {
    return (struct flock){.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
}

static void set_up_locks(void) {
    struct flock posix = range(F_WRLCK, 2, 3), of_description = range(F_RDLCK, 20, 0);
    locked = filled("locked", O_RDWR);
    rival = open("locked", O_RDWR);
    CHECK(rival >= 0 && flock(locked, LOCK_EX) == 0 && fcntl(locked, F_SETLK, &posix) == 0);
    CHECK(fcntl(locked, F_OFD_SETLK, &of_description) == 0);
    signalled = filled("signalled", O_RDWR);
    CHECK(fcntl(signalled, F_SETOWN, getpid()) == 0 && fcntl(signalled, F_SETSIG, SIGRTMIN + 4) == 0);
    CHECK(close(filled("leased", O_RDWR)) == 0);
    leased = open("leased", O_RDONLY);
    CHECK(leased >= 0);
    no_leases = fcntl(leased, F_SETLEASE, F_RDLCK) != 0;
}

static char *map(int prot, int flags, int file) {
    char *at = mmap(NULL, BYTES, prot, flags, file, 0);
    CHECK(at != MAP_FAILED);
    return at;
}

static void set_up_memory(void) {
    int file = filled("mapped", O_RDWR);
    CHECK(ftruncate(file, BYTES) == 0);
    shared = map(PROT_READ | PROT_WRITE, MAP_SHARED, file);
    private = map(PROT_READ | PROT_WRITE, MAP_PRIVATE, file);
    CHECK(close(file) == 0);
    strcpy(shared + PAGE, "by memory");
    strcpy(private, "private");
    file = filled("mapped-unlinked", O_RDWR);
    CHECK(ftruncate(file, BYTES) == 0 && unlink("mapped-unlinked") == 0);
    of_unlinked = map(PROT_READ | PROT_WRITE, MAP_SHARED, file);
    CHECK(close(file) == 0);
    strcpy(of_unlinked + PAGE, "without a name");
    anonymous = map(PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
    strcpy(anonymous, "shared");
    memfd = memfd_create("memfd", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    CHECK(memfd >= 0 && ftruncate(memfd, BYTES) == 0 && lseek(memfd, 7, SEEK_SET) == 7);
    of_memfd = map(PROT_READ | PROT_WRITE, MAP_SHARED, memfd);
    strcpy(of_memfd, "content");
    sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
    CHECK(sealed >= 0 && write(sealed, "for good", 8) == 8);
    CHECK(fcntl(sealed, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) == 0);
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", sealed);
    reader = open(path, O_RDONLY);
    CHECK(reader >= 0);
}

static void set_up(void) {
    static const char *const devices[] = {"/dev/null", "/dev/zero", "/dev/full", "/dev/urandom"};
    first = filled("shared", O_RDWR | O_CLOEXEC);
    same = dup(first);
    other = open("shared", O_RDONLY | O_NOATIME | O_NONBLOCK);
    CHECK(same >= 0 && other >= 0 && lseek(first, 5, SEEK_SET) == 5 && lseek(other, 11, SEEK_SET) == 11);
    CHECK(dup2(same, 300) == 300);
    appended = filled("appended", O_RDWR | O_APPEND);
    synchronous = filled("synchronous", O_RDWR | O_DSYNC);
    holes = open("holes", O_RDWR | O_CREAT, 0600);
    CHECK(ftruncate(holes, 1 << 20) == 0 && pwrite(holes, "x", 1, 1 << 19) == 1 && unlink("holes") == 0);
    set_up_names();
    set_up_locks();
    set_up_memory();
    for (int i = 0; i < 4; i++) CHECK((device[i] = open(devices[i], O_RDWR)) >= 0);
    CHECK(fstat(first, &at_first[0]) == 0 && fstat(unlinked, &at_first[1]) == 0);
    touched[0] = at_first[0].st_mtim;
    CHECK(mkdir("here", 0700) == 0 && chdir("here") == 0 && rmdir("../here") == 0);
}

/* "yes" if there is just this at an offset. */
static void content(const char *object, int file, off_t offset, const char *text) {
    char bytes[64] = {0};
    ssize_t got = pread(file, bytes, strlen(text), offset);
    holds(object, "content", got == (ssize_t)strlen(text) && strcmp(bytes, text) == 0);
}

static void look_at_descriptors(void) {
    struct stat now;
    note("open file", "offset", "%ld", (long)lseek(first, 0, SEEK_CUR));
    note("open file", "access mode", "%d", fcntl(other, F_GETFL) & O_ACCMODE);
    holds("open file", "O_APPEND", fcntl(appended, F_GETFL) & O_APPEND);
    holds("open file", "O_DSYNC", fcntl(synchronous, F_GETFL) & O_DSYNC);
    holds("open file", "O_NOATIME", fcntl(other, F_GETFL) & O_NOATIME);
    holds("open file", "O_NONBLOCK", fcntl(other, F_GETFL) & O_NONBLOCK);
    content("open file", first, 3, "defg");
    CHECK(fstat(first, &now) == 0);
    holds("open file", "time of its last change", memcmp(&now.st_mtim, &touched[0], sizeof touched[0]) == 0);
    holds("open file", "inode", now.st_ino == at_first[0].st_ino);
    note("open file", "owner for signals (F_SETOWN)", "%s", fcntl(signalled, F_GETOWN) == getpid() ? "itself" : "none");
    holds("open file", "owner, by F_GETOWN itself", syscall(SYS_fcntl, signalled, F_GETOWN) == getpid());
    note("open file", "signal of its own (F_SETSIG)", "SIGRTMIN + %d", fcntl(signalled, F_GETSIG) - SIGRTMIN);
    int lease = fcntl(leased, F_GETLEASE);
    note("open file", "lease", "%s", lease == F_RDLCK ? "for reading" : lease == F_UNLCK ? "none" : strerrorname_np(errno));
    instead("none", "others may have opened the file since");
    absent(no_leases);
    holds("descriptor", "number", fcntl(300, F_GETFD) == 0);
    holds("descriptor", "close-on-exec", fcntl(first, F_GETFD) == FD_CLOEXEC && fcntl(same, F_GETFD) == 0);
    off_t at = lseek(first, 1, SEEK_CUR);
    holds("descriptor", "shares its file with another (dup)", lseek(same, 0, SEEK_CUR) == at && lseek(300, 0, SEEK_CUR) == at);
    CHECK(lseek(first, -1, SEEK_CUR) == at - 1);
    note("descriptor", "of a second opening: offset", "%ld", (long)lseek(other, 0, SEEK_CUR));
}

static void look_at_names(void) {
    struct stat now;
    content("file that was unlinked", unlinked, 3, "defg");
    CHECK(fstat(unlinked, &now) == 0);
    note("file that was unlinked", "size, offset", "%ld, %ld", (long)now.st_size, (long)lseek(unlinked, 0, SEEK_CUR));
    note("file that was unlinked", "number of names", "%ld", (long)now.st_nlink);
    instead("1", "it has a name in the region from the first failure on");
    content("file that another was renamed over", replaced, 3, "defg");
    content("file that was renamed", renamed, 3, "defg");
    content("file without a name (O_TMPFILE)", nameless, 0, "nameless");
    CHECK(fstat(nameless, &now) == 0);
    note("file without a name (O_TMPFILE)", "mode", "%o", (unsigned)now.st_mode & 07777);
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", nameless);
    /* Once only: the kernel takes it for one that was unlinked then. */
    int named = looks == 0 ? 0 : linkat(AT_FDCWD, path, directory, "named", AT_SYMLINK_FOLLOW);
    note("file without a name (O_TMPFILE)", "can be given one", "%s", named == 0 ? "yes" : strerrorname_np(errno));
    instead("EXDEV", "its content is in the region, if that is on another file system");
    content("file that may not be opened again (mode 0)", forbidden, 3, "defg");
    holds("file with holes", "holes", lseek(holes, 0, SEEK_DATA) > PAGE && lseek(holes, 1 << 19, SEEK_HOLE) < 1 << 20);
    char byte;
    CHECK(fstat(path_only, &now) == 0);
    holds("O_PATH", "file", now.st_ino == at_first[0].st_ino && read(path_only, &byte, 1) == -1 && errno == EBADF);
    CHECK(fstat(link_only, &now) == 0);
    holds("O_PATH", "symbolic link", S_ISLNK(now.st_mode));
    CHECK(fstat(removed, &now) == 0);
    holds("directory that was removed", "open", S_ISDIR(now.st_mode) && mkdirat(removed, "x", 0700) == -1 && errno == ENOENT);
    char *where = getcwd(NULL, 0);
    note("directory that was removed", "as working directory", "%s", where ? "there" : strerrorname_np(errno));
    free(where);
}

/* Half of a listing before the look, half behind it: each entry once. */
static void look_at_listing(void) {
    char room[512];
    if (looks == 0) CHECK((listed = syscall(SYS_getdents64, directory, room, sizeof room)) > 0);
    off_t position = lseek(directory, 0, SEEK_CUR);
    int entries = 0;
    for (long got; (got = syscall(SYS_getdents64, directory, room, sizeof room)) > 0;)
        for (long at = 0; at < got; at += *(unsigned short *)(room + at + 16))
            entries += strncmp(room + at + 19, "entry-", 6) == 0;
    note("directory", "entries behind a position in its listing", "%d", entries);
    CHECK(lseek(directory, position, SEEK_SET) == position);
}

static void look_at_locks(void) {
    struct flock found = range(F_WRLCK, 3, 1);
    int free = flock(rival, LOCK_SH | LOCK_NB);
    holds("lock", "of a whole file (flock)", free == -1 && errno == EWOULDBLOCK);
    CHECK(fcntl(rival, F_OFD_GETLK, &found) == 0);
    note("lock", "of bytes, the process' (F_SETLK)", "%d from %ld, %ld bytes", found.l_type, (long)found.l_start, (long)found.l_len);
    found = range(F_WRLCK, 30, 1);
    CHECK(fcntl(rival, F_OFD_GETLK, &found) == 0);
    note("lock", "of bytes, the open file's (F_OFD_SETLK)", "%d from %ld", found.l_type, (long)found.l_start);
}

static void look_at_memory(void) {
    struct stat now;
    holds("memory of a file", "shared", strcmp(shared + PAGE, "by memory") == 0);
    int file = openat(directory, "../mapped", O_RDONLY);
    char bytes[16] = {0};
    CHECK(file >= 0 && pread(file, bytes, 9, PAGE) == 9 && close(file) == 0);
    holds("memory of a file", "in the file", strcmp(bytes, "by memory") == 0);
    holds("memory of a file", "private, changed", strcmp(private, "private") == 0);
    note("memory of a file", "private: sees what others write later", "%s", strcmp(private + PAGE, "by memory") ? "no" : "yes");
    because("it is a copy from the beginning (mmap(2) leaves that open)");
    holds("memory of a file", "of one that was unlinked", strcmp(of_unlinked + PAGE, "without a name") == 0);
    holds("memory of no file", "shared", strcmp(anonymous, "shared") == 0);
    holds("memfd", "content", strcmp(of_memfd, "content") == 0);
    of_memfd[100] = (char)('0' + looks);
    CHECK(pread(memfd, bytes, 1, 100) == 1);
    holds("memfd", "is its mapping", bytes[0] == '0' + looks);
    CHECK(fstat(memfd, &now) == 0);
    note("memfd", "size, offset", "%ld, %ld", (long)now.st_size, (long)lseek(memfd, 0, SEEK_CUR));
    note("memfd", "seals of one that is not mapped", "%#x", (unsigned)fcntl(sealed, F_GET_SEALS));
    holds("memfd", "opened again for reading", pread(reader, bytes, 8, 0) == 8 && memcmp(bytes, "for good", 8) == 0);
    char path[32], name[64] = {0};
    snprintf(path, sizeof path, "/proc/self/fd/%d", memfd);
    CHECK(readlink(path, name, sizeof name - 1) > 0);
    note("memfd", "name in /proc", "%s", strstr(name, "memfd:memfd") != NULL ? "its own" : "a file of the region");
    instead("a file of the region", "a memfd that is mapped comes back as a file, which can be shared");
}

static void look_at_devices(void) {
    char byte = 1;
    holds("device", "/dev/null", read(device[0], &byte, 1) == 0 && write(device[0], &byte, 1) == 1);
    holds("device", "/dev/zero", read(device[1], &byte, 1) == 1 && byte == 0);
    holds("device", "/dev/full", write(device[2], &byte, 1) == -1 && errno == ENOSPC);
    holds("device", "/dev/urandom", read(device[3], &byte, 1) == 1);
    int file = open("/proc/self/status", O_RDONLY);
    holds("file of /proc", "can be read", file >= 0 && read(file, &byte, 1) == 1 && byte == 'N');
    CHECK(close(file) == 0);
}

static void look(void) {
    look_at_descriptors();
    look_at_names();
    look_at_listing();
    look_at_locks();
    look_at_memory();
    look_at_devices();
}

int main(int count, char **values) { return keep(count, values, set_up, look); }
