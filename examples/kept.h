/* What becomes of kernel objects in a power failure, property by property: a guest sets objects up, looks at each
 * property, waits, and looks again. From what the looks have found, `tests/tests/objects.rs` makes launcher/OBJECTS.md.
 *
 * GUEST          a moment's wait; each property must be as it was, or as `instead` says. Prints those that must be as
 *                natively
 * GUEST table    waits for one failure (SIGPWR), and prints what was found: object, property, before, after, and why it
 *                is not as it was, with tabs between */
#ifndef KEPT_H
#define KEPT_H

#include "guest.h"
#include <fcntl.h>
#include <stdarg.h>

enum { PROPERTIES = 128, TEXT = 80 };
static struct {
    const char *object, *name, *instead, *why;
    char text[2][TEXT];
    int differs;
} properties[PROPERTIES];
static int noted, looks;
static volatile sig_atomic_t failed;

/* What a property is like now: in words that do not depend on the run. */
__attribute__((format(printf, 3, 4))) static void note(const char *object, const char *name, const char *format, ...) {
    va_list values;
    CHECK(noted < PROPERTIES);
    if (looks > 0) CHECK(properties[noted].object == object && properties[noted].name == name);
    properties[noted].object = object;
    properties[noted].name = name;
    va_start(values, format);
    CHECK(vsnprintf(properties[noted].text[looks], TEXT, format, values) < TEXT);
    va_end(values);
    noted++;
}

/* Why the one that was noted last is not as natively. */
__attribute__((unused)) static void because(const char *why) {
    properties[noted - 1].differs = 1;
    properties[noted - 1].why = why;
}

/* The one that was noted last is like this after a failure, and why. */
__attribute__((unused)) static void instead(const char *text, const char *why) {
    properties[noted - 1].instead = text;
    because(why);
}

/* This machine or kernel does not have what was noted since `from`: nothing can be said of it here. */
__attribute__((unused)) static void absent_from(int from, int absent) {
    for (int i = from; absent && i < noted; i++) strcpy(properties[i].text[looks], "absent");
}

__attribute__((unused)) static void absent(int truth) { absent_from(noted - 1, truth); }

/* A property that either holds or does not. */
__attribute__((unused)) static void holds(const char *object, const char *name, int truth) {
    note(object, name, "%s", truth ? "yes" : "no");
}

/* An object that cannot be had, by the error of the call that would make it. */
__attribute__((unused)) static void refused(const char *object, long result) {
    note(object, "can be made", result >= 0 ? "yes" : "refused: %s", strerrorname_np(errno));
    because(NULL);
}

static void on_failure(int number) {
    (void)number;
    failed = 1;
}

/* Waits until power has failed. Whoever makes it fail looks for the file. */
static void wait_for_failure(const char *ready) {
    CHECK(close(open(ready, O_WRONLY | O_CREAT, 0600)) == 0);
    while (!failed) sleep_us(1000);
}

static int keep(int count, char **values, void (*set_up)(void), void (*look)(void)) {
    int table = count > 1 && strcmp(values[1], "table") == 0;
    static char ready[4096];
    CHECK(getcwd(ready, sizeof ready - 8) != NULL);
    strcat(ready, "/ready");
    if (table) CHECK(signal(SIGPWR, on_failure) != SIG_ERR);
    set_up();
    look();
    if (table)
        wait_for_failure(ready);
    else
        sleep_us(20000);
    looks = 1;
    noted = 0;
    look();
    for (int i = 0; i < noted; i++) {
        const char *before = properties[i].text[0], *after = properties[i].text[1], *other = properties[i].instead;
        if (!table && strcmp(before, after) != 0 && !(other && strcmp(other, after) == 0))
            FAIL("%s, %s: %s, then %s", properties[i].object, properties[i].name, before, after);
        const char *why = properties[i].why ? properties[i].why : "";
        if (table) printf("%s\t%s\t%s\t%s\t%s\n", properties[i].object, properties[i].name, before, after, why);
    }
    for (int i = 0; i < noted && !table; i++)
        if (!properties[i].differs) printf("%s, %s: %s\n", properties[i].object, properties[i].name, properties[i].text[0]);
    return 0;
}

#endif
