-- JSON functions, operators, table-valued functions and an index on a path.
CREATE TABLE event(id INTEGER PRIMARY KEY, j TEXT CHECK (json_valid(j)));
INSERT INTO event(j) VALUES
  ('{"type":"open","n":1,"tags":["a","b"],"who":{"name":"Ann"}}'),
  ('{"type":"close","n":2,"tags":[],"who":{"name":"Bob \u00e9"}}'),
  ('{"type":"open","n":3.5,"tags":["b"],"who":null}');
INSERT INTO event(j) VALUES ('{broken');
CREATE INDEX event_type ON event(j ->> '$.type');
SELECT id, j ->> 'n', j -> 'who' FROM event WHERE j ->> '$.type' = 'open' ORDER BY id;
UPDATE event SET j = json_set(j, '$.seen', json('true'), '$.tags[#]', 'z') WHERE id < 3;
UPDATE event SET j = json_remove(json_patch(j, '{"who":{"name":"C"}}'), '$.n') WHERE id = 3;
SELECT id, j FROM event ORDER BY id;
SELECT event.id, t.key, t.value FROM event, json_each(event.j, '$.tags') AS t ORDER BY 1, 2;
SELECT fullkey, atom FROM event, json_tree(event.j) WHERE event.id = 1 AND atom IS NOT NULL;
SELECT json_group_array(id), json_group_object(id, j ->> '$.type') FROM event;
