/* Internet sockets as a program leaves them: listeners and datagram sockets of both versions with their options and
 * ports, connected ones, datagrams on the way, and a connection inside the program, which a failure resets.
 *
 * inet [ROUNDS] */
#include "guest.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

/* An address of either version, on loopback. */
struct place {
    struct sockaddr_storage address;
    socklen_t length;
};

static int version6, listener[2], fresh, inbox[2], sender[2], wild, client, server;
static struct place ports[2], inboxes[2], senders[2], wilds;

static struct place loopback(int six, int any) {
    struct place place = {.length = six ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in)};
    struct sockaddr_in *four = (struct sockaddr_in *)&place.address;
    struct sockaddr_in6 *long_one = (struct sockaddr_in6 *)&place.address;
    place.address.ss_family = six ? AF_INET6 : AF_INET;
    if (six)
        long_one->sin6_addr = any ? in6addr_any : in6addr_loopback;
    else
        four->sin_addr.s_addr = htonl(any ? INADDR_ANY : INADDR_LOOPBACK);
    return place;
}

static struct place name_of(int file) {
    struct place place = {.length = sizeof place.address};
    CHECK(getsockname(file, (struct sockaddr *)&place.address, &place.length) == 0);
    return place;
}

static void set(int file, int level, int option, int value) {
    CHECK(setsockopt(file, level, option, &value, sizeof value) == 0);
}

static int bound(int kind, int six, int any) {
    struct place place = loopback(six, any);
    int made = socket(six ? AF_INET6 : AF_INET, kind, 0);
    /* Without it, connections that the program has closed would keep the port for a minute. */
    if (kind & SOCK_STREAM) set(made, SOL_SOCKET, SO_REUSEADDR, 1);
    CHECK(made >= 0 && bind(made, (struct sockaddr *)&place.address, place.length) == 0);
    return made;
}

static void expect_option(int file, int level, int option, int wanted) {
    int value = -1;
    socklen_t length = sizeof value;
    CHECK(getsockopt(file, level, option, &value, &length) == 0);
    if (value != wanted) FAIL("option %d, %d of descriptor %d is %d, not %d", level, option, file, value, wanted);
}

static void expect_place(int file, struct place place) {
    struct place now = name_of(file);
    CHECK(now.length == place.length && memcmp(&now.address, &place.address, now.length) == 0);
}

static void set_up_version(int six) {
    listener[six] = bound(SOCK_STREAM | SOCK_NONBLOCK, six, 0);
    set(listener[six], SOL_SOCKET, SO_KEEPALIVE, 1);
    set(listener[six], IPPROTO_TCP, TCP_NODELAY, 1);
    set(listener[six], IPPROTO_TCP, TCP_KEEPIDLE, 77);
    set(listener[six], SOL_SOCKET, SO_RCVBUF, 20000);
    CHECK(listen(listener[six], 5) == 0);
    ports[six] = name_of(listener[six]);
    inbox[six] = bound(SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, six, 0);
    inboxes[six] = name_of(inbox[six]);
    sender[six] = bound(SOCK_DGRAM, six, 0);
    CHECK(connect(sender[six], (struct sockaddr *)&inboxes[six].address, inboxes[six].length) == 0);
    senders[six] = name_of(sender[six]);
    set(inbox[six], SOL_SOCKET, SO_BROADCAST, 1);
}

static void set_up(void) {
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    int probe = socket(AF_INET6, SOCK_DGRAM, 0);
    struct place six = loopback(1, 0);
    version6 = probe >= 0 && bind(probe, (struct sockaddr *)&six.address, six.length) == 0;
    if (probe >= 0) CHECK(close(probe) == 0);
    for (int i = 0; i <= version6; i++) set_up_version(i);
    set(inbox[0], IPPROTO_IP, IP_TOS, 0x10);
    set(inbox[0], IPPROTO_IP, IP_TTL, 33);
    set(inbox[0], IPPROTO_IP, IP_PKTINFO, 1);
    set(inbox[0], IPPROTO_IP, IP_MULTICAST_TTL, 4);
    if (version6) {
        set(inbox[1], IPPROTO_IPV6, IPV6_UNICAST_HOPS, 12);
        set(inbox[1], IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    }
    wild = socket(AF_INET, SOCK_DGRAM, 0);
    set(wild, SOL_SOCKET, SO_REUSEADDR, 1);
    set(wild, SOL_SOCKET, SO_REUSEPORT, 1);
    struct place any = loopback(0, 1);
    CHECK(bind(wild, (struct sockaddr *)&any.address, any.length) == 0);
    wilds = name_of(wild);
    fresh = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(fresh >= 0);
    set(fresh, IPPROTO_TCP, TCP_SYNCNT, 3);
    for (int i = 0; i <= version6; i++) CHECK(send(sender[i], "early", 5, 0) == 5);
}

static void check_version(int six) {
    char text[32] = {0};
    struct place from = {.length = sizeof from.address};
    expect_place(listener[six], ports[six]);
    expect_place(inbox[six], inboxes[six]);
    expect_place(sender[six], senders[six]);
    expect_option(listener[six], SOL_SOCKET, SO_ACCEPTCONN, 1);
    expect_option(listener[six], SOL_SOCKET, SO_KEEPALIVE, 1);
    expect_option(listener[six], SOL_SOCKET, SO_REUSEADDR, 1);
    expect_option(listener[six], SOL_SOCKET, SO_RCVBUF, 40000);
    expect_option(listener[six], IPPROTO_TCP, TCP_NODELAY, 1);
    expect_option(listener[six], IPPROTO_TCP, TCP_KEEPIDLE, 77);
    expect_option(inbox[six], SOL_SOCKET, SO_BROADCAST, 1);
    CHECK((fcntl(listener[six], F_GETFL) & O_NONBLOCK) && fcntl(inbox[six], F_GETFD) == FD_CLOEXEC);
    CHECK(accept(listener[six], NULL, NULL) == -1 && errno == EAGAIN);
    CHECK(recvfrom(inbox[six], text, sizeof text, 0, (struct sockaddr *)&from.address, &from.length) == 5);
    CHECK(strcmp(text, "early") == 0 && from.length == senders[six].length);
    CHECK(memcmp(&from.address, &senders[six].address, from.length) == 0);
    CHECK(recv(inbox[six], text, sizeof text, 0) == -1 && errno == EAGAIN);
    CHECK(send(sender[six], "early", 5, 0) == 5);
    from.length = sizeof from.address;
    CHECK(getpeername(sender[six], (struct sockaddr *)&from.address, &from.length) == 0);
    CHECK(memcmp(&from.address, &inboxes[six].address, from.length) == 0);
}

static void check_options(void) {
    expect_option(inbox[0], IPPROTO_IP, IP_TOS, 0x10);
    expect_option(inbox[0], IPPROTO_IP, IP_TTL, 33);
    expect_option(inbox[0], IPPROTO_IP, IP_PKTINFO, 1);
    expect_option(inbox[0], IPPROTO_IP, IP_MULTICAST_TTL, 4);
    if (version6) {
        expect_option(inbox[1], IPPROTO_IPV6, IPV6_UNICAST_HOPS, 12);
        expect_option(inbox[1], IPPROTO_IPV6, IPV6_RECVPKTINFO, 1);
    }
    expect_place(wild, wilds);
    expect_option(wild, SOL_SOCKET, SO_REUSEADDR, 1);
    expect_option(wild, SOL_SOCKET, SO_REUSEPORT, 1);
    expect_option(fresh, IPPROTO_TCP, TCP_SYNCNT, 3);
    struct pollfd one = {fresh, POLLIN, 0};
    CHECK(poll(&one, 1, 0) == 1 && one.revents == POLLHUP);
}

/* The connection works, or has been reset: an error once, and its end from then on. */
static int is_open(int file) {
    char byte;
    ssize_t got = recv(file, &byte, 1, MSG_DONTWAIT);
    if (got == -1 && errno == EAGAIN) return 1;
    CHECK(got == 0 || (got == -1 && errno == ECONNRESET));
    CHECK(recv(file, &byte, 1, MSG_DONTWAIT) == 0);
    CHECK(send(file, "x", 1, 0) == -1 && errno == EPIPE);
    return 0;
}

static void connect_to(int six) {
    client = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    CHECK(client >= 0 && connect(client, (struct sockaddr *)&ports[six].address, ports[six].length) == 0);
    struct pollfd one = {listener[six], POLLIN, 0};
    /* What had not been accepted when power failed is gone, like any other connection. */
    do {
        server = -1;
        if (poll(&one, 1, 0) == 1) server = accept(listener[six], NULL, NULL);
        if (server < 0 && !is_open(client)) return;
    } while (server < 0);
}

/* One exchange over a connection, again until no failure has come between; each part tells of it. */
static void check_connection(int six) {
    for (int tries = 0, done = 0; !done; tries++) {
        char text[8] = {0};
        CHECK(tries < 3);
        connect_to(six);
        done = server >= 0 && send(client, "hello", 5, 0) == 5;
        if (server >= 0 && !done) CHECK(errno == ECONNRESET || errno == EPIPE);
        if (done) {
            ssize_t got = recv(server, text, 5, MSG_WAITALL);
            done = got == 5 && strcmp(text, "hello") == 0;
            CHECK(done || got == 0 || (got == -1 && errno == ECONNRESET));
        }
        if (server >= 0) CHECK(close(server) == 0);
        CHECK(close(client) == 0);
    }
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 120);
    set_up();
    for (long round = 0; round < rounds; round++) {
        for (int i = 0; i <= version6; i++) check_version(i);
        check_options();
        for (int i = 0; i <= version6; i++) check_connection(i);
        if (rounds > 4) sleep_us(2000);
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
