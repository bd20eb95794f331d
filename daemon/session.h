/* The clients of this node: the extension in applications, on the unix socket
 * flotilla.sock in the node's directory.
 *
 * A session serves one open database file. It has at most one write
 * transaction (txn.h) and one other request under way, because the extension
 * is blocking. Loop thread only. */
#ifndef FLOTILLA_SESSION_H
#define FLOTILLA_SESSION_H

#include <stdint.h>

struct node;
struct sessions;

/* Bind and listen. FLO_IO with n->errmsg. */
int sessions_start(struct node *n);

/* Look again at what clients wait for: raft or a replica moved. */
void sessions_kick(struct node *n);

/* No new clients; no new transactions (lame duck). */
void sessions_stop_listening(struct node *n);

/* Close all. */
void sessions_close(struct node *n);

uint32_t sessions_count(const struct node *n);

#endif
