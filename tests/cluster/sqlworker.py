"""One process with SQLite connections in it, driven over stdin and stdout.

The tests never open a database in their own process: a client must be able to
be killed, stopped or made to wait while the test goes on, and a descriptor that
one connection closes drops the POSIX locks of all others in its process.

Requests and answers are pickles with a length before them. Run by harness.py:

    python3 sqlworker.py [EXTENSION]
"""
import hashlib
import os
import pickle
import signal
import sqlite3
import struct
import sys
import threading
import time


def read_message(stream):
    head = stream.read(4)
    if len(head) < 4:
        return None
    return pickle.loads(stream.read(struct.unpack("<I", head)[0]))


def write_message(stream, message):
    data = pickle.dumps(message)
    stream.write(struct.pack("<I", len(data)) + data)
    stream.flush()


class Worker:
    def __init__(self):
        self.connections = {}

    def open(self, name, path, timeout, uri=False):
        self.connections[name] = sqlite3.connect(
            path, timeout=timeout, isolation_level=None, uri=uri)

    def close(self, name):
        self.connections.pop(name).close()

    def sql(self, name, sql, params=()):
        return self.connections[name].execute(sql, params).fetchall()

    def many(self, name, sql, rows):
        self.connections[name].executemany(sql, rows)

    def fingerprint(self, name):
        """A hash of every page, as plain SQLite reads the database."""
        return hashlib.sha256(self.connections[name].serialize()).hexdigest()

    def die_during(self, name, statements, delay):
        """Run the statements; SIGKILL this process delay seconds after the
        start of the first, wherever it is then. Answers if it was too quick."""
        def die():
            time.sleep(delay)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=die, daemon=True).start()
        for statement in statements:
            self.connections[name].execute(statement)
        return "survived"

    def insert_loop(self, name, client, seconds):
        """Insert numbered rows until the time is up, telling of each before and
        after. See test_killloop.py, which owns the tables."""
        db = self.connections[name]
        end = time.monotonic() + seconds
        number = 0
        while time.monotonic() < end:
            number += 1
            # Said before the attempt: if this process dies in it, the attempt
            # is known and its outcome is not.
            write_message(sys.stdout.buffer, ("try", number, None))
            write_message(sys.stdout.buffer, attempt(db, client, number))
        return number


UNKNOWN = 10 | 200 << 8


def attempt(db, client, number):
    """One write: ("ok" | "failed" | "unknown", number, details). Every third one
    is a transaction of two statements."""
    try:
        if number % 3 == 0:
            db.execute("BEGIN IMMEDIATE")
            db.execute("INSERT INTO load VALUES (?, ?, randomblob(20))", (client, number))
            db.execute("UPDATE counter SET n = n + 1")
            db.execute("COMMIT")
        else:
            db.execute("INSERT INTO load VALUES (?, ?, randomblob(abs(random() % 9000)))",
                       (client, number))
        return ("ok", number, None)
    except sqlite3.Error as e:
        code = getattr(e, "sqlite_errorcode", -1)
        details = (code, str(e))
        if code == UNKNOWN:
            details = resolve(db)
        if db.in_transaction:
            db.execute("ROLLBACK")
        return ("unknown" if code == UNKNOWN else "failed", number, details)


def resolve(db):
    """1 or 0 once the cluster can tell what became of the last commit; None if
    it cannot within some seconds."""
    token = db.execute("SELECT flotilla_last_commit()").fetchone()[0]
    deadline = time.monotonic() + 3
    while time.monotonic() < deadline:
        committed = db.execute("SELECT flotilla_committed(?)", (token,)).fetchone()[0]
        if committed is not None:
            return committed
        time.sleep(0.02)
    return None


def answer(worker, request):
    operation, arguments = request
    try:
        return ("ok", getattr(worker, operation)(*arguments))
    except sqlite3.Error as e:
        return ("sql error", (getattr(e, "sqlite_errorcode", -1),
                              getattr(e, "sqlite_errorname", "?"), str(e)))
    except Exception as e:  # a bug in a test, said where the test is
        return ("exception", repr(e))


def main():
    if len(sys.argv) > 1:
        loader = sqlite3.connect(":memory:")
        loader.enable_load_extension(True)
        loader.load_extension(sys.argv[1])
        loader.close()
    worker = Worker()
    while (request := read_message(sys.stdin.buffer)) is not None:
        write_message(sys.stdout.buffer, answer(worker, request))


if __name__ == "__main__":
    main()
