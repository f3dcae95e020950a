-- Two more rates of a price version. None: the version says nothing of it, and the next wider one holds.
-- Nano-dollars per million training tokens.
ALTER TABLE prices ADD COLUMN training BIGINT CHECK (training >= 0);
-- Nano-dollars per GB-month of adapter storage: 10^9 bytes for 730 hours.
ALTER TABLE prices ADD COLUMN storage BIGINT CHECK (storage >= 0);
