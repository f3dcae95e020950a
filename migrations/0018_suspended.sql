-- Since when an account's keys open nothing, until its operator resumes it.
ALTER TABLE accounts ADD COLUMN suspended_ms BIGINT;
