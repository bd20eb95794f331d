/* Finding, starting and recognising flotillad processes; see process.h. */
#include "cli/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef FLOTILLA_EXTDIR
#define FLOTILLA_EXTDIR "/usr/lib/sqlite3"
#endif

/* ---- Finding files ------------------------------------------------------- */

static bool is_program(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode) &&
           access(path, X_OK) == 0;
}

/* The directory this program is in, malloc'd. */
static char *own_dir(void)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    char *slash;

    if (n <= 0) {
        return must(strdup("."));
    }
    path[n] = '\0';
    slash = strrchr(path, '/');
    *slash = '\0';
    return must(strdup(path));
}

static char *find_in_path(const char *name)
{
    const char *path = getenv("PATH");

    while (path != NULL && path[0] != '\0') {
        size_t n = strcspn(path, ":");
        char *file = format("%.*s/%s", n > 0 ? (int)n : 1, n > 0 ? path : ".",
                            name);

        if (is_program(file)) {
            return file;
        }
        free(file);
        path += n + (path[n] == ':');
    }
    return NULL;
}

static char *absolute(char *path)
{
    char *real = path != NULL ? realpath(path, NULL) : NULL;

    free(path);
    return real;
}

/* The first of these under our own directory that passes the test. */
static char *find_beside(const char *const *names, bool (*test)(const char *))
{
    char *dir = own_dir();
    char *file = NULL;

    for (; *names != NULL && file == NULL; names++) {
        file = format("%s/%s", dir, *names);
        if (!test(file)) {
            free(file);
            file = NULL;
        }
    }
    free(dir);
    return file;
}

char *find_flotillad(void)
{
    static const char *const names[] = {"../daemon/flotillad", "flotillad",
                                        "../sbin/flotillad", NULL};
    const char *given = getenv("FLOTILLAD");
    char *path;

    if (given != NULL && given[0] != '\0') {
        if (!is_program(given)) {
            complain("FLOTILLAD=%s is not a program", given);
            return NULL;
        }
        return absolute(must(strdup(given)));
    }
    path = find_beside(names, is_program);
    if (path == NULL) {
        path = find_in_path("flotillad");
    }
    path = absolute(path);
    if (path == NULL) {
        complain("flotillad not found beside this program or in $PATH; say "
                 "where it is with FLOTILLAD=PATH");
    }
    return path;
}

static bool is_readable(const char *path)
{
    return access(path, R_OK) == 0;
}

char *find_extension(void)
{
    static const char *const names[] = {
        "../ext/flotilla.so", "../lib/sqlite3/flotilla.so",
        "../lib64/sqlite3/flotilla.so", NULL};
    char *path = absolute(find_beside(names, is_readable));

    if (path == NULL) {
        bool installed = is_readable(FLOTILLA_EXTDIR "/flotilla.so");

        return must(strdup(installed ? FLOTILLA_EXTDIR "/flotilla"
                                     : "flotilla"));
    }
    path[strlen(path) - strlen(".so")] = '\0';
    return path;
}

/* ---- Recognising a process ----------------------------------------------- */

/* Read a small file of /proc whole; the number of bytes, 0 when it is gone. */
static size_t read_proc(pid_t pid, const char *name, char *data, size_t n)
{
    char path[64];
    size_t got = 0;
    ssize_t k = 1;
    int fd;

    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) {
        return 0;
    }
    while (k > 0 && got < n - 1) {
        k = read(fd, data + got, n - 1 - got);
        got += k > 0 ? (size_t)k : 0;
    }
    close(fd);
    data[got] = '\0';
    return got;
}

/* An upgrade while it runs adds " (deleted)" to the link. */
static bool runs_flotillad(pid_t pid)
{
    char link[64], exe[PATH_MAX];
    const char *base;
    ssize_t n;

    snprintf(link, sizeof link, "/proc/%d/exe", (int)pid);
    n = readlink(link, exe, sizeof exe - 1);
    if (n <= 0) {
        return false;
    }
    exe[n] = '\0';
    base = strrchr(exe, '/');
    base = base != NULL ? base + 1 : exe;
    return strcmp(base, "flotillad") == 0 ||
           strcmp(base, "flotillad (deleted)") == 0;
}

/* Does the command line name this script, and "--dir" with this directory? */
static void scan_arguments(const char *args, size_t n, const char *script,
                           const char *dir, bool *is_script, bool *has_dir)
{
    const char *last = "";
    unsigned i = 0;

    *is_script = *has_dir = false;
    for (const char *p = args; p < args + n; p += strlen(p) + 1, i++) {
        if (i <= 1 && script != NULL && strcmp(p, script) == 0) {
            *is_script = true;
        }
        if (strcmp(last, "--dir") == 0 && strcmp(p, dir) == 0) {
            *has_dir = true;
        }
        last = p;
    }
}

static bool is_node(pid_t pid, const char *dir, const char *flotillad)
{
    char args[8192];
    size_t n = read_proc(pid, "cmdline", args, sizeof args);
    bool is_script, has_dir;

    scan_arguments(args, n, flotillad, dir, &is_script, &has_dir);
    return has_dir && (is_script || runs_flotillad(pid));
}

static pid_t read_pid_file(const char *path)
{
    FILE *f = fopen(path, "re");
    long pid = 0;

    if (f == NULL) {
        return 0;
    }
    if (fscanf(f, "%ld", &pid) != 1 || pid <= 1 || pid > INT_MAX) {
        pid = 0;
    }
    fclose(f);
    return (pid_t)pid;
}

pid_t node_process(const struct layout *l, unsigned i, const char *flotillad)
{
    char *file = layout_file(l, i, "flotillad.pid");
    char *dir = layout_node_dir(l, i);
    pid_t pid = read_pid_file(file);

    if (pid > 0 && !is_node(pid, dir, flotillad)) {
        pid = 0;
    }
    free(file);
    free(dir);
    return pid;
}

/* ---- Starting one -------------------------------------------------------- */

static int write_pid_file(const struct layout *l, unsigned i, pid_t pid)
{
    char *path = layout_file(l, i, "flotillad.pid");
    char *tmp = layout_file(l, i, "flotillad.pid.new");
    FILE *f = fopen(tmp, "we");
    int rc = -1;

    if (f != NULL) {
        bool written = fprintf(f, "%d\n", (int)pid) > 0;

        if (fclose(f) == 0 && written) {
            rc = rename(tmp, path);
        }
    }
    if (rc != 0) {
        complain("%s: %s", path, strerror(errno));
        unlink(tmp);
    }
    free(path);
    free(tmp);
    return rc;
}

void node_forget(const struct layout *l, unsigned i)
{
    char *path = layout_file(l, i, "flotillad.pid");

    unlink(path);
    free(path);
}

/* In the child: never returns. An error number goes to report, which exec
 * closes when all is well. */
static void become(const char *flotillad, char *const *args, int log,
                   int report)
{
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    int error;

    if (setsid() >= 0 && null >= 0 && dup2(null, 0) >= 0 &&
        dup2(log, 1) >= 0 && dup2(log, 2) >= 0) {
        execv(flotillad, args);
    }
    error = errno;
    if (write(report, &error, sizeof error) < 0) {
        _exit(126);
    }
    _exit(127);
}

static pid_t start(const char *flotillad, char *const *args, int log)
{
    int report[2], error = 0;
    ssize_t n;
    pid_t pid;

    if (pipe2(report, O_CLOEXEC) != 0) {
        return -1;
    }
    fflush(NULL);
    pid = fork();
    if (pid == 0) {
        become(flotillad, args, log, report[1]);
    }
    close(report[1]);
    n = pid > 0 ? read(report[0], &error, sizeof error) : 0;
    close(report[0]);
    if (n == (ssize_t)sizeof error) {
        waitpid(pid, NULL, 0);
        errno = error;
        return -1;
    }
    return pid;
}

/* Addresses are given rather than left to defaults, so that the environment of
 * whoever types the command cannot make two nodes share one. */
static pid_t start_node(const struct layout *l, unsigned i,
                        const char *flotillad, int log)
{
    char *args[] = {format("%s", flotillad),
                    format("--dir"),
                    layout_node_dir(l, i),
                    format("--id"),
                    format("%u", i),
                    format("--members"),
                    layout_members(l),
                    format("--listen"),
                    layout_address(l, i),
                    format("--http"),
                    layout_http(l, i),
                    NULL};
    pid_t pid = start(flotillad, args, log);
    int saved = errno;

    for (char **p = args; *p != NULL; p++) {
        free(*p);
    }
    errno = saved;
    return pid;
}

pid_t node_spawn(const struct layout *l, unsigned i, const char *flotillad)
{
    char *path = layout_file(l, i, "flotillad.log");
    int log = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    pid_t pid = -1;

    if (log < 0) {
        complain("%s: %s", path, strerror(errno));
        free(path);
        return -1;
    }
    pid = start_node(l, i, flotillad, log);
    if (pid < 0) {
        complain("%s: %s", flotillad, strerror(errno));
    } else if (write_pid_file(l, i, pid) != 0) {
        kill(pid, SIGTERM);
        waitpid(pid, NULL, 0);
        pid = -1;
    }
    close(log);
    free(path);
    return pid;
}
