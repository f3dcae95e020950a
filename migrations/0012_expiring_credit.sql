-- Grants that expire. Credit that expires first is spent first.
CREATE TABLE expiring_credit (
    -- The ledger's transaction that granted it.
    id         TEXT   PRIMARY KEY REFERENCES ledger_transactions (id),
    account    TEXT   NOT NULL REFERENCES accounts (name),
    expires_ms BIGINT NOT NULL,
    -- What of it was neither spent nor taken off when the account was last counted. Nano-dollars; only falls.
    unspent    BIGINT NOT NULL CHECK (unspent >= 0)
);

CREATE INDEX expiring_credit_by_account ON expiring_credit (account) WHERE unspent > 0;
CREATE INDEX expiring_credit_due ON expiring_credit (expires_ms) WHERE unspent > 0;

-- What the account had, reserved or not, when its expiring credit was last counted: what it has less since then was spent.
ALTER TABLE balances ADD COLUMN counted BIGINT;
