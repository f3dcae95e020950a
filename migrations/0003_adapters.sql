-- Adapters, their immutable versions and the aliases that point at them.
CREATE TABLE adapters (
    account      TEXT   NOT NULL REFERENCES accounts (name),
    name         TEXT   NOT NULL,
    base         TEXT   NOT NULL,
    -- Counts up only, also past deletions: a version's number never comes to mean another one.
    last_version BIGINT NOT NULL,
    created_ms   BIGINT NOT NULL,
    deleted_ms   BIGINT,
    PRIMARY KEY (account, name)
);

CREATE TABLE adapter_versions (
    account       TEXT   NOT NULL,
    name          TEXT   NOT NULL,
    version       BIGINT NOT NULL,
    -- SHA-256 of what decides the answers: the base, the weights with their scale, the chat template.
    digest        TEXT   NOT NULL,
    bytes         BIGINT NOT NULL,
    rank          BIGINT NOT NULL,
    tensors       BIGINT NOT NULL,
    -- What the checks and the canary said, as JSON.
    report        TEXT   NOT NULL,
    -- The adapter's own, where it has one.
    chat_template TEXT,
    created_ms    BIGINT NOT NULL,
    PRIMARY KEY (account, name, version),
    FOREIGN KEY (account, name) REFERENCES adapters (account, name) ON DELETE CASCADE
);

CREATE INDEX adapter_versions_by_digest ON adapter_versions (digest);

-- The uploaded files of a version; their bytes are blobs, kept once however many versions have them.
CREATE TABLE adapter_files (
    account TEXT   NOT NULL,
    name    TEXT   NOT NULL,
    version BIGINT NOT NULL,
    file    TEXT   NOT NULL,
    -- SHA-256 of the file's bytes.
    digest  TEXT   NOT NULL,
    bytes   BIGINT NOT NULL,
    PRIMARY KEY (account, name, version, file),
    FOREIGN KEY (account, name, version) REFERENCES adapter_versions (account, name, version) ON DELETE CASCADE
);

CREATE INDEX adapter_files_by_digest ON adapter_files (digest);

CREATE TABLE adapter_aliases (
    account TEXT    NOT NULL,
    name    TEXT    NOT NULL,
    alias   TEXT    NOT NULL,
    version BIGINT  NOT NULL,
    -- A pinned alias stays where it was put; `default` follows the newest version until it is pinned.
    pinned  BOOLEAN NOT NULL DEFAULT FALSE,
    PRIMARY KEY (account, name, alias),
    FOREIGN KEY (account, name, version) REFERENCES adapter_versions (account, name, version) ON DELETE CASCADE
);
