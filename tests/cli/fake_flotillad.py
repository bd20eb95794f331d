#!/usr/bin/python3
"""Stands in for flotillad where only the flotilla command is under test.

Takes the flags that `flotilla cluster start` gives, listens on both ports and
answers HTTP as a leader or a follower would. It replicates nothing. What goes wrong is asked for through the environment:

    FAKE_EXIT=2:5:text    node 2 prints text and exits with code 5
    FAKE_NOT_READY=3      /readyz of node 3 is 503
    FAKE_KEEP=2           node 2 ignores SIGTERM
    FAKE_LEADER=2         node 2 leads (default 1; 0: nobody)
    FAKE_HANG=3           node 3 takes connections and never answers
    FAKE_RESYNC=409|fail|never|slow
                          how force-resync goes (default: done in 300 ms)
    FAKE_REASON=text      ready_reason of a node that is not ready
"""
import argparse
import datetime
import http.server
import json
import os
import pathlib
import signal
import socket
import socketserver
import sys
import time
import urllib.parse

flags = argparse.ArgumentParser()
for name in ("dir", "id", "members", "listen", "http"):
    flags.add_argument("--" + name, required=True)
flags = flags.parse_args()
me = int(flags.id)
leader = int(os.environ.get("FAKE_LEADER", "1"))
members = dict(m.split("=") for m in flags.members.split(","))
resyncs = []


def is_me(variable):
    return os.environ.get(variable) == flags.id


def http_of(number):
    host, port = members[str(number)].rsplit(":", 1)
    return f"{host}:{int(port) + 1}"


def leader_document():
    if leader == 0:
        return None
    return {"id": leader, "address": members[str(leader)], "http": http_of(leader)}


def databases():
    return [{"name": "app", "txid": "9007199254740993", "checksum": "00000000000000ff",
             "health": "healthy", "state": "good", "size_bytes": 4096000, "stuck_pid": 0}]


def followers():
    return [{"id": int(i), "address": a, "health": "healthy", "last_replicated_index": 40,
             "applied_index": 40, "lag": 2, "last_latency_ms": 0.5, "last_contact_ms": 12,
             "pending_count": 0, "consecutive_failures": 0, "free_bytes": 1 << 30,
             "databases": {d["name"]: d for d in databases()}}
            for i, a in members.items() if int(i) != leader]


def status():
    ready = not is_me("FAKE_NOT_READY") and leader != 0
    return {"node_id": me, "raft_state": "leader" if me == leader else "follower",
            "is_leader": me == leader, "leader": leader_document(), "term": 7,
            "commit_index": 42, "last_applied": 42 if me == leader else 40, "live": True,
            "ready": ready,
            "ready_reason": "" if ready else os.environ.get("FAKE_REASON", "no leader"),
            "disk_low": False, "databases": databases(),
            "members": [{"id": int(i), "address": a, "self": int(i) == me}
                        for i, a in members.items()]}


def sync_status():
    document = {"node_id": me, "is_leader": me == leader, "leader": leader_document(), "term": 7,
                "commit_index": 42, "databases": databases()}
    if me == leader:
        document["followers"] = followers()
    return document


def rfc3339(t):
    text = datetime.datetime.fromtimestamp(t, datetime.timezone.utc).isoformat(
        timespec="milliseconds")
    return text.replace("+00:00", "Z")


def resync_record(target, started):
    how = os.environ.get("FAKE_RESYNC", "")
    record = {"database": "app", "reason": "forced", "source": leader, "target": target,
              "started_at": rfc3339(started), "finished_at": None, "pages_compared": 1000,
              "pages_sent": 3, "bytes_sent": 12300, "duration_ms": None, "result": "running",
              "error": None}
    if time.time() > started + 0.3 and how != "slow":
        record.update(finished_at=rfc3339(started + 0.3), duration_ms=300,
                      result="failed" if how == "fail" else "finished",
                      error="out of memory" if how == "fail" else None)
    return record


def resync_stats():
    old = resync_record(2, 1.0e9)
    return {"started": len(resyncs), "last": [resync_record(*r) for r in resyncs] + [old]}


def force_resync(query):
    how = os.environ.get("FAKE_RESYNC", "")
    target = query.get("target", [""])[0]
    found = [int(i) for i, a in members.items() if target in (i, a)]
    error = {"leader": leader_document()}
    if me != leader:
        return 409, {"error": {**error, "code": "not_leader", "message": "ask the leader"}}
    if not found:
        return 404, {"error": {**error, "code": "not_found", "message": f"no member {target}"}}
    if how == "409":
        return 409, {"error": {**error, "code": "resync_running", "message": "one is running"}}
    if how != "never":
        resyncs.insert(0, (found[0], time.time()))
    return 202, {"status": "started", "target": {"id": found[0], "address": target}}


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, code, body, kind="application/json"):
        data = (json.dumps(body) if kind == "application/json" else body).encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if is_me("FAKE_HANG"):
            time.sleep(60)
        documents = {"/status": status, "/_raft/sync-status": sync_status,
                     "/_raft/resync_stats": resync_stats}
        if self.path == "/readyz":
            ready = status()["ready"]
            self.answer(200 if ready else 503, "ok\n" if ready else "[-]leader\n", "text/plain")
        elif self.path in documents:
            self.answer(503 if self.path != "/status" and leader == 0 else 200,
                        documents[self.path]())
        else:
            self.answer(404, {"error": {"code": "not_found", "message": "", "leader": None}})

    def do_POST(self):
        url = urllib.parse.urlsplit(self.path)
        self.answer(*force_resync(urllib.parse.parse_qs(url.query)))

    def log_message(self, *args):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def bound(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


def main():
    number, _, rest = os.environ.get("FAKE_EXIT", "").partition(":")
    if number == flags.id:
        code, _, text = rest.partition(":")
        print("level=info event=starting", file=sys.stderr)
        print(text, file=sys.stderr)
        return int(code)
    (pathlib.Path(flags.dir) / "raft").mkdir(exist_ok=True)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if is_me("FAKE_KEEP") else
                  lambda *_: os._exit(0))
    peers = socket.socket()
    peers.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    peers.bind(bound(flags.listen))
    peers.listen()
    Server(bound(flags.http), Handler).serve_forever()
    return 0


sys.exit(main())
