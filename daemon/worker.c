/* A worker: one thread, a list of jobs, a list of completions.
 *
 * - worker_post appends to the todo list and wakes the thread.
 * - The thread takes the head, runs it without the lock, appends it to the
 *   done list and pokes the loop (uv_async_send).
 * - On the loop, on_async pops completions one by one and calls done.
 * - worker_run_or_post on an idle worker skips both hops: it takes the place
 *   of the thread (running_job) and runs the job on the loop's thread. The
 *   thread does not start anything while running_job is set by somebody else.
 *
 * Order: jobs run in the order they were handed in, and their completions come
 * in that order too, because a job only runs inline when no other is queued,
 * running or undelivered. A run_or_post from within an inline job's done is
 * posted, so that a chain of jobs does not become a deep recursion.
 *
 * Closing: worker_close only sets stopping. Once the loop finds nothing left
 * to run or deliver (done callbacks may still post more), it tells the thread
 * to quit; the thread is waiting for work at that moment, so joining it does
 * not block. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* pthread_setname_np */
#endif
#include "daemon/worker.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "core/error.h"

static void push(struct job **head, struct job **tail, struct job *job)
{
    job->next = NULL;
    if (*tail != NULL) {
        (*tail)->next = job;
    } else {
        *head = job;
    }
    *tail = job;
}

static struct job *pop(struct job **head, struct job **tail)
{
    struct job *job = *head;

    if (job != NULL) {
        *head = job->next;
        if (*head == NULL) {
            *tail = NULL;
        }
        job->next = NULL;
    }
    return job;
}

/* With the lock: take a job for the thread, or NULL to quit. */
static struct job *wait_for_job(struct worker *w)
{
    while (!w->quit && (w->todo_head == NULL || w->running_job)) {
        uv_cond_wait(&w->cond, &w->mutex);
    }
    return w->quit ? NULL : pop(&w->todo_head, &w->todo_tail);
}

static void thread_main(void *arg)
{
    struct worker *w = arg;
    struct job *job;

    pthread_setname_np(pthread_self(), w->name);
    uv_mutex_lock(&w->mutex);
    while ((job = wait_for_job(w)) != NULL) {
        w->running_job = true;
        uv_mutex_unlock(&w->mutex);
        job->run(job);
        uv_mutex_lock(&w->mutex);
        w->running_job = false;
        push(&w->done_head, &w->done_tail, job);
        uv_async_send(&w->async);
    }
    uv_mutex_unlock(&w->mutex);
}

/* With the lock: nothing queued, running, or waiting for its completion. */
static bool idle(const struct worker *w)
{
    return w->todo_head == NULL && w->done_head == NULL && !w->running_job;
}

static void on_async_closed(uv_handle_t *handle)
{
    struct worker *w = handle->data;

    uv_cond_destroy(&w->cond);
    uv_mutex_destroy(&w->mutex);
    w->close_cb(w);
}

/* Quit and join once a closing worker has nothing left to do. */
static void maybe_finish_close(struct worker *w)
{
    bool quit;

    uv_mutex_lock(&w->mutex);
    quit = w->stopping && !w->quit && idle(w);
    if (quit) {
        w->quit = true;
        uv_cond_signal(&w->cond);
    }
    uv_mutex_unlock(&w->mutex);
    if (quit) {
        uv_thread_join(&w->thread);
        uv_close((uv_handle_t *)&w->async, on_async_closed);
    }
}

static struct job *pop_done(struct worker *w)
{
    struct job *job;

    uv_mutex_lock(&w->mutex);
    job = pop(&w->done_head, &w->done_tail);
    uv_mutex_unlock(&w->mutex);
    return job;
}

/* Delivers what is there now; what a busy thread adds meanwhile has poked the
 * loop again, so other events get their turn in between. Popping one by one
 * keeps the worker "not idle" while completions are outstanding. */
static void on_async(uv_async_t *async)
{
    struct worker *w = async->data;
    struct job *job;
    size_t n = 0;

    uv_mutex_lock(&w->mutex);
    for (job = w->done_head; job != NULL; job = job->next) {
        n++;
    }
    uv_mutex_unlock(&w->mutex);
    while (n-- > 0 && (job = pop_done(w)) != NULL) {
        job->done(job);
    }
    maybe_finish_close(w);
}

int worker_start(struct worker *w, uv_loop_t *loop, const char *name)
{
    void *data = w->data;

    memset(w, 0, sizeof *w);
    w->data = data;
    w->loop = loop;
    snprintf(w->name, sizeof w->name, "%s", name);
    if (uv_mutex_init(&w->mutex) != 0) {
        return FLO_NOMEM;
    }
    if (uv_cond_init(&w->cond) != 0) {
        goto err_after_mutex;
    }
    if (uv_async_init(loop, &w->async, on_async) != 0) {
        goto err_after_cond;
    }
    w->async.data = w;
    if (uv_thread_create(&w->thread, thread_main, w) != 0) {
        goto err_after_async;
    }
    return FLO_OK;

err_after_async:
    /* The handle is in the loop's list until the loop turns; w must live that
     * long, which it does, since a failed start ends the daemon. */
    uv_close((uv_handle_t *)&w->async, NULL);
err_after_cond:
    uv_cond_destroy(&w->cond);
err_after_mutex:
    uv_mutex_destroy(&w->mutex);
    return FLO_NOMEM;
}

void worker_post(struct worker *w, struct job *job)
{
    assert(job->run != NULL && job->done != NULL);
    uv_mutex_lock(&w->mutex);
    assert(!w->quit);
    push(&w->todo_head, &w->todo_tail, job);
    uv_cond_signal(&w->cond);
    uv_mutex_unlock(&w->mutex);
}

/* The job's done may hand in the next one, which is then run here in turn; the
 * thread stays out until the outermost is through. */
static void run_here(struct worker *w, struct job *job)
{
    bool outer = w->delivering_inline;

    w->delivering_inline = false;
    job->run(job);
    w->delivering_inline = true;
    job->done(job);
    w->delivering_inline = outer;
}

void worker_run_or_post(struct worker *w, struct job *job)
{
    bool here, nested;

    uv_mutex_lock(&w->mutex);
    nested = w->delivering_inline && w->todo_head == NULL;
    here = nested || idle(w);
    if (here) {
        w->running_job = true;
    }
    uv_mutex_unlock(&w->mutex);
    if (!here) {
        worker_post(w, job);
        return;
    }
    run_here(w, job);
    if (nested) {
        return; /* the outer one lets the thread go */
    }
    uv_mutex_lock(&w->mutex);
    w->running_job = false;
    if (w->todo_head != NULL) {
        uv_cond_signal(&w->cond);
    }
    uv_mutex_unlock(&w->mutex);
    if (w->stopping) {
        uv_async_send(&w->async);
    }
}

void worker_close(struct worker *w, void (*cb)(struct worker *w))
{
    assert(!w->stopping);
    w->close_cb = cb;
    uv_mutex_lock(&w->mutex);
    w->stopping = true;
    uv_mutex_unlock(&w->mutex);
    uv_async_send(&w->async);
}
