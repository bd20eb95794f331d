/* Finding the leader of a cluster. */
#ifndef FLOTILLA_CLI_LEADER_H
#define FLOTILLA_CLI_LEADER_H

#include "cli/cli.h"
#include "cli/fetch.h"

/* Ask the nodes that a names (--leader, --nodes, --dir) for their sync-status,
 * and go where they say the leader is. CLI_OK: *http is its address (malloc'd)
 * and *sync its document, the caller's. Else after a complaint: CLI_USAGE;
 * CLI_UNREACHABLE: no node answered; CLI_REFUSED: no leader. */
int leader_find(const struct args *a, char **http, json_t **sync);

/* A document from one node. CLI_OK, else after a complaint: CLI_UNREACHABLE,
 * or CLI_TIMEOUT. */
int get_document(const char *http, const char *path, json_t **doc);

#endif
