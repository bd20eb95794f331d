/* What the two sides of a resync share: resync.c is the target, and the face
 * to the rest of the daemon; resync_source.c is the source. */
#ifndef FLOTILLA_RESYNC_INTERNAL_H
#define FLOTILLA_RESYNC_INTERNAL_H

#include <stdbool.h>
#include <stdint.h>

#include "core/wire.h"
#include "daemon/status.h"

struct node;
struct db;

#define RESYNC_SOURCES_MAX 4 /* served at once; more are told FLO_BUSY */
#define RESYNC_TARGETS_MAX 4 /* of this node at once */
#define RESYNC_HASHES_CHUNK (64u << 10) /* hashes in a message */
#define RESYNC_RETRY_MS 1000

/* The record of a resync lives in its own object, and a copy in the node's
 * statistics, which is brought up to date by these. start sets started_ms. */
void resync_record_start(struct node *n, struct resync_record *rec);
void resync_record_update(struct node *n, const struct resync_record *rec);
void resync_record_finish(struct node *n, struct resync_record *rec, int rc);

/* RESYNC_BEGIN, RESYNC_HASHES, PAGES_ACK. */
void source_handle(struct node *n, uint32_t from, const struct wire_msg *m);
void source_tick(struct node *n);
void source_peer_down(struct node *n, uint32_t id);
void source_db_close(struct db *db);
bool source_idle(const struct node *n);

#endif
