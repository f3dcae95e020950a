-- Servers hold keys, roles and suspensions in memory and read what has changed since they last looked: a row of a greater revision
-- than they have seen. `number` counts all changes; beside it `revision` counts those that mark their rows.
ALTER TABLE changes ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE api_keys ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE members ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
ALTER TABLE accounts ADD COLUMN revision BIGINT NOT NULL DEFAULT 0;
CREATE INDEX api_keys_by_revision ON api_keys (revision);
CREATE INDEX members_by_revision ON members (revision);
CREATE INDEX accounts_by_revision ON accounts (revision);
