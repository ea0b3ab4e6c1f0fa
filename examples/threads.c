/* Threads that share, wait for each other, are born and die: counters, thread-local storage, mutexes, condition
 * variables, read-write locks, barriers, semaphores, malloc, floating point.
 *
 * threads [THREADS] [ROUNDS] */
#include "guest.h"
#include <semaphore.h>

enum { MOST = 64 };
static long threads, rounds;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t semaphore;
static long shared, turn, guarded[2], inside, born;
static __thread long local;
static double results[MOST];

/* Allocates, fills, checks and frees; sizes on both sides of malloc's threshold for mmap. */
static void churn(uint64_t *seed) {
    size_t bytes = 64 + next_random(seed) % (next_random(seed) % 16 ? 20000 : 400000);
    unsigned char *block = malloc(bytes), value = (unsigned char)next_random(seed);
    CHECK(block != NULL);
    memset(block, value, bytes);
    sched_yield();
    for (size_t i = 0; i < bytes; i += 61) CHECK(block[i] == value);
    free(block);
}

static void *newborn(void *argument_) {
    local += 5;
    CHECK(local == 5);
    __atomic_add_fetch(&born, 1, __ATOMIC_SEQ_CST);
    return (void *)((long)argument_ * 3);
}

/* Waits with a time-out: condition variables of glibc before 2.41 lose a wake-up now and then (glibc bug 25847), which
 * made this program hang once in a hundred native runs. */
static void take_turn(long index) {
    CHECK(pthread_mutex_lock(&mutex) == 0);
    while (turn % threads != index) {
        struct timespec until;
        CHECK(clock_gettime(CLOCK_REALTIME, &until) == 0);
        until.tv_sec += 1;
        int result = pthread_cond_timedwait(&turn_changed, &mutex, &until);
        CHECK(result == 0 || result == ETIMEDOUT);
    }
    turn++;
    CHECK(pthread_cond_broadcast(&turn_changed) == 0);
    CHECK(pthread_mutex_unlock(&mutex) == 0);
}

static void read_or_write(long round) {
    if (round % 8 == 0) {
        CHECK(pthread_rwlock_wrlock(&rwlock) == 0);
        guarded[0]++;
        sched_yield();
        guarded[1]++;
    } else {
        CHECK(pthread_rwlock_rdlock(&rwlock) == 0);
        CHECK(guarded[0] == guarded[1]);
    }
    CHECK(pthread_rwlock_unlock(&rwlock) == 0);
}

static void enter_semaphore(void) {
    while (sem_wait(&semaphore) != 0) CHECK(errno == EINTR);
    CHECK(__atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST) <= 2);
    sched_yield();
    __atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
    CHECK(sem_post(&semaphore) == 0);
}

static void *work(void *argument_) {
    long index = (long)argument_;
    uint64_t seed = 1000 + (uint64_t)index;
    double x = 1.0 + (double)index;
    for (long round = 1; round <= rounds; round++) {
        CHECK(++local == round);
        for (int i = 0; i < 500; i++) x = x * 1.0000001 + 0.5;
        CHECK(pthread_mutex_lock(&mutex) == 0);
        shared++;
        CHECK(pthread_mutex_unlock(&mutex) == 0);
        churn(&seed);
        read_or_write(round);
        if (round % 16 == 0) enter_semaphore();
        if (round % 32 == 0) take_turn(index);
        if (round % 64 == 0) {
            pthread_t thread;
            void *value;
            CHECK(pthread_create(&thread, NULL, newborn, (void *)round) == 0);
            CHECK(pthread_join(thread, &value) == 0);
            CHECK((long)value == round * 3);
        }
        if (round % 128 == 0) pthread_barrier_wait(&barrier);
    }
    results[index] = x;
    return NULL;
}

int main(int count, char **values) {
    pthread_t ids[MOST];
    threads = argument(count, values, 1, 4);
    rounds = argument(count, values, 2, 50000);
    CHECK(threads >= 1 && threads <= MOST);
    CHECK(pthread_barrier_init(&barrier, NULL, (unsigned)threads) == 0 && sem_init(&semaphore, 0, 2) == 0);
    for (long i = 0; i < threads; i++) CHECK(pthread_create(&ids[i], NULL, work, (void *)i) == 0);
    for (long i = 0; i < threads; i++) CHECK(pthread_join(ids[i], NULL) == 0);
    printf("threads %ld rounds %ld shared %ld turns %ld born %ld guarded %ld\n", threads, rounds, shared, turn, born,
           guarded[0]);
    for (long i = 0; i < threads; i++) printf("%ld %a\n", i, results[i]);
    return 0;
}
