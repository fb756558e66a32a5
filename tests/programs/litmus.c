// Litmus tests of user space: threads on different CPUs, and so on different nodes.
//
// litmus ITERATIONS [TEST…]: that many iterations of each test (all by default), a line for each;
// exit 1 if a forbidden outcome or a stale value was seen.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define READ_ONCE(x) (*(const volatile unsigned int *)&(x))
#define WRITE_ONCE(x, value) (*(volatile unsigned int *)&(x) = (value))
#define barrier() __asm__ volatile("" ::: "memory")
#define smp_mb() __asm__ volatile("lock; addl $0, -4(%%rsp)" ::: "memory", "cc")
#define smp_rmb() barrier()
#define smp_wmb() barrier()
#define smp_store_release(x, value) __atomic_store_n(x, value, __ATOMIC_RELEASE)
#define smp_load_acquire(x) __atomic_load_n(x, __ATOMIC_ACQUIRE)
#define xchg(x, value) __atomic_exchange_n(x, value, __ATOMIC_SEQ_CST)
#define xadd(x, value) __atomic_fetch_add(x, value, __ATOMIC_SEQ_CST)

static void wait_turn(unsigned int turn) {
    struct timespec moment = {0, 50 * 1000};

    if (turn < 100)
        __builtin_ia32_pause();
    else
        nanosleep(&moment, NULL);
}

static void lock(unsigned int *word) {
    for (unsigned int turn = 0; READ_ONCE(*word) || xchg(word, 1); turn++)
        wait_turn(turn);
}

#define LITMUS_PAUSE(turn) wait_turn(turn)
#define LITMUS_LOCK(word) lock(word)
#define LITMUS_UNLOCK(word) smp_store_release((unsigned int *)(word), 0)
#include "litmus-tests.h"

struct thread {
    struct litmus_job *job;
    unsigned int number;
    int cpu;
};

static void fail(const char *what, int error) {
    fprintf(stderr, "litmus: %s: %s\n", what, strerror(error));
    exit(2);
}

static void *run_thread(void *argument) {
    struct thread *thread = argument;
    cpu_set_t cpus;

    CPU_ZERO(&cpus);
    CPU_SET(thread->cpu, &cpus);
    if (sched_setaffinity(0, sizeof(cpus), &cpus))
        fail("sched_setaffinity", errno);
    litmus_thread(thread->job, thread->number);
    return NULL;
}

// Runs the job with thread n on the n-th CPU after `first`, so that each node has each part.
static void run_job(struct litmus_job *job, int first, int cpus) {
    struct thread threads[LITMUS_THREADS];
    pthread_t ids[LITMUS_THREADS];

    for (unsigned int n = 0; n < job->threads; n++) {
        threads[n] = (struct thread){job, n, (first + (int)n) % cpus};
        int error = pthread_create(&ids[n], NULL, run_thread, &threads[n]);
        if (error)
            fail("pthread_create", error);
    }
    for (unsigned int n = 0; n < job->threads; n++)
        pthread_join(ids[n], NULL);
}

static int run_test(const struct litmus_test *test, unsigned int layout, unsigned long iterations,
                    int first, int cpus) {
    struct litmus_job job = {.test = test};
    size_t bytes = LITMUS_JOB_PAGES * LITMUS_PAGE_WORDS * sizeof(unsigned int);
    unsigned int *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (memory == MAP_FAILED)
        fail("mmap", errno);
    job.run.lock = litmus_place(&job, memory, layout);
    job.rounds = (iterations + job.run.count - 1) / job.run.count;
    run_job(&job, first, cpus);
    munmap(memory, bytes);

    int bad = job.tally.stale || (test->forbidden && job.tally.seen);
    printf("%s: %s %s %s runs %llu turns %llu seen %llu stale %llu\n", bad ? "FAILED" : "ok",
           test->name, litmus_layouts[layout], test->forbidden ? "forbidden" : "allowed",
           job.tally.runs, job.tally.turns, job.tally.seen, job.tally.stale);
    fflush(stdout);
    return bad;
}

int main(int argc, char **argv) {
    char *end;
    cpu_set_t set;
    int bad = 0;

    errno = 0;
    unsigned long iterations = argc > 1 ? strtoul(argv[1], &end, 10) : 0;
    if (!iterations || errno || *end) {
        fprintf(stderr, "usage: litmus ITERATIONS [TEST...]\n");
        return 2;
    }
    if (sched_getaffinity(0, sizeof(set), &set))
        fail("sched_getaffinity", errno);
    // The guest's CPUs are numbered from 0 without gaps.
    int cpus = CPU_COUNT(&set);
    for (unsigned int n = 0; n < LITMUS_TESTS; n++) {
        int wanted = argc == 2;

        for (int i = 2; i < argc; i++)
            wanted |= !strcmp(argv[i], litmus_tests[n].name);
        for (unsigned int layout = 0; wanted && layout < LITMUS_LAYOUTS; layout++)
            bad |= run_test(&litmus_tests[n], layout, iterations / LITMUS_LAYOUTS, (int)n, cpus);
    }
    return bad;
}
