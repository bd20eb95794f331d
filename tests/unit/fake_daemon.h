/* A daemon for testing the extension: speaks the client socket's protocol, on
 * one node, without raft.
 *
 * It is a process of its own (the test program, started again), so that its
 * SQLite shares no locks with the test's. The test scripts it through memory
 * that both map: set a field of struct fake, and the daemon acts on it with the
 * next message; read a counter to see what it was asked.
 *
 * FAULT MODEL. It can answer any code to any request, answer late or never,
 * close the connection or die at a chosen message, grant a lock as an answer
 * to CANCEL (the crossing), and move the replica on before it grants (a stale
 * snapshot). Locks are queued first come, first served, and lent through the
 * fence. At COMMIT it checks that the commit frame's header is not in the WAL
 * yet, and that all other frames are. */
#ifndef FLOTILLA_FAKE_DAEMON_H
#define FLOTILLA_FAKE_DAEMON_H

#include <stdatomic.h>
#include <stdint.h>
#include <sys/types.h>

enum fake_action {
    FAKE_ANSWER = 0,
    FAKE_SILENT,  /* no answer, ever */
    FAKE_CLOSE,   /* close the connection instead of answering */
    FAKE_DIE,     /* kill -9 itself instead of answering */
    FAKE_COMMIT_AND_CLOSE /* COMMIT: it counts as committed, then close */
};

/* Indexed by message type. */
#define FAKE_TYPES 32

struct fake
{
    /* script */
    atomic_int action[FAKE_TYPES];
    atomic_int code[FAKE_TYPES]; /* FLO_* to answer; 0: do it */
    atomic_int delay_ms[FAKE_TYPES]; /* before answering; blocks everything */
    atomic_int hold_lock;     /* somebody else has the lock */
    atomic_int grant_on_cancel;
    atomic_int move_on_grant; /* so many times: a foreign write, then grant */
    atomic_int always_stale;  /* it does not linger for the retry */
    atomic_int wrong_fence;   /* grant another number than the fence has */
    atomic_ullong max_transaction_bytes;
    /* what happened */
    atomic_int count[FAKE_TYPES];
    atomic_int grants;
    atomic_int header_too_early; /* commit header was in the file at COMMIT */
    atomic_int frames_missing;
    atomic_int last_linger_ms;
    atomic_int lock_timeout_ms;
    atomic_int init_page_size, init_auto_vacuum, init_encoding;
    atomic_int connections;
    atomic_int ready;
};

/* In the test program. dir is the node's directory. */
struct fake *fake_new(void);
void fake_free(struct fake *f);
pid_t fake_start(struct fake *f, const char *dir);
void fake_stop(pid_t pid, int signal);

/* main() calls this first; it does not return when the arguments are those of
 * fake_start. */
void fake_main(int argc, char **argv);

#endif
