-- Temporary tables are the connection's own and never replicate.
CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
INSERT INTO t(v) VALUES ('one'), ('two'), ('three');
CREATE TEMP TABLE staging(v TEXT);
CREATE TEMP TRIGGER staging_log AFTER INSERT ON staging BEGIN
  INSERT INTO t(v) VALUES ('through a temp trigger: ' || new.v);
END;
INSERT INTO staging VALUES ('a'), ('b');
BEGIN;
DELETE FROM staging;
DELETE FROM t WHERE id = 1;
ROLLBACK;
SELECT count(*) FROM staging;
INSERT INTO t(v) SELECT 'from staging: ' || v FROM staging;
CREATE TEMP TABLE t(shadow);
INSERT INTO t VALUES ('goes to temp');
SELECT * FROM t;
SELECT * FROM main.t;
SELECT name FROM main.sqlite_schema;
SELECT name FROM temp.sqlite_schema;
