#!/usr/bin/python3
"""A start that cannot work: one clear line, exit code 2, nothing half-started."""
import os
import pathlib
import socket
import subprocess
import unittest

import harness

MEMBERS = "1=127.0.0.1:{0},2=127.0.0.1:{1},3=127.0.0.1:{2}"


class TestRefusedStart(unittest.TestCase):

    def setUp(self):
        self.base = pathlib.Path(harness.make_directory())
        self.dir = self.base / "node1"
        port = harness.free_base_port(3)
        self.ports = [port, port + 10, port + 20]
        self.flags = {"--dir": str(self.dir), "--id": "1", "--members": MEMBERS.format(*self.ports)}

    def run_daemon(self, *more, **changed):
        flags = {**self.flags, **{"--" + k: v for k, v in changed.items()}}
        argv = [str(harness.DAEMON)]
        for name, value in flags.items():
            if value is not None:
                argv += [name, value]
        return subprocess.run([*argv, *more], text=True, capture_output=True,
                              timeout=15 * harness.SLOWNESS, env=harness.child_environment(),
                              stdin=subprocess.DEVNULL)

    def assert_refused(self, done, *words):
        self.assertEqual(done.returncode, 2, done.stderr)
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        self.assertEqual(len(errors), 1, done.stderr)
        for word in words:
            self.assertIn(word, errors[0])
        self.assertEqual(done.stdout, "")

    def assert_nothing_started(self):
        self.assertEqual(harness.running_daemons(self.base), [])
        self.assertFalse((self.dir / "flotilla.sock").exists())

    # ---- Flags ----------------------------------------------------------------

    def test_unknown_flag(self):
        self.assert_refused(self.run_daemon("--no-such-flag"), "--no-such-flag")
        self.assert_nothing_started()

    def test_unknown_flag_of_the_cli(self):
        done = subprocess.run([str(harness.CLI), "cluster", "start", "--no-such-flag"], text=True,
                              capture_output=True, timeout=15, cwd=self.base,
                              env=harness.child_environment())
        self.assert_refused(done, "--no-such-flag")

    def test_missing_directory_flag(self):
        self.assert_refused(self.run_daemon(dir=None), "--dir")

    def test_bad_value(self):
        self.assert_refused(self.run_daemon("--election", "soon"), "soon")

    # ---- Member lists -----------------------------------------------------------

    def test_own_number_is_not_a_member(self):
        self.assert_refused(self.run_daemon(id="7"), "7")
        self.assert_nothing_started()

    def test_duplicate_number_address_and_garbage(self):
        a, b, c = self.ports
        for members in (f"1=127.0.0.1:{a},1=127.0.0.1:{b}",
                        f"1=127.0.0.1:{a},2=127.0.0.1:{a}",
                        "", "1", "1=", "=127.0.0.1:1", f"1=127.0.0.1:{a},", "0=127.0.0.1:1",
                        "1=127.0.0.1:99999", "1=127.0.0.1"):
            with self.subTest(members):
                self.assert_refused(self.run_daemon(members=members))
        self.assert_nothing_started()

    # ---- Ports and directories ----------------------------------------------------

    def test_peer_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", self.ports[0]))
            s.listen()
            self.assert_refused(self.run_daemon(), str(self.ports[0]), "in use")
        self.assert_nothing_started()

    def test_http_port_in_use(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", self.ports[0] + 1))
            s.listen()
            self.assert_refused(self.run_daemon(), str(self.ports[0] + 1), "in use")
        self.assert_nothing_started()

    def test_directory_that_cannot_be_made_or_is_a_file(self):
        file = self.base / "file"
        file.write_text("")
        for directory in (file, file / "below", "/proc/no/such"):
            with self.subTest(directory):
                self.assert_refused(self.run_daemon(dir=str(directory)), str(directory))
        self.assert_nothing_started()

    @unittest.skipIf(os.geteuid() == 0, "root may write everywhere")
    def test_unwritable_directory(self):
        self.dir.mkdir(mode=0o500)
        self.assert_refused(self.run_daemon(), str(self.dir))

    # ---- The CLI's cluster ------------------------------------------------------------

    def test_cluster_start_names_the_taken_port_and_leaves_nothing_running(self):
        with socket.socket() as s:
            s.bind(("127.0.0.1", self.ports[1]))
            s.listen()
            done = subprocess.run(
                [str(harness.CLI), "cluster", "start", "--nodes", "3", "--base-port",
                 str(self.ports[0]), "--dir", str(self.base / "run")], text=True,
                capture_output=True, timeout=60 * harness.SLOWNESS, env=harness.child_environment())
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn(str(self.ports[1]), done.stderr)
        harness.wait_for("no daemon to be left", lambda: not harness.running_daemons(self.base))

    def test_cluster_stop_of_nothing_says_so(self):
        done = subprocess.run([str(harness.CLI), "cluster", "stop", "--dir",
                               str(self.base / "nowhere")], text=True, capture_output=True,
                              timeout=15 * harness.SLOWNESS, env=harness.child_environment())
        self.assertNotEqual(done.returncode, 0)
        self.assertTrue(done.stderr.strip())


class TestOccupied(harness.ClusterTest):
    """Against a running cluster."""

    def test_a_second_daemon_on_a_directory_is_refused_and_the_first_goes_on(self):
        node = self.cluster[1]
        pid = node.pid()
        done = subprocess.run(node.argv, text=True, capture_output=True, cwd=self.cluster.base,
                              timeout=15 * harness.SLOWNESS, env=harness.child_environment())
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertEqual(len(done.stderr.strip().splitlines()), 1, done.stderr)
        self.assertEqual(node.pid(), pid)
        self.client(1).sql("CREATE TABLE t(x)")

    def test_another_clusters_node_is_refused_by_both_sides(self):
        node = self.cluster[3]
        node.kill()
        lines = self.cluster[1].log()
        node.start(wait=False, env={"FLOTILLA_CLUSTER": "another"})
        harness.wait_for("a line about the cluster", lambda: "cluster" in
                         self.cluster[1].log()[len(lines):] + node.log()[-3000:].lower())
        self.assertNotEqual(node.http("/readyz")[0] if node.pid() else 503, 200)
        if node.pid():
            node.kill()
        node.start()


if __name__ == "__main__":
    harness.main()
