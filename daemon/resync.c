/* Resync: the target's side, and the records of both; see resync.h.
 *
 *  - resync_tick finds a DESYNCED database with nothing under way and a source
 *  - the replica is hashed anew, for what the position file says may be wrong;
 *    the hashes are copied (the replica's worker)
 *  - RESYNC_BEGIN and RESYNC_HASHES go out, no more at once than the link takes
 *  - each PAGES is one job of the worker, and then answered with PAGES_ACK
 *  - RESYNC_END: the commit, a job too; db_moved() makes the database GOOD
 *
 * Failure modes: the source refuses (RESULT) or is lost (the request's callback
 * says so), does not move for RESYNC_STALL_MS, or sends what cannot be right;
 * the disk is full; the pages do not give the checksum that the source said.
 * All of them go through end(): what was written is taken back, the database is
 * DESYNCED and tried again after RESYNC_RETRY_MS.
 *
 * The worker runs jobs strictly in order, so end() posts its abort behind what
 * is still queued, and only when that is done the object is freed. Fields that
 * jobs use are marked; the loop looks at them only in their done callbacks. */
#include "daemon/resync.h"

#include <assert.h>
#include <lz4.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"
#include "daemon/resync_internal.h"

/* No more hashes are queued while the link has this much to send. */
#define HASHES_QUEUED_MAX (4u << 20)

enum target_state {
    TARGET_HASHING,
    TARGET_ASKING,    /* hashes are being sent */
    TARGET_RECEIVING, /* all were sent */
    TARGET_COMMITTING,
    TARGET_ENDING
};

struct resync
{
    struct node *node;
    struct db *db;
    enum target_state state;
    uint32_t source;
    struct peer_request request;
    struct job job;  /* hashing, then the commit */
    struct job last; /* the abort */
    unsigned n_jobs; /* PAGES that the worker has not done yet */
    uint32_t n_sent; /* hashes */
    uint64_t progress_at;
    int last_rc; /* of the attempt before this one; 0: it is the first */
    int rc;

    /* Written by the hashing job. */
    uint64_t *hashes; /* owned; freed when they were sent */
    uint32_t n_hashes, page_size;
    bool pristine; /* there is nothing here */
    bool ours;     /* what is here came from the cluster */

    /* The worker's from then on. */
    bool begun;
    int apply_rc; /* first failure; later jobs do nothing */
    uint32_t new_page_size, last_pgno;

    /* RESYNC_END */
    struct position end;
    uint32_t end_pages, end_page_size;
    int commit_rc;

    struct resync_record rec;
};

/* One PAGES message on its way to the replica. */
struct pages_job
{
    struct job job;
    struct resync *rs;
    uint32_t page_size, n_images;
    int rc;
    size_t n;
    uint8_t bytes[];
};

static uint64_t now(const struct node *n)
{
    return uv_now(n->loop);
}

/* ---- Records -------------------------------------------------------------------- */

static bool same_pair(const struct resync_record *a,
                      const struct resync_record *b)
{
    return a->source == b->source && a->target == b->target &&
           strcmp(a->db, b->db) == 0;
}

/* One that is tried again each second must not push all others out: its last
 * failure makes room for the new attempt. */
static void make_room(struct resync_stats *st, const struct resync_record *rec)
{
    unsigned i = 0;

    while (i < st->n_last &&
           (st->last[i].finished_ms == 0 || st->last[i].rc == FLO_OK ||
            st->last[i].target != rec->target ||
            strcmp(st->last[i].db, rec->db) != 0)) {
        i++;
    }
    if (i == st->n_last && st->n_last < STATUS_RESYNCS_MAX) {
        st->n_last++;
    } else if (i == st->n_last) {
        i--; /* the oldest */
    }
    memmove(&st->last[1], &st->last[0], i * sizeof st->last[0]);
}

void resync_record_start(struct node *n, struct resync_record *rec)
{
    rec->started_ms = node_wall_ms();
    rec->finished_ms = 0;
    rec->rc = FLO_OK;
    make_room(&n->resync_stats, rec);
    n->resync_stats.last[0] = *rec;
    n->resync_stats.started++;
}

void resync_record_update(struct node *n, const struct resync_record *rec)
{
    struct resync_stats *st = &n->resync_stats;

    for (unsigned i = 0; i < st->n_last; i++) {
        if (st->last[i].finished_ms == 0 && same_pair(&st->last[i], rec)) {
            st->last[i] = *rec;
            return;
        }
    }
}

void resync_record_finish(struct node *n, struct resync_record *rec, int rc)
{
    rec->finished_ms = node_wall_ms();
    rec->rc = rc;
    resync_record_update(n, rec);
    if (rc == FLO_OK) {
        n->resync_stats.finished++;
    } else {
        n->resync_stats.failed++;
    }
}

/* This node's last attempt to resync db, or NULL. */
static const struct resync_record *last_attempt(const struct node *n,
                                                const struct db *db)
{
    const struct resync_stats *st = &n->resync_stats;

    for (unsigned i = 0; i < st->n_last; i++) {
        if (st->last[i].target == n->settings.id &&
            strcmp(st->last[i].db, db->name) == 0) {
            return &st->last[i];
        }
    }
    return NULL;
}

/* ---- The end ---------------------------------------------------------------------- */

static const char *hint_for(int rc)
{
    switch (rc) {
        case FLO_EXISTS:
            return "the database is empty in the cluster but not here: move "
                   "this node's files of it away, then restart the node";
        case FLO_FULL:
            return "free some space on this node; it is tried again by itself";
        case FLO_NOLEADER:
            return "the source was lost; another one is tried";
        case FLO_CORRUPT:
        case FLO_MISMATCH:
            return "the source sent wrong pages: check its disk; tried again";
        default:
            return "it is tried again by itself, maybe from another source";
    }
}

static void log_failure(const struct resync *rs)
{
    /* The same failure as a second ago is not an event. */
    log_event(rs->rc == rs->last_rc ? LOG_DEBUG : LOG_WARN, "resync_failed",
              "db=%s source=%u reason=%s hint=%s", rs->rec.db, rs->source,
              log_quote(flo_strerror(rs->rc)), log_quote(hint_for(rs->rc)));
}

static struct resync *detach(struct resync *rs)
{
    assert(rs->n_jobs == 0);
    rs->db->resync = NULL;
    free(rs->hashes);
    rs->hashes = NULL;
    return rs;
}

static struct resync *target_of_last(struct job *job)
{
    return (struct resync *)((char *)job - offsetof(struct resync, last));
}

static void abort_run(struct job *job)
{
    struct resync *rs = target_of_last(job);

    if (rs->begun) {
        replica_replace_abort(&rs->db->replica);
        rs->begun = false;
    }
}

static void back_to_desynced(struct db *db)
{
    if (db->state == DB_IS_RESYNCING) {
        db->state = DB_IS_DESYNCED;
    }
    db->resync_after = now(db->node) + RESYNC_RETRY_MS;
}

static void abort_done(struct job *job)
{
    struct resync *rs = detach(target_of_last(job));
    struct node *n = rs->node;

    back_to_desynced(rs->db);
    resync_record_finish(n, &rs->rec, rs->rc);
    log_failure(rs);
    free(rs);
    node_changed(n);
}

/* Give up. Safe at any moment, more than once; rs lives on until abort_done. */
static void end(struct resync *rs, int rc)
{
    assert(rc != FLO_OK);
    if (rs->state == TARGET_ENDING) {
        return;
    }
    rs->state = TARGET_ENDING;
    rs->rc = rc;
    peers_forget(&rs->node->peers, &rs->request);
    rs->last.run = abort_run;
    rs->last.done = abort_done;
    worker_post(&rs->db->worker, &rs->last);
}

/* ---- The commit --------------------------------------------------------------------- */

static struct resync *target_of(struct job *job)
{
    return (struct resync *)((char *)job - offsetof(struct resync, job));
}

static int begin(struct resync *rs, uint32_t page_size)
{
    int rc = FLO_OK;

    if (!rs->begun) {
        rc = replica_replace_begin(&rs->db->replica, page_size);
        rs->begun = rc == FLO_OK;
        rs->new_page_size = page_size;
    }
    return rc == FLO_OK && rs->new_page_size != page_size ? FLO_PROTOCOL : rc;
}

static int commit(struct resync *rs)
{
    int rc = rs->apply_rc;

    if (rc == FLO_OK) {
        /* Without any page, too: the position may be all that differs. */
        rc = begin(rs, rs->end_page_size);
    }
    if (rc == FLO_OK) {
        rc = replica_replace_commit(&rs->db->replica, rs->end_pages, rs->end);
    }
    if (rc == FLO_OK) {
        rs->begun = false;
    }
    return rc;
}

static void commit_run(struct job *job)
{
    struct resync *rs = target_of(job);

    rs->commit_rc = commit(rs);
}

static void finish(struct resync *rs)
{
    struct db *db = rs->db;

    resync_record_finish(rs->node, &rs->rec, FLO_OK);
    log_info("resync_finished",
             "db=%s source=%u txid=%llu compared=%llu pages=%llu bytes=%llu "
             "ms=%lld",
             db->name, rs->source, (unsigned long long)rs->end.txid,
             (unsigned long long)rs->rec.pages_compared,
             (unsigned long long)rs->rec.pages_sent,
             (unsigned long long)rs->rec.bytes_sent,
             (long long)(rs->rec.finished_ms - rs->rec.started_ms));
    free(detach(rs));
    db_moved(db);
    /* Only if the replica did not become good; and one that is DESYNCED again
     * already, because entries were dropped meanwhile, waits, too. */
    back_to_desynced(db);
}

static void commit_done(struct job *job)
{
    struct resync *rs = target_of(job);

    if (rs->state == TARGET_ENDING) {
        return; /* the database is being closed */
    }
    if (rs->commit_rc != FLO_OK) {
        end(rs, rs->commit_rc);
        return;
    }
    finish(rs);
}

static void post_commit(struct resync *rs)
{
    rs->state = TARGET_COMMITTING;
    rs->job.run = commit_run;
    rs->job.done = commit_done;
    worker_post(&rs->db->worker, &rs->job);
}

/* The cluster's database has nothing in it. So has this replica then, but only
 * if its content once came from the cluster: a file that somebody put there
 * is not ours to delete. */
static void received_empty(struct resync *rs)
{
    rs->end_page_size = rs->page_size;
    if (rs->rec.pages_sent > 0 || rs->end.checksum != 0) {
        end(rs, FLO_PROTOCOL);
    } else if (rs->pristine) {
        finish(rs);
    } else if (rs->ours) {
        post_commit(rs);
    } else {
        end(rs, FLO_EXISTS);
    }
}

static void received_end(struct resync *rs, const struct wire_msg *m)
{
    rs->end = (struct position){m->resync_end.txid, m->resync_end.checksum};
    rs->end_pages = m->resync_end.n_pages;
    rs->end_page_size = m->resync_end.page_size;
    rs->rec.pages_compared = m->resync_end.compared;
    if (rs->state != TARGET_RECEIVING) {
        end(rs, FLO_PROTOCOL);
    } else if (rs->end.txid == 0 && rs->end_pages == 0) {
        received_empty(rs);
    } else if (rs->end.txid == 0 || rs->end_pages == 0 ||
               rs->end_pages > RESYNC_PAGES_MAX ||
               !page_size_valid(rs->end_page_size)) {
        end(rs, FLO_PROTOCOL);
    } else {
        post_commit(rs);
    }
}

/* ---- Pages ------------------------------------------------------------------------- */

/* On the worker: the next image of the message, into image. */
static int next_page(struct resync *rs, struct cursor *c, uint32_t page_size,
                     uint32_t *pgno, uint8_t *image)
{
    uint32_t number = cursor_u32(c);
    uint32_t stored = cursor_u32(c);
    const uint8_t *p = cursor_bytes(c, stored);

    if (p == NULL || stored == 0 || stored > page_size ||
        number <= rs->last_pgno || number > RESYNC_PAGES_MAX) {
        return FLO_PROTOCOL;
    }
    if (stored == page_size) {
        memcpy(image, p, page_size);
    } else if (LZ4_decompress_safe((const char *)p, (char *)image, (int)stored,
                                   (int)page_size) != (int)page_size) {
        return FLO_CORRUPT;
    }
    rs->last_pgno = number;
    *pgno = number;
    return FLO_OK;
}

static int apply_pages(struct pages_job *j, uint8_t *image)
{
    struct resync *rs = j->rs;
    struct cursor c = cursor_of(j->bytes, j->n);
    int rc = begin(rs, j->page_size);

    for (uint32_t i = 0; i < j->n_images && rc == FLO_OK; i++) {
        uint32_t pgno;
        rc = next_page(rs, &c, j->page_size, &pgno, image);
        if (rc == FLO_OK) {
            rc = replica_replace_page(&rs->db->replica, pgno, image);
        }
    }
    return rc == FLO_OK && c.n != 0 ? FLO_PROTOCOL : rc;
}

static void pages_run(struct job *job)
{
    struct pages_job *j = (struct pages_job *)job;
    struct resync *rs = j->rs;
    uint8_t *image;

    if (rs->apply_rc == FLO_OK) {
        image = malloc(j->page_size);
        rs->apply_rc = image != NULL ? apply_pages(j, image) : FLO_NOMEM;
        free(image);
    }
    j->rc = rs->apply_rc;
}

static void acknowledge(struct resync *rs, uint64_t number, uint32_t n_images)
{
    struct wire_msg m = {.type = MSG_PAGES_ACK, .request = number};

    m.pages_ack.n_images = n_images;
    peers_send(&rs->node->peers, rs->source, &m); /* lost: the link is, too */
}

static void pages_done(struct job *job)
{
    struct pages_job *j = (struct pages_job *)job;
    struct resync *rs = j->rs;

    rs->n_jobs--;
    if (rs->state == TARGET_RECEIVING && j->rc != FLO_OK) {
        end(rs, j->rc);
    } else if (rs->state == TARGET_RECEIVING) {
        rs->progress_at = now(rs->node);
        acknowledge(rs, rs->request.number, j->n_images);
    }
    free(j);
}

static int check_pages(const struct resync *rs, const struct wire_msg *m)
{
    uint32_t len = m->pages.pages.len;

    if (rs->state != TARGET_RECEIVING || m->pages.n_images == 0 ||
        !page_size_valid(m->pages.page_size) || len > RESYNC_CHUNK_BYTES) {
        return FLO_PROTOCOL;
    }
    /* More than the window is a source that would fill our memory. */
    return rs->n_jobs < RESYNC_WINDOW ? FLO_OK : FLO_PROTOCOL;
}

static void received_pages(struct resync *rs, const struct wire_msg *m)
{
    uint32_t len = m->pages.pages.len;
    int rc = check_pages(rs, m);
    struct pages_job *j = rc == FLO_OK ? malloc(sizeof *j + len) : NULL;

    if (j == NULL) {
        end(rs, rc != FLO_OK ? rc : FLO_NOMEM);
        return;
    }
    *j = (struct pages_job){.rs = rs,
                            .page_size = m->pages.page_size,
                            .n_images = m->pages.n_images,
                            .n = len};
    memcpy(j->bytes, m->pages.pages.data, len);
    j->job.run = pages_run;
    j->job.done = pages_done;
    rs->n_jobs++;
    rs->progress_at = now(rs->node);
    rs->rec.pages_sent += m->pages.n_images;
    rs->rec.bytes_sent += len;
    resync_record_update(rs->node, &rs->rec);
    worker_post(&rs->db->worker, &j->job);
}

/* ---- Asking -------------------------------------------------------------------------- */

static void answered(struct peer_request *r, const struct wire_msg *answer,
                     int rc)
{
    struct resync *rs = r->data;

    if (answer == NULL) {
        end(rs, rc);
    } else if (answer->type == MSG_RESYNC_END) {
        received_end(rs, answer);
    } else if (answer->type == MSG_RESULT && answer->result.code != FLO_OK) {
        end(rs, (int)answer->result.code);
    } else {
        end(rs, FLO_PROTOCOL);
    }
}

static int send_chunk(struct resync *rs)
{
    uint32_t left = rs->n_hashes - rs->n_sent;
    uint32_t k = left < RESYNC_HASHES_CHUNK ? left : RESYNC_HASHES_CHUNK;
    struct wire_msg m = {.type = MSG_RESYNC_HASHES,
                         .request = rs->request.number};
    uint8_t *bytes = malloc((size_t)k * 8);
    int rc;

    if (bytes == NULL) {
        return FLO_NOMEM;
    }
    for (uint32_t i = 0; i < k; i++) {
        store_u64(bytes + (size_t)i * 8, rs->hashes[rs->n_sent + i]);
    }
    m.resync_hashes.first = rs->n_sent;
    m.resync_hashes.last = k == left;
    m.resync_hashes.hashes = (struct wire_blob){.data = bytes, .len = k * 8};
    rc = peers_send(&rs->node->peers, rs->source, &m);
    free(bytes);
    rs->n_sent += k;
    return rc;
}

/* Send hashes until the link has enough; resync_tick goes on. */
static void send_hashes(struct resync *rs)
{
    while (rs->state == TARGET_ASKING && rs->n_sent < rs->n_hashes) {
        const struct peer *peer = peers_find(&rs->node->peers, rs->source);
        int rc;
        if (peer == NULL || peer->link == NULL) {
            end(rs, FLO_NOLEADER);
            return;
        }
        if (peer->link->out_bytes > HASHES_QUEUED_MAX) {
            return;
        }
        rc = send_chunk(rs);
        if (rc != FLO_OK) {
            end(rs, rc);
            return;
        }
        rs->progress_at = now(rs->node);
    }
    if (rs->state == TARGET_ASKING) {
        rs->state = TARGET_RECEIVING;
        free(rs->hashes);
        rs->hashes = NULL;
    }
}

static void ask(struct resync *rs)
{
    struct wire_msg m = {.type = MSG_RESYNC_BEGIN};

    snprintf(m.resync_begin.db, sizeof m.resync_begin.db, "%s", rs->db->name);
    m.resync_begin.page_size = rs->page_size;
    m.resync_begin.n_pages = rs->n_hashes;
    rs->state = TARGET_ASKING;
    rs->progress_at = now(rs->node);
    rs->request.data = rs;
    rs->request.cb = answered;
    peers_request(&rs->node->peers, &rs->request, rs->source, &m);
    send_hashes(rs); /* does nothing if that failed at once */
}

/* ---- Hashing -------------------------------------------------------------------------- */

static void hash_run(struct job *job)
{
    struct resync *rs = target_of(job);
    struct replica *r = &rs->db->replica;
    const uint64_t *hashes;

    rs->pristine = r->state == REPLICA_PRISTINE;
    rs->ours = r->state == REPLICA_GOOD && r->position.txid > 0;
    rs->page_size = r->page_size;
    if (rs->pristine || r->state == REPLICA_BROKEN ||
        replica_rehash(r) != FLO_OK || r->state == REPLICA_BROKEN) {
        return; /* without hashes all pages are sent */
    }
    hashes = replica_hashes(r);
    if (hashes == NULL || r->n_pages == 0 || r->n_pages > RESYNC_PAGES_MAX) {
        return;
    }
    rs->hashes = malloc((size_t)r->n_pages * sizeof *hashes);
    if (rs->hashes != NULL) {
        memcpy(rs->hashes, hashes, (size_t)r->n_pages * sizeof *hashes);
        rs->n_hashes = r->n_pages;
    }
}

static void hash_done(struct job *job)
{
    struct resync *rs = target_of(job);

    if (rs->state == TARGET_HASHING) {
        ask(rs);
    }
}

/* ---- Starting --------------------------------------------------------------------------- */

/* The peer's report of db if it can be a source, else NULL. */
static const struct peer_db *offer(const struct peer *peer, const char *name)
{
    if (peer->link == NULL) {
        return NULL;
    }
    for (unsigned i = 0; i < peer->n_dbs; i++) {
        const struct peer_db *d = &peer->dbs[i];
        if (strcmp(d->name, name) == 0) {
            bool good = d->health == DB_HEALTHY || d->health == DB_LAGGING;
            return good ? d : NULL;
        }
    }
    return NULL;
}

/* The leader, whose replica is never behind the others' by more than its
 * reports are old; else the source with the newest state, of equals rather not
 * the one that failed last time. Going back behind what the chain and
 * this replica both have would show readers an older database. */
static uint32_t pick_source(const struct db *db)
{
    const struct node *n = db->node;
    const struct resync_record *last = last_attempt(n, db);
    uint32_t failed = last != NULL && last->rc != FLO_OK ? last->source : 0;
    uint64_t least = db->applied.txid < db->fsm.txid ? db->applied.txid
                                                     : db->fsm.txid;
    uint64_t best_txid = 0;
    int best_rank = -1;
    uint32_t best = 0;

    for (unsigned i = 0; i < n->peers.n; i++) {
        const struct peer *peer = &n->peers.list[i];
        const struct peer_db *d = offer(peer, db->name);
        int rank = peer->id != failed ? 1 : 0;
        if (d == NULL || d->position.txid < least) {
            continue;
        }
        if (peer->id == n->view.id && peer->id != failed) {
            return peer->id;
        }
        if (d->position.txid < best_txid ||
            (d->position.txid == best_txid && rank <= best_rank)) {
            continue;
        }
        best = peer->id;
        best_rank = rank;
        best_txid = d->position.txid;
    }
    return best;
}

static void start(struct db *db, uint32_t source)
{
    const struct resync_record *before = last_attempt(db->node, db);
    struct resync *rs = calloc(1, sizeof *rs);

    if (rs == NULL) {
        db->resync_after = now(db->node) + RESYNC_RETRY_MS;
        return;
    }
    rs->node = db->node;
    rs->db = db;
    rs->source = source;
    rs->last_rc = before != NULL ? before->rc : FLO_OK;
    rs->rec.source = source;
    rs->rec.target = db->node->settings.id;
    snprintf(rs->rec.db, sizeof rs->rec.db, "%s", db->name);
    snprintf(rs->rec.reason, sizeof rs->rec.reason, "%.63s", db->why);
    db->resync = rs;
    db->state = DB_IS_RESYNCING;
    resync_record_start(db->node, &rs->rec);
    log_event(rs->last_rc == FLO_OK ? LOG_INFO : LOG_DEBUG, "resync_started",
              "db=%s source=%u txid=%llu why=%s", db->name, source,
              (unsigned long long)db->applied.txid, log_quote(db->why));
    rs->job.run = hash_run;
    rs->job.done = hash_done;
    worker_post(&db->worker, &rs->job);
}

/* Nothing may use the replica but the resync: no writer, no job, no background
 * job, no view (begin may make the files anew). */
static bool startable(const struct db *db)
{
    return db->state == DB_IS_DESYNCED && !db->dropped && db->resync == NULL &&
           db->writer == NULL && !db->applying && !db->checkpointing &&
           db->n_views == 0 && now(db->node) >= db->resync_after;
}

static unsigned count_targets(const struct node *n)
{
    unsigned k = 0;

    for (const struct db *db = n->dbs; db != NULL; db = db->next) {
        k += db->resync != NULL ? 1 : 0;
    }
    return k;
}

/* Only what waits for the source can stall; our own work may take long. */
static bool stalled(const struct resync *rs)
{
    return (rs->state == TARGET_ASKING || rs->state == TARGET_RECEIVING) &&
           rs->n_jobs == 0 &&
           now(rs->node) - rs->progress_at >= RESYNC_STALL_MS;
}

void resync_tick(struct node *n)
{
    source_tick(n);
    for (struct db *db = n->dbs; db != NULL; db = db->next) {
        struct resync *rs = db->resync;
        if (rs != NULL && stalled(rs)) {
            end(rs, FLO_TIMEOUT);
        } else if (rs != NULL && rs->state == TARGET_ASKING) {
            send_hashes(rs);
        } else if (startable(db) && !n->closing && !n->lame_duck &&
                   count_targets(n) < RESYNC_TARGETS_MAX) {
            uint32_t source = pick_source(db);
            if (source != 0) {
                start(db, source);
            }
        }
    }
}

/* ---- From outside -------------------------------------------------------------------------- */

int resync_force(struct node *n, const char *reason)
{
    for (const struct db *db = n->dbs; db != NULL; db = db->next) {
        if (db->state == DB_IS_RESYNCING) {
            return FLO_BUSY;
        }
    }
    for (struct db *db = n->dbs; db != NULL; db = db->next) {
        if (db->state != DB_IS_OPENING && db->state != DB_IS_DROPPED) {
            db_desync(db, reason);
            db->resync_after = 0;
        }
    }
    resync_tick(n);
    return FLO_OK;
}

static struct resync *find(const struct node *n, uint32_t from,
                           uint64_t request)
{
    for (const struct db *db = n->dbs; db != NULL; db = db->next) {
        struct resync *rs = db->resync;
        if (rs != NULL && rs->source == from && request != 0 &&
            rs->request.number == request) {
            return rs;
        }
    }
    return NULL;
}

void resync_handle(struct node *n, uint32_t from, const struct wire_msg *m)
{
    struct resync *rs;

    switch (m->type) {
        case MSG_PAGES:
            rs = find(n, from, m->request);
            if (rs != NULL) { /* else it ended meanwhile */
                received_pages(rs, m);
            }
            break;
        case MSG_RESYNC_BEGIN:
        case MSG_RESYNC_HASHES:
        case MSG_PAGES_ACK:
            source_handle(n, from, m);
            break;
        default:
            break;
    }
}

void resync_peer_down(struct node *n, uint32_t id)
{
    /* Targets hear of it through their request. */
    source_peer_down(n, id);
}

void resync_db_close(struct db *db)
{
    source_db_close(db);
    if (db->resync != NULL) {
        end(db->resync, FLO_SHUTDOWN);
    }
}

bool resync_idle(const struct node *n)
{
    return source_idle(n) && count_targets(n) == 0;
}
