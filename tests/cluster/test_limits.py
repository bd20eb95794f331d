#!/usr/bin/python3
"""Transactions have a size limit, and daemons a bounded memory."""
import harness
from harness import TOOBIG

MB = 1 << 20


def insert_megabytes(client, n):
    client.sql("WITH RECURSIVE i(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM i WHERE n < ?) "
               "INSERT INTO t SELECT randomblob(1048576) FROM i", n, limit=120)


class TestTransactionSize(harness.ClusterTest):

    def test_200_mb_are_refused_clearly_and_harm_nobody(self):
        for node in (self.cluster.leader(), self.cluster.followers()[0]):
            c = self.client(node)
            c.sql("CREATE TABLE IF NOT EXISTS t(b)")
            count = c.one("SELECT count(*) FROM t")
            before = {n.id: n.peak_rss_bytes() for n in self.cluster}

            def transaction(c=c):
                c.sql("BEGIN")
                insert_megabytes(c, 200)
                c.sql("COMMIT")
            e = self.assert_sql_fails([TOOBIG], transaction)
            self.assertIn("too big", e.message)
            try:
                c.sql("ROLLBACK")
            except harness.SqlError:
                pass  # SQLite may have rolled back already
            self.assertEqual(c.one("SELECT count(*) FROM t"), count)
            if not harness.PRELOAD:
                for n in self.cluster:
                    self.assertLess(n.peak_rss_bytes() - before[n.id], 64 * MB, f"node {n.id}")
            c.sql("INSERT INTO t VALUES ('goes on')")
        self.cluster.assert_same_bytes(self, self.database)

    def test_50_mb_in_one_transaction_are_fine(self):
        follower = self.cluster.followers()[0]
        c = self.client(follower, timeout=30.0)
        c.sql("CREATE TABLE t(b)")
        insert_megabytes(c, 50)
        self.assertEqual(c.one("SELECT count(*) FROM t"), 50)
        self.wait_rows(self.cluster.leader(), 50, seconds=30)
        self.cluster.assert_same_bytes(self, self.database)

    def test_memory_stays_bounded_while_much_is_written(self):
        c = self.client(1, timeout=30.0)
        c.sql("CREATE TABLE t(b)")
        for _ in range(40):
            insert_megabytes(c, 4)
            c.sql("DELETE FROM t")
        self.cluster.wait_converged(self.database, seconds=60)
        if not harness.PRELOAD:
            for n in self.cluster:
                self.assertLess(n.rss_bytes(), 192 * MB, f"node {n.id}")
        self.cluster.assert_same_bytes(self, self.database)


class TestTransactionSizeIsASetting(harness.ClusterTest):
    env = {"FLOTILLA_MAX_TRANSACTION": str(2 * MB)}

    def test_the_limit_is_the_one_that_was_set(self):
        c = self.client(1)
        c.sql("CREATE TABLE t(b)")
        insert_megabytes(c, 1)
        self.assert_sql_fails([TOOBIG], lambda: insert_megabytes(c, 3))
        self.assertEqual(c.one("SELECT count(*) FROM t"), 1)
        insert_megabytes(c, 1)
        self.cluster.assert_same_bytes(self, self.database)


if __name__ == "__main__":
    harness.main()
