/* Raft's state machine; see fsm.h.
 *
 * apply() only hands records on, so it is cheap and never waits. snapshot() is
 * asked for on every node by itself; restore() comes at start, and when the
 * leader sends its manifest because its log no longer reaches back to us. */
#include "daemon/fsm.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "core/entry.h"
#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"

#define MANIFEST_MAGIC 0x314d4c46u /* "FLM1" */
#define MANIFEST_HEADER 24
#define MANIFEST_MAX (8u << 20)
#define MANIFEST_OUTCOMES 64

/* ---- Applying --------------------------------------------------------------------- */

static void die(const char *what, int rc)
{
    log_error("fsm_stopped", "what=%s reason=%s hint=%s", what,
              log_quote(flo_strerror(rc)),
              log_quote("this node cannot go on: a newer version wrote this, or "
                        "its raft directory is damaged; restore the version, "
                        "or replace the node's directory"));
    abort();
}

static void apply_record(struct node *n, const void *bytes, size_t len)
{
    struct record rec;
    struct db *db;
    int rc = record_decode(bytes, len, &rec);

    if (rc != FLO_OK) {
        die("record", rc);
    }
    db = db_find(n, rec.db);
    switch (rec.kind) {
        case RECORD_CREATE:
            if (db == NULL && db_create(n, rec.db, &db) != FLO_OK) {
                die("create", FLO_NOMEM);
            }
            break;
        case RECORD_DROP:
            if (db != NULL) {
                db_drop(db);
            }
            break;
        case RECORD_TRANSACTION:
            if (db != NULL) {
                db_committed(db, &rec, bytes, len);
            }
            break;
    }
}

static int apply(struct raft_fsm *fsm, const struct raft_buffer *buf,
                 void **result)
{
    struct node *n = fsm->data;
    struct cursor c;
    const void *bytes;
    size_t len;
    int rc = entry_open(buf->base, buf->len, &c);

    *result = NULL;
    if (rc != FLO_OK) {
        die("entry", rc);
    }
    while ((rc = entry_next(&c, &bytes, &len)) == FLO_OK) {
        apply_record(n, bytes, len);
    }
    if (rc != FLO_NOTFOUND) {
        die("entry", rc);
    }
    upkeep_entry(&n->upkeep, buf->len);
    return 0;
}

/* ---- Manifest ----------------------------------------------------------------------- */

static int put_outcomes(const struct db *db, struct buf *out)
{
    uint64_t n = db->fsm.txid < MANIFEST_OUTCOMES ? db->fsm.txid
                                                  : MANIFEST_OUTCOMES;
    int rc = buf_put_u32(out, (uint32_t)n);

    for (uint64_t i = 0; i < n && rc == FLO_OK; i++) {
        uint64_t txid = db->fsm.txid - i;
        const struct db_outcome *o = &db->outcomes[txid % DB_OUTCOMES];
        rc = buf_put_u64(out, o->txid);
        rc = rc != FLO_OK ? rc : buf_put_u64(out, o->commit_id);
    }
    return rc;
}

static int put_database(const struct db *db, struct buf *out)
{
    int rc = wire_put_str(out, db->name);

    rc = rc != FLO_OK ? rc : buf_put_u64(out, db->fsm.txid);
    rc = rc != FLO_OK ? rc : buf_put_u64(out, db->fsm.checksum);
    rc = rc != FLO_OK ? rc : buf_put_u32(out, db->fsm_pages);
    rc = rc != FLO_OK ? rc : buf_put_u32(out, db->page_size);
    return rc != FLO_OK ? rc : put_outcomes(db, out);
}

int manifest_encode(const struct node *n, uint64_t index, struct buf *out)
{
    static const uint8_t blank[MANIFEST_HEADER];
    uint32_t count = 0;
    int rc = buf_append(out, blank, sizeof blank);

    rc = rc != FLO_OK ? rc : buf_put_u64(out, index);
    for (struct db *db = n->dbs; db != NULL && rc == FLO_OK; db = db->next) {
        if (!db->dropped) {
            rc = put_database(db, out);
            count++;
        }
    }
    rc = rc != FLO_OK ? rc : buf_pad(out, 8);
    if (rc != FLO_OK) {
        return rc;
    }
    store_u32(out->data, MANIFEST_MAGIC);
    store_u32(out->data + 4, (uint32_t)out->len);
    store_u32(out->data + 8, count);
    store_u64(out->data + 16, XXH3_64bits(out->data + MANIFEST_HEADER,
                                          out->len - MANIFEST_HEADER));
    return FLO_OK;
}

int manifest_open(const void *data, size_t len, uint32_t *n_databases,
                  uint64_t *index, struct cursor *body)
{
    const uint8_t *p = data;

    if (len < MANIFEST_HEADER + 8 || load_u32(p + 4) != len) {
        return FLO_CORRUPT;
    }
    if (load_u32(p) != MANIFEST_MAGIC) {
        return FLO_VERSION;
    }
    if (load_u64(p + 16) !=
        XXH3_64bits(p + MANIFEST_HEADER, len - MANIFEST_HEADER)) {
        return FLO_CORRUPT;
    }
    *n_databases = load_u32(p + 8);
    *index = load_u64(p + MANIFEST_HEADER);
    *body = cursor_of(p + MANIFEST_HEADER + 8, len - MANIFEST_HEADER - 8);
    return FLO_OK;
}

/* ---- Snapshot and restore --------------------------------------------------------------- */

static int snapshot(struct raft_fsm *fsm, struct raft_buffer *bufs[],
                    unsigned *n_bufs)
{
    struct node *n = fsm->data;
    struct buf out;

    /* Guard G3; and nothing is compacted away that a replica still lacks. */
    if (raft_last_applied(&n->raft) != raft_commit_index(&n->raft) ||
        !n->replayed) {
        return RAFT_BUSY;
    }
    for (struct db *db = n->dbs; db != NULL; db = db->next) {
        if (!db->dropped && db->state != DB_IS_GOOD) {
            return RAFT_BUSY;
        }
    }
    buf_init(&out, MANIFEST_MAX);
    *bufs = raft_malloc(sizeof **bufs);
    if (*bufs == NULL ||
        manifest_encode(n, raft_last_applied(&n->raft), &out) != FLO_OK) {
        raft_free(*bufs);
        buf_close(&out);
        return RAFT_NOMEM;
    }
    (*bufs)[0].len = out.len;
    (*bufs)[0].base = buf_detach(&out); /* raft_free is free() */
    *n_bufs = 1;
    upkeep_snapshot_taken(&n->upkeep);
    n->counters.snapshots++;
    return 0;
}

static bool get_outcomes(struct cursor *c, struct db *db)
{
    uint32_t n = cursor_u32(c);

    if (n > DB_OUTCOMES) {
        return false;
    }
    for (uint32_t i = 0; i < n; i++) {
        uint64_t txid = cursor_u64(c);
        uint64_t commit_id = cursor_u64(c);
        db->outcomes[txid % DB_OUTCOMES] = (struct db_outcome){txid, commit_id};
    }
    return !c->bad;
}

static bool restore_database(struct node *n, struct cursor *c,
                             struct db **out)
{
    wire_str name;
    struct position p;
    uint32_t pages, page_size;
    struct db *db;

    wire_get_str(c, name);
    p.txid = cursor_u64(c);
    p.checksum = cursor_u64(c);
    pages = cursor_u32(c);
    page_size = cursor_u32(c);
    if (c->bad || !db_name_valid(name)) {
        return false;
    }
    db = db_find(n, name);
    if (db == NULL && db_create(n, name, &db) != FLO_OK) {
        return false;
    }
    if (!get_outcomes(c, db)) {
        return false;
    }
    db_restored(db, p, pages, page_size);
    *out = db;
    return true;
}

/* Drop what the manifest does not know. */
static void drop_others(struct node *n, struct db *const *kept, unsigned n_kept)
{
    struct db *next;

    for (struct db *db = n->dbs; db != NULL; db = next) {
        bool keep = db->dropped;
        next = db->next;
        for (unsigned i = 0; i < n_kept && !keep; i++) {
            keep = kept[i] == db;
        }
        if (!keep) {
            db_drop(db);
        }
    }
}

/* libraft does not say which file it read: the newest one. */
static void die_manifest(const struct node *n, int rc)
{
    char path[600], what[300] = "manifest";
    struct timespec newest = {0};
    struct dirent *e;
    DIR *d;

    snprintf(path, sizeof path, "%s/raft", n->settings.dir);
    d = opendir(path);
    while (d != NULL && (e = readdir(d)) != NULL) {
        struct stat st;
        if (strncmp(e->d_name, "snapshot-", 9) == 0 &&
            strstr(e->d_name, ".meta") == NULL &&
            fstatat(dirfd(d), e->d_name, &st, 0) == 0 &&
            (st.st_mtim.tv_sec > newest.tv_sec ||
             (st.st_mtim.tv_sec == newest.tv_sec &&
              st.st_mtim.tv_nsec > newest.tv_nsec))) {
            newest = st.st_mtim;
            snprintf(what, sizeof what, "raft/%s", e->d_name);
        }
    }
    die(what, rc);
}

static int restore(struct raft_fsm *fsm, struct raft_buffer *buf)
{
    struct node *n = fsm->data;
    struct db *kept[STATUS_DATABASES_MAX];
    struct cursor c;
    uint32_t count;
    uint64_t index;
    int rc = manifest_open(buf->base, buf->len, &count, &index, &c);

    if (rc == FLO_OK && count > STATUS_DATABASES_MAX) {
        rc = FLO_CORRUPT;
    }
    if (rc != FLO_OK) {
        die_manifest(n, rc);
    }
    for (uint32_t i = 0; i < count; i++) {
        if (!restore_database(n, &c, &kept[i])) {
            die_manifest(n, FLO_CORRUPT);
        }
    }
    drop_others(n, kept, count);
    log_info("manifest_restored", "index=%llu databases=%u",
             (unsigned long long)index, count);
    upkeep_snapshot_taken(&n->upkeep);
    raft_free(buf->base);
    return 0;
}

void fsm_init(struct node *n)
{
    n->fsm = (struct raft_fsm){.version = 1,
                               .data = n,
                               .apply = apply,
                               .snapshot = snapshot,
                               .restore = restore};
}
