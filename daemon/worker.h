/* A worker: one thread that runs jobs in order, for what must not happen on
 * the event loop. Completions come back to the loop.
 *
 * It is our own thread and not libuv's pool, because raft_uv writes its log in
 * that pool when the kernel refuses asynchronous I/O. */
#ifndef FLOTILLA_WORKER_H
#define FLOTILLA_WORKER_H

#include <stdbool.h>
#include <stddef.h>
#include <uv.h>

/* Embed one in the request; it must live until done was called. */
struct job
{
    void (*run)(struct job *job);  /* on the worker's thread */
    void (*done)(struct job *job); /* on the loop's thread; may free the job */
    struct job *next;              /* the worker's */
};

struct worker
{
    uv_loop_t *loop;
    uv_thread_t thread;
    uv_mutex_t mutex;
    uv_cond_t cond;
    uv_async_t async;
    struct job *todo_head, *todo_tail;
    struct job *done_head, *done_tail;
    bool stopping;    /* worker_close was called */
    bool quit;        /* the thread shall end */
    bool running_job; /* by the thread, or inline on the loop's thread */
    bool delivering_inline; /* loop's thread: in the done of an inline job */
    char name[16];
    void (*close_cb)(struct worker *w);
    void *data; /* the user's */
};

/* Start the thread. name: at most 15 bytes, shown by ps -L. FLO_NOMEM. */
int worker_start(struct worker *w, uv_loop_t *loop, const char *name);

/* Loop thread: append a job. run and done must be set. */
void worker_post(struct worker *w, struct job *job);

/* Loop thread: run the job right here when the worker is idle (nothing queued,
 * running or waiting for its completion), excluding the thread meanwhile, and
 * call done before returning; else post it. Also from within the done of such a
 * job, so that one step can follow the other. For short jobs on a hot path. */
void worker_run_or_post(struct worker *w, struct job *job);

/* Loop thread: finish all queued jobs, deliver their completions, join the
 * thread and call cb on the loop. */
void worker_close(struct worker *w, void (*cb)(struct worker *w));

#endif
