/* Maps, remaps, protects, advises and unmaps at random, and agrees with a model of it after every step.
 *
 * The model knows of each page of a window whether it is mapped, how it is protected, what kind it is and what it
 * holds. Outside the window a few mappings float at addresses that the system chooses, and the heap's end moves. No
 * step's outcome depends on an address, so the digest of all outcomes is the same in every run with the same seed.
 * Nothing allocates once the window exists: what the program does not map must not be mapped.
 *
 * memory [STEPS] [SEED] */
#include "guest.h"
#include <setjmp.h>

enum { PAGE = 4096, PAGES = 2048, FLOATING = 48, FILE_PAGES = 64, LONGEST = 96 };
enum kind { HOLE, PRIVATE, OF_FILE, SHARED };
struct page { unsigned char kind, protection, file_page; uint64_t stamp; };
struct floating { char *at; long pages; uint64_t stamp; };

static char *window, *parking;
static struct page model[PAGES];
static struct floating floats[FLOATING];
static uint64_t seed, digest, stamps, heap_stamp;
static char *heap_start, *heap_end;
static int file, probe[2];
static sigjmp_buf on_fault;
static volatile sig_atomic_t expecting;

static long below(long limit) { return (long)(next_random(&seed) % (uint64_t)limit); }
static char *address(long page) { return window + page * PAGE; }
static void note(uint64_t outcome) { digest = mix(digest, outcome); }

/* A page is stamped at three words, the last ones at its very end. */
static void stamp(char *at, uint64_t value) {
    *(uint64_t *)at = value;
    *(uint64_t *)(at + 2040) = value ^ 1;
    *(uint64_t *)(at + PAGE - 8) = value ^ 2;
}

static int stamped(const char *at, uint64_t value) {
    uint64_t a, b, c, ones = value ? 1 : 0;
    memcpy(&a, at, 8);
    memcpy(&b, at + 2040, 8);
    memcpy(&c, at + PAGE - 8, 8);
    return a == value && b == (value ^ ones) && c == (value ^ (ones * 2));
}

static void faulted(int number, siginfo_t *info, void *context) {
    (void)number, (void)info, (void)context;
    if (!expecting) FAIL("unexpected fault at %p", info->si_addr);
    siglongjmp(on_fault, 1);
}

/* Whether touching the first word of the page faults. */
static int touch_faults(long page, int writing) {
    volatile uint64_t *word = (volatile uint64_t *)address(page);
    if (sigsetjmp(on_fault, 1) != 0) {
        expecting = 0;
        return 1;
    }
    expecting = 1;
    uint64_t value = *word;
    if (writing) *word = value;
    expecting = 0;
    return 0;
}

static void check_page(long page) {
    struct page *is = &model[page];
    int readable = is->kind != HOLE && is->protection != PROT_NONE, writable = is->protection == (PROT_READ | PROT_WRITE);
    unsigned char resident;
    int mapped = mincore(address(page), PAGE, &resident) == 0;
    if (mapped != (is->kind != HOLE)) FAIL("page %ld: mapped %d, kind %d", page, mapped, is->kind);
    if (readable) {
        if (!stamped(address(page), is->stamp))
            FAIL("page %ld of kind %d holds %#lx, not %#lx", page, is->kind, *(uint64_t *)address(page), is->stamp);
    } else if (below(4) == 0) {
        if (!touch_faults(page, 0)) FAIL("page %ld of kind %d can be read", page, is->kind);
        /* The kernel's own access says the same. */
        CHECK(write(probe[1], address(page), 8) == -1 && errno == EFAULT);
    }
    if (is->kind != HOLE && below(8) == 0 && touch_faults(page, 1) != !(readable && writable))
        FAIL("page %ld of kind %d and protection %d: wrong write access", page, is->kind, is->protection);
}

static void set_pages(long from, long pages, struct page as) {
    for (long i = 0; i < pages; i++, as.file_page++) {
        if (as.kind == OF_FILE) as.stamp = 0xf11e000000 + as.file_page * 16ull + 16;
        model[from + i] = as;
    }
}

/* Gives the writable pages among them new stamps. */
static void write_pages(long from, long pages) {
    for (long i = from; i < from + pages; i++)
        if (model[i].kind != HOLE && model[i].protection == (PROT_READ | PROT_WRITE) && below(3)) {
            model[i].stamp = (++stamps) << 2;
            stamp(address(i), model[i].stamp);
        }
}

static int some_protection(void) {
    static const int choices[8] = {PROT_NONE, PROT_READ, PROT_READ, 3, 3, 3, 3, 3};
    return choices[below(8)];
}

static void step_map(long from, long pages) {
    int protection = some_protection(), choice = (int)below(8);
    struct page as = {PRIVATE, (unsigned char)protection, 0, 0};
    int flags = MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, fd = -1;
    long offset = 0;
    if (choice == 0) {
        as.kind = SHARED;
        flags = MAP_FIXED | MAP_SHARED | MAP_ANONYMOUS;
    } else if (choice == 1) {
        if (pages > FILE_PAGES) pages = FILE_PAGES;
        as.kind = OF_FILE;
        as.file_page = (unsigned char)below(FILE_PAGES - pages + 1);
        flags = MAP_FIXED | MAP_PRIVATE;
        fd = file;
        offset = as.file_page * PAGE;
    }
    CHECK(mmap(address(from), (size_t)pages * PAGE, protection, flags, fd, offset) == address(from));
    set_pages(from, pages, as);
    write_pages(from, pages);
}

static void step_map_if_free(long from, long pages) {
    int taken = 0;
    for (long i = from; i < from + pages; i++) taken |= model[i].kind != HOLE;
    int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE;
    char *at = mmap(address(from), (size_t)pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0);
    note(at == MAP_FAILED);
    if (taken) {
        CHECK(at == MAP_FAILED && errno == EEXIST);
        return;
    }
    CHECK(at == address(from));
    set_pages(from, pages, (struct page){PRIVATE, PROT_READ | PROT_WRITE, 0, 0});
    write_pages(from, pages);
}

static void step_unmap(long from, long pages) {
    CHECK(munmap(address(from), (size_t)pages * PAGE) == 0);
    set_pages(from, pages, (struct page){HOLE, 0, 0, 0});
}

/* Up to a hole, mprotect takes effect; then it fails with ENOMEM. */
static void step_protect(long from, long pages) {
    int protection = some_protection(), hole = 0;
    int result = mprotect(address(from), (size_t)pages * PAGE, protection);
    for (long i = from; i < from + pages && !hole; i++) {
        hole = model[i].kind == HOLE;
        if (!hole) model[i].protection = (unsigned char)protection;
    }
    note((uint64_t)result);
    if (result != (hole ? -1 : 0)) FAIL("mprotect gave %d, hole %d", result, hole);
}

/* MADV_DONTNEED zeroes private anonymous memory, also behind a hole, over which it says ENOMEM. */
static void step_forget(long from, long pages) {
    int hole = 0;
    for (long i = from; i < from + pages; i++) {
        if (model[i].kind == OF_FILE || model[i].kind == SHARED) return;
        hole |= model[i].kind == HOLE;
    }
    int result = madvise(address(from), (size_t)pages * PAGE, MADV_DONTNEED);
    note((uint64_t)result);
    if (result != (hole ? -1 : 0)) FAIL("madvise gave %d, hole %d", result, hole);
    for (long i = from; i < from + pages; i++)
        if (model[i].kind == PRIVATE) model[i].stamp = 0;
}

/* One fresh mapping is moved to another place of the window, growing or shrinking. */
static void step_move(long from, long pages) {
    long larger = 1 + below(pages + 8), to = below(PAGES - LONGEST * 2);
    int source_length = (int)pages;
    if (to + larger > from && from + pages > to) return;
    CHECK(mmap(address(from), (size_t)pages * PAGE, 3, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == address(from));
    set_pages(from, pages, (struct page){PRIVATE, 3, 0, 0});
    write_pages(from, pages);
    char *at = mremap(address(from), (size_t)source_length * PAGE, (size_t)larger * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                      address(to));
    if (at != address(to)) FAIL("mremap gave %p", (void *)at);
    for (long i = 0; i < larger; i++)
        model[to + i] = i < pages ? model[from + i] : (struct page){PRIVATE, 3, 0, 0};
    set_pages(from, pages, (struct page){HOLE, 0, 0, 0});
}

/* Shrinks in place, and grows again where that is possible. */
static void step_resize(long from, long pages) {
    long smaller = 1 + below(pages);
    CHECK(mmap(address(from), (size_t)pages * PAGE, 3, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == address(from));
    set_pages(from, pages, (struct page){PRIVATE, 3, 0, 0});
    write_pages(from, pages);
    CHECK(mremap(address(from), (size_t)pages * PAGE, (size_t)smaller * PAGE, 0) == address(from));
    set_pages(from + smaller, pages - smaller, (struct page){HOLE, 0, 0, 0});
    if (smaller == pages) return;
    if (model[from + pages].kind != HOLE) {
        CHECK(mremap(address(from), (size_t)smaller * PAGE, (size_t)(pages + 1) * PAGE, 0) == MAP_FAILED);
        CHECK(errno == ENOMEM);
    }
    CHECK(mremap(address(from), (size_t)smaller * PAGE, (size_t)pages * PAGE, 0) == address(from));
    set_pages(from + smaller, pages - smaller, (struct page){PRIVATE, 3, 0, 0});
}

static void check_float(struct floating *is) {
    for (long i = 0; i < is->pages; i++)
        if (!stamped(is->at + i * PAGE, is->stamp ? is->stamp + (uint64_t)i * 4 : 0))
            FAIL("floating page %ld of %ld at %p", i, is->pages, (void *)is->at);
}

static void stamp_float(struct floating *is) {
    is->stamp = (stamps += 1 + (uint64_t)is->pages) << 2;
    for (long i = 0; i < is->pages; i++) stamp(is->at + i * PAGE, is->stamp + (uint64_t)i * 4);
}

/* A mapping wherever the system likes must not take what is in use, must be zero, and keeps its content when it moves. */
static void step_float(long pages) {
    struct floating *is = &floats[below(FLOATING)];
    if (is->at == NULL) {
        is->at = mmap(NULL, (size_t)pages * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(is->at != MAP_FAILED);
        is->pages = pages;
        is->stamp = 0;
        check_float(is);
        long page = (is->at - window) / PAGE;
        if (is->at + pages * PAGE > window && is->at < window + PAGES * PAGE) {
            for (long i = page; i < page + pages; i++)
                if (i >= 0 && i < PAGES) CHECK(model[i].kind == HOLE);
            /* Its place in the window must stay free for the model. */
            CHECK(munmap(is->at, (size_t)pages * PAGE) == 0);
            is->at = parking + (is - floats) * LONGEST * PAGE;
            CHECK(mmap(is->at, (size_t)pages * PAGE, 3, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == is->at);
        }
        stamp_float(is);
        return;
    }
    check_float(is);
    CHECK(munmap(is->at, (size_t)is->pages * PAGE) == 0);
    if (is->at >= parking && is->at < parking + FLOATING * LONGEST * PAGE)
        CHECK(mmap(is->at, (size_t)is->pages * PAGE, 0, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == is->at);
    is->at = NULL;
}

/* A mapping whose flags the kernel is to check, where it likes: those that it does not know are an error. */
static void step_validated(void) {
    long at = below(FILE_PAGES);
    char *page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE, file, at * PAGE);
    CHECK(page != MAP_FAILED && stamped(page, 0xf11e000000 + (uint64_t)at * 16 + 16));
    CHECK(munmap(page, PAGE) == 0);
    CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED_VALIDATE | 1 << 21, file, 0) == MAP_FAILED && errno == EOPNOTSUPP);
}

/* The heap's end moves; what comes back is zero. */
static void step_heap(long pages) {
    for (char *at = heap_start; at < heap_end; at += PAGE)
        CHECK(stamped(at, heap_stamp ? heap_stamp + (uint64_t)(at - heap_start) / PAGE * 4 : 0));
    char *end = heap_start + pages * PAGE;
    CHECK(brk(end) == 0 && sbrk(0) == end);
    for (char *at = heap_end; at < end; at += PAGE) CHECK(stamped(at, 0));
    heap_end = end;
    heap_stamp = (stamps += 200) << 2;
    for (char *at = heap_start; at < heap_end; at += PAGE) stamp(at, heap_stamp + (uint64_t)(at - heap_start) / PAGE * 4);
}

static void step(void) {
    long pages = 1 + below(below(8) ? 12 : LONGEST), from = below(PAGES - LONGEST * 2);
    switch (below(16)) {
    case 0 ... 3: step_map(from, pages); break;
    case 4: step_map_if_free(from, 1 + pages / 4); break;
    case 5 ... 6: step_unmap(from, pages); break;
    case 7 ... 8: step_protect(from, pages); break;
    case 9: step_forget(from, pages); break;
    case 10: step_move(from, pages); break;
    case 11: step_resize(from, pages); break;
    case 12: step_float(pages); break;
    case 13: step_heap(pages); break;
    case 14: step_validated(); break;
    default: write_pages(from, pages); break;
    }
    for (long i = from ? from - 1 : 0; i < from + pages + 1; i++) check_page(i);
    check_page(below(PAGES));
}

/* A file whose pages are stamped, without a name. */
static void make_file(void) {
    static char page[PAGE];
    char name[] = "memory-XXXXXX";
    file = mkstemp(name);
    CHECK(file >= 0);
    for (long i = 0; i < FILE_PAGES; i++) {
        stamp(page, 0xf11e000000 + (uint64_t)i * 16 + 16);
        CHECK(write(file, page, PAGE) == PAGE);
    }
    CHECK(unlink(name) == 0);
}

int main(int count, char **values) {
    static char buffer[4096];
    long steps = argument(count, values, 1, 100000);
    struct sigaction action = {.sa_sigaction = faulted, .sa_flags = SA_SIGINFO};
    seed = (uint64_t)argument(count, values, 2, 1);
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    printf("memory steps %ld seed %lu\n", steps, seed);
    fflush(stdout);
    make_file();
    CHECK(pipe(probe) == 0);
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    heap_start = heap_end = (char *)(((uintptr_t)sbrk(0) + PAGE - 1) & ~(uintptr_t)(PAGE - 1));
    CHECK(brk(heap_start) == 0);
    window = mmap(NULL, PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    parking = mmap(NULL, FLOATING * LONGEST * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(window != MAP_FAILED && parking != MAP_FAILED);
    set_pages(0, PAGES, (struct page){PRIVATE, PROT_NONE, 0, 0});
    for (long i = 1; i <= steps; i++) {
        step();
        if (i % (steps / 10 ? steps / 10 : 1) == 0) {
            printf("step %ld digest %016lx\n", i, digest);
            fflush(stdout);
        }
    }
    for (long i = 0; i < PAGES; i++) {
        check_page(i);
        note(model[i].stamp ^ model[i].kind ^ (uint64_t)model[i].protection << 32);
    }
    for (int i = 0; i < FLOATING; i++)
        if (floats[i].at != NULL) check_float(&floats[i]);
    printf("memory ended, digest %016lx\n", digest);
    return 0;
}
