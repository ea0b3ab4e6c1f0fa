/* A program that replaces itself again and again: by execv, with an empty environment, through `sh -c exec`, from a
 * second thread, with descriptors that stay open and others that do not. The last image must still be the region's.
 *
 * execs [LENGTH of the chain] */
#include "guest.h"
#include <fcntl.h>

/* With an environment that takes a while to read. */
static void *exec_here(void *arguments) {
    enum { VARIABLES = 20000 };
    static char *environment[VARIABLES + 1], variable[] = "VARIABLE=value";
    char **all = arguments;
    for (int i = 0; i < VARIABLES; i++) environment[i] = variable;
    execve(all[0], all, environment);
    FAIL("execve of %s", all[0]);
}

/* Each image computes a little, so that failures find it at work. */
static uint64_t compute(uint64_t seed) {
    uint64_t digest = seed;
    for (int i = 0; i < 4000000; i++) digest = mix(digest, next_random(&seed));
    return digest;
}

int main(int count, char **values) {
    static char self[4096], left[24], digest[24], kept[16], command[8500];
    long length = argument(count, values, 1, 200);
    uint64_t value = count > 2 ? strtoull(values[2], NULL, 16) : 1;
    ssize_t bytes = readlink("/proc/self/exe", self, sizeof self - 1);
    CHECK(bytes > 0);
    int fd = count > 3 ? atoi(values[3]) : -1;
    if (fd < 0) {
        int ends[2];
        CHECK(pipe(ends) == 0 && write(ends[1], "kept", 4) == 4);
        CHECK(fcntl(ends[1], F_SETFD, FD_CLOEXEC) == 0);
        fd = ends[0];
    } else {
        /* The writer was closed by the first exec, so nothing but the four bytes will ever come. */
        char text[8];
        if (length == 0) CHECK(read(fd, text, 8) == 4 && memcmp(text, "kept", 4) == 0 && read(fd, text, 8) == 0);
    }
    value = compute(value + (uint64_t)length);
    if (length == 0) {
        printf("execs: the chain ended with %016lx\n", value);
        return 0;
    }
    snprintf(left, sizeof left, "%ld", length - 1);
    snprintf(digest, sizeof digest, "%lx", value);
    snprintf(kept, sizeof kept, "%d", fd);
    char *arguments[] = {self, left, digest, kept, NULL}, *nothing[] = {NULL};
    char *shell[] = {"sh", "-c", command, NULL};
    pthread_t thread;
    if (length % 40 == 0) {
        printf("left %ld\n", length);
        fflush(stdout);
    }
    switch (length % 4) {
    case 0: execv(self, arguments); break;
    case 1: execve(self, arguments, nothing); break;
    case 2:
        snprintf(command, sizeof command, "exec '%s' %s %s %s", self, left, digest, kept);
        execv("/bin/sh", shell);
        break;
    default:
        CHECK(pthread_create(&thread, NULL, exec_here, arguments) == 0);
        pthread_join(thread, NULL);
    }
    FAIL("an exec failed");
}
