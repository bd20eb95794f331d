/* The daemon's settings: flag > environment > file > default.
 *
 * One table in settings.c lists each setting with its flag (--max-transaction),
 * environment variable (FLOTILLA_MAX_TRANSACTION), key in the file
 * (max_transaction), default, limits and one line of help; parser, --help,
 * --print-config and the man page follow it. */
#ifndef FLOTILLA_SETTINGS_H
#define FLOTILLA_SETTINGS_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/log.h"

#define MEMBERS_MAX 9
#define ADDRESS_MAX 255

struct member
{
    uint32_t id;                   /* 1 … 65535 */
    char address[ADDRESS_MAX + 1]; /* host:port that peers connect to */
};

struct settings
{
    char dir[512];                   /* --dir; required; made if missing */
    uint32_t id;                     /* --id; required */
    char cluster[64];                /* --cluster, default "flotilla" */
    char listen[ADDRESS_MAX + 1];    /* --listen host:port for peers; default
                                        the member's own address */
    char http[ADDRESS_MAX + 1];      /* --http host:port; default: the peers'
                                        host, one port above */
    struct member members[MEMBERS_MAX]; /* --members 1=h:p,2=h:p,3=h:p; the
                                           same on every node, self included */
    unsigned n_members;
    uint32_t heartbeat_ms;           /* 50 */
    uint32_t election_ms;            /* 500; at least 4 × heartbeat */
    uint64_t max_transaction_bytes;  /* 64 MiB of changed pages */
    uint32_t max_transaction_ms;     /* 10000: a holder loses the lock then, if
                                        others wait */
    uint32_t commit_timeout_ms;      /* 10000: then the outcome is unknown */
    uint64_t min_free_bytes;         /* 64 MiB: below it, writes are refused */
    uint64_t replica_queue_bytes;    /* 32 MiB */
    uint64_t snapshot_bytes;         /* 16 MiB of log between snapshots */
    uint32_t max_databases;          /* 64 */
    uint32_t max_clients;            /* 512 */
    enum log_level log_level;        /* info */
};

/* Parse flags, environment and file. Returns -1 to go on, else the exit code:
 * 0 after --help, --version, --check or --print-config; 2 after printing one
 * clear line on stderr (unknown flag or key, with file and line; bad value;
 * wrong member list: empty, duplicate id or address, own id missing). */
int settings_parse(struct settings *s, int argc, char **argv);

/* This node's entry in members; never NULL after settings_parse. */
const struct member *settings_self(const struct settings *s);

/* Split "host:port" or "[v6]:port". FLO_INVALID. host gets ADDRESS_MAX+1. */
int address_split(const char *address, char *host, char *port);

#endif
