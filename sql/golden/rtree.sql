-- R-Tree, with an auxiliary column.
CREATE VIRTUAL TABLE place USING rtree(id, x0, x1, y0, y1, +name TEXT);
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 400)
INSERT INTO place SELECT i, i % 20, i % 20 + 1, i / 20, i / 20 + 1, 'place ' || i FROM n;
SELECT id, name FROM place WHERE x0 >= 3 AND x1 <= 6 AND y0 >= 5 AND y1 <= 8 ORDER BY id;
UPDATE place SET x0 = -5, x1 = -4 WHERE id BETWEEN 10 AND 20;
DELETE FROM place WHERE id % 7 = 0;
SELECT count(*), min(x0), max(y1) FROM place;
INSERT INTO place VALUES (1000, 5, 4, 0, 1, 'inside out');
SELECT rtreecheck('place');
