/* What becomes of pipes, FIFOs and terminals. See kept.h. */
#include "kept.h"
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <termios.h>

enum { LARGE = 1 << 18 };
static int plain[2], packets[2], large[2], deaf[2], ended[2], full[2], fifo_in, fifo_out, gone_in, gone_out, lonely;
static int keyboard, screen, raw_keyboard, raw_screen, packet_keyboard, packet_screen, hung, exclusive, locked;
static char name_of_screen[64];

static void pair(int *master, int *slave) {
    int unlocked = 0;
    CHECK((*master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK)) >= 0);
    CHECK(ioctl(*master, TIOCSPTLCK, &unlocked) == 0);
    CHECK((*slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK)) >= 0);
}

static void say(int file, const char *text) { CHECK(write(file, text, strlen(text)) == (ssize_t)strlen(text)); }

static void set_up_pipes(void) {
    static char block[LARGE];
    CHECK(signal(SIGPIPE, SIG_IGN) != SIG_ERR);
    CHECK(pipe2(plain, O_NONBLOCK | O_CLOEXEC) == 0 && pipe2(packets, O_DIRECT | O_NONBLOCK) == 0);
    CHECK(pipe(large) == 0 && fcntl(large[0], F_SETPIPE_SZ, LARGE) == LARGE && write(large[1], block, LARGE) == LARGE);
    CHECK(pipe2(full, O_NONBLOCK) == 0 && fcntl(full[0], F_SETPIPE_SZ, 4096) == 4096 && write(full[1], block, 4096) == 4096);
    say(plain[1], "0123456789");
    CHECK(read(plain[0], block, 3) == 3);
    CHECK(pipe(deaf) == 0 && close(deaf[0]) == 0 && pipe(ended) == 0 && close(ended[1]) == 0);
    CHECK(mkfifo("fifo", 0600) == 0 && mkfifo("gone", 0600) == 0 && mkfifo("lonely", 0600) == 0);
    fifo_in = open("fifo", O_RDONLY | O_NONBLOCK);
    fifo_out = open("fifo", O_WRONLY | O_NONBLOCK);
    gone_in = open("gone", O_RDONLY | O_NONBLOCK);
    gone_out = open("gone", O_WRONLY | O_NONBLOCK);
    lonely = open("lonely", O_RDONLY | O_NONBLOCK);
    CHECK(fifo_in >= 0 && fifo_out >= 0 && gone_in >= 0 && gone_out >= 0 && lonely >= 0 && unlink("gone") == 0);
    say(fifo_out, "0123456789");
    say(gone_out, "0123456789");
}

static void set_up(void) {
    struct winsize size = {31, 97, 310, 970};
    struct termios settings;
    int on = 1;
    set_up_pipes();
    pair(&keyboard, &screen);
    CHECK(tcgetattr(screen, &settings) == 0);
    settings.c_lflag &= ~(tcflag_t)(ECHO | ISIG);
    settings.c_cc[VERASE] = '#';
    CHECK(cfsetspeed(&settings, B9600) == 0 && tcsetattr(screen, TCSANOW, &settings) == 0);
    CHECK(ioctl(screen, TIOCSWINSZ, &size) == 0 && ttyname_r(screen, name_of_screen, sizeof name_of_screen) == 0);
    pair(&raw_keyboard, &raw_screen);
    cfmakeraw(&settings);
    settings.c_cc[VMIN] = 5;
    CHECK(tcsetattr(raw_screen, TCSANOW, &settings) == 0);
    pair(&packet_keyboard, &packet_screen);
    CHECK(ioctl(packet_keyboard, TIOCPKT, &on) == 0 && ioctl(packet_screen, TIOCEXCL) == 0);
    int closed;
    pair(&hung, &closed);
    CHECK(close(closed) == 0);
    CHECK((locked = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK)) >= 0);
    exclusive = packet_screen;
    say(keyboard, "a line\nunfini");
    say(screen, "shown");
    say(raw_keyboard, "raw\r\003");
    say(packet_screen, "packet");
}

static int events_of(int file) {
    struct pollfd one = {file, POLLIN | POLLOUT, 0};
    CHECK(poll(&one, 1, 0) >= 0);
    return one.revents;
}

/* A terminal hands on what it is given in its own time. */
static void arrives(int file) {
    struct pollfd one = {file, POLLIN, 0};
    CHECK(poll(&one, 1, 5000) == 1);
}

/* What a read gives, and puts it back by writing it to `again`. */
static const char *taken(int file, int again) {
    static char bytes[TEXT];
    ssize_t got = read(file, bytes, sizeof bytes - 1);
    bytes[got > 0 ? got : 0] = 0;
    if (got > 0 && again >= 0) CHECK(write(again, bytes, (size_t)got) == got);
    return got >= 0 ? bytes : strerrorname_np(errno);
}

static void look_at_pipes(void) {
    int waiting;
    note("pipe", "bytes that wait", "%s", taken(plain[0], plain[1]));
    holds("pipe", "O_NONBLOCK", fcntl(plain[0], F_GETFL) & O_NONBLOCK);
    holds("pipe", "close-on-exec", fcntl(plain[1], F_GETFD) == FD_CLOEXEC);
    note("pipe", "capacity", "%d", fcntl(large[0], F_GETPIPE_SZ));
    CHECK(ioctl(large[0], FIONREAD, &waiting) == 0);
    note("pipe", "bytes in a full one", "%d", waiting);
    holds("pipe", "is full", events_of(full[1]) == 0);
    holds("pipe", "nobody reads (EPIPE)", write(deaf[1], "x", 1) == -1 && errno == EPIPE);
    holds("pipe", "nobody writes (its end)", read(ended[0], &waiting, 1) == 0 && events_of(ended[0]) == POLLHUP);
    holds("pipe", "packets (O_DIRECT)", fcntl(packets[1], F_GETFL) & O_DIRECT);
    if (looks == 0) say(packets[1], "one"), say(packets[1], "three");
    char first[TEXT];
    strcpy(first, taken(packets[0], packets[1]));
    note("pipe", "each packet", "%s, %s", first, taken(packets[0], packets[1]));
    note("FIFO", "bytes that wait", "%s", taken(fifo_in, fifo_out));
    struct stat now, named;
    CHECK(fstat(fifo_in, &now) == 0 && stat("fifo", &named) == 0);
    holds("FIFO", "is the one of its name", now.st_ino == named.st_ino);
    holds("FIFO", "O_NONBLOCK", fcntl(fifo_out, F_GETFL) & O_NONBLOCK);
    note("FIFO", "bytes in one that was unlinked", "%s", taken(gone_in, gone_out));
    int writer = open("lonely", O_WRONLY | O_NONBLOCK);
    holds("FIFO", "has a reader but no writer yet", writer >= 0 && read(lonely, first, 1) == -1 && errno == EAGAIN);
    CHECK(close(writer) == 0);
}

static void look_at_terminals(void) {
    struct termios now;
    struct winsize size;
    int waiting = -1, on = -1;
    CHECK(tcgetattr(screen, &now) == 0 && ioctl(keyboard, TIOCGWINSZ, &size) == 0);
    note("pseudo-terminal", "modes", "%#x %#x", now.c_lflag, now.c_oflag);
    note("pseudo-terminal", "control characters", "%c", now.c_cc[VERASE]);
    holds("pseudo-terminal", "speed", cfgetispeed(&now) == B9600 && cfgetospeed(&now) == B9600);
    note("pseudo-terminal", "size of its window", "%d x %d", size.ws_row, size.ws_col);
    arrives(screen), arrives(keyboard), arrives(raw_screen), arrives(packet_keyboard);
    note("pseudo-terminal", "lines that wait", "%s", ioctl(screen, FIONREAD, &waiting) == 0 && waiting == 7 ? "a line" : "?");
    note("pseudo-terminal", "output that waits", "%s", taken(keyboard, screen));
    if (looks == 1) {
        char line[TEXT] = {0};
        CHECK(read(screen, line, sizeof line) > 0);
        say(keyboard, "##nished\n");
        memset(line, 0, sizeof line);
        arrives(screen);
        CHECK(read(screen, line, sizeof line) > 0);
        note("pseudo-terminal", "an unfinished line, to be edited", "%.10s", line);
    } else
        note("pseudo-terminal", "an unfinished line, to be edited", "unfinished");
    CHECK(tcgetattr(raw_screen, &now) == 0);
    note("pseudo-terminal", "raw: fewest bytes of a read", "%d", now.c_cc[VMIN]);
    CHECK(ioctl(raw_screen, FIONREAD, &waiting) == 0);
    note("pseudo-terminal", "raw: bytes that wait", "%d", waiting);
    note("pseudo-terminal", "packet mode (TIOCPKT)", "%s", ioctl(packet_keyboard, TIOCGPKT, &on) == 0 && on ? "on" : "off");
    char packet[TEXT] = {0};
    ssize_t got = read(packet_keyboard, packet, sizeof packet - 1);
    note("pseudo-terminal", "packet mode: output that waits", "%d, %s", packet[0], got > 1 ? packet + 1 : "none");
    say(packet_screen, "packet");
    CHECK(ioctl(exclusive, TIOCGEXCL, &on) == 0);
    note("pseudo-terminal", "exclusive (TIOCEXCL)", "%s", on ? "on" : "off");
    CHECK(ioctl(locked, TIOCGPTLCK, &on) == 0);
    note("pseudo-terminal", "locked (TIOCSPTLCK)", "%s", on ? "on" : "off");
    holds("pseudo-terminal", "hung up", (events_of(hung) & POLLHUP) != 0);
    holds("pseudo-terminal", "O_NONBLOCK", fcntl(screen, F_GETFL) & O_NONBLOCK);
    char name[64];
    holds("pseudo-terminal", "name", ttyname_r(screen, name, sizeof name) == 0 && strcmp(name, name_of_screen) == 0);
    instead("no", "the number may be somebody else's by now");
}

static void look(void) {
    look_at_pipes();
    look_at_terminals();
}

int main(int count, char **values) { return keep(count, values, set_up, look); }
