CREATE TABLE hardware (
    id        INTEGER PRIMARY KEY AUTOINCREMENT,
    name      TEXT NOT NULL,
    device    TEXT NOT NULL,             -- JSON
    serial    TEXT NOT NULL UNIQUE,
    model     TEXT NOT NULL,
    user_name TEXT NOT NULL,
    password  BLOB NOT NULL              -- sealed
);

-- Ids are never used again: they name footage. A camera outlives its hardware until its footage has expired.
CREATE TABLE camera (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    hardware   INTEGER NOT NULL,
    name       TEXT NOT NULL,
    stream_url TEXT NOT NULL,
    added      INTEGER NOT NULL,
    deleted    INTEGER
);

CREATE TABLE init (
    camera INTEGER NOT NULL,
    id     TEXT NOT NULL,
    mime   TEXT NOT NULL,
    data   BLOB NOT NULL,
    PRIMARY KEY (camera, id)
) WITHOUT ROWID;

-- One row per finished file; fragments is the packed table of recording/src/catalog.rs.
CREATE TABLE file (
    path      TEXT NOT NULL UNIQUE,
    camera    INTEGER NOT NULL,
    init      TEXT NOT NULL,
    start     INTEGER NOT NULL,
    finish    INTEGER NOT NULL,
    bytes     INTEGER NOT NULL,
    fragments BLOB NOT NULL
);
CREATE INDEX file_by_camera ON file (camera, start);
CREATE INDEX file_by_start ON file (start);

CREATE TABLE gap (
    id      INTEGER PRIMARY KEY,
    camera  INTEGER NOT NULL,
    start   INTEGER NOT NULL,
    finish  INTEGER,
    code    TEXT NOT NULL,
    message TEXT NOT NULL
);
CREATE INDEX gap_by_camera ON gap (camera, start);
