/* Error codes that extension, daemon and CLI share.
 *
 * Every function of this project that can fail returns 0 or one of these, and
 * leaves its out-parameters untouched when it fails. The numbers travel on the
 * wire (core/wire.h) and so never change; new ones are added at the end. */
#ifndef FLOTILLA_ERROR_H
#define FLOTILLA_ERROR_H

enum flo_error {
    FLO_OK = 0,
    FLO_NOMEM = 1,      /* out of memory */
    FLO_IO = 2,         /* a system call on a file or socket failed */
    FLO_FULL = 3,       /* no space left on a disk */
    FLO_CORRUPT = 4,    /* stored or received bytes fail their checksum */
    FLO_PROTOCOL = 5,   /* the other side does not speak this protocol */
    FLO_TOOBIG = 6,     /* over a configured limit */
    FLO_BUSY = 7,       /* not now; nothing was changed; retry is safe */
    FLO_LOST = 8,       /* the write lock was taken away; nothing was changed */
    FLO_NOTLEADER = 9,  /* this node does not lead */
    FLO_NOLEADER = 10,  /* no leader is known: no majority, or an election */
    FLO_UNKNOWN = 11,   /* may or may not have been committed */
    FLO_MISMATCH = 12,  /* does not extend the replica's position: desynced */
    FLO_DUPLICATE = 13, /* at or below the position already; skipped */
    FLO_NOTFOUND = 14,  /* no such database, node or file */
    FLO_EXISTS = 15,    /* is there already */
    FLO_INVALID = 16,   /* an argument is out of range */
    FLO_TIMEOUT = 17,   /* the deadline passed */
    FLO_SHUTDOWN = 18,  /* the daemon is stopping */
    FLO_DESYNCED = 19,  /* the replica is being repaired */
    FLO_IDENTITY = 20,  /* wrong cluster, node number or directory identity */
    FLO_VERSION = 21,   /* protocol or format version not supported */
    FLO_STALE = 22      /* take a fresh read snapshot and ask again at once */
};

/* A short English phrase for an error code, never NULL. Thread-safe. */
const char *flo_strerror(int rc);

/* How the extension reports FLO_UNKNOWN to the application: an I/O error with
 * an extended code of our own (https://www.sqlite.org/rescode.html says that
 * the low 8 bits are the primary code). Ask flotilla_committed() afterwards. */
#define FLOTILLA_SQLITE_UNKNOWN (10 /* SQLITE_IOERR */ | (200 << 8))

#endif
