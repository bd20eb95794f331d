/* A proposal: one record or one transaction on its way to being committed by
 * whoever leads, across changes of leader.
 *
 *   WAITING --ready leader known--> SENT --RESULT ok--> done: FLO_OK
 *      ^                             |---RESULT refused--> done: that error
 *      |                             |---outcome open (link lost, leadership
 *      +-----------------------------+   lost): ask the next ready leader
 *   deadline: FLO_UNKNOWN if it was ever sent, else FLO_NOLEADER
 *
 * Sending again is safe: a leader is ready only when it has applied all its
 * log, and it recognises a transaction that it has by (txid, commit_id); a
 * message that arrives in another term than it names is refused. Loop thread
 * only. */
#ifndef FLOTILLA_PROPOSAL_H
#define FLOTILLA_PROPOSAL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

#include "core/buf.h"
#include "daemon/peers.h"

struct node;

struct proposal
{
    struct node *node;
    const struct buf *records; /* borrowed until done */
    size_t n_records;
    uint64_t grant; /* 0: not under the write lock */
    uint64_t txid, commit_id; /* what leaders know a transaction by; or 0 */
    bool open;   /* some leader may have it: the outcome is not known */
    bool active; /* in the node's list */
    bool sent;   /* an answer is awaited */
    uint64_t deadline; /* uv_now() */
    struct peer_request request;
    struct proposal *prev, *next; /* node's list */
    void *data;
    void (*done)(struct proposal *p, int rc, uint64_t txid);
};

/* Start. node, records, n_records, grant, txid, commit_id, data and done are set
 * by the caller; done is called exactly once, possibly before this returns. */
void proposal_start(struct proposal *p, unsigned timeout_ms);

/* Stop caring; done is not called. */
void proposal_cancel(struct proposal *p);

/* raft applied this transaction here: completes the proposal that it is. */
void proposals_applied(struct node *n, uint64_t txid, uint64_t commit_id);

/* A leader became ready, or a link came up: send those that wait. */
void proposals_kick(struct node *n);

/* End those whose deadline passed. */
void proposals_tick(struct node *n);

#endif
