/* struct node_status in the forms that people and programs read: JSON
 * documents, the lines of /livez and /readyz, and Prometheus text.
 *
 * Pure functions of their arguments: no clock, no socket, no global. What they
 * return is the caller's (json_decref, free); NULL means out of memory.
 *
 * Names are snake_case with _bytes and _ms; times are RFC 3339 in UTC; a txid
 * is a decimal string and a checksum 16 hex digits, because they use all 64
 * bits and JSON numbers do not. What is not known is null. Later versions add
 * members, and never change or remove one. */
#ifndef FLOTILLA_STATUS_JSON_H
#define FLOTILLA_STATUS_JSON_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/status.h"

struct json_t; /* jansson's */

/* Upper bounds, in milliseconds, of node_counters.commit_ms_bucket (status.c);
 * ascending, the last one is +Inf. Bucket i counts every commit that took at
 * most bound i, so the last one counts all of them. */
#define COMMIT_BUCKETS 12
extern const double commit_bounds_ms[COMMIT_BUCKETS];

/* Count one commit that took ms, from COMMIT to its answer. */
void commit_latency_add(struct node_counters *c, double ms);

/* The documents. sync-status has another shape on the leader. */
struct json_t *status_health_json(const struct node_status *s);
struct json_t *status_sync_json(const struct node_status *s);
struct json_t *status_resync_json(const struct node_status *s);
struct json_t *status_node_json(const struct node_status *s);

/* {"id", "address", "http"} of the leader this node knows of, else null. */
struct json_t *status_leader_json(const struct node_status *s);

/* {"error": {"code", "message", "leader"}}; s may be NULL. */
struct json_t *status_error_json(const char *code, const char *message,
                                 const struct node_status *s);

/* "healthy", "degraded" or "no_leader". The leader judges all members, another
 * node only itself. */
const char *status_health_word(const struct node_status *s);

/* /livez and /readyz. Lines "[+]raft ok", "[-]leader unknown: …", and
 * "[!]disk low: …" for what should be looked at but decides nothing. Without
 * verbose: "ok", or what is not well. s->live and s->ready decide. */
char *status_live_text(const struct node_status *s, bool verbose);
char *status_ready_text(const struct node_status *s, bool verbose);

/* What Prometheus wants to know of any process. */
struct process_usage
{
    uint64_t resident_bytes;
    uint64_t open_fds;
    double cpu_seconds;
};
char *status_metrics_text(const struct node_status *s,
                          const struct process_usage *u);

#endif
