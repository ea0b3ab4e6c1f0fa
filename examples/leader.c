/* The main thread ends at once; the others go on, make children, and end the program by ending themselves.
 *
 * leader [ROUNDS] */
#include "guest.h"

static long rounds;
static uint64_t sums[3];
static pthread_t workers[3];

static void *work(void *argument) {
    long number = (long)argument;
    for (long round = 0; round < rounds; round++) {
        sums[number] = mix(sums[number], (uint64_t)round);
        sleep_us(500);
        if (round % 64 != number) continue;
        pid_t pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) _exit(7);
        int status;
        while (waitpid(pid, &status, 0) != pid) CHECK(errno == EINTR);
        CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 7) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGPWR));
    }
    if (number != 2) return NULL;
    for (int other = 0; other < 2; other++) CHECK(pthread_join(workers[other], NULL) == 0);
    for (int worker = 0; worker < 3; worker++) printf("worker %d: %016lx\n", worker, (unsigned long)sums[worker]);
    /* The last thread: the program ends with 0, as pthread_exit of the last one does. */
    return NULL;
}

int main(int count, char **values) {
    rounds = argument(count, values, 1, 1500);
    for (long number = 0; number < 3; number++) CHECK(pthread_create(&workers[number], NULL, work, (void *)number) == 0);
    pthread_exit(NULL);
}
