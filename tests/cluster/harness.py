"""Real clusters for tests: flotillad processes in a temporary directory, and
clients in processes of their own.

    class TestSomething(harness.ClusterTest):
        def test_a_row_written_on_one_node_is_read_on_another(self):
            a = self.client(1)
            a.sql("CREATE TABLE t(x)")
            ...

What it promises: every wait has a limit and says what it waited for; ports are
free ones; whatever was started is ended, also when the test is killed; on a
failure the end of each node's log is shown; a report of a sanitizer in any log
is a failure.

Environment: TEST_BUILDDIR (where the binaries are; default: the source tree),
TEST_PRELOAD (for sanitized builds), TEST_KEEP=1 (keep the directories).
"""
import atexit
import json
import os
import pathlib
import pickle
import re
import select
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

import sqlworker

SOURCE = pathlib.Path(os.environ.get("TEST_SRCDIR") or pathlib.Path(__file__).parents[2])
BUILD = pathlib.Path(os.environ.get("TEST_BUILDDIR") or SOURCE)
EXTENSION = BUILD / "ext" / "flotilla.so"
DAEMON = BUILD / "daemon" / "flotillad"
CLI = BUILD / "cli" / "flotilla"
# A Python built by hand often cannot load extensions; the system's own can.
PYTHON = (sys.executable if hasattr(sqlite3.Connection, "enable_load_extension")
          else "/usr/bin/python3")
PRELOAD = os.environ.get("TEST_PRELOAD", "")

# A sanitized build is several times slower; limits follow, properties do not.
SLOWNESS = 4 if PRELOAD else 1

BUSY = 5
READONLY = 8
IOERR = 10
CORRUPT = 11
FULL = 13
TOOBIG = 18
BUSY_SNAPSHOT = 5 | 2 << 8
UNKNOWN = sqlworker.UNKNOWN


def wait_for(what, condition, seconds=10):
    """Ask until condition() is true and return its value. An exception counts
    as "not yet"; the last one is named when the time is up."""
    deadline = time.monotonic() + seconds * SLOWNESS
    last = None
    while True:
        try:
            last = condition()
            if last:
                return last
        except (OSError, SqlError, KeyError, LookupError, ValueError) as e:
            last = e
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds * SLOWNESS} s for {what}; last: {last!r}")
        time.sleep(0.02)


def child_environment(extra=None, sanitized_extension=False):
    """The caller's settings for flotillad must not leak into a test's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("FLOTILLA")}
    if PRELOAD:
        env["ASAN_OPTIONS"] = "detect_leaks=1:abort_on_error=1:disable_coredump=1"
        if sanitized_extension:
            env["LD_PRELOAD"] = PRELOAD
            env["ASAN_OPTIONS"] = "detect_leaks=0"
    env.update(extra or {})
    return env


# ---- Clients ------------------------------------------------------------------


class SqlError(Exception):
    def __init__(self, code, name, message):
        super().__init__(f"{name} ({code}): {message}")
        self.code = code
        self.message = message

    @property
    def primary(self):
        return self.code & 0xFF


class ClientDied(Exception):
    pass


class Client:
    """A process with one or more SQLite connections."""

    def __init__(self, path=None, timeout=5.0, extension=True, uri=False):
        command = [PYTHON, str(pathlib.Path(__file__).with_name("sqlworker.py"))]
        if extension:
            command.append(str(EXTENSION))
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0,
            env=child_environment(sanitized_extension=extension))
        self.timeout = timeout
        self.received = b""
        started_processes.append(self.process)
        if path is not None:
            self.open(path, timeout, uri=uri)

    def open(self, path, timeout=5.0, name="main", uri=False):
        self.call("open", name, str(path), timeout, uri)

    def sql(self, sql, *params, connection="main", limit=None):
        return self.call("sql", connection, sql, params, limit=limit)

    def one(self, sql, *params, **more):
        return self.sql(sql, *params, **more)[0][0]

    def many(self, sql, rows):
        return self.call("many", "main", sql, rows, limit=60)

    def fingerprint(self):
        return self.call("fingerprint", "main", limit=60)

    def call(self, operation, *arguments, limit=None):
        self.send(operation, *arguments)
        return self.receive(limit)

    def send(self, operation, *arguments):
        """Ask without waiting; receive() gets the answer."""
        try:
            sqlworker.write_message(self.process.stdin, (operation, arguments))
        except BrokenPipeError as e:
            raise ClientDied(f"exit {self.process.wait()}") from e

    def receive(self, limit=None):
        limit = (limit or self.timeout * 2 + 10) * SLOWNESS
        message = self.receive_raw(limit)
        if message is None:
            raise ClientDied(f"exit {self.process.wait(10)}")
        status, value = message
        if status == "sql error":
            raise SqlError(*value)
        if status == "exception":
            raise RuntimeError(f"in the client: {value}")
        return value

    def has_answer(self, within):
        """Does the answer to send() begin to come within so many seconds?"""
        return bool(self.received or select.select([self.process.stdout], [], [], within)[0])

    def receive_raw(self, limit):
        """The next message, whatever it is, or None at the end of the pipe."""
        deadline = time.monotonic() + limit
        while (message := self.take_message()) is None:
            left = deadline - time.monotonic()
            if not select.select([self.process.stdout], [], [], max(0, left))[0]:
                raise AssertionError(f"the client gave no answer within {limit} s")
            data = os.read(self.process.stdout.fileno(), 1 << 20)
            if not data:
                return None
            self.received += data
        return message

    def take_message(self):
        if len(self.received) < 4:
            return None
        end = 4 + int.from_bytes(self.received[:4], "little")
        if len(self.received) < end:
            return None
        message = pickle.loads(self.received[4:end])
        self.received = self.received[end:]
        return message

    def waiting(self, seconds):
        """True if no answer has begun to come within that time."""
        return not self.received and not select.select(
            [self.process.stdout], [], [], seconds)[0]

    def kill(self, sig=signal.SIGKILL):
        self.process.send_signal(sig)
        if sig == signal.SIGKILL:
            self.process.wait(10)

    def close(self):
        end_process(self.process)
        self.process.stdin.close()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


# ---- Nodes --------------------------------------------------------------------


def has_ended(pid):
    """Is everything that the process held released? Its command line goes
    earlier: a killed daemon keeps ports and locks until its last thread and its
    last disk write are done."""
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state in "ZX" and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return True


class Node:
    """One flotillad. Knows nothing that a user could not find out."""

    def __init__(self, cluster, number, port):
        self.cluster = cluster
        self.id = number
        self.port = port
        self.http_port = port + 1
        self.dir = cluster.dir / f"node{number}"
        self.argv = None  # of the running daemon, to start it again just so
        self.process = None  # when started here rather than by the CLI

    def db(self, name="app"):
        return self.dir / f"{name}.db"

    def pid(self):
        """The running daemon's, from /proc: whoever started it."""
        for pid, argv, paths in running_daemons(self.cluster.dir):
            if str(self.dir) in paths:
                self.argv = argv
                return pid
        return None

    def kill(self, sig=signal.SIGKILL):
        """Send a signal; after KILL and TERM, wait until it is gone."""
        pid = self.pid()
        assert pid, f"node {self.id} is not running"
        os.kill(pid, sig)
        if sig in (signal.SIGKILL, signal.SIGTERM):
            wait_for(f"node {self.id} to end after signal {sig}", lambda: not self.alive(pid), 20)

    def alive(self, pid):
        if self.process and self.process.pid == pid:
            self.process.poll()
        return not has_ended(pid)

    def start(self, wait=True, env=None, more_flags=()):
        """Start the daemon again with the command line it had."""
        assert self.argv, "the node was never started"
        with open(self.dir / "test-restart.log", "ab") as log:
            self.process = subprocess.Popen(
                [*self.argv, *more_flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                cwd=self.cluster.base, env=child_environment({**self.cluster.env, **(env or {})}),
                start_new_session=True)
        started_processes.append(self.process)
        # As the CLI leaves it, or `cluster stop` would not know this one.
        (self.dir / "flotillad.pid").write_text(f"{self.process.pid}\n")
        if wait:
            self.wait_ready()

    def http(self, path, method="GET", limit=5):
        """(status, document): JSON when it is, else text."""
        url = f"http://127.0.0.1:{self.http_port}{path}"
        request = urllib.request.Request(url, method=method)
        try:
            with urllib.request.urlopen(request, timeout=limit * SLOWNESS) as answer:
                return answer.status, parse(answer.read())
        except urllib.error.HTTPError as e:
            with e:
                return e.code, parse(e.read())

    def ready(self):
        return self.http("/readyz")[0] == 200

    def wait_ready(self, seconds=15):
        wait_for(f"node {self.id} to be ready", self.ready, seconds)

    def rss_bytes(self):
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) * 1024

    def peak_rss_bytes(self):
        status = pathlib.Path(f"/proc/{self.pid()}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024

    def log(self):
        return "".join(p.read_text(errors="replace") for p in self.log_files())

    def log_files(self):
        return sorted([*self.dir.glob("*.log"), *self.cluster.dir.glob(f"node{self.id}*.log")])

    def client(self, database="app", **options):
        return Client(self.db(database), **options)

    def plain(self, database="app"):
        """A reader without the extension."""
        return Client(f"file:{self.db(database)}?mode=ro", extension=False, uri=True)


def parse(body):
    try:
        return json.loads(body)
    except ValueError:
        return body.decode(errors="replace")


def running_daemons(directory):
    """(pid, argv, paths among its arguments) of every flotillad that works in
    the directory. Zombies have ended."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
            if not argv or os.path.basename(argv[0]) != "flotillad":
                continue
            cwd = os.readlink(entry / "cwd")
        except OSError:
            continue
        paths = {os.path.realpath(os.path.join(cwd, a.rsplit("=", 1)[-1])) for a in argv[1:]}
        if any(p.startswith(f"{directory}/") for p in paths):
            found.append((int(entry.name), argv, paths))
    return found


# ---- Clusters -----------------------------------------------------------------


def free_base_port(nodes):
    """Ports P + 10·(i−1) and one above each, free just now."""
    for _ in range(200):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            base = s.getsockname()[1]
        if base + 10 * nodes < 65536 and all(
                port_is_free(base + 10 * i + j) for i in range(nodes) for j in (0, 1)):
            return base
    raise AssertionError("found no free ports")


def port_is_free(port):
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


class Cluster:
    def __init__(self, nodes=3, env=None, directory=None):
        self.base = pathlib.Path(directory or make_directory())
        self.dir = self.base / "run"
        self.env = env or {}
        self.size = nodes
        self.start_with_free_ports()

    def start_with_free_ports(self):
        for attempt in range(3):  # another process may take a port in between
            port = free_base_port(self.size)
            self.nodes = {i: Node(self, i, port + 10 * (i - 1)) for i in range(1, self.size + 1)}
            done = self.cli("cluster", "start", "--nodes", str(self.size), "--base-port",
                            str(port), "--dir", str(self.dir))
            if done.returncode == 0:
                break
            if "in use" not in done.stdout + done.stderr or attempt == 2:
                raise AssertionError(f"cluster start: exit {done.returncode}\n"
                                     f"{done.stdout}{done.stderr}\n{self.logs()}")
            self.stop()
            shutil.rmtree(self.dir, ignore_errors=True)
        for node in self:
            assert node.pid(), f"node {node.id} does not run after cluster start\n{self.logs()}"
            node.wait_ready()

    def __iter__(self):
        return iter(self.nodes.values())

    def __getitem__(self, number):
        return self.nodes[number]

    def cli(self, *arguments, limit=60):
        return subprocess.run([str(CLI), *arguments], cwd=self.base, text=True,
                              capture_output=True, timeout=limit * SLOWNESS,
                              env=child_environment(self.env), stdin=subprocess.DEVNULL)

    def stop(self):
        """Through the CLI; whatever it leaves running is ended here."""
        done = self.cli("cluster", "stop", "--dir", str(self.dir))
        left = running_daemons(self.base)
        end_daemons(self.base)
        assert done.returncode == 0, f"cluster stop: {done.stdout}{done.stderr}"
        assert not left, f"cluster stop left {left}"

    def running(self):
        return [n for n in self if n.pid()]

    def leader(self, seconds=10):
        """The node that leads, and that a majority follows."""
        return wait_for("a leader", self.find_leader, seconds)

    def find_leader(self):
        for node in self.running():
            try:
                status, health = node.http("/_raft/health", limit=1)
            except OSError:
                continue
            if status == 200 and health["is_leader"] and node.ready():
                return node
        return None

    def followers(self):
        leader = self.leader()
        return [n for n in self if n is not leader]

    def sync_status(self):
        status, document = self.leader().http("/_raft/sync-status")
        assert status == 200, (status, document)
        return document

    def all_healthy(self):
        """Every follower healthy in everything that the leader tells of it."""
        followers = self.sync_status()["followers"]
        return len(followers) == self.size - 1 and all(
            f["health"] == "healthy" and
            all(d["health"] == "healthy" for d in f["databases"].values()) for f in followers)

    def wait_healthy(self, seconds=20):
        wait_for("all followers to be healthy", self.all_healthy, seconds)

    def positions(self, database="app"):
        """(txid, checksum) per node, as each daemon tells its own."""
        return {n.id: own_position(n, database) for n in self.running()}

    def wait_converged(self, database="app", seconds=20):
        """Wait until all nodes are at one position; returns it."""
        def same():
            found = self.positions(database)
            return len(found) == self.size and len(set(found.values())) == 1 and found[1]
        return wait_for(f"all nodes to be at one position of {database}", same, seconds)

    def assert_same_bytes(self, test, database="app"):
        """All nodes hold the same bytes, and SQLite finds them sound."""
        self.wait_converged(database)
        prints = {}
        for node in self:
            with node.plain(database) as reader:
                test.assertEqual(reader.one("PRAGMA integrity_check"), "ok", f"node {node.id}")
                prints[node.id] = reader.fingerprint()
        test.assertEqual(len(set(prints.values())), 1, prints)

    def logs(self):
        text = []
        for node in self:
            lines = node.log().splitlines()
            text += [f"--- node {node.id}: last of {len(lines)} log lines"] + lines[-40:]
        return "\n".join(text)

    def sanitizer_reports(self):
        pattern = re.compile(r"ERROR: \w+Sanitizer|runtime error:")
        return [f"node {n.id}: {line}" for n in self for line in n.log().splitlines()
                if pattern.search(line)]


def own_position(node, database):
    status, document = node.http("/status")
    databases = document["databases"]
    if isinstance(databases, list):
        databases = {d["name"]: d for d in databases}
    return databases[database]["txid"], databases[database]["checksum"]


# ---- Ending what was started -----------------------------------------------------

started_processes = []
made_directories = []


def make_directory():
    # Not under a long TMPDIR: a socket's path is limited to 107 bytes.
    path = os.path.realpath(tempfile.mkdtemp(prefix="flo-"))
    made_directories.append(path)
    return path


def end_process(process):
    if process.poll() is None:
        process.kill()
        process.wait(10)


def end_daemons(directory):
    for pid, *_ in running_daemons(directory):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


@atexit.register
def end_everything():
    for process in started_processes:
        end_process(process)
    for directory in made_directories:
        end_daemons(directory)
        if not os.environ.get("TEST_KEEP"):
            shutil.rmtree(directory, ignore_errors=True)


# `timeout` ends a hung test with TERM: leave through atexit, not at once.
signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated: the test took too long"))


class Timed:
    """with Timed() as t: … ; t.seconds"""

    def __enter__(self):
        self.start = time.monotonic()
        return self

    def __exit__(self, *_):
        self.seconds = time.monotonic() - self.start


# ---- Test cases -------------------------------------------------------------------


class ClusterTest(unittest.TestCase):
    """One cluster for all tests of the class; each uses a database of its own,
    self.database, unless it says otherwise."""

    nodes = 3
    env = {}
    cluster = None

    @classmethod
    def setUpClass(cls):
        for binary in (EXTENSION, DAEMON, CLI):
            if not binary.exists():
                raise AssertionError(f"{binary} is missing; run make first")
        cls.cluster = Cluster(cls.nodes, cls.env)

    @classmethod
    def tearDownClass(cls):
        if cls.cluster is not None:
            cls.cluster.stop()
            reports = cls.cluster.sanitizer_reports()
            if reports:
                raise AssertionError("\n".join(reports) + "\n" + cls.cluster.logs())

    def setUp(self):
        self.database = re.sub(r"\W", "-", self.id().rsplit(".", 1)[1].removeprefix("test_"))[:40]
        self.clients = []

    def tearDown(self):
        for client in self.clients:
            client.close()

    def run(self, result=None):
        """Show the nodes' logs with a failure; then bring every node back."""
        before = len(result.failures) + len(result.errors) if result else 0
        outcome = super().run(result)
        if result and len(result.failures) + len(result.errors) > before and self.cluster:
            print(f"=== logs after {self.id()}\n{self.cluster.logs()}", file=sys.stderr)
        if self.cluster:
            self.revive()
        return outcome

    def revive(self):
        """The next test finds all nodes running, whatever this one did."""
        for node in self.cluster:
            pid = node.pid()
            if pid:
                os.kill(pid, signal.SIGCONT)
            elif node.argv:
                node.start(wait=False)

    def client(self, node, database=None, **options):
        """A connection on that node; closed after the test."""
        node = self.cluster[node] if isinstance(node, int) else node
        client = node.client(database or self.database, **options)
        self.clients.append(client)
        return client

    def plain(self, node, database=None):
        node = self.cluster[node] if isinstance(node, int) else node
        client = node.plain(database or self.database)
        self.clients.append(client)
        return client

    def assert_sql_fails(self, codes, run):
        """run() raises an SQLite error with one of the codes; returns it."""
        with self.assertRaises(SqlError) as caught:
            run()
        self.assertIn(caught.exception.code, codes, str(caught.exception))
        return caught.exception

    def wait_rows(self, node, expected, sql="SELECT count(*) FROM t", seconds=10):
        """Wait until plain SQLite on that node reads this."""
        reader = self.plain(node)
        def same():
            return reader.one(sql) == expected
        wait_for(f"{sql} = {expected} on {node if isinstance(node, int) else node.id}", same, seconds)


def main():
    unittest.main(module="__main__", verbosity=2, failfast=False)
