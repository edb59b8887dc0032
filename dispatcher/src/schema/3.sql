-- Several accounts may have registered one serial number; one of them has proven its OAK and has the claim.
CREATE TABLE claims (
    generation INTEGER PRIMARY KEY AUTOINCREMENT, -- a new one with each PUT, never used again
    serial TEXT NOT NULL,
    account INTEGER NOT NULL REFERENCES account (id),
    registered TEXT NOT NULL,             -- since when this account has it, RFC 3339
    claimed TEXT,                         -- since when its OAK is proven, RFC 3339; at most one of a serial number
    verifier BLOB,                        -- sealed, of the OAK that was proven last; NULL: none was since schema 3
    secrets BLOB,                         -- sealed; NULL once the device has been dispatched, or somebody else has it
    servers TEXT NOT NULL,                -- JSON array
    trust_anchor TEXT NOT NULL,           -- PEM
    state TEXT NOT NULL,                  -- as in the API
    step TEXT NOT NULL,
    fingerprint TEXT,
    problem TEXT,                         -- JSON
    next TEXT,                            -- JSON, with state transferred
    attempts INTEGER NOT NULL DEFAULT 0,  -- of other accounts to register the same
    attempted TEXT,                       -- the last of them, RFC 3339
    since TEXT NOT NULL,                  -- RFC 3339
    seq INTEGER NOT NULL,
    UNIQUE (serial, account)
);

-- What was dispatched once was proven by the device; what was registered after a list had it, by the list.
INSERT INTO claims
    (generation, serial, account, registered, claimed, secrets, servers, trust_anchor, state, step, fingerprint,
     problem, since, seq)
SELECT generation, serial, account, claimed,
    CASE WHEN fingerprint IS NOT NULL OR EXISTS (
        SELECT 1 FROM listed WHERE listed.serial = registration.serial AND listed.imported <= registration.claimed
    ) THEN claimed END,
    secrets, servers, trust_anchor, state, step, fingerprint, problem, since, seq
FROM registration;

UPDATE sqlite_sequence SET seq = (SELECT seq FROM sqlite_sequence WHERE name = 'registration')
WHERE name = 'claims';

DROP TABLE registration;

ALTER TABLE claims RENAME TO registration;

CREATE INDEX registration_by_account ON registration (account, seq);
CREATE UNIQUE INDEX one_claim ON registration (serial) WHERE claimed IS NOT NULL;
CREATE INDEX contended ON registration (account) WHERE claimed IS NULL AND secrets IS NOT NULL;

CREATE TABLE offer (
    serial TEXT PRIMARY KEY,
    owner INTEGER NOT NULL REFERENCES account (id),
    taker TEXT NOT NULL,                  -- an account's name, or one that nobody has
    ends TEXT NOT NULL                    -- RFC 3339, in whole seconds
) WITHOUT ROWID;

ALTER TABLE account ADD COLUMN devices INTEGER;    -- how many it may register; NULL: as configured
ALTER TABLE account ADD COLUMN per_minute INTEGER; -- registrations; NULL: as configured
ALTER TABLE account ADD COLUMN servers TEXT;       -- JSON array of what its devices may be sent to; NULL: anything

-- What an account has sent devices to.
CREATE TABLE destination (
    account INTEGER NOT NULL REFERENCES account (id),
    what TEXT NOT NULL,                   -- host:port, or the SHA-256 of a trust anchor
    PRIMARY KEY (account, what)
) WITHOUT ROWID;

-- Wrong secrets lately, see attempts.rs.
CREATE TABLE attempt (
    what TEXT NOT NULL,
    who TEXT NOT NULL,
    count INTEGER NOT NULL,
    last TEXT NOT NULL,                   -- RFC 3339
    PRIMARY KEY (what, who)
) WITHOUT ROWID;
