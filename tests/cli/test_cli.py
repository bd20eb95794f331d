#!/usr/bin/python3
"""The flotilla command, against fake_flotillad.py: what it starts, stops, says
and returns. Real daemons are the business of tests/cluster.

Environment: TEST_BUILDDIR (where cli/flotilla is; default: the source tree).

Every test has its own directory and ports that were free just now; whatever a
test started is ended by its pid when the test ends.
"""
import json
import os
import pathlib
import pty
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

SOURCE = pathlib.Path(os.environ.get("TEST_SRCDIR") or pathlib.Path(__file__).parents[2])
BUILD = pathlib.Path(os.environ.get("TEST_BUILDDIR") or SOURCE)
CLI = BUILD / "cli" / "flotilla"
FAKE = (SOURCE / "tests" / "cli" / "fake_flotillad.py").resolve()

OK, REFUSED, USAGE, UNREACHABLE, TIMEOUT = range(5)
COMMANDS = ["cluster", "cluster start", "cluster stop", "cluster status", "cluster sync-status",
            "cluster resync", "status", "sync-status", "resync"]

# ---- Fixture ------------------------------------------------------------------


def port_is_free(port):
    with socket.socket() as s:
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_base_port(nodes=3):
    for _ in range(200):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            base = s.getsockname()[1]
        if base + 10 * nodes < 65536 and all(
                port_is_free(base + 10 * i + k) for i in range(nodes) for k in (0, 1)):
            return base
    raise AssertionError("found no free ports")


def command_line(pid):
    """The arguments of a process that runs; [] when it has ended."""
    try:
        return pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    except OSError:
        return []


def wait_until(what, condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s for {what}")
        time.sleep(0.02)


class CliTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.temporary = tempfile.TemporaryDirectory(prefix="flotilla-cli-")
        self.addCleanup(self.temporary.cleanup)
        self.base = pathlib.Path(os.path.realpath(self.temporary.name))
        self.run_dir = self.base / "run"
        self.port = free_base_port()
        self.pids_seen = set()
        self.addCleanup(self.end_processes)

    # ---- Helpers ----

    def environment(self, extra):
        env = {k: v for k, v in os.environ.items()
               if not k.startswith(("FLOTILLA", "FAKE_")) and k != "NO_COLOR"}
        return {**env, "FLOTILLAD": str(FAKE), **extra}

    def cli(self, *arguments, code=OK, **extra):
        """Run it; check the exit code; (stdout, stderr)."""
        done = subprocess.run([str(CLI), *arguments], cwd=self.base, text=True,
                              capture_output=True, timeout=100, stdin=subprocess.DEVNULL,
                              env=self.environment(extra))
        self.pids()
        self.assertEqual(done.returncode, code, f"{arguments}\n{done.stdout}\n{done.stderr}")
        return done.stdout, done.stderr

    def start(self, *arguments, code=OK, **extra):
        return self.cli("cluster", "start", "--base-port", str(self.port), *arguments, code=code,
                        **extra)

    def pids(self):
        """{node: pid} of those that run and have a pid file."""
        found = {}
        for path in self.base.glob("**/node*/flotillad.pid"):
            pid = int(path.read_text())
            if str(path.parent) in command_line(pid):
                found[int(path.parent.name[4:])] = pid
                self.pids_seen.add(pid)
        return found

    def end_processes(self):
        self.pids()
        for pid in self.pids_seen:
            if any(a.startswith(str(self.base)) for a in command_line(pid)):
                os.kill(pid, signal.SIGKILL)
                wait_until(f"the end of {pid}", lambda p=pid: not command_line(p))

    def http(self, node):
        return f"127.0.0.1:{self.port + 10 * (node - 1) + 1}"

    def assert_one_line(self, text, *parts):
        self.assertEqual(len(text.splitlines()), 1, text)
        for part in parts:
            self.assertIn(part, text)

    def row(self, text, first):
        """The cells of the table's row that starts with first."""
        rows = [line.split() for line in text.splitlines() if line.split()[:1] == [first]]
        self.assertEqual(len(rows), 1, text)
        return rows[0]


# ---- Tests ----------------------------------------------------------------------


class TestUsage(CliTest):

    def test_help_of_every_command_goes_to_stdout(self):
        for command in ["", *COMMANDS]:
            out, err = self.cli(*command.split(), "--help")
            self.assertIn("usage: flotilla", out)
            self.assertEqual(err, "")

    def test_no_command_is_a_usage_error(self):
        out, err = self.cli(code=USAGE)
        self.assertEqual(out, "")
        self.assertIn("usage:", err)
        self.cli("cluster", code=USAGE)

    def test_wrong_words_are_one_line_that_names_them(self):
        for arguments, word in [(["frobnicate"], "frobnicate"),
                                (["--frobnicate"], "--frobnicate"),
                                (["cluster", "frobnicate"], "frobnicate"),
                                (["status", "--frobnicate"], "--frobnicate"),
                                (["status", "-x"], "-x"),
                                (["status", "-xy"], "-x"),
                                (["status", "--force"], "--force"),
                                (["status", "extra"], "extra"),
                                (["status", "--nodes"], "--nodes"),
                                (["status", "-o"], "-o"),
                                (["status", "-o", "xml"], "xml"),
                                (["status", "--nodes", ""], "bad value"),
                                (["status", "--nodes", ","], "--nodes"),
                                (["status", "--nodes", "a,b,c,d,e,f,g,h,i,j"], "at most 9"),
                                (["status", "--nodes", "a", "--dir", "b"], "not both"),
                                (["cluster", "stop", "--nodes", "3"], "--nodes"),
                                (["cluster", "start", "--nodes", "0"], "--nodes"),
                                (["cluster", "start", "--nodes", "10"], "--nodes"),
                                (["cluster", "start", "--nodes", "3x"], "--nodes"),
                                (["cluster", "start", "--base-port", "65530"], "--base-port"),
                                (["cluster", "start", "--timeout", "-1"], "--timeout"),
                                (["resync"], "--target"),
                                (["resync", "--target", "2", "--timeout", "x"], "--timeout")]:
            with self.subTest(arguments):
                out, err = self.cli(*arguments, code=USAGE)
                self.assertEqual(out, "")
                self.assert_one_line(err, word, "flotilla: ")

    def test_version(self):
        self.assertRegex(self.cli("--version")[0], r"^flotilla \S+\n$")

    def test_without_a_cluster_it_says_what_to_do(self):
        for command in ["status", "sync-status", "resync --target 2", "cluster stop"]:
            out, err = self.cli(*command.split(), code=USAGE)
            self.assertEqual(out, "")
            self.assert_one_line(err, "no cluster in ./run", "--dir")

    def test_a_result_that_cannot_be_written_is_a_failure(self):
        with open("/dev/full", "w") as full:
            done = subprocess.run([str(CLI), "--help"], stdout=full, stderr=subprocess.PIPE,
                                  timeout=20)
        self.assertEqual(done.returncode, REFUSED)


class TestStart(CliTest):

    def test_a_new_cluster_runs_and_the_output_says_what_to_type_next(self):
        out, err = self.start()
        self.assertEqual(err, "")
        self.assertEqual(json.loads((self.run_dir / "cluster.json").read_text()),
                         {"nodes": 3, "base_port": self.port})
        self.assertEqual(sorted(self.pids()), [1, 2, 3])
        self.assertEqual(self.row(out, "1"), [
            "1", f"{self.run_dir}/node1", f"127.0.0.1:{self.port}", self.http(1), "leader"])
        self.assertEqual(self.row(out, "3")[-1], "follower")
        for line in (f".open {self.run_dir}/node1/app.db", f"curl http://{self.http(1)}/_raft/",
                     "cluster stop", ".load ", "sqlite3"):
            self.assertIn(line, out)

    def test_nodes_are_in_a_session_of_their_own_with_their_own_addresses(self):
        self.start("--nodes", "2", FLOTILLA_HTTP="127.0.0.1:1", FLOTILLA_ID="9")
        for node, pid in self.pids().items():
            arguments = command_line(pid)
            self.assertEqual(os.getsid(pid), pid)
            self.assertEqual(os.readlink(f"/proc/{pid}/fd/0"), "/dev/null")
            self.assertEqual(os.readlink(f"/proc/{pid}/fd/2"),
                             f"{self.run_dir}/node{node}/flotillad.log")
            self.assertEqual(arguments[arguments.index("--http") + 1], self.http(node))
            self.assertEqual(arguments[arguments.index("--members") + 1],
                             f"1=127.0.0.1:{self.port},2=127.0.0.1:{self.port + 10}")
            # Nothing of the command's own stays open in them: the lock least.
            for fd in pathlib.Path(f"/proc/{pid}/fd").iterdir():
                self.assertNotEqual(os.path.realpath(fd), str(self.run_dir))

    def test_again_it_starts_only_what_does_not_run_with_what_it_remembers(self):
        self.start()
        before = self.pids()
        os.kill(before[2], signal.SIGKILL)
        wait_until("the end of node 2", lambda: 2 not in self.pids())
        self.cli("cluster", "start")
        after = self.pids()
        self.assertEqual((before[1], before[3]), (after[1], after[3]))
        self.assertNotEqual(before[2], after[2])
        self.cli("cluster", "start", "--nodes", "3")  # the same is no conflict
        self.assertEqual(after, self.pids())

    def test_other_parameters_than_remembered_are_refused(self):
        self.start()
        before = self.pids()
        _, err = self.cli("cluster", "start", "--nodes", "5", code=USAGE)
        self.assert_one_line(err, "--nodes 5", "has 3")
        _, err = self.cli("cluster", "start", "--base-port", "7999", code=USAGE)
        self.assert_one_line(err, "--base-port 7999", f"has {self.port}")
        self.assertEqual(before, self.pids())

    def test_a_taken_port_is_named_and_nothing_is_left(self):
        for port in (self.port, self.port + 11):
            with socket.socket() as s:
                s.bind(("127.0.0.1", port))
                s.listen()
                out, err = self.start(code=USAGE)
            self.assertEqual(out, "")
            self.assert_one_line(err, f"127.0.0.1:{port}", "in use", "--base-port")
            self.assertFalse(self.run_dir.exists())

    def test_a_node_that_refuses_is_quoted_and_the_others_are_stopped(self):
        out, err = self.start(code=USAGE, FAKE_EXIT="3:2:flotillad: this is why")
        self.assertEqual(out, "")
        self.assertIn("node 3 ended with exit code 2", err)
        self.assertIn("flotillad: this is why", err)
        self.assertEqual(self.pids(), {})
        self.assertEqual(list(self.run_dir.glob("*/*.pid")), [])
        self.start()  # and the way is free

    def test_nothing_is_left_when_no_node_has_begun(self):
        self.start("--nodes", "1", code=USAGE, FAKE_EXIT="1:2:no")
        self.assertFalse(self.run_dir.exists())

    def test_a_failed_start_in_an_old_cluster_leaves_running_nodes_and_data_alone(self):
        self.start()
        before = self.pids()
        os.kill(before[3], signal.SIGKILL)
        wait_until("the end of node 3", lambda: 3 not in self.pids())
        (self.run_dir / "node3" / "app.db").write_text("data")
        self.cli("cluster", "start", code=REFUSED, FAKE_EXIT="3:5:broken")
        self.assertEqual(self.pids(), {1: before[1], 2: before[2]})
        self.assertEqual((self.run_dir / "node3" / "app.db").read_text(), "data")

    def test_not_ready_in_time_gives_reason_and_log_and_leaves_them_running(self):
        out, err = self.start("--timeout", "1", code=REFUSED, FAKE_NOT_READY="2",
                              FAKE_REASON="replaying\x1b[31m the log")
        self.assertEqual(out, "")
        self.assertIn("node 2: replaying", err)
        self.assertNotIn("node 1:", err)
        self.assertEqual(sorted(self.pids()), [1, 2, 3])

    def test_a_directory_that_cannot_be_made_is_one_line(self):
        (self.base / "file").write_text("")
        for where in ("file", "file/below", "/proc/none/below"):
            _, err = self.start("--dir", where, code=USAGE)
            self.assert_one_line(err, where.split("/below")[0], "--dir")

    def test_a_cluster_file_of_somebody_else_is_refused(self):
        self.run_dir.mkdir()
        for text in ("", "[]", '{"nodes": 77, "base_port": 1}', '{"nodes": 3}'):
            (self.run_dir / "cluster.json").write_text(text)
            for command in ("cluster start", "cluster stop", "status"):
                _, err = self.cli(*command.split(), code=USAGE)
                self.assert_one_line(err, "cluster.json")

    def test_directories_with_spaces_are_quoted_in_what_to_type(self):
        out, _ = self.start("--dir", "with space")
        self.assertIn(f".open '{self.base}/with space/node1/app.db'", out)
        self.assertIn("cluster stop --dir 'with space'", out)
        self.cli("cluster", "stop", "--dir", "with space")
        self.assertEqual(self.pids(), {})

    def test_two_starts_at_once_do_not_mix(self):
        with subprocess.Popen([str(CLI), "cluster", "start", "--base-port", str(self.port),
                               "--timeout", "4"], cwd=self.base, stderr=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL,
                              env=self.environment({"FAKE_NOT_READY": "1"})) as first:
            wait_until("the first one's nodes", lambda: len(self.pids()) == 3)
            before = self.pids()
            _, err = self.cli("cluster", "start", code=REFUSED)
            self.assert_one_line(err, "another 'cluster start'")
            self.assertEqual(first.wait(timeout=60), REFUSED)
        self.assertEqual(self.pids(), before)

    def test_a_daemon_that_is_not_there_is_one_line(self):
        _, err = self.start(code=USAGE, FLOTILLAD="/no/such/flotillad")
        self.assert_one_line(err, "/no/such/flotillad")
        self.assertFalse(self.run_dir.exists())

    def test_even_numbers_and_one_node_work(self):
        for nodes in (1, 2):
            self.start("--nodes", str(nodes), "--dir", f"of{nodes}")
            self.assertEqual(len(self.pids()), nodes)
            self.cli("cluster", "stop", "--dir", f"of{nodes}")


class TestStop(CliTest):

    def test_stop_ends_exactly_these_and_keeps_the_data(self):
        self.start()
        (self.run_dir / "node1" / "app.db").write_text("data")
        out, _ = self.cli("cluster", "stop")
        self.assertIn("stopped 3 of 3", out)
        self.assertEqual(self.pids(), {})
        self.assertEqual((self.run_dir / "node1" / "app.db").read_text(), "data")
        self.assertEqual(list(self.run_dir.glob("*/*.pid")), [])
        out, _ = self.cli("cluster", "stop")
        self.assertIn("no node was running", out)

    def test_a_stale_pid_file_does_no_harm_to_a_stranger(self):
        self.start()
        self.cli("cluster", "stop")
        # A stranger that even mentions the directory, but is no flotillad.
        with subprocess.Popen(["sleep", "1000"]) as stranger, subprocess.Popen(
                [sys.executable, "-c", "import time; time.sleep(1000)", "--dir",
                 str(self.run_dir / "node2")]) as namesake:
            try:
                (self.run_dir / "node1" / "flotillad.pid").write_text(f"{stranger.pid}\n")
                (self.run_dir / "node2" / "flotillad.pid").write_text(f"{namesake.pid}\n")
                (self.run_dir / "node3" / "flotillad.pid").write_text("1\n")
                out, _ = self.cli("cluster", "stop", "--force")
                self.assertIn("no node was running", out)
                self.assertIsNone(stranger.poll())
                self.assertIsNone(namesake.poll())
                (self.run_dir / "node1" / "flotillad.pid").write_text(f"{stranger.pid}\n")
                (self.run_dir / "node2" / "flotillad.pid").write_text("nonsense")
                self.cli("cluster", "start")
                self.assertIsNone(stranger.poll())
                self.assertEqual(sorted(self.pids()), [1, 2, 3])
            finally:
                stranger.kill()
                namesake.kill()

    def test_one_that_does_not_end_is_reported_and_force_ends_it(self):
        self.start(FAKE_KEEP="2")
        kept = self.pids()[2]
        _, err = self.cli("cluster", "stop", "--timeout", "1", code=TIMEOUT)
        self.assert_one_line(err, "node 2", str(kept), "--force")
        self.assertEqual(self.pids(), {2: kept})
        self.cli("cluster", "stop", "--force")
        self.assertEqual(self.pids(), {})


class TestStatus(CliTest):

    def test_every_node_is_a_line(self):
        self.start()
        out, err = self.cli("status")
        self.assertEqual(err, "")
        self.assertEqual(out.splitlines()[0].split(), [
            "NODE", "ADDRESS", "ROLE", "TERM", "INDEX", "APPLIED", "LAG", "DATABASES/TXID",
            "READY", "ERRORS"])
        self.assertEqual(self.row(out, "1"), [
            "1", f"127.0.0.1:{self.port}", "leader", "7", "42", "42", "0", "app",
            "9007199254740993", "yes", "-"])
        self.assertEqual(self.row(out, "2")[6], "2")
        self.assertEqual(self.cli("cluster", "status")[0], out)
        nodes = ",".join([self.http(1), f"http://{self.http(2)}/", self.http(3)])
        self.assertEqual(self.cli("status", "--nodes", nodes)[0], out)

    def test_one_that_is_down_or_not_ready_is_named_and_the_exit_code_is_1(self):
        self.start("--timeout", "1", code=REFUSED, FAKE_NOT_READY="3",
                   FAKE_REASON="bad\x1b[2Jscreen")
        os.kill(self.pids()[2], signal.SIGKILL)
        wait_until("the end of node 2", lambda: 2 not in self.pids())
        out, _ = self.cli("status", code=REFUSED)
        self.assertIn("cannot reach: Connection refused", out)
        self.assertEqual(self.row(out, "2")[1], self.http(2))
        self.assertIn("bad?[2Jscreen", out)  # a node cannot write to the terminal
        document = json.loads(self.cli("status", "-o", "json", code=REFUSED)[0])
        self.assertFalse(document["healthy"])
        self.assertEqual([n["reachable"] for n in document["nodes"]], [True, False, True])
        self.assertIsNone(document["nodes"][1]["status"])
        self.assertEqual(document["nodes"][0]["status"]["term"], 7)

    def test_none_that_answers_is_3(self):
        self.start()
        self.cli("cluster", "stop")
        for command in ("status", "sync-status", "resync --target 2"):
            self.cli(*command.split(), code=UNREACHABLE)

    def test_one_that_hangs_does_not_hang_the_command(self):
        self.start("--timeout", "1", code=REFUSED, FAKE_HANG="3")
        begin = time.monotonic()
        out, _ = self.cli("status", code=REFUSED)
        self.assertLess(time.monotonic() - begin, 9)
        self.assertEqual(self.row(out, "1")[2], "leader")
        self.assertIn("cannot reach", out)

    def on_terminal(self, **extra):
        """What `flotilla status` writes to a terminal."""
        main, other = pty.openpty()
        with subprocess.Popen([str(CLI), "status"], cwd=self.base, stdin=other, stdout=other,
                              stderr=other, env=self.environment(extra)) as process:
            os.close(other)
            text = b""
            try:
                while select.select([main], [], [], 20)[0]:
                    piece = os.read(main, 65536)
                    if not piece:
                        break
                    text += piece
            except OSError:
                pass  # a terminal that nobody has open any more
            os.close(main)
            process.wait(timeout=20)
        return text

    def test_colour_only_on_a_terminal_that_wants_it(self):
        self.start()
        self.assertNotIn("\033", self.cli("status")[0])
        self.assertIn(b"\033[32m", self.on_terminal(TERM="xterm"))
        self.assertNotIn(b"\033", self.on_terminal(TERM="xterm", NO_COLOR="1"))
        self.assertNotIn(b"\033", self.on_terminal(TERM="dumb"))

    def test_proxies_in_the_environment_are_not_asked(self):
        self.start(http_proxy="http://127.0.0.1:1")
        self.cli("status", http_proxy="http://127.0.0.1:1", ALL_PROXY="http://127.0.0.1:1")


class TestSyncStatus(CliTest):

    def test_the_leaders_view(self):
        self.start()
        out, err = self.cli("sync-status")
        self.assertEqual(err, "")
        self.assertIn(f"leader: node 1 at 127.0.0.1:{self.port}, term 7", out)
        row = self.row(out, "2")
        self.assertEqual(row[:6], ["2", f"127.0.0.1:{self.port + 10}", "healthy", "40", "40", "2"])
        self.assertEqual(self.cli("cluster", "sync-status")[0], out)
        document = json.loads(self.cli("sync-status", "-o", "json")[0])
        self.assertEqual(document["followers"][0]["id"], 2)

    def test_a_follower_leads_to_the_leader(self):
        self.start()
        out, _ = self.cli("sync-status", "--nodes", self.http(3))
        self.assertIn("leader: node 1", out)

    def test_no_leader_is_1(self):
        self.start("--timeout", "1", code=REFUSED, FAKE_LEADER="0")
        out, err = self.cli("sync-status", code=REFUSED)
        self.assertEqual(out, "")
        self.assert_one_line(err, "no leader")


class TestResync(CliTest):

    def test_to_the_end_with_bytes_beside_the_size(self):
        self.start()
        for target in ("2", f"127.0.0.1:{self.port + 10}"):
            out, err = self.cli("resync", "--target", target)
            self.assertEqual(self.row(out, "app"), [
                "app", "finished", "1000", "3", "12", "KiB", "3.9", "MiB", "300", "ms", "-"])
            self.assertIn("node 1 to node 2", err)
        document = json.loads(self.cli("cluster", "resync", "--target", "2", "-o", "json")[0])
        self.assertEqual([r["result"] for r in document], ["finished"])

    def test_a_follower_given_as_leader_leads_to_the_leader(self):
        self.start()
        self.cli("resync", "--target", "2", "--leader", self.http(3))

    def test_refusals_give_the_reason(self):
        self.start()
        out, err = self.cli("resync", "--target", "9 9&x=%", code=REFUSED)
        self.assertEqual(out, "")
        self.assert_one_line(err, "HTTP 404", "no member 9 9&x=%")
        self.cli("cluster", "stop")
        self.start(FAKE_RESYNC="409")
        _, err = self.cli("resync", "--target", "2", code=REFUSED)
        self.assert_one_line(err, "HTTP 409", "one is running")

    def test_a_failed_one_is_1(self):
        self.start(FAKE_RESYNC="fail")
        out, _ = self.cli("resync", "--target", "2", code=REFUSED)
        self.assertIn("failed", out)
        self.assertIn("out of memory", out)

    def test_one_without_an_end_is_4(self):
        self.start(FAKE_RESYNC="slow")
        _, err = self.cli("resync", "--target", "2", "--timeout", "1", code=TIMEOUT)
        self.assertIn("still runs", err)
        self.cli("cluster", "stop")
        self.start(FAKE_RESYNC="never")
        _, err = self.cli("resync", "--target", "2", "--timeout", "1", code=TIMEOUT)
        self.assertIn("has not begun", err)


if __name__ == "__main__":
    unittest.main(verbosity=2)
