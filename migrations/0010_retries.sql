-- Calls and retries by the name of their budget, second by second, for an hour.
CREATE TABLE attempt (
    name    TEXT    NOT NULL,
    at_ns   INTEGER NOT NULL,
    calls   INTEGER NOT NULL DEFAULT 0,
    retries INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (name, at_ns)
) STRICT, WITHOUT ROWID;

CREATE INDEX attempt_at ON attempt (at_ns);
