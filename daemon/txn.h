/* A write transaction of a client of this node, from LOCK to RELEASE.
 *
 *   IDLE --LOCK--> QUEUED --PEER_GRANT--> CATCHUP --replica there--> HELD
 *   HELD --COMMIT--> COLLECT --> PROPOSED --committed--> PUBLISH
 *   HELD, PROPOSED (refused), PUBLISH --RELEASE, client gone--> TAKEBACK
 *   TAKEBACK --fence is ours--> [SETTLE if committed] --> IDLE
 *   QUEUED, CATCHUP --timeout, CANCEL, refused--> IDLE
 *   HELD --RELEASE with linger--> LINGER --LOCK--> CATCHUP, --timer--> TAKEBACK
 *
 * From HELD to the end of TAKEBACK/SETTLE the transaction is db->writer, and
 * nothing else writes to the replica. The client's death changes nothing but
 * who is told: what raft committed is settled by the daemon. Loop thread. */
#ifndef FLOTILLA_TXN_H
#define FLOTILLA_TXN_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "core/entry.h"
#include "daemon/db.h"
#include "daemon/proposal.h"

enum txn_state {
    TXN_IDLE,
    TXN_QUEUED,
    TXN_CATCHUP,
    TXN_HELD,
    TXN_LINGER,
    TXN_COLLECT,
    TXN_PROPOSED,
    TXN_PUBLISH,
    TXN_TAKEBACK,
    TXN_SETTLE
};

struct txn
{
    struct node *node;
    struct db *db;
    enum txn_state state;
    bool orphan;    /* the client is gone; freed when IDLE */
    bool revoked;   /* the leader took the lock back */
    bool cancelled; /* CANCEL or deadline while the fence is being given */
    bool released;  /* RELEASE before the answer to COMMIT */
    bool stuck;     /* the client keeps the fence; logged */
    uint32_t pid;   /* the client's, for status */
    uint64_t since; /* uv_now() when TAKEBACK began */

    uint64_t deadline; /* of LOCK; uv_now() */
    bool try_only;     /* LOCK with timeout 0 */
    bool fresh;        /* may be answered FLO_STALE */
    bool asked;        /* ask is under way */
    struct peer_request ask;
    uint64_t leader_term, leader_grant;
    uint32_t leader_id;
    struct position base; /* where the grant says the database is */
    struct db_waiter wait;
    uv_timer_t *timer; /* malloc'd; closed with the txn */

    uint64_t grant; /* this node's number, in the fence */
    uint64_t commit_id;
    struct txn_builder builder;
    bool built;
    struct proposal proposal;
    bool committed;
    bool open; /* the outcome of COMMIT was reported as unknown */
    uint64_t committed_at; /* uv_hrtime at COMMIT */

    struct txn *prev, *next; /* node's list */
    void *data;              /* the session */
    /* Told to the session, unless orphan. rc FLO_OK: the lock is granted. */
    void (*on_lock)(struct txn *t, int rc, const char *text);
    void (*on_commit)(struct txn *t, int rc, uint64_t txid);
};

int txn_init(struct txn *t, struct node *n);

/* The client is gone, or the session closes: t goes on by itself until it is
 * IDLE and then calls free(t) (it must be malloc'd alone). */
void txn_abandon(struct txn *t);

/* FLO_OK: on_lock follows (maybe at once). FLO_BUSY: not IDLE or LINGER. */
int txn_lock(struct txn *t, struct db *db, unsigned timeout_ms, bool fresh);
void txn_cancel(struct txn *t);
int txn_commit(struct txn *t, uint64_t grant, uint64_t commit_id,
               uint32_t last_frame, uint32_t n_pages, const uint8_t header[24]);
void txn_release(struct txn *t, uint64_t grant, unsigned linger_ms);

/* A leader is ready (maybe another one), or a link came up. */
void txns_kick(struct node *n);

/* REVOKED from the leader. */
void txns_revoked(struct node *n, uint64_t term, uint64_t grant);

/* Readers keep db's WAL from being restarted: send the waiting writers of this
 * node away, who come back with a new snapshot. */
void txns_bounce(struct db *db);

/* The database goes away, or the node stops: end what can be ended now, do not
 * wait for clients any more. */
void txns_db_closed(struct db *db);

/* raft applied a record of this node's: true when it is t's own. */
bool txn_is_own(const struct txn *t, const struct record *rec);
void txn_applied(struct txn *t, const struct record *rec);

#endif
