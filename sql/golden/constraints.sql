-- Every kind of constraint, kept and broken.
CREATE TABLE t(
  id INTEGER PRIMARY KEY,
  u TEXT UNIQUE,
  n INTEGER NOT NULL,
  c INTEGER CHECK (c BETWEEN 0 AND 9),
  d TEXT DEFAULT 'dflt',
  UNIQUE (n, c)
);
INSERT INTO t(u, n, c) VALUES ('a', 1, 1);
INSERT INTO t(u, n, c) VALUES ('a', 2, 2);
INSERT INTO t(u, n, c) VALUES ('b', NULL, 2);
INSERT INTO t(u, n, c) VALUES ('b', 2, 10);
INSERT INTO t(u, n, c) VALUES ('b', 1, 1);
INSERT INTO t(id, u, n) VALUES (1, 'c', 3);
INSERT OR IGNORE INTO t(u, n, c) VALUES ('a', 5, 5);
INSERT OR REPLACE INTO t(u, n, c) VALUES ('a', 6, 6);
INSERT INTO t(u, n, c) VALUES ('ok1', 7, 7), ('a', 8, 8);
INSERT OR FAIL INTO t(u, n, c) VALUES ('kept', 7, 7), ('a', 8, 8), ('never', 9, 9);
UPDATE t SET c = c + 5;
UPDATE OR IGNORE t SET n = 7, c = 7;
BEGIN;
INSERT INTO t(u, n) VALUES ('in transaction', 20);
INSERT OR ROLLBACK INTO t(u, n) VALUES ('a', 21);
COMMIT;
SELECT changes(), total_changes();
SELECT * FROM t ORDER BY id;
