-- Tunnel servers that were added on the page; those of the configuration file are not here.
CREATE TABLE tunnel_server (
    name         TEXT PRIMARY KEY,
    description  TEXT NOT NULL,
    url          TEXT NOT NULL,
    external     TEXT NOT NULL,
    user         TEXT NOT NULL,              -- empty: no credentials
    password     BLOB NOT NULL,              -- sealed
    trust_anchor TEXT NOT NULL               -- PEM
) STRICT;
