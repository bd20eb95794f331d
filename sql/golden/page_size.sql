-- Run once for each page size, with "PRAGMA page_size = N" before it.
PRAGMA journal_mode = WAL;
PRAGMA page_size;
CREATE TABLE t(id INTEGER PRIMARY KEY, k TEXT UNIQUE, v BLOB);
PRAGMA page_size;
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 400)
INSERT INTO t SELECT i, 'key ' || (i * 7919 % 1000003), zeroblob(i * 13 % 3000) FROM n;
PRAGMA page_count;
UPDATE t SET v = CAST(printf('%01000d', id) AS BLOB) WHERE id % 5 = 0;
DELETE FROM t WHERE id % 3 = 0;
PRAGMA freelist_count;
BEGIN;
INSERT INTO t VALUES (1000, 'big', zeroblob(200000));
DELETE FROM t WHERE id < 50;
ROLLBACK;
INSERT INTO t VALUES (1001, 'big', zeroblob(200000));
-- In WAL mode the page size stays; VACUUM does not change it.
PRAGMA page_size = 8192;
VACUUM;
PRAGMA page_size;
PRAGMA page_count;
SELECT count(*), sum(length(v)), min(k), max(k) FROM t;
PRAGMA integrity_check;
