/* Raft's state machine: entries to databases, snapshots as manifests.
 *
 * MANIFEST, raft's snapshot; all numbers little-endian; a multiple of 8 bytes:
 *
 *   0      4       8        12     16         24       32
 *   +------+-------+--------+------+----------+--------+---------------+
 *   | FLM1 | bytes | n      | 0    | XXH3-64  | index  | n databases   |
 *   +------+-------+--------+------+----------+--------+---------------+
 *   database: u16 length, name; u64 txid; u64 checksum; u32 pages;
 *             u32 page size; u32 n outcomes; n × (u64 txid, u64 commit_id)
 *
 * valid if and only if the magic matches, bytes is the buffer's length, the
 * hash is that of all that follows it, and the databases fill it but for zero
 * padding. It holds positions and the newest outcomes, never data: the pages
 * are in the replica, which is made durable before a manifest is written
 * (upkeep_before_snapshot), or come from a peer (resync). */
#ifndef FLOTILLA_FSM_H
#define FLOTILLA_FSM_H

#include <raft.h>

#include "core/buf.h"

struct node;

/* Fill the callbacks of n->fsm. They never fail (guard G10): what cannot be
 * understood stops the node with a line that names the reason. */
void fsm_init(struct node *n);

/* Encode the state of all databases; malloc'd through the buffer. */
int manifest_encode(const struct node *n, uint64_t index, struct buf *out);

/* Check a manifest's header and hash; body is what lies behind `index`. */
int manifest_open(const void *data, size_t len, uint32_t *n_databases,
                  uint64_t *index, struct cursor *body);

#endif
