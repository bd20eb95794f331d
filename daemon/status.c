/* What belongs to struct node_status itself: its end, its words and the
 * buckets of the commit latency. Filling it is node.c's business. */
#include "daemon/status.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/status_json.h"

/* From a commit on loopback to one that waits out an election. The last bound
 * is +Inf, so the last bucket is also the number of observations. */
const double commit_bounds_ms[COMMIT_BUCKETS] = {
    0.5, 1, 2, 5, 10, 20, 50, 100, 250, 1000, 5000, INFINITY};

_Static_assert(sizeof(((struct node_counters *)0)->commit_ms_bucket) ==
                   COMMIT_BUCKETS * sizeof(uint64_t),
               "one counter per bound");

void commit_latency_add(struct node_counters *c, double ms)
{
    assert(ms >= 0);
    for (unsigned i = 0; i < COMMIT_BUCKETS; i++) {
        if (ms <= commit_bounds_ms[i]) {
            c->commit_ms_bucket[i]++;
        }
    }
    c->commit_seconds_sum += ms / 1000;
}

void node_status_close(struct node_status *s)
{
    assert(s->n_members <= MEMBERS_MAX);
    for (unsigned i = 0; i < s->n_members; i++) {
        free(s->members[i].databases);
    }
    free(s->databases);
    memset(s, 0, sizeof *s);
}

const char *db_health_name(enum db_health h)
{
    switch (h) {
    case DB_HEALTHY:
        return "healthy";
    case DB_LAGGING:
        return "lagging";
    case DB_DESYNCED:
        return "desynced";
    case DB_UNKNOWN:
        break;
    }
    return "unknown";
}
