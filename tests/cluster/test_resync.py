#!/usr/bin/python3
"""A replica that is not what it should be is found and repaired, at the cost of
the difference; what is wrong never spreads."""
import shutil
import signal
import sqlite3

import harness
from harness import wait_for

ROWS = 4000  # about 2 MB in pages of 4 KiB


class ResyncTest(harness.ClusterTest):

    def fill(self, rows=ROWS):
        c = self.client(1)
        c.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        c.sql("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
              "INSERT INTO t SELECT i, randomblob(400) FROM n", rows)
        self.cluster.wait_converged(self.database)
        return c

    def stats(self, node):
        status, document = node.http("/_raft/resync_stats")
        assert status == 200, document
        return document

    def resync_of(self, node, reason_not=""):
        """The newest finished resync of this database that the node tells."""
        def find():
            for r in self.stats(node)["last"]:
                if r["database"] == self.database and r["result"] == "finished":
                    return r
            return None
        return wait_for("a finished resync", find, 20)


class TestForeignWrites(ResyncTest):
    """Made with plain SQLite while the daemon was down."""

    def damage_and_check(self, change, resync=True):
        """change(path) while node 3 is down; its effect must be gone after."""
        self.fill()
        node = self.cluster[3]
        node.kill()
        change(node.db(self.database))
        node.start(wait=False)
        if resync:
            self.resync_of(node)
        self.cluster.wait_converged(self.database)
        self.cluster.assert_same_bytes(self, self.database)
        for n in self.cluster:
            self.assertEqual(self.plain(n).one("SELECT count(*) FROM t WHERE v = 'foreign'"), 0)
        self.client(3).sql("INSERT INTO t(v) VALUES ('after')")
        self.cluster.assert_same_bytes(self, self.database)

    def foreign(self, path, *statements):
        # WAL mode on the file: closing this last connection checkpoints it.
        with harness.Client(path, extension=False) as c:
            for s in statements:
                c.sql(s)

    def test_an_insert(self):
        self.damage_and_check(lambda p: self.foreign(p, "INSERT INTO t(v) VALUES ('foreign')"))

    def test_an_insert_whose_writer_was_killed(self):
        def change(path):
            c = harness.Client(path, extension=False)
            c.sql("INSERT INTO t(v) VALUES ('foreign')")
            c.kill()
            c.close()
        self.damage_and_check(change)

    def test_vacuum_after_delete(self):
        self.damage_and_check(lambda p: self.foreign(p, "DELETE FROM t WHERE id > 100", "VACUUM"))

    def test_journal_mode_delete(self):
        self.damage_and_check(lambda p: self.foreign(
            p, "INSERT INTO t(v) VALUES ('foreign')", "PRAGMA wal_checkpoint(TRUNCATE)",
            "PRAGMA journal_mode = DELETE"))

    def test_another_database_in_its_place(self):
        def change(path):
            for p in path.parent.glob(path.name + "*"):
                if not p.name.endswith(("-pos", "-fence")):
                    p.unlink()
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA page_size = 1024")
                db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
                db.execute("INSERT INTO t(v) VALUES ('foreign')")
            db.close()
        self.damage_and_check(change)

    def test_the_file_truncated_or_garbage(self):
        def change(path):
            path.write_bytes(b"not a database" * 1000)
        # The WAL still has all pages, so there may be nothing to repair.
        self.damage_and_check(change, resync=False)

    def test_the_files_deleted(self):
        def change(path):
            for p in path.parent.glob(path.name + "*"):
                p.unlink()
        # Raft's log still has all transactions.
        self.damage_and_check(change, resync=False)


class TestCost(ResyncTest):

    def force(self, node):
        def ordered():  # 409 until the leader has heard of the end of the last one
            status, answer = self.cluster.leader().http(
                f"/_raft/force-resync?target=127.0.0.1:{node.port}", "POST")
            self.assertIn(status, (202, 409), answer)
            return status == 202
        wait_for("the resync to be ordered", ordered, 3)

    def test_a_forced_resync_of_an_equal_replica_compares_all_and_sends_nothing(self):
        self.fill()
        target = self.cluster.followers()[0]
        before = self.stats(target)
        self.force(target)
        wait_for("the resync to end", lambda: self.stats(target)["finished"] > before["finished"])
        r = self.resync_of(target)
        pages = self.plain(target).one("PRAGMA page_count")
        self.assertEqual(r["reason"], "forced")
        self.assertEqual((r["pages_compared"], r["pages_sent"]), (pages, 0))
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_resync_sends_about_the_pages_that_differ(self):
        self.fill()
        node = self.cluster[3]
        pages = self.plain(node).one("PRAGMA page_count")
        node.kill()
        with harness.Client(node.db(self.database), extension=False) as c:
            c.sql("UPDATE t SET v = randomblob(400) WHERE id BETWEEN 1000 AND 1030")
        node.start(wait=False)
        r = self.resync_of(node)
        self.assertGreater(r["pages_sent"], 0)
        self.assertLess(r["pages_sent"], 12)  # 31 rows of 400 bytes, and page 1
        self.assertLess(r["bytes_sent"], 12 * 4400)
        self.assertGreaterEqual(r["pages_compared"], pages - 1)
        self.cluster.assert_same_bytes(self, self.database)

    def test_readers_see_the_old_state_or_the_new_one_and_never_a_mixture(self):
        """While replicas are resynced over and over."""
        w = self.client(self.cluster.leader(), timeout=20.0)
        w.sql("CREATE TABLE t(a, b)")
        w.sql("WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 500) "
              "INSERT INTO t SELECT i, -i FROM n")
        target = self.cluster.followers()[0]
        self.wait_rows(target, 500)
        reader = self.plain(target)
        for i in range(5):
            before = self.stats(target)["finished"]
            self.force(target)
            w.sql("UPDATE t SET a = a + ?, b = b - ?", i, i)
            wait_for("the resync to end", lambda n=before: (
                reader.one("SELECT sum(a + b) FROM t") == 0 and self.stats(target)["finished"] > n))
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_forced_resync_of_the_leader_or_of_nobody_is_refused(self):
        leader = self.cluster.leader()
        status, answer = leader.http(f"/_raft/force-resync?target={leader.id}", "POST")
        self.assertIn(status, (400, 409), answer)
        self.assertEqual(leader.http("/_raft/force-resync?target=127.0.0.1:1", "POST")[0], 404)


class TestCompaction(ResyncTest):
    env = {"FLOTILLA_SNAPSHOT_BYTES": str(1 << 20)}  # as little as the settings allow

    def write_until_compacted(self, client, nodes):
        """Write until each of the nodes has compacted its log twice more."""
        def snapshots():
            return {n.id: n.http("/status")[1]["counters"]["snapshots"] for n in nodes}
        before = snapshots()
        def enough():
            client.sql("UPDATE t SET v = randomblob(400) WHERE id % 7 = abs(random() % 7)")
            now = snapshots()
            return all(now[i] >= before[i] + 2 for i in now)
        wait_for("logs to be compacted", enough, 60)

    def test_a_replica_deleted_while_its_node_was_down_comes_back(self):
        c = self.fill()
        self.write_until_compacted(c, list(self.cluster))
        node = self.cluster[3]
        node.kill(signal.SIGTERM)
        for p in node.dir.glob(f"{self.database}.db*"):
            p.unlink()
        c.sql("INSERT INTO t(v) VALUES ('meanwhile')")
        node.start(wait=False)
        self.resync_of(node)
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_node_that_was_away_while_the_log_was_compacted_catches_up(self):
        c = self.fill()
        node = next(n for n in self.cluster.followers() if n.id != 1)
        node.kill()
        self.write_until_compacted(c, self.cluster.running())
        node.start(wait=False)
        self.cluster.wait_converged(self.database, 30)
        self.cluster.assert_same_bytes(self, self.database)
        self.client(node).sql("INSERT INTO t(v) VALUES ('back')")
        self.cluster.assert_same_bytes(self, self.database)

    def test_all_nodes_restarted_after_compaction_have_everything(self):
        c = self.fill()
        self.write_until_compacted(c, list(self.cluster))
        c.sql("INSERT INTO t(id, v) VALUES (1000000, 'last')")
        for node in self.cluster:
            node.kill()
        for node in self.cluster:
            node.start(wait=False)
        self.cluster.leader(20)
        for node in self.cluster:
            self.wait_rows(node, 1, "SELECT count(*) FROM t WHERE v = 'last'")
        self.cluster.assert_same_bytes(self, self.database)


class TestWipedNode(harness.ClusterTest):

    def test_a_voter_that_comes_back_with_an_empty_directory_is_refused(self):
        """It has forgotten what it acknowledged."""
        c = self.client(1)
        c.sql("CREATE TABLE t(x)")
        self.cluster.wait_converged(self.database)
        node = self.cluster[3]
        node.kill()
        logs = [p.name for p in node.log_files()]
        for p in node.dir.iterdir():
            if p.name not in logs:
                shutil.rmtree(p) if p.is_dir() else p.unlink()
        node.start(wait=False)
        wait_for("somebody to say that node 3 is not the one that was here", lambda: "identity" in
                 (self.cluster[1].log() + self.cluster[2].log() + node.log()))
        c.sql("INSERT INTO t VALUES (1)")
        try:
            self.assertNotEqual(node.http("/readyz")[0], 200)
        except OSError:
            pass  # it ended, which is a refusal too
        # It does not count: with node 2 gone as well there is no majority.
        self.cluster[2].kill()
        late = self.client(1, timeout=1.0)
        e = self.assert_sql_fails([harness.BUSY, harness.UNKNOWN],
                                  lambda: late.sql("INSERT INTO t VALUES (2)"))
        self.assertTrue(e)


if __name__ == "__main__":
    harness.main()
