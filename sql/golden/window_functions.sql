-- Window functions over data and stored results.
CREATE TABLE m(d INTEGER PRIMARY KEY, k TEXT, v INTEGER);
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 24)
INSERT INTO m SELECT i, substr('abc', i % 3 + 1, 1), (i * i) % 17 FROM n;
SELECT d, k, v, sum(v) OVER w, row_number() OVER w, lag(v, 1, -1) OVER w FROM m
  WINDOW w AS (PARTITION BY k ORDER BY d) ORDER BY d;
CREATE TABLE ranked AS
  SELECT d, rank() OVER (ORDER BY v) AS r, dense_rank() OVER (ORDER BY v) AS dr, ntile(4) OVER (ORDER BY v, d) AS q,
    avg(v) OVER (ORDER BY d ROWS BETWEEN 2 PRECEDING AND 2 FOLLOWING EXCLUDE CURRENT ROW) AS around,
    first_value(v) OVER (ORDER BY d RANGE BETWEEN 3 PRECEDING AND CURRENT ROW) AS recent,
    group_concat(k, '') FILTER (WHERE v > 5) OVER (ORDER BY d GROUPS 2 PRECEDING) AS keys
  FROM m;
SELECT * FROM ranked ORDER BY d;
UPDATE m SET v = (SELECT r FROM ranked WHERE ranked.d = m.d);
SELECT sum(v) FROM m;
