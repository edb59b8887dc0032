CREATE TABLE account (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    password TEXT NOT NULL,               -- argon2id, PHC string
    disabled INTEGER NOT NULL DEFAULT 0,
    seq INTEGER NOT NULL DEFAULT 0        -- place of the account's latest change
);

CREATE TABLE registration (
    generation INTEGER PRIMARY KEY AUTOINCREMENT, -- a new one with each PUT, never used again
    serial TEXT NOT NULL UNIQUE,
    account INTEGER NOT NULL REFERENCES account (id),
    claimed TEXT NOT NULL,                -- since when this account has it, RFC 3339
    secrets BLOB,                         -- sealed; NULL once the device has been dispatched
    servers TEXT NOT NULL,                -- JSON array
    trust_anchor TEXT NOT NULL,           -- PEM
    state TEXT NOT NULL,                  -- as in the API
    step TEXT NOT NULL,
    fingerprint TEXT,
    problem TEXT,                         -- JSON
    since TEXT NOT NULL,                  -- RFC 3339
    seq INTEGER NOT NULL
);

CREATE INDEX registration_by_account ON registration (account, seq);
