/* Phrases for the shared error codes. */
#include "core/error.h"

static const char *const phrases[] = {
    [FLO_OK] = "ok",
    [FLO_NOMEM] = "out of memory",
    [FLO_IO] = "input/output error",
    [FLO_FULL] = "disk full",
    [FLO_CORRUPT] = "checksum mismatch",
    [FLO_PROTOCOL] = "protocol violation",
    [FLO_TOOBIG] = "over a configured limit",
    [FLO_BUSY] = "busy",
    [FLO_LOST] = "write lock lost",
    [FLO_NOTLEADER] = "not the leader",
    [FLO_NOLEADER] = "no leader",
    [FLO_UNKNOWN] = "outcome unknown",
    [FLO_MISMATCH] = "does not extend the replica's position",
    [FLO_DUPLICATE] = "applied already",
    [FLO_NOTFOUND] = "not found",
    [FLO_EXISTS] = "exists already",
    [FLO_INVALID] = "invalid argument",
    [FLO_TIMEOUT] = "timed out",
    [FLO_SHUTDOWN] = "shutting down",
    [FLO_DESYNCED] = "replica is being repaired",
    [FLO_IDENTITY] = "wrong cluster, node number or directory identity",
    [FLO_VERSION] = "version not supported",
    [FLO_STALE] = "a fresh snapshot is needed",
};

const char *flo_strerror(int rc)
{
    if (rc < 0 || rc >= (int)(sizeof phrases / sizeof phrases[0])) {
        return "unknown error code";
    }
    return phrases[rc];
}
