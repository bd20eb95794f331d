-- Full-text search: content, external content, rebuild, merge, ranking.
CREATE VIRTUAL TABLE doc USING fts5(title, body, tokenize = 'porter unicode61', prefix = '2 3');
INSERT INTO doc VALUES
  ('ships', 'A flotilla is a small fleet of ships sailing together'),
  ('boats', 'Small boats sail faster than large ships'),
  ('other', 'Nothing about water in here');
SELECT rowid, title FROM doc WHERE doc MATCH 'sail' ORDER BY rank, rowid;
SELECT snippet(doc, 1, '[', ']', '…', 5) FROM doc WHERE doc MATCH 'small' ORDER BY rowid;
SELECT highlight(doc, 1, '<', '>') FROM doc WHERE doc MATCH 'fle*' ORDER BY rowid;
UPDATE doc SET body = 'water at last' WHERE title = 'other';
DELETE FROM doc WHERE title = 'boats';
SELECT title FROM doc('water');
WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < 500)
INSERT INTO doc SELECT 'n' || i, 'word' || (i % 50) || ' common text number ' || i FROM n;
SELECT count(*) FROM doc WHERE doc MATCH 'common';
SELECT count(*) FROM doc WHERE doc MATCH 'word7 OR word8';
INSERT INTO doc(doc) VALUES ('optimize');
INSERT INTO doc(doc) VALUES ('integrity-check');
CREATE TABLE article(id INTEGER PRIMARY KEY, body TEXT);
CREATE VIRTUAL TABLE article_fts USING fts5(body, content = 'article', content_rowid = 'id');
INSERT INTO article(body) VALUES ('outside one'), ('outside two');
INSERT INTO article_fts(article_fts) VALUES ('rebuild');
SELECT rowid FROM article_fts WHERE article_fts MATCH 'two';
SELECT * FROM doc WHERE doc MATCH 'AND AND';
DROP TABLE article_fts;
