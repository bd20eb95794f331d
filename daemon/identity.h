/* The node's directory: who owns it, and whether it is the one that the others
 * remember.
 *
 *   flotilla.id    text: format, cluster, node number, identity (a random
 *                  number made once), joined 0|1. Also marks the directory for
 *                  the extension.
 *   flotilla.lock  locked by the daemon that uses the directory
 *   peers          text: "number identity" of each member, as first seen
 *
 * A voter that comes back with another identity was wiped: it has forgotten
 * what it acknowledged and must not be counted (raft dissertation, section
 * 11.7.2 on disk loss). So its handshakes are refused by all who remember. */
#ifndef FLOTILLA_IDENTITY_H
#define FLOTILLA_IDENTITY_H

#include <stdbool.h>
#include <stdint.h>

struct node;

/* Make and lock the directory, read or make its identity. Nonzero: n->errmsg
 * has one line. */
int identity_open(struct node *n);

/* This directory's raft log exists from now on: an empty one later is an
 * error, not a fresh start. */
int identity_joined(struct node *n);

/* The start failed: if this start made the directory's identity and raft has not
 * joined, take it away again. */
void identity_undo(struct node *n);

/* FLO_OK, or FLO_IDENTITY. Remembers a member seen for the first time; it is
 * written in the background. */
int identity_check(struct node *n, uint32_t id, uint64_t identity);

#endif
