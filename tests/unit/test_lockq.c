/* The write-lock queue (daemon/lockq.h), rule by rule, and against a dumb
 * reference under random input. Prints its seed; FLOTILLA_SEED=n replays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "core/error.h"
#include "daemon/lockq.h"

/* ======== fixture =========================================================== */

/* What the callbacks said, in order: 'g' granted, 'f' refused, 'r' revoked. */
struct said
{
    char what;
    uint32_t node;
    uint64_t request, grant;
    int rc;
};

#define SAID_MAX 8192

struct fixture
{
    struct lockq q;
    uint64_t last_grant, now;
    struct said said[SAID_MAX];
    unsigned n_said;
    unsigned depth, deepest; /* nested callbacks */
    /* Called from within the callbacks, if set. */
    void (*react)(struct fixture *f, const struct said *s);
};

static void say(struct fixture *f, struct said s)
{
    assert_true(f->n_said < SAID_MAX);
    f->said[f->n_said++] = s;
    f->depth++;
    f->deepest = f->depth > f->deepest ? f->depth : f->deepest;
    if (f->react != NULL) {
        f->react(f, &s);
    }
    f->depth--;
}

static void on_granted(struct lockq *q, const struct lock_waiter *w)
{
    assert_int_not_equal(q->holder, 0);
    assert_int_equal(q->holder_node, w->node);
    assert_false(q->pinned);
    say(q->data, (struct said){'g', w->node, w->request, q->holder, FLO_OK});
}

static void on_refused(struct lockq *q, const struct lock_waiter *w, int rc)
{
    say(q->data, (struct said){'f', w->node, w->request, 0, rc});
}

static void on_revoked(struct lockq *q, uint32_t node, uint64_t grant)
{
    assert_int_not_equal(q->holder, grant);
    say(q->data, (struct said){'r', node, 0, grant, FLO_OK});
}

static uint64_t on_next_grant(struct lockq *q)
{
    struct fixture *f = q->data;

    return ++f->last_grant;
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);

    f->q.data = f;
    f->q.granted = on_granted;
    f->q.refused = on_refused;
    f->q.revoked = on_revoked;
    f->q.next_grant = on_next_grant;
    f->now = 1000;
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    f->react = NULL;
    f->n_said = 0;
    lockq_clear(&f->q, FLO_SHUTDOWN);
    assert_null(f->q.head);
    assert_null(f->q.tail);
    assert_int_equal(f->q.n_waiters, 0);
    free(f);
    return 0;
}

/* ======== helpers ============================================================ */

static void ask(struct fixture *f, uint32_t node, uint64_t request,
                unsigned timeout_ms)
{
    lockq_ask(&f->q, node, request, timeout_ms, 0, f->now);
}

static void release(struct fixture *f)
{
    lockq_release(&f->q, f->q.holder, f->now);
}

static uint64_t tick(struct fixture *f)
{
    return lockq_tick(&f->q, 100, f->now);
}

/* The k-th thing said was this. */
static void assert_said(const struct fixture *f, unsigned k, char what,
                        uint32_t node, uint64_t request)
{
    assert_true(k < f->n_said);
    assert_int_equal(f->said[k].what, what);
    assert_int_equal(f->said[k].node, node);
    assert_int_equal(f->said[k].request, request);
}

static void assert_refused(const struct fixture *f, unsigned k, uint32_t node,
                           uint64_t request, int rc)
{
    assert_said(f, k, 'f', node, request);
    assert_int_equal(f->said[k].rc, rc);
}

/* ======== asking ================================================================ */

/* A free lock is granted before ask returns, with or without a timeout. */
static void granted_when_free(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 7, 0);
    assert_said(f, 0, 'g', 1, 7);
    release(f);
    ask(f, 2, 8, 50);
    assert_said(f, 1, 'g', 2, 8);
    assert_int_equal(f->n_said, 2);
}

/* Waiters are granted in the order in which they asked, one at a time. */
static void first_come_first_served(void **state)
{
    struct fixture *f = *state;

    for (uint64_t i = 0; i < 50; i++) {
        ask(f, (uint32_t)(i % 3 + 1), i, 1000);
    }
    for (uint64_t i = 0; i < 50; i++) {
        assert_int_equal(f->n_said, i + 1);
        assert_said(f, (unsigned)i, 'g', (uint32_t)(i % 3 + 1), i);
        release(f);
    }
    assert_int_equal(f->q.holder, 0);
}

/* Who does not want to wait is refused while the lock is held, and does not
 * get ahead of others by it. */
static void no_timeout_no_wait(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 1, 0);
    ask(f, 2, 2, 0);
    assert_refused(f, 1, 2, 2, FLO_BUSY);
    assert_int_equal(f->q.n_waiters, 0);
}

/* At most LOCKQ_MAX wait; the next one is refused, and those keep their turn. */
static void queue_is_bounded(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 0, 1000);
    for (uint64_t i = 1; i <= LOCKQ_MAX; i++) {
        ask(f, 2, i, 1000);
    }
    assert_int_equal(f->n_said, 1);
    ask(f, 3, 5000, 1000);
    assert_refused(f, 1, 3, 5000, FLO_BUSY);
    release(f);
    assert_said(f, 2, 'g', 2, 1);
    ask(f, 3, 5001, 1000);
    assert_int_equal(f->n_said, 3);
    assert_int_equal(f->q.n_waiters, LOCKQ_MAX);
}

/* ======== leaving the queue ===================================================== */

/* A cancelled waiter is refused with FLO_BUSY, wherever it stands; the others
 * keep their order. */
static void cancel_anywhere(void **state)
{
    struct fixture *f = *state;

    for (uint64_t victim = 1; victim <= 3; victim++) {
        uint64_t next = victim == 1 ? 2 : 1;
        f->n_said = 0;
        ask(f, 1, 0, 1000);
        for (uint64_t i = 1; i <= 3; i++) {
            ask(f, 2, i, 1000);
        }
        lockq_cancel(&f->q, 2, victim);
        assert_refused(f, 1, 2, victim, FLO_BUSY);
        release(f);
        assert_said(f, 2, 'g', 2, next);
        release(f);
        assert_said(f, 3, 'g', 2, 6 - victim - next);
        release(f);
        assert_int_equal(f->q.holder, 0);
    }
}

/* Cancelling what is not there, or another node's request, or the holder's
 * own, does nothing. */
static void cancel_nothing(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 1, 1000);
    ask(f, 2, 2, 1000);
    lockq_cancel(&f->q, 2, 3);
    lockq_cancel(&f->q, 1, 2);
    lockq_cancel(&f->q, 1, 1);
    assert_int_equal(f->n_said, 1);
    assert_int_equal(f->q.n_waiters, 1);
    assert_int_equal(f->q.holder_node, 1);
}

/* Whose deadline passed is refused by tick, not a millisecond earlier. */
static void deadlines(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 1, 0);
    f->q.pinned = true;
    ask(f, 2, 2, 50);
    ask(f, 2, 3, 20);
    ask(f, 2, 4, 80);
    f->now += 19;
    assert_int_equal(tick(f), 1);
    assert_int_equal(f->n_said, 1);
    f->now += 1;
    assert_int_equal(tick(f), 30);
    assert_refused(f, 1, 2, 3, FLO_BUSY);
    f->now += 60;
    assert_int_equal(tick(f), 0);
    assert_refused(f, 2, 2, 2, FLO_BUSY);
    assert_refused(f, 3, 2, 4, FLO_BUSY);
    assert_int_equal(f->q.holder_node, 1);
}

/* A waiter whose deadline passed before its turn is refused, not granted, even
 * when no tick came in between. */
static void no_grant_after_the_deadline(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 1, 0);
    ask(f, 2, 2, 10);
    ask(f, 3, 3, 100);
    f->now += 10;
    release(f);
    assert_refused(f, 1, 2, 2, FLO_BUSY);
    assert_said(f, 2, 'g', 3, 3);
}

/* A node that is gone: its waiters vanish without an answer, its grant is taken
 * back, and the next of another node is granted. */
static void dropped_node(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 1, 0);
    ask(f, 1, 2, 100);
    ask(f, 2, 3, 100);
    ask(f, 1, 4, 100);
    lockq_drop_node(&f->q, 1, f->now);
    assert_int_equal(f->n_said, 3);
    assert_said(f, 1, 'r', 1, 0);
    assert_int_equal(f->said[1].grant, f->said[0].grant);
    assert_said(f, 2, 'g', 2, 3);
    assert_int_equal(f->q.n_waiters, 0);
    ask(f, 2, 5, 100); /* the tail is right */
    release(f);
    assert_said(f, 3, 'g', 2, 5);
}

/* ======== taking the lock away =================================================== */

/* A holder that others wait for loses the lock after max_ms, and only then. */
static void overdue_holder(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 1, 0);
    f->now += 500;
    assert_int_equal(tick(f), 0); /* nobody waits */
    assert_int_equal(f->q.holder_node, 1);
    release(f);

    ask(f, 1, 2, 0);
    ask(f, 2, 3, 1000);
    f->now += 99;
    assert_int_equal(tick(f), 1);
    assert_int_equal(f->q.holder_node, 1);
    f->now += 1;
    tick(f);
    assert_said(f, 2, 'r', 1, 0);
    assert_said(f, 3, 'g', 2, 3);
}

/* What a revoked holder releases later is not what the next one holds. */
static void late_release_is_ignored(void **state)
{
    struct fixture *f = *state;
    uint64_t old;

    ask(f, 1, 1, 0);
    old = f->q.holder;
    ask(f, 2, 2, 1000);
    f->now += 100;
    tick(f);
    assert_int_equal(f->q.holder_node, 2);
    lockq_release(&f->q, old, f->now);
    lockq_release(&f->q, 0, f->now);
    lockq_release(&f->q, 999, f->now);
    assert_int_equal(f->q.holder_node, 2);
    release(f);
    lockq_release(&f->q, 0, f->now);
    assert_int_equal(f->q.holder, 0);
}

/* A pinned holder keeps the lock, however long, and when its node is gone; it
 * is looked at again, so that it loses the lock soon after it is unpinned. */
static void pinned_holder(void **state)
{
    struct fixture *f = *state;
    uint64_t wait;

    ask(f, 1, 1, 0);
    f->q.pinned = true;
    ask(f, 2, 2, 100000);
    f->now += 5000;
    wait = tick(f);
    assert_in_range(wait, 1, 100);
    lockq_drop_node(&f->q, 1, f->now);
    assert_int_equal(f->n_said, 1);
    assert_int_equal(f->q.holder_node, 1);
    f->q.pinned = false;
    f->now += wait;
    tick(f);
    assert_said(f, 1, 'r', 1, 0);
    assert_said(f, 2, 'g', 2, 2);
    assert_false(f->q.pinned);
}

/* When leadership ends, all are refused in order, pinned or not, and nobody
 * holds. */
static void cleared(void **state)
{
    struct fixture *f = *state;
    uint64_t old;

    ask(f, 1, 1, 0);
    old = f->q.holder;
    f->q.pinned = true;
    ask(f, 2, 2, 100);
    ask(f, 3, 3, 100);
    lockq_clear(&f->q, FLO_NOTLEADER);
    assert_refused(f, 1, 2, 2, FLO_NOTLEADER);
    assert_refused(f, 2, 3, 3, FLO_NOTLEADER);
    assert_int_equal(f->n_said, 3);
    assert_int_equal(f->q.holder, 0);
    lockq_release(&f->q, old, f->now);
    ask(f, 2, 4, 0);
    assert_said(f, 3, 'g', 2, 4);
}

/* ======== callbacks that call back ================================================ */

static void release_at_once(struct fixture *f, const struct said *s)
{
    if (s->what == 'g') {
        lockq_release(&f->q, s->grant, f->now);
    }
}

/* Holders that release from within granted(): all are granted, in order, and
 * the stack does not grow with the queue. */
static void release_within_granted(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 0, 1000);
    for (uint64_t i = 1; i <= LOCKQ_MAX; i++) {
        ask(f, 2, i, 1000);
    }
    f->react = release_at_once;
    release(f);
    assert_int_equal(f->n_said, LOCKQ_MAX + 1);
    for (unsigned i = 1; i <= LOCKQ_MAX; i++) {
        assert_said(f, i, 'g', 2, i);
    }
    assert_int_equal(f->deepest, 1);
    assert_int_equal(f->q.holder, 0);
}

static void ask_again(struct fixture *f, const struct said *s)
{
    if (s->what == 'f' && s->request < 100) {
        ask(f, s->node, s->request + 100, 1000);
    }
}

/* Who asks again when it is refused by clear is not refused once more by the
 * same clear; the next tick grants it. */
static void ask_within_refused(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 1, 0);
    ask(f, 2, 2, 1000);
    ask(f, 3, 3, 1000);
    f->react = ask_again;
    lockq_clear(&f->q, FLO_NOTLEADER);
    assert_int_equal(f->n_said, 3);
    assert_int_equal(f->q.n_waiters, 2);
    tick(f);
    assert_said(f, 3, 'g', 2, 102);
}

static void cancel_and_drop(struct fixture *f, const struct said *s)
{
    if (s->what == 'r') {
        lockq_cancel(&f->q, 2, 2);
        lockq_drop_node(&f->q, 3, f->now);
        ask(f, 5, 5, 1000);
    } else if (s->what == 'g' && s->node == 4) {
        lockq_drop_node(&f->q, 4, f->now); /* itself */
    }
}

/* Anything may happen from within revoked() and granted(). */
static void change_within_revoked(void **state)
{
    struct fixture *f = *state;

    ask(f, 1, 1, 0);
    ask(f, 2, 2, 1000);
    ask(f, 3, 3, 1000);
    ask(f, 4, 4, 1000);
    f->react = cancel_and_drop;
    f->now += 100;
    tick(f);
    assert_said(f, 1, 'r', 1, 0);
    assert_refused(f, 2, 2, 2, FLO_BUSY);
    assert_said(f, 3, 'g', 4, 4);
    assert_said(f, 4, 'r', 4, 0);
    assert_said(f, 5, 'g', 5, 5);
    assert_int_equal(f->q.holder_node, 5);
    assert_int_equal(f->n_said, 6);
}

/* ======== against the reference ==================================================== */

/* The rules as an array that is searched and shifted. */
struct model
{
    struct
    {
        uint32_t node;
        uint64_t request, deadline;
    } w[LOCKQ_MAX];
    unsigned n;
    uint64_t holder, since, last_grant;
    uint32_t holder_node;
    bool pinned;
    struct said said[SAID_MAX];
    unsigned n_said;
};

static void model_say(struct model *m, struct said s)
{
    m->said[m->n_said++] = s;
}

static void model_remove(struct model *m, unsigned i)
{
    memmove(&m->w[i], &m->w[i + 1], (m->n - i - 1) * sizeof m->w[0]);
    m->n--;
}

static void model_hold(struct model *m, uint32_t node, uint64_t request,
                       uint64_t now)
{
    m->holder = ++m->last_grant;
    m->holder_node = node;
    m->since = now;
    m->pinned = false;
    model_say(m, (struct said){'g', node, request, m->holder, FLO_OK});
}

static void model_next(struct model *m, uint64_t now)
{
    while (m->holder == 0 && m->n > 0) {
        uint32_t node = m->w[0].node;
        uint64_t request = m->w[0].request;
        bool late = m->w[0].deadline <= now;
        model_remove(m, 0);
        if (late) {
            model_say(m, (struct said){'f', node, request, 0, FLO_BUSY});
        } else {
            model_hold(m, node, request, now);
        }
    }
}

static void model_ask(struct model *m, uint32_t node, uint64_t request,
                      unsigned timeout, uint64_t now)
{
    if (m->holder == 0) {
        model_hold(m, node, request, now);
    } else if (timeout == 0 || m->n == LOCKQ_MAX) {
        model_say(m, (struct said){'f', node, request, 0, FLO_BUSY});
    } else {
        m->w[m->n].node = node;
        m->w[m->n].request = request;
        m->w[m->n].deadline = now + timeout;
        m->n++;
    }
}

static void model_revoke(struct model *m, uint64_t now)
{
    model_say(m, (struct said){'r', m->holder_node, 0, m->holder, FLO_OK});
    m->holder = 0;
    m->pinned = false;
    model_next(m, now);
}

static void model_refuse_if(struct model *m, uint32_t node, uint64_t request,
                            uint64_t now)
{
    for (unsigned i = 0; i < m->n;) {
        bool hit = node != 0 ? m->w[i].node == node &&
                                   m->w[i].request == request
                             : m->w[i].deadline <= now;
        if (hit) {
            uint32_t who = m->w[i].node;
            uint64_t what = m->w[i].request;
            model_remove(m, i);
            model_say(m, (struct said){'f', who, what, 0, FLO_BUSY});
        } else {
            i++;
        }
    }
}

static void model_drop(struct model *m, uint32_t node, uint64_t now)
{
    for (unsigned i = 0; i < m->n;) {
        if (m->w[i].node == node) {
            model_remove(m, i);
        } else {
            i++;
        }
    }
    if (m->holder != 0 && m->holder_node == node && !m->pinned) {
        model_revoke(m, now);
    }
}

static void model_tick(struct model *m, uint64_t max_ms, uint64_t now)
{
    model_refuse_if(m, 0, 0, now);
    if (m->holder != 0 && m->n > 0 && !m->pinned && now - m->since >= max_ms) {
        model_revoke(m, now);
    }
}

static void model_clear(struct model *m, int rc)
{
    for (unsigned i = 0; i < m->n; i++) {
        model_say(m, (struct said){'f', m->w[i].node, m->w[i].request, 0, rc});
    }
    m->n = 0;
    m->holder = 0;
    m->pinned = false;
}

static void random_operation(struct fixture *f, struct model *m)
{
    uint32_t node = (uint32_t)(rand() % 4 + 1);
    uint64_t request = (uint64_t)(rand() % 20);
    unsigned timeout = rand() % 4 == 0 ? 0 : (unsigned)(rand() % 300);
    int what = rand() % 100;

    f->now += (uint64_t)(rand() % 10);
    if (what < 45) {
        ask(f, node, request, timeout);
        model_ask(m, node, request, timeout, f->now);
    } else if (what < 55) {
        /* One of a node's requests with that number: the first. */
        unsigned i = 0;
        while (i < m->n &&
               (m->w[i].node != node || m->w[i].request != request)) {
            i++;
        }
        lockq_cancel(&f->q, node, request);
        if (i < m->n) {
            model_remove(m, i);
            model_say(m, (struct said){'f', node, request, 0, FLO_BUSY});
        }
    } else if (what < 75) {
        uint64_t grant = rand() % 3 == 0 ? (uint64_t)rand() % (m->last_grant + 2)
                                         : m->holder;
        lockq_release(&f->q, grant, f->now);
        if (grant != 0 && grant == m->holder) {
            m->holder = 0;
            m->pinned = false;
            model_next(m, f->now);
        }
    } else if (what < 80) {
        lockq_drop_node(&f->q, node, f->now);
        model_drop(m, node, f->now);
    } else if (what < 82) {
        lockq_clear(&f->q, FLO_NOTLEADER);
        model_clear(m, FLO_NOTLEADER);
    } else if (what < 85) {
        f->q.pinned = m->pinned = m->holder != 0 && rand() % 2 == 0;
    } else {
        lockq_tick(&f->q, 60, f->now);
        model_tick(m, 60, f->now);
    }
}

static void compare(const struct fixture *f, const struct model *m)
{
    assert_int_equal(f->n_said, m->n_said);
    for (unsigned i = 0; i < m->n_said; i++) {
        assert_int_equal(f->said[i].what, m->said[i].what);
        assert_int_equal(f->said[i].node, m->said[i].node);
        assert_int_equal(f->said[i].request, m->said[i].request);
        assert_int_equal(f->said[i].grant, m->said[i].grant);
        assert_int_equal(f->said[i].rc, m->said[i].rc);
    }
    assert_int_equal(f->q.holder, m->holder);
    assert_int_equal(f->q.pinned, m->pinned);
    assert_int_equal(f->q.n_waiters, m->n);
}

/* Whatever is asked in whatever order, the queue says what the reference says. */
static void same_as_reference(void **state)
{
    struct fixture *f = *state;
    struct model *m = calloc(1, sizeof *m);
    unsigned total[128] = {0};

    for (unsigned i = 0; i < 200000; i++) {
        random_operation(f, m);
        compare(f, m);
        for (unsigned k = 0; k < f->n_said; k++) {
            total[(unsigned char)f->said[k].what]++;
        }
        f->n_said = m->n_said = 0;
    }
    /* A run in which something never happened proves nothing about it. */
    assert_true(total['g'] > 1000 && total['f'] > 1000 && total['r'] > 100);
    free(m);
}

/* tick() says when it wants to be called again, and nothing was due before:
 * calling it each millisecond changes nothing until then. */
static void tick_tells_when(void **state)
{
    struct fixture *f = *state;

    for (unsigned round = 0; round < 2000; round++) {
        uint64_t wait, until;
        ask(f, 1, round, (unsigned)(rand() % 50));
        ask(f, 2, round, (unsigned)(rand() % 50));
        f->q.pinned = rand() % 4 == 0;
        wait = tick(f);
        f->n_said = 0;
        if (wait == 0) {
            assert_null(f->q.head);
            continue;
        }
        for (until = f->now + wait; f->now < until; f->now++) {
            tick(f);
            assert_int_equal(f->n_said, 0);
        }
        if (rand() % 2 == 0) {
            release(f);
            f->n_said = 0;
        }
    }
}

int main(void)
{
    const char *given = getenv("FLOTILLA_SEED");
    unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10)
                                  : (unsigned)time(NULL);
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(granted_when_free),
        T(first_come_first_served),
        T(no_timeout_no_wait),
        T(queue_is_bounded),
        T(cancel_anywhere),
        T(cancel_nothing),
        T(deadlines),
        T(no_grant_after_the_deadline),
        T(dropped_node),
        T(overdue_holder),
        T(late_release_is_ignored),
        T(pinned_holder),
        T(cleared),
        T(release_within_granted),
        T(ask_within_refused),
        T(change_within_revoked),
        T(same_as_reference),
        T(tick_tells_when),
#undef T
    };
    int rc;

    printf("seed %u; replay: FLOTILLA_SEED=%u tests/unit/test_lockq\n", seed,
           seed);
    srand(seed);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    printf("seed %u\n", seed);
    return rc;
}
