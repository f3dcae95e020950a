-- What was stored of adapters, by the hour: a row is written once and never changed. Quantities only: money is derived from them and
-- a price version.
CREATE TABLE storage_hours (
    -- Of the ledger's transaction that charges it: what, of which adapter, in which hour.
    id            TEXT   PRIMARY KEY REFERENCES ledger_transactions (id),
    account       TEXT   NOT NULL REFERENCES accounts (name),
    base          TEXT   NOT NULL,
    -- account/name
    adapter       TEXT   NOT NULL,
    -- Hours since the Unix epoch.
    hour          BIGINT NOT NULL,
    byte_hours    BIGINT NOT NULL CHECK (byte_hours > 0),
    -- In force when the hour began.
    price_version BIGINT NOT NULL REFERENCES prices (version),
    -- done, or the name of the rule that refused the charge: then the hour is free
    outcome       TEXT   NOT NULL
);

CREATE INDEX storage_hours_by_account ON storage_hours (account, hour);
CREATE INDEX storage_hours_by_hour ON storage_hours (hour);
