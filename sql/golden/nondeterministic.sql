-- compare: nodes
-- Random values and the clock: computed once, the same bytes everywhere. Plain
-- SQLite cannot be the oracle here; the nodes are compared with each other.
CREATE TABLE t(id INTEGER PRIMARY KEY, r INTEGER DEFAULT (random()), at TEXT DEFAULT (strftime('%Y-%m-%d %H:%M:%f', 'now')), b BLOB);
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 300)
INSERT INTO t(b) SELECT randomblob(abs(random() % 5000)) FROM n;
UPDATE t SET r = random() WHERE id IN (SELECT id FROM t ORDER BY random() LIMIT 100);
DELETE FROM t WHERE r % 3 = 0;
CREATE TRIGGER t_random AFTER INSERT ON t BEGIN
  INSERT INTO t(b) SELECT randomblob(10) WHERE (SELECT count(*) FROM t) % 5 > 0;
END;
INSERT INTO t(b) VALUES (randomblob(100));
