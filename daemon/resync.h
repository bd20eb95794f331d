/* Page-difference resync: bring a replica to a peer's position by sending only
 * the pages that differ.
 *
 *   target                               source (best healthy peer)
 *     rehash (what is really there)
 *     RESYNC_BEGIN, RESYNC_HASHES …  ──>  view_open at its position
 *     replace_begin                  <──  PAGES … (window of 4)
 *     replace_page, PAGES_ACK        ──>
 *     replace_commit, GOOD           <──  RESYNC_END
 *
 * The new state becomes visible in one step. Anything that goes wrong ends the
 * attempt; the database stays DESYNCED and is tried again a second later,
 * perhaps from another source. Loop thread; hashing, reading and writing on
 * the workers. */
#ifndef FLOTILLA_RESYNC_H
#define FLOTILLA_RESYNC_H

#include <stdbool.h>
#include <stdint.h>

#include "core/wire.h"

struct node;
struct db;

#define RESYNC_WINDOW 4
#define RESYNC_CHUNK_BYTES (512u << 10)
#define RESYNC_STALL_MS 60000
#define RESYNC_PAGES_MAX (64u << 20) /* pages of a database that can be sent */

/* Start resyncs of DESYNCED databases that have a source; end stalled ones. */
void resync_tick(struct node *n);

/* All databases of this node, also healthy ones. FLO_BUSY: one is running. */
int resync_force(struct node *n, const char *reason);

/* RESYNC_*, PAGES, PAGES_ACK from a member. */
void resync_handle(struct node *n, uint32_t from, const struct wire_msg *m);

/* The member's link is gone. */
void resync_peer_down(struct node *n, uint32_t id);

/* db goes away. */
void resync_db_close(struct db *db);

/* Nothing under way (views are closed), so the node may stop. */
bool resync_idle(const struct node *n);

#endif
