/* A node: everything that one flotillad hosts, and how the parts meet.
 *
 *   sessions (clients) ──> txn ──> proposal ──> peers ──> leader ──> raft
 *   raft ──> fsm ──> db ──> replica (its worker)            └─ lockq
 *   peers ──> resync <──> db;  upkeep: checkpoints, durability, disk space
 *
 * All of it on one libuv loop; workers for what may block. */
#ifndef FLOTILLA_NODE_H
#define FLOTILLA_NODE_H

#include <raft.h>
#include <raft/uv.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "daemon/db.h"
#include "daemon/http.h"
#include "daemon/leader.h"
#include "daemon/peers.h"
#include "daemon/proposal.h"
#include "daemon/raft_guard.h"
#include "daemon/resync.h"
#include "daemon/settings.h"
#include "daemon/status.h"
#include "daemon/transport.h"
#include "daemon/txn.h"
#include "daemon/upkeep.h"
#include "daemon/worker.h"

struct sessions;

/* Who leads, as this node knows it. ready: it may be asked, and this node has
 * applied all that was in the log when that leader began. */
struct leader_view
{
    uint32_t id; /* 0: nobody known */
    uint64_t term;
    bool ready;
};

struct node
{
    struct settings settings;
    uv_loop_t *loop;
    int lock_fd; /* the directory's lock */
    uint64_t identity;
    bool fresh; /* the identity was made by this start */
    int64_t started_ms;
    uint64_t started_at; /* uv_now() */

    struct transport transport;
    struct raft_io io;
    struct raft_guard guard;
    struct raft_fsm fsm;
    struct raft raft;
    bool raft_started;
    unsigned last_raft_state;

    struct leader leader;
    struct leader_view view;
    bool replayed; /* has applied up to a ready leader's barrier once */
    struct peers peers;
    struct db *dbs;
    unsigned n_dbs;
    unsigned n_workers; /* databases whose worker still runs */
    struct proposal *proposals;
    struct txn *txns;
    struct sessions *sessions;
    struct http *http;
    struct upkeep upkeep;
    struct resync_stats resync_stats;
    struct node_counters counters;
    struct worker background;
    bool background_running;
    uint64_t next_grant;

    uint64_t known_identity[MEMBERS_MAX];   /* of members; 0: not seen yet */
    uint64_t refused_identity[MEMBERS_MAX]; /* the last one that was logged */

    uv_timer_t tick;
    uv_signal_t sigterm, sigint;
    bool lame_duck;
    uint64_t stop_deadline;
    struct raft_transfer transfer;
    bool transferring;
    uint64_t transfer_deadline; /* uv_now(); 0: leadership not handed over yet */
    bool closing;
    bool raft_closed;
    bool finished;
    char errmsg[512];
};

/* Start everything. 0; or 2 with errmsg (one line) and nothing left running. */
int node_start(struct node *n, uv_loop_t *loop, const struct settings *s);

/* Leave: finish what is open, hand over leadership, close; the loop then runs
 * out of handles. The second call stops at once. */
void node_stop(struct node *n);

/* The raft state, a peer's report or a replica changed. */
void node_changed(struct node *n);

/* A message from a member (this node included) that is not an answer. */
void node_handle(struct node *n, uint32_t from, const struct wire_msg *m);
void node_peer_down(struct node *n, uint32_t id);
void node_peer_up(struct node *n, uint32_t id);

/* Is this the member's directory, as far as this node has ever seen? */
int node_check_identity(struct node *n, uint32_t id, uint64_t identity);

int64_t node_wall_ms(void);

#endif
