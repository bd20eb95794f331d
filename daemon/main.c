/* flotillad: hosts one node. Exit codes: 0 stopped, 2 usage or configuration
 * or something is in use; see doc/flotillad.8. */
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <uv.h>

#include "daemon/log.h"
#include "daemon/node.h"
#include "daemon/settings.h"

/* Tell systemd, if it asked (sd_notify(3)'s protocol). */
static void notify_ready(void)
{
    const char *path = getenv("NOTIFY_SOCKET");
    static const char text[] = "READY=1\n";
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t n = path != NULL ? strlen(path) : 0;
    int fd;

    if (n == 0 || n >= sizeof addr.sun_path) {
        return;
    }
    memcpy(addr.sun_path, path, n);
    if (path[0] == '@') {
        addr.sun_path[0] = '\0'; /* an abstract name */
    }
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) {
        return;
    }
    if (sendto(fd, text, sizeof text - 1, MSG_NOSIGNAL,
               (struct sockaddr *)&addr,
               (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n)) < 0) {
        log_warn("notify_failed", "socket=%s", log_quote(path));
    }
    close(fd);
}

/* Records of a megabyte come and go. glibc would raise its threshold for
 * mapping such blocks with the first one freed, put the next ones on the heap,
 * and keep what they leave there: 110 to 130 MB instead of 75 with a database
 * of 1 GB (bench/run --big). A fixed threshold gives them back at once. */
static void bound_heap(void)
{
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
    mallopt(M_TRIM_THRESHOLD, 1 << 20);
#endif
}

int main(int argc, char **argv)
{
    static struct node node;
    static struct settings settings;
    uv_loop_t loop;
    int code = settings_parse(&settings, argc, argv);

    if (code >= 0) {
        return code;
    }
    bound_heap();
    log_init(settings.id, settings.log_level);
    uv_loop_init(&loop);
    code = node_start(&node, &loop, &settings);
    if (code != 0) {
        fprintf(stderr, "flotillad: %s\n", node.errmsg);
        _exit(code); /* nothing was promised to anybody yet */
    }
    log_info("started", "dir=%s members=%u listen=%s http=%s",
             log_quote(settings.dir), settings.n_members,
             settings.listen[0] != '\0' ? settings.listen
                                        : settings_self(&settings)->address,
             settings.http);
    notify_ready();
    uv_run(&loop, UV_RUN_DEFAULT);
    uv_loop_close(&loop);
    return 0;
}
