/* Keeps every register loaded in a loop around system calls, and finds it unchanged: xmm, ymm or zmm (as wide as the
 * machine has) and mask registers, the x87 stack and control word, MXCSR, all general registers that a system call
 * keeps (all but rax, rcx, r11), and the red zone below the stack.
 *
 * Calls are made by a `syscall` instruction here, by libc's own, through the vdso, and not at all (a spin, so that a
 * failure comes between any two instructions).
 *
 * vectors [ROUNDS] */
#include "guest.h"
#include <cpuid.h>
#include <stddef.h>

enum width { SSE, AVX, AVX512 };

/* What is loaded before and stored after; the offsets are used in the assembly below. */
struct state {
    uint8_t vector[32][64];   /* 0 */
    uint64_t mask[8];         /* 2048 */
    uint8_t x87[8][16];       /* 2112: ten bytes each */
    uint64_t general[16];     /* 2240: rbx rbp r12 r13 r14 r15 rdi rsi rdx r8 r9 r10 */
    uint32_t mxcsr;           /* 2368 */
    uint16_t control, unused; /* 2372 */
    uint64_t red_zone[16];    /* 2376: the 128 bytes below rsp */
    uint64_t call;            /* 2504: number of a system call, or address of a function */
    uint64_t result;          /* 2512 */
} __attribute__((aligned(64)));
_Static_assert(offsetof(struct state, mask) == 2048 && offsetof(struct state, x87) == 2112, "offsets");
_Static_assert(offsetof(struct state, general) == 2240 && offsetof(struct state, mxcsr) == 2368, "offsets");
_Static_assert(offsetof(struct state, control) == 2372 && offsetof(struct state, red_zone) == 2376, "offsets");
_Static_assert(offsetof(struct state, call) == 2504 && offsetof(struct state, result) == 2512, "offsets");

/* Loads `in`, does what the name says, stores into `out`. Both pointers lie on the stack above the red zone. */
typedef void run(const struct state *in, struct state *out);

#define REGISTERS16 "0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15"
#define REGISTERS32 REGISTERS16 ",16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31"
#define LOAD_SSE ".irp i," REGISTERS16 "\n movdqu \\i*64(%rax), %xmm\\i\n .endr\n"
#define STORE_SSE ".irp i," REGISTERS16 "\n movdqu %xmm\\i, \\i*64(%rcx)\n .endr\n"
#define LOAD_AVX ".irp i," REGISTERS16 "\n vmovdqu \\i*64(%rax), %ymm\\i\n .endr\n"
#define STORE_AVX ".irp i," REGISTERS16 "\n vmovdqu %ymm\\i, \\i*64(%rcx)\n .endr\n"
#define LOAD_AVX512                                                                                                    \
    ".irp i," REGISTERS32 "\n vmovdqu64 \\i*64(%rax), %zmm\\i\n .endr\n"                                              \
    ".irp i,0,1,2,3,4,5,6,7\n kmovq 2048+\\i*8(%rax), %k\\i\n .endr\n"
#define STORE_AVX512                                                                                                   \
    ".irp i," REGISTERS32 "\n vmovdqu64 %zmm\\i, \\i*64(%rcx)\n .endr\n"                                              \
    ".irp i,0,1,2,3,4,5,6,7\n kmovq %k\\i, 2048+\\i*8(%rcx)\n .endr\n"

/* rax points to `in` at first, rcx (free after a system call) to `out` at the end: rsp + 8 holds `out`. */
#define PROLOGUE                                                                                                       \
    "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15; push %rsi; push %rdi\n"                        \
    "mov %rdi, %rax; fninit\n"                                                                                         \
    ".irp i,7,6,5,4,3,2,1,0\n fldt 2112+\\i*16(%rax)\n .endr\n"                                                       \
    "fldcw 2372(%rax); ldmxcsr 2368(%rax)\n"                                                                           \
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"                                                                  \
    " mov 2376+\\i*8(%rax), %rbx; mov %rbx, -128+\\i*8(%rsp)\n .endr\n"                                               \
    "mov 2240(%rax), %rbx; mov 2248(%rax), %rbp; mov 2256(%rax), %r12; mov 2264(%rax), %r13\n"                        \
    "mov 2272(%rax), %r14; mov 2280(%rax), %r15; mov 2288(%rax), %rdi; mov 2296(%rax), %rsi\n"                        \
    "mov 2304(%rax), %rdx; mov 2312(%rax), %r8; mov 2320(%rax), %r9; mov 2328(%rax), %r10\n"                          \
    "mov 2504(%rax), %rax\n"
#define STORE_RED_ZONE                                                                                                 \
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"                                                                  \
    " mov -128+\\i*8(%rsp), %rax; mov %rax, 2376+\\i*8(%rcx)\n .endr\n"
#define EPILOGUE                                                                                                       \
    "mov %rbx, 2240(%rcx); mov %rbp, 2248(%rcx); mov %r12, 2256(%rcx); mov %r13, 2264(%rcx)\n"                        \
    "mov %r14, 2272(%rcx); mov %r15, 2280(%rcx); mov %rdi, 2288(%rcx); mov %rsi, 2296(%rcx)\n"                        \
    "mov %rdx, 2304(%rcx); mov %r8, 2312(%rcx); mov %r9, 2320(%rcx); mov %r10, 2328(%rcx)\n"                          \
    "stmxcsr 2368(%rcx); fnstcw 2372(%rcx)\n"                                                                          \
    ".irp i,0,1,2,3,4,5,6,7\n fstpt 2112+\\i*16(%rcx)\n .endr\n"                                                      \
    "fninit; pop %rdi; pop %rsi; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"                        \
    "movl $0x1f80, -8(%rsp); ldmxcsr -8(%rsp); ret\n"
#define TAKE_OUT "mov 8(%rsp), %rcx; mov %rax, 2512(%rcx)\n"

/* `libc` calls a function, which may use the red zone and is aligned as the ABI wants; `spin` counts down rax. */
#define RUNS(width)                                                                                                    \
    ".globl raw_" #width ", libc_" #width ", spin_" #width "\n"                                                        \
    "raw_" #width ":\n" PROLOGUE_##width "syscall\n" TAKE_OUT STORE_RED_ZONE STORE_##width EPILOGUE                    \
    "spin_" #width ":\n" PROLOGUE_##width "1: dec %rax; jnz 1b\n" TAKE_OUT STORE_RED_ZONE STORE_##width EPILOGUE       \
    "libc_" #width ":\n" PROLOGUE_##width "sub $8, %rsp; call *%rax; add $8, %rsp\n" TAKE_OUT STORE_##width EPILOGUE
/* The vectors are loaded while rax still points to `in`: before its last use in PROLOGUE, so the load comes first. */
#define PROLOGUE_SSE "mov %rdi, %rax\n" LOAD_SSE PROLOGUE
#define PROLOGUE_AVX "mov %rdi, %rax\n" LOAD_AVX PROLOGUE
#define PROLOGUE_AVX512 "mov %rdi, %rax\n" LOAD_AVX512 PROLOGUE

__asm__(".text\n" RUNS(SSE) RUNS(AVX) RUNS(AVX512));
extern run raw_SSE, raw_AVX, raw_AVX512, libc_SSE, libc_AVX, libc_AVX512, spin_SSE, spin_AVX, spin_AVX512;
static run *const raws[] = {raw_SSE, raw_AVX, raw_AVX512};
static run *const libcs[] = {libc_SSE, libc_AVX, libc_AVX512};
static run *const spins[] = {spin_SSE, spin_AVX, spin_AVX512};

static enum width widest;
static long rounds;

/* What the processor has and the kernel saves (XCR0: 6 is AVX, 0xe6 AVX-512). */
static enum width find_width(void) {
    unsigned a, b, c, d, low, high;
    CHECK(__get_cpuid(1, &a, &b, &c, &d));
    if (!(c & bit_OSXSAVE)) return SSE;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    if ((low & 6) != 6 || !(c & bit_AVX)) return SSE;
    CHECK(__get_cpuid_count(7, 0, &a, &b, &c, &d));
    return (low & 0xe6) == 0xe6 && (b & bit_AVX512BW) ? AVX512 : AVX;
}

/* Random patterns everywhere; what must be well-formed is: x87 numbers normal, control words without traps. */
static void fill(struct state *in, uint64_t *seed) {
    static const uint16_t controls[] = {0x037f, 0x077f, 0x0b7f, 0x0f7f, 0x027f, 0x0e7f};
    uint64_t *words = (uint64_t *)in;
    for (size_t i = 0; i < sizeof *in / 8; i++) words[i] = next_random(seed);
    for (int i = 0; i < 8; i++) {
        long double number = (long double)(int64_t)next_random(seed) / 7;
        memset(in->x87[i], 0, 16);
        memcpy(in->x87[i], &number, 10);
    }
    in->control = controls[next_random(seed) % 6];
    in->mxcsr = 0x1f80 | (next_random(seed) & 0xe07f);
}

static void compare(const char *how, long round, const void *in, const void *out, size_t bytes, const char *what) {
    for (size_t i = 0; i < bytes; i++)
        if (((const uint8_t *)in)[i] != ((const uint8_t *)out)[i])
            FAIL("%s, round %ld: %s differs at byte %zu", how, round, what, i);
}

/* Everything, or only what the calling convention keeps. */
static void verify(const char *how, long round, const struct state *in, const struct state *out, int all) {
    compare(how, round, in->general, out->general, 6 * 8, "a callee-saved register");
    compare(how, round, &in->control, &out->control, 2, "the x87 control word");
    /* A libc function may raise exception flags; here none computes. */
    compare(how, round, &in->mxcsr, &out->mxcsr, 4, "MXCSR");
    if (!all) return;
    for (int i = 0; i < (widest == AVX512 ? 32 : 16); i++)
        compare(how, round, in->vector[i], out->vector[i], 16u << widest, "a vector register");
    if (widest == AVX512) compare(how, round, in->mask, out->mask, sizeof in->mask, "a mask register");
    for (int i = 0; i < 8; i++) compare(how, round, in->x87[i], out->x87[i], 10, "an x87 register");
}

static void raw_call(struct state *in, struct state *out, long round, int fds[2]) {
    static const char *const names[] = {"raw getppid", "raw write", "raw read", "raw clock_gettime", "raw nanosleep"};
    static const int calls[] = {SYS_getppid, SYS_write, SYS_read, SYS_clock_gettime, SYS_nanosleep};
    /* Every fourth round writes a byte, the next one reads it: one written twice or lost shows at once. */
    uint8_t expected = (uint8_t)(round / 4), byte = round % 4 == 1 ? expected : 0;
    struct timespec time = {0, 1000};
    long which = round % 100 == 3 ? 4 : round % 4;
    in->call = (uint64_t)calls[which];
    if (which == 1 || which == 2) {
        in->general[6] = (uint64_t)fds[which == 1];
        in->general[7] = (uint64_t)&byte;
        in->general[8] = 1;
    } else if (which == 3) {
        in->general[6] = CLOCK_MONOTONIC;
        in->general[7] = (uint64_t)&time;
    } else if (which == 4) {
        in->general[6] = (uint64_t)&time;
        in->general[7] = 0;
    }
    raws[widest](in, out);
    verify(names[which], round, in, out, 1);
    compare(names[which], round, &in->general[6], &out->general[6], 6 * 8, "an argument register");
    compare(names[which], round, in->red_zone, out->red_zone, sizeof in->red_zone, "the red zone");
    /* Which parent it is may change with a resume. */
    if (which == 0 && (out->result == 0 || out->result > 4194304)) FAIL("getppid gave %ld", (long)out->result);
    if ((which == 1 || which == 2) && (out->result != 1 || byte != expected))
        FAIL("%s gave %ld, byte %d instead of %d", names[which], (long)out->result, byte, expected);
    if (which >= 3 && out->result != 0) FAIL("%s gave %ld", names[which], (long)out->result);
}

static void libc_call(struct state *in, struct state *out, long round, int fds[2]) {
    char byte = 'x';
    struct timespec time;
    if (round % 3 == 0) {
        in->call = (uint64_t)&getppid;
        libcs[widest](in, out);
        verify("libc's getppid", round, in, out, 1);
    } else if (round % 3 == 1) {
        CHECK(write(fds[1], &byte, 1) == 1);
        in->call = (uint64_t)&read;
        in->general[6] = (uint64_t)fds[0];
        in->general[7] = (uint64_t)&byte;
        in->general[8] = 1;
        libcs[widest](in, out);
        if (out->result != 1) FAIL("read gave %ld", (long)out->result);
        verify("libc's read", round, in, out, 1);
    } else {
        in->call = (uint64_t)&clock_gettime;
        in->general[6] = CLOCK_MONOTONIC;
        in->general[7] = (uint64_t)&time;
        libcs[widest](in, out);
        if ((uint32_t)out->result != 0) FAIL("clock_gettime gave %ld", (long)out->result);
        verify("libc's clock_gettime", round, in, out, 0);
    }
}

static void *work(void *argument_) {
    uint64_t seed = 100 + (uint64_t)argument_;
    struct state in, out;
    int raw_pipe[2], libc_pipe[2];
    CHECK(pipe(raw_pipe) == 0 && pipe(libc_pipe) == 0);
    for (long round = 0; round < rounds; round++) {
        fill(&in, &seed);
        raw_call(&in, &out, round, raw_pipe);
        fill(&in, &seed);
        libc_call(&in, &out, round, libc_pipe);
        fill(&in, &seed);
        in.call = 1 + next_random(&seed) % 20000;
        spins[widest](&in, &out);
        verify("spin", round, &in, &out, 1);
        compare("spin", round, in.red_zone, out.red_zone, sizeof in.red_zone, "the red zone");
    }
    return NULL;
}

int main(int count, char **values) {
    static const char *const names[] = {"xmm", "ymm", "zmm"};
    pthread_t threads[2];
    rounds = argument(count, values, 1, 120000);
    widest = find_width();
    for (long i = 0; i < 2; i++) CHECK(pthread_create(&threads[i], NULL, work, (void *)i) == 0);
    for (long i = 0; i < 2; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    printf("vectors: %s, x87, MXCSR and general registers kept for %ld rounds\n", names[widest], rounds);
    return 0;
}
