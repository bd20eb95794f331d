/* The source's side of a resync; see resync.h.
 *
 *  - RESYNC_BEGIN makes a source; RESYNC_HASHES fill its table of what the
 *    target has
 *  - when the table is full, a view of the replica is opened (its worker)
 *  - one batch after the other is built in the background: pages whose hashes
 *    differ, compressed, at most RESYNC_CHUNK_BYTES
 *  - each batch is one PAGES message; RESYNC_WINDOW of them may be without an
 *    answer
 *  - after the last one RESYNC_END, and the view is closed (background)
 *
 * Failure modes: the replica is not good (any more), a page cannot be read, the
 * target breaks the protocol, or it does not move for RESYNC_STALL_MS: it is
 * told by RESULT. The target's link is lost: nobody is told. A page that does
 * not have its own hash has rotted on this disk: this replica is desynced, too,
 * rather than to hand it on.
 *
 * All state changes happen in step(), and only while no job is under way.
 * db->n_views is counted from before the view is opened until after it is
 * closed, so the database cannot go away meanwhile. */
#include <assert.h>
#include <lz4.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/error.h"
#include "core/wal.h"
#include "daemon/log.h"
#include "daemon/node.h"
#include "daemon/resync_internal.h"

#define IMAGE_HEADER 8 /* of one page in PAGES */
#define OPEN_RETRY_MS 10000

enum source_state {
    SOURCE_HASHES,  /* collecting the target's */
    SOURCE_OPENING, /* the view; again at each tick while that is busy */
    SOURCE_SENDING,
    SOURCE_ENDING
};

struct source
{
    struct source *next;
    struct node *node;
    struct db *db;
    uint32_t target;
    uint64_t request;
    enum source_state state;
    struct job job;
    bool busy; /* the job is under way */
    int job_rc;

    uint32_t page_size, n_hashes; /* the target's */
    uint32_t n_got;
    uint64_t *hashes; /* owned */

    struct replica_view view;
    bool view_open;

    /* The job's, while busy. */
    uint32_t at;    /* pages up to here were looked at */
    uint32_t rotten; /* page that failed its hash */
    struct buf batch;
    uint32_t batch_images;
    uint8_t *image, *packed; /* owned */

    unsigned unacked; /* PAGES messages */
    uint64_t progress_at;
    struct resync_record rec;
};

/* Of all nodes of this process (the daemon has one, tests more). */
static struct source *sources;

static void step(struct source *s);

static uint64_t now(const struct source *s)
{
    return uv_now(s->node->loop);
}

/* ---- Messages ------------------------------------------------------------------ */

static void refuse(struct node *n, uint32_t to, uint64_t request, int rc,
                   const char *text)
{
    struct wire_msg m = {.type = MSG_RESULT, .request = request};

    m.result.code = (uint32_t)rc;
    snprintf(m.result.text, sizeof m.result.text, "%s", text);
    peers_send(&n->peers, to, &m);
}

static int send_batch(struct source *s)
{
    struct wire_msg m = {.type = MSG_PAGES, .request = s->request};

    m.pages.page_size = s->view.page_size;
    m.pages.n_images = s->batch_images;
    m.pages.pages = (struct wire_blob){.data = s->batch.data,
                                       .len = (uint32_t)s->batch.len};
    s->unacked++;
    s->rec.pages_sent += s->batch_images;
    s->rec.bytes_sent += s->batch.len;
    s->node->resync_stats.pages_sent += s->batch_images;
    s->node->resync_stats.bytes_sent += s->batch.len;
    return peers_send(&s->node->peers, s->target, &m);
}

static int send_end(struct source *s)
{
    struct wire_msg m = {.type = MSG_RESYNC_END, .request = s->request};

    m.resync_end.txid = s->view.position.txid;
    m.resync_end.checksum = s->view.position.checksum;
    m.resync_end.n_pages = s->view.n_pages;
    m.resync_end.page_size = s->view.page_size;
    m.resync_end.compared = s->rec.pages_compared;
    m.resync_end.sent_pages = s->rec.pages_sent;
    m.resync_end.sent_bytes = s->rec.bytes_sent;
    return peers_send(&s->node->peers, s->target, &m);
}

/* ---- The end --------------------------------------------------------------------- */

static void log_end(const struct source *s, int rc)
{
    if (rc == FLO_OK) {
        log_info("resync_served",
                 "db=%s target=%u compared=%llu pages=%llu bytes=%llu",
                 s->rec.db, s->target,
                 (unsigned long long)s->rec.pages_compared,
                 (unsigned long long)s->rec.pages_sent,
                 (unsigned long long)s->rec.bytes_sent);
        return;
    }
    log_warn("resync_not_served", "db=%s target=%u reason=%s hint=%s",
             s->rec.db, s->target, log_quote(flo_strerror(rc)),
             log_quote("the target tries again by itself"));
}

/* Nothing more for the target. May destroy s, like step(). */
static void end(struct source *s, int rc, const char *text)
{
    if (s->state != SOURCE_ENDING) {
        s->state = SOURCE_ENDING;
        if (rc != FLO_OK && rc != FLO_NOLEADER) {
            refuse(s->node, s->target, s->request, rc, text);
        }
        resync_record_finish(s->node, &s->rec, rc);
        log_end(s, rc);
    }
    step(s);
}

static void destroy(struct source *s)
{
    struct source **link = &sources;

    while (*link != s) {
        link = &(*link)->next;
    }
    *link = s->next;
    free(s->hashes);
    free(s->image);
    free(s->packed);
    buf_close(&s->batch);
    free(s);
}

static void post(struct source *s, struct worker *w, void (*run)(struct job *),
                 void (*done)(struct job *))
{
    assert(!s->busy);
    s->busy = true;
    s->job_rc = FLO_OK;
    s->job.run = run;
    s->job.done = done;
    worker_post(w, &s->job);
}

static struct source *source_of(struct job *job)
{
    return (struct source *)((char *)job - offsetof(struct source, job));
}

/* ---- The view ----------------------------------------------------------------------- */

static void open_run(struct job *job)
{
    struct source *s = source_of(job);

    s->job_rc = replica_view_open(&s->db->replica, &s->view);
}

static void open_done(struct job *job)
{
    struct source *s = source_of(job);

    s->busy = false;
    if (s->job_rc != FLO_OK) {
        s->db->n_views--;
        if (s->job_rc == FLO_BUSY && s->state == SOURCE_OPENING &&
            now(s) - s->progress_at < OPEN_RETRY_MS) {
            return; /* a commit is being settled: source_tick tries again */
        }
        end(s, s->job_rc, "the source's replica cannot be read now");
        return;
    }
    s->progress_at = now(s);
    s->view_open = true;
    if (s->state == SOURCE_OPENING) {
        s->state = SOURCE_SENDING;
    }
    step(s);
}

static void open_post(struct source *s)
{
    s->state = SOURCE_OPENING;
    s->db->n_views++;
    post(s, &s->db->worker, open_run, open_done);
}

static void close_run(struct job *job)
{
    replica_view_close(&source_of(job)->view);
}

static void close_done(struct job *job)
{
    struct source *s = source_of(job);

    s->busy = false;
    s->view_open = false;
    s->db->n_views--;
    step(s);
}

/* ---- Batches, in the background ----------------------------------------------------- */

static bool target_has(const struct source *s, uint32_t pgno)
{
    if (pgno == wal_lock_page(s->view.page_size)) {
        return true; /* has no content */
    }
    return s->page_size == s->view.page_size && pgno <= s->n_hashes &&
           s->hashes[pgno - 1] == s->view.hashes[pgno - 1];
}

static int prepare(struct source *s)
{
    int bound = LZ4_compressBound((int)s->view.page_size);

    s->batch.len = 0;
    s->batch_images = 0;
    if (s->image != NULL) {
        return FLO_OK;
    }
    buf_init(&s->batch, RESYNC_CHUNK_BYTES);
    s->packed = malloc((size_t)bound);
    s->image = malloc(s->view.page_size);
    return s->packed != NULL && s->image != NULL ? FLO_OK : FLO_NOMEM;
}

static int add_page(struct source *s, uint32_t pgno)
{
    int page_size = (int)s->view.page_size;
    int rc = replica_view_read(&s->view, pgno, s->image);
    int n;
    bool raw;

    if (rc != FLO_OK) {
        return rc;
    }
    if (page_hash(pgno, s->image, s->view.page_size) !=
        s->view.hashes[pgno - 1]) {
        s->rotten = pgno;
        return FLO_CORRUPT;
    }
    n = LZ4_compress_default((const char *)s->image, (char *)s->packed,
                             page_size, LZ4_compressBound(page_size));
    raw = n <= 0 || n >= page_size;
    rc = buf_put_u32(&s->batch, pgno);
    rc = rc != FLO_OK ? rc
                      : buf_put_u32(&s->batch, (uint32_t)(raw ? page_size : n));
    rc = rc != FLO_OK ? rc
                      : buf_append(&s->batch, raw ? s->image : s->packed,
                                   (size_t)(raw ? page_size : n));
    s->batch_images++;
    return rc;
}

static void build_run(struct job *job)
{
    struct source *s = source_of(job);
    size_t room = IMAGE_HEADER + s->view.page_size;

    s->job_rc = prepare(s);
    while (s->job_rc == FLO_OK && s->at < s->view.n_pages &&
           s->batch.len + room <= RESYNC_CHUNK_BYTES) {
        if (!target_has(s, s->at + 1)) {
            s->job_rc = add_page(s, s->at + 1);
        }
        s->at++;
    }
}

/* The disk changed a page behind our back. */
static void rotted(struct db *db, uint32_t pgno)
{
    log_error("page_corrupt", "db=%s page=%u hint=%s", db->name, pgno,
              log_quote("this node's copy is repaired from another node; check "
                        "its disk"));
    db_desync(db, "page corrupt on disk");
}

static void build_done(struct job *job)
{
    struct source *s = source_of(job);
    struct db *db = s->db; /* n_views keeps it */
    uint32_t rotten = s->rotten;
    int rc = s->job_rc;

    s->busy = false;
    s->progress_at = now(s);
    s->node->resync_stats.pages_compared += s->at - s->rec.pages_compared;
    s->rec.pages_compared = s->at;
    if (rc == FLO_OK && s->state == SOURCE_SENDING && s->batch_images > 0) {
        rc = send_batch(s);
    }
    resync_record_update(s->node, &s->rec);
    if (rc != FLO_OK) {
        end(s, rc, "the source could not read its replica");
    } else {
        step(s);
    }
    if (rotten != 0) {
        rotted(db, rotten);
    }
}

/* ---- The way forward ------------------------------------------------------------------ */

static void step_sending(struct source *s)
{
    if (s->at == s->view.n_pages) {
        end(s, send_end(s), "");
    } else if (s->unacked < RESYNC_WINDOW) {
        post(s, &s->node->background, build_run, build_done);
    }
}

/* May destroy s. */
static void step(struct source *s)
{
    if (s->busy) {
        return;
    }
    switch (s->state) {
        case SOURCE_HASHES:
            if (s->n_got == s->n_hashes) {
                open_post(s);
            }
            break;
        case SOURCE_OPENING:
            break; /* source_tick */
        case SOURCE_SENDING:
            step_sending(s);
            break;
        case SOURCE_ENDING:
            if (s->view_open) {
                post(s, &s->node->background, close_run, close_done);
            } else {
                destroy(s);
            }
            break;
    }
}

/* ---- What the target says ---------------------------------------------------------------- */

static unsigned count(const struct node *n)
{
    unsigned k = 0;

    for (const struct source *s = sources; s != NULL; s = s->next) {
        k += s->node == n ? 1 : 0;
    }
    return k;
}

static int check_begin(const struct node *n, const struct db *db,
                       const struct wire_msg *m)
{
    uint32_t n_pages = m->resync_begin.n_pages;

    if (n->closing || !n->background_running) {
        return FLO_SHUTDOWN;
    }
    if (db == NULL) {
        return FLO_NOTFOUND;
    }
    if (db->state != DB_IS_GOOD) {
        return FLO_DESYNCED;
    }
    if (n_pages > RESYNC_PAGES_MAX) {
        return FLO_TOOBIG;
    }
    if (n_pages > 0 && !page_size_valid(m->resync_begin.page_size)) {
        return FLO_PROTOCOL;
    }
    return count(n) < RESYNC_SOURCES_MAX ? FLO_OK : FLO_BUSY;
}

static struct source *source_new(struct node *n, struct db *db, uint32_t from,
                                 const struct wire_msg *m)
{
    struct source *s = calloc(1, sizeof *s);

    if (s == NULL) {
        return NULL;
    }
    s->node = n;
    s->db = db;
    s->target = from;
    s->request = m->request;
    s->page_size = m->resync_begin.page_size;
    s->n_hashes = m->resync_begin.n_pages;
    s->progress_at = now(s);
    if (s->n_hashes > 0) {
        s->hashes = malloc((size_t)s->n_hashes * sizeof *s->hashes);
        if (s->hashes == NULL) {
            free(s);
            return NULL;
        }
    }
    s->rec.source = n->settings.id;
    s->rec.target = from;
    snprintf(s->rec.db, sizeof s->rec.db, "%s", db->name);
    snprintf(s->rec.reason, sizeof s->rec.reason, "asked by the target");
    s->next = sources;
    sources = s;
    return s;
}

static struct source *find(const struct node *n, uint32_t from,
                           uint64_t request)
{
    struct source *s = sources;

    while (s != NULL && (s->node != n || s->target != from ||
                         s->request != request || s->state == SOURCE_ENDING)) {
        s = s->next;
    }
    return s;
}

/* A target that begins anew has given its last attempt up. */
static void end_older(const struct node *n, const struct db *db, uint32_t from)
{
    struct source *next;

    for (struct source *s = sources; s != NULL; s = next) {
        next = s->next;
        if (s->node == n && s->db == db && s->target == from) {
            end(s, FLO_LOST, "the target began again");
        }
    }
}

static void handle_begin(struct node *n, uint32_t from,
                         const struct wire_msg *m)
{
    struct db *db = db_find(n, m->resync_begin.db);
    struct source *s = NULL;
    int rc;

    if (db != NULL) {
        end_older(n, db, from);
    }
    rc = check_begin(n, db, m);
    if (rc == FLO_OK) {
        s = source_new(n, db, from, m);
        rc = s != NULL ? FLO_OK : FLO_NOMEM;
    }
    if (rc != FLO_OK) {
        refuse(n, from, m->request, rc, "this node cannot be the source now");
        return;
    }
    resync_record_start(n, &s->rec);
    step(s);
}

static void handle_hashes(struct source *s, const struct wire_msg *m)
{
    const uint8_t *p = m->resync_hashes.hashes.data;
    uint32_t len = m->resync_hashes.hashes.len;
    uint32_t n = len / 8;

    if (s->state != SOURCE_HASHES || len % 8 != 0 || n == 0 ||
        m->resync_hashes.first != s->n_got || n > s->n_hashes - s->n_got ||
        (m->resync_hashes.last != 0) != (n == s->n_hashes - s->n_got)) {
        end(s, FLO_PROTOCOL, "RESYNC_HASHES out of order");
        return;
    }
    for (uint32_t i = 0; i < n; i++) {
        s->hashes[s->n_got + i] = load_u64(p + (size_t)i * 8);
    }
    s->n_got += n;
    s->progress_at = now(s);
    step(s);
}

static void handle_ack(struct source *s)
{
    if (s->unacked == 0) {
        end(s, FLO_PROTOCOL, "PAGES_ACK without PAGES");
        return;
    }
    s->unacked--;
    s->progress_at = now(s);
    step(s);
}

void source_handle(struct node *n, uint32_t from, const struct wire_msg *m)
{
    struct source *s;

    if (m->type == MSG_RESYNC_BEGIN) {
        handle_begin(n, from, m);
        return;
    }
    s = find(n, from, m->request);
    if (s == NULL) {
        return; /* ended meanwhile; the target was told */
    }
    if (m->type == MSG_RESYNC_HASHES) {
        handle_hashes(s, m);
    } else {
        assert(m->type == MSG_PAGES_ACK);
        handle_ack(s);
    }
}

/* ---- What else ends it ---------------------------------------------------------------------- */

void source_tick(struct node *n)
{
    struct source *next;

    for (struct source *s = sources; s != NULL; s = next) {
        next = s->next;
        if (s->node != n) {
            continue;
        }
        if (s->db->state != DB_IS_GOOD) {
            end(s, FLO_DESYNCED, "the source's replica is not good any more");
        } else if (!s->busy && now(s) - s->progress_at >= RESYNC_STALL_MS) {
            end(s, FLO_TIMEOUT, "the target did not move");
        } else if (!s->busy && s->state == SOURCE_OPENING) {
            open_post(s);
        }
    }
}

void source_peer_down(struct node *n, uint32_t id)
{
    struct source *next;

    for (struct source *s = sources; s != NULL; s = next) {
        next = s->next;
        if (s->node == n && s->target == id) {
            end(s, FLO_NOLEADER, "");
        }
    }
}

void source_db_close(struct db *db)
{
    struct source *next;

    for (struct source *s = sources; s != NULL; s = next) {
        next = s->next;
        if (s->db == db) {
            end(s, FLO_NOTFOUND, "the database was closed");
        }
    }
}

bool source_idle(const struct node *n)
{
    return count(n) == 0;
}
