#!/usr/bin/python3
"""The ordinary life of a cluster: what a user does on a good day."""
import os
import signal
import subprocess
import threading

import harness
from harness import BUSY, wait_for


class TestLifecycle(harness.ClusterTest):

    def test_what_any_node_writes_all_nodes_read_with_and_without_extension(self):
        self.client(1).sql("CREATE TABLE t(node INTEGER, r INTEGER DEFAULT (random()))")
        for i in (1, 2, 3):
            self.client(i).sql("INSERT INTO t(node) VALUES (?)", i)
        for i in (1, 2, 3):
            self.wait_rows(i, 3)
            c = self.client(i)
            self.assertEqual(c.sql("SELECT node FROM t ORDER BY 1"), [(1,), (2,), (3,)])
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_writer_reads_its_own_write_at_once_and_counts_on_from_others(self):
        a, b = self.client(1), self.client(2)
        a.sql("CREATE TABLE t(n INTEGER)")
        a.sql("INSERT INTO t VALUES (0)")
        for _ in range(20):
            for c in (a, b):
                c.sql("UPDATE t SET n = n + 1")
                # The write lock brought this node up to date first.
                self.assertEqual(c.one("SELECT n FROM t") % 2, 1 if c is a else 0)
        self.assertEqual(b.one("SELECT n FROM t"), 40)

    def test_flotilla_wait_gives_read_your_writes_across_nodes(self):
        a, b = self.client(1), self.client(3)
        a.sql("CREATE TABLE t(n INTEGER)")
        for i in range(30):
            a.sql("INSERT INTO t VALUES (?)", i)
            txid = a.one("SELECT flotilla_last_commit()").split(":")[0]
            b.sql("SELECT flotilla_wait(?)", int(txid))
            self.assertEqual(b.one("SELECT count(*) FROM t"), i + 1)

    def test_a_linearizable_read_sees_what_was_acknowledged_anywhere(self):
        writer, reader = self.client(1), self.client(2)
        writer.sql("CREATE TABLE t(x)")
        self.assertEqual(reader.one("PRAGMA flotilla_read = linearizable"), "linearizable")
        for i in range(100):
            writer.sql("INSERT INTO t VALUES (?)", i)
            self.assertEqual(reader.one("SELECT count(*) FROM t"), i + 1)

    def test_transactions_savepoints_and_rollback_on_a_follower(self):
        follower = self.cluster.followers()[0]
        c = self.client(follower)
        c.sql("CREATE TABLE t(x)")
        c.sql("BEGIN")
        c.sql("INSERT INTO t VALUES (1)")
        c.sql("ROLLBACK")
        c.sql("BEGIN IMMEDIATE")
        c.sql("INSERT INTO t VALUES (2)")
        c.sql("SAVEPOINT s")
        c.sql("INSERT INTO t VALUES (3)")
        c.sql("ROLLBACK TO s")
        c.sql("COMMIT")
        self.wait_rows(self.cluster.leader(), 1)
        self.cluster.assert_same_bytes(self, self.database)

    def test_nobody_sees_an_open_transaction_and_everybody_sees_a_committed_one(self):
        a, local = self.client(1), self.plain_later(1)
        a.sql("CREATE TABLE t(x)")
        a.sql("BEGIN")
        a.sql("INSERT INTO t VALUES (1)")
        self.assertEqual(local().one("SELECT count(*) FROM t"), 0)
        a.sql("COMMIT")
        self.assertEqual(local().one("SELECT count(*) FROM t"), 1)

    def plain_later(self, node):
        return lambda: self.plain(node)

    def test_vacuum_fts5_and_user_version_replicate(self):
        c = self.client(2)
        c.sql("CREATE VIRTUAL TABLE f USING fts5(body)")
        c.many("INSERT INTO f VALUES (?)", [(f"word{i} common",) for i in range(200)])
        c.sql("DELETE FROM f WHERE rowid > 20")
        c.sql("VACUUM")
        c.sql("PRAGMA user_version = 7")
        self.cluster.wait_converged(self.database)
        for i in (1, 3):
            r = self.plain(i)
            self.assertEqual(r.one("SELECT count(*) FROM f WHERE f MATCH 'common'"), 20)
            self.assertEqual(r.one("PRAGMA user_version"), 7)
        self.cluster.assert_same_bytes(self, self.database)

    def test_several_databases_are_independent(self):
        names = [f"{self.database[:20]}-{i}" for i in range(4)]
        writers = [self.client(i % 3 + 1, database=n) for i, n in enumerate(names)]
        for i, w in enumerate(writers):
            w.sql("CREATE TABLE t(x)")
            w.sql("INSERT INTO t VALUES (?)", i)
        # A transaction held open in one keeps nobody out of another.
        writers[0].sql("BEGIN IMMEDIATE")
        writers[1].sql("INSERT INTO t VALUES (1)")
        writers[0].sql("ROLLBACK")
        for i, n in enumerate(names):
            self.cluster.wait_converged(n)
            for node in (1, 2, 3):
                self.assertEqual(self.plain(node, n).one("SELECT min(x) FROM t"), i)

    def test_attach_joins_two_replicated_databases(self):
        other = self.database[:20] + "-other"
        self.client(1, database=other).sql("CREATE TABLE o(x)")
        c = self.client(1)
        c.sql("CREATE TABLE t(x)")
        self.client(1, database=other).sql("INSERT INTO o VALUES (5)")
        c.sql("ATTACH ? AS other", str(self.cluster[1].db(other)))
        self.assertEqual(c.sql("SELECT x FROM other.o"), [(5,)])

    def test_writers_on_all_nodes_at_once_are_serialised_and_none_is_busy(self):
        self.client(1).sql("CREATE TABLE t(who, n)")
        self.client(1).sql("CREATE TABLE total(n)")
        self.client(1).sql("INSERT INTO total VALUES (0)")
        clients = [(self.client(i % 3 + 1, timeout=20.0), i) for i in range(6)]
        errors = []

        def work(c, who):
            try:
                for n in range(15):
                    c.sql("BEGIN IMMEDIATE", limit=60)
                    c.sql("INSERT INTO t VALUES (?, ?)", who, n)
                    c.sql("UPDATE total SET n = n + 1")
                    c.sql("COMMIT")
            except Exception as e:
                errors.append((who, e))
        threads = [threading.Thread(target=work, args=c) for c in clients]
        for t in threads:
            t.start()
        for t in threads:
            t.join(120 * harness.SLOWNESS)
        self.assertEqual(errors, [])
        self.wait_rows(1, 90, "SELECT n FROM total")
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_reader_keeps_its_snapshot_while_others_write(self):
        w, r = self.client(1), self.client(2)
        w.sql("CREATE TABLE t(x)")
        self.wait_rows(2, 0)
        r.sql("BEGIN")
        self.assertEqual(r.one("SELECT count(*) FROM t"), 0)
        for i in range(50):
            w.sql("INSERT INTO t VALUES (?)", i)
        self.wait_rows(2, 50)
        self.assertEqual(r.one("SELECT count(*) FROM t"), 0)
        r.sql("COMMIT")
        self.assertEqual(r.one("SELECT count(*) FROM t"), 50)

    def test_upgrading_a_stale_snapshot_is_refused_as_sqlite_does(self):
        w, r = self.client(1), self.client(1)
        w.sql("CREATE TABLE t(x)")
        r.sql("BEGIN")
        r.sql("SELECT count(*) FROM t")
        w.sql("INSERT INTO t VALUES (1)")
        self.assert_sql_fails([harness.BUSY_SNAPSHOT], lambda: r.sql("INSERT INTO t VALUES (2)"))
        r.sql("ROLLBACK")
        r.sql("INSERT INTO t VALUES (2)")
        self.assertEqual(r.one("SELECT count(*) FROM t"), 2)

    def test_what_must_not_happen_on_a_replicated_file_is_refused(self):
        c = self.client(1)
        c.sql("CREATE TABLE t(x)")
        for pragma in ("journal_mode = DELETE", "journal_mode = OFF", "locking_mode = EXCLUSIVE"):
            try:
                answer = c.one(f"PRAGMA {pragma}")
            except harness.SqlError as e:
                answer = e.message
            self.assertNotIn(answer, ("delete", "off", "exclusive"), pragma)
        c.sql("INSERT INTO t VALUES (1)")
        self.assertEqual(c.one("PRAGMA journal_mode"), "wal")

    def test_a_plain_file_elsewhere_is_not_touched(self):
        path = self.cluster.base / "ordinary.db"
        c = harness.Client(path)
        self.clients.append(c)
        self.assertEqual(c.one("PRAGMA journal_mode"), "delete")
        c.sql("CREATE TABLE t(x)")
        c.sql("INSERT INTO t VALUES (1)")
        self.assertEqual(sorted(p.name for p in self.cluster.base.glob("ordinary*")),
                         ["ordinary.db"])

    def test_status_tables_and_functions_answer(self):
        c = self.client(1)
        c.sql("CREATE TABLE t(x)")
        self.assertEqual(len(c.sql("SELECT * FROM flotilla_nodes")), 3)
        self.assertEqual(len(c.sql("SELECT * FROM flotilla_status")), 1)
        self.assertTrue(any(self.database in row for row in c.sql("SELECT * FROM flotilla_databases")))
        self.assertTrue(c.sql("SELECT * FROM flotilla_client"))
        self.assertTrue(c.one("SELECT flotilla_leader()"))
        self.assertTrue(c.one("SELECT flotilla_position()"))
        self.assertEqual(c.one("SELECT flotilla_committed(flotilla_last_commit())"), 1)


class TestHttp(harness.ClusterTest):
    """The admin's view; each endpoint has its details in the unit tests."""

    def test_sync_status_is_answered_by_the_leader_and_a_follower_names_it(self):
        self.client(1).sql("CREATE TABLE t(x)")
        self.cluster.wait_converged(self.database)
        self.cluster.wait_healthy()
        leader = self.cluster.leader()
        position = harness.own_position(leader, self.database)

        def told():  # reports come a few times per second
            told = [f["databases"][self.database] for f in self.cluster.sync_status()["followers"]]
            return all((d["txid"], d["checksum"]) == position for d in told)
        wait_for("the followers' positions to be the leader's", told, 2)
        for node in self.cluster.followers():
            status, answer = node.http("/_raft/sync-status")
            self.assertEqual(status, 200)
            self.assertFalse(answer["is_leader"])
            self.assertEqual(answer["leader"]["id"], leader.id)

    def test_every_endpoint_answers_on_every_node(self):
        for node in self.cluster:
            for path in ("/_raft/health", "/_raft/sync-status", "/_raft/resync_stats", "/status",
                         "/livez", "/readyz", "/metrics"):
                status, _ = node.http(path)
                self.assertEqual(status, 200, f"{path} on node {node.id}")

    def test_wrong_requests_get_their_own_status(self):
        leader, follower = self.cluster.leader(), self.cluster.followers()[0]
        self.assertEqual(leader.http("/nothing")[0], 404)
        self.assertEqual(leader.http("/status", "DELETE")[0], 405)
        self.assertEqual(leader.http("/_raft/force-resync", "POST")[0], 400)
        self.assertEqual(leader.http("/_raft/force-resync?target=99", "POST")[0], 404)
        status, answer = follower.http("/_raft/force-resync?target=1", "POST")
        self.assertEqual(status, 409)
        self.assertEqual(answer["error"]["leader"]["id"], leader.id)


class TestOutsiders(harness.ClusterTest):
    """Programs that use the file without the extension."""

    def test_a_plain_writer_is_refused_and_the_replica_unharmed(self):
        self.client(1).sql("CREATE TABLE t(x)")
        self.client(1).sql("INSERT INTO t VALUES (1)")
        for node in self.cluster:
            self.wait_rows(node, 1)
            with harness.Client(node.db(self.database), timeout=0.2, extension=False) as outsider:
                for statement in ("INSERT INTO t VALUES (2)", "BEGIN IMMEDIATE", "VACUUM",
                                  "CREATE TABLE u(x)", "PRAGMA user_version = 9"):
                    e = self.assert_sql_fails([BUSY], lambda s=statement: outsider.sql(s))
                    self.assertEqual(e.message, "database is locked")
                self.assertEqual(outsider.one("SELECT count(*) FROM t"), 1)
        self.client(2).sql("INSERT INTO t VALUES (3)")
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_plain_writer_cannot_take_the_wal_mode_away(self):
        self.client(1).sql("CREATE TABLE t(x)")
        self.wait_rows(2, 0)
        with harness.Client(self.cluster[2].db(self.database), timeout=0.2,
                            extension=False) as outsider:
            try:
                outsider.sql("PRAGMA journal_mode = DELETE")
            except harness.SqlError as e:
                self.assertEqual(e.primary, BUSY)
        self.client(1).sql("INSERT INTO t VALUES (1)")
        self.cluster.assert_same_bytes(self, self.database)

    def test_many_plain_readers_read_while_all_is_written(self):
        w = self.client(1)
        w.sql("CREATE TABLE t(a, b)")
        self.cluster.wait_converged(self.database)
        readers = [self.plain(i % 3 + 1) for i in range(6)]
        for i in range(60):
            w.sql("INSERT INTO t VALUES (?, ?)", i, -i)
            r = readers[i % 6]
            # Never torn: both columns of all rows cancel out.
            self.assertEqual(r.one("SELECT coalesce(sum(a + b), 0) FROM t"), 0)
        self.cluster.assert_same_bytes(self, self.database)

    def test_the_sqlite_shell_backs_up_a_running_replica(self):
        self.client(1).sql("CREATE TABLE t AS SELECT 1 AS x")
        self.wait_rows(3, 1)
        copy = self.cluster.base / "copy.db"
        subprocess.run(["sqlite3", f"file:{self.cluster[3].db(self.database)}?mode=ro",
                        f".backup '{copy}'"], check=True, timeout=30)
        with harness.Client(copy, extension=False) as c:
            self.assertEqual(c.one("SELECT x FROM t"), 1)


class TestRestart(harness.ClusterTest):

    def test_the_cli_stops_and_starts_all_nodes_and_keeps_the_data(self):
        self.client(1).sql("CREATE TABLE t AS SELECT 1 AS x")
        self.cluster.wait_converged(self.database)
        for c in self.clients:
            c.close()
        before = {n.id: n.pid() for n in self.cluster}
        self.assertTrue(all(before.values()))
        self.cluster.stop()
        self.assertEqual(self.cluster.running(), [])
        with self.cluster[2].plain(self.database) as r:  # readable with nobody there
            self.assertEqual(r.one("SELECT x FROM t"), 1)
        done = self.cluster.cli("cluster", "start", "--dir", str(self.cluster.dir))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.cluster.leader()
        self.client(2).sql("INSERT INTO t VALUES (2)")
        self.wait_rows(3, 2)
        self.cluster.assert_same_bytes(self, self.database)

    def test_cluster_start_again_starts_only_the_nodes_that_are_not_running(self):
        before = {n.id: n.pid() for n in self.cluster}
        self.cluster[2].kill(signal.SIGKILL)
        done = self.cluster.cli("cluster", "start", "--dir", str(self.cluster.dir))
        self.assertEqual(done.returncode, 0, done.stderr)
        after = {n.id: n.pid() for n in self.cluster}
        self.assertEqual((before[1], before[3]), (after[1], after[3]))
        self.assertTrue(after[2] and after[2] != before[2])
        self.cluster[2].wait_ready()

    def test_term_leaves_cleanly_and_hands_leadership_over(self):
        self.client(1).sql("CREATE TABLE t(x)")
        leader = self.cluster.leader()
        leader.kill(signal.SIGTERM)
        other = self.cluster.leader()
        self.assertNotEqual(other.id, leader.id)
        self.client(other).sql("INSERT INTO t VALUES (1)")
        leader.start()
        self.wait_rows(leader, 1)

    def test_an_open_client_goes_on_after_its_daemon_was_restarted(self):
        c = self.client(3)
        c.sql("CREATE TABLE t(x)")
        self.cluster[3].kill(signal.SIGKILL)
        self.assertEqual(c.one("SELECT count(*) FROM t"), 0)
        self.cluster[3].start()
        wait_for("the open connection to write again",
                 lambda: c.sql("INSERT INTO t VALUES (1) RETURNING 1"), 10)
        self.wait_rows(1, c.one("SELECT count(*) FROM t"))

    def test_without_daemon_a_write_is_busy_within_its_timeout_and_reads_go_on(self):
        c = self.client(2, timeout=1.0)
        c.sql("CREATE TABLE t AS SELECT 1 AS x")
        self.cluster[2].kill(signal.SIGKILL)
        with harness.Timed() as t:
            self.assert_sql_fails([BUSY], lambda: c.sql("INSERT INTO t VALUES (2)"))
        self.assertLess(t.seconds, 2.5 * harness.SLOWNESS)
        self.assertEqual(c.one("SELECT count(*) FROM t"), 1)
        fresh = self.client(2, timeout=0.3)  # opened while nobody is there
        self.assertEqual(fresh.one("SELECT count(*) FROM t"), 1)
        self.assert_sql_fails([BUSY], lambda: fresh.sql("DELETE FROM t"))

    def test_all_nodes_killed_at_once_come_back_with_everything(self):
        c = self.client(1)
        c.sql("CREATE TABLE t(x)")
        for i in range(50):
            c.sql("INSERT INTO t VALUES (?)", i)
        pids = [n.pid() for n in self.cluster]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            wait_for("the killed node to be gone", lambda p=pid: harness.has_ended(p))
        for node in self.cluster:
            node.start(wait=False)
        self.cluster.leader(20)
        for node in self.cluster:
            self.wait_rows(node, 50)
        self.cluster.assert_same_bytes(self, self.database)


if __name__ == "__main__":
    harness.main()
