-- Instants are nanoseconds since the Unix epoch on the file's own timeline, which the row of `clock`
-- ties to the clock of the running boot.

CREATE TABLE clock (
    id                    INTEGER PRIMARY KEY CHECK (id = 1),
    boot_id               TEXT    NOT NULL,
    -- instant = time since boot + offset_ns, in that boot
    offset_ns             INTEGER NOT NULL,
    -- an instant that has been reached; at most a second behind the last one that wrote
    high_ns               INTEGER NOT NULL,
    -- wall clock = instant + wall_minus_instant_ns, for people who read this file
    wall_minus_instant_ns INTEGER NOT NULL,
    -- counts the changes of limit_definition and rate
    definitions           INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE limit_definition (
    limit_id INTEGER PRIMARY KEY AUTOINCREMENT,
    key      TEXT    NOT NULL UNIQUE,
    unit     TEXT,
    pad_ns   INTEGER NOT NULL
) STRICT;

CREATE TABLE rate (
    limit_id  INTEGER NOT NULL,
    window_ns INTEGER NOT NULL,
    capacity  INTEGER NOT NULL,
    PRIMARY KEY (limit_id, window_ns)
) STRICT, WITHOUT ROWID;

-- The ledgers: one row per charge. `total` is the sum of the amounts of a limit up to and including the
-- row, modulo 2^62, so that the usage of any window is a difference of two totals. `seq` orders the
-- charges of one instant.
CREATE TABLE charge (
    limit_id   INTEGER NOT NULL,
    at_ns      INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    amount     INTEGER NOT NULL,
    total      INTEGER NOT NULL,
    PRIMARY KEY (limit_id, at_ns, seq)
) STRICT, WITHOUT ROWID;

-- Which charges an owner has booked ahead of their instant. Whoever cancels or settles a booking finds its
-- charges here, also after its instant. What is used and will not be corrected any more is removed when the
-- same owner books anew, and all of an owner's rows once it is dead.
CREATE TABLE booking (
    owner_id   INTEGER NOT NULL,
    booking_id INTEGER NOT NULL,
    limit_id   INTEGER NOT NULL,
    at_ns      INTEGER NOT NULL,
    seq        INTEGER NOT NULL,
    PRIMARY KEY (owner_id, booking_id, limit_id)
) STRICT, WITHOUT ROWID;

-- Processes that have booked something. Each holds a lock on byte `owner_id` of the lock file beside
-- this database for as long as it lives.
CREATE TABLE owner (
    owner_id   INTEGER PRIMARY KEY AUTOINCREMENT,
    pid        INTEGER NOT NULL,
    boot_id    TEXT    NOT NULL,
    -- the lock file that the lock is in, should it ever be replaced
    lock_inode INTEGER NOT NULL,
    since_ns   INTEGER NOT NULL
) STRICT;

-- What follows is for people with a sqlite3 shell, and is read as of the current time: the end of the
-- current millisecond, since SQLite tells no finer time and what was just charged lies in the past.

CREATE VIEW limits AS
SELECT l.key, l.unit, 'rate' AS kind, r.capacity, r.window_ns, l.pad_ns
FROM limit_definition AS l
JOIN rate AS r USING (limit_id)
ORDER BY l.key, r.window_ns;

CREATE VIEW charges AS
WITH present (now_ns, shift_ns) AS (
    SELECT max(
               high_ns,
               CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000000
                   + 999999 - wall_minus_instant_ns
           ),
           wall_minus_instant_ns
    FROM clock
)
SELECT l.key,
       c.at_ns,
       strftime('%Y-%m-%d %H:%M:%f', (c.at_ns + p.shift_ns) / 1e9, 'unixepoch') AS at,
       c.amount,
       c.at_ns > p.now_ns AS booked
FROM present AS p
CROSS JOIN limit_definition AS l
CROSS JOIN charge AS c ON c.limit_id = l.limit_id;

CREATE VIEW status AS
WITH present (now_ns, shift_ns) AS (
    SELECT max(
               high_ns,
               CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000000
                   + 999999 - wall_minus_instant_ns
           ),
           wall_minus_instant_ns
    FROM clock
),
window AS (
    SELECT l.limit_id, l.key, l.unit, r.capacity, r.window_ns,
           r.window_ns + l.pad_ns AS reach_ns, p.now_ns, p.shift_ns
    FROM present AS p
    CROSS JOIN limit_definition AS l
    CROSS JOIN rate AS r ON r.limit_id = l.limit_id
),
measured AS (
    SELECT w.*,
           coalesce(
               (
                   (SELECT c.total FROM charge AS c
                    WHERE c.limit_id = w.limit_id AND c.at_ns <= w.now_ns
                    ORDER BY c.at_ns DESC, c.seq DESC LIMIT 1)
                   -
                   (SELECT c.total - c.amount FROM charge AS c
                    WHERE c.limit_id = w.limit_id
                      AND c.at_ns > w.now_ns - w.reach_ns AND c.at_ns <= w.now_ns
                    ORDER BY c.at_ns, c.seq LIMIT 1)
               ) & 4611686018427387903,
               0
           ) AS used,
           -- the most that any window holds which a charge made now would count in, bookings included
           (SELECT max(
                       (
                           b.total
                           -
                           (SELECT c.total - c.amount FROM charge AS c
                            WHERE c.limit_id = b.limit_id AND c.at_ns > b.at_ns - w.reach_ns
                            ORDER BY c.at_ns, c.seq LIMIT 1)
                       ) & 4611686018427387903
                   )
            FROM charge AS b
            WHERE b.limit_id = w.limit_id
              AND b.at_ns > w.now_ns AND b.at_ns < w.now_ns + w.reach_ns
           ) AS booked_peak,
           (SELECT c.at_ns FROM charge AS c
            WHERE c.limit_id = w.limit_id
              AND c.at_ns > w.now_ns - w.reach_ns AND c.at_ns <= w.now_ns
            ORDER BY c.at_ns LIMIT 1) + w.reach_ns AS release_ns
    FROM window AS w
)
SELECT key,
       unit,
       capacity || coalesce(' ' || unit, '') || '/' || CASE
           WHEN window_ns = 86400000000000 THEN 'd'
           WHEN window_ns % 86400000000000 = 0 THEN (window_ns / 86400000000000) || 'd'
           WHEN window_ns = 3600000000000 THEN 'h'
           WHEN window_ns % 3600000000000 = 0 THEN (window_ns / 3600000000000) || 'h'
           WHEN window_ns = 60000000000 THEN 'min'
           WHEN window_ns % 60000000000 = 0 THEN (window_ns / 60000000000) || 'min'
           WHEN window_ns = 1000000000 THEN 's'
           WHEN window_ns % 1000000000 = 0 THEN (window_ns / 1000000000) || 's'
           WHEN window_ns = 1000000 THEN 'ms'
           WHEN window_ns % 1000000 = 0 THEN (window_ns / 1000000) || 'ms'
           ELSE window_ns || 'ns'
       END AS rate,
       used,
       max(0, capacity - max(used, coalesce(booked_peak, 0))) AS available,
       capacity,
       round(100.0 * used / capacity, 1) AS percent,
       strftime('%Y-%m-%d %H:%M:%f', (release_ns + shift_ns) / 1e9, 'unixepoch') AS next_release
FROM measured
ORDER BY key, window_ns;
