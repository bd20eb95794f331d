#!/usr/bin/python3
"""Ordinary SQL behaves through Flotilla as it does in plain SQLite.

The oracle is the same sqlite3 shell running the same script on an ordinary
file. What both print must be equal, and so must be what they leave behind, as
plain SQLite reads it on every node. See sql/golden/README.md."""
import itertools
import pathlib
import subprocess
import tempfile

import harness

GOLDEN = harness.SOURCE / "sql" / "golden"
PAGE_SIZES = [512 << i for i in range(8)]
STATE_PRAGMAS = ("page_size", "page_count", "freelist_count", "auto_vacuum", "encoding",
                 "user_version", "application_id", "schema_version", "journal_mode",
                 "integrity_check")


# ---- Fixture ------------------------------------------------------------------


def shell(commands, directory, extension=False):
    """What the sqlite3 shell prints, errors in their places."""
    done = subprocess.run(
        ["sqlite3", "-batch", "-init", "/dev/null"], input=commands, cwd=directory, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60 * harness.SLOWNESS,
        env=harness.child_environment(sanitized_extension=extension))
    return done.stdout


def run_script(script, prefix, database, extension):
    """Run it in a directory of its own: some scripts make files beside it."""
    load = f".load {harness.EXTENSION}\n" if extension else ""
    with tempfile.TemporaryDirectory() as directory:
        return shell(f"{load}.open '{database}'\n{prefix}.headers on\n.read '{script}'\n",
                     directory, extension)


def state(database):
    """Content and properties, through plain SQLite."""
    pragmas = "".join(f"SELECT '{p}';\nPRAGMA {p};\n" for p in STATE_PRAGMAS)
    return shell(f".open 'file:{database}?mode=ro'\n{pragmas}.dump\n", "/")


def cases():
    """(name, script, prefix, has an oracle)"""
    for script in sorted(GOLDEN.glob("*.sql")):
        text = script.read_text()
        oracle = not text.startswith("-- compare: nodes")
        if script.stem == "page_size":
            for size in PAGE_SIZES:
                yield f"page-size-{size}", script, f"PRAGMA page_size = {size};\n", oracle
        else:
            wal = "" if "PRAGMA journal_mode = WAL" in text else "PRAGMA journal_mode = WAL;\n"
            yield script.stem.replace("_", "-"), script, wal, oracle


# ---- Tests --------------------------------------------------------------------


class TestGolden(harness.ClusterTest):
    env = {"FLOTILLA_MAX_DATABASES": "128"}

    def assert_same_text(self, text, wanted, where):
        """Dumps are megabytes: show where they part, not how they differ."""
        if text == wanted:
            return
        pairs = itertools.zip_longest(text.splitlines(), wanted.splitlines())
        for number, (a, b) in enumerate(pairs, 1):
            if a != b:
                self.fail(f"{where}, line {number}:\n  {a!r:.300}\nwanted\n  {b!r:.300}")
        self.fail(f"{where}: line ends differ")

    def check(self, number, name, script, prefix, oracle):
        """Write on one node, a different one for each script; read on all."""
        writer = self.cluster[number % 3 + 1]
        printed = run_script(script, prefix, writer.db(name), extension=True)
        self.cluster.wait_converged(name)
        states = {n.id: state(n.db(name)) for n in self.cluster}
        if oracle:
            with tempfile.TemporaryDirectory() as directory:
                plain = pathlib.Path(directory) / "plain.db"
                wanted = run_script(script, prefix, plain, extension=False)
                wanted_state = state(plain)
            self.assert_same_text(printed, wanted, f"printed on node {writer.id}")
            self.assert_same_text(states[writer.id], wanted_state, f"on node {writer.id}")
        for node in self.cluster:
            self.assert_same_text(states[node.id], states[writer.id], f"node {node.id}")
        self.assertTrue("integrity_check\nok" in states[writer.id], "integrity_check")
        self.cluster.assert_same_bytes(self, name)


def add_tests():
    for number, case in enumerate(cases()):
        def test(self, number=number, case=case):
            self.check(number, *case)
        setattr(TestGolden, "test_" + case[0].replace("-", "_"), test)


add_tests()

if __name__ == "__main__":
    harness.main()
