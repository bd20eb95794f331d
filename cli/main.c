/* The flotilla command: starts clusters on this machine for a try, and asks
 * any cluster how it is.
 *
 * main only finds the command; each one is a file, cmd_*.c. Results go to
 * stdout, everything else to stderr; exit codes are in cli.h. It talks to nodes
 * over HTTP (fetch.h) and needs no privilege but that of starting processes. */
#include <curl/curl.h>
#include <string.h>

#include "cli/cli.h"

#ifndef FLOTILLA_VERSION
#define FLOTILLA_VERSION "unknown"
#endif

const char *cli_program = "flotilla";

static const struct cli_command cluster_commands[] = {
    {"start", "start a cluster on this machine", cmd_cluster_start},
    {"stop", "stop it and keep its data", cmd_cluster_stop},
    {"status", "the same as 'flotilla status'", cmd_status},
    {"sync-status", "the same as 'flotilla sync-status'", cmd_sync_status},
    {"resync", "the same as 'flotilla resync'", cmd_resync},
    {NULL, NULL, NULL},
};

static int cmd_cluster(int argc, char **argv);

static const struct cli_command commands[] = {
    {"cluster", "start, stop and look at a cluster on this machine",
     cmd_cluster},
    {"status", "every node on one line", cmd_status},
    {"sync-status", "how far each follower is, as the leader sees it",
     cmd_sync_status},
    {"resync", "send a follower the pages in which it differs", cmd_resync},
    {NULL, NULL, NULL},
};

static void usage(FILE *f, const char *prefix, const struct cli_command *list)
{
    fprintf(f, "usage: flotilla %sCOMMAND [OPTION]…\n\n", prefix);
    for (; list->name != NULL; list++) {
        fprintf(f, "  %-12s %s\n", list->name, list->summary);
    }
    fprintf(f, "\n'flotilla %sCOMMAND --help' tells more. "
               "Exit codes: 0 ok, 1 refused or unhealthy,\n"
               "2 usage, 3 cannot reach, 4 timed out.\n",
            prefix);
}

static int dispatch(int argc, char **argv, const char *prefix,
                    const struct cli_command *list)
{
    const char *word = argc > 1 ? argv[1] : NULL;

    if (word == NULL) {
        usage(stderr, prefix, list);
        return CLI_USAGE;
    }
    if (strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 ||
        strcmp(word, "help") == 0) {
        usage(stdout, prefix, list);
        return CLI_OK;
    }
    for (; list->name != NULL; list++) {
        if (strcmp(word, list->name) == 0) {
            return list->run(argc - 1, argv + 1);
        }
    }
    complain("unknown %s %s; see '%s %s--help'",
             word[0] == '-' ? "option" : "command", word, cli_program, prefix);
    return CLI_USAGE;
}

static int cmd_cluster(int argc, char **argv)
{
    return dispatch(argc, argv, "cluster ", cluster_commands);
}

int main(int argc, char **argv)
{
    int rc;

    if (argc > 0 && argv[0][0] != '\0') {
        cli_program = argv[0];
    }
    if (argc > 1 && strcmp(argv[1], "--version") == 0) {
        printf("flotilla %s\n", FLOTILLA_VERSION);
        return CLI_OK;
    }
    curl_global_init(CURL_GLOBAL_DEFAULT);
    rc = dispatch(argc, argv, "", commands);
    curl_global_cleanup();
    /* A result that could not be written is not a result. */
    if (fflush(stdout) != 0 || ferror(stdout)) {
        complain("cannot write to stdout");
        return rc != CLI_OK ? rc : CLI_REFUSED;
    }
    return rc;
}
