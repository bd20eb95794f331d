#!/usr/bin/python3
"""Disk full: writes fail with SQLITE_FULL, reads go on, nothing acknowledged is
lost, and service returns by itself when there is room.

The nodes live in a tmpfs of their own, so this needs the right to mount; whoever
has not got it gets it in a user namespace."""
import os
import pathlib
import subprocess
import sys
import unittest

import harness
from harness import BUSY, FULL, UNKNOWN, wait_for

MB = 1 << 20
MIN_FREE = 16 * MB


class FullDisk(harness.ClusterTest):
    env = {"FLOTILLA_MIN_FREE": str(MIN_FREE)}
    size_mb = 400

    @classmethod
    def setUpClass(cls):
        cls.mount = harness.make_directory()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={cls.size_mb}m", "flotilla-test",
                               cls.mount], capture_output=True, text=True)
        if done.returncode != 0:
            raise unittest.SkipTest(f"cannot mount a tmpfs here: {done.stderr.strip()}")
        try:
            cls.cluster = harness.Cluster(cls.nodes, cls.env, directory=cls.mount)
        except BaseException:
            cls.unmount()
            raise

    @classmethod
    def tearDownClass(cls):
        try:
            super().tearDownClass()
        finally:
            cls.unmount()

    @classmethod
    def unmount(cls):
        harness.end_daemons(cls.mount)
        subprocess.run(["umount", "-l", cls.mount], check=True)

    def tearDown(self):
        super().tearDown()
        self.filler().unlink(missing_ok=True)

    def filler(self):
        return pathlib.Path(self.mount) / "filler"

    def leave_free(self, n):
        """Fill the disk until about n bytes are left."""
        s = os.statvfs(self.mount)
        with open(self.filler(), "ab") as f:
            left = s.f_bavail * s.f_frsize - n
            while left > 0:
                try:
                    left -= os.write(f.fileno(), b"\0" * min(left, MB))
                except OSError:
                    return


class TestDiskFull(FullDisk):

    def test_writes_are_refused_before_it_is_full_and_come_back_with_room(self):
        self.check_refusal_and_return(MIN_FREE // 2)

    def test_the_same_when_not_a_byte_is_left(self):
        self.check_refusal_and_return(0)

    def check_refusal_and_return(self, free):
        clients = [self.client(i, timeout=2.0) for i in (1, 2, 3)]
        clients[0].sql("CREATE TABLE t(n)")
        for i in range(30):
            clients[i % 3].sql("INSERT INTO t VALUES (?)", i)
        before = {n.id: n.pid() for n in self.cluster}
        self.leave_free(free)
        acknowledged = 30
        def refused(c):  # each node looks at its free space once a second
            nonlocal acknowledged
            try:
                c.sql("INSERT INTO t VALUES (100)")
                acknowledged += 1
            except harness.SqlError as e:
                return e if e.code == FULL else None
            return None
        for c in clients:
            e = wait_for("SQLITE_FULL", lambda c=c: refused(c), 10)
            self.assertIn("full", e.message)
        for c in clients:
            wait_for("all that was acknowledged, and nothing else",
                     lambda c=c: c.one("SELECT count(*) FROM t") == acknowledged)
        self.filler().unlink()
        for i, c in enumerate(clients):
            wait_for("writes to be taken again",
                     lambda c=c, i=i: c.sql("INSERT INTO t VALUES (?) RETURNING 1", 300 + i), 15)
        self.assertEqual({n.id: n.pid() for n in self.cluster}, before, "a daemon ended")
        self.wait_rows(2, acknowledged + 3)
        self.cluster.assert_same_bytes(self, self.database)

    def test_running_full_under_load_loses_nothing(self):
        c = self.client(1, timeout=2.0)
        c.sql("CREATE TABLE t(n INTEGER PRIMARY KEY, b)")
        self.leave_free(MIN_FREE + 40 * MB)
        acknowledged, unknown, full = set(), set(), 0
        for i in range(400):
            try:
                c.sql("INSERT INTO t VALUES (?, randomblob(500000))", i, limit=30)
                acknowledged.add(i)
            except harness.SqlError as e:
                self.assertIn(e.code, (FULL, BUSY, UNKNOWN), str(e))
                full += e.code == FULL
                unknown |= {i} if e.code == UNKNOWN else set()
            if full >= 10:
                break
        self.assertGreater(full, 0, "the disk never became full")
        self.filler().unlink()
        wait_for("writes to be taken again",
                 lambda: c.sql("INSERT INTO t VALUES (1000, 1) RETURNING 1"), 20)
        for node in self.cluster:
            self.wait_rows(node, 1, "SELECT count(*) FROM t WHERE n = 1000")
            found = {n for n, in self.plain(node).sql("SELECT n FROM t WHERE n < 1000")}
            self.assertEqual(acknowledged - found, set(), f"lost on node {node.id}")
            self.assertEqual(found - acknowledged - unknown, set(), f"refused, but on node {node.id}")
        self.cluster.assert_same_bytes(self, self.database)


def have_mount_right():
    return subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode == 0


if __name__ == "__main__":
    if not have_mount_right() and "TEST_IN_NAMESPACE" not in os.environ:
        os.environ["TEST_IN_NAMESPACE"] = "1"
        trial = subprocess.run(["unshare", "-rm", "true"], capture_output=True)
        if trial.returncode == 0:
            os.execvp("unshare", ["unshare", "-rm", sys.executable, *sys.argv])
    harness.main()
