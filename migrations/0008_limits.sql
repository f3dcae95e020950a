-- What settled requests used, summed by the hour in which they began: a projection of the rows of requests, written with them.
-- Each server has rows of its own, so that no two wait for each other. '' and 0 stand for no adapter and no price.
CREATE TABLE usage_hours (
    instance          TEXT   NOT NULL,
    account           TEXT   NOT NULL,
    key_id            TEXT   NOT NULL,
    base              TEXT   NOT NULL,
    adapter           TEXT   NOT NULL,
    price_version     BIGINT NOT NULL,
    -- Hours since the Unix epoch.
    hour              BIGINT NOT NULL,
    requests          BIGINT NOT NULL,
    prompt_tokens     BIGINT NOT NULL,
    cached_tokens     BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    cost              BIGINT NOT NULL,
    PRIMARY KEY (account, hour, key_id, base, adapter, price_version, instance)
);

-- Caps, over which nothing is spent, and alerts, over which somebody is told. Nano-dollars per period.
CREATE TABLE limits (
    id         TEXT   PRIMARY KEY,
    account    TEXT   NOT NULL REFERENCES accounts (name),
    -- cap | alert
    kind       TEXT   NOT NULL,
    -- account | key | adapter
    scope      TEXT   NOT NULL,
    -- The key's id or the adapter's account/name; '' for the account.
    subject    TEXT   NOT NULL,
    -- day | month | total; days and months are UTC
    period     TEXT   NOT NULL,
    amount     BIGINT NOT NULL CHECK (amount >= 0),
    -- Whether only the operator may change it.
    operators  BIGINT NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE INDEX limits_by_account ON limits (account);

-- How much of a cap each server may spend in a period, what it has spent included. Their sum never exceeds the cap.
CREATE TABLE cap_leases (
    account   TEXT   NOT NULL,
    scope     TEXT   NOT NULL,
    subject   TEXT   NOT NULL,
    period    TEXT   NOT NULL,
    -- When the period began, in milliseconds since the Unix epoch.
    start_ms  BIGINT NOT NULL,
    instance  TEXT   NOT NULL,
    amount    BIGINT NOT NULL CHECK (amount >= 0),
    PRIMARY KEY (account, scope, subject, period, start_ms, instance)
);
