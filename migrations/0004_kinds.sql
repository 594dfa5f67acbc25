-- Limits of every kind, changed while they are in use.

-- wall clock = instant + calendar_shift_ns, for the boundaries of calendars: it follows only when the clock was set
ALTER TABLE clock ADD COLUMN calendar_shift_ns INTEGER NOT NULL DEFAULT 0;

-- The last number that was given to a limit; none is given twice.
CREATE TABLE limit_number (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    last INTEGER NOT NULL
) STRICT;

INSERT INTO limit_number (id, last)
SELECT 1, coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'limit_definition'), 0);

-- A pattern stands for many keys: `key` is what they match.
ALTER TABLE limit_definition ADD COLUMN is_pattern INTEGER NOT NULL DEFAULT 0;
-- A bucket holds `burst` and refills by `refill` in `refill_ns`.
ALTER TABLE limit_definition ADD COLUMN burst INTEGER;
ALTER TABLE limit_definition ADD COLUMN refill INTEGER;
ALTER TABLE limit_definition ADD COLUMN refill_ns INTEGER;
-- When it was last changed, and whether it may have been to less than was in use.
ALTER TABLE limit_definition ADD COLUMN changed_ns INTEGER NOT NULL DEFAULT 0;
ALTER TABLE limit_definition ADD COLUMN was_lowered INTEGER NOT NULL DEFAULT 0;
-- As people write it.
ALTER TABLE limit_definition ADD COLUMN definition TEXT;

-- Rates whose windows are periods of a calendar: day, week, month or year.
CREATE TABLE quota (
    limit_id INTEGER NOT NULL,
    period   TEXT    NOT NULL,
    zone     TEXT    NOT NULL,
    capacity INTEGER NOT NULL,
    PRIMARY KEY (limit_id, period, zone)
) STRICT, WITHOUT ROWID;

-- Where those periods begin by the wall clock, for people with a sqlite3 shell: it knows no time zones. From the last
-- one on, as far as they were written down.
CREATE TABLE boundary (
    period  TEXT    NOT NULL,
    zone    TEXT    NOT NULL,
    wall_ns INTEGER NOT NULL,
    PRIMARY KEY (period, zone, wall_ns)
) STRICT, WITHOUT ROWID;

-- Buckets out of which something was poured: when each is full again, and how many parts of a nanosecond later. A
-- nanosecond has as many as the bucket's refill was when this was written.
CREATE TABLE bucket (
    limit_id   INTEGER PRIMARY KEY,
    full_ns    INTEGER NOT NULL,
    full_part  INTEGER NOT NULL,
    refill     INTEGER NOT NULL,
    refill_ns  INTEGER NOT NULL,
    written_ns INTEGER NOT NULL,
    -- how empty it was in between, for those who put something back
    lows       BLOB    NOT NULL
) STRICT;

-- How a bucket, or those of a pattern, have refilled from an instant on: so that what is missing in one is known though
-- nobody has written to it since.
CREATE TABLE refill (
    limit_id  INTEGER NOT NULL,
    since_ns  INTEGER NOT NULL,
    refill    INTEGER NOT NULL,
    refill_ns INTEGER NOT NULL,
    PRIMARY KEY (limit_id, since_ns)
) STRICT, WITHOUT ROWID;

-- Keys in use that match a pattern, and the most specific one that they do. Each has a ledger of its own. Where the
-- pattern is no more, neither is the ledger, though it is still there.
CREATE TABLE pattern_key (
    limit_id   INTEGER PRIMARY KEY,
    key        TEXT    NOT NULL,
    pattern_id INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX pattern_key_by_key ON pattern_key (key, pattern_id);

-- Ledgers of limits that were removed: what is left of them is deleted a little at a time. The last of them are
-- remembered, for those who settle what they had charged there.
CREATE TABLE removed_ledger (
    limit_id INTEGER PRIMARY KEY,
    is_empty INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE INDEX removed_ledger_left ON removed_ledger (limit_id) WHERE NOT is_empty;

-- Who changed a limit, and to what; the last changes of each.
CREATE TABLE limit_change (
    change_id  INTEGER PRIMARY KEY,
    key        TEXT    NOT NULL,
    at_ns      INTEGER NOT NULL,
    pid        INTEGER NOT NULL,
    program    TEXT    NOT NULL,
    -- created, replaced or removed
    action     TEXT    NOT NULL,
    -- what is in force since, or was until then if it was removed
    definition TEXT    NOT NULL
) STRICT;

CREATE INDEX limit_change_by_key ON limit_change (key, change_id);

-- Transactions of the callers' own that have charged something and were committed: by a random number, for an hour.
CREATE TABLE provisional (
    number INTEGER PRIMARY KEY,
    at_ns  INTEGER NOT NULL
) STRICT;

CREATE INDEX provisional_at ON provisional (at_ns);

CREATE INDEX permit_charge_by_limit ON permit_charge (limit_id);
