-- Blobs and texts far larger than a page; overflow chains made and freed.
CREATE TABLE b(id INTEGER PRIMARY KEY, data BLOB);
INSERT INTO b VALUES (1, zeroblob(1000000)), (2, x'0102030405'), (3, zeroblob(0)), (4, NULL);
WITH RECURSIVE n(s, i) AS (SELECT 'flotilla', 0 UNION ALL SELECT s || s || i, i + 1 FROM n WHERE i < 16)
INSERT INTO b SELECT 10 + i, CAST(s AS BLOB) FROM n;
SELECT id, length(data), typeof(data), hex(substr(data, -8)) FROM b ORDER BY id;
UPDATE b SET data = substr(data, 1, length(data) / 3) WHERE id > 20;
UPDATE b SET data = CAST(data || 'tail' AS BLOB) WHERE id = 1;
DELETE FROM b WHERE id = 24;
INSERT INTO b VALUES (100, zeroblob(3000000));
UPDATE b SET data = x'00' WHERE id = 100;
SELECT id, length(data), hex(substr(data, -4)) FROM b ORDER BY id;
PRAGMA freelist_count;
PRAGMA page_count;
PRAGMA integrity_check;
