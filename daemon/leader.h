/* What the leader does for the cluster: queue the write lock, take proposals
 * to raft, confirm read indexes.
 *
 * Every node has this service; it answers FLO_NOTLEADER unless the node leads
 * and is ready, i.e. a barrier of its own term was applied, so that it has
 * applied everything its log may hold (raft dissertation, section 6.4 and 3.6).
 * Requests come from members, this node included. Loop thread only. */
#ifndef FLOTILLA_LEADER_H
#define FLOTILLA_LEADER_H

#include <stdbool.h>
#include <stdint.h>

#include "core/wire.h"
#include "daemon/lockq.h"
#include "daemon/raft_guard.h"

struct node;
struct db;

struct leader
{
    struct node *node;
    uint64_t barrier_term; /* the term a barrier was submitted in */
    bool barrier_pending;
    uint64_t ready_term; /* 0: not ready */
    uint64_t ready_index;
    struct raft_barrier barrier;
    uint64_t next_grant;
    uint64_t next_tick; /* uv_now(), 0: none */
    unsigned inflight;
};

void leader_init(struct leader *l, struct node *n);

/* raft's state may have changed. */
void leader_changed(struct leader *l);

/* PEER_LOCK, CANCEL, PROPOSE, PEER_RELEASE, READ_INDEX from member `from`. */
void leader_handle(struct leader *l, uint32_t from, const struct wire_msg *m);

/* A member's link is gone. */
void leader_drop_node(struct leader *l, uint32_t id);

void leader_tick(struct leader *l);

/* Prepare a database's queue; and end it. */
void leader_db_init(struct leader *l, struct db *db);
void leader_db_close(struct db *db);

#endif
