-- Where somebody has signed in from lately, without reading the whole log (`guesses.rs`).
CREATE INDEX audit_sign_in ON audit (user COLLATE NOCASE, at_ms) WHERE action = 'sign-in';
