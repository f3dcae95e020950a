-- Accounts and their API keys. Times are milliseconds since the Unix epoch.
CREATE TABLE accounts (
    name       TEXT   PRIMARY KEY,
    created_ms BIGINT NOT NULL
);

-- A key is stored as the SHA-256 of its text; `hint` is its last four characters, to tell keys apart in a list.
CREATE TABLE api_keys (
    id         TEXT   PRIMARY KEY,
    account    TEXT   NOT NULL REFERENCES accounts (name),
    name       TEXT   NOT NULL,
    hash       TEXT   NOT NULL UNIQUE,
    hint       TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    revoked_ms BIGINT
);
