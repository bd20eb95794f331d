#!/usr/bin/python3
"""SIGKILL to clients and daemons at random points under load, for a bounded
time; then every acknowledged row is on every node, no refused one is, unknown
outcomes are what flotilla_committed() said, checksums are equal, and SQLite finds
all replicas sound.

FLOTILLA_KILL_SECONDS: how long (default 20). FLOTILLA_KILL_SEED: the order of the
faults and their times (not what the scheduler makes of them)."""
import collections
import os
import random
import signal
import threading
import time

import harness
from harness import BUSY, wait_for

SECONDS = float(os.environ.get("FLOTILLA_KILL_SECONDS", 20))
SEED = int(os.environ.get("FLOTILLA_KILL_SEED", random.randrange(1 << 32)))
CLIENTS_PER_NODE = 2


class Ledger:
    """What the clients were told. Attempts are (client, number)."""

    def __init__(self):
        self.lock = threading.Lock()
        self.committed = set()
        self.refused = set()
        self.unknown = set()  # never resolved, or the client died asking
        self.resolved = 0
        self.codes = collections.Counter()

    def note(self, client, message):
        kind, number, details = message
        attempt = (client, number)
        with self.lock:
            if kind == "try":
                self.unknown.add(attempt)
                return
            self.unknown.discard(attempt)
            if kind == "ok" or (kind == "unknown" and details == 1):
                self.committed.add(attempt)
            elif kind == "failed" or details == 0:
                self.refused.add(attempt)
            else:
                self.unknown.add(attempt)
            if kind == "unknown":
                self.resolved += details is not None
                self.codes["unknown"] += 1
            elif kind == "failed":
                self.codes[details] += 1


class LoadClient(threading.Thread):
    """Keeps one client process writing; a killed one is replaced by the next,
    under a new number."""

    numbers = iter(range(1, 1 << 30))

    def __init__(self, node, ledger, end):
        super().__init__(daemon=True)
        self.node, self.ledger, self.end = node, ledger, end
        self.client = None
        self.kills = 0
        self.error = None

    def run(self):
        while time.monotonic() < self.end and self.error is None:
            try:
                self.one_process(next(self.numbers))
            except harness.ClientDied:
                continue
            except Exception as e:
                self.error = e

    def one_process(self, number):
        client = harness.Client(timeout=3.0)
        try:
            self.open(client)
            client.send("insert_loop", "main", number, max(0.1, self.end - time.monotonic()))
            self.client = client
            while True:
                message = client.receive_raw(30 * harness.SLOWNESS)
                if message is None:
                    raise harness.ClientDied()
                if len(message) == 2:  # the answer of insert_loop itself
                    if message[0] != "ok":
                        raise AssertionError(f"client {number}: {message}")
                    return
                self.ledger.note(number, message)
        finally:
            self.client = None
            client.close()

    def open(self, client):
        """Opening may meet a node in the middle of its start."""
        wait_for("a client to open its database",
                 lambda: client.open(self.node.db(), timeout=3.0) or True, 20)

    def kill(self):
        client = self.client
        if client is None:
            return False
        os.kill(client.process.pid, signal.SIGKILL)
        return True


class Nemesis:
    """One fault after the other from a shuffled deck, so that each kind comes
    up; daemons come back after a while."""

    def __init__(self, cluster, clients, rng):
        self.cluster, self.clients, self.rng = cluster, clients, rng
        self.fired = collections.Counter()
        self.deck = []
        self.kinds = {
            "kill a client": self.kill_client,
            "kill a follower": self.kill_follower,
            "kill the leader": self.kill_leader,
            "stop the leader for a while": self.stop_leader,
            "kill a majority": self.kill_majority,
            "kill all nodes": self.kill_all,
        }

    def run(self, end):
        while time.monotonic() < end:
            if not self.deck:
                # Clients die more often: there are more places to die in.
                self.deck = [*self.kinds, *["kill a client"] * 6]
                self.rng.shuffle(self.deck)
            self.pause(0.05, 0.6)
            kind = self.deck.pop()
            if self.kinds[kind]():
                self.fired[kind] += 1

    def pause(self, least, most):
        # Not a wait for an event: the random time is what is injected.
        time.sleep(self.rng.uniform(least, most) * harness.SLOWNESS ** 0.5)

    def kill_client(self):
        return self.rng.choice(self.clients).kill()

    def kill_nodes(self, nodes):
        pids = [(n, n.pid()) for n in nodes]
        for _, pid in pids:
            os.kill(pid, signal.SIGKILL)
        for n, pid in pids:
            wait_for("the killed daemon to be gone", lambda n=n, pid=pid: not n.alive(pid))
        self.pause(0, 1.2)
        for n in nodes:
            n.start(wait=False)
        for n in nodes:
            n.wait_ready(30)
        return True

    def leader(self):
        return wait_for("a leader", self.cluster.find_leader, 20)

    def kill_leader(self):
        return self.kill_nodes([self.leader()])

    def kill_follower(self):
        leader = self.leader()
        return self.kill_nodes([self.rng.choice([n for n in self.cluster if n is not leader])])

    def kill_majority(self):
        return self.kill_nodes(self.rng.sample(list(self.cluster), 2))

    def kill_all(self):
        return self.kill_nodes(list(self.cluster))

    def stop_leader(self):
        leader = self.leader()
        leader.kill(signal.SIGSTOP)
        self.pause(0.5, 2)
        leader.kill(signal.SIGCONT)
        return True


class TestKillLoop(harness.ClusterTest):

    def test_every_acknowledged_row_survives_on_every_node(self):
        replay = f"FLOTILLA_KILL_SEED={SEED} FLOTILLA_KILL_SECONDS={SECONDS:g} {__file__}"
        print(f"seed {SEED}; again: {replay}", flush=True)
        try:
            self.kill_loop()
        finally:
            print(f"seed {SEED}; again: {replay}", flush=True)

    def kill_loop(self):
        c = self.client(1, database="app")
        c.sql("CREATE TABLE load(client, number, b, PRIMARY KEY (client, number))")
        c.sql("CREATE TABLE counter(n)")
        c.sql("INSERT INTO counter VALUES (0)")
        self.cluster.wait_converged()
        ledger, end = Ledger(), time.monotonic() + SECONDS
        clients = [LoadClient(n, ledger, end) for n in self.cluster for _ in range(CLIENTS_PER_NODE)]
        nemesis = Nemesis(self.cluster, clients, random.Random(SEED))
        for t in clients:
            t.start()
        nemesis.run(end)
        for t in clients:
            t.join(60 * harness.SLOWNESS)
        self.report(ledger, nemesis)
        self.assertEqual([t.error for t in clients if t.error or t.is_alive()], [])
        self.check_outcomes(ledger)
        self.check_nodes(ledger)
        for kind in nemesis.kinds:
            self.assertGreater(nemesis.fired[kind], 0, f"never fired: {kind}")

    def report(self, ledger, nemesis):
        print(f"{len(ledger.committed)} committed, {len(ledger.refused)} refused, "
              f"{ledger.resolved} unknown and resolved, {len(ledger.unknown)} unknown")
        for kind, n in nemesis.fired.most_common():
            print(f"  {n:4} × {kind}")
        for code, n in ledger.codes.most_common():
            print(f"  {n:4} × {code}")

    def check_outcomes(self, ledger):
        """A write is committed, certainly not (BUSY), or unknown."""
        other = [c for c in ledger.codes if c != "unknown" and c[0] & 0xFF != BUSY]
        self.assertEqual(other, [])
        self.assertGreater(len(ledger.committed), SECONDS, "hardly anything was written")

    def check_nodes(self, ledger):
        self.cluster.leader(20)
        self.cluster.wait_converged(seconds=30)
        self.cluster.wait_healthy()
        for node in self.cluster:
            reader = self.plain(node, "app")
            found = set(reader.sql("SELECT client, number FROM load"))
            self.assertEqual(ledger.committed - found, set(), f"lost on node {node.id}")
            self.assertEqual(ledger.refused & found, set(), f"refused, but on node {node.id}")
            self.assertEqual(found - ledger.committed - ledger.unknown, set(),
                             f"from nowhere, on node {node.id}")
            # Transactions are whole.
            self.assertEqual(reader.one("SELECT count(*) FROM load WHERE number % 3 = 0"),
                             reader.one("SELECT n FROM counter"), f"node {node.id}")
        self.cluster.assert_same_bytes(self, "app")


if __name__ == "__main__":
    harness.main()
