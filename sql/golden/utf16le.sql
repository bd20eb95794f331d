-- A database in UTF-16, little-endian.
PRAGMA encoding = 'UTF-16le';
PRAGMA journal_mode = WAL;
PRAGMA encoding;
CREATE TABLE t(id INTEGER PRIMARY KEY, s TEXT COLLATE NOCASE);
INSERT INTO t(s) VALUES ('plain'), ('Ünïcödé'), ('日本語'), ('😀 outside the basic plane'), ('');
CREATE INDEX t_s ON t(s);
SELECT id, s, length(s), hex(s) FROM t ORDER BY s;
SELECT upper(s), instr(s, 'ï') FROM t ORDER BY id;
PRAGMA encoding = 'UTF-8';
PRAGMA encoding;
PRAGMA integrity_check;
