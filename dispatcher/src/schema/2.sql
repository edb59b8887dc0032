CREATE TABLE listed (
    serial TEXT PRIMARY KEY,
    oak BLOB NOT NULL,                    -- sealed
    model TEXT NOT NULL,
    imported TEXT NOT NULL                -- RFC 3339
) WITHOUT ROWID;

CREATE TABLE audit (
    id INTEGER PRIMARY KEY,               -- 1, 2, 3 and so on without a gap
    at TEXT NOT NULL,                     -- RFC 3339
    actor TEXT NOT NULL,                  -- account, or 'operator'
    action TEXT NOT NULL,
    serial TEXT,
    detail TEXT NOT NULL,
    hash TEXT NOT NULL                    -- of this entry and all before, see audit.rs
);

CREATE INDEX audit_by_serial ON audit (serial, id);

CREATE TRIGGER audit_is_not_changed BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END;

CREATE TRIGGER audit_is_not_deleted BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit log only grows'); END;
