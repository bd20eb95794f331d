-- Transactions, savepoints and rollbacks at every depth.
CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
BEGIN;
INSERT INTO t VALUES (1, 'kept');
SAVEPOINT a;
INSERT INTO t VALUES (2, 'gone');
SAVEPOINT b;
INSERT INTO t VALUES (3, 'gone too');
ROLLBACK TO b;
INSERT INTO t VALUES (4, 'gone with a');
RELEASE b;
SELECT 'inside', * FROM t;
ROLLBACK TO a;
INSERT INTO t VALUES (5, 'kept');
RELEASE a;
COMMIT;
SAVEPOINT outermost;
INSERT INTO t VALUES (6, 'kept: a savepoint outside a transaction begins one');
RELEASE outermost;
SAVEPOINT outermost;
DELETE FROM t;
ROLLBACK TO outermost;
RELEASE outermost;
BEGIN IMMEDIATE;
UPDATE t SET v = 'never';
ROLLBACK;
BEGIN EXCLUSIVE;
INSERT INTO t VALUES (7, 'exclusive');
END;
COMMIT;
ROLLBACK TO no_such_savepoint;
BEGIN;
BEGIN;
-- A statement that fails in the middle undoes itself and leaves the rest.
INSERT INTO t VALUES (8, 'kept');
INSERT INTO t SELECT id + 8, 'clashes' FROM t WHERE id IN (1, 2) UNION ALL SELECT 8, 'clash';
COMMIT;
-- A large rolled back savepoint inside a small transaction: frames that were
-- spilled to the log must not come back.
PRAGMA cache_size = 10;
BEGIN;
INSERT INTO t VALUES (9, 'kept');
SAVEPOINT big;
WITH RECURSIVE n(i) AS (VALUES (100) UNION ALL SELECT i + 1 FROM n WHERE i < 3000)
INSERT INTO t SELECT i, printf('%0500d', i) FROM n;
SELECT count(*) FROM t;
ROLLBACK TO big;
INSERT INTO t VALUES (10, 'kept');
COMMIT;
SELECT * FROM t;
PRAGMA integrity_check;
