/* What the parts of the database module share: db.c (its life, its state, who
 * waits for it), db_apply.c (what raft committed, on its way to the replica). */
#ifndef FLOTILLA_DB_IMPL_H
#define FLOTILLA_DB_IMPL_H

#include "daemon/db.h"

/* What a worker's job does for a database. */
struct db_job
{
    struct job job;
    struct db *db;
    struct db_record *records; /* apply: taken from pending */
    struct db_record *stopped_at;
    struct position identity;
    int rc;
};

/* A job, zeroed; out of memory stops the node. */
struct db_job *db_job_new(struct db *db, void (*run)(struct job *),
                          void (*done)(struct job *));

/* Change the state, with a line in the log; not once it is DROPPED. */
void db_set_state(struct db *db, enum db_state state);

/* Copy what the loop needs from the replica, while no job runs. */
void db_refresh(struct db *db);

/* Call all waiters. */
void db_tell(struct db *db);

void db_records_free(struct db_record *list);
void db_pending_drop(struct db *db);

/* The suspect content is that of txid. */
void db_identify(struct db *db, uint64_t txid);

#endif
