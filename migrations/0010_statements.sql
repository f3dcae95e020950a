-- Statements ask for the requests that finished in a month.
CREATE INDEX requests_by_finish ON requests (account, finished_ms);
