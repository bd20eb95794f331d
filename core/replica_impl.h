/* The inside of a replica, shared by core/replica*.c and by nobody else.
 *
 *   replica.c             fence, identity, hashes, closing
 *   replica_files.c       connections, locks, wal-index, page reads, hashing
 *   replica_open.c        opening, and finding the position
 *   replica_append.c      frames by hand, and publishing them
 *   replica_apply.c       records and resync through replica_append
 *   replica_client.c      what a client wrote: collect and settle
 *   replica_mend.c        frame headers that SQLite left unfinished
 *   replica_checkpoint.c  sync, checkpoint, WAL restart
 *   replica_view.c        consistent reads in the background
 *
 * Two connections stay open. `db` is the owner thread's: it runs SQL only while
 * the replica is opened, then holds the WRITE lock, and is used through its
 * sqlite3_file only, because SQL on it could give the lock away. `ckpt` is
 * the background thread's. Files are reached through SQLite's own handles,
 * never opened a second time: closing any descriptor of app.db or app.db-shm
 * would drop the process's locks on it. */
#ifndef FLOTILLA_REPLICA_IMPL_H
#define FLOTILLA_REPLICA_IMPL_H

#include <sqlite3.h>

#include "core/fence.h"
#include "core/posfile.h"
#include "core/replica.h"
#include "core/wal.h"

#define PATH_BYTES 1024

/* Pages and their hashes, in the order they were written: 12 bytes each. */
struct page_list
{
    uint32_t *pgno; /* owned */
    uint64_t *hash; /* owned */
    size_t n;
    size_t cap;
    bool ascending; /* and so without duplicates */
};

int page_list_add(struct page_list *l, uint32_t pgno, uint64_t hash);
void page_list_close(struct page_list *l);

/* Sort by page; of several entries of a page the last one stays. */
int page_list_sort(struct page_list *l);

/* A transaction that is being appended to the WAL by hand. The newest frame
 * is held back in memory, because only the end tells that it is the last. */
struct append
{
    bool active;
    bool replacing; /* resync, not a record */
    bool held;      /* buf has a frame that is not written yet */
    bool big_endian;
    uint32_t frame; /* number of the newest frame, held or written */
    uint32_t cksum[2];
    uint8_t salt[8];
    uint8_t *buf; /* owned; frame header and page */
    struct page_list pages; /* one entry per frame, in frame order */
    uint64_t txid;
    uint64_t after;
    uint32_t n_pages;
    uint32_t next_fragment;
    uint32_t n_fragments;
};

/* What a client is about to commit, from collect to settle. */
struct collected
{
    bool valid;
    uint64_t txid;
    uint64_t after;
    uint32_t first_frame; /* one after the committed mxFrame */
    uint32_t last_frame;
    uint32_t last_pgno;
    uint32_t n_pages;
    uint8_t salt[8];
    struct page_list pages; /* ascending */
    struct page_list holes; /* grown pages without a frame */
};

struct replica_impl
{
    char path[PATH_BYTES]; /* of the database; the others are made from it */
    struct fence fence;
    struct posfile pos;
    int slot;          /* the one that is the position */
    uint64_t sequence; /* its number */
    uint64_t base;     /* PRISTINE: hash of the empty page 1; 0: no file yet */
    uint32_t base_page_size;

    sqlite3 *db; /* owner's connection; NULL: no database yet, or BROKEN */
    sqlite3_file *dbf;
    sqlite3_file *walf;
    bool write_locked;
    sqlite3 *ckpt; /* background connection */
    sqlite3_file *ckpt_dbf;
    sqlite3_file *ckpt_walf;

    struct wal_index_hdr hdr; /* what is committed; also published, except
                                 after a client has published more */
    uint32_t wal_sequence;
    struct append app;
    struct collected col;

    /* Set by the background thread: the last state of the WAL of which every
     * frame was seen in the database file, and that file was synced. */
    uint64_t synced_state;
};

/* ---- replica.c --------------------------------------------------------------- */

/* Remember why; returns rc. Owner thread only. */
int replica_error(struct replica *r, int rc, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The path of a file next to the database: suffix "-pos", … */
void replica_path(const struct replica_impl *im, const char *suffix,
                  char out[PATH_BYTES + 8]);

/* Store a slot that describes the present state, and make it the position. */
void replica_store_position(struct replica *r);

/* The next slot: filled for a position to come; commit it by
 * replica_use_slot once it is published. */
void replica_store_pending(struct replica *r, const struct pos_slot *s);
void replica_use_pending(struct replica *r);

/* A slot for (txid, checksum) with n_pages at this place in the WAL. */
struct pos_slot replica_slot(const struct replica *r, struct position p,
                             uint32_t n_pages,
                             const struct wal_index_hdr *hdr);

/* No content: (0, 0), no pages. */
void replica_set_pristine(struct replica *r);

/* No content, but files with SQLite's empty page 1, attached. */
void replica_set_base(struct replica *r, uint64_t hash);

/* ---- replica_files.c --------------------------------------------------------- */

uint64_t now_ms(void);
void sleep_ms(unsigned ms);

/* SQLite's result, and errno behind it, as ours. f may be NULL. */
int sqlite_error(int rc, sqlite3_file *f);

/* An own connection through the plain VFS, with automatic checkpoints off. */
int connection_open(const char *path, unsigned busy_ms, sqlite3 **out);

/* Run SQL; the first column of the first row goes to text, if not NULL. */
int connection_query(sqlite3 *db, const char *sql, char *text, size_t n);

/* The connection's files; valid once it has read in WAL mode. */
int connection_files(sqlite3 *db, sqlite3_file **dbf, sqlite3_file **walf);

int shm_lock(sqlite3_file *dbf, int first, int n, bool exclusive);
void shm_unlock(sqlite3_file *dbf, int first, int n, bool exclusive);

/* A region of the wal-index; made when it is not there and extend is set. */
int shm_region(sqlite3_file *dbf, uint32_t region, bool extend,
               wal_region **out);

/* Open both connections and take the WRITE lock, and read what is published.
 * FLO_BUSY at the deadline; FLO_CORRUPT: this is not a database. */
int replica_attach(struct replica *r, uint64_t deadline_ms);
void replica_detach(struct replica *r);

/* Find the last frame of a page in [first, last]; 0: not there. */
int wal_find(sqlite3_file *dbf, uint32_t pgno, uint32_t first, uint32_t last,
             uint32_t *frame);

/* Read a page as a reader would that sees frames [first, last]. */
int wal_read_page(sqlite3_file *dbf, sqlite3_file *walf, uint32_t page_size,
                  uint32_t pgno, uint32_t first, uint32_t last, uint8_t *image);

/* Hash all pages into the position file; *checksum is their XOR. */
int replica_hash_all(struct replica *r, uint64_t *checksum);

/* Publish hdr, which is sealed here, and make it the committed one. */
int replica_publish(struct replica *r, struct wal_index_hdr *hdr);

/* Forget what is in the WAL and in the wal-index beyond the committed frames. */
int replica_drop_tail(struct replica *r);

/* On a 0-byte file: let SQLite make an empty database, and attach. */
int replica_make_base(struct replica *r, uint32_t page_size);

/* Make the files anew, and a base of that page size unless it is 0. */
int replica_remake(struct replica *r, uint32_t page_size);

/* What identifies the state of a database file that nobody writes. */
int replica_stamp(const struct replica_impl *im, uint8_t out[8]);

/* Does the schema hold nothing, and the header nothing of a user's? */
int replica_looks_empty(struct replica *r, bool *empty);

/* ---- replica_mend.c ----------------------------------------------------------- */

/* The frames from first to h->mx_frame were published with header h: finish
 * their headers if SQLite did not, and publish h with the right checksum then.
 */
int replica_mend(struct replica *r, uint32_t first, struct wal_index_hdr *h);

/* ---- replica_append.c --------------------------------------------------------- */

int append_begin(struct replica *r);

/* Where to put the next page's image; writes the held frame out first. */
int append_slot(struct replica *r, uint8_t **image);

/* The image in the slot is that of pgno. */
int append_hold(struct replica *r, uint32_t pgno);

/* Check that the result is p, publish, and make it the position. On an error
 * nothing was published and the append is over. FLO_MISMATCH. */
int append_commit(struct replica *r, uint32_t n_pages, struct position p);
void append_abort(struct replica *r);

/* Enter into the position file's hashes what was published. */
void replica_advance(struct replica *r, const struct page_list *pages,
                     uint32_t n_pages, struct position p);

#endif
