/* The write-lock queue; see lockq.h.
 *
 *  - ask: granted at once when the lock is free and nobody waits, else queued
 *  - release: the first waiter whose deadline has not passed is granted
 *
 * A waiter leaves the queue early by cancel, by its deadline (tick, or when its
 * turn comes too late) or with its node. A holder loses the lock when it took
 * too long while others wait, or with its node; both not while it is pinned,
 * because raft may already have its transaction. What it sends afterwards
 * names a grant that nobody holds, and is ignored.
 *
 * Callbacks come last: a waiter is unlinked before its callback, and loops
 * look at the queue anew after each. */
#include "daemon/lockq.h"

#include <assert.h>
#include <stdlib.h>

#include "core/error.h"

/* A holder that is overdue but pinned is looked at again this soon. */
#define PINNED_RETRY_MS 10

/* ---- The list ---------------------------------------------------------------- */

static void push(struct lockq *q, struct lock_waiter *w)
{
    w->next = NULL;
    if (q->tail != NULL) {
        q->tail->next = w;
    } else {
        q->head = w;
    }
    q->tail = w;
    q->n_waiters++;
    assert(q->n_waiters <= LOCKQ_MAX);
}

/* Unlink the waiter after prev (NULL: the head). */
static struct lock_waiter *take_after(struct lockq *q, struct lock_waiter *prev)
{
    struct lock_waiter *w = prev != NULL ? prev->next : q->head;

    if (prev != NULL) {
        prev->next = w->next;
    } else {
        q->head = w->next;
    }
    if (q->tail == w) {
        q->tail = prev;
    }
    assert(q->n_waiters > 0);
    q->n_waiters--;
    w->next = NULL;
    return w;
}

static void refuse(struct lockq *q, struct lock_waiter *w, int rc)
{
    q->refused(q, w, rc);
    free(w);
}

/* ---- Holding ------------------------------------------------------------------- */

static void hold(struct lockq *q, const struct lock_waiter *w, uint64_t now)
{
    assert(q->holder == 0);
    q->holder = q->next_grant(q);
    assert(q->holder != 0);
    q->holder_node = w->node;
    q->holder_since = now;
    q->pinned = false;
    q->granted(q, w);
}

static void vacate(struct lockq *q)
{
    q->holder = 0;
    q->holder_node = 0;
    q->pinned = false;
}

/* Give the lock to whoever is next. Nested calls leave that to the outermost
 * one, which finds the lock free again when its callback returns. */
static void pump(struct lockq *q, uint64_t now)
{
    if (q->busy) {
        return;
    }
    q->busy = true;
    while (q->holder == 0 && q->head != NULL) {
        struct lock_waiter *w = take_after(q, NULL);
        if (now >= w->deadline) {
            refuse(q, w, FLO_BUSY);
            continue;
        }
        hold(q, w, now);
        free(w);
    }
    q->busy = false;
}

static void revoke(struct lockq *q, uint64_t now)
{
    uint64_t grant = q->holder;
    uint32_t node = q->holder_node;

    vacate(q);
    q->revoked(q, node, grant);
    pump(q, now);
}

/* ---- Requests ------------------------------------------------------------------ */

void lockq_ask(struct lockq *q, uint32_t node, uint64_t request,
               unsigned timeout_ms, uint64_t txid, uint64_t now)
{
    struct lock_waiter asked = {.node = node,
                                .request = request,
                                .deadline = now + timeout_ms,
                                .txid = txid};
    struct lock_waiter *w;

    if (q->holder == 0 && q->head == NULL && !q->busy) {
        q->busy = true;
        hold(q, &asked, now);
        q->busy = false;
        pump(q, now);
        return;
    }
    if (timeout_ms == 0 || q->n_waiters >= LOCKQ_MAX) {
        q->refused(q, &asked, FLO_BUSY);
        return;
    }
    w = malloc(sizeof *w);
    if (w == NULL) {
        q->refused(q, &asked, FLO_NOMEM);
        return;
    }
    *w = asked;
    push(q, w);
}

void lockq_cancel(struct lockq *q, uint32_t node, uint64_t request)
{
    struct lock_waiter *prev = NULL;

    for (struct lock_waiter *w = q->head; w != NULL; prev = w, w = w->next) {
        if (w->node == node && w->request == request) {
            refuse(q, take_after(q, prev), FLO_BUSY);
            return;
        }
    }
}

void lockq_release(struct lockq *q, uint64_t grant, uint64_t now)
{
    if (grant == 0 || grant != q->holder) {
        return; /* was revoked before */
    }
    vacate(q);
    pump(q, now);
}

void lockq_drop_node(struct lockq *q, uint32_t node, uint64_t now)
{
    struct lock_waiter *prev = NULL;
    struct lock_waiter *w = q->head;

    while (w != NULL) {
        struct lock_waiter *next = w->next;
        if (w->node == node) {
            free(take_after(q, prev));
        } else {
            prev = w;
        }
        w = next;
    }
    if (q->holder != 0 && q->holder_node == node && !q->pinned) {
        revoke(q, now);
    }
}

void lockq_clear(struct lockq *q, int rc)
{
    /* Those that ask again from within refused() queue up behind, and are not
     * looked at here. */
    unsigned n = q->n_waiters;
    bool nested = q->busy;

    vacate(q);
    q->busy = true;
    for (; n > 0 && q->head != NULL; n--) {
        refuse(q, take_after(q, NULL), rc);
    }
    q->busy = nested;
}

/* ---- Time ------------------------------------------------------------------------ */

/* Unlink the first waiter whose deadline passed. */
static struct lock_waiter *take_expired(struct lockq *q, uint64_t now)
{
    struct lock_waiter *prev = NULL;

    for (struct lock_waiter *w = q->head; w != NULL; prev = w, w = w->next) {
        if (now >= w->deadline) {
            return take_after(q, prev);
        }
    }
    return NULL;
}

static uint64_t held_ms(const struct lockq *q, uint64_t now)
{
    return now > q->holder_since ? now - q->holder_since : 0;
}

static uint64_t next_event(const struct lockq *q, uint64_t max_ms, uint64_t now)
{
    uint64_t held = held_ms(q, now);
    uint64_t wait = held < max_ms ? max_ms - held : PINNED_RETRY_MS;

    if (q->head == NULL) {
        return 0;
    }
    for (const struct lock_waiter *w = q->head; w != NULL; w = w->next) {
        uint64_t left = w->deadline > now ? w->deadline - now : 1;
        wait = left < wait ? left : wait;
    }
    return wait;
}

uint64_t lockq_tick(struct lockq *q, uint64_t max_ms, uint64_t now)
{
    struct lock_waiter *w;

    while ((w = take_expired(q, now)) != NULL) {
        refuse(q, w, FLO_BUSY);
    }
    if (q->holder != 0 && q->head != NULL && !q->pinned &&
        held_ms(q, now) >= max_ms) {
        revoke(q, now);
    }
    pump(q, now); /* who asked while the queue was being cleared */
    return next_event(q, max_ms, now);
}
