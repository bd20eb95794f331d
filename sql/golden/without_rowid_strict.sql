-- WITHOUT ROWID and STRICT tables.
CREATE TABLE w(a TEXT, b INTEGER, c BLOB, PRIMARY KEY (b DESC, a)) WITHOUT ROWID;
INSERT INTO w VALUES ('x', 1, x'01'), ('y', 1, NULL), ('x', 2, zeroblob(5000));
INSERT INTO w VALUES ('x', 1, 'again');
INSERT INTO w VALUES (NULL, 1, 'null key');
SELECT rowid FROM w;
CREATE INDEX w_c ON w(c);
SELECT a, b, length(c) FROM w;
UPDATE w SET b = b + 10 WHERE a = 'x';
DELETE FROM w WHERE b = 1;
SELECT a, b, length(c) FROM w;
CREATE TABLE s(i INT, r REAL, t TEXT, b BLOB, x ANY) STRICT;
INSERT INTO s VALUES (1, 2, 'three', x'04', 5);
INSERT INTO s VALUES ('1', '2', 3, x'04', '5');
INSERT INTO s VALUES ('one', 2, 'three', x'04', 5);
INSERT INTO s VALUES (1, 2, 'three', 'four', 5);
SELECT typeof(i), typeof(r), typeof(t), typeof(b), typeof(x) FROM s;
CREATE TABLE bad(i WRONG) STRICT;
