/* A pseudo-terminal as a program leaves it: settings, window size, what was typed and not read yet, by lines and by
 * bytes, what was printed and not shown yet; and a terminal whose other side is closed.
 *
 * terminals [ROUNDS] */
#include "guest.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>

static int keyboard, screen, second, raw_keyboard, raw_screen, hung, fresh;
static struct termios settings, raw_settings;

static void pair(int *master, int *slave) {
    int unlocked = 0;
    *master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
    CHECK(*master >= 0 && ioctl(*master, TIOCSPTLCK, &unlocked) == 0);
    *slave = ioctl(*master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_NONBLOCK);
    CHECK(*slave >= 0);
}

static void say(int file, const char *text) { CHECK(write(file, text, strlen(text)) == (ssize_t)strlen(text)); }

static void expect(int file, const char *text) {
    char bytes[64] = {0};
    ssize_t got = read(file, bytes, sizeof bytes - 1);
    if (got != (ssize_t)strlen(text) || strcmp(bytes, text) != 0)
        FAIL("descriptor %d gives %zd bytes \"%s\", not \"%s\"", file, got, bytes, text);
}

static void expect_nothing(int file) {
    char byte;
    CHECK(read(file, &byte, 1) == -1 && errno == EAGAIN);
}

static void set_up(void) {
    struct winsize size = {31, 97, 310, 970};
    pair(&keyboard, &screen);
    CHECK(fcntl(keyboard, F_SETFL, O_NONBLOCK) == 0);
    CHECK(tcgetattr(screen, &settings) == 0);
    settings.c_lflag &= ~(tcflag_t)(ECHO | ISIG);
    settings.c_cc[VERASE] = '#';
    settings.c_oflag |= OPOST | ONLCR;
    CHECK(tcsetattr(screen, TCSANOW, &settings) == 0 && ioctl(screen, TIOCSWINSZ, &size) == 0);
    CHECK(tcgetattr(screen, &settings) == 0);
    second = dup(screen);
    CHECK(second >= 0);
    pair(&raw_keyboard, &raw_screen);
    CHECK(fcntl(raw_keyboard, F_SETFL, O_NONBLOCK) == 0);
    CHECK(tcgetattr(raw_screen, &raw_settings) == 0);
    cfmakeraw(&raw_settings);
    CHECK(tcsetattr(raw_screen, TCSAFLUSH, &raw_settings) == 0 && tcgetattr(raw_screen, &raw_settings) == 0);
    int closed, unlocked = 0;
    pair(&hung, &closed);
    CHECK(write(closed, "bye", 3) == 3 && close(closed) == 0);
    fresh = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK);
    CHECK(fresh >= 0 && ioctl(fresh, TIOCSPTLCK, &unlocked) == 0);
    say(keyboard, "first line\nsecond\nunfini");
    say(screen, "out\n");
    say(raw_keyboard, "raw\r\003\004#bytes");
    say(raw_screen, "shown\n");
}

static void check_settings(void) {
    struct termios now, raw_now;
    struct winsize size;
    int number = -1, same = -2;
    CHECK(tcgetattr(screen, &now) == 0 && tcgetattr(raw_screen, &raw_now) == 0);
    CHECK(memcmp(&now, &settings, sizeof now) == 0 && memcmp(&raw_now, &raw_settings, sizeof raw_now) == 0);
    CHECK(ioctl(keyboard, TIOCGWINSZ, &size) == 0 && size.ws_row == 31 && size.ws_col == 97 && size.ws_xpixel == 310);
    CHECK(isatty(screen) && isatty(second) && fcntl(keyboard, F_GETFD) == FD_CLOEXEC);
    CHECK((fcntl(screen, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK));
    CHECK((fcntl(raw_keyboard, F_GETFL) & (O_ACCMODE | O_NONBLOCK)) == (O_RDWR | O_NONBLOCK));
    CHECK(ioctl(keyboard, TIOCGPTN, &number) == 0 && ioctl(screen, TIOCGPTN, &same) == -1);
}

/* What was typed: lines when they are complete, and what can still be erased. */
static void check_input(void) {
    struct pollfd one = {screen, POLLIN, 0};
    int waiting = -1;
    CHECK(poll(&one, 1, 10000) == 1 && ioctl(screen, FIONREAD, &waiting) == 0 && waiting == 18);
    expect(second, "first line\n");
    expect(screen, "second\n");
    expect_nothing(screen);
    say(keyboard, "##nished\n");
    expect(screen, "unfinished\n");
    expect_nothing(screen);
    say(keyboard, "first line\nsecond\nunfini");
    expect(raw_screen, "raw\r\003\004#bytes");
    expect_nothing(raw_screen);
    say(raw_keyboard, "raw\r\003\004#bytes");
}

static void check_output(long round) {
    char bytes[8] = {0};
    expect(keyboard, "out\r\n");
    expect_nothing(keyboard);
    say(screen, "out\n");
    expect(raw_keyboard, "shown\n");
    expect_nothing(raw_keyboard);
    say(raw_screen, "shown\n");
    if (round == 0) CHECK(read(hung, bytes, sizeof bytes) == 3 && strcmp(bytes, "bye") == 0);
    struct pollfd one = {hung, POLLIN, 0};
    CHECK(poll(&one, 1, 0) == 1 && (one.revents & POLLHUP));
    CHECK(read(hung, bytes, 1) == -1 && errno == EIO);
    expect_nothing(fresh);
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 120);
    set_up();
    for (long round = 0; round < rounds; round++) {
        check_settings();
        check_input();
        check_output(round);
        if (rounds > 4) sleep_us(2000);
    }
    printf("%ld rounds\n", rounds);
    return 0;
}
