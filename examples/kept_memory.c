/* What becomes of memory: content, protection, advice, and what else a mapping has. See kept.h. */
#include "kept.h"
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/uio.h>

enum { PAGE = 4096, PAGES = 8, BYTES = PAGES * PAGE, HUGE = 2 << 20 };
static char *plain, *none, *readable, *executable, *huge, *locked, *child_less, *wiped, *undumped, *mergeable, *growing;
static char *discarded, *released, *populated, *fixed, *heap, *keyed, *of_stack, *guarded;
static int guards, key, sealed, secret, is_hugetlb;
static int (*code)(void);
static int unknown[32];

#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL 102
#endif

static char *map(int prot, int flags) {
    char *at = mmap(NULL, BYTES, prot, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    CHECK(at != MAP_FAILED);
    strcpy(prot & PROT_WRITE ? at : (char[16]){0}, "content");
    return at;
}

static char *advised(int advice) {
    char *at = map(PROT_READ | PROT_WRITE, 0);
    unknown[advice] = madvise(at, BYTES, advice) != 0;
    return at;
}

static void set_up(void) {
    /* mov $42, %eax; ret */
    static const char answer[] = "\xb8\x2a\0\0\0\xc3";
    plain = map(PROT_READ | PROT_WRITE, 0);
    none = map(PROT_READ | PROT_WRITE, 0);
    readable = map(PROT_READ | PROT_WRITE, 0);
    executable = map(PROT_READ | PROT_WRITE, 0);
    memcpy(executable, answer, sizeof answer);
    CHECK(mprotect(none, BYTES, PROT_NONE) == 0 && mprotect(readable, PAGE, PROT_READ) == 0);
    CHECK(mprotect(executable, BYTES, PROT_READ | PROT_EXEC) == 0);
    code = (int (*)(void))executable;
    CHECK(mprotect(plain + 4 * PAGE, PAGE, PROT_NONE) == 0 && munmap(plain + 6 * PAGE, PAGE) == 0);
    huge = advised(MADV_HUGEPAGE);
    child_less = advised(MADV_DONTFORK);
    wiped = advised(MADV_WIPEONFORK);
    undumped = advised(MADV_DONTDUMP);
    mergeable = advised(MADV_MERGEABLE);
    discarded = advised(MADV_DONTNEED);
    released = advised(MADV_FREE);
    guarded = map(PROT_READ | PROT_WRITE, 0);
    guards = madvise(guarded + PAGE, PAGE, MADV_GUARD_INSTALL) == 0;
    locked = map(PROT_READ | PROT_WRITE, 0);
    CHECK(mlock(locked, PAGE) == 0);
    populated = map(PROT_READ | PROT_WRITE, MAP_POPULATE | MAP_NORESERVE);
    fixed = mmap((void *)0x123400000000, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    CHECK(fixed == (char *)0x123400000000);
    strcpy(fixed, "content");
    growing = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN | MAP_STACK, -1, 0);
    void *tables = mmap(NULL, HUGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1, 0);
    is_hugetlb = tables == MAP_FAILED ? -1 : 0;
    heap = sbrk(3 * PAGE);
    CHECK(heap != (void *)-1);
    strcpy(heap, "content");
    key = pkey_alloc(0, 0);
    keyed = map(PROT_READ | PROT_WRITE, 0);
    sealed = (int)syscall(462 /* mseal */, keyed, 0, 0);
    secret = (int)syscall(447 /* memfd_secret */, 0);
}

/* Whether a place can be read, or written: the kernel tries. */
static int can(const char *at, int write) {
    char byte[1] = {0};
    struct iovec here = {byte, 1}, there = {(void *)at, 1};
    int ends[2];
    if (!write) return process_vm_readv(getpid(), &here, 1, &there, 1, 0) == 1;
    CHECK(pipe(ends) == 0 && write != 0);
    ssize_t put = syscall(SYS_write, ends[1], "c", 1), got = read(ends[0], (void *)at, 1);
    CHECK(put == 1 && close(ends[0]) == 0 && close(ends[1]) == 0);
    return got == 1;
}

static int smaps_once(const char *at, const char *field, const char *wanted) {
    static char line[512];
    FILE *file = fopen("/proc/self/smaps", "r");
    unsigned long start, end;
    int inside = 0, found = 0;
    CHECK(file != NULL);
    while (!found && fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && strchr(line, '-') < strchr(line, ' '))
            inside = start <= (unsigned long)at && (unsigned long)at < end;
        else if (inside && strncmp(line, field, strlen(field)) == 0)
            found = strstr(line, wanted) != NULL;
    }
    CHECK(fclose(file) == 0);
    return found;
}

/* What the kernel says of the mapping of an address: a field of /proc/self/smaps. Between two reads of that a failure may
 * make another list of it. */
static int smaps(const char *at, const char *field, const char *wanted) {
    return smaps_once(at, field, wanted) || smaps_once(at, field, wanted);
}

static void look_at_content(void) {
    holds("memory", "content", strcmp(plain, "content") == 0 && strcmp(populated, "content") == 0);
    holds("memory", "address that the program has chosen", strcmp(fixed, "content") == 0);
    holds("memory", "zero where nobody has written", plain[PAGE] == 0 && plain[3 * PAGE] == 0);
    holds("memory", "given back (MADV_DONTNEED)", discarded[0] == 0);
    holds("memory", "may be taken (MADV_FREE)", released[0] == 0 || strcmp(released, "content") == 0);
    holds("memory", "heap (brk)", strcmp(heap, "content") == 0);
    /* Others of the C library may have taken more meanwhile. */
    char *end = sbrk(0);
    holds("memory", "heap can grow", sbrk(PAGE) == end && end[PAGE - 1] == 0 && sbrk(-PAGE) == end + PAGE);
    holds("memory", "stack", strcmp(of_stack, "content") == 0);
    holds("memory", "code that was written at run time", code() == 42);
}

static void look_at_protection(void) {
    holds("memory", "no access", !can(none, 0) && !can(plain + 4 * PAGE, 0));
    holds("memory", "read only", can(readable, 0) && !can(readable, 1) && can(readable + PAGE, 1));
    holds("memory", "hole in a mapping", !can(plain + 6 * PAGE, 0) && can(plain + 7 * PAGE, 1));
    note("memory", "guard pages (MADV_GUARD_INSTALL)", "%s", !guards ? "refused" : can(guarded + PAGE, 0) ? "no" : "yes");
    because("programs use mprotect(2) then");
}

static void look_at_advice(void) {
    pid_t child = fork();
    int status = -1;
    if (child == 0) _exit((can(child_less, 0) ? 1 : 0) | (wiped[0] != 0 ? 2 : 0));
    CHECK(child > 0);
    while (waitpid(child, &status, 0) != child) CHECK(errno == EINTR);
    int told = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    holds("memory", "not for children (MADV_DONTFORK)", !(told & 1));
    holds("memory", "empty in children (MADV_WIPEONFORK)", !(told & 2));
    note("memory", "not in a core file (MADV_DONTDUMP)", "%s", smaps(undumped, "VmFlags", " dd") ? "yes" : "no");
    note("memory", "locked (mlock)", "%s", smaps(locked, "VmFlags", " lo") ? "yes" : "no");
    note("memory", "same pages merged (MADV_MERGEABLE)", "%s", smaps(mergeable, "VmFlags", " mg") ? "yes" : "no");
    because("the kernel does that for private memory only");
    absent(unknown[MADV_MERGEABLE]);
    note("memory", "huge pages (MADV_HUGEPAGE)", "%s", smaps(huge, "VmFlags", " hg") ? "yes" : "no");
    absent(unknown[MADV_HUGEPAGE]);
}

static void look_at_the_rest(void) {
    note("memory", "that grows down (MAP_GROWSDOWN)", "%s", growing == MAP_FAILED ? "refused" : smaps(growing, "VmFlags", " gd") ? "yes" : "no");
    because("it does not grow: the first thread's stack has its room from the beginning");
    note("memory", "keys of protection (pkey_alloc)", "%s", key >= 0 ? "yes" : "refused");
    because(NULL);
    note("memory", "pages of hugetlbfs", "%s", is_hugetlb == 0 ? "yes" : "refused");
    because(NULL);
    note("memory", "sealed (mseal)", "%s", sealed == 0 ? "yes" : "refused");
    because(NULL);
    note("memory", "hidden (memfd_secret)", "%s", secret >= 0 ? "yes" : "refused");
    because(NULL);
}

static void look(void) {
    look_at_content();
    look_at_protection();
    look_at_advice();
    look_at_the_rest();
}

int main(int count, char **values) {
    char here[64] = "content";
    of_stack = here;
    return keep(count, values, set_up, look);
}
