/* The write-lock queue of one database, at the leader: who may run a write
 * transaction, and who is next. First come, first served.
 *
 * Pure bookkeeping: no I/O, no clock of its own (now is passed in, in
 * milliseconds), so that a simulation can drive it. The service around it
 * (leader.c) is told through the callbacks. These may call any function below
 * on the same queue: its state is complete whenever one is called, and a lock
 * that is given back from within granted() goes to the next one after it
 * returned, so the stack does not grow with the queue. */
#ifndef FLOTILLA_LOCKQ_H
#define FLOTILLA_LOCKQ_H

#include <stdbool.h>
#include <stdint.h>

#define LOCKQ_MAX 1024 /* waiters; more are refused with FLO_BUSY */

struct lock_waiter
{
    uint32_t node;
    uint64_t request;  /* the request number that the answer must carry */
    uint64_t deadline; /* ms */
    uint64_t txid;     /* position of the asking replica */
    struct lock_waiter *next;
};

struct lockq
{
    struct lock_waiter *head, *tail;
    unsigned n_waiters;
    uint64_t holder; /* grant number, 0: free */
    uint32_t holder_node;
    uint64_t holder_since; /* ms */
    bool pinned; /* a proposal of the holder is under way: not revocable; the
                    user's to set, false again with each new holder */
    bool busy; /* private: grants are being given out further up the stack */
    void *data;
    /* The waiter was granted (q->holder is its grant) / refused; w is freed
     * after the call. */
    void (*granted)(struct lockq *q, const struct lock_waiter *w);
    void (*refused)(struct lockq *q, const struct lock_waiter *w, int rc);
    void (*revoked)(struct lockq *q, uint32_t node, uint64_t grant);
    uint64_t (*next_grant)(struct lockq *q); /* never 0, never one used before */
};

/* Ask. timeout_ms 0: refused with FLO_BUSY unless free now. */
void lockq_ask(struct lockq *q, uint32_t node, uint64_t request,
               unsigned timeout_ms, uint64_t txid, uint64_t now);

/* The waiter gave up: refused with FLO_BUSY. No-op when not there. */
void lockq_cancel(struct lockq *q, uint32_t node, uint64_t request);

/* The holder is done; grants the next. No-op for another grant number. */
void lockq_release(struct lockq *q, uint64_t grant, uint64_t now);

/* The node is gone: its waiters are dropped without an answer; its grant is
 * taken back (revoked() is called) unless pinned. */
void lockq_drop_node(struct lockq *q, uint32_t node, uint64_t now);

/* Leadership ended: everybody is refused with rc, nobody holds. */
void lockq_clear(struct lockq *q, int rc);

/* Refuse (FLO_BUSY) whose deadline passed; take the lock from a holder of
 * max_ms or more while others wait. Returns ms until it wants to be called
 * again, 0: nothing to wait for. */
uint64_t lockq_tick(struct lockq *q, uint64_t max_ms, uint64_t now);

#endif
