/* Robust mutexes: whoever comes next is told that their owner has ended, wherever in its life a failure has come, and how
 * many wait.
 *
 * robust [ROUNDS] */
#include "guest.h"

enum { MUTEXES = 3, WAITERS = 3 };

static pthread_mutex_t mutexes[MUTEXES];
static volatile int told, held;

static void *end_with_all(void *wait) {
    for (int i = 0; i < MUTEXES; i++) CHECK(pthread_mutex_lock(&mutexes[i]) == 0);
    __atomic_store_n(&held, 1, __ATOMIC_RELEASE);
    sleep_us((long)wait);
    return NULL;
}

/* One after the other finds out, the first of them that the owner is gone. */
static void *wait_for_all(void *unused) {
    for (int i = 0; i < MUTEXES; i++) {
        int result = pthread_mutex_lock(&mutexes[i]);
        if (result == EOWNERDEAD) {
            __atomic_fetch_add(&told, 1, __ATOMIC_RELAXED);
            CHECK(pthread_mutex_consistent(&mutexes[i]) == 0);
        } else if (result != 0) {
            FAIL("mutex %d: %s", i, strerror(result));
        }
        CHECK(pthread_mutex_unlock(&mutexes[i]) == 0);
    }
    return unused;
}

int main(int count, char **values) {
    long rounds = argument(count, values, 1, 100);
    pthread_mutexattr_t robust;
    CHECK(pthread_mutexattr_init(&robust) == 0);
    CHECK(pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST) == 0);
    for (int i = 0; i < MUTEXES; i++) CHECK(pthread_mutex_init(&mutexes[i], &robust) == 0);
    for (long round = 0; round < rounds; round++) {
        pthread_t owner, waiters[WAITERS];
        told = held = 0;
        CHECK(pthread_create(&owner, NULL, end_with_all, (void *)(3000 + round % 3 * 1000)) == 0);
        while (!__atomic_load_n(&held, __ATOMIC_ACQUIRE)) sleep_us(100);
        for (int i = 0; i < WAITERS; i++) CHECK(pthread_create(&waiters[i], NULL, wait_for_all, NULL) == 0);
        for (int i = 0; i < WAITERS; i++) CHECK(pthread_join(waiters[i], NULL) == 0);
        CHECK(pthread_join(owner, NULL) == 0);
        if (told != MUTEXES) FAIL("round %ld: %d of %d were told", round, told, MUTEXES);
    }
    printf("%ld rounds of %d mutexes\n", rounds, MUTEXES);
    return 0;
}
