/* The fence: one holder, across descriptors and processes, also after a kill. */
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "core/error.h"
#include "core/fence.h"

/* ---- Fixture ------------------------------------------------------------------ */

static char dir[256];
static char path[300];

static int set_up(void **state)
{
    const char *tmp = getenv("TMPDIR");

    (void)state;
    snprintf(dir, sizeof dir, "%s/flotilla-fence-XXXXXX",
             tmp != NULL ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/app.db-fence", dir);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(dir);
}

/* ---- Helpers ------------------------------------------------------------------ */

/* A process that takes the fence, says so, and waits to be killed. */
static pid_t start_holder(void)
{
    int ready[2];
    char c;
    pid_t pid;

    assert_int_equal(pipe(ready), 0);
    pid = fork();
    if (pid == 0) {
        struct fence f;
        if (fence_open(&f, path, 0) != FLO_OK || fence_try_lock(&f) != FLO_OK ||
            write(ready[1], "r", 1) != 1) {
            _exit(1);
        }
        for (;;) {
            pause();
        }
    }
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    close(ready[1]);
    return pid;
}

/* ---- Tests -------------------------------------------------------------------- */

/* A fence that is not there is not made unless asked for. */
static void test_absent(void **state)
{
    struct fence f;

    (void)state;
    assert_int_equal(fence_open(&f, path, 0), FLO_NOTFOUND);
    assert_int_equal(access(path, F_OK), -1);
}

/* Two descriptors of one process exclude each other, and closing a third one
 * does not free the lock. */
static void test_one_process(void **state)
{
    struct fence a;
    struct fence b;
    struct fence c;

    (void)state;
    assert_int_equal(fence_open(&a, path, 1), FLO_OK);
    assert_int_equal(fence_open(&b, path, 0), FLO_OK);
    assert_int_equal(fence_try_lock(&a), FLO_OK);
    assert_int_equal(fence_try_lock(&a), FLO_OK);
    assert_int_equal(fence_try_lock(&b), FLO_BUSY);
    assert_int_equal(fence_open(&c, path, 0), FLO_OK);
    fence_close(&c);
    assert_int_equal(fence_try_lock(&b), FLO_BUSY);
    fence_unlock(&a);
    assert_int_equal(fence_try_lock(&b), FLO_OK);
    fence_close(&b);
    assert_int_equal(fence_try_lock(&a), FLO_OK);
    fence_close(&a);
}

/* The lock ends with the process that has it, not before. */
static void test_kill(void **state)
{
    struct fence f;
    pid_t pid;

    (void)state;
    assert_int_equal(fence_open(&f, path, 1), FLO_OK);
    pid = start_holder();
    assert_int_equal(fence_try_lock(&f), FLO_BUSY);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    assert_int_equal(fence_try_lock(&f), FLO_OK);
    fence_close(&f);
}

/* The number is the last one set, for whoever reads it; 0 at first. */
static void test_number(void **state)
{
    struct fence a;
    struct fence b;
    uint64_t grant = 1;

    (void)state;
    assert_int_equal(fence_open(&a, path, 1), FLO_OK);
    assert_int_equal(fence_open(&b, path, 1), FLO_OK);
    assert_int_equal(fence_get(&b, &grant), FLO_OK);
    assert_int_equal(grant, 0);
    assert_int_equal(fence_set(&a, 0x0123456789abcdef), FLO_OK);
    assert_int_equal(fence_get(&b, &grant), FLO_OK);
    assert_true(grant == 0x0123456789abcdef);
    fence_close(&a);
    fence_close(&b);
}

/* A damaged fence is refused by clients, and made anew by the daemon unless
 * somebody still holds its lock. */
static void test_damaged_fence(void **state)
{
    struct fence holder, f;
    uint64_t grant = 1;
    FILE *fp;

    (void)state;
    assert_int_equal(fence_open(&holder, path, 1), FLO_OK);
    assert_int_equal(fence_try_lock(&holder), FLO_OK);
    fp = fopen(path, "w");
    fputs("somebody's sixteen+ bytes", fp);
    fclose(fp);
    assert_int_equal(fence_open(&f, path, 0), FLO_CORRUPT);
    assert_int_equal(fence_open(&f, path, 1), FLO_CORRUPT);
    fence_close(&holder);
    assert_int_equal(fence_open(&f, path, 0), FLO_CORRUPT);
    assert_int_equal(fence_open(&f, path, 1), FLO_OK);
    assert_int_equal(fence_get(&f, &grant), FLO_OK);
    assert_true(grant == 0);
    fence_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_absent, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_one_process, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_kill, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_number, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_damaged_fence, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
