#!/usr/bin/python3
"""A truncated or flipped byte in what is stored: refused by checksum, with the
name of the file and what to do. The others go on."""
import re
import signal

import harness
from harness import wait_for


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 0x40
    path.write_bytes(data)


def truncate(path, size):
    path.write_bytes(path.read_bytes()[:size])


class CorruptionTest(harness.ClusterTest):

    def prepare(self, rows=200):
        c = self.client(1)
        c.sql("CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
        for _ in range(rows // 20):
            c.many("INSERT INTO t(v) VALUES (?)", [("x" * 300,)] * 20)
        self.cluster.wait_converged(self.database)
        return c

    def end(self, node, sig=signal.SIGTERM):
        node.kill(sig)

    def new_log(self, node, run):
        before = len(node.log())
        run()
        return lambda: node.log()[before:]


class TestReplicaFiles(CorruptionTest):

    def check(self, name, damage, named=True):
        """Damage a file of node 3's replica while it is down. The node says
        which file, and repairs itself."""
        self.prepare()
        node = self.cluster[3]
        self.end(node, signal.SIGKILL)
        path = node.dir / f"{self.database}.{name}"
        damage(path)
        log = self.new_log(node, lambda: node.start(wait=False))
        if named:
            wait_for(f"a line that names {path.name}", lambda: path.name in log())
        self.cluster.assert_same_bytes(self, self.database)
        self.client(node).sql("INSERT INTO t(v) VALUES ('after')")
        self.cluster.assert_same_bytes(self, self.database)

    def test_position_file_flipped_in_its_header(self):
        self.check("db-pos", lambda p: flip(p, 20))

    def test_position_file_flipped_in_a_page_hash(self):
        # Found when it is read, or by the checksum that the hashes sum up to.
        self.check("db-pos", lambda p: flip(p, p.stat().st_size - 4), named=False)

    def test_position_file_truncated(self):
        self.check("db-pos", lambda p: truncate(p, 100))

    def test_position_file_empty_or_gone(self):
        self.check("db-pos", lambda p: truncate(p, 0), named=False)

    def test_database_page_flipped(self):
        def damage(path):
            with harness.Client(path, extension=False) as c:  # all into the file
                c.sql("PRAGMA wal_checkpoint(TRUNCATE)")
            flip(path, path.stat().st_size - 100)
        self.check("db", damage, named=False)

    def test_wal_truncated(self):
        self.check("db-wal", lambda p: truncate(p, p.stat().st_size // 2), named=False)

    def test_fence_file_overwritten(self):
        self.check("db-fence", lambda p: p.write_bytes(b"garbage garbage!"), named=False)


class TestRaftFiles(CorruptionTest):
    env = {"FLOTILLA_SNAPSHOT_BYTES": str(1 << 20)}

    def check_refused(self, find, damage):
        """The node ends with an error that names the file; the others go on;
        with the file restored it comes back."""
        c = self.prepare()
        node = self.cluster[3]
        def files():
            # A kill may leave a snapshot's metadata without the snapshot, or with
            # an empty one: then the one before it counts.
            def whole(p):
                content = p.with_name(p.name.removesuffix(".meta"))
                return content.exists() and content.stat().st_size > 0
            return sorted((p for p in (node.dir / "raft").iterdir() if find(p.name) and whole(p)),
                          key=lambda p: [int(n) for n in re.findall(r"\d+", p.name)])
        def write():
            c.sql("UPDATE t SET v = randomblob(3000)")
            return files()
        wait_for("such a file to exist", write, 60)
        self.end(node, signal.SIGKILL)
        path = files()[-1]
        good = path.read_bytes()
        damage(path)
        log = self.new_log(node, lambda: node.start(wait=False))
        try:
            wait_for("the node to end", lambda: node.process.poll() is not None, 20)
            text = log()
            self.assertTrue(path.name.removesuffix(".meta") in text, text)
            self.assertIn("hint=", text)
            self.assertNotEqual(node.process.returncode, 0)
            c.sql("INSERT INTO t(v) VALUES ('goes on')")
        finally:
            if node.pid():
                node.kill()
            path.write_bytes(good)
        node.start()
        self.cluster.assert_same_bytes(self, self.database)

    def is_snapshot(self, name):
        return name.startswith("snapshot-") and not name.endswith(".meta")

    def test_manifest_flipped(self):
        self.check_refused(self.is_snapshot, lambda p: flip(p, p.stat().st_size // 2))

    def test_manifest_truncated(self):
        self.check_refused(self.is_snapshot, lambda p: truncate(p, p.stat().st_size - 1))

    def test_entry_flipped_in_a_closed_segment(self):
        self.check_refused(lambda n: n[0].isdigit() and "-" in n,
                           lambda p: flip(p, p.stat().st_size // 2))


if __name__ == "__main__":
    harness.main()
