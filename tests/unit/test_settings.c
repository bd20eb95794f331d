/* Settings: precedence, where values come from, and every error line.
 *
 * settings_parse prints to stdout and stderr and reads the environment, so each
 * case runs in a forked child with both redirected to files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "core/error.h"
#include "daemon/settings.h"

/* --- fixture ----------------------------------------------------------------- */

#define OK_FLAGS "--dir /d --id 1 --members 1=a:1001,2=b:1001,3=c:1001 "
#define ARGS_MAX 64

static char dir[] = "/tmp/test_settings.XXXXXX";
static char out[16384], err[4096]; /* what the child printed */
static struct settings got;        /* what it parsed */

static int setup(void **state)
{
    (void)state;
    return mkdtemp(dir) == NULL;
}

static int teardown(void **state)
{
    char command[64];

    (void)state;
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

/* --- helpers ----------------------------------------------------------------- */

static const char *path_of(const char *name)
{
    static char paths[4][64];
    static unsigned turn;
    char *path = paths[turn++ % 4];

    snprintf(path, sizeof paths[0], "%s/%s", dir, name);
    return path;
}

static void redirect(int fd, const char *name)
{
    int to = open(path_of(name), O_CREAT | O_TRUNC | O_WRONLY, 0600);

    dup2(to, fd);
    close(to);
}

static void slurp(const char *name, char *text, size_t size)
{
    FILE *f = fopen(path_of(name), "r");
    size_t n;

    assert_non_null(f);
    n = fread(text, 1, size - 1, f);
    text[n] = '\0';
    fclose(f);
}

/* line is split at spaces; "KEY=value" words before the flags go to the
 * environment of the child. */
static void child(const char *line)
{
    static char copy[8192];
    char *argv[ARGS_MAX] = {(char *)"flotillad"};
    int argc = 1;
    char *word;
    int rc;
    FILE *f;

    snprintf(copy, sizeof copy, "%s", line);
    for (word = strtok(copy, " "); word != NULL; word = strtok(NULL, " ")) {
        if (argc == 1 && strncmp(word, "FLOTILLA_", 9) == 0) {
            putenv(word);
        } else {
            argv[argc++] = word;
        }
    }
    redirect(STDOUT_FILENO, "out");
    redirect(STDERR_FILENO, "err");
    rc = settings_parse(&got, argc, argv);
    f = fopen(path_of("got"), "w");
    fwrite(&got, sizeof got, 1, f);
    fclose(f);
    fflush(NULL);
    _exit(rc & 0xff);
}

/* The exit code of settings_parse, -1 for "go on". */
static int parse(const char *line)
{
    int status;
    FILE *f;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        child(line);
    }
    waitpid(pid, &status, 0);
    assert_true(WIFEXITED(status));
    slurp("out", out, sizeof out);
    slurp("err", err, sizeof err);
    f = fopen(path_of("got"), "r");
    assert_int_equal(fread(&got, sizeof got, 1, f), 1);
    fclose(f);
    return (signed char)WEXITSTATUS(status);
}

static const char *write_file(const char *text)
{
    const char *path = path_of("conf");
    FILE *f = fopen(path, "w");

    fputs(text, f);
    fclose(f);
    return path;
}

/* Exactly one line on stderr that contains what, and exit code 2. */
static void refused(const char *line, const char *what)
{
    int rc = parse(line);

    if (rc != 2 || strstr(err, what) == NULL || err[0] == '\0' ||
        strchr(err, '\n') != err + strlen(err) - 1) {
        print_error("%s\n rc %d, stderr: %s wanted: %s\n", line, rc, err, what);
        fail();
    }
    assert_string_equal(out, "");
}

static void refused_in_file(const char *text, const char *what)
{
    char line[512];

    snprintf(line, sizeof line, OK_FLAGS "--config %s", write_file(text));
    refused(line, what);
}

/* --- tests ------------------------------------------------------------------- */

static void defaults(void **state)
{
    (void)state;
    assert_int_equal(parse(OK_FLAGS), -1);
    assert_string_equal(out, "");
    assert_string_equal(err, "");
    assert_string_equal(got.dir, "/d");
    assert_int_equal(got.id, 1);
    assert_string_equal(got.cluster, "flotilla");
    assert_string_equal(got.listen, "a:1001");
    assert_string_equal(got.http, "a:1002");
    assert_int_equal(got.n_members, 3);
    assert_int_equal(got.members[2].id, 3);
    assert_string_equal(got.members[2].address, "c:1001");
    assert_int_equal(got.heartbeat_ms, 50);
    assert_int_equal(got.election_ms, 500);
    assert_int_equal(got.max_transaction_bytes, 64 << 20);
    assert_int_equal(got.max_transaction_ms, 10000);
    assert_int_equal(got.commit_timeout_ms, 10000);
    assert_int_equal(got.min_free_bytes, 64 << 20);
    assert_int_equal(got.replica_queue_bytes, 32 << 20);
    assert_int_equal(got.snapshot_bytes, 16 << 20);
    assert_int_equal(got.max_databases, 64);
    assert_int_equal(got.max_clients, 512);
    assert_int_equal(got.log_level, LOG_INFO);
    assert_string_equal(settings_self(&got)->address, "a:1001");
}

/* flag > environment > file > default, and each names its source. */
static void precedence(void **state)
{
    char line[512];
    const char *conf =
        write_file("max_clients = 11;\nmax_databases = 12;\nheartbeat = 13;\n"
                   "snapshot_bytes = \"2M\";\n");

    (void)state;
    snprintf(line, sizeof line,
             "FLOTILLA_MAX_DATABASES=22 FLOTILLA_HEARTBEAT=23 " OK_FLAGS
             "--heartbeat 33 --config %s",
             conf);
    assert_int_equal(parse(line), -1);
    assert_int_equal(got.max_clients, 11);
    assert_int_equal(got.max_databases, 22);
    assert_int_equal(got.heartbeat_ms, 33);
    assert_int_equal(got.snapshot_bytes, 2 << 20);
    assert_int_equal(got.election_ms, 500);

    strcat(line, " --print-config");
    assert_int_equal(parse(line), 0);
    assert_non_null(strstr(out, "heartbeat = 33; # --heartbeat\n"));
    assert_non_null(
        strstr(out, "max_databases = 22; # FLOTILLA_MAX_DATABASES\n"));
    assert_non_null(strstr(out, "snapshot_bytes = 2097152; # "));
    assert_non_null(strstr(out, "/conf:4\n"));
    assert_non_null(strstr(out, "election = 500; # default\n"));
    assert_non_null(strstr(
        out, "http = \"a:1002\"; # default: this member's host, one port above"));
}

/* What --print-config prints is a file that gives the same settings. */
static void print_config_round_trip(void **state)
{
    struct settings before;
    char line[512];

    (void)state;
    assert_int_equal(parse("FLOTILLA_MIN_FREE=5G " OK_FLAGS
                           "--log-level debug --cluster x\\y\"z"),
                     -1);
    before = got;
    assert_int_equal(parse("FLOTILLA_MIN_FREE=5G " OK_FLAGS
                           "--log-level debug --cluster x\\y\"z "
                           "--print-config"),
                     0);
    snprintf(line, sizeof line, "--config %s", write_file(out));
    assert_int_equal(parse(line), -1);
    assert_memory_equal(&before, &got, sizeof got);
}

static void everything_from_environment(void **state)
{
    char line[512];

    (void)state;
    assert_int_equal(parse("FLOTILLA_DIR=/e FLOTILLA_ID=2 "
                           "FLOTILLA_MEMBERS=1=a:1,2=[::1]:7001"),
                     -1);
    assert_string_equal(got.listen, "[::1]:7001");
    assert_string_equal(got.http, "[::1]:7002");
    snprintf(line, sizeof line, "FLOTILLA_CONFIG=%s " OK_FLAGS,
             write_file("log_level = \"warn\";\n"));
    assert_int_equal(parse(line), -1);
    assert_int_equal(got.log_level, LOG_WARN);
}

static void units(void **state)
{
    (void)state;
    assert_int_equal(parse(OK_FLAGS "--max-transaction 128K "
                                    "--replica-queue 1GiB --min-free 12345 "
                                    "--commit-timeout 3s --heartbeat 20ms"),
                     -1);
    assert_int_equal(got.max_transaction_bytes, 128 << 10);
    assert_int_equal(got.replica_queue_bytes, 1 << 30);
    assert_int_equal(got.min_free_bytes, 12345);
    assert_int_equal(got.commit_timeout_ms, 3000);
    assert_int_equal(got.heartbeat_ms, 20);
}

static void informative_flags(void **state)
{
    (void)state;
    assert_int_equal(parse("--version"), 0);
    assert_int_equal(strncmp(out, "flotillad ", 10), 0);
    assert_int_equal(parse("--help"), 0);
    assert_non_null(strstr(out, "--max-transaction-ms"));
    assert_non_null(strstr(out, "--print-config"));
    assert_int_equal(parse(OK_FLAGS "--check"), 0);
    assert_string_equal(out, "the settings are valid\n");
}

static void bad_flags(void **state)
{
    (void)state;
    refused(OK_FLAGS "--nonsense 1", "unknown flag --nonsense");
    refused(OK_FLAGS "-x", "unknown flag -x");
    refused(OK_FLAGS "--http", "--http needs a value");
    refused(OK_FLAGS "--check=1", "--check=1 takes no value");
    refused(OK_FLAGS "what", "unexpected argument \"what\"");
    refused("--id 1 --members 1=a:1", "--dir is required");
    refused("--dir /d --members 1=a:1", "--id is required");
    refused("--dir /d --id 1", "--members is required");
}

static void bad_values(void **state)
{
    (void)state;
    refused(OK_FLAGS "--max-clients many", "--max-clients: max-clients must be");
    refused(OK_FLAGS "--max-clients 0", "between 1 and 65535, not 0");
    refused(OK_FLAGS "--max-clients 65536", "between 1 and 65535");
    refused(OK_FLAGS "--max-clients -1", "must be a number, not \"-1\"");
    refused(OK_FLAGS "--max-transaction 5T", "one with K, M or G");
    refused(OK_FLAGS "--max-transaction 99999999999G", "between 65536 and");
    refused(OK_FLAGS "--max-transaction 99999999999999999999", "must be");
    refused(OK_FLAGS "--commit-timeout 5K", "one with ms or s");
    refused(OK_FLAGS "--log-level loud", "error, warn, info or debug");
    refused(OK_FLAGS "--http nohost", "of the form host:port");
    refused(OK_FLAGS "--http a:0", "of the form host:port");
    refused(OK_FLAGS "--http a:65536", "of the form host:port");
    refused(OK_FLAGS "--http ::1:80", "of the form host:port");
    refused(OK_FLAGS "--http [::1:80", "of the form host:port");
    refused(OK_FLAGS "--cluster "
                     "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                     "aaaaaaaaaaaaaaaa",
            "longer than 63 bytes");
    refused("FLOTILLA_CLUSTER= " OK_FLAGS, "FLOTILLA_CLUSTER: cluster must not");
    refused("FLOTILLA_HEARTBEAT=x " OK_FLAGS, "FLOTILLA_HEARTBEAT: heartbeat");
    /* A wrong value is found even if another source overrides it. */
    refused("FLOTILLA_HEARTBEAT=x " OK_FLAGS "--heartbeat 50",
            "FLOTILLA_HEARTBEAT: heartbeat");
}

static void bad_members(void **state)
{
    (void)state;
    refused("--dir /d --id 1 --members ,", "members has an empty entry");
    refused("--dir /d --id 1 --members 1=a:1,", "members has an empty entry");
    refused("--dir /d --id 1 --members 1", "of the form 1=host:port,");
    refused("--dir /d --id 1 --members x=a:1", "not \"x=a:1\"");
    refused("--dir /d --id 1 --members 0=a:1", "not between 1 and 65535");
    refused("--dir /d --id 1 --members 65536=a:1", "not between 1 and 65535");
    refused("--dir /d --id 1 --members 1=a:1,1=b:1", "number 1 occurs twice");
    refused("--dir /d --id 1 --members 1=a:1,2=a:1", "have the same address");
    refused("--dir /d --id 4 --members 1=a:1,2=b:1",
            "does not contain this node, number 4");
    refused("--dir /d --id 1 --members "
            "1=a:1,2=a:2,3=a:3,4=a:4,5=a:5,6=a:6,7=a:7,8=a:8,9=a:9,10=a:10",
            "more than 9 members");
    refused("--dir /d --id 1 --members 1="
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
            "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa:1",
            "longer than 95 bytes");
}

static void across_settings(void **state)
{
    (void)state;
    refused(OK_FLAGS "--heartbeat 200", "at least 4 times heartbeat");
    refused(OK_FLAGS "--http a:1001", "http and listen are both a:1001");
    refused("--dir /d --id 1 --members 1=a:1001,2=a:1002",
            "http (a:1002) is the address of member 2");
    refused("--dir /d --id 1 --members 1=a:65535", "no port above a:65535");
}

static void bad_files(void **state)
{
    (void)state;
    refused(OK_FLAGS "--config /nonexistent/file",
            "/nonexistent/file: cannot read it: No such file");
    refused_in_file("heartbeat = 50;\nnonsense = 1;\n",
                    "/conf:2: unknown setting \"nonsense\"");
    refused_in_file("max-clients = 1;\n",
                    "/conf:1: unknown setting \"max-clients\"");
    refused_in_file("\n\nheartbeat = 5;\n", "/conf:3: heartbeat must be between");
    refused_in_file("heartbeat = true;\n", "/conf:1: heartbeat must be a number");
    refused_in_file("heartbeat = [1];\n", "/conf:1: heartbeat must be a number");
    refused_in_file("heartbeat = = 1;\n", "/conf:1: syntax error");
    refused_in_file("heartbeat = 50;\nheartbeat = 60;\n", "/conf:2: ");
}

static void splitting_addresses(void **state)
{
    char host[ADDRESS_MAX + 1], port[ADDRESS_MAX + 1];

    (void)state;
    assert_int_equal(address_split("[fe80::1]:080", host, port), FLO_OK);
    assert_string_equal(host, "fe80::1");
    assert_string_equal(port, "80");
    assert_int_equal(address_split("", host, port), FLO_INVALID);
    assert_int_equal(address_split(":1", host, port), FLO_INVALID);
    assert_int_equal(address_split("[]:1", host, port), FLO_INVALID);
    assert_int_equal(address_split("]:1", host, port), FLO_INVALID);
    assert_int_equal(address_split("a:", host, port), FLO_INVALID);
    assert_int_equal(address_split("a:1x", host, port), FLO_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults),
        cmocka_unit_test(precedence),
        cmocka_unit_test(print_config_round_trip),
        cmocka_unit_test(everything_from_environment),
        cmocka_unit_test(units),
        cmocka_unit_test(informative_flags),
        cmocka_unit_test(bad_flags),
        cmocka_unit_test(bad_values),
        cmocka_unit_test(bad_members),
        cmocka_unit_test(across_settings),
        cmocka_unit_test(bad_files),
        cmocka_unit_test(splitting_addresses),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
