-- What is to be delivered to the outside. An id says what it is about and nothing else, so that several servers, or one that was
-- killed and started again, put the same thing here once.
CREATE TABLE outbox (
    id           TEXT   PRIMARY KEY,
    -- webhook | stripe
    kind         TEXT   NOT NULL,
    account      TEXT   NOT NULL REFERENCES accounts (name),
    -- A webhook's id, or the account's customer at Stripe.
    target       TEXT   NOT NULL,
    -- JSON
    body         TEXT   NOT NULL,
    created_ms   BIGINT NOT NULL,
    attempts     BIGINT NOT NULL DEFAULT 0,
    -- When it is due. A server that delivers it moves this forward first: if that server dies, it is due again then. None: it was
    -- delivered or given up.
    next_ms      BIGINT,
    -- When the first attempt began of which nobody knows whether it arrived; none where all failed for certain.
    unclear_ms   BIGINT,
    delivered_ms BIGINT,
    -- Why the last attempt failed.
    failure      TEXT
);

CREATE INDEX outbox_due ON outbox (next_ms) WHERE next_ms IS NOT NULL;
CREATE INDEX outbox_by_target ON outbox (target, created_ms);
CREATE INDEX outbox_by_account ON outbox (account, kind, created_ms);

-- Where an account wants to be told. The secret signs what is sent, so it is kept as it is.
CREATE TABLE webhooks (
    id         TEXT   PRIMARY KEY,
    account    TEXT   NOT NULL REFERENCES accounts (name),
    url        TEXT   NOT NULL,
    secret     TEXT   NOT NULL,
    created_ms BIGINT NOT NULL
);

CREATE INDEX webhooks_by_account ON webhooks (account);

-- The account's customer at Stripe, and the hour from which on its revenue goes there. Both, or none.
ALTER TABLE accounts ADD COLUMN stripe_customer TEXT;
ALTER TABLE accounts ADD COLUMN stripe_since_ms BIGINT;
-- What is older has been looked at.
ALTER TABLE accounts ADD COLUMN stripe_from_ms BIGINT;

-- What was put into the outbox for Stripe of each hour's revenue. An hour that grew later has a further revision with the rest.
CREATE TABLE stripe_exports (
    account  TEXT   NOT NULL REFERENCES accounts (name),
    -- Hours since the Unix epoch, by the ledger's time.
    hour     BIGINT NOT NULL,
    revision BIGINT NOT NULL,
    -- Nano-dollars.
    amount   BIGINT NOT NULL CHECK (amount > 0),
    PRIMARY KEY (account, hour, revision)
);
