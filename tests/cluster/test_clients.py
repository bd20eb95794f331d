#!/usr/bin/python3
"""Clients that die, hang or sit in a transaction harm nobody else."""
import random
import signal
import subprocess

import harness
from harness import BUSY, BUSY_SNAPSHOT

ROUNDS = 25


class TestDyingClients(harness.ClusterTest):
    env = {"FLOTILLA_MAX_TRANSACTION_MS": "1500"}

    def test_after_a_client_was_killed_in_a_transaction_the_next_writer_proceeds(self):
        """At any point between BEGIN and the end of COMMIT: within a second."""
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")
        rng = random.Random(seed)
        probe = [self.client(i, timeout=5.0) for i in (1, 2, 3)]
        probe[0].sql("CREATE TABLE t(who, n, b)")
        survived = 0
        for i in range(ROUNDS):
            victim = self.cluster[i % 3 + 1].client(self.database)
            victim.sql("PRAGMA cache_size = 5")  # most pages are spilled early
            statements = ["BEGIN IMMEDIATE",
                          *[f"INSERT INTO t VALUES ('victim', {i}, randomblob(3000))"] * 10,
                          "COMMIT"]
            # About as long as the whole takes, so that kills fall everywhere.
            victim.send("die_during", "main", statements,
                        rng.uniform(0, 0.012 * harness.SLOWNESS ** 0.5))
            try:
                survived += victim.receive() == "survived"
            except harness.ClientDied:
                pass
            victim.close()
            with harness.Timed() as t:
                probe[(i + 1) % 3].sql("INSERT INTO t VALUES ('probe', ?, NULL)", i)
            self.assertLess(t.seconds, 1.0 * harness.SLOWNESS, f"round {i}")
        print(f"{ROUNDS - survived} of {ROUNDS} clients died in their transaction")
        self.assertGreater(ROUNDS - survived, 0, "no fault was injected")
        # All of a transaction or nothing.
        self.assertEqual(probe[0].sql("SELECT n, count(*) FROM t WHERE who = 'victim' "
                                      "GROUP BY n HAVING count(*) <> 10"), [])
        self.wait_rows(1, ROUNDS, "SELECT count(*) FROM t WHERE who = 'probe'")
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_client_killed_while_it_waits_for_the_lock_does_not_get_it(self):
        holder, victim, probe = self.client(1), self.client(2), self.client(3)
        holder.sql("CREATE TABLE t(x)")
        holder.sql("BEGIN IMMEDIATE")
        victim.send("sql", "main", "INSERT INTO t VALUES ('victim')", ())
        self.assertTrue(victim.waiting(0.2))
        victim.kill()
        holder.sql("COMMIT")
        with harness.Timed() as t:
            probe.sql("INSERT INTO t VALUES ('probe')")
        self.assertLess(t.seconds, 1.0 * harness.SLOWNESS)
        self.assertEqual(probe.sql("SELECT x FROM t"), [("probe",)])

    def test_a_client_that_sits_in_a_transaction_loses_the_lock_when_others_wait(self):
        holder, other = self.client(1), self.client(2, timeout=10.0)
        holder.sql("CREATE TABLE t(x)")
        holder.sql("BEGIN IMMEDIATE")
        holder.sql("INSERT INTO t VALUES ('holder')")
        other.sql("INSERT INTO t VALUES ('other')")
        # SQLite has rolled the transaction back by then.
        self.assert_sql_fails([BUSY_SNAPSHOT], lambda: holder.sql("COMMIT"))
        holder.sql("INSERT INTO t VALUES ('holder again')")
        self.assertEqual(holder.sql("SELECT x FROM t ORDER BY rowid"),
                         [("other",), ("holder again",)])
        self.cluster.assert_same_bytes(self, self.database)

    def test_a_stopped_client_cannot_write_over_what_came_after_it(self):
        for node in (self.cluster.leader(), self.cluster.followers()[0]):
            holder = self.client(node)
            others = [self.client(n, timeout=15.0) for n in self.cluster if n is not node]
            holder.sql("CREATE TABLE IF NOT EXISTS t(x)")
            self.cluster.wait_converged(self.database)
            holder.sql("BEGIN IMMEDIATE")
            holder.sql("INSERT INTO t VALUES ('stopped')")
            holder.kill(signal.SIGSTOP)
            for other in others:
                other.sql("INSERT INTO t VALUES ('other')", limit=30)
            holder.kill(signal.SIGCONT)
            self.assert_sql_fails([BUSY_SNAPSHOT], lambda h=holder: h.sql("COMMIT"))
            holder.sql("INSERT INTO t VALUES ('awake')")
        self.assertEqual(holder.one("SELECT count(*) FROM t WHERE x = 'stopped'"), 0)
        self.assertEqual(holder.one("SELECT count(*) FROM t WHERE x = 'other'"), 4)
        self.cluster.assert_same_bytes(self, self.database)


class TestWaiting(harness.ClusterTest):

    def test_a_waiting_writer_gives_up_after_about_its_busy_timeout(self):
        holder = self.client(1)
        holder.sql("CREATE TABLE t(x)")
        holder.sql("BEGIN IMMEDIATE")
        for node in self.cluster:
            waiter = self.client(node, timeout=0.8)
            with harness.Timed() as t:
                self.assert_sql_fails([BUSY], lambda w=waiter: w.sql("INSERT INTO t VALUES (1)"))
            self.assertGreater(t.seconds, 0.5, f"node {node.id}")
            self.assertLess(t.seconds, 2 * 0.8 + 0.5 * harness.SLOWNESS, f"node {node.id}")
        holder.sql("COMMIT")

    def test_the_next_in_the_queue_gets_the_lock_at_once(self):
        """Not when a sleeping busy handler happens to wake up."""
        holder, waiter = self.client(1), self.client(1, timeout=20.0)
        holder.sql("CREATE TABLE t(x)")
        slow = 0
        for _ in range(20):
            holder.sql("BEGIN IMMEDIATE")
            waiter.send("sql", "main", "INSERT INTO t VALUES (1)", ())
            self.assertTrue(waiter.waiting(0.15))  # by now SQLite's own sleeps 100 ms
            holder.sql("ROLLBACK")
            with harness.Timed() as t:
                waiter.receive()
            slow += t.seconds > 0.04 * harness.SLOWNESS
        self.assertLess(slow, 5, "of 20")

    def test_the_default_busy_timeout_of_a_replicated_database_is_not_zero(self):
        """Hosts that set none (the sqlite3 shell) wait five seconds."""
        self.client(1).sql("CREATE TABLE t(x)")
        done = subprocess.run(
            ["sqlite3", "-batch", "-cmd", f".load {harness.EXTENSION}",
             "-cmd", f".open '{self.cluster[1].db(self.database)}'", ":memory:",
             "PRAGMA busy_timeout"], text=True, capture_output=True, timeout=30,
            env=harness.child_environment(sanitized_extension=True))
        self.assertEqual(done.stdout.strip(), "5000", done.stderr)


if __name__ == "__main__":
    harness.main()
