/* Children: fork (with a grandchild), vfork, posix_spawn, system, popen, fork from a thread while others run.
 *
 * A child runs on a copy: what it writes is never seen by its parent, and it sees its parent's memory as it was at the
 * fork. A child lost in a power failure shows as ended by SIGPWR and is started again; nothing else may go wrong.
 *
 * fork [ROUNDS] */
#include "guest.h"
#include <spawn.h>

enum { WORDS = 40000 };
extern char **environ;
static uint64_t *memory;
static volatile int stop;
static volatile long spun;

/* 1: the child was lost in a power failure. Otherwise it must have ended with the status `expected`. */
static int lost(int status, int expected, const char *what) {
    if (WIFSIGNALED(status) && WTERMSIG(status) == SIGPWR) return 1;
    if (!WIFEXITED(status) || WEXITSTATUS(status) != expected) FAIL("%s ended with status %#x", what, status);
    return 0;
}

static int wait_for(pid_t child) {
    int status;
    while (waitpid(child, &status, 0) != child)
        if (errno != EINTR) FAIL("waitpid of %d", child);
    return status;
}

/* The parent's memory as the child must see it, and as the parent must still see it afterwards. */
static void fill(long round) {
    for (long i = 0; i < WORDS; i++) memory[i] = (uint64_t)(round * 1000003 + i);
}

static int holds(long round) {
    for (long i = 0; i < WORDS; i++)
        if (memory[i] != (uint64_t)(round * 1000003 + i)) return 0;
    return 1;
}

/* A grandchild, which the child waits for; sends a sum home through the pipe. */
static void child(long round, int pipe_end) {
    pid_t grandchild;
    int status;
    if (!holds(round)) _exit(101);
    memset(memory, 0xee, WORDS * 8);
    grandchild = fork();
    if (grandchild == 0) _exit(memory[7] == 0xeeeeeeeeeeeeeeee ? 9 : 102);
    if (grandchild < 0 || waitpid(grandchild, &status, 0) != grandchild) _exit(103);
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 9) _exit(104);
    char *block = malloc(300000);
    memset(block, 1, 300000);
    free(block);
    if (write(pipe_end, &round, sizeof round) != sizeof round) _exit(105);
    _exit(7);
}

/* Returns 1 if the child was lost. */
static int fork_once(long round) {
    int ends[2];
    long answer = -1;
    pid_t pid;
    CHECK(pipe(ends) == 0);
    fill(round);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) child(round, ends[1]);
    CHECK(close(ends[1]) == 0);
    for (int i = 0; i < 5; i++) CHECK(holds(round));
    ssize_t bytes = read(ends[0], &answer, sizeof answer);
    CHECK(close(ends[0]) == 0);
    int status = wait_for(pid);
    CHECK(holds(round));
    if (lost(status, 7, "forked child")) return 1;
    CHECK(bytes == sizeof answer && answer == round);
    return 0;
}

static int vfork_once(void) {
    char *const arguments[] = {"sh", "-c", "exit 11", NULL};
    pid_t pid = vfork();
    if (pid == 0) {
        execv("/bin/sh", arguments);
        _exit(106);
    }
    CHECK(pid > 0);
    return lost(wait_for(pid), 11, "vfork child");
}

static int spawn_once(void) {
    char *const arguments[] = {"sh", "-c", "exit 12", NULL};
    pid_t pid;
    int result = posix_spawn(&pid, "/bin/sh", NULL, NULL, arguments, environ);
    if (result != 0) FAIL("posix_spawn gave %d", result);
    return lost(wait_for(pid), 12, "spawned child");
}

static int system_once(void) {
    int status = system("test -n \"$PATH\" && exit 13");
    CHECK(status != -1);
    return lost(status, 13, "system's child");
}

static int popen_once(long round) {
    char line[64] = "", command[64], expected[64];
    snprintf(command, sizeof command, "echo line %ld; exit 14", round);
    snprintf(expected, sizeof expected, "line %ld\n", round);
    FILE *stream = popen(command, "r");
    CHECK(stream != NULL);
    char *got = fgets(line, sizeof line, stream);
    int status = pclose(stream);
    CHECK(status != -1);
    if (lost(status, 14, "popen's child")) return 1;
    CHECK(got != NULL && strcmp(line, expected) == 0);
    return 0;
}

/* The environment of a child must not tell it about the region of its parent. */
static int environment_once(void) {
    int status = system("case \"$(env)\" in *ZHUQUE_REGION*) exit 99;; esac; exit 15");
    return lost(status, 15, "child that looks at its environment");
}

static void *spin(void *argument_) {
    long last = 0;
    (void)argument_;
    while (!stop) {
        if (spun != last) FAIL("another process has written the counter: %ld, not %ld", spun, last);
        spun = ++last;
        if (last % 4096 == 0) {
            void *block = malloc(200000);
            memset(block, 3, 200000);
            free(block);
        }
    }
    return NULL;
}

/* A failure may lose one child after the other, but not without end. */
#define UNTIL_DONE(call)                                                                                               \
    do {                                                                                                               \
        int tries_ = 0;                                                                                                \
        while (call)                                                                                                   \
            if (++tries_ > 50) FAIL("%s: lost again and again", #call);                                                \
    } while (0)

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 100);
    pthread_t thread;
    memory = mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    CHECK(pthread_create(&thread, NULL, spin, NULL) == 0);
    for (long round = 1; round <= rounds; round++) {
        UNTIL_DONE(fork_once(round));
        UNTIL_DONE(vfork_once());
        UNTIL_DONE(spawn_once());
        UNTIL_DONE(system_once());
        UNTIL_DONE(popen_once(round));
        if (round % 10 == 0) UNTIL_DONE(environment_once());
        if (round % (rounds / 5 ? rounds / 5 : 1) == 0) {
            printf("round %ld\n", round);
            fflush(stdout);
        }
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
    CHECK(waitpid(-1, NULL, 0) == -1 && errno == ECHILD);
    puts("fork: every child did its work");
    return 0;
}
