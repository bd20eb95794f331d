#!/usr/bin/python3
"""Leaders die, majorities vanish; what was acknowledged stays."""
import signal
import threading

import harness
from harness import BUSY, UNKNOWN, wait_for


class TestLeaderDies(harness.ClusterTest):

    def test_writes_go_on_within_seconds_and_nothing_acknowledged_is_lost(self):
        leader, follower = self.cluster.leader(), self.cluster.followers()[0]
        c = self.client(follower, timeout=10.0)
        c.sql("CREATE TABLE t(n INTEGER PRIMARY KEY)")
        for i in range(30):
            c.sql("INSERT INTO t VALUES (?)", i)
        leader.kill(signal.SIGKILL)
        with harness.Timed() as t:
            wait_for("the first write after the leader's death",
                     lambda: c.sql("INSERT INTO t VALUES (100) RETURNING 1"))
        self.assertLess(t.seconds, 8 * harness.SLOWNESS)
        self.assertEqual(c.one("SELECT count(*) FROM t"), 31)
        leader.start()
        self.wait_rows(leader, 31)
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_commit_that_meets_a_leaders_death_has_one_of_three_outcomes(self):
        """Committed, certainly not, or unknown; and unknown can be asked for."""
        for node in list(self.cluster):
            c = self.client(node, timeout=10.0)
            c.sql("CREATE TABLE IF NOT EXISTS t(node, n, PRIMARY KEY (node, n))")
        acked, refused, unknown = set(), set(), {}
        for round_number in range(3):
            self.write_through_a_kill(round_number, acked, refused, unknown)
        print(f"{len(acked)} committed, {len(refused)} refused, {len(unknown)} unknown")
        for row, (asker, token) in unknown.items():
            answer = self.resolve(asker, token)
            if answer is not None:
                (acked if answer else refused).add(row)
        self.cluster.wait_converged(self.database)
        for node in self.cluster:
            found = set(self.plain(node).sql("SELECT node, n FROM t"))
            self.assertEqual(acked - found, set(), f"lost on node {node.id}")
            self.assertEqual(refused & found, set(), f"refused, but on node {node.id}")
        self.cluster.assert_same_bytes(self, self.database)

    def write_through_a_kill(self, round_number, acked, refused, unknown):
        leader = self.cluster.leader()
        stop = threading.Event()

        def work(node):
            c = node.client(self.database, timeout=10.0)
            self.clients.append(c)
            n = 0
            while not stop.is_set():
                n += 1
                row = (node.id, round_number * 100000 + n)
                try:
                    c.sql("INSERT INTO t VALUES (?, ?)", *row)
                    acked.add(row)
                except harness.SqlError as e:
                    if e.code == UNKNOWN:
                        unknown[row] = (node, c.one("SELECT flotilla_last_commit()"))
                    else:
                        refused.add(row)
        threads = [threading.Thread(target=work, args=(n,)) for n in self.cluster]
        for t in threads:
            t.start()
        wait_for("some commits", lambda: len(acked) >= 20 * (round_number + 1), 20)
        before = len(acked)
        leader.kill(signal.SIGKILL)
        wait_for("some commits under the next leader", lambda: len(acked) >= before + 20, 20)
        stop.set()
        for t in threads:
            t.join(30 * harness.SLOWNESS)
        leader.start()

    def resolve(self, node, token):
        """1, 0, or None if nobody can tell any more."""
        with node.client(self.database) as c:
            for _ in range(100):
                answer = c.one("SELECT flotilla_committed(?)", token)
                if answer is not None:
                    return answer
        return None


class TestNoMajority(harness.ClusterTest):

    def test_a_write_waits_its_timeout_and_reads_go_on(self):
        survivor = self.cluster[1]
        c = self.client(survivor, timeout=1.0)
        c.sql("CREATE TABLE t AS SELECT 1 AS x")
        c.sql("INSERT INTO t VALUES (2)")
        self.cluster[2].kill(signal.SIGKILL)
        self.cluster[3].kill(signal.SIGKILL)
        codes = []
        for _ in range(3):
            with harness.Timed() as t:
                e = self.assert_sql_fails([BUSY, UNKNOWN], lambda: c.sql("INSERT INTO t VALUES (3)"))
            codes.append(e.code)
            self.assertEqual(self.plain(survivor).one("SELECT count(*) FROM t"), 2)
            if e.code == BUSY:
                self.assertGreater(t.seconds, 0.5)
                self.assertLess(t.seconds, 2.5 * harness.SLOWNESS)
            self.assertEqual(c.one("SELECT count(*) FROM t"), 2)
        # Only a proposal that was already under way may be unknown.
        self.assertEqual(codes[1:], [BUSY, BUSY])
        self.assertEqual(survivor.http("/readyz")[0], 503)
        self.assertEqual(survivor.http("/livez")[0], 200)
        self.cluster[2].start()
        self.cluster.leader(20)
        c.sql("INSERT INTO t VALUES (4)")
        self.cluster[3].start()
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_stopped_majority_is_the_same_and_service_returns(self):
        others = [self.cluster[2], self.cluster[3]]
        c = self.client(1, timeout=1.0)
        c.sql("CREATE TABLE t(x)")
        for node in others:
            node.kill(signal.SIGSTOP)
        wait_for("node 1 to see that it has no majority",
                 lambda: self.cluster[1].http("/readyz")[0] == 503)
        self.assert_sql_fails([BUSY], lambda: c.sql("INSERT INTO t VALUES (1)"))
        self.assertEqual(c.one("SELECT count(*) FROM t"), 0)
        for node in others:
            node.kill(signal.SIGCONT)
        self.cluster.leader(20)
        wait_for("writes again", lambda: c.sql("INSERT INTO t VALUES (2) RETURNING 1"), 20)
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_commit_is_neither_acknowledged_nor_seen_before_a_majority_has_it(self):
        leader = self.cluster.leader()
        others = self.cluster.followers()
        c = self.client(leader)
        c.sql("CREATE TABLE t(x)")
        self.cluster.wait_converged(self.database)
        c.sql("BEGIN IMMEDIATE")
        c.sql("INSERT INTO t VALUES (1)")
        for node in others:
            node.kill(signal.SIGSTOP)
        c.send("sql", "main", "COMMIT", ())
        # Not a wait for an event: the time in which it must not come.
        self.assertFalse(c.has_answer(0.4), "COMMIT was answered without a majority")
        self.assertEqual(self.plain(leader).one("SELECT count(*) FROM t"), 0)
        for node in others:
            node.kill(signal.SIGCONT)
        try:
            c.receive(30)
            rows = 1
        except harness.SqlError as e:
            self.assertIn(e.code, [BUSY, UNKNOWN])
            rows = {1: 1, 0: 0}[c.one("SELECT flotilla_committed(flotilla_last_commit())")]
        self.cluster.assert_same_bytes(self, self.database)
        self.assertEqual(self.plain(others[0]).one("SELECT count(*) FROM t"), rows)

    def test_a_hung_follower_does_not_hold_the_others_up(self):
        """And catches up when it wakes."""
        hung = self.cluster.followers()[0]
        c = self.client(self.cluster.leader())
        c.sql("CREATE TABLE t(x)")
        hung.kill(signal.SIGSTOP)
        with harness.Timed() as t:
            for i in range(50):
                c.sql("INSERT INTO t VALUES (randomblob(2000))")
        self.assertLess(t.seconds, 10 * harness.SLOWNESS)
        hung.kill(signal.SIGCONT)
        self.wait_rows(hung, 50, seconds=20)
        self.cluster.assert_same_bytes(self, self.database)


if __name__ == "__main__":
    harness.main()
