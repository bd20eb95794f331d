/* The flotillad processes that `cluster start` makes and `cluster stop` ends.
 *
 * A pid file may be stale, and its number taken by a stranger. So it is only
 * believed when that process runs flotillad (its executable, or a script that
 * $FLOTILLAD names) with --dir of that very node.
 *
 * FLOTILLA_EXTDIR may be defined as where the extension gets installed. */
#ifndef FLOTILLA_CLI_PROCESS_H
#define FLOTILLA_CLI_PROCESS_H

#include <stdbool.h>
#include <sys/types.h>

#include "cli/layout.h"

/* Where flotillad is: $FLOTILLAD; beside this program as it was built or
 * installed; $PATH. A malloc'd absolute path, or NULL after a complaint. */
char *find_flotillad(void);

/* What .load takes: a malloc'd path without ".so"; "flotilla" if not found. */
char *find_extension(void);

/* The running process of node i, or 0. flotillad may be NULL. */
pid_t node_process(const struct layout *l, unsigned i, const char *flotillad);

/* Start node i in the background: its own session, stdin from /dev/null, output
 * appended to its log. Writes the pid file. Its pid; -1 after a complaint. */
pid_t node_spawn(const struct layout *l, unsigned i, const char *flotillad);

void node_forget(const struct layout *l, unsigned i); /* remove the pid file */

#endif
