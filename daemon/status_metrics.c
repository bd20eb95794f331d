/* The node's status as Prometheus text (version 0.0.4 of the format).
 *
 * Names follow etcd's with our prefix; base units only (seconds, bytes); what
 * a node does not know is left out rather than given as 0. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/status_json.h"

static void head(FILE *f, const char *name, const char *type, const char *help)
{
    fprintf(f, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void gauge(FILE *f, const char *name, uint64_t v, const char *help)
{
    head(f, name, "gauge", help);
    fprintf(f, "%s %" PRIu64 "\n", name, v);
}

static void counter(FILE *f, const char *name, uint64_t v, const char *help)
{
    head(f, name, "counter", help);
    fprintf(f, "%s %" PRIu64 "\n", name, v);
}

/* One sample with one label; the value of the label is escaped. */
static void labelled(FILE *f, const char *name, const char *label,
                     const char *value, uint64_t v)
{
    fprintf(f, "%s{%s=\"", name, label);
    for (const char *p = value; *p != '\0'; p++) {
        if (*p == '\n') {
            fputs("\\n", f);
            continue;
        }
        if (*p == '\\' || *p == '"') {
            fputc('\\', f);
        }
        fputc(*p, f);
    }
    fprintf(f, "\"} %" PRIu64 "\n", v);
}

static void raft_metrics(FILE *f, const struct node_status *s)
{
    const struct node_counters *c = &s->counters;

    gauge(f, "flotilla_has_leader", s->leader_id != 0,
          "Whether this node knows a leader.");
    gauge(f, "flotilla_is_leader", s->is_leader, "Whether this node leads.");
    gauge(f, "flotilla_raft_term", s->term, "The current raft term.");
    gauge(f, "flotilla_raft_commit_index", s->commit_index,
          "The highest raft index known to be committed.");
    gauge(f, "flotilla_raft_applied_index", s->last_applied,
          "The highest raft index applied here.");
    counter(f, "flotilla_leader_changes_seen_total", c->leader_changes,
            "Leader changes seen by this node.");
    counter(f, "flotilla_proposals_committed_total", c->proposals_committed,
            "Entries proposed by this node that were committed.");
    counter(f, "flotilla_proposals_failed_total", c->proposals_failed,
            "Entries proposed by this node that were not.");
    counter(f, "flotilla_snapshots_total", c->snapshots,
            "Raft snapshots taken.");
    counter(f, "flotilla_checkpoints_total", c->checkpoints,
            "Checkpoints of replicas.");
}

static void txn_metrics(FILE *f, const struct node_counters *c)
{
    static const char name[] = "flotilla_commit_seconds";

    head(f, "flotilla_txn_total", "counter",
         "Write transactions of this node's clients, by outcome.");
    labelled(f, "flotilla_txn_total", "result", "committed",
             c->txn_committed);
    labelled(f, "flotilla_txn_total", "result", "rejected", c->txn_rejected);
    labelled(f, "flotilla_txn_total", "result", "unknown", c->txn_unknown);
    head(f, name, "histogram", "Time from COMMIT to its answer.");
    for (unsigned i = 0; i < COMMIT_BUCKETS; i++) {
        char le[32] = "+Inf";

        if (isfinite(commit_bounds_ms[i])) {
            snprintf(le, sizeof le, "%g", commit_bounds_ms[i] / 1000);
        }
        fprintf(f, "%s_bucket{le=\"%s\"} %" PRIu64 "\n", name, le,
                c->commit_ms_bucket[i]);
    }
    fprintf(f, "%s_sum %.9g\n", name, c->commit_seconds_sum);
    fprintf(f, "%s_count %" PRIu64 "\n", name,
            c->commit_ms_bucket[COMMIT_BUCKETS - 1]);
}

/* One gauge per database; Prometheus wants the samples of a name together. */
static void database_metrics(FILE *f, const struct node_status *s)
{
    head(f, "flotilla_db_txid", "gauge", "Last transaction in the replica.");
    for (unsigned i = 0; i < s->n_databases; i++) {
        labelled(f, "flotilla_db_txid", "db", s->databases[i].name,
                 s->databases[i].position.txid);
    }
    head(f, "flotilla_db_pages", "gauge", "Size of the database in pages.");
    for (unsigned i = 0; i < s->n_databases; i++) {
        labelled(f, "flotilla_db_pages", "db", s->databases[i].name,
                 s->databases[i].n_pages);
    }
    head(f, "flotilla_db_size_bytes", "gauge", "Size of the database.");
    for (unsigned i = 0; i < s->n_databases; i++) {
        labelled(f, "flotilla_db_size_bytes", "db", s->databases[i].name,
                 (uint64_t)s->databases[i].n_pages *
                     s->databases[i].page_size);
    }
    head(f, "flotilla_db_wal_frames", "gauge", "Committed frames in the WAL.");
    for (unsigned i = 0; i < s->n_databases; i++) {
        labelled(f, "flotilla_db_wal_frames", "db", s->databases[i].name,
                 s->databases[i].wal_frames);
    }
    head(f, "flotilla_db_desynced", "gauge",
         "Whether the replica is being repaired.");
    for (unsigned i = 0; i < s->n_databases; i++) {
        labelled(f, "flotilla_db_desynced", "db", s->databases[i].name,
                 s->databases[i].health == DB_DESYNCED);
    }
    head(f, "flotilla_replica_queue_bytes", "gauge",
         "Committed bytes that wait to be applied.");
    for (unsigned i = 0; i < s->n_databases; i++) {
        labelled(f, "flotilla_replica_queue_bytes", "db",
                 s->databases[i].name, s->databases[i].queued_bytes);
    }
}

/* Only the leader knows how far the others are. */
static void follower_metrics(FILE *f, const struct node_status *s)
{
    char id[16];

    if (!s->is_leader) {
        return;
    }
    head(f, "flotilla_follower_lag", "gauge",
         "Raft entries that a follower has not applied yet.");
    for (unsigned i = 0; i < s->n_members; i++) {
        if (!s->members[i].self) {
            snprintf(id, sizeof id, "%" PRIu32, s->members[i].id);
            labelled(f, "flotilla_follower_lag", "id", id, s->members[i].lag);
        }
    }
    head(f, "flotilla_follower_healthy", "gauge",
         "Whether a follower is connected and healthy.");
    for (unsigned i = 0; i < s->n_members; i++) {
        const struct member_status *m = &s->members[i];

        if (!m->self) {
            snprintf(id, sizeof id, "%" PRIu32, m->id);
            labelled(f, "flotilla_follower_healthy", "id", id,
                     m->connected && m->health == DB_HEALTHY);
        }
    }
}

static void resync_metrics(FILE *f, const struct resync_stats *r)
{
    head(f, "flotilla_resyncs_total", "counter", "Resyncs, by outcome.");
    labelled(f, "flotilla_resyncs_total", "result", "finished", r->finished);
    labelled(f, "flotilla_resyncs_total", "result", "failed", r->failed);
    counter(f, "flotilla_resync_pages_sent_total", r->pages_sent,
            "Pages sent by resyncs.");
    counter(f, "flotilla_resync_bytes_sent_total", r->bytes_sent,
            "Bytes sent by resyncs.");
}

static void process_metrics(FILE *f, const struct node_status *s,
                            const struct process_usage *u)
{
    gauge(f, "flotilla_free_bytes", s->free_bytes,
          "Free space where this node keeps its data.");
    gauge(f, "flotilla_disk_low", s->disk_low,
          "Whether writes are refused for lack of space.");
    gauge(f, "flotilla_ready", s->ready, "Whether /readyz answers 200.");
    gauge(f, "flotilla_clients", s->n_clients,
          "Connected applications of this node.");
    counter(f, "flotilla_clients_accepted_total",
            s->counters.clients_accepted, "Connections from applications.");
    counter(f, "flotilla_protocol_errors_total", s->counters.protocol_errors,
            "Connections closed because of what they sent.");
    gauge(f, "process_resident_memory_bytes", u->resident_bytes,
          "Resident memory size in bytes.");
    gauge(f, "process_open_fds", u->open_fds,
          "Number of open file descriptors.");
    head(f, "process_cpu_seconds_total", "counter",
         "Total user and system CPU time spent in seconds.");
    fprintf(f, "process_cpu_seconds_total %.6f\n", u->cpu_seconds);
    head(f, "process_start_time_seconds", "gauge",
         "Start time of the process since unix epoch in seconds.");
    fprintf(f, "process_start_time_seconds %.3f\n",
            (double)s->started_ms / 1000);
}

char *status_metrics_text(const struct node_status *s,
                          const struct process_usage *u)
{
    char *out = NULL;
    size_t n;
    FILE *f = open_memstream(&out, &n);

    if (f == NULL) {
        return NULL;
    }
    head(f, "flotilla_build_info", "gauge", "Which build this is.");
    labelled(f, "flotilla_build_info", "version",
             s->version != NULL ? s->version : "", 1);
    raft_metrics(f, s);
    txn_metrics(f, &s->counters);
    database_metrics(f, s);
    follower_metrics(f, s);
    resync_metrics(f, &s->resync);
    process_metrics(f, s, u);
    if (fclose(f) != 0) {
        free(out);
        return NULL;
    }
    return out;
}
