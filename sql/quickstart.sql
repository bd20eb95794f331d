-- What ./quickstart writes on node 1. Ordinary SQL: nothing here knows that the
-- database is replicated. Can be run again.
CREATE TABLE IF NOT EXISTS visit(
  id   INTEGER PRIMARY KEY,
  note TEXT NOT NULL,
  at   TEXT NOT NULL DEFAULT (datetime('now')),
  dice INTEGER NOT NULL DEFAULT (abs(random() % 6) + 1)
);

-- random() and datetime('now') are computed once, here; every node gets the
-- same bytes.
INSERT INTO visit(note) VALUES ('hello from node 1');

BEGIN;
INSERT INTO visit(note) VALUES ('two rows');
INSERT INTO visit(note) VALUES ('in one transaction');
COMMIT;

BEGIN;
DELETE FROM visit;
ROLLBACK;

SELECT id, note, at FROM visit ORDER BY id DESC LIMIT 3;
