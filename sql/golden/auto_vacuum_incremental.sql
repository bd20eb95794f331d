-- auto_vacuum = incremental: pages move and the file shrinks when asked.
PRAGMA auto_vacuum = incremental;
PRAGMA journal_mode = WAL;
CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
CREATE TABLE u(id INTEGER PRIMARY KEY, v BLOB);
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 300)
INSERT INTO t SELECT i, zeroblob(3000 + i) FROM n;
INSERT INTO u SELECT id, v FROM t;
PRAGMA page_count;
DELETE FROM t WHERE id > 20;
PRAGMA page_count;
PRAGMA freelist_count;
PRAGMA incremental_vacuum(50);
PRAGMA page_count;
PRAGMA freelist_count;
DROP TABLE t;
PRAGMA incremental_vacuum;
PRAGMA page_count;
PRAGMA auto_vacuum;
SELECT count(*), sum(length(v)) FROM u;
PRAGMA integrity_check;
