-- The server that delivers a row at this moment. When it dies, the row is due again at once, and not when its claim runs out.
ALTER TABLE outbox ADD COLUMN claimed_by TEXT;
CREATE INDEX outbox_claimed ON outbox (claimed_by) WHERE claimed_by IS NOT NULL;
-- What was delivered long ago is removed.
CREATE INDEX outbox_delivered ON outbox (delivered_ms) WHERE delivered_ms IS NOT NULL;

-- Counts a server's signs of life: who watches it sees by its own clock whether it lives, whatever the database's clock does.
ALTER TABLE instances ADD COLUMN beats BIGINT NOT NULL DEFAULT 0;

-- Each server reads what it has settled; rows of servers that have long gone are folded into rows of no server, ''.
CREATE INDEX usage_hours_by_instance ON usage_hours (instance, account, hour);
