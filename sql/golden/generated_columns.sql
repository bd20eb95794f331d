-- Generated columns, stored and virtual, indexed and checked.
CREATE TABLE box(
  id INTEGER PRIMARY KEY,
  w INTEGER, h INTEGER,
  area INTEGER GENERATED ALWAYS AS (w * h) STORED,
  label TEXT AS (printf('%dx%d', w, h)) VIRTUAL CHECK (length(label) < 9)
);
CREATE INDEX box_area ON box(area);
CREATE UNIQUE INDEX box_label ON box(label);
INSERT INTO box(w, h) VALUES (1, 2), (3, 4), (5, 6);
INSERT INTO box(w, h) VALUES (3, 4);
INSERT INTO box(w, h) VALUES (100000, 10000);
INSERT INTO box(w, h, area) VALUES (1, 1, 1);
UPDATE box SET w = w + 1 WHERE area > 10;
SELECT id, area, label FROM box INDEXED BY box_area WHERE area >= 0 ORDER BY area;
ALTER TABLE box ADD COLUMN double_area INTEGER AS (area * 2);
SELECT sum(double_area) FROM box;
