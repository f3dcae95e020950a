-- One row per request: written before its first byte is sent, settled with the engine's own counts.
-- Quantities only: money is derived from them and a price version.
CREATE TABLE requests (
    id                TEXT    PRIMARY KEY,
    account           TEXT    NOT NULL REFERENCES accounts (name),
    key_id            TEXT    NOT NULL,
    endpoint          TEXT    NOT NULL,
    model             TEXT    NOT NULL,
    base              TEXT    NOT NULL,
    adapter           TEXT,
    adapter_version   BIGINT,
    started_ms        BIGINT  NOT NULL,
    finished_ms       BIGINT,
    prompt_tokens     BIGINT  NOT NULL DEFAULT 0,
    cached_tokens     BIGINT  NOT NULL DEFAULT 0,
    completion_tokens BIGINT  NOT NULL DEFAULT 0,
    -- running | stop | length | cancelled | error | interrupted (the process died; counts are those of the last mark)
    finish            TEXT    NOT NULL
);

CREATE INDEX requests_by_account ON requests (account, started_ms DESC, id DESC);
CREATE INDEX requests_running ON requests (finish) WHERE finish = 'running';
