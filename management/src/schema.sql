-- Times are milliseconds since 1970. What admits somebody (session, token) is kept as SHA-256 only.

CREATE TABLE user (
    id          INTEGER PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE COLLATE NOCASE,
    password    TEXT NOT NULL,              -- argon2id, PHC string
    created_ms  INTEGER NOT NULL,
    signed_in_ms INTEGER
);

CREATE TABLE session (
    id          INTEGER PRIMARY KEY,
    hash        BLOB NOT NULL UNIQUE,
    user        INTEGER NOT NULL REFERENCES user (id) ON DELETE CASCADE,
    created_ms  INTEGER NOT NULL,
    used_ms     INTEGER NOT NULL,
    peer        TEXT NOT NULL,
    browser     TEXT NOT NULL
);

CREATE TABLE token (
    id          INTEGER PRIMARY KEY,
    hash        BLOB NOT NULL UNIQUE,
    user        INTEGER NOT NULL REFERENCES user (id) ON DELETE CASCADE,
    name        TEXT NOT NULL,
    created_ms  INTEGER NOT NULL,
    used_ms     INTEGER
);

CREATE TABLE audit (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms       INTEGER NOT NULL,
    user        TEXT NOT NULL,              -- a name, so that it outlives the user
    peer        TEXT NOT NULL,
    action      TEXT NOT NULL,
    object      TEXT NOT NULL,
    detail      TEXT NOT NULL
);
CREATE INDEX audit_at ON audit (at_ms);

CREATE TRIGGER audit_is_append_only BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END;

-- Retention deletes what is old; nothing deletes what is recent.
CREATE TRIGGER audit_keeps_recent BEFORE DELETE ON audit
WHEN OLD.at_ms > (CAST(strftime('%s', 'now') AS INTEGER) - 86400) * 1000
BEGIN SELECT RAISE(ABORT, 'the audit log is append only'); END;
