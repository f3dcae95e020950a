-- What a key may do: names separated by spaces. Keys from before could do everything.
ALTER TABLE api_keys ADD COLUMN scopes TEXT NOT NULL DEFAULT 'inference adapters fine-tuning billing admin';
ALTER TABLE api_keys ADD COLUMN expires_ms BIGINT;
ALTER TABLE api_keys ADD COLUMN last_used_ms BIGINT;
-- Whose it is: with the member it goes.
ALTER TABLE api_keys ADD COLUMN member TEXT;

-- People of an account. A role bounds what their keys may do.
CREATE TABLE members (
    account    TEXT   NOT NULL REFERENCES accounts (name),
    name       TEXT   NOT NULL,
    -- owner | admin | developer | billing
    role       TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (account, name)
);

-- Who changed what: append-only.
CREATE TABLE audit_log (
    id            TEXT   PRIMARY KEY,
    -- Whose affair it is.
    account       TEXT   NOT NULL,
    -- Who did it; none: the server itself.
    actor_account TEXT,
    actor_key     TEXT,
    action        TEXT   NOT NULL,
    subject       TEXT   NOT NULL,
    -- JSON
    detail        TEXT   NOT NULL,
    created_ms    BIGINT NOT NULL
);

CREATE INDEX audit_log_by_account ON audit_log (account, created_ms, id);

-- Counts the changes of what servers hold in memory: one that sees another number reads it again.
CREATE TABLE changes (
    what   TEXT   PRIMARY KEY,
    number BIGINT NOT NULL
);
INSERT INTO changes (what, number) VALUES ('keys', 0), ('prices', 0), ('limits', 0);
