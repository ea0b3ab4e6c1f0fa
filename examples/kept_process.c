/* What becomes of the attributes of a process: its ids, rights, limits, names, and its children. See kept.h. */
#include "kept.h"
#include <linux/capability.h>
#include <linux/ioprio.h>
#include <linux/mempolicy.h>
#include <linux/securebits.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/times.h>

static pid_t pid, parent, ended, living;
static uid_t user;
static cpu_set_t processors;
static int oom_score, niceness, no_policies, no_personality;
static const struct {
    const char *name;
    int which;
    rlim_t soft, hard;
} limits[] = {
    {"RLIMIT_CPU", RLIMIT_CPU, 4000, 5000}, {"RLIMIT_FSIZE", RLIMIT_FSIZE, 123 << 20, 456 << 20},
    {"RLIMIT_DATA", RLIMIT_DATA, 60l << 30, 70l << 30}, {"RLIMIT_STACK", RLIMIT_STACK, 7 << 20, 8 << 20},
    {"RLIMIT_CORE", RLIMIT_CORE, 0, 100}, {"RLIMIT_NPROC", RLIMIT_NPROC, 2000, 3000},
    {"RLIMIT_NOFILE", RLIMIT_NOFILE, 100, 200}, {"RLIMIT_MEMLOCK", RLIMIT_MEMLOCK, 4096, 8192},
    {"RLIMIT_SIGPENDING", RLIMIT_SIGPENDING, 500, 600}, {"RLIMIT_MSGQUEUE", RLIMIT_MSGQUEUE, 50, 60},
    {"RLIMIT_NICE", RLIMIT_NICE, 0, 0}, {"RLIMIT_RTPRIO", RLIMIT_RTPRIO, 0, 0},
    {"RLIMIT_RTTIME", RLIMIT_RTTIME, 1000000, 2000000}, {"RLIMIT_LOCKS", RLIMIT_LOCKS, 70, 80},
};
enum { LIMITS = sizeof limits / sizeof *limits };

/* The number behind a name in /proc/self/status, in the words of the kernel. */
static const char *status_of(const char *name) {
    static char line[256];
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL && strncmp(line, name, strlen(name)) != 0) line[0] = 0;
    CHECK(fclose(file) == 0);
    line[strcspn(line, "\n")] = 0;
    char *value = strchr(line, '\t');
    return value ? value + 1 : "?";
}

/* The first word of a file below /proc/self. */
static const char *word_of(const char *path) {
    static char word[64];
    int file = open(path, O_RDONLY);
    ssize_t got = file >= 0 ? read(file, word, sizeof word - 1) : -1;
    if (file >= 0) CHECK(close(file) == 0);
    word[got > 0 ? got : 0] = 0;
    word[strcspn(word, "\n ")] = 0;
    return word;
}

static void put(const char *path, const char *text) {
    int file = open(path, O_WRONLY);
    CHECK(file >= 0 && write(file, text, strlen(text)) == (ssize_t)strlen(text) && close(file) == 0);
}

static void set_up_rights(void) {
    struct sched_param param = {0};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_NAME, "a (name) here") == 0);
    CHECK(prctl(PR_SET_TIMERSLACK, 70000) == 0 && prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    CHECK(prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) == 0 && prctl(PR_SET_KEEPCAPS, 1) == 0);
    CHECK(prctl(PR_SET_PDEATHSIG, SIGURG) == 0 && prctl(PR_SET_TSC, PR_TSC_ENABLE) == 0);
    CHECK(prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0) == 0);
    no_personality = personality(ADDR_COMPAT_LAYOUT | (unsigned long)personality(0xffffffff)) < 0;
    CHECK(sched_setscheduler(0, SCHED_BATCH | SCHED_RESET_ON_FORK, &param) == 0);
    CHECK(syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 6)) == 0);
    unsigned long nodes = 1;
    no_policies = syscall(SYS_set_mempolicy, MPOL_PREFERRED, &nodes, 8) != 0;
    put("/proc/self/coredump_filter", "0x11");
    oom_score = atoi(word_of("/proc/self/oom_score_adj")) + 100;
    char text[16];
    snprintf(text, sizeof text, "%d", oom_score > 1000 ? oom_score = 1000 : oom_score);
    put("/proc/self/oom_score_adj", text);
}

static void set_up(void) {
    pid = getpid(), parent = getppid(), user = getuid();
    CHECK(mkdir("below", 0700) == 0 && chdir("below") == 0);
    umask(027);
    for (int i = 0; i < LIMITS; i++) {
        struct rlimit limit = {limits[i].soft, limits[i].hard}, now;
        CHECK(getrlimit(limits[i].which, &now) == 0);
        if (limit.rlim_max > now.rlim_max) limit = now;
        CHECK(setrlimit(limits[i].which, &limit) == 0);
    }
    niceness = getpriority(PRIO_PROCESS, 0) + 3 > 19 ? 19 : getpriority(PRIO_PROCESS, 0) + 3;
    CHECK(setpriority(PRIO_PROCESS, 0, niceness) == 0 && sched_getaffinity(0, sizeof processors, &processors) == 0);
    int first = 0;
    while (!CPU_ISSET(first, &processors)) first++;
    CPU_ZERO(&processors);
    CPU_SET(first, &processors);
    CHECK(sched_setaffinity(0, sizeof processors, &processors) == 0);
    set_up_rights();
    if ((ended = fork()) == 0) _exit(7);
    siginfo_t info;
    while (ended > 0 && waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT) != 0) CHECK(errno == EINTR);
    if ((living = fork()) == 0) {
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        pause();
        _exit(0);
    }
    CHECK(ended > 0 && living > 0 && prctl(PR_SET_DUMPABLE, 0) == 0);
}

static void look_at_ids(void) {
    char path[4096];
    holds("process", "id", getpid() == pid && syscall(SYS_gettid) == pid);
    holds("process", "id in /proc (/proc/self)", readlink("/proc/self", path, sizeof path) > 0 && atoi(path) == pid);
    instead("no", "/proc shows the kernel's ids");
    holds("process", "signals to its own id", kill(pid, 0) == 0);
    holds("process", "parent's id", getppid() == parent);
    uid_t real, effective, saved;
    CHECK(getresuid(&real, &effective, &saved) == 0);
    holds("process", "user and group ids", real == user && effective == user && saved == user);
    note("process", "supplementary groups", "%d", getgroups(0, NULL));
    note("process", "capabilities", "%s", status_of("CapEff:"));
    note("process", "capability bounding set", "%s", status_of("CapBnd:"));
    note("process", "securebits", "%#x", (unsigned)prctl(PR_GET_SECUREBITS));
    note("process", "no_new_privs", "%d", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
    note("process", "dumpable", "%d", prctl(PR_GET_DUMPABLE));
    note("process", "keeps capabilities (PR_SET_KEEPCAPS)", "%d", prctl(PR_GET_KEEPCAPS));
    holds("process", "root directory", readlink("/proc/self/root", path, sizeof path) == 1);
}

static void look_at_names(void) {
    char path[4096] = {0}, name[16];
    CHECK(getcwd(path, sizeof path) != NULL);
    note("process", "working directory", "%s", strrchr(path, '/'));
    mode_t mask = umask(0);
    umask(mask);
    note("process", "umask", "%03o", mask);
    CHECK(prctl(PR_GET_NAME, name) == 0);
    note("process", "name (comm)", "%s", name);
    ssize_t got = readlink("/proc/self/exe", path, sizeof path - 1);
    path[got > 0 ? got : 0] = 0;
    holds("process", "/proc/self/exe", strstr(path, "kept_process") != NULL);
    holds("process", "/proc/self/cmdline", strstr(word_of("/proc/self/cmdline"), "kept") != NULL || word_of("/proc/self/cmdline")[0] == '/');
    holds("process", "auxiliary vector", getauxval(AT_PAGESZ) == 4096 && getauxval(AT_SYSINFO_EHDR) != 0);
}

static void look_at_attributes(void) {
    cpu_set_t now;
    int on = -1;
    note("process", "niceness", "%d", getpriority(PRIO_PROCESS, 0) - niceness);
    CHECK(sched_getaffinity(0, sizeof now, &now) == 0);
    holds("process", "processors (affinity)", CPU_EQUAL(&now, &processors));
    note("process", "scheduler", "%#x", (unsigned)sched_getscheduler(0));
    note("process", "priority of its input and output (ioprio)", "%#lx", syscall(SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0));
    int mode = -1;
    long got = syscall(SYS_get_mempolicy, &mode, NULL, 0, NULL, 0);
    note("process", "memory policy", "%d", got == 0 ? mode : -errno);
    instead("0", "not kept yet");
    absent(no_policies);
    note("process", "personality", "%#x", (unsigned)personality(0xffffffff) & ADDR_COMPAT_LAYOUT);
    absent(no_personality);
    note("process", "timer slack", "%d", prctl(PR_GET_TIMERSLACK));
    CHECK(prctl(PR_GET_CHILD_SUBREAPER, &on) == 0);
    note("process", "child subreaper", "%d", on);
    CHECK(prctl(PR_GET_PDEATHSIG, &on) == 0);
    note("process", "signal at its parent's end (PR_SET_PDEATHSIG)", "%s", on == SIGURG ? "SIGURG" : "none");
    instead("none", "not kept yet");
    note("process", "no huge pages (PR_SET_THP_DISABLE)", "%d", prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    note("process", "memory errors (PR_MCE_KILL)", "%d", prctl(PR_MCE_KILL_GET, 0, 0, 0, 0));
    instead("2", "not kept yet");
    CHECK(prctl(PR_GET_TSC, &on) == 0);
    note("process", "time stamp counter (PR_SET_TSC)", "%d", on);
    note("process", "what a core file has (coredump_filter)", "%s", word_of("/proc/self/coredump_filter"));
    note("process", "oom_score_adj", "%d", atoi(word_of("/proc/self/oom_score_adj")) - oom_score);
    for (int i = 0; i < LIMITS; i++) {
        struct rlimit limit;
        CHECK(getrlimit(limits[i].which, &limit) == 0);
        note("limit", limits[i].name, "%ld, %ld", (long)limit.rlim_cur, (long)limit.rlim_max);
    }
}

/* Used so far: more than a moment ago, natively and otherwise. */
static void look_at_use(void) {
    static struct rusage before;
    struct rusage now;
    if (looks == 0)
        for (clock_t begin = clock(); clock() - begin < CLOCKS_PER_SEC / 20;)
            for (volatile int i = 0; i < 1000000; i++) continue;
    CHECK(getrusage(RUSAGE_SELF, &now) == 0);
    long used = now.ru_utime.tv_sec * 1000000 + now.ru_utime.tv_usec;
    long first = before.ru_utime.tv_sec * 1000000 + before.ru_utime.tv_usec;
    note("process", "processor time used (getrusage)", "%s", looks == 0 || used >= first ? "goes on" : "from zero");
    instead("from zero", "not kept yet");
    before = now;
    struct timespec time;
    static struct timespec earlier;
    CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time) == 0);
    int grows = looks == 0 || time.tv_sec > earlier.tv_sec || (time.tv_sec == earlier.tv_sec && time.tv_nsec >= earlier.tv_nsec);
    note("process", "processor time used (CLOCK_PROCESS_CPUTIME_ID)", "%s", grows ? "goes on" : "from zero");
    instead("from zero", "not kept yet");
    earlier = time;
}

static void look_at_children(void) {
    siginfo_t info = {0};
    int status = waitid(P_PID, (id_t)ended, &info, WEXITED | WNOWAIT);
    note("child", "that had ended, and was not waited for", "%s", status != 0            ? strerrorname_np(errno)
                                                                     : info.si_status == 7 ? "its status"
                                                                                           : "SIGPWR");
    instead("SIGPWR", "if it ends while power fails");
    info = (siginfo_t){0};
    status = waitid(P_PID, (id_t)living, &info, WEXITED | WNOWAIT | WNOHANG);
    note("child", "that was running", "%s", status != 0                   ? strerrorname_np(errno)
                                                : info.si_pid == 0         ? "runs"
                                                : info.si_status == SIGPWR ? "ended by SIGPWR"
                                                                           : "ended otherwise");
    instead("ended by SIGPWR", "children are volatile");
    if (looks == 1) kill(living, SIGKILL);
}

static void look(void) {
    look_at_ids();
    look_at_names();
    look_at_attributes();
    look_at_use();
    look_at_children();
}

int main(int count, char **values) { return keep(count, values, set_up, look); }
