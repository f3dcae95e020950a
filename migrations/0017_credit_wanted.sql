-- A server that finds too little of an account's credit, or of a cap, leaves a row for each other server that holds some. Who finds
-- a row of its own gives back what it does not use, and removes the row.
CREATE TABLE credit_wants (
    instance TEXT NOT NULL,
    account  TEXT NOT NULL REFERENCES accounts (name),
    PRIMARY KEY (instance, account)
);
