-- Requests that were rated again. Their own rows stay as they are; what they have cost follows from the last row here, if there is one.
CREATE TABLE corrections (
    request_id     TEXT   NOT NULL REFERENCES requests (id),
    -- 1 for the request's first.
    number         BIGINT NOT NULL,
    account        TEXT   NOT NULL REFERENCES accounts (name),
    -- Of the price that held before; none: it was free.
    from_version   BIGINT REFERENCES prices (version),
    price_version  BIGINT NOT NULL REFERENCES prices (version),
    -- The ledger's, for all requests that were corrected with this one; none where their differences cancel out.
    transaction_id TEXT REFERENCES ledger_transactions (id),
    created_ms     BIGINT NOT NULL,
    PRIMARY KEY (request_id, number)
);

CREATE INDEX corrections_by_transaction ON corrections (transaction_id);
CREATE INDEX corrections_by_time ON corrections (created_ms);
