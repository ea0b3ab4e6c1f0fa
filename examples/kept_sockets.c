/* What becomes of sockets: Unix, internet, netlink. See kept.h. */
#include "kept.h"
#include <arpa/inet.h>
#include <ifaddrs.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* A connection that a failure meets before it is accepted is gone, as are replies that wait; there are two failures. */
enum { TRIES = 3 };
enum { KINDS = 3 };
static const int kinds[KINDS] = {SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET};
static int pairs[KINDS][2], half[2], passing[2], unix_listener, unix_inbox, abstract, unix_client, unix_server;
static int listener[2] = {-1, -1}, fresh[2], inbox[2] = {-1, -1}, sender[2] = {-1, -1}, client, server, waiting_client, backlogged, full, attempts[2], refusals[2], netlink, asked, version6;
static in_port_t ports[2], inbox_ports[2], sender_ports[2];
static char own_abstract[64];

static socklen_t place(int six, in_port_t port, struct sockaddr_storage *to) {
    struct sockaddr_in *four = (struct sockaddr_in *)to;
    struct sockaddr_in6 *long_one = (struct sockaddr_in6 *)to;
    memset(to, 0, sizeof *to);
    to->ss_family = six ? AF_INET6 : AF_INET;
    four->sin_port = port;
    if (six)
        long_one->sin6_addr = in6addr_loopback;
    else
        four->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    return six ? sizeof *long_one : sizeof *four;
}

/* Where a socket is bound, or (`peer`) connected to; 0: nowhere. */
static in_port_t port_of(int file, int peer) {
    struct sockaddr_storage at;
    socklen_t length = sizeof at;
    int got = peer ? getpeername(file, (struct sockaddr *)&at, &length) : getsockname(file, (struct sockaddr *)&at, &length);
    return got == 0 ? ((struct sockaddr_in *)&at)->sin_port : 0;
}

static int bound(int kind, int six) {
    struct sockaddr_storage at;
    socklen_t length = place(six, 0, &at);
    int made = socket(at.ss_family, kind, 0), on = 1;
    if (made < 0) return -1;
    if (kind & SOCK_STREAM) CHECK(setsockopt(made, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) == 0);
    if (bind(made, (struct sockaddr *)&at, length) == 0) return made;
    CHECK(close(made) == 0);
    return -1;
}

static int connect_once(int file, int six, in_port_t port) {
    struct sockaddr_storage at;
    socklen_t length = place(six, port, &at);
    return connect(file, (struct sockaddr *)&at, length);
}

static void connect_to(int file, int six, in_port_t port) { CHECK(connect_once(file, six, port) == 0); }

/* Options with values that no socket has by itself; what cannot be set here is shown as it is. */
struct option {
    const char *name;
    int level, option, value;
};
static const struct option of_all[] = {
    {"SO_RCVBUF", SOL_SOCKET, SO_RCVBUF, 20000}, {"SO_SNDBUF", SOL_SOCKET, SO_SNDBUF, 30000},
    {"SO_KEEPALIVE", SOL_SOCKET, SO_KEEPALIVE, 1}, {"SO_REUSEPORT", SOL_SOCKET, SO_REUSEPORT, 1},
    {"SO_RCVLOWAT", SOL_SOCKET, SO_RCVLOWAT, 3}, {"SO_TIMESTAMP", SOL_SOCKET, SO_TIMESTAMP, 1},
    {"SO_OOBINLINE", SOL_SOCKET, SO_OOBINLINE, 1}, {"SO_DONTROUTE", SOL_SOCKET, SO_DONTROUTE, 1},
    {"SO_PRIORITY", SOL_SOCKET, SO_PRIORITY, 4}, {"SO_MAX_PACING_RATE", SOL_SOCKET, SO_MAX_PACING_RATE, 123456},
};
static const struct option of_tcp[] = {
    {"TCP_NODELAY", IPPROTO_TCP, TCP_NODELAY, 1}, {"TCP_KEEPIDLE", IPPROTO_TCP, TCP_KEEPIDLE, 77},
    {"TCP_KEEPINTVL", IPPROTO_TCP, TCP_KEEPINTVL, 13}, {"TCP_KEEPCNT", IPPROTO_TCP, TCP_KEEPCNT, 5},
    {"TCP_DEFER_ACCEPT", IPPROTO_TCP, TCP_DEFER_ACCEPT, 7}, {"TCP_SYNCNT", IPPROTO_TCP, TCP_SYNCNT, 3},
    {"TCP_USER_TIMEOUT", IPPROTO_TCP, TCP_USER_TIMEOUT, 4321},
    {"TCP_LINGER2", IPPROTO_TCP, TCP_LINGER2, 17}, {"TCP_WINDOW_CLAMP", IPPROTO_TCP, TCP_WINDOW_CLAMP, 30000},
    {"TCP_NOTSENT_LOWAT", IPPROTO_TCP, TCP_NOTSENT_LOWAT, 9000}, {"TCP_FASTOPEN", IPPROTO_TCP, TCP_FASTOPEN, 6},
    {"TCP_THIN_LINEAR_TIMEOUTS", IPPROTO_TCP, TCP_THIN_LINEAR_TIMEOUTS, 1},
};
static const struct option of_ip[] = {
    {"IP_TOS", IPPROTO_IP, IP_TOS, 0x10}, {"IP_TTL", IPPROTO_IP, IP_TTL, 33}, {"IP_PKTINFO", IPPROTO_IP, IP_PKTINFO, 1},
    {"IP_MULTICAST_TTL", IPPROTO_IP, IP_MULTICAST_TTL, 4}, {"IP_MULTICAST_LOOP", IPPROTO_IP, IP_MULTICAST_LOOP, 0},
    {"IP_RECVTOS", IPPROTO_IP, IP_RECVTOS, 1}, {"IP_RECVTTL", IPPROTO_IP, IP_RECVTTL, 1},
    {"IP_MTU_DISCOVER", IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_PROBE}, {"IP_RECVERR", IPPROTO_IP, IP_RECVERR, 1},
    {"IP_MINTTL", IPPROTO_IP, IP_MINTTL, 2}, {"IP_RECVORIGDSTADDR", IPPROTO_IP, IP_RECVORIGDSTADDR, 1},
    {"IP_FREEBIND", IPPROTO_IP, IP_FREEBIND, 1}, {"SO_BROADCAST", SOL_SOCKET, SO_BROADCAST, 1},
};
static const struct option of_ip6[] = {
    {"IPV6_UNICAST_HOPS", IPPROTO_IPV6, IPV6_UNICAST_HOPS, 12}, {"IPV6_TCLASS", IPPROTO_IPV6, IPV6_TCLASS, 0x20},
    {"IPV6_MULTICAST_HOPS", IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 5}, {"IPV6_RECVPKTINFO", IPPROTO_IPV6, IPV6_RECVPKTINFO, 1},
    {"IPV6_RECVHOPLIMIT", IPPROTO_IPV6, IPV6_RECVHOPLIMIT, 1}, {"IPV6_MTU_DISCOVER", IPPROTO_IPV6, IPV6_MTU_DISCOVER, 2},
    {"IPV6_RECVTCLASS", IPPROTO_IPV6, IPV6_RECVTCLASS, 1}, {"IPV6_RECVERR", IPPROTO_IPV6, IPV6_RECVERR, 1},
    {"IPV6_DONTFRAG", IPPROTO_IPV6, IPV6_DONTFRAG, 1}, {"IPV6_ADDR_PREFERENCES", IPPROTO_IPV6, 72, 2},
    {"IPV6_MULTICAST_LOOP", IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 0},
};
#define EACH(all) all, (int)(sizeof all / sizeof *all)

static void set_options(int file, const struct option *all, int count) {
    for (int i = 0; i < count; i++) (void)setsockopt(file, all[i].level, all[i].option, &all[i].value, sizeof all[i].value);
}

static void look_at_options(const char *object, int file, const struct option *all, int count) {
    for (int i = 0; i < count; i++) {
        int value = -1;
        socklen_t length = sizeof value;
        if (getsockopt(file, all[i].level, all[i].option, &value, &length) != 0) value = -errno;
        note(object, all[i].name, "%d", value);
    }
}

static void set_up_internet(int six) {
    listener[six] = bound(SOCK_STREAM | SOCK_NONBLOCK, six);
    fresh[six] = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
    inbox[six] = bound(SOCK_DGRAM | SOCK_NONBLOCK, six);
    sender[six] = bound(SOCK_DGRAM | SOCK_CLOEXEC, six);
    CHECK(listener[six] >= 0 && fresh[six] >= 0 && inbox[six] >= 0 && sender[six] >= 0 && listen(listener[six], 5) == 0);
    ports[six] = port_of(listener[six], 0);
    inbox_ports[six] = port_of(inbox[six], 0);
    sender_ports[six] = port_of(sender[six], 0);
    connect_to(sender[six], six, inbox_ports[six]);
    CHECK(send(sender[six], "datagram", 8, 0) == 8);
}

static void set_up_streams(void) {
    client = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(client >= 0);
    connect_to(client, 0, ports[0]);
    struct pollfd one = {listener[0], POLLIN, 0};
    /* A failure in between resets a connection that nobody has accepted. */
    server = poll(&one, 1, 2000) == 1 ? accept(listener[0], NULL, NULL) : -1;
    if (server < 0) server = client;
    backlogged = bound(SOCK_STREAM, 0);
    CHECK(listen(backlogged, 1) == 0);
    waiting_client = socket(AF_INET, SOCK_STREAM, 0);
    connect_to(waiting_client, 0, port_of(backlogged, 0));
}

/* One more connection than a listener takes, and one where there is none. */
static void set_up_attempts(void) {
    full = bound(SOCK_STREAM, 0);
    CHECK(listen(full, 0) == 0);
    int first = socket(AF_INET, SOCK_STREAM, 0), nobody = bound(SOCK_STREAM, 0);
    connect_to(first, 0, port_of(full, 0));
    for (int i = 0; i < 2; i++) {
        attempts[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        refusals[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
        CHECK(connect_once(attempts[i], 0, port_of(full, 0)) == -1 && errno == EINPROGRESS);
        CHECK(connect_once(refusals[i], 0, port_of(nobody, 0)) == -1);
    }
    CHECK(close(nobody) == 0);
}

static int unix_bound(int kind, const char *path, int nameless) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    int made = socket(AF_UNIX, kind | SOCK_NONBLOCK, 0);
    strcpy(at.sun_path + nameless, path);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
    CHECK(made >= 0 && bind(made, (struct sockaddr *)&at, length) == 0);
    return made;
}

static void set_up_unix(void) {
    for (int i = 0; i < KINDS; i++) {
        CHECK(socketpair(AF_UNIX, kinds[i] | SOCK_NONBLOCK, 0, pairs[i]) == 0);
        CHECK(send(pairs[i][0], "first", 5, 0) == 5 && send(pairs[i][0], "second", 6, 0) == 6);
    }
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, half) == 0 && shutdown(half[0], SHUT_WR) == 0);
    int on = 1;
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, passing) == 0);
    CHECK(setsockopt(passing[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    unix_listener = unix_bound(SOCK_STREAM, "listener", 0);
    unix_inbox = unix_bound(SOCK_DGRAM, "inbox", 0);
    snprintf(own_abstract, sizeof own_abstract, "kept-%d", getpid());
    abstract = unix_bound(SOCK_STREAM, own_abstract, 1);
    CHECK(listen(unix_listener, 5) == 0 && listen(abstract, 5) == 0);
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "listener"};
    unix_client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(unix_client, (struct sockaddr *)&at, sizeof at) == 0);
    unix_server = accept(unix_listener, NULL, NULL);
    if (unix_server >= 0) CHECK(send(unix_client, "to the server", 13, MSG_NOSIGNAL) == 13);
}

static void set_up(void) {
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    int probe = bound(SOCK_DGRAM, 1);
    version6 = probe >= 0;
    if (version6) CHECK(close(probe) == 0);
    for (int i = 0; i <= version6; i++) set_up_internet(i);
    set_options(fresh[0], EACH(of_all));
    set_options(fresh[0], EACH(of_tcp));
    set_options(inbox[0], EACH(of_ip));
    if (version6) set_options(inbox[1], EACH(of_ip6));
    struct ip_mreqn group = {.imr_ifindex = (int)if_nametoindex("lo")};
    group.imr_multiaddr.s_addr = htonl(0xefff0102);
    (void)setsockopt(inbox[0], IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof group);
    struct linger linger = {1, 9};
    struct timeval time = {4, 0};
    int segment = 1000;
    CHECK(setsockopt(fresh[0], IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment) == 0);
    CHECK(setsockopt(fresh[0], SOL_SOCKET, SO_LINGER, &linger, sizeof linger) == 0);
    CHECK(setsockopt(fresh[0], SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time) == 0);
    (void)setsockopt(fresh[0], IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
    (void)setsockopt(fresh[0], SOL_SOCKET, SO_BINDTODEVICE, "lo", 3);
    set_up_streams();
    set_up_attempts();
    set_up_unix();
    netlink = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct sockaddr_nl at = {.nl_family = AF_NETLINK, .nl_groups = 1};
    CHECK(netlink >= 0 && bind(netlink, (struct sockaddr *)&at, sizeof at) == 0);
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } links = {{sizeof links, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 77, 0}, {AF_UNSPEC}};
    asked = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
    CHECK(asked >= 0 && send(asked, &links, sizeof links, 0) == sizeof links);
}

static const char *waits(int file) {
    static char bytes[TEXT];
    ssize_t got = recv(file, bytes, sizeof bytes - 1, MSG_PEEK | MSG_DONTWAIT);
    bytes[got > 0 ? got : 0] = 0;
    return got > 0 ? bytes : got == 0 ? "its end" : strerrorname_np(errno);
}

static void look_at_unix(void) {
    static const char *const names[KINDS] = {"Unix stream pair", "Unix datagram pair", "Unix packet pair"};
    for (int i = 0; i < KINDS; i++) {
        int waiting = 0;
        note(names[i], "what waits", "%s", waits(pairs[i][1]));
        CHECK(ioctl(pairs[i][1], FIONREAD, &waiting) == 0);
        note(names[i], "bytes of the first read", "%d", waiting);
        holds(names[i], "goes on", send(pairs[i][1], "x", 1, 0) == 1 && recv(pairs[i][0], own_abstract + 60, 1, 0) == 1);
    }
    note("Unix stream pair", "shut down on one side", "%s", waits(half[1]));
    struct ucred peer = {0};
    socklen_t length = sizeof peer;
    CHECK(getsockopt(pairs[0][0], SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0);
    holds("Unix stream pair", "process of the peer (SO_PEERCRED)", peer.pid == getpid() && peer.uid == getuid());
    int on = 0;
    length = sizeof on;
    CHECK(getsockopt(passing[1], SOL_SOCKET, SO_PASSCRED, &on, &length) == 0);
    note("Unix datagram pair", "SO_PASSCRED", "%d", on);
}

/* A new connection to a listener at a path, or without one. */
static int serves_once(const char *path, int nameless) {
    struct sockaddr_un at = {.sun_family = AF_UNIX};
    strcpy(at.sun_path + nameless, path);
    int made = socket(AF_UNIX, SOCK_STREAM, 0);
    socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(path) + 1);
    int done = made >= 0 && connect(made, (struct sockaddr *)&at, length) == 0;
    CHECK(close(made) == 0);
    int accepted = accept(nameless ? abstract : unix_listener, NULL, NULL);
    if (accepted >= 0) CHECK(close(accepted) == 0);
    return done && accepted >= 0;
}

static int serves(const char *path, int nameless) {
    int done = 0;
    for (int tries = 0; tries < TRIES && !done; tries++) done = serves_once(path, nameless);
    return done;
}

static void look_at_unix_names(void) {
    struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "inbox"};
    int sender = socket(AF_UNIX, SOCK_DGRAM, 0);
    char bytes[32];
    holds("Unix listener", "serves its path", serves("listener", 0));
    holds("Unix listener", "serves its abstract name", serves(own_abstract, 1));
    ssize_t sent = sendto(sender, "mail", 4, 0, (struct sockaddr *)&at, sizeof at);
    holds("Unix datagram socket", "receives at its path", sent == 4 && recv(unix_inbox, bytes, 32, 0) == 4);
    CHECK(close(sender) == 0);
    socklen_t length = sizeof at;
    int named = getpeername(unix_client, (struct sockaddr *)&at, &length) == 0 && strcmp(at.sun_path, "listener") == 0;
    note("Unix connection", "name of the peer", "%s", named ? "listener" : "none");
    instead("none", "it comes back as a pair, which has no names");
    note("Unix connection", "what waits", "%s", unix_server >= 0 ? waits(unix_server) : "to the server");
}

static void look_at_datagrams(const char *object, int six) {
    holds(object, "port", port_of(inbox[six], 0) == inbox_ports[six]);
    note(object, "a datagram that waits, the program's own", "%s", waits(inbox[six]));
    holds(object, "peer (connect)", port_of(sender[six], 1) == inbox_ports[six]);
    holds(object, "port of one that is connected", port_of(sender[six], 0) == sender_ports[six]);
    holds(object, "close-on-exec", fcntl(sender[six], F_GETFD) == FD_CLOEXEC);
    holds(object, "O_NONBLOCK", fcntl(inbox[six], F_GETFL) & O_NONBLOCK);
}

static void look_at_listener(const char *object, int six) {
    int on = 0;
    socklen_t length = sizeof on;
    if (listener[six] < 0) {
        static const char *const names[] = {"port", "listens", "length of its queue", "serves"};
        for (int i = 0; i < 4; i++) note(object, names[i], "absent");
        return;
    }
    holds(object, "port", port_of(listener[six], 0) == ports[six]);
    CHECK(getsockopt(listener[six], SOL_SOCKET, SO_ACCEPTCONN, &on, &length) == 0);
    holds(object, "listens", on);
    struct tcp_info info;
    length = sizeof info;
    CHECK(getsockopt(listener[six], IPPROTO_TCP, TCP_INFO, &info, &length) == 0);
    note(object, "length of its queue", "%u", info.tcpi_sacked);
    int served = 0;
    for (int tries = 0; tries < TRIES && !served; tries++) {
        int made = socket(six ? AF_INET6 : AF_INET, SOCK_STREAM, 0);
        connect_to(made, six, ports[six]);
        struct pollfd one = {listener[six], POLLIN, 0};
        int accepted = poll(&one, 1, 2000) == 1 ? accept(listener[six], NULL, NULL) : -1;
        served = accepted >= 0;
        CHECK((!served || close(accepted) == 0) && close(made) == 0);
    }
    holds(object, "serves", served);
}

/* An established stream: "open", or how it is not: it is reset once only. */
static int was_reset[64];
static const char *stream(int file) {
    char byte;
    ssize_t got = recv(file, &byte, 1, MSG_DONTWAIT);
    if (got == -1 && errno == EAGAIN) return "open";
    CHECK(file < 64 && (was_reset[file] ? got == 0 : got == -1 && errno == ECONNRESET));
    was_reset[file] = 1;
    CHECK(recv(file, &byte, 1, MSG_DONTWAIT) == 0);
    return "ECONNRESET, then its end";
}

static void look_at_streams(void) {
    static const char reset[] = "ECONNRESET, then its end";
    note("TCP connection", "established", "%s", stream(client));
    instead(reset, "its peer is gone, or has given up");
    holds("TCP connection", "descriptor", fcntl(client, F_GETFD) == 0);
    ssize_t sent = send(client, "x", 1, 0);
    if (sent == -1 && errno == ECONNRESET) {
        /* Only just. */
        was_reset[client] = 1;
        sent = send(client, "x", 1, 0);
    }
    note("TCP connection", "write", "%s", sent == 1 ? "done" : strerrorname_np(errno));
    instead("EPIPE", "as for every connection that was reset");
    if (sent == 1) (void)recv(server, own_abstract + 60, 1, 0);
    note("TCP connection", "that nobody has accepted yet", "%s", stream(waiting_client));
    instead(reset, "as every other connection");
    struct pollfd one = {backlogged, POLLIN, 0};
    note("TCP connection", "that is to be accepted", "%s", poll(&one, 1, 0) == 1 ? "waits" : "gone");
    instead("gone", "as every other connection");
    int again = connect_once(client, 0, ports[0]);
    note("TCP connection", "another connect(2)", "%s", again == 0 ? "done" : strerrorname_np(errno));
}

/* Attempts that the program has not been told the end of: one that nobody answers, and one that was refused. */
static void look_at_attempts(void) {
    static int lost;
    int again = connect_once(attempts[looks], 0, ports[0]);
    lost |= again != 0 && errno != EALREADY;
    note("TCP attempt", "under way", "%s", lost ? "has failed" : "goes on");
    instead("has failed", "as every connection");
    /* The first says how the one before has ended. */
    for (int tries = 0; tries < 2; tries++) again = connect_once(refusals[looks], 0, ports[0]);
    holds("TCP attempt", "another one of a socket that was refused", again == 0 || errno == EINPROGRESS);
}

static void look_at_more_options(void) {
    struct linger linger = {0};
    struct timeval time = {0};
    char name[32] = {0}, device[IFNAMSIZ] = {0};
    socklen_t length = sizeof linger;
    CHECK(getsockopt(fresh[0], SOL_SOCKET, SO_LINGER, &linger, &length) == 0);
    int segment = -1;
    length = sizeof segment;
    CHECK(getsockopt(fresh[0], IPPROTO_TCP, TCP_MAXSEG, &segment, &length) == 0);
    note("option", "TCP_MAXSEG", "%s", segment == 1000 ? "1000" : "not 1000");
    instead("not 1000", "the kernel does not tell what was set from what it has found out");
    note("option", "SO_LINGER", "%d, %d", linger.l_onoff, linger.l_linger);
    length = sizeof time;
    CHECK(getsockopt(fresh[0], SOL_SOCKET, SO_RCVTIMEO, &time, &length) == 0);
    note("option", "SO_RCVTIMEO", "%ld", (long)time.tv_sec);
    length = sizeof name;
    CHECK(getsockopt(fresh[0], IPPROTO_TCP, TCP_CONGESTION, name, &length) == 0);
    note("option", "TCP_CONGESTION", "%s", name);
    length = sizeof device;
    CHECK(getsockopt(fresh[0], SOL_SOCKET, SO_BINDTODEVICE, device, &length) == 0);
    note("option", "SO_BINDTODEVICE", "%s", device);
    char groups[4096];
    int file = open("/proc/net/igmp", O_RDONLY);
    ssize_t got = file >= 0 ? read(file, groups, sizeof groups - 1) : 0;
    groups[got > 0 ? got : 0] = 0;
    if (file >= 0) CHECK(close(file) == 0);
    holds("option", "IP_ADD_MEMBERSHIP", strstr(groups, "0201FFEF") != NULL);
    instead("no", "the kernel does not say which groups a socket has joined");
}

/* Passes over what belongs to other requests. */
static int asked_once(void) {
    struct {
        struct nlmsghdr head;
        struct rtgenmsg body;
    } links = {{sizeof links, RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 78, 0}, {AF_UNSPEC}};
    struct nlmsghdr reply[4096];
    CHECK(send(asked, &links, sizeof links, 0) == sizeof links);
    for (int i = 0; i < 16; i++)
        if (recv(asked, reply, sizeof reply, MSG_DONTWAIT) > 0 && reply->nlmsg_seq == 78) return reply->nlmsg_type == RTM_NEWLINK;
    return 0;
}

static int asked_again(void) {
    int done = 0;
    for (int tries = 0; tries < TRIES && !done; tries++) done = asked_once();
    return done;
}

static void look_at_netlink(void) {
    struct sockaddr_nl at;
    socklen_t length = sizeof at;
    CHECK(getsockname(netlink, (struct sockaddr *)&at, &length) == 0);
    note("netlink socket", "groups", "%u", at.nl_groups);
    holds("netlink socket", "port", at.nl_pid != 0);
    static int lost;
    char reply[64];
    ssize_t got = recv(asked, reply, sizeof reply, MSG_PEEK | MSG_DONTWAIT);
    if (got == -1 && errno == ENOBUFS) lost = 1;
    note("netlink socket", "a reply that waits", "%s", lost ? "ENOBUFS" : got > 0 ? "there" : "gone");
    instead("ENOBUFS", "the kernel's messages cannot be put back: netlink(7) has that error for those that are lost");
    holds("netlink socket", "is asked again", !lost || asked_again());
    struct ifaddrs *all = NULL;
    int found = 0;
    for (int tries = 0; tries < TRIES && !found; tries++) {
        found = getifaddrs(&all) == 0;
        if (!found && errno != ENOBUFS) break;
    }
    holds("netlink socket", "getifaddrs", found && all != NULL);
    if (found) freeifaddrs(all);
    int made = socket(40 /* AF_VSOCK */, SOCK_STREAM, 0);
    refused("vsock socket", made);
    if (made >= 0) CHECK(close(made) == 0);
    made = socket(38 /* AF_ALG */, SOCK_SEQPACKET, 0);
    refused("socket of the kernel's ciphers (AF_ALG)", made);
    if (made >= 0) CHECK(close(made) == 0);
}

static void look(void) {
    look_at_unix();
    look_at_unix_names();
    look_at_datagrams("UDP socket", 0);
    look_at_listener("TCP listener", 0);
    int from = noted;
    look_at_datagrams("UDP socket, IPv6", 1);
    absent_from(from, !version6);
    look_at_listener("TCP listener, IPv6", 1);
    look_at_streams();
    look_at_attempts();
    look_at_options("option", fresh[0], EACH(of_all));
    look_at_options("option", fresh[0], EACH(of_tcp));
    look_at_options("option", inbox[0], EACH(of_ip));
    from = noted;
    look_at_options("option", inbox[1], EACH(of_ip6));
    absent_from(from, !version6);
    look_at_more_options();
    look_at_netlink();
}

int main(int count, char **values) { return keep(count, values, set_up, look); }
