-- One transaction of some megabytes, with a cache so small that most of it is
-- spilled to the log before COMMIT, and pages are written more than once.
PRAGMA cache_size = 20;
CREATE TABLE t(id INTEGER PRIMARY KEY, k INTEGER, v BLOB);
CREATE INDEX t_k ON t(k);
BEGIN;
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO t SELECT i, i * 7919 % 20011, CAST(printf('%0300d', i) AS BLOB) FROM n;
UPDATE t SET v = CAST(printf('%0280d', -id) AS BLOB) WHERE k % 2;
DELETE FROM t WHERE k % 10 = 3;
SELECT count(*) FROM t;
COMMIT;
SELECT count(*), sum(k), sum(length(v)) FROM t;
UPDATE t SET k = -k;
SELECT count(*), sum(k) FROM t INDEXED BY t_k WHERE k < 0;
PRAGMA integrity_check;
