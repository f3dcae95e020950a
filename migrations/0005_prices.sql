-- Immutable price versions: a change of price is a new row with a later start, never an update. Nano-dollars per million tokens.
-- `account` and `model` narrow whom and what a price is for; `model` is a base model's id or an adapter's account/name.
CREATE TABLE prices (
    version      BIGINT PRIMARY KEY,
    account      TEXT REFERENCES accounts (name),
    model        TEXT,
    input        BIGINT NOT NULL CHECK (input >= 0),
    cached_input BIGINT NOT NULL CHECK (cached_input >= 0),
    output       BIGINT NOT NULL CHECK (output >= 0),
    starts_ms    BIGINT NOT NULL,
    created_ms   BIGINT NOT NULL
);

-- The price that was in force when the request began; none: it costs nothing.
ALTER TABLE requests ADD COLUMN price_version BIGINT REFERENCES prices (version);
