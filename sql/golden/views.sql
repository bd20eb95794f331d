-- Views, CTEs and compound queries over them.
CREATE TABLE sale(id INTEGER PRIMARY KEY, region TEXT, amount INTEGER);
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 60)
INSERT INTO sale(region, amount) SELECT substr('NESW', i % 4 + 1, 1), (i * 37) % 100 FROM n;
CREATE VIEW by_region(region, total, largest) AS
  SELECT region, sum(amount), max(amount) FROM sale GROUP BY region;
CREATE VIEW top AS SELECT * FROM by_region WHERE total > (SELECT avg(total) FROM by_region);
CREATE TEMP VIEW private AS SELECT count(*) AS c FROM main.sale;
SELECT * FROM by_region ORDER BY region;
SELECT * FROM top ORDER BY region;
SELECT c FROM private;
SELECT region FROM by_region EXCEPT SELECT region FROM top ORDER BY 1;
INSERT INTO by_region VALUES ('X', 1, 1);
DROP VIEW top;
SELECT name FROM sqlite_schema WHERE type = 'view';
