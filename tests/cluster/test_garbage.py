#!/usr/bin/python3
"""Garbage on any socket: the connection is closed with one log line, memory
stays bounded, the node goes on."""
import os
import random
import socket
import struct

import harness
from harness import wait_for

MB = 1 << 20


def message(kind, body, length=None, version=1, request=1):
    """A client message; see core/wire.h."""
    length = len(body) if length is None else length
    return struct.pack("<IHHQ", length, kind, version, request) + body


HELLO = message(2, struct.pack("<IH", 1, 4) + b"test")

# Whole messages, or so wrong that no more is waited for.
CLIENT_GARBAGE = {
    "text": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 8,
    "zeros": b"\0" * 4096,
    "ones": b"\xff" * 4096,
    "huge length": message(2, b"", length=0x7FFFFFFF),
    "unknown type": message(9999, b""),
    "other version": message(2, struct.pack("<IH", 1, 0), version=77),
    "string longer than its message": message(2, struct.pack("<IH", 1, 60000)),
    "bytes left over": message(2, struct.pack("<IH", 1, 0) + b"extra"),
    "a daemon's message": HELLO + message(35, struct.pack("<I", 0)),
    "commit without a grant": HELLO + message(9, struct.pack("<QQIII", 7, 7, 7, 7, 0)),
    "second hello": HELLO + HELLO,
}


class TestGarbage(harness.ClusterTest):

    def setUp(self):
        super().setUp()
        self.seed = random.randrange(1 << 32)
        self.rng = random.Random(self.seed)
        self.client(1).sql("CREATE TABLE t(x)")

    def tearDown(self):
        self.client(2).sql("INSERT INTO t VALUES ('goes on')")
        self.wait_rows(1, 1)
        super().tearDown()

    def client_socket(self, node):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(10 * harness.SLOWNESS)
        s.connect(str(node.dir / "flotilla.sock"))
        return s

    def tcp_socket(self, port):
        s = socket.create_connection(("127.0.0.1", port), timeout=10 * harness.SLOWNESS)
        return s

    def send_until_closed(self, s, data):
        """Send, then read until the other side closes; what it said."""
        said = b""
        with s:
            try:
                s.sendall(data)
                while chunk := s.recv(65536):
                    said += chunk
            except (ConnectionResetError, BrokenPipeError):
                pass
        return said

    def test_on_the_client_socket_each_kind_closes_the_connection_with_one_line(self):
        node = self.cluster[1]
        may_stay_open = {"commit without a grant"}  # answered with an error
        for name, data in CLIENT_GARBAGE.items():
            with self.subTest(name):
                pid, lines = node.pid(), node.log().count("\n")
                s = self.client_socket(node)
                if name in may_stay_open:
                    s.sendall(data)
                    s.recv(65536)
                    s.close()
                else:
                    self.send_until_closed(s, data)
                    wait_for("a log line", lambda n=lines: node.log().count("\n") > n)
                    self.assertLessEqual(node.log().count("\n") - lines, 2)
                self.assertEqual(node.pid(), pid)

    def test_random_bytes_and_floods_on_every_port_leave_memory_bounded(self):
        node = self.cluster[1]
        pid, before = node.pid(), node.rss_bytes()
        opens = {"client": lambda: self.client_socket(node),
                 "peer": lambda: self.tcp_socket(node.port),
                 "http": lambda: self.tcp_socket(node.http_port)}
        for name, connect in opens.items():
            for i in range(40):
                # Never a valid start: the first byte decides on all three.
                data = b"\xfe" + self.rng.randbytes(self.rng.randrange(200, 100000))
                self.send_until_closed(connect(), data)
            self.assertEqual(node.pid(), pid, f"{name}, seed {self.seed}")
        self.assertLess(node.rss_bytes() - before, 32 * MB * harness.SLOWNESS)

    def test_connections_that_say_nothing_keep_nobody_out(self):
        node = self.cluster[1]
        idle = [self.tcp_socket(node.port) for _ in range(100)]
        idle += [self.tcp_socket(node.http_port) for _ in range(40)]
        idle += [self.client_socket(node) for _ in range(50)]
        try:
            self.client(1).sql("INSERT INTO t VALUES ('beside idle ones')")
            self.assertEqual(node.http("/livez")[0], 200)
            self.client(1).sql("DELETE FROM t")
        finally:
            for s in idle:
                s.close()

    def test_a_handshake_with_the_wrong_cluster_or_identity_is_refused(self):
        node = self.cluster[1]
        for kind in (1, 2, 9):
            hello = struct.pack("<4sHBBIIQQ", b"FLOH", 1, kind, 0, 2, 1, 12345, 6789)
            said = self.send_until_closed(self.tcp_socket(node.port), hello.ljust(128, b"\0"))
            if said:
                magic, _, code, _ = struct.unpack("<4sHHQ", said[:16])
                self.assertEqual(magic, b"FLOA")
                self.assertNotEqual(code, 0)
        # Each reason once, however often it comes.
        wait_for("a line that says so", lambda: "belongs to another cluster" in node.log())

    def test_http_requests_over_the_limits_are_refused(self):
        node = self.cluster[1]
        head = b"POST /_raft/force-resync?target=2 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        said = self.send_until_closed(self.tcp_socket(node.http_port),
                                      head + b"Content-Length: 999999999999\r\n\r\n")
        self.assertIn(b" 413 ", said.splitlines()[0])
        said = self.send_until_closed(self.tcp_socket(node.http_port),
                                      b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n")
        if said:
            self.assertRegex(said.splitlines()[0], rb" (400|414|431) ")

    def test_a_database_name_cannot_leave_the_directory(self):
        for name in ("..", "../evil", ".hidden", "a/b", "x" * 64):
            path = os.path.join(self.cluster[1].dir, name + ".db")
            with harness.Client(timeout=1.0) as c:
                try:
                    c.open(path, timeout=1.0)
                    c.sql("CREATE TABLE t(x)")
                except harness.SqlError:
                    pass
            names = {d["name"] for d in self.cluster[1].http("/status")[1]["databases"]}
            self.assertNotIn(name, names)


if __name__ == "__main__":
    harness.main()
