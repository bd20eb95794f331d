/* The worker: order, completions on the loop, inline runs, closing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/worker.h"

/* --- fixture --------------------------------------------------------------- */

#define LOG_MAX 4096

static uv_loop_t loop;
static struct worker worker;
static uv_thread_t loop_thread;
static int ran[LOG_MAX], done[LOG_MAX]; /* numbers of jobs, in order */
static unsigned n_ran, n_done;
static bool closed;
static uv_sem_t gate; /* holds blocking jobs */

struct numbered
{
    struct job job;
    int number;
    bool blocks;
    bool wants_inline;
    bool was_inline;
    struct numbered *then; /* handed in by done */
    bool then_runs;        /* with run_or_post */
};

static void run(struct job *job)
{
    struct numbered *n = (struct numbered *)job;
    uv_thread_t self = uv_thread_self();

    if (n->blocks) {
        uv_sem_wait(&gate);
    }
    n->was_inline = uv_thread_equal(&self, &loop_thread) != 0;
    ran[n_ran++] = n->number;
}

static void on_done(struct job *job)
{
    struct numbered *n = (struct numbered *)job;
    uv_thread_t self = uv_thread_self();

    assert_true(uv_thread_equal(&self, &loop_thread));
    done[n_done++] = n->number;
    if (n->then != NULL) {
        if (n->then_runs) {
            worker_run_or_post(&worker, &n->then->job);
        } else {
            worker_post(&worker, &n->then->job);
        }
    }
}

static struct numbered make(int number)
{
    struct numbered n;

    memset(&n, 0, sizeof n);
    n.job.run = run;
    n.job.done = on_done;
    n.number = number;
    return n;
}

static void on_closed(struct worker *w)
{
    assert_ptr_equal(w, &worker);
    closed = true;
}

static int setup(void **state)
{
    (void)state;
    n_ran = n_done = 0;
    closed = false;
    loop_thread = uv_thread_self();
    uv_sem_init(&gate, 0);
    uv_loop_init(&loop);
    return worker_start(&worker, &loop, "test-worker");
}

/* Close, if the test has not, and see that nothing is left behind. */
static int teardown(void **state)
{
    (void)state;
    if (!worker.stopping) {
        worker_close(&worker, on_closed);
    }
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_true(closed);
    assert_int_equal(uv_loop_close(&loop), 0);
    uv_sem_destroy(&gate);
    return 0;
}

/* --- helpers --------------------------------------------------------------- */

static void wait_for_done(unsigned n)
{
    while (n_done < n) {
        uv_run(&loop, UV_RUN_ONCE);
    }
}

/* Finished but not delivered: only the loop delivers, and it does not turn. */
static bool undelivered(void)
{
    bool yes;

    uv_mutex_lock(&worker.mutex);
    yes = worker.done_head != NULL;
    uv_mutex_unlock(&worker.mutex);
    return yes;
}

static void assert_in_order(const int *numbers, unsigned n)
{
    unsigned i;

    for (i = 0; i < n; i++) {
        assert_int_equal(numbers[i], i);
    }
}

/* --- tests ------------------------------------------------------------------ */

/* Jobs run in the order they were posted, and complete in that order. */
static void order(void **state)
{
    static struct numbered jobs[1000];
    int i;

    (void)state;
    for (i = 0; i < 1000; i++) {
        jobs[i] = make(i);
        worker_post(&worker, &jobs[i].job);
    }
    wait_for_done(1000);
    assert_in_order(ran, 1000);
    assert_in_order(done, 1000);
    assert_false(jobs[0].was_inline);
}

/* On an idle worker a job runs on the loop's thread and is done on return. */
static void inline_when_idle(void **state)
{
    struct numbered job = make(0);

    (void)state;
    worker_run_or_post(&worker, &job.job);
    assert_true(job.was_inline);
    assert_int_equal(n_done, 1);
}

/* While a job runs, is queued, or waits for its completion, the next one is
 * posted behind it. */
static void posted_when_busy(void **state)
{
    struct numbered jobs[3] = {make(0), make(1), make(2)};

    (void)state;
    jobs[0].blocks = true;
    worker_post(&worker, &jobs[0].job);
    worker_run_or_post(&worker, &jobs[1].job);
    assert_int_equal(n_done, 0);
    uv_sem_post(&gate);
    while (!undelivered()) {
    }
    worker_run_or_post(&worker, &jobs[2].job);
    wait_for_done(3);
    assert_in_order(ran, 3);
    assert_in_order(done, 3);
    assert_false(jobs[1].was_inline);
    assert_false(jobs[2].was_inline);
}

/* A job that an inline job's done hands in is run inline in turn, and what is
 * posted meanwhile starts only after the outermost is through. */
static void chain_from_done(void **state)
{
    struct numbered jobs[3] = {make(0), make(1), make(2)};

    (void)state;
    jobs[0].then = &jobs[1];
    jobs[0].then_runs = true;
    jobs[1].then = &jobs[2];
    worker_run_or_post(&worker, &jobs[0].job);
    assert_int_equal(n_done, 2);
    wait_for_done(3);
    assert_in_order(ran, 3);
    assert_true(jobs[0].was_inline);
    assert_true(jobs[1].was_inline);
    assert_false(jobs[2].was_inline);
}

/* The thread never runs a job while one runs inline. Counted without a lock,
 * so that ThreadSanitizer sees it when they overlap. */
static void inline_excludes_thread(void **state)
{
    static struct numbered jobs[2000];
    int i;

    (void)state;
    for (i = 0; i < 2000; i++) {
        jobs[i] = make(i);
        worker_run_or_post(&worker, &jobs[i].job);
        if (i % 3 == 0) {
            jobs[i].then = NULL;
            uv_run(&loop, UV_RUN_NOWAIT);
        }
        if (i % 7 == 0) {
            i++;
            jobs[i] = make(i);
            worker_post(&worker, &jobs[i].job);
        }
    }
    wait_for_done(2000);
    assert_in_order(ran, 2000);
    assert_in_order(done, 2000);
}

/* Closing finishes what was queued, also what completions add. */
static void close_with_pending(void **state)
{
    static struct numbered jobs[100];
    struct numbered extra = make(100);
    int i;

    (void)state;
    for (i = 0; i < 100; i++) {
        jobs[i] = make(i);
        jobs[i].blocks = i == 0;
        worker_post(&worker, &jobs[i].job);
    }
    jobs[99].then = &extra;
    worker_close(&worker, on_closed);
    uv_sem_post(&gate);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_true(closed);
    assert_int_equal(n_done, 101);
    assert_in_order(done, 101);
}

static void close_idle(void **state)
{
    (void)state;
    worker_close(&worker, on_closed);
    assert_false(closed); /* later, on the loop */
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_true(closed);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(order),           TEST(inline_when_idle),
        TEST(posted_when_busy), TEST(chain_from_done),
        TEST(inline_excludes_thread), TEST(close_with_pending),
        TEST(close_idle),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
