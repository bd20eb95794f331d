/* Resync (daemon/resync.h): real replicas in one process, everything around
 * them fake and driven by the test.
 *
 * THE FAKE WORLD. Three nodes with one database each. A worker is a list of
 * jobs: running one and delivering its completion are two separate steps. A
 * link is two lists of encoded messages. The scheduler picks one of all the
 * steps that are possible now, at random, so that jobs, completions and
 * messages of all nodes interleave in any order that the contracts allow. Time
 * stands still but for ticks. Faults that a test injects: the link between two
 * nodes is lost (what is under way on it, too) after exactly k steps; messages
 * of a kind vanish or are damaged; a byte of a database file is changed; a
 * database is closed after exactly k steps. What the fakes check by themselves:
 * the window, the sizes of messages, that a source's view is open only while
 * n_views says so.
 *
 * Prints its seed; FLOTILLA_SEED=n replays. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/log.h"
#include "daemon/node.h"

#define NODES 3
#define STEPS_MAX 100000

/* ======== fixture: the fake world ============================================= */

struct message
{
    struct message *next;
    uint32_t from, to;
    size_t n;
    uint8_t bytes[];
};

struct world
{
    char dir[64];
    struct node node[NODES + 1]; /* by id; 0 is not used */
    struct db db[NODES + 1];
    struct peer peer[NODES + 1][NODES];
    struct peer_db report[NODES + 1][NODES];
    struct link link;
    struct message *queue[NODES + 1][NODES + 1], *tail[NODES + 1][NODES + 1];
    bool cut[NODES + 1][NODES + 1];
    uint64_t now, numbers;
    unsigned in_flight;     /* PAGES without PAGES_ACK, all links */
    unsigned in_flight_max; /* … ever */
    unsigned pages_max;     /* largest PAGES, bytes */
    unsigned n_pages_messages, n_hashes_messages;
    /* Faults: a message of this type from this node vanishes or is damaged. */
    enum wire_type lose, damage;
    uint32_t fault_from;
    unsigned faults_left, faults_done;
    unsigned steps, resyncs_logged, corrupt_logged;
};

static struct world *w;

/* ---- libuv, log, node, db ---------------------------------------------------- */

uint64_t uv_now(const uv_loop_t *loop)
{
    (void)loop;
    return w->now;
}

int64_t node_wall_ms(void)
{
    return (int64_t)w->now;
}

void node_changed(struct node *n)
{
    (void)n;
}

const char *log_quote(const char *s)
{
    return s;
}

void log_event(enum log_level level, const char *event, const char *fmt, ...)
{
    va_list ap;

    w->resyncs_logged += strcmp(event, "resync_finished") == 0 ? 1 : 0;
    w->corrupt_logged += strcmp(event, "page_corrupt") == 0 ? 1 : 0;
    if (getenv("FLOTILLA_VERBOSE") != NULL) {
        printf("  %llu %d %s ", (unsigned long long)w->now, level, event);
        va_start(ap, fmt);
        vprintf(fmt, ap);
        va_end(ap);
        printf("\n");
    }
}

struct db *db_find(struct node *n, const char *name)
{
    return n->dbs != NULL && !n->dbs->dropped &&
                   strcmp(name, n->dbs->name) == 0
               ? n->dbs
               : NULL;
}

void db_desync(struct db *db, const char *why)
{
    if (db->state == DB_IS_GOOD || db->state == DB_IS_SUSPECT) {
        snprintf(db->why, sizeof db->why, "%s", why);
        db->state = DB_IS_DESYNCED;
    }
}

void db_moved(struct db *db)
{
    db->applied = db->replica.position;
    if (db->replica.state == REPLICA_GOOD ||
        db->replica.state == REPLICA_PRISTINE) {
        db->state = DB_IS_GOOD;
    }
}

/* ---- Workers ------------------------------------------------------------------- */

static void job_push(struct job **head, struct job **tail, struct job *job)
{
    job->next = NULL;
    if (*head != NULL) {
        (*tail)->next = job;
    } else {
        *head = job;
    }
    *tail = job;
}

static struct job *job_pop(struct job **head)
{
    struct job *job = *head;

    *head = job->next;
    return job;
}

void worker_post(struct worker *k, struct job *job)
{
    assert_non_null(job->run);
    assert_non_null(job->done);
    job_push(&k->todo_head, &k->todo_tail, job);
}

/* ---- Peers ----------------------------------------------------------------------- */

struct peer *peers_find(struct peers *p, uint32_t id)
{
    for (unsigned i = 0; i < p->n; i++) {
        if (p->list[i].id == id) {
            return &p->list[i];
        }
    }
    return NULL;
}

static bool is_fault(const struct wire_msg *m, uint32_t from,
                     enum wire_type type)
{
    if (m->type != type || from != w->fault_from || w->faults_left == 0) {
        return false;
    }
    w->faults_left--;
    w->faults_done++;
    return true;
}

static void observe(const struct wire_msg *m)
{
    if (m->type == MSG_PAGES) {
        w->in_flight++;
        w->n_pages_messages++;
        if (w->in_flight > w->in_flight_max) {
            w->in_flight_max = w->in_flight;
        }
        if (m->pages.pages.len > w->pages_max) {
            w->pages_max = m->pages.pages.len;
        }
    } else if (m->type == MSG_RESYNC_HASHES) {
        w->n_hashes_messages++;
    }
}

int peers_send(struct peers *p, uint32_t to, const struct wire_msg *m)
{
    uint32_t from = p->node->settings.id;
    struct peer *peer = peers_find(p, to);
    struct message *msg;
    struct buf b;

    if (peer == NULL || peer->link == NULL) {
        return FLO_NOLEADER;
    }
    observe(m);
    if (is_fault(m, from, w->lose)) {
        return FLO_OK;
    }
    buf_init(&b, WIRE_BODY_MAX + WIRE_HEADER);
    assert_int_equal(wire_encode(&b, m), FLO_OK);
    if (is_fault(m, from, w->damage)) {
        b.data[WIRE_HEADER + 20 + (size_t)rand() % (b.len - 36)] ^= 0x55;
    }
    msg = malloc(sizeof *msg + b.len);
    *msg = (struct message){.from = from, .to = to, .n = b.len};
    memcpy(msg->bytes, b.data, b.len);
    buf_close(&b);
    if (w->queue[from][to] != NULL) {
        w->tail[from][to]->next = msg;
    } else {
        w->queue[from][to] = msg;
    }
    w->tail[from][to] = msg;
    return FLO_OK;
}

static void request_unlink(struct peers *p, struct peer_request *r)
{
    struct peer_request **link = &p->requests;

    while (*link != r) {
        link = &(*link)->next;
    }
    *link = r->next;
    r->number = 0;
}

void peers_request(struct peers *p, struct peer_request *r, uint32_t to,
                   struct wire_msg *m)
{
    r->number = ++w->numbers;
    r->to = to;
    r->next = p->requests;
    p->requests = r;
    m->request = r->number;
    if (peers_send(p, to, m) != FLO_OK) {
        request_unlink(p, r);
        r->cb(r, NULL, FLO_NOLEADER);
    }
}

void peers_forget(struct peers *p, struct peer_request *r)
{
    if (r->number != 0) {
        request_unlink(p, r);
    }
}

static void dispatch(struct node *n, uint32_t from, const struct wire_msg *m)
{
    struct peer_request *r = n->peers.requests;

    if (m->type == MSG_PAGES_ACK) {
        assert_true(w->in_flight > 0);
        w->in_flight--;
    }
    if (m->type != MSG_RESULT && m->type != MSG_RESYNC_END) {
        resync_handle(n, from, m);
        return;
    }
    while (r != NULL && (r->number != m->request || r->to != from)) {
        r = r->next;
    }
    if (r != NULL) {
        request_unlink(&n->peers, r);
        r->cb(r, m, FLO_OK);
    }
}

/* ---- The scheduler ------------------------------------------------------------------ */

static void deliver(uint32_t from, uint32_t to)
{
    struct message *msg = w->queue[from][to];
    struct wire_msg m;
    size_t used;

    w->queue[from][to] = msg->next;
    assert_int_equal(wire_decode(msg->bytes, msg->n, &m, &used), FLO_OK);
    assert_int_equal(used, msg->n);
    dispatch(&w->node[to], from, &m);
    free(msg);
}

static void report(void)
{
    for (uint32_t id = 1; id <= NODES; id++) {
        for (unsigned i = 0; i < NODES - 1; i++) {
            struct peer *p = &w->peer[id][i];
            const struct db *db = &w->db[p->id];
            struct peer_db *r = &w->report[id][i];
            memcpy(r->name, db->name, sizeof r->name);
            r->position = db->applied;
            r->health = db->state == DB_IS_GOOD ? DB_HEALTHY : DB_DESYNCED;
            p->dbs = r;
            p->n_dbs = 1;
        }
    }
}

static void tick(unsigned ms)
{
    w->now += ms;
    report();
    for (uint32_t id = 1; id <= NODES; id++) {
        resync_tick(&w->node[id]);
    }
}

/* A step that is possible; 0 if it is not the pick-th of them. */
static bool try_worker(struct worker *k, unsigned *pick)
{
    if (k->todo_head != NULL && (*pick)-- == 0) {
        struct job *job = job_pop(&k->todo_head);
        job->run(job);
        job_push(&k->done_head, &k->done_tail, job);
        return true;
    }
    if (k->done_head != NULL && (*pick)-- == 0) {
        struct job *job = job_pop(&k->done_head);
        job->done(job);
        return true;
    }
    return false;
}

static unsigned worker_steps(const struct worker *k)
{
    return (k->todo_head != NULL) + (k->done_head != NULL);
}

static unsigned possible(void)
{
    unsigned n = 0;

    for (uint32_t a = 1; a <= NODES; a++) {
        n += worker_steps(&w->db[a].worker);
        n += worker_steps(&w->node[a].background);
        for (uint32_t b = 1; b <= NODES; b++) {
            n += w->queue[a][b] != NULL;
        }
    }
    return n;
}

static void step(void)
{
    unsigned n = possible();
    unsigned pick = n > 0 ? (unsigned)rand() % n : 0;

    w->steps++;
    if (n == 0 || rand() % 16 == 0) {
        tick(20);
        return;
    }
    for (uint32_t a = 1; a <= NODES; a++) {
        if (try_worker(&w->db[a].worker, &pick) ||
            try_worker(&w->node[a].background, &pick)) {
            return;
        }
        for (uint32_t b = 1; b <= NODES; b++) {
            if (w->queue[a][b] != NULL && pick-- == 0) {
                deliver(a, b);
                return;
            }
        }
    }
    fail();
}

static bool all_good(void)
{
    bool good = true;

    for (uint32_t id = 1; id <= NODES; id++) {
        good = good && w->db[id].state == DB_IS_GOOD;
    }
    return good;
}

static bool all_idle(void)
{
    bool idle = possible() == 0;

    for (uint32_t id = 1; id <= NODES; id++) {
        idle = idle && resync_idle(&w->node[id]) && w->db[id].n_views == 0 &&
               w->db[id].resync == NULL;
    }
    return idle;
}

static bool settled(void)
{
    return all_good() && all_idle();
}

static void run_until(bool (*cond)(void))
{
    unsigned limit = w->steps + STEPS_MAX;

    while (!cond()) {
        assert_true(w->steps < limit);
        step();
    }
}

static void run_steps(unsigned n)
{
    while (n-- > 0) {
        step();
    }
}

/* ---- Faults --------------------------------------------------------------------------- */

static void lose_queue(uint32_t a, uint32_t b)
{
    while (w->queue[a][b] != NULL) {
        struct message *m = w->queue[a][b];
        w->queue[a][b] = m->next;
        free(m);
    }
    w->in_flight = 0; /* tests that cut have one resync at a time */
}

static void fail_requests(uint32_t a, uint32_t b)
{
    struct peers *p = &w->node[a].peers;
    struct peer_request *r = p->requests;

    while (r != NULL) {
        if (r->to == b) {
            request_unlink(p, r);
            r->cb(r, NULL, FLO_NOLEADER);
            r = p->requests;
        } else {
            r = r->next;
        }
    }
}

static void set_link(uint32_t a, uint32_t b, bool up)
{
    peers_find(&w->node[a].peers, b)->link = up ? &w->link : NULL;
    peers_find(&w->node[b].peers, a)->link = up ? &w->link : NULL;
    if (!up) {
        lose_queue(a, b);
        lose_queue(b, a);
        fail_requests(a, b);
        fail_requests(b, a);
        resync_peer_down(&w->node[a], b);
        resync_peer_down(&w->node[b], a);
    }
}

/* ---- Content ---------------------------------------------------------------------------- */

__attribute__((format(printf, 1, 2))) static void shell(const char *fmt, ...)
{
    char cmd[512];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(cmd, sizeof cmd, fmt, ap);
    va_end(ap);
    assert_int_equal(system(cmd), 0);
}

/* With plain SQLite, while no replica is open. */
static void sql(uint32_t id, const char *statements)
{
    char path[128];
    sqlite3 *db;

    snprintf(path, sizeof path, "%s/%u/app.db", w->dir, id);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, statements, NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

/* About 5 pages of 4096 bytes for each row; half of them compress. */
static void make_content(uint32_t id, unsigned page_size, unsigned rows)
{
    char text[512];

    snprintf(text, sizeof text,
             "PRAGMA page_size=%u; PRAGMA journal_mode=WAL;"
             "PRAGMA synchronous=OFF; CREATE TABLE t(k INTEGER PRIMARY KEY, v);"
             "WITH n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<%u)"
             "INSERT INTO t SELECT i, CASE i%%2 WHEN 0 THEN randomblob(20000)"
             " ELSE zeroblob(20000) END FROM n;",
             page_size, rows);
    sql(id, text);
}

static void copy_content(uint32_t from, uint32_t to)
{
    shell("cp %s/%u/app.db %s/%u/app.db", w->dir, from, w->dir, to);
}

static void open_replica(uint32_t id)
{
    char dir[80];
    struct db *db = &w->db[id];

    snprintf(dir, sizeof dir, "%s/%u", w->dir, id);
    assert_int_equal(replica_open(&db->replica, dir, "app", 1000), FLO_OK);
    db->applied = db->replica.position;
}

/* The cluster's database is at txid 10 with what node id has. */
static void is_good(uint32_t id, uint64_t txid)
{
    struct db *db = &w->db[id];
    struct position p = {txid, db->replica.position.checksum};

    if (txid > 0) {
        assert_int_equal(replica_identify(&db->replica, p), FLO_OK);
    }
    db->state = DB_IS_GOOD;
    db->applied = db->replica.position;
}

static void chain_at(struct position p)
{
    for (uint32_t id = 1; id <= NODES; id++) {
        w->db[id].fsm = p;
    }
}

static void is_desynced(uint32_t id)
{
    w->db[id].state = DB_IS_DESYNCED;
    snprintf(w->db[id].why, sizeof w->db[id].why, "diverged");
}

static int setup(void **state)
{
    w = calloc(1, sizeof *w);
    *state = w;
    snprintf(w->dir, sizeof w->dir, "/tmp/test_resync.XXXXXX");
    assert_non_null(mkdtemp(w->dir));
    w->now = 5000;
    for (uint32_t id = 1; id <= NODES; id++) {
        struct node *n = &w->node[id];
        struct db *db = &w->db[id];
        unsigned k = 0;
        shell("mkdir %s/%u", w->dir, id);
        n->settings.id = id;
        n->background_running = true;
        n->view.id = 1;
        n->peers = (struct peers){.node = n, .list = w->peer[id]};
        for (uint32_t other = 1; other <= NODES; other++) {
            if (other != id) {
                w->peer[id][k++] = (struct peer){.node = n,
                                                 .id = other,
                                                 .link = &w->link};
            }
        }
        n->peers.n = k;
        n->dbs = db;
        db->node = n;
        db->state = DB_IS_OPENING;
        snprintf(db->name, sizeof db->name, "app");
    }
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    for (uint32_t id = 1; id <= NODES; id++) {
        resync_db_close(&w->db[id]);
        w->db[id].state = DB_IS_DROPPED;
    }
    run_until(all_idle);
    for (uint32_t id = 1; id <= NODES; id++) {
        replica_close(&w->db[id].replica);
        for (uint32_t b = 1; b <= NODES; b++) {
            lose_queue(id, b);
        }
    }
    shell("rm -rf %s", w->dir);
    free(w);
    return 0;
}

/* Change some bytes of the file. Another process does it: closing a descriptor
 * of it in this one would drop our locks. */
static void rot(uint32_t id)
{
    shell("printf XXXXXX | dd of=%s/%u/app.db bs=1 seek=200000 conv=notrunc "
          "2>/dev/null", w->dir, id);
}

/* ======== helpers ======================================================================= */

/* Pages that a target with these hashes lacks. */
static unsigned differing(uint32_t source, uint32_t target)
{
    const struct replica *s = &w->db[source].replica;
    const struct replica *t = &w->db[target].replica;
    const uint64_t *a = replica_hashes(s), *b = replica_hashes(t);
    unsigned n = 0;

    for (uint32_t i = 0; i < s->n_pages; i++) {
        n += b == NULL || i >= t->n_pages || s->page_size != t->page_size ||
             a[i] != b[i];
    }
    return n;
}

static void assert_sound(uint32_t id)
{
    char path[128];
    sqlite3 *db;
    sqlite3_stmt *s;

    snprintf(path, sizeof path, "%s/%u/app.db", w->dir, id);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(
        sqlite3_prepare_v2(db, "PRAGMA integrity_check", -1, &s, NULL),
        SQLITE_OK);
    assert_int_equal(sqlite3_step(s), SQLITE_ROW);
    assert_string_equal((const char *)sqlite3_column_text(s, 0), "ok");
    sqlite3_finalize(s);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

/* Same position, and the bytes on disk are really those of that position. */
static void assert_same(uint32_t a, uint32_t b)
{
    struct replica *x = &w->db[a].replica, *y = &w->db[b].replica;

    assert_true(position_equal(x->position, y->position));
    assert_int_equal(x->n_pages, y->n_pages);
    assert_int_equal(x->page_size, y->page_size);
    assert_memory_equal(replica_hashes(x), replica_hashes(y),
                        x->n_pages * sizeof(uint64_t));
    assert_int_equal(replica_rehash(y), FLO_OK);
    assert_int_equal(y->state, REPLICA_GOOD);
    assert_true(position_equal(w->db[b].applied, w->db[a].applied));
    assert_sound(b);
}

/* Node 1 leads; 1 and 3 have the content at txid 10, 2 an older copy of it in
 * which some rows are different. */
static void one_diverged(unsigned rows)
{
    make_content(1, 4096, rows);
    copy_content(1, 2);
    copy_content(1, 3);
    sql(2, "UPDATE t SET v=randomblob(20000) WHERE k%9=1");
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    is_good(1, 10);
    is_good(3, 10);
    chain_at(w->db[1].replica.position);
    is_desynced(2);
}

/* As above, but 2 has nothing at all. */
static void one_empty(unsigned page_size, unsigned rows)
{
    make_content(1, page_size, rows);
    copy_content(1, 3);
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    is_good(1, 10);
    is_good(3, 10);
    chain_at(w->db[1].replica.position);
    is_desynced(2);
}

static const struct resync_record *newest(uint32_t id)
{
    assert_true(w->node[id].resync_stats.n_last > 0);
    return &w->node[id].resync_stats.last[0];
}

/* ======== it repairs ====================================================================== */

/* A diverged replica becomes the source's, and exactly the pages that differ
 * are sent. */
static void sends_only_the_difference(void **state)
{
    unsigned n;

    (void)state;
    one_diverged(200);
    n = differing(1, 2);
    assert_in_range(n, 50, 300);
    run_until(settled);
    assert_same(1, 2);
    assert_int_equal(newest(1)->pages_sent, n);
    assert_int_equal(newest(2)->pages_sent, n);
    assert_int_equal(newest(1)->pages_compared, w->db[1].replica.n_pages);
    assert_int_equal(w->resyncs_logged, 1);
}

/* An empty replica gets all pages; what is in flight and how large a message is
 * stays within bounds, and the bounds are reached. */
static void empty_replica(void **state)
{
    (void)state;
    one_empty(4096, 600);
    run_until(settled);
    assert_same(1, 2);
    assert_int_equal(newest(1)->pages_sent, w->db[1].replica.n_pages);
    assert_int_equal(w->n_hashes_messages, 0);
    assert_true(w->n_pages_messages > 2 * RESYNC_WINDOW);
    assert_in_range(w->in_flight_max, 2, RESYNC_WINDOW);
    assert_in_range(w->pages_max, RESYNC_CHUNK_BYTES / 2, RESYNC_CHUNK_BYTES);
    assert_true(newest(1)->bytes_sent < (uint64_t)w->db[1].replica.n_pages *
                                            4096 * 2 / 3); /* compressed */
}

/* The smallest and the largest page size. */
static void page_sizes(void **state)
{
    unsigned sizes[] = {512, 65536};

    for (unsigned i = 0; i < 2; i++) {
        if (i > 0) {
            teardown(state);
            setup(state);
        }
        one_empty(sizes[i], 100);
        run_until(settled);
        assert_same(1, 2);
        assert_int_equal(w->db[2].replica.page_size, sizes[i]);
        assert_true(w->pages_max <= RESYNC_CHUNK_BYTES);
    }
}

/* A replica of another page size is made anew. */
static void other_page_size(void **state)
{
    (void)state;
    make_content(1, 4096, 50);
    make_content(2, 1024, 20);
    copy_content(1, 3);
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    is_good(1, 10);
    is_good(3, 10);
    chain_at(w->db[1].replica.position);
    is_desynced(2);
    run_until(settled);
    assert_same(1, 2);
}

/* A target with more pages than the source ends with as many as the source. */
static void shrinks(void **state)
{
    (void)state;
    make_content(1, 4096, 30);
    copy_content(1, 2);
    copy_content(1, 3);
    sql(2, "INSERT INTO t(v) SELECT randomblob(50000) FROM t");
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    is_good(1, 10);
    is_good(3, 10);
    chain_at(w->db[1].replica.position);
    is_desynced(2);
    assert_true(w->db[2].replica.n_pages > w->db[1].replica.n_pages);
    run_until(settled);
    assert_same(1, 2);
}

/* More hashes than one message holds; they wait while the link has much to
 * send. */
static void many_hashes(void **state)
{
    unsigned n;

    (void)state;
    make_content(1, 512, 1800);
    copy_content(1, 2);
    copy_content(1, 3);
    sql(2, "UPDATE t SET v=randomblob(20000) WHERE k%100=1");
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    is_good(1, 10);
    is_good(3, 10);
    chain_at(w->db[1].replica.position);
    is_desynced(2);
    n = differing(1, 2);
    w->link.out_bytes = 5u << 20;
    run_steps(200);
    assert_int_equal(w->n_hashes_messages, 0);
    w->link.out_bytes = 0;
    run_until(settled);
    assert_int_equal(w->n_hashes_messages, 2);
    assert_int_equal(newest(1)->pages_sent, n);
    assert_same(1, 2);
}

/* Equal content of unknown position: nothing is sent, the position is adopted. */
static void adopts_the_position(void **state)
{
    (void)state;
    make_content(1, 4096, 30);
    copy_content(1, 2);
    copy_content(1, 3);
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    is_good(1, 10);
    is_good(3, 10);
    chain_at(w->db[1].replica.position);
    is_desynced(2);
    run_until(settled);
    assert_int_equal(w->n_pages_messages, 0);
    assert_int_equal(w->db[2].applied.txid, 10);
    assert_same(1, 2);
}

/* A file that is no database is made anew. */
static void broken_file(void **state)
{
    (void)state;
    make_content(1, 4096, 30);
    copy_content(1, 3);
    shell("head -c 300000 /dev/urandom > %s/2/app.db", w->dir);
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    assert_int_equal(w->db[2].replica.state, REPLICA_BROKEN);
    is_good(1, 10);
    is_good(3, 10);
    chain_at(w->db[1].replica.position);
    is_desynced(2);
    run_until(settled);
    assert_same(1, 2);
}

/* What is on the disk counts, not what the position file says: a page that
 * changed behind SQLite's back is found by a forced resync, and repaired. */
static void finds_rot_in_the_target(void **state)
{
    (void)state;
    one_diverged(60);
    run_until(settled);
    rot(3);
    report();
    assert_int_equal(resync_force(&w->node[3], "forced"), FLO_OK);
    assert_int_equal(w->db[3].state, DB_IS_RESYNCING);
    run_until(settled);
    assert_same(1, 3);
    assert_in_range(newest(3)->pages_sent, 1, 1);
    assert_string_equal(newest(3)->reason, "forced");
}

/* ======== whom it asks ===================================================================== */

/* The leader, though a report of another says more; without one the newest. */
static void picks_the_leader_or_the_newest(void **state)
{
    (void)state;
    one_diverged(20);
    w->db[3].applied.txid = 11; /* as reported; it says 10 in the end */
    report();
    resync_tick(&w->node[2]);
    assert_int_equal(newest(2)->source, 1);
    w->db[3].applied.txid = 10;
    run_until(settled);

    w->node[2].view.id = 0;
    is_desynced(2);
    w->db[3].applied.txid = 11;
    tick(2000);
    assert_int_equal(newest(2)->source, 3);
    w->db[3].applied.txid = 10;
    run_until(settled);
    assert_same(3, 2);
}

/* Without a good and connected peer nothing starts; with one it does. */
static void waits_for_a_source(void **state)
{
    (void)state;
    one_diverged(20);
    is_desynced(3);
    w->db[3].resync_after = UINT64_MAX;
    set_link(1, 2, false);
    run_steps(200);
    assert_int_equal(w->db[2].state, DB_IS_DESYNCED);
    assert_int_equal(w->node[2].resync_stats.started, 0);
    set_link(1, 2, true);
    w->db[3].resync_after = 0;
    run_until(settled);
    assert_same(1, 2);
}

/* A source that is behind what the chain and this replica both have would take
 * readers back in time: it is not asked. */
static void never_backwards(void **state)
{
    (void)state;
    one_diverged(20);
    w->db[1].applied.txid = 8;
    w->db[3].applied.txid = 9;
    w->db[2].applied.txid = 10;
    report();
    resync_tick(&w->node[2]);
    assert_int_equal(w->node[2].resync_stats.started, 0);
    w->db[3].applied.txid = 10;
    report();
    resync_tick(&w->node[2]);
    assert_int_equal(newest(2)->source, 3);
}

/* While a transaction, a job, a checkpoint or a view uses the replica, a resync
 * waits for it. */
static void waits_for_the_replica(void **state)
{
    struct txn *writer = (struct txn *)w;
    struct db *db = &w->db[2];

    (void)state;
    one_diverged(20);
    db->writer = writer;
    tick(20);
    assert_int_equal(db->state, DB_IS_DESYNCED);
    db->writer = NULL;
    db->applying = true;
    tick(20);
    assert_int_equal(db->state, DB_IS_DESYNCED);
    db->applying = false;
    db->checkpointing = true;
    tick(20);
    assert_int_equal(db->state, DB_IS_DESYNCED);
    db->checkpointing = false;
    db->n_views = 1;
    tick(20);
    assert_int_equal(db->state, DB_IS_DESYNCED);
    db->n_views = 0;
    tick(20);
    assert_int_equal(db->state, DB_IS_RESYNCING);
}

/* A forced resync is refused while one runs, and repeats the whole way. */
static void force_once(void **state)
{
    (void)state;
    one_diverged(20);
    tick(20);
    assert_int_equal(resync_force(&w->node[2], "forced"), FLO_BUSY);
    run_until(settled);
    assert_int_equal(resync_force(&w->node[2], "forced"), FLO_OK);
    run_until(settled);
    assert_int_equal(w->node[2].resync_stats.finished, 2);
    assert_same(1, 2);
}

/* ======== an empty cluster ================================================================== */

/* Nothing was ever written: a replica with nothing in it is right as it is. */
static void empty_everywhere(void **state)
{
    (void)state;
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
        is_good(id, 0);
    }
    report();
    assert_int_equal(resync_force(&w->node[2], "forced"), FLO_OK);
    run_until(settled);
    assert_int_equal(w->db[2].replica.state, REPLICA_PRISTINE);
    assert_int_equal(w->node[2].resync_stats.finished, 1);
}

/* A file that somebody put there is not deleted, however often it is tried. */
static void keeps_a_users_file(void **state)
{
    (void)state;
    make_content(2, 4096, 10);
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    is_good(1, 0);
    is_good(3, 0);
    is_desynced(2);
    tick(20);
    run_until(all_idle);
    assert_int_equal(newest(2)->rc, FLO_EXISTS);
    for (unsigned i = 0; i < 5; i++) {
        tick(1100);
        run_until(all_idle);
    }
    assert_int_equal(w->db[2].state, DB_IS_DESYNCED);
    assert_true(w->node[2].resync_stats.failed >= 5);
    assert_true(w->db[2].replica.n_pages > 10);
    assert_int_equal(w->node[2].resync_stats.n_last, 1); /* one line for all */
    assert_sound(2);
}

/* Content of an earlier life of the database goes. */
static void drops_an_earlier_life(void **state)
{
    (void)state;
    make_content(2, 4096, 10);
    for (uint32_t id = 1; id <= NODES; id++) {
        open_replica(id);
    }
    is_good(1, 0);
    is_good(3, 0);
    is_good(2, 77);
    is_desynced(2);
    run_until(settled);
    assert_int_equal(w->db[2].replica.state, REPLICA_PRISTINE);
    assert_int_equal(w->db[2].applied.txid, 0);
}

/* ======== what can go wrong ================================================================== */

/* The link is lost after k steps, for each k: everything is given back, the
 * old content is whole, and it is repaired when the link is back. */
static void link_lost_at_each_step(void **state)
{
    unsigned lost_while_resyncing = 0;

    for (unsigned k = 0; k < 90; k += 3) {
        if (k > 0) {
            teardown(state);
            setup(state);
        }
        one_diverged(150);
        tick(20);
        run_steps(k);
        lost_while_resyncing += w->db[2].state == DB_IS_RESYNCING;
        set_link(1, 2, false);
        set_link(2, 3, false);
        run_until(all_idle);
        assert_sound(2);
        /* Not FLO_BUSY: no half a replacement is left in the WAL. */
        if (w->db[2].state == DB_IS_DESYNCED) {
            assert_int_equal(replica_restart_wal(&w->db[2].replica), FLO_OK);
        }
        set_link(1, 2, true);
        set_link(2, 3, true);
        run_until(settled);
        assert_same(1, 2);
    }
    assert_in_range(lost_while_resyncing, 3, 30);
}

/* The target's database, then the source's, is closed after k steps, for each
 * k: nothing stays behind. */
static void closed_at_each_step(void **state)
{
    for (unsigned k = 0; k < 120; k += 3) {
        uint32_t who = k % 2 == 0 ? 1 : 2;
        if (k > 0) {
            teardown(state);
            setup(state);
        }
        one_diverged(100);
        tick(20);
        run_steps(k);
        resync_db_close(&w->db[who]);
        w->db[who].state = DB_IS_DROPPED;
        w->db[who].dropped = true;
        run_until(all_idle);
        if (who == 1) {
            run_until(all_idle);
            assert_sound(2);
        }
    }
}

/* The source's replica is desynced in the middle: it stops being a source, and
 * the other one takes over. */
static void source_desynced(void **state)
{
    (void)state;
    one_empty(4096, 600);
    tick(20);
    while (w->n_pages_messages == 0) {
        step();
    }
    w->db[1].state = DB_IS_DESYNCED;
    w->db[1].resync_after = UINT64_MAX;
    tick(20);
    assert_int_equal(newest(1)->rc, FLO_DESYNCED);
    while (w->db[2].state != DB_IS_GOOD) {
        step();
    }
    assert_int_equal(newest(2)->source, 3);
    w->db[1].state = DB_IS_GOOD;
    run_until(all_idle);
    assert_same(3, 2);
}

/* A page that rotted on the source's disk is not handed on; the source repairs
 * itself, too. */
static void finds_rot_in_the_source(void **state)
{
    (void)state;
    one_empty(4096, 60);
    rot(1);
    tick(20);
    run_until(settled);
    assert_int_equal(w->corrupt_logged, 1);
    assert_same(3, 1);
    assert_same(3, 2);
}

/* Damaged pages never become visible: the attempt fails, the next succeeds. */
static void damaged_pages(void **state)
{
    unsigned failed = 0;

    for (unsigned i = 0; i < 30; i++) {
        if (i > 0) {
            teardown(state);
            setup(state);
        }
        one_diverged(60);
        w->damage = MSG_PAGES;
        w->fault_from = 1;
        w->faults_left = 1;
        run_until(settled);
        assert_int_equal(w->faults_done, 1);
        failed += (unsigned)w->node[2].resync_stats.failed;
        assert_same(1, 2);
    }
    assert_true(failed >= 25); /* some bits in a page number do not matter … */
}

/* Acknowledgements vanish: the source ends, and closes its view. */
static void stalled_target(void **state)
{
    (void)state;
    one_empty(4096, 400);
    w->lose = MSG_PAGES_ACK;
    w->fault_from = 2;
    w->faults_left = 4;
    while (w->faults_left > 0) {
        step();
    }
    run_steps(100);
    assert_true(w->db[1].n_views > 0);
    w->in_flight = 0;
    tick(RESYNC_STALL_MS);
    run_until(settled);
    assert_int_equal(w->node[1].resync_stats.failed +
                         w->node[3].resync_stats.failed, 1);
    assert_same(1, 2);
}

/* The source's answer vanishes: the target ends by itself and tries again. */
static void stalled_source(void **state)
{
    (void)state;
    one_diverged(30);
    w->lose = MSG_RESYNC_END;
    w->fault_from = 1;
    w->faults_left = 1;
    while (w->faults_left > 0) {
        step();
    }
    run_steps(100);
    assert_int_equal(w->db[2].state, DB_IS_RESYNCING);
    tick(RESYNC_STALL_MS);
    assert_int_equal(newest(2)->finished_ms, 0);
    run_until(settled);
    assert_int_equal(w->node[2].resync_stats.failed, 1);
    assert_same(1, 2);
}

/* ======== bad manners ======================================================================= */

static void begin(uint32_t from, uint64_t request, uint32_t n_pages)
{
    struct wire_msg m = {.type = MSG_RESYNC_BEGIN, .request = request};

    snprintf(m.resync_begin.db, sizeof m.resync_begin.db, "app");
    m.resync_begin.page_size = 4096;
    m.resync_begin.n_pages = n_pages;
    resync_handle(&w->node[1], from, &m);
}

/* At most RESYNC_SOURCES_MAX (4) are served at once, one per target and
 * database; impossible sizes are refused. */
static void bounded_sources(void **state)
{
    (void)state;
    one_diverged(10);
    begin(2, 101, 5);
    begin(2, 102, 5); /* ends 101 */
    begin(3, 103, RESYNC_PAGES_MAX + 1);
    begin(3, 104, 5);
    assert_int_equal(w->node[1].resync_stats.started, 3);
    assert_int_equal(w->node[1].resync_stats.failed, 1);
    for (uint32_t from = 10; from < 20; from++) {
        begin(from, 200 + from, 5);
    }
    assert_int_equal(w->node[1].resync_stats.started, 5);
    for (uint32_t from = 2; from < 20; from++) {
        resync_peer_down(&w->node[1], from);
    }
    assert_true(resync_idle(&w->node[1]));
}

/* A page that comes twice, or out of order, ends the attempt. */
static void pages_out_of_order(void **state)
{
    uint8_t bytes[2 * (8 + 4096)] = {0};
    struct wire_msg m = {.type = MSG_PAGES};

    (void)state;
    one_empty(4096, 60);
    tick(20);
    while (w->node[2].peers.requests == NULL) {
        step();
    }
    for (unsigned i = 0; i < 2; i++) {
        store_u32(bytes + i * (8 + 4096), 2);
        store_u32(bytes + i * (8 + 4096) + 4, 4096);
    }
    m.request = w->node[2].peers.requests->number;
    m.pages.page_size = 4096;
    m.pages.n_images = 2;
    m.pages.pages = (struct wire_blob){.data = bytes, .len = sizeof bytes};
    w->in_flight = 1000; /* not counted here */
    w->lose = MSG_PAGES_ACK;
    w->fault_from = 2;
    w->faults_left = 1;
    resync_handle(&w->node[2], newest(2)->source, &m);
    while (w->db[2].state == DB_IS_RESYNCING) {
        step();
    }
    assert_int_equal(newest(2)->rc, FLO_PROTOCOL);
    assert_int_equal(w->faults_done, 0); /* it was not acknowledged */
    w->faults_left = 0;
    run_until(settled);
    assert_same(1, 2);
}

static void random_message(struct wire_msg *m, uint8_t *bytes, uint64_t request)
{
    uint32_t len = (uint32_t)(rand() % 400);
    struct wire_blob blob = {.data = bytes, .len = len};

    memset(m, 0, sizeof *m);
    m->request = request;
    for (uint32_t i = 0; i < len; i++) {
        bytes[i] = (uint8_t)(rand() % 3 == 0 ? rand() : 0);
    }
    switch (rand() % 4) {
        case 0:
            m->type = MSG_RESYNC_HASHES;
            m->resync_hashes.first = (uint32_t)(rand() % 3);
            m->resync_hashes.last = (uint8_t)(rand() % 2);
            m->resync_hashes.hashes = blob;
            break;
        case 1:
            m->type = MSG_PAGES;
            m->pages.page_size = rand() % 2 == 0 ? 4096 : (uint32_t)rand();
            m->pages.n_images = (uint32_t)(rand() % 5);
            m->pages.pages = blob;
            break;
        case 2:
            m->type = MSG_PAGES_ACK;
            break;
        default:
            m->type = MSG_RESYNC_END;
            m->resync_end.n_pages = (uint32_t)rand();
            m->resync_end.page_size = 4096;
            m->resync_end.txid = (uint64_t)(rand() % 3);
    }
}

/* Nonsense with the right request numbers, at any moment, from the source and
 * the target: both replicas stay whole, and it is repaired when it ends. */
static void nonsense(void **state)
{
    uint8_t *bytes = malloc(400);

    (void)state;
    one_diverged(60);
    while (w->node[2].resync_stats.n_last == 0) {
        step();
    }
    /* How much of it does harm is a matter of chance: go on until enough did. */
    for (unsigned i = 0;
         i < 400 || (w->node[2].resync_stats.failed <= 20 && i < 4000); i++) {
        struct wire_msg m;
        uint64_t number = w->node[2].peers.requests != NULL
                              ? w->node[2].peers.requests->number
                              : w->numbers;
        run_steps((unsigned)(rand() % 12));
        random_message(&m, bytes, number);
        w->in_flight += m.type == MSG_PAGES_ACK ? 1 : 0;
        if (m.type == MSG_PAGES || m.type == MSG_RESYNC_END) {
            dispatch(&w->node[2], newest(2)->source, &m);
        } else {
            dispatch(&w->node[newest(2)->source], 2, &m);
        }
        w->in_flight = 1000; /* not counted here */
        if (w->db[2].state == DB_IS_DESYNCED) {
            tick(1000);
        } else if (w->db[2].state == DB_IS_GOOD) {
            resync_force(&w->node[2], "forced");
        }
    }
    tick(RESYNC_STALL_MS);
    run_until(settled);
    assert_true(w->node[2].resync_stats.failed > 20);
    assert_same(1, 2);
    assert_same(1, 3);
    free(bytes);
}

int main(void)
{
    const char *given = getenv("FLOTILLA_SEED");
    unsigned seed = given != NULL ? (unsigned)strtoul(given, NULL, 10)
                                  : (unsigned)time(NULL);
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(sends_only_the_difference),
        T(empty_replica),
        T(page_sizes),
        T(other_page_size),
        T(shrinks),
        T(many_hashes),
        T(adopts_the_position),
        T(broken_file),
        T(finds_rot_in_the_target),
        T(picks_the_leader_or_the_newest),
        T(waits_for_a_source),
        T(never_backwards),
        T(waits_for_the_replica),
        T(force_once),
        T(empty_everywhere),
        T(keeps_a_users_file),
        T(drops_an_earlier_life),
        T(link_lost_at_each_step),
        T(closed_at_each_step),
        T(source_desynced),
        T(finds_rot_in_the_source),
        T(damaged_pages),
        T(stalled_target),
        T(stalled_source),
        T(bounded_sources),
        T(pages_out_of_order),
        T(nonsense),
#undef T
    };
    int rc;

    printf("seed %u; replay: FLOTILLA_SEED=%u tests/unit/test_resync\n", seed,
           seed);
    srand(seed);
    rc = cmocka_run_group_tests(tests, NULL, NULL);
    printf("seed %u\n", seed);
    return rc;
}
