-- UPSERT and RETURNING.
CREATE TABLE word(w TEXT PRIMARY KEY, n INTEGER NOT NULL DEFAULT 1, last INTEGER) WITHOUT ROWID;
INSERT INTO word(w, last) VALUES ('a', 1), ('b', 2), ('a', 3)
  ON CONFLICT(w) DO UPDATE SET n = n + 1, last = excluded.last;
INSERT INTO word(w, last) VALUES ('b', 9), ('c', 9) ON CONFLICT DO NOTHING;
INSERT INTO word(w, last) VALUES ('a', 0)
  ON CONFLICT(w) DO UPDATE SET last = excluded.last WHERE excluded.last > word.last;
INSERT INTO word(w, n) VALUES ('d', 4), ('a', 10)
  ON CONFLICT(w) DO UPDATE SET n = n + excluded.n RETURNING w, n, last;
UPDATE word SET n = n * 2 WHERE w < 'c' RETURNING *;
DELETE FROM word WHERE n > 10 RETURNING w;
UPDATE word SET n = s.total FROM (SELECT sum(n) AS total FROM word) AS s WHERE w = 'c';
SELECT * FROM word ORDER BY w;
REPLACE INTO word VALUES ('c', 0, 0);
SELECT * FROM word ORDER BY w;
