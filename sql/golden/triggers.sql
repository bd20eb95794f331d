-- Triggers: before, after, instead of, recursive, raising.
CREATE TABLE account(id INTEGER PRIMARY KEY, balance INTEGER NOT NULL);
CREATE TABLE journal(seq INTEGER PRIMARY KEY, what TEXT, old INTEGER, new INTEGER);
CREATE TRIGGER account_update AFTER UPDATE OF balance ON account BEGIN
  INSERT INTO journal(what, old, new) VALUES ('update', old.balance, new.balance);
END;
CREATE TRIGGER account_insert AFTER INSERT ON account BEGIN
  INSERT INTO journal(what, new) VALUES ('insert', new.balance);
END;
CREATE TRIGGER account_floor BEFORE UPDATE ON account WHEN new.balance < 0 BEGIN
  SELECT raise(ABORT, 'balance below zero');
END;
CREATE TRIGGER account_delete BEFORE DELETE ON account BEGIN
  SELECT raise(IGNORE);
END;
INSERT INTO account VALUES (1, 100), (2, 50);
UPDATE account SET balance = balance - 60;
UPDATE account SET balance = balance - 60 WHERE id = 1;
UPDATE account SET balance = balance - 40 WHERE id = 1;
DELETE FROM account;
CREATE VIEW rich AS SELECT id, balance FROM account WHERE balance > 10;
CREATE TRIGGER rich_insert INSTEAD OF INSERT ON rich BEGIN
  INSERT INTO account(balance) VALUES (new.balance);
END;
INSERT INTO rich(balance) VALUES (70);
PRAGMA recursive_triggers = ON;
CREATE TABLE countdown(n INTEGER);
CREATE TRIGGER countdown_next AFTER INSERT ON countdown WHEN new.n > 0 BEGIN
  INSERT INTO countdown VALUES (new.n - 1);
END;
INSERT INTO countdown VALUES (20);
SELECT count(*), sum(n) FROM countdown;
SELECT * FROM account;
SELECT * FROM journal;
DROP TRIGGER account_delete;
DELETE FROM account WHERE id = 2;
SELECT count(*) FROM account;
