/* The guards between Flotilla and libraft 0.22 (doc/libraft.md).
 *
 * How: every function of struct raft_io that matters is replaced by one of
 * ours, which calls the original in g->inner. Requests that come back through
 * a callback travel in a wrapper of ours. A uv_prepare handle runs what must
 * not run inside raft's own callbacks, before the loop waits for events:
 * delivering a held InstallSnapshot (G1) and announcing a commit (G8).
 *
 * The happy path of a commit on the leader:
 *
 * - raft_guard_apply: one buffer to raft_apply; raft calls append and send.
 * - append's callback or a follower's answer (recv) moves the commit index;
 *   raft applies the entry; hooks.changed is called when raft has returned.
 * - the callbacks of applied entries run; they may propose the next entry,
 *   whose message carries the new commit index for free.
 * - before the loop sleeps, on_prepare sends a heartbeat if some follower was
 *   not told the commit index by then.
 *
 * The happy path of a local snapshot:
 *
 * - raft calls snapshot_put; it is parked and hooks.before_snapshot called.
 * - raft_guard_snapshot_go: the put goes to the disk; its callback tells raft.
 * - an InstallSnapshot that came meanwhile is delivered.
 *
 * Failure modes: a write that fails is fatal (G4): fatal() logs and aborts, and
 * the log on disk is then a clean prefix. A message that cannot be sent is
 * dropped through its callback. Out of memory here is fatal as well, because
 * raft has no sound way to go on from it.
 *
 * What was read in libraft 0.22.1 and is relied upon: after send() returned 0
 * raft does not touch the request, so a message may be dropped by calling its
 * callback from within send; raft_apply frees the buffer or has handed it to
 * the log whenever it returns 0, and has not touched it when it returns
 * NOTLEADER or NOSPACE; with legacy.closing set, raft_apply returns an
 * uninitialised value and loses the request, so it is never called then. */
#include "daemon/raft_guard.h"

#include <assert.h>
#include <raft/uv.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/queue.h>

#include "core/error.h"
#include "daemon/log.h"

#define MESSAGE_OVERHEAD 256 /* what a message without entries counts */
#define SEGMENT_BYTES (8u << 20)
#define CONNECT_RETRY_MS 100
#define INFLIGHT_MAX 32
#define INSTALL_TIMEOUT_MS 5000
#define APPEND_SLOW_NS (5ull * 1000 * 1000 * 1000)
#define RETRY_QUIET_S 10

struct peer
{
    raft_id id; /* 0: free */
    size_t bytes;
    bool dropping;          /* logged that it is over its bound */
    uint64_t contact_ns;    /* last message from it */
    raft_index told_commit; /* the highest it was sent */
    bool installing;        /* was sent a snapshot and has not accepted since */
};

struct append
{
    struct raft_io_append req;
    struct raft_io_append *orig;
    raft_io_append_cb cb;
    struct raft_guard *guard;
    uint64_t started_ns;
    TAILQ_ENTRY(append) link;
};

struct send
{
    struct raft_io_send req;
    struct raft_io_send *orig;
    raft_io_send_cb cb;
    struct peer *peer; /* NULL: not counted */
    size_t bytes;
};

struct get
{
    struct raft_io_snapshot_get req;
    struct raft_io_snapshot_get *orig;
    raft_io_snapshot_get_cb cb;
    struct raft_guard *guard;
};

/* raft has at most one at a time: local ones and installed ones exclude each
 * other, the latter thanks to G1. */
enum put_state { PUT_NONE, PUT_WAITING, PUT_WRITING };
struct put
{
    enum put_state state;
    bool local;
    struct raft_io_snapshot_put req;
    struct raft_io_snapshot_put *orig;
    raft_io_snapshot_put_cb cb;
    unsigned trailing;
    const struct raft_snapshot *snapshot; /* raft's, until cb */
};

struct raft_guard_impl
{
    struct raft_guard *guard;
    struct raft_guard *next; /* in the thread's list */
    uv_prepare_t prepare;
    struct peer peers[GUARD_PEERS_MAX];
    TAILQ_HEAD(append_list, append) appends; /* in the order of the disk */
    bool append_slow;                        /* logged */
    struct put put;
    bool has_held; /* G1 */
    struct raft_message held;
    char *held_address; /* owned; held.server_address points to it */
    raft_index get_index; /* G2: the snapshot that is being sent right now */
    raft_term get_term;
    bool get_dropped;
    raft_index announced;
    bool announcing;
    bool closing;
    struct raft_tracer tracer;
    atomic_bool truncating;
    atomic_llong retry_logged;
};

/* --- G4: fatal ------------------------------------------------------------ */

static _Noreturn void fatal(const char *op, const char *why)
{
    log_error("raft_fatal",
              "op=%s error=%s hint=\"raft's log in memory and on disk have "
              "parted: check free space and health of the disk that holds "
              "raft/, then start this node again; it continues from the disk\"",
              op, log_quote(why));
    abort();
}

static const char *why(const struct raft_guard *g, int rv)
{
    return g->io->errmsg[0] != '\0' ? g->io->errmsg : raft_strerror(rv);
}

static void *need(void *memory)
{
    if (memory == NULL) {
        fatal("malloc", "out of memory");
    }
    return memory;
}

/* --- finding things -------------------------------------------------------- */

static _Thread_local struct raft_guard *guards;

static struct raft_guard *guard_of(const struct raft_io *io)
{
    struct raft_guard *g = guards;

    while (g != NULL && g->io != io) {
        g = g->impl->next;
    }
    assert(g != NULL);
    return g;
}

static struct peer *find_peer(const struct raft_guard *g, raft_id id)
{
    unsigned i;

    for (i = 0; i < GUARD_PEERS_MAX; i++) {
        if (g->impl->peers[i].id == id) {
            return &g->impl->peers[i];
        }
    }
    return NULL;
}

/* NULL when the table is full: such a peer has no bound and no last contact,
 * and there cannot be one, since settings allow fewer members. */
static struct peer *get_peer(struct raft_guard *g, raft_id id)
{
    struct peer *peer = find_peer(g, id);

    if (peer == NULL) {
        peer = find_peer(g, 0);
        if (peer != NULL) {
            memset(peer, 0, sizeof *peer);
            peer->id = id;
        }
    }
    return peer;
}

static bool closing(const struct raft_guard *g)
{
    return g->impl->closing || g->raft->legacy.closing;
}

static void notify(struct raft_guard *g)
{
    if (g->depth == 0 && g->hooks.changed != NULL && !closing(g)) {
        g->hooks.changed(g->hooks.data);
    }
}

/* --- G4: term, vote, truncate, append ------------------------------------- */

static int guard_set_term(struct raft_io *io, raft_term term)
{
    struct raft_guard *g = guard_of(io);
    int rv = g->inner.set_term(io, term);

    if (rv != 0) {
        fatal("set_term", why(g, rv));
    }
    return 0;
}

static int guard_set_vote(struct raft_io *io, raft_id id)
{
    struct raft_guard *g = guard_of(io);
    int rv = g->inner.set_vote(io, id);

    if (rv != 0) {
        fatal("set_vote", why(g, rv));
    }
    return 0;
}

static int guard_truncate(struct raft_io *io, raft_index index)
{
    struct raft_guard *g = guard_of(io);
    int rv = g->inner.truncate(io, index);

    if (rv != 0) {
        fatal("truncate", why(g, rv));
    }
    return 0;
}

static void on_appended(struct raft_io_append *req, int status)
{
    struct append *append = req->data;
    struct raft_guard *g = append->guard;
    struct raft_io_append *orig = append->orig;
    raft_io_append_cb cb = append->cb;

    if (status != 0 && !(status == RAFT_CANCELED && closing(g))) {
        fatal("append", why(g, status));
    }
    TAILQ_REMOVE(&g->impl->appends, append, link);
    free(append);
    g->depth++;
    cb(orig, status);
    g->depth--;
    notify(g);
}

static int guard_append(struct raft_io *io, struct raft_io_append *req,
                        const struct raft_entry entries[], unsigned n,
                        raft_io_append_cb cb)
{
    struct raft_guard *g = guard_of(io);
    struct append *append = need(calloc(1, sizeof *append));
    int rv;

    append->req.data = append;
    append->orig = req;
    append->cb = cb;
    append->guard = g;
    append->started_ns = uv_hrtime();
    TAILQ_INSERT_TAIL(&g->impl->appends, append, link);
    rv = g->inner.append(io, &append->req, entries, n, on_appended);
    if (rv != 0) {
        fatal("append", why(g, rv));
    }
    return 0;
}

uint64_t raft_guard_oldest_append(const struct raft_guard *g)
{
    const struct append *first = TAILQ_FIRST(&g->impl->appends);

    return first == NULL ? 0 : first->started_ns;
}

/* A write that hangs is not an error: nothing is acknowledged meanwhile. */
static void watch_appends(struct raft_guard *g)
{
    uint64_t oldest = raft_guard_oldest_append(g);
    bool slow = oldest != 0 && uv_hrtime() - oldest > APPEND_SLOW_NS;

    if (slow && !g->impl->append_slow) {
        log_warn("raft_append_slow",
                 "seconds=%u hint=\"the disk that holds raft/ is full or does "
                 "not answer\"",
                 (unsigned)(APPEND_SLOW_NS / 1000000000u));
    }
    g->impl->append_slow = slow;
}

/* --- G2, G5: send ----------------------------------------------------------- */

static size_t message_bytes(const struct raft_message *message)
{
    size_t bytes = MESSAGE_OVERHEAD;
    unsigned i;

    if (message->type == RAFT_APPEND_ENTRIES) {
        for (i = 0; i < message->append_entries.n_entries; i++) {
            bytes += message->append_entries.entries[i].buf.len;
        }
    } else if (message->type == RAFT_INSTALL_SNAPSHOT) {
        bytes += message->install_snapshot.data.len;
    }
    return bytes;
}

static void on_sent(struct raft_io_send *req, int status)
{
    struct send *send = req->data;
    struct raft_io_send *orig = send->orig;
    raft_io_send_cb cb = send->cb;

    if (send->peer != NULL) {
        send->peer->bytes -= send->bytes;
    }
    free(send);
    cb(orig, status);
}

/* Whether the peer's queue takes another message. Says so once per change. */
static bool has_room(struct peer *peer)
{
    if (peer->bytes < GUARD_PEER_BYTES) {
        peer->dropping = false;
        return true;
    }
    if (!peer->dropping) {
        peer->dropping = true;
        log_warn("raft_peer_backlog",
                 "peer=%llu bytes=%zu hint=\"it is connected but does not "
                 "read; messages to it are dropped\"",
                 peer->id, peer->bytes);
    }
    return false;
}

static void note_told(struct peer *peer, const struct raft_message *message)
{
    const struct raft_append_entries *p = &message->append_entries;
    raft_index upto;

    if (message->type != RAFT_APPEND_ENTRIES) {
        return;
    }
    /* A follower believes it only as far as the message proves its log. */
    upto = p->prev_log_index + p->n_entries;
    upto = upto < p->leader_commit ? upto : p->leader_commit;
    if (upto > peer->told_commit) {
        peer->told_commit = upto;
    }
}

static int forward(struct raft_guard *g, struct peer *peer,
                   struct raft_io_send *req, const struct raft_message *message,
                   raft_io_send_cb cb)
{
    struct send *send = need(calloc(1, sizeof *send));
    int rv;

    send->req.data = send;
    send->orig = req;
    send->cb = cb;
    send->peer = peer;
    send->bytes = message_bytes(message);
    if (peer != NULL) {
        peer->bytes += send->bytes;
        peer->installing |= message->type == RAFT_INSTALL_SNAPSHOT;
        note_told(peer, message);
    }
    rv = g->inner.send(g->io, &send->req, message, on_sent);
    if (rv != 0) {
        on_sent(&send->req, RAFT_NOCONNECTION);
    }
    return 0;
}

/* G2: the term of the snapshot that was really read, and the address that its
 * receiver has now: the one in the message may have been freed by a change of
 * the configuration while the snapshot was read. False: not to be sent. */
static bool correct_install(const struct raft_guard *g, struct raft_message *m)
{
    const struct raft_configuration *conf = &g->raft->configuration;
    unsigned i;

    if (g->impl->get_dropped) {
        return false;
    }
    if (m->install_snapshot.last_index == g->impl->get_index) {
        m->install_snapshot.last_term = g->impl->get_term;
    }
    for (i = 0; i < conf->n; i++) {
        if (conf->servers[i].id == m->server_id) {
            m->server_address = conf->servers[i].address;
            return true;
        }
    }
    return false;
}

/* A follower that has not got its snapshot yet rejects heartbeats, and raft
 * sends the snapshot again for each of them: so it is spared announcements. */
static bool is_wanted(const struct raft_guard *g, struct peer *peer,
                      const struct raft_message *message)
{
    if (peer == NULL) {
        return true;
    }
    if (g->impl->announcing && peer->installing &&
        message->type == RAFT_APPEND_ENTRIES &&
        message->append_entries.n_entries == 0) {
        return false;
    }
    return has_room(peer);
}

static int guard_send(struct raft_io *io, struct raft_io_send *req,
                      const struct raft_message *message, raft_io_send_cb cb)
{
    struct raft_guard *g = guard_of(io);
    struct peer *peer = get_peer(g, message->server_id);
    struct raft_message corrected = *message;

    if (closing(g)) {
        cb(req, RAFT_CANCELED);
        return 0;
    }
    if ((message->type == RAFT_INSTALL_SNAPSHOT &&
         !correct_install(g, &corrected)) ||
        !is_wanted(g, peer, message)) {
        cb(req, RAFT_NOCONNECTION);
        return 0;
    }
    return forward(g, peer, req, &corrected, cb);
}

/* --- snapshot_get: G2's source of truth ------------------------------------- */

/* What raft needs to clean up after a message that is never sent. With a
 * status it would free a configuration that it has not initialised. */
static void make_empty_snapshot(struct raft_snapshot *snapshot)
{
    memset(snapshot, 0, sizeof *snapshot);
    raft_configuration_init(&snapshot->configuration);
    snapshot->bufs = need(raft_malloc(sizeof *snapshot->bufs));
    snapshot->bufs[0].base = NULL;
    snapshot->bufs[0].len = 0;
    snapshot->n_bufs = 1;
}

/* raft sends the message from within cb. */
static void on_got(struct raft_io_snapshot_get *req,
                   struct raft_snapshot *snapshot, int status)
{
    struct get *get = req->data;
    struct raft_guard *g = get->guard;
    struct raft_io_snapshot_get *orig = get->orig;
    raft_io_snapshot_get_cb cb = get->cb;

    free(get);
    if (status != 0) {
        log_warn("raft_snapshot_unreadable", "error=%s",
                 log_quote(why(g, status)));
        make_empty_snapshot(snapshot);
    }
    g->impl->get_dropped = status != 0;
    g->impl->get_index = snapshot->index;
    g->impl->get_term = snapshot->term;
    g->depth++;
    cb(orig, snapshot, 0);
    g->depth--;
    g->impl->get_dropped = false;
    g->impl->get_index = 0;
}

static int guard_snapshot_get(struct raft_io *io,
                              struct raft_io_snapshot_get *req,
                              raft_io_snapshot_get_cb cb)
{
    struct raft_guard *g = guard_of(io);
    struct get *get = need(calloc(1, sizeof *get));
    int rv;

    get->req.data = get;
    get->orig = req;
    get->cb = cb;
    get->guard = g;
    rv = g->inner.snapshot_get(io, &get->req, on_got);
    if (rv != 0) {
        fatal("snapshot_get", why(g, rv));
    }
    return 0;
}

/* --- snapshot_put: G4, and the gate for local snapshots --------------------- */

static void on_put(struct raft_io_snapshot_put *req, int status)
{
    struct raft_guard *g = req->data;
    struct put *put = &g->impl->put;
    struct raft_io_snapshot_put *orig = put->orig;

    if (closing(g)) {
        /* Also when it succeeded: raft would leak an installed one. */
        status = RAFT_CANCELED;
    } else if (status != 0) {
        fatal("snapshot_put", why(g, status));
    }
    put->state = PUT_NONE;
    g->depth++;
    put->cb(orig, status);
    g->depth--;
    notify(g);
}

static void start_put(struct raft_guard *g)
{
    struct put *put = &g->impl->put;
    int rv;

    put->state = PUT_WRITING;
    put->req.data = g;
    rv = g->inner.snapshot_put(g->io, put->trailing, &put->req, put->snapshot,
                               on_put);
    if (rv != 0) {
        fatal("snapshot_put", why(g, rv));
    }
}

/* trailing 0 is how raft_uv itself tells an installed snapshot from a local
 * one. */
static int guard_snapshot_put(struct raft_io *io, unsigned trailing,
                              struct raft_io_snapshot_put *req,
                              const struct raft_snapshot *snapshot,
                              raft_io_snapshot_put_cb cb)
{
    struct raft_guard *g = guard_of(io);
    struct put *put = &g->impl->put;

    assert(put->state == PUT_NONE);
    put->local = trailing != 0;
    put->orig = req;
    put->cb = cb;
    put->trailing = trailing;
    put->snapshot = snapshot;
    if (put->local && g->hooks.before_snapshot != NULL) {
        put->state = PUT_WAITING;
        g->hooks.before_snapshot(g->hooks.data);
    } else {
        start_put(g);
    }
    return 0;
}

void raft_guard_snapshot_go(struct raft_guard *g)
{
    if (g->impl->put.state == PUT_WAITING) {
        start_put(g);
    }
}

bool raft_guard_taking_snapshot(const struct raft_guard *g)
{
    return g->impl->put.state != PUT_NONE && g->impl->put.local;
}

/* --- G1, G8: recv, tick, and what runs before the loop sleeps ---------------- */

static void free_install(struct raft_message *message)
{
    raft_configuration_close(&message->install_snapshot.conf);
    raft_free(message->install_snapshot.data.base);
}

static void free_held(struct raft_guard_impl *impl)
{
    if (impl->has_held) {
        impl->has_held = false;
        free_install(&impl->held);
        free(impl->held_address);
    }
}

/* The newest wins: the leader sends again what we do not acknowledge. The
 * address belongs to the connection and may go before the message does. */
static void hold(struct raft_guard_impl *impl,
                 const struct raft_message *message)
{
    free_held(impl);
    impl->held = *message;
    impl->held_address = need(strdup(message->server_address));
    impl->held.server_address = impl->held_address;
    impl->has_held = true;
}

static void deliver(struct raft_guard *g, struct raft_message *message)
{
    g->depth++;
    g->recv(g->io, message);
    g->depth--;
    notify(g);
}

static void note_contact(struct raft_guard *g,
                         const struct raft_message *message)
{
    struct peer *peer = get_peer(g, message->server_id);

    if (peer == NULL) {
        return;
    }
    peer->contact_ns = uv_hrtime();
    if (message->type == RAFT_APPEND_ENTRIES_RESULT &&
        message->append_entries_result.rejected == 0) {
        peer->installing = false;
    }
}

static void on_recv(struct raft_io *io, struct raft_message *message)
{
    struct raft_guard *g = guard_of(io);

    note_contact(g, message);
    if (message->type == RAFT_INSTALL_SNAPSHOT && !closing(g)) {
        if (raft_guard_taking_snapshot(g)) {
            hold(g->impl, message);
            return;
        }
        if (g->raft->snapshot.installing) {
            free_install(message); /* raft would ignore it, and leak it */
            return;
        }
    }
    deliver(g, message);
}

/* With a heartbeat timeout of 0 raft finds that every follower is due one. */
static void heartbeat(struct raft_guard *g)
{
    bool leader = raft_state(g->raft) == RAFT_LEADER;

    if (leader) {
        raft_set_heartbeat_timeout(g->raft, 0);
    }
    g->depth++;
    g->tick(g->io);
    g->depth--;
    if (leader) {
        raft_set_heartbeat_timeout(g->raft, g->heartbeat_ms);
    }
}

static void on_tick(struct raft_io *io)
{
    struct raft_guard *g = guard_of(io);

    watch_appends(g);
    heartbeat(g);
    notify(g);
}

/* A tick also checks which followers answered since the tick before, and takes
 * the others out of pipelining. An announcement comes a fraction of a
 * heartbeat after its predecessor, when their answers may still be on the way:
 * so for this one tick "since" is most of an election timeout ago, and the true
 * mark is put back. (Not all of it: then it could step down.) */
static void announce(struct raft_guard *g)
{
    struct raft *r = g->raft;
    raft_time mark = r->election_timer_start;
    raft_time now = g->io->time(g->io);
    raft_time window = r->election_timeout / 4 * 3;

    r->election_timer_start = now > window ? now - window : 0;
    g->impl->announcing = true;
    heartbeat(g);
    g->impl->announcing = false;
    if (raft_state(r) == RAFT_LEADER) {
        r->election_timer_start = mark;
    }
    notify(g);
}

/* Does a follower that is there wait for this commit index? Those that were
 * silent for an election timeout learn it from the next heartbeat. */
static bool somebody_was_not_told(const struct raft_guard *g, raft_index commit)
{
    const struct raft *r = g->raft;
    uint64_t silent_ns = (uint64_t)r->election_timeout * 1000000u;
    uint64_t now = uv_hrtime();
    unsigned i;

    for (i = 0; i < r->configuration.n; i++) {
        const struct raft_server *server = &r->configuration.servers[i];
        const struct peer *peer = find_peer(g, server->id);

        if (server->id != r->id && server->role != RAFT_SPARE && peer != NULL &&
            !peer->installing && peer->told_commit < commit &&
            now - peer->contact_ns < silent_ns) {
            return true;
        }
    }
    return false;
}

void raft_guard_announce(struct raft_guard *g)
{
    g->impl->announced = 0;
}

static void on_prepare(uv_prepare_t *handle)
{
    struct raft_guard *g = handle->data;
    struct raft_guard_impl *impl = g->impl;
    raft_index commit;

    if (g->tick == NULL || closing(g)) {
        return;
    }
    assert(g->depth == 0);
    if (impl->has_held && !raft_guard_taking_snapshot(g)) {
        char *address = impl->held_address;
        impl->has_held = false;
        deliver(g, &impl->held);
        free(address);
    }
    commit = raft_commit_index(g->raft);
    if (raft_state(g->raft) == RAFT_LEADER && commit > impl->announced) {
        impl->announced = commit;
        if (somebody_was_not_told(g, commit)) {
            announce(g);
        }
    }
}

static int guard_start(struct raft_io *io, unsigned msecs, raft_io_tick_cb tick,
                       raft_io_recv_cb recv)
{
    struct raft_guard *g = guard_of(io);

    g->tick = tick;
    g->recv = recv;
    return g->inner.start(io, msecs, on_tick, on_recv);
}

uint64_t raft_guard_last_contact(const struct raft_guard *g, raft_id id)
{
    const struct peer *peer = id == 0 ? NULL : find_peer(g, id);

    return peer == NULL ? 0 : peer->contact_ns;
}

/* --- G6: propose ------------------------------------------------------------ */

static int map_status(int status)
{
    switch (status) {
        case 0:
            return FLO_OK;
        case RAFT_SHUTDOWN:
        case RAFT_CANCELED:
            return FLO_SHUTDOWN;
        default: /* RAFT_LEADERSHIPLOST, mostly */
            return FLO_UNKNOWN;
    }
}

static void on_applied(struct raft_apply *raft_req, int status, void *result)
{
    struct raft_guard_apply *req = raft_req->data;
    struct raft_guard *g = req->guard;

    (void)result;
    g->apply_count--;
    g->apply_bytes -= req->bytes;
    req->cb(req, map_status(status));
}

/* A follower that raft is probing gets at most one message per heartbeat. An
 * isolated entry does not wait for that; of many in a row only the first is
 * hurried, because to a probed follower each would repeat all before it. */
static int propose(struct raft_guard *g, struct raft_guard_apply *req,
                   const struct raft_buffer *buf)
{
    bool isolated = g->apply_count == 0;
    int rv;

    if (isolated) {
        raft_set_heartbeat_timeout(g->raft, 0);
    }
    g->depth++;
    rv = raft_apply(g->raft, &req->raft, buf, 1, on_applied);
    g->depth--;
    raft_set_heartbeat_timeout(g->raft, g->heartbeat_ms);
    return rv;
}

static int may_propose(const struct raft_guard *g, size_t n)
{
    if (g->tick == NULL || closing(g)) {
        return FLO_SHUTDOWN;
    }
    if (raft_state(g->raft) != RAFT_LEADER) {
        return FLO_NOTLEADER;
    }
    if (g->apply_count >= GUARD_WINDOW_COUNT ||
        g->apply_bytes + n > GUARD_WINDOW_BYTES) {
        return FLO_BUSY;
    }
    return FLO_OK;
}

int raft_guard_apply(struct raft_guard *g, struct raft_guard_apply *req,
                     void *entry, size_t n,
                     void (*cb)(struct raft_guard_apply *req, int rc))
{
    struct raft_buffer buf = {.base = entry, .len = n};
    int rc = may_propose(g, n);
    int rv;

    assert(n > 0 && n % 8 == 0);
    assert(g->depth == 0);
    if (rc != FLO_OK) {
        free(entry);
        return rc;
    }
    req->raft.data = req;
    req->cb = cb;
    req->guard = g;
    req->bytes = n;
    rv = propose(g, req, &buf);
    if (rv == 0) {
        g->apply_count++;
        g->apply_bytes += n;
        return FLO_OK;
    }
    if (rv != RAFT_NOTLEADER && rv != RAFT_NOSPACE) {
        fatal("apply", raft_strerror(rv)); /* the entry may be half in */
    }
    free(entry);
    return rv == RAFT_NOSPACE ? FLO_FULL : FLO_NOTLEADER;
}

/* --- G4: what raft_uv only traces -------------------------------------------- */

static bool starts_with(const char *s, const char *prefix)
{
    return strncmp(s, prefix, strlen(prefix)) == 0;
}

static void log_retry(struct raft_guard_impl *impl, const char *message)
{
    long long now = (long long)(uv_hrtime() / 1000000000u) + 1;
    long long before = atomic_load(&impl->retry_logged);

    if ((before == 0 || now - before >= RETRY_QUIET_S) &&
        atomic_compare_exchange_strong(&impl->retry_logged, &before, now)) {
        log_warn("raft_disk_retry", "what=%s hint=\"is the disk full?\"",
                 log_quote(message));
    }
}

/* A failed write goes to a retry timer that crashes, a failed truncation is
 * forgotten: neither reaches a callback, but both are traced. Some of this is
 * called on threads of libuv's pool. The messages are those of 0.22. */
static void on_trace(struct raft_tracer *tracer, int type, const void *data)
{
    struct raft_guard_impl *impl = tracer->impl;
    const struct raft_tracer_info *info = data;
    const char *message;

    if (type != RAFT_TRACER_DIAGNOSTIC) {
        return;
    }
    message = info->diagnostic.message;
    if (starts_with(message, "retry failed write")) {
        fatal("append", message);
    } else if (starts_with(message, "truncate segment ")) {
        fatal("finalize", message);
    } else if (strcmp(message, "uv truncate work cb") == 0) {
        impl->truncating = true;
    } else if (strcmp(message, "uv truncate work cb ok") == 0) {
        impl->truncating = false;
    } else if (starts_with(message, "uv truncate after work cb") &&
               impl->truncating) {
        fatal("truncate", "the truncation of the log failed");
    } else if (starts_with(message, "retry snapshot write") ||
               starts_with(message, "retry creating segment")) {
        log_retry(impl, message);
    }
}

/* --- set up and tear down ---------------------------------------------------- */

/* raft is being closed: nothing of ours may outlive its log. */
static void guard_close(struct raft_io *io, raft_io_close_cb cb)
{
    struct raft_guard *g = guard_of(io);
    struct put *put = &g->impl->put;

    g->impl->closing = true;
    free_held(g->impl);
    if (put->state == PUT_WAITING) {
        put->state = PUT_NONE;
        put->cb(put->orig, RAFT_CANCELED);
    }
    g->inner.close(io, cb);
}

static void wrap(struct raft_io *io)
{
    io->close = guard_close;
    io->start = guard_start;
    io->set_term = guard_set_term;
    io->set_vote = guard_set_vote;
    io->send = guard_send;
    io->append = guard_append;
    io->truncate = guard_truncate;
    io->snapshot_put = guard_snapshot_put;
    io->snapshot_get = guard_snapshot_get;
}

int raft_guard_init(struct raft_guard *g, uv_loop_t *loop, struct raft *raft,
                    struct raft_io *io, unsigned heartbeat_ms,
                    const struct raft_guard_hooks *hooks)
{
    struct raft_guard_impl *impl = calloc(1, sizeof *impl);

    if (impl == NULL) {
        return FLO_NOMEM;
    }
    memset(g, 0, sizeof *g);
    g->raft = raft;
    g->io = io;
    g->inner = *io;
    g->hooks = *hooks;
    g->heartbeat_ms = heartbeat_ms;
    g->impl = impl;
    TAILQ_INIT(&impl->appends);
    impl->guard = g;
    impl->tracer.impl = impl;
    impl->tracer.version = 2;
    impl->tracer.emit = on_trace;
    impl->next = guards;
    guards = g;
    uv_prepare_init(loop, &impl->prepare);
    impl->prepare.data = g;
    uv_prepare_start(&impl->prepare, on_prepare);
    uv_unref((uv_handle_t *)&impl->prepare);
    wrap(io);
    return FLO_OK;
}

void raft_guard_configure_uv(struct raft_guard *g)
{
    raft_uv_set_auto_recovery(g->io, false);
    raft_uv_set_segment_size(g->io, SEGMENT_BYTES);
    raft_uv_set_connect_retry_delay(g->io, CONNECT_RETRY_MS);
#if RAFT_VERSION_MAJOR == 0 && RAFT_VERSION_MINOR == 22
    raft_uv_set_tracer(g->io, &g->impl->tracer);
#endif
}

/* The election timeout first: libraft triples 150/15, but only when it finds
 * the heartbeat set before. */
void raft_guard_configure(struct raft_guard *g, unsigned election_ms)
{
    struct raft *r = g->raft;

    raft_set_election_timeout(r, election_ms);
    raft_set_heartbeat_timeout(r, g->heartbeat_ms);
    if (r->election_timeout != election_ms ||
        r->heartbeat_timeout != g->heartbeat_ms) {
        log_warn("raft_timeouts", "heartbeat_ms=%u election_ms=%u",
                 r->heartbeat_timeout, r->election_timeout);
        g->heartbeat_ms = r->heartbeat_timeout;
    }
    raft_set_pre_vote(r, true);
    raft_set_capacity_threshold(r, 0);
    raft_set_max_inflight_entries(r, INFLIGHT_MAX);
    /* Our snapshots are manifests: a lost one should not cost 30 s. */
    raft_set_install_snapshot_timeout(r, INSTALL_TIMEOUT_MS);
}

static void on_prepare_closed(uv_handle_t *handle)
{
    struct raft_guard_impl *impl =
        (struct raft_guard_impl *)((char *)handle -
                                   offsetof(struct raft_guard_impl, prepare));
    free(impl);
}

void raft_guard_close(struct raft_guard *g)
{
    struct raft_guard **at = &guards;

    if (g->impl == NULL) {
        return;
    }
    while (*at != g) {
        at = &(*at)->impl->next;
    }
    *at = g->impl->next;
    free_held(g->impl);
    uv_close((uv_handle_t *)&g->impl->prepare, on_prepare_closed);
    g->impl = NULL;
}
