-- What lives in the file's header.
PRAGMA user_version = 42;
PRAGMA application_id = 0x464c4f54;
CREATE TABLE t(x);
PRAGMA user_version;
PRAGMA application_id;
PRAGMA schema_version;
BEGIN;
PRAGMA user_version = 43;
INSERT INTO t VALUES (1);
PRAGMA user_version;
ROLLBACK;
PRAGMA user_version;
PRAGMA user_version = -1;
PRAGMA user_version;
PRAGMA default_cache_size = 500;
PRAGMA journal_mode = WAL;
PRAGMA encoding;
