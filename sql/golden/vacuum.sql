-- VACUUM and VACUUM INTO.
CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 2000)
INSERT INTO t SELECT i, CAST(printf('%0400d', i) AS BLOB) FROM n;
CREATE INDEX t_v ON t(substr(v, -4));
PRAGMA page_count;
DELETE FROM t WHERE id % 3;
PRAGMA freelist_count;
VACUUM;
PRAGMA page_count;
PRAGMA freelist_count;
VACUUM INTO 'vacuumed.db';
ATTACH 'vacuumed.db' AS other;
SELECT count(*) FROM other.t;
DETACH other;
BEGIN;
VACUUM;
ROLLBACK;
DELETE FROM t;
VACUUM;
PRAGMA page_count;
INSERT INTO t VALUES (1, 'after');
SELECT * FROM t;
PRAGMA integrity_check;
