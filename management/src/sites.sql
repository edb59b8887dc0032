-- Places with one Internet connection, as they were entered (`sites.rs`).
CREATE TABLE site (
    name TEXT PRIMARY KEY,
    site TEXT                                -- JSON; none: removed, for tunnel servers that were away then
) STRICT;
