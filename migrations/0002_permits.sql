-- Permits that outlive the call that granted them.

ALTER TABLE limit_definition ADD COLUMN overage TEXT NOT NULL DEFAULT 'debt';

-- What permits used beyond what could be charged for it.
CREATE TABLE debt (
    limit_id INTEGER PRIMARY KEY,
    amount   INTEGER NOT NULL,
    since_ns INTEGER NOT NULL
) STRICT;
