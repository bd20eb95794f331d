/* What a node knows about itself and its cluster, as plain data: filled by
 * node.c on the loop, printed by http.c as JSON and by session.c as rows. */
#ifndef FLOTILLA_STATUS_H
#define FLOTILLA_STATUS_H

#include <stdbool.h>
#include <stdint.h>

#include "core/position.h"
#include "core/wire.h"
#include "daemon/settings.h"

#define STATUS_DATABASES_MAX 256
#define STATUS_RESYNCS_MAX 16

struct db_status
{
    char name[DB_NAME_MAX + 1];
    struct position position; /* of the local (or that follower's) replica */
    uint32_t page_size;
    uint32_t n_pages;
    uint32_t wal_frames;
    enum db_health health;
    const char *state; /* "good", "resync", "suspect", "pristine", "stuck" … */
    uint32_t lock_waiters;   /* leader only */
    uint32_t lock_holder;    /* leader only: node id, 0 none */
    uint64_t queued_bytes;   /* waiting to be applied */
    uint32_t stuck_pid;      /* a client that keeps the fence, 0 none */
};

struct member_status
{
    uint32_t id;
    char address[ADDRESS_MAX + 1];
    bool self, leader, connected; /* connected: the peer link is up */
    const char *role;   /* "voter", "standby", "spare" */
    enum db_health health;
    uint64_t last_replicated_index; /* leader: match index; else as reported */
    uint64_t applied_index;         /* as it reported */
    uint64_t lag;                   /* leader's last index − applied_index */
    uint64_t last_contact_ms;       /* since the last raft message; ~0: never */
    double last_latency_ms;         /* peer link round trip; < 0 unknown */
    uint32_t pending_count;         /* requests without an answer yet */
    uint32_t consecutive_failures;  /* connection attempts since last success */
    uint64_t free_bytes;
    unsigned n_databases;
    struct db_status *databases; /* owned by the status; name, position,
                                    health only, for other nodes */
};

/* One resync, finished or not. Times are UTC milliseconds since the epoch. */
struct resync_record
{
    char db[DB_NAME_MAX + 1];
    char reason[64]; /* "forced", "log compacted", "diverged", "new" … */
    uint32_t source, target; /* node ids */
    int64_t started_ms, finished_ms; /* finished_ms 0: running */
    uint64_t pages_compared, pages_sent, bytes_sent;
    int rc;
};

struct resync_stats
{
    uint64_t started, finished, failed;
    uint64_t pages_compared, pages_sent, bytes_sent;
    struct resync_record last[STATUS_RESYNCS_MAX]; /* newest first */
    unsigned n_last;
};

struct node_counters
{
    uint64_t txn_committed, txn_rejected, txn_unknown;
    uint64_t leader_changes, proposals_committed, proposals_failed;
    uint64_t snapshots, checkpoints;
    uint64_t clients_accepted, protocol_errors;
    /* commit latency as seen by this daemon, COMMIT to answer: cumulative
     * buckets of bounds_ms in status.c */
    uint64_t commit_ms_bucket[12];
    double commit_seconds_sum;
};

struct node_status
{
    const char *version;
    const char *cluster;
    uint32_t id;
    const char *raft_state; /* "leader", "follower", "candidate", … */
    bool is_leader;         /* and has applied its own barrier */
    uint32_t leader_id;     /* 0: none known */
    char leader_address[ADDRESS_MAX + 1];
    char leader_http[ADDRESS_MAX + 1]; /* its HTTP address: one port above */
    uint64_t term, commit_index, last_applied, last_index;
    int64_t started_ms;
    uint64_t uptime_ms;
    uint64_t free_bytes;
    bool disk_low;
    uint32_t n_clients;
    bool live;  /* restart me? */
    bool ready; /* route to me? */
    char ready_reason[160]; /* what it waits for; "" when ready */
    unsigned n_members;
    struct member_status members[MEMBERS_MAX]; /* self included */
    unsigned n_databases;
    struct db_status *databases; /* owned */
    struct resync_stats resync;
    struct node_counters counters;
};

struct node;

/* Fill s (zeroed by the callee); FLO_NOMEM. Free with node_status_close. */
int node_status_get(struct node *n, struct node_status *s);
void node_status_close(struct node_status *s);

/* "healthy", "lagging", "desynced", "unknown" */
const char *db_health_name(enum db_health h);

/* Order a follower (by address or number; this node must lead) to resync all
 * its databases. FLO_OK: ordered. FLO_NOTLEADER, FLO_NOTFOUND (no such
 * member), FLO_INVALID (it is the leader itself), FLO_NOLEADER (not connected),
 * FLO_BUSY (one is running). text gets one line. */
int node_force_resync(struct node *n, const char *target, char *text,
                      size_t text_n);

#endif
