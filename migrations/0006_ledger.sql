-- unlimited: everything is counted and charged, and the account may owe. prepaid: it never spends more than it has.
ALTER TABLE accounts ADD COLUMN credit TEXT NOT NULL DEFAULT 'unlimited';

-- The ledger, append-only: no row of these two tables is ever changed. Amounts are nano-dollars.
-- A command that was refused leaves a transaction without entries, so that its repeat is refused as well.
CREATE TABLE ledger_transactions (
    -- Chosen by whoever asks: the same id again is the same transaction.
    id          TEXT   PRIMARY KEY,
    account     TEXT   NOT NULL REFERENCES accounts (name),
    -- grant | top_up | reserve | extend | settle | void | expire | refund | adjust
    kind        TEXT   NOT NULL,
    amount      BIGINT NOT NULL,
    -- What reserve, extend, settle and void are about.
    reservation TEXT,
    -- done, or the name of the rule that refused it
    outcome     TEXT   NOT NULL,
    memo        TEXT,
    created_ms  BIGINT NOT NULL
);

CREATE INDEX ledger_transactions_by_account ON ledger_transactions (account, created_ms, id);

-- The entries of a transaction sum to zero.
CREATE TABLE ledger_entries (
    transaction_id TEXT   NOT NULL REFERENCES ledger_transactions (id),
    -- available | held | revenue | funding | expired | adjustment, each of the transaction's account
    book           TEXT   NOT NULL,
    amount         BIGINT NOT NULL,
    PRIMARY KEY (transaction_id, book)
);

-- Projections of the entries: what the rules decide on. They can be made again from the ledger at any time.
CREATE TABLE balances (
    account   TEXT   PRIMARY KEY REFERENCES accounts (name),
    available BIGINT NOT NULL
);

-- Credit that is set aside. A server holds one for each account that it serves and settles requests against it, so that it
-- needs the account's own row only when the reservation is used up.
CREATE TABLE reservations (
    id         TEXT   PRIMARY KEY,
    account    TEXT   NOT NULL REFERENCES accounts (name),
    -- The server that holds it.
    instance   TEXT   NOT NULL,
    -- What is still held.
    amount     BIGINT NOT NULL CHECK (amount >= 0),
    settled    BIGINT NOT NULL CHECK (settled >= 0),
    created_ms BIGINT NOT NULL,
    closed_ms  BIGINT
);

CREATE INDEX reservations_open ON reservations (account) WHERE closed_ms IS NULL;

-- Servers that write here. One that has not been seen for a while is dead: its requests are closed at their last marks and its
-- reservations are given back.
CREATE TABLE instances (
    id         TEXT   PRIMARY KEY,
    started_ms BIGINT NOT NULL,
    seen_ms    BIGINT NOT NULL
);

ALTER TABLE requests ADD COLUMN instance TEXT;
CREATE INDEX requests_running_by_instance ON requests (instance) WHERE finish = 'running';
-- What the caller sorts its requests by.
ALTER TABLE requests ADD COLUMN tag TEXT;
