/* Unix sockets as a program leaves them: pairs of each kind with data on the way, empty packets among it, directions
 * that were shut down, listeners and datagram sockets by path and by abstract name, connections inside the program,
 * descriptors that were passed, and options.
 *
 * locals [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static int stream[2], packets[2], datagrams[2], halves[2], orphan, listener, hidden, near[2], far[2], inbox, sender;
static int unnamed;

static socklen_t name_of(struct sockaddr_un *to, const char *path) {
    memset(to, 0, sizeof *to);
    to->sun_family = AF_UNIX;
    if (*path == '@') /* abstract, and the process' own */
        return (socklen_t)offsetof(struct sockaddr_un, sun_path) + 1 +
               (socklen_t)snprintf(to->sun_path + 1, 60, "zhuque-locals-%s-%d", path + 1, getpid());
    strcpy(to->sun_path, path);
    return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
}

static int bound(int kind, const char *path) {
    struct sockaddr_un name;
    socklen_t length = name_of(&name, path);
    int made = socket(AF_UNIX, kind, 0);
    CHECK(made >= 0 && bind(made, (struct sockaddr *)&name, length) == 0);
    return made;
}

static int connected(int kind, const char *path) {
    struct sockaddr_un name;
    socklen_t length = name_of(&name, path);
    int made = socket(AF_UNIX, kind, 0);
    CHECK(made >= 0 && connect(made, (struct sockaddr *)&name, length) == 0);
    return made;
}

/* Both ends of a connection to a listener. One that has not been accepted when power fails is reset. */
static void join(int to, int kind, const char *path, int ends[2]) {
    for (int tries = 0; tries < 3; tries++) {
        struct pollfd waiting = {to, POLLIN, 0};
        char byte;
        ends[0] = connected(kind, path);
        if (poll(&waiting, 1, 0) == 1) {
            ends[1] = accept4(to, NULL, NULL, SOCK_CLOEXEC);
            if (ends[1] >= 0) return;
            CHECK(errno == EAGAIN);
        }
        CHECK(recv(ends[0], &byte, 1, MSG_DONTWAIT) == -1 && errno == ECONNRESET && close(ends[0]) == 0);
    }
    FAIL("no connection to %s", path);
}

static void set(int file, int option, int value) {
    CHECK(setsockopt(file, SOL_SOCKET, option, &value, sizeof value) == 0);
}

static int get(int file, int option) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(file, SOL_SOCKET, option, &value, &length) == 0);
    return value;
}

static void say(int file, const char *text) { CHECK(send(file, text, strlen(text), 0) == (ssize_t)strlen(text)); }

static void expect(int file, const char *text, size_t most) {
    char bytes[64] = {0};
    ssize_t got = recv(file, bytes, most, MSG_DONTWAIT);
    if (got != (ssize_t)strlen(text) || strcmp(bytes, text) != 0)
        FAIL("descriptor %d gives %zd bytes \"%s\", not \"%s\"", file, got, bytes, text);
}

static void expect_nothing(int file) {
    char byte;
    CHECK(recv(file, &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
}

static void set_up_pairs(void) {
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0);
    say(stream[0], "0123456789");
    say(stream[1], "back");
    expect(stream[1], "012", 3);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, packets) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, datagrams) == 0);
    for (int i = 0; i < 2; i++) {
        int to = i == 0 ? packets[0] : datagrams[0];
        say(to, "one");
        say(to, "");
        say(to, "three");
    }
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, halves) == 0);
    say(halves[0], "last words");
    CHECK(shutdown(halves[0], SHUT_WR) == 0);
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    say(ends[1], "legacy");
    CHECK(close(ends[1]) == 0);
    orphan = ends[0];
}

static void set_up(void) {
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    set_up_pairs();
    listener = bound(SOCK_STREAM | SOCK_NONBLOCK, "listener");
    CHECK(chmod("listener", 0640) == 0 && listen(listener, 7) == 0);
    hidden = bound(SOCK_SEQPACKET | SOCK_NONBLOCK, "@hidden");
    CHECK(listen(hidden, 3) == 0);
    join(listener, SOCK_STREAM, "listener", near);
    join(hidden, SOCK_SEQPACKET, "@hidden", far);
    say(near[0], "question");
    say(far[1], "answer");
    inbox = bound(SOCK_DGRAM | SOCK_NONBLOCK, "inbox");
    sender = bound(SOCK_DGRAM, "@sender");
    struct sockaddr_un name;
    socklen_t length = name_of(&name, "inbox");
    CHECK(connect(sender, (struct sockaddr *)&name, length) == 0);
    unnamed = socket(AF_UNIX, SOCK_DGRAM, 0);
    CHECK(unnamed >= 0 && sendto(unnamed, "from nobody", 11, 0, (struct sockaddr *)&name, length) == 11);
    say(sender, "from one");
    struct timeval patience = {3, 250000};
    struct linger linger = {1, 5};
    CHECK(setsockopt(stream[0], SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience) == 0);
    CHECK(setsockopt(hidden, SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    set(inbox, SO_SNDBUF, 30000);
    set(inbox, SO_PASSCRED, 1);
    set(stream[1], SO_RCVLOWAT, 3);
}

static void check_pairs(long round) {
    char digit[2] = {(char)('3' + round % 7), 0};
    struct timeval patience;
    socklen_t length = sizeof patience;
    expect(stream[1], digit, 1);
    say(stream[0], digit);
    expect(stream[0], "ba", 2);
    expect(stream[0], "ck", 64);
    say(stream[1], "back");
    CHECK(getsockopt(stream[0], SOL_SOCKET, SO_RCVTIMEO, &patience, &length) == 0);
    CHECK(patience.tv_sec == 3 && patience.tv_usec >= 248000 && patience.tv_usec < 260000);
    CHECK(get(stream[1], SO_RCVLOWAT) == 3);
    CHECK(fcntl(packets[1], F_GETFD) == FD_CLOEXEC && get(packets[1], SO_TYPE) == SOCK_SEQPACKET);
    CHECK((fcntl(datagrams[1], F_GETFL) & O_NONBLOCK) && get(datagrams[0], SO_TYPE) == SOCK_DGRAM);
    for (int i = 0; i < 2; i++) {
        int *ends = i == 0 ? packets : datagrams;
        expect(ends[1], "on", 2);
        expect(ends[1], "", 64);
        expect(ends[1], "three", 64);
        expect_nothing(ends[1]);
        say(ends[0], "one");
        say(ends[0], "");
        say(ends[0], "three");
    }
    CHECK(send(halves[0], "x", 1, 0) == -1 && errno == EPIPE);
    expect(halves[1], round == 0 ? "last words" : "", 64);
    expect(halves[1], "", 1);
    say(halves[1], "still heard");
    expect(halves[0], "still heard", 64);
    expect(orphan, round == 0 ? "legacy" : "", 64);
    CHECK(send(orphan, "x", 1, 0) == -1 && errno == EPIPE);
}

static void expect_name(int file, int (*call)(int, struct sockaddr *, socklen_t *), const char *path) {
    struct sockaddr_un wanted, found;
    socklen_t length = sizeof found, right = *path == 0 ? sizeof(sa_family_t) : name_of(&wanted, path);
    CHECK(call(file, (struct sockaddr *)&found, &length) == 0);
    if (length != right || (*path != 0 && memcmp(&found, &wanted, length) != 0))
        FAIL("descriptor %d has a name of %d bytes, not \"%s\"", file, (int)length, path);
}

static void check_connections(void) {
    struct stat file;
    CHECK(stat("listener", &file) == 0 && S_ISSOCK(file.st_mode) && (file.st_mode & 07777) == 0640);
    CHECK(accept(listener, NULL, NULL) == -1 && errno == EAGAIN);
    expect(near[1], "question", 64);
    expect(far[0], "answer", 64);
    say(near[0], "question");
    say(far[1], "answer");
    expect_name(near[1], getpeername, "");
    expect_name(listener, getsockname, "listener");
    expect_name(hidden, getsockname, "@hidden");
    struct linger linger;
    socklen_t length = sizeof linger;
    CHECK(getsockopt(hidden, SOL_SOCKET, SO_LINGER, &linger, &length) == 0);
    CHECK(linger.l_onoff == 1 && linger.l_linger == 5);
    CHECK(get(hidden, SO_ACCEPTCONN) == 1 && get(listener, SO_ACCEPTCONN) == 1);
}

static void expect_from(const char *text, const char *path) {
    char bytes[64] = {0};
    struct sockaddr_un wanted, found;
    socklen_t length = sizeof found, right = *path == 0 ? 0 : name_of(&wanted, path);
    ssize_t got = recvfrom(inbox, bytes, sizeof bytes, 0, (struct sockaddr *)&found, &length);
    if (got != (ssize_t)strlen(text) || strcmp(bytes, text) != 0)
        FAIL("%zd bytes \"%s\", not \"%s\"", got, bytes, text);
    if (length != right || memcmp(&found, &wanted, length) != 0) FAIL("\"%s\" comes from %d bytes", text, (int)length);
}

static void check_datagrams(void) {
    struct sockaddr_un name;
    socklen_t length = name_of(&name, "inbox");
    expect_from("from nobody", "");
    expect_from("from one", "@sender");
    expect_nothing(inbox);
    CHECK(sendto(unnamed, "from nobody", 11, 0, (struct sockaddr *)&name, length) == 11);
    say(sender, "from one");
    expect_name(sender, getpeername, "inbox");
    expect_name(inbox, getsockname, "inbox");
    CHECK(get(inbox, SO_SNDBUF) == 60000 && get(inbox, SO_PASSCRED) == 1 && get(sender, SO_PASSCRED) == 0);
    CHECK((fcntl(inbox, F_GETFL) & O_NONBLOCK) && !(fcntl(sender, F_GETFL) & O_NONBLOCK));
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 120);
    set_up();
    for (long round = 0; round < rounds; round++) {
        check_pairs(round);
        check_connections();
        check_datagrams();
        if (rounds > 4) sleep_us(2000);
    }
    int late[2];
    join(listener, SOCK_STREAM, "listener", late);
    printf("%ld rounds\n", rounds);
    return 0;
}
