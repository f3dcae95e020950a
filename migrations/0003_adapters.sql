-- Adapters, their immutable versions and the aliases that point at them.
CREATE TABLE adapters (
    account    TEXT   NOT NULL REFERENCES accounts (name),
    name       TEXT   NOT NULL,
    base       TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (account, name)
);

CREATE TABLE adapter_versions (
    account    TEXT   NOT NULL,
    name       TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    -- SHA-256 of the canonical weights and configuration.
    digest     TEXT   NOT NULL,
    bytes      BIGINT NOT NULL,
    rank       BIGINT NOT NULL,
    tensors    BIGINT NOT NULL,
    -- What the checks and the canary said, as JSON.
    report     TEXT   NOT NULL,
    created_ms BIGINT NOT NULL,
    PRIMARY KEY (account, name, version),
    FOREIGN KEY (account, name) REFERENCES adapters (account, name) ON DELETE CASCADE
);

CREATE INDEX adapter_versions_by_digest ON adapter_versions (digest);

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
