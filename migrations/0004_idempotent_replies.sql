-- What a request with an Idempotency-Key was answered, kept for a day: the same request again gets the same answer and is
-- neither computed nor counted a second time. Keys and requests are kept as their SHA-256.
CREATE TABLE idempotent_replies (
    account      TEXT   NOT NULL REFERENCES accounts (name),
    key_hash     TEXT   NOT NULL,
    request_hash TEXT   NOT NULL,
    request_id   TEXT   NOT NULL,
    content_type TEXT   NOT NULL,
    body         TEXT   NOT NULL,
    created_ms   BIGINT NOT NULL,
    PRIMARY KEY (account, key_hash)
);

CREATE INDEX idempotent_replies_by_age ON idempotent_replies (created_ms);
