/* System calls with arguments at random, valid and invalid, and what came of each: result, errno, and what was written
 * to memory. The same seed makes the same calls wherever it runs, so two runs can be compared line by line.
 *
 * differ [SEED] [CALLS] */
#include "guest.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/uio.h>

/* Kinds of arguments. */
enum kind {
    NONE,    /* 0, as all that follow */
    NOTHING, /* 0 */
    FD,      /* a descriptor: open, closed, absurd */
    OUT,     /* memory to be written to: good, too short before an end, read-only, absurd */
    IN,      /* memory to be read from */
    PATH,    /* a name: there, missing, too long, absurd */
    SIZE,    /* a length */
    SMALL,   /* a small number */
    FLAGS,   /* any bits */
    PLACE,   /* an address in the arena, mostly on a page's beginning */
    LENGTH,  /* bytes of the arena */
    PROT,    /* PROT_* */
    MAP,     /* MAP_* with a fixed address in the arena */
    ADVICE,  /* MADV_* */
    SIGNAL,  /* a signal's number */
    EIGHT,   /* the size of a signal set, mostly */
    ZERO,    /* 0, mostly */
    WHENCE,
    FCNTL,
    LEVEL,
    OPTION,
    MODE,
    CLOCK,
    RESOURCE,
    OFFSET,
    DIRECTORY, /* AT_FDCWD, mostly */
    OPEN,      /* O_* */
    REMAP,     /* MREMAP_* */
};

/* What is compared beside the error. */
enum { NUMBER = 1, MEMORY = 2, ADDRESS = 4, BOTH = NUMBER | MEMORY };

static const struct call {
    const char *name;
    int number, compared;
    enum kind kinds[6];
} calls[] = {
    {"read", SYS_read, BOTH, {FD, OUT, SIZE}},
    {"write", SYS_write, NUMBER, {FD, IN, SIZE}},
    {"openat", SYS_openat, NUMBER, {DIRECTORY, PATH, OPEN, MODE}},
    {"open", SYS_open, NUMBER, {PATH, OPEN, MODE}},
    {"close", SYS_close, NUMBER, {FD}},
    {"fstat", SYS_fstat, NUMBER, {FD, OUT}},
    {"stat", SYS_stat, NUMBER, {PATH, OUT}},
    {"lstat", SYS_lstat, NUMBER, {PATH, OUT}},
    {"newfstatat", SYS_newfstatat, NUMBER, {DIRECTORY, PATH, OUT, FLAGS}},
    {"statx", SYS_statx, NUMBER, {DIRECTORY, PATH, SMALL, SMALL, OUT}},
    {"poll", SYS_poll, BOTH, {OUT, SMALL}},
    {"lseek", SYS_lseek, NUMBER, {FD, OFFSET, WHENCE}},
    {"mmap", SYS_mmap, ADDRESS, {PLACE, LENGTH, PROT, MAP, FD, OFFSET}},
    {"mmap", SYS_mmap, ADDRESS, {PLACE, LENGTH, PROT, MAP, FD, ZERO}},
    {"munmap", SYS_munmap, NUMBER, {PLACE, LENGTH}},
    {"mprotect", SYS_mprotect, NUMBER, {PLACE, LENGTH, PROT}},
    {"madvise", SYS_madvise, NUMBER, {PLACE, LENGTH, ADVICE}},
    {"msync", SYS_msync, NUMBER, {PLACE, LENGTH, SMALL}},
    {"mincore", SYS_mincore, NUMBER, {PLACE, LENGTH, OUT}},
    /* Where a mapping moves to is the system's choice. */
    {"mremap", SYS_mremap, 0, {PLACE, LENGTH, LENGTH, REMAP, PLACE}},
    {"rt_sigaction", SYS_rt_sigaction, NUMBER, {SIGNAL, ZERO, OUT, EIGHT}},
    {"rt_sigprocmask", SYS_rt_sigprocmask, BOTH, {SMALL, ZERO, OUT, EIGHT}},
    {"rt_sigpending", SYS_rt_sigpending, BOTH, {OUT, EIGHT}},
    {"sigaltstack", SYS_sigaltstack, NUMBER, {IN, OUT}},
    {"ioctl", SYS_ioctl, NUMBER, {FD, FLAGS, OUT}},
    {"pread64", SYS_pread64, BOTH, {FD, OUT, SIZE, OFFSET}},
    {"pwrite64", SYS_pwrite64, NUMBER, {FD, IN, SIZE, OFFSET}},
    {"readv", SYS_readv, NUMBER, {FD, IN, SMALL}},
    {"writev", SYS_writev, NUMBER, {FD, IN, SMALL}},
    {"access", SYS_access, NUMBER, {PATH, SMALL}},
    {"pipe", SYS_pipe, BOTH, {OUT}},
    {"pipe2", SYS_pipe2, BOTH, {OUT, FLAGS}},
    {"select", SYS_select, BOTH, {SMALL, OUT, ZERO, ZERO, IN}},
    {"dup", SYS_dup, NUMBER, {FD}},
    {"dup2", SYS_dup2, NUMBER, {FD, FD}},
    {"dup3", SYS_dup3, NUMBER, {FD, FD, FLAGS}},
    {"getitimer", SYS_getitimer, BOTH, {SMALL, OUT}},
    {"setitimer", SYS_setitimer, BOTH, {SMALL, ZERO, OUT}},
    {"socket", SYS_socket, NUMBER, {SMALL, SMALL, ZERO}},
    {"socketpair", SYS_socketpair, BOTH, {SMALL, SMALL, ZERO, OUT}},
    {"connect", SYS_connect, NUMBER, {FD, ZERO, SIZE}},
    {"accept4", SYS_accept4, NUMBER, {FD, OUT, IN, FLAGS}},
    {"listen", SYS_listen, NUMBER, {FD, SMALL}},
    {"getsockname", SYS_getsockname, NUMBER, {FD, OUT, IN}},
    {"getpeername", SYS_getpeername, NUMBER, {FD, OUT, IN}},
    {"setsockopt", SYS_setsockopt, NUMBER, {FD, LEVEL, OPTION, IN, SIZE}},
    {"getsockopt", SYS_getsockopt, NUMBER, {FD, LEVEL, OPTION, OUT, IN}},
    {"shutdown", SYS_shutdown, NUMBER, {FD, SMALL}},
    {"sendto", SYS_sendto, NUMBER, {FD, IN, SIZE, FLAGS, ZERO, ZERO}},
    {"fcntl", SYS_fcntl, NUMBER, {FD, FCNTL, SMALL}},
    {"fsync", SYS_fsync, NUMBER, {FD}},
    {"truncate", SYS_truncate, NUMBER, {PATH, OFFSET}},
    {"ftruncate", SYS_ftruncate, NUMBER, {FD, OFFSET}},
    {"getdents64", SYS_getdents64, NUMBER, {FD, ZERO, SIZE}},
    {"getcwd", SYS_getcwd, NUMBER, {OUT, SIZE}},
    {"rename", SYS_rename, NUMBER, {PATH, PATH}},
    {"mkdir", SYS_mkdir, NUMBER, {PATH, MODE}},
    {"rmdir", SYS_rmdir, NUMBER, {PATH}},
    {"link", SYS_link, NUMBER, {PATH, PATH}},
    {"unlink", SYS_unlink, NUMBER, {PATH}},
    {"symlink", SYS_symlink, NUMBER, {PATH, PATH}},
    {"readlink", SYS_readlink, BOTH, {PATH, OUT, SIZE}},
    {"umask", SYS_umask, NUMBER, {MODE}},
    {"getrlimit", SYS_getrlimit, NUMBER, {RESOURCE, OUT}},
    {"prlimit64", SYS_prlimit64, NUMBER, {NOTHING, RESOURCE, NOTHING, OUT}},
    {"getrusage", SYS_getrusage, NUMBER, {SMALL, OUT}},
    {"getresuid", SYS_getresuid, BOTH, {OUT, OUT, OUT}},
    {"getgroups", SYS_getgroups, BOTH, {SMALL, OUT}},
    {"getpriority", SYS_getpriority, NUMBER, {NONE}},
    {"sched_getscheduler", SYS_sched_getscheduler, NUMBER, {NONE}},
    {"sched_getparam", SYS_sched_getparam, BOTH, {NOTHING, OUT}},
    {"sched_getaffinity", SYS_sched_getaffinity, BOTH, {NOTHING, SIZE, OUT}},
    {"futex", SYS_futex, NUMBER, {IN, SMALL, SMALL, ZERO, ZERO, SMALL}},
    {"epoll_create1", SYS_epoll_create1, NUMBER, {FLAGS}},
    {"epoll_ctl", SYS_epoll_ctl, NUMBER, {FD, SMALL, FD, IN}},
    {"epoll_wait", SYS_epoll_wait, NUMBER, {FD, OUT, SMALL}},
    {"clock_gettime", SYS_clock_gettime, 0, {CLOCK, OUT}},
    {"clock_getres", SYS_clock_getres, BOTH, {CLOCK, OUT}},
    {"clock_nanosleep", SYS_clock_nanosleep, NUMBER, {CLOCK, ZERO, ZERO, OUT}},
    {"eventfd2", SYS_eventfd2, NUMBER, {SMALL, FLAGS}},
    {"timerfd_create", SYS_timerfd_create, NUMBER, {CLOCK, FLAGS}},
    {"timerfd_gettime", SYS_timerfd_gettime, BOTH, {FD, OUT}},
    {"signalfd4", SYS_signalfd4, NUMBER, {FD, IN, EIGHT, FLAGS}},
    {"inotify_init1", SYS_inotify_init1, NUMBER, {FLAGS}},
    {"memfd_create", SYS_memfd_create, NUMBER, {PATH, NONE}},
    {"getrandom", SYS_getrandom, NUMBER, {OUT, SIZE, FLAGS}},
    {"membarrier", SYS_membarrier, NUMBER, {SMALL, ZERO}},
    {"kill", SYS_kill, NUMBER, {NOTHING, NONE}},
    {"wait4", SYS_wait4, NUMBER, {SMALL, OUT, FLAGS}},
    {"waitid", SYS_waitid, NUMBER, {SMALL, ZERO, OUT, FLAGS, ZERO}},
    {"get_robust_list", SYS_get_robust_list, NUMBER, {NOTHING, OUT, OUT}},
    {"set_robust_list", SYS_set_robust_list, NUMBER, {ZERO, SIZE}},
    {"prctl", SYS_prctl, NUMBER, {SMALL, ZERO, ZERO, ZERO, ZERO}},
    {"fallocate", SYS_fallocate, NUMBER, {FD, SMALL, OFFSET, OFFSET}},
    {"fadvise64", SYS_fadvise64, NUMBER, {FD, OFFSET, SIZE, SMALL}},
    {"preadv", SYS_preadv, NUMBER, {FD, IN, SMALL, OFFSET, ZERO}},
    {"faccessat", SYS_faccessat, NUMBER, {DIRECTORY, PATH, SMALL}},
    {"mkdirat", SYS_mkdirat, NUMBER, {DIRECTORY, PATH, MODE}},
    {"unlinkat", SYS_unlinkat, NUMBER, {DIRECTORY, PATH, FLAGS}},
    {"fchmod", SYS_fchmod, NUMBER, {FD, MODE}},
    {"sync_file_range", SYS_sync_file_range, NUMBER, {FD, OFFSET, OFFSET, SMALL}},
    {"splice", SYS_splice, NUMBER, {FD, ZERO, FD, ZERO, SMALL, SMALL}},
    {"tee", SYS_tee, NUMBER, {FD, FD, SMALL, SMALL}},
    {"sendfile", SYS_sendfile, NUMBER, {FD, FD, ZERO, SMALL}},
    {"copy_file_range", SYS_copy_file_range, NUMBER, {FD, ZERO, FD, ZERO, SIZE, SMALL}},
};

enum { PAGE = 4096, ARENA = 64 * PAGE, BUFFER = 4 * PAGE };
static char *arena, *buffer, *readonly;
static uint64_t state;
static char names[6][64] = {"file", "missing", "dir", "dir/inner", "link", ""};
static char long_name[5000];

static uint64_t below(uint64_t limit) { return next_random(&state) % limit; }

static uint64_t choose(const uint64_t *values, int count) { return values[below((uint64_t)count)]; }
#define ONE_OF(...) choose((const uint64_t[]){__VA_ARGS__}, sizeof((uint64_t[]){__VA_ARGS__}) / 8)

static uint64_t memory(int out) {
    switch (below(12)) {
    case 0: return 0;
    case 1: return ONE_OF(1, 0x10, ~0ull, 0x800000000000ull, 0xffffffff81000000ull);
    case 2: return (uint64_t)buffer + BUFFER - below(24); /* nothing is mapped behind it */
    case 3: return out ? (uint64_t)readonly : (uint64_t)buffer + below(64);
    default: return (uint64_t)buffer + 64 * below(8);
    }
}

static uint64_t argument_of(enum kind kind) {
    switch (kind) {
    case NONE:
    case NOTHING: return 0;
    case FD: return below(4) ? 3 + below(24) : ONE_OF(-1ull, 77, 0x7fffffff, 100000, 0, 200);
    case OUT: return memory(1);
    case IN: return memory(0);
    case PATH: return below(8) ? (uint64_t)names[below(6)] : ONE_OF(0, 1, (uint64_t)long_name);
    case SIZE: return ONE_OF(0, 1, 7, 8, 16, 64, 128, 4096, 3 * PAGE, -1ull, 1ull << 62);
    case SMALL: return below(8) ? below(12) : ONE_OF(-1ull, 64, 1 << 20, 0x7fffffff);
    case FLAGS: return below(3) ? ONE_OF(0, 0x800, 0x80000, 1, 2, 4, 0x40) : next_random(&state) & 0xffffffff;
    case PLACE: return (uint64_t)arena + below(ARENA / PAGE + 2) * PAGE + (below(10) ? 0 : below(PAGE));
    case LENGTH: return below(6) ? (1 + below(9)) * PAGE : ONE_OF(0, 1, PAGE + 1, -1ull, 1ull << 46);
    case PROT: return below(8) ? ONE_OF(0, 1, 3, 3, 3, 5, 7) : below(16);
    case MAP: return MAP_FIXED | (below(6) ? ONE_OF(0x22, 0x22, 0x21, 0x02, 0x01, 0x4022, 0x100022) : below(0x30));
    case ADVICE: return below(8) ? below(26) : ONE_OF(100, 101, -1ull);
    case SIGNAL: return below(6) ? 1 + below(66) : ONE_OF(0, -1ull, 1000);
    case EIGHT: return below(10) ? 8 : below(20);
    case ZERO: return below(12) ? 0 : memory(1);
    /* Not where holes are: reading may fill them. */
    case WHENCE: return ONE_OF(0, 1, 2, 5, 6, -1ull);
    case FCNTL: return ONE_OF(1, 2, 3, 1030, 1032, 4, 9, 1033, 1034, 5000, 11, 0, 1025);
    case LEVEL: return ONE_OF(1, 0, 6, 17, 41, 300);
    case OPTION: return below(60);
    case MODE: return below(01000);
    case CLOCK: return below(14);
    case RESOURCE: return below(18);
    case OFFSET: return below(6) ? below(3) * PAGE + below(2) * 100 : ONE_OF(-1ull, 1ull << 62, 1ull << 33);
    case DIRECTORY: return below(4) ? (uint64_t)AT_FDCWD : 3 + below(20);
    case OPEN:
        return ONE_OF(0, 1, 2, O_CREAT | 2, O_CREAT | O_EXCL | 1, O_DIRECTORY, O_PATH, O_TRUNC | 2, O_APPEND | 1);
    case REMAP: return ONE_OF(0, 1, 1, 1, 3, 4, 5, 7, 8);
    }
    return 0;
}

/* What a call may do to this process that the two runs need not have in common. */
static int harmful(const struct call *call, const uint64_t *a) {
    int number = call->number;
    if ((number == SYS_close || number == SYS_dup2 || number == SYS_dup3) && (int)a[number == SYS_close ? 0 : 1] < 3)
        return 1;
    /* Waiting for ever. */
    if (number == SYS_futex && (a[1] & 127) != FUTEX_WAKE) return 1;
    if ((number == SYS_read || number == SYS_readv || number == SYS_preadv) && (int)a[0] < 3) return 1;
    if ((number == SYS_write || number == SYS_writev || number == SYS_pwrite64) && (int)a[0] < 3) return 1;
    if ((number == SYS_select && a[4] == 0) || number == SYS_connect) return 1;
    /* How much of a set is looked at depends on how large the kernel's table has ever been (selects.c). */
    if (number == SYS_select && (int)a[0] > 64 && a[1] - (uint64_t)buffer - BUFFER + 24 <= 24) return 1;
    if ((number == SYS_clock_nanosleep || number == SYS_accept4)) return 1;
    if ((number == SYS_wait4 || number == SYS_waitid) && !(a[number == SYS_wait4 ? 2 : 3] & 1)) return 1;
    if (number == SYS_setitimer && a[1]) return 1;
    if (number == SYS_prctl && (a[0] == 0 || a[0] == PR_SET_PDEATHSIG || a[0] == PR_SET_DUMPABLE)) return 1;
    if (number == SYS_fcntl && (a[1] == F_SETFL)) return 1;
    /* Large files, and what depends on the free memory. */
    if (number == SYS_ftruncate || number == SYS_truncate || number == SYS_fallocate)
        return (int64_t)a[1] > 1 << 20 || (int64_t)a[2] > 1 << 20 || (int64_t)a[3] > 1 << 20;
    if (number == SYS_sendfile && a[3] > 1 << 16) return 1;
    if (number == SYS_pwrite64 && (int64_t)a[3] > 1 << 20) return 1;
    /* MAP_DROPPABLE is refused. */
    if (number == SYS_mmap && (a[3] & 15) > 3) return 1;
    /* Rounded by the size of huge pages, if it is such a file. */
    if (number == SYS_mmap && !(a[3] & MAP_ANONYMOUS) && a[1] == -1ull) return 1;
    if (number == SYS_sigaltstack && a[0] != 0) return 1;
    if (number == SYS_ioctl && (a[1] & 0xff00) == 0x5400) return 1;
    if (number == SYS_madvise && (a[2] == 14 || a[2] == 15 || a[2] >= 100 || (a[2] >= 20 && a[2] != 24))) return 1;
    if (number == SYS_madvise && a[1] > 1ull << 40 && a[1] < 1ull << 63) return 1;
    /* Advice that splits the kernel's mappings, which shows only in that mremap will not move two at once. */
    if (number == SYS_madvise && (a[2] == 1 || a[2] == 2 || a[2] == 16 || a[2] == 17)) return 1;
    /* Growing and moving depend on which mappings the kernel has merged, and newer ones (6.17) move several at once;
     * what moves to where the system likes is seen by what follows. */
    if (number == SYS_mremap && (a[1] == 0 || a[1] > 1ull << 40)) return 1;
    if (number == SYS_mremap) return a[3] & 2 ? a[1] > PAGE : a[2] + PAGE - 1 > a[1] || (a[3] & 4);
    if (number == SYS_munmap || number == SYS_mprotect || number == SYS_mremap || number == SYS_mmap)
        return a[0] + a[1] > (uint64_t)arena + ARENA && a[1] < 1ull << 47;
    return 0;
}

static uint64_t digest(const char *from, size_t bytes) {
    uint64_t sum = 7;
    for (size_t i = 0; i < bytes; i += 8) sum = mix(sum, *(const uint64_t *)(from + i));
    return sum;
}

/* Whether descriptors would wait: all that may are made not to. */
static void never_wait(void) {
    for (int fd = 3; fd < 40; fd++) {
        int flags = fcntl(fd, F_GETFL);
        if (flags >= 0 && !(flags & O_NONBLOCK)) fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    }
}

static void set_up(void) {
    buffer = mmap(NULL, BUFFER + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    readonly = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    arena = mmap(NULL, ARENA + 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(buffer != MAP_FAILED && readonly != MAP_FAILED && arena != MAP_FAILED);
    CHECK(munmap(buffer + BUFFER, PAGE) == 0);
    memset(long_name, 'x', sizeof long_name - 1);
    /* Descriptions of its own: others may be shared. */
    CHECK(close(0) == 0 && open("/dev/null", O_RDONLY) == 0);
    int file = open("file", O_RDWR | O_CREAT, 0600);
    CHECK(file == 3 && write(file, "content of the file", 19) == 19 && mkdir("dir", 0700) == 0);
    int pair[2], ends[2];
    CHECK(pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(epoll_create1(0) >= 0 && eventfd(3, 0) >= 0 && timerfd_create(CLOCK_MONOTONIC, 0) >= 0);
    CHECK(socket(AF_INET, SOCK_STREAM, 0) >= 0 && socket(AF_INET, SOCK_DGRAM, 0) >= 0 && open("dir", O_RDONLY) >= 0);
}

int main(int count, char **values) {
    state = (uint64_t)argument(count, values, 1, 1);
    long most = argument(count, values, 2, 20000);
    setvbuf(stdout, NULL, _IOLBF, 0);
    signal(SIGPIPE, SIG_IGN);
    set_up();
    sigset_t all, none;
    CHECK(sigfillset(&all) == 0 && sigemptyset(&none) == 0);
    int refused = 0;
    for (long done = 0; done < most; done++) {
        const struct call *call = &calls[below(sizeof calls / sizeof *calls)];
        uint64_t a[6];
        for (int i = 0; i < 6; i++) a[i] = argument_of(call->kinds[i]);
        if (harmful(call, a)) continue;
        never_wait();
        if (done % 64 == 0) {
            syscall(SYS_close_range, 40, ~0u, 0);
            signal(SIGPIPE, SIG_IGN);
        }
        /* A mapping that is refused may have taken what was there before, natively. */
        if (done % 64 == 0 || refused) {
            int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
            CHECK(mmap(arena, ARENA, PROT_NONE, flags, -1, 0) == arena);
        }
        memset(buffer, 0, BUFFER);
        /* As in a handler that blocks everything, the signals of faults among it. */
        if (below(2)) CHECK(sigprocmask(SIG_SETMASK, &all, NULL) == 0);
        long result = syscall(call->number, a[0], a[1], a[2], a[3], a[4], a[5]);
        int error = result == -1 ? errno : 0;
        CHECK(sigprocmask(SIG_SETMASK, &none, NULL) == 0);
        refused = error && call->number == SYS_mmap;
        printf("%ld %s", done, call->name);
        for (int i = 0; i < 6 && call->kinds[i] != NONE; i++) {
            uint64_t value = a[i];
            const char *base = "";
            if (value - (uint64_t)arena < ARENA + 16 * PAGE) value -= (uint64_t)arena, base = "arena+";
            else if (value - (uint64_t)buffer <= BUFFER) value -= (uint64_t)buffer, base = "buffer+";
            else if (value == (uint64_t)readonly) value = 0, base = "readonly+";
            else if (value - (uint64_t)names < sizeof names) value = (value - (uint64_t)names) / 64, base = "name+";
            else if (value == (uint64_t)long_name) value = 0, base = "long+";
            printf(" %s%#lx", base, (unsigned long)value);
        }
        if (error) printf(" = error %d", error);
        else if (call->compared & ADDRESS) printf(" = %d in the arena", (uint64_t)result - (uint64_t)arena < ARENA);
        else if (call->compared & NUMBER) printf(" = %ld", result);
        if (call->compared & MEMORY) printf(" %016lx", (unsigned long)digest(buffer, BUFFER));
        printf("\n");
    }
    return 0;
}
