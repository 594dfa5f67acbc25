-- Permits that outlive the call that granted them.

ALTER TABLE limit_definition ADD COLUMN overage TEXT NOT NULL DEFAULT 'debt';

-- A limit has rates, or slots: so many may be held at once. A slot comes back after the timeout, if there is
-- one, although its permit is still held.
ALTER TABLE limit_definition ADD COLUMN slots INTEGER;
ALTER TABLE limit_definition ADD COLUMN timeout_ns INTEGER;

-- What permits used beyond what could be charged for it.
CREATE TABLE debt (
    limit_id INTEGER PRIMARY KEY,
    amount   INTEGER NOT NULL,
    since_ns INTEGER NOT NULL
) STRICT;

-- The totals of a ledger from (at_ns, seq) on, up to the next such row, are this much larger than they stand in
-- `charge`, modulo 2^62: a correction changes a row here instead of every row of the ledger after it.
CREATE TABLE total_shift (
    limit_id INTEGER NOT NULL,
    at_ns    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    shift    INTEGER NOT NULL,
    PRIMARY KEY (limit_id, at_ns, seq)
) STRICT, WITHOUT ROWID;

-- The ledgers with their true totals.
CREATE VIEW ledger AS
SELECT c.limit_id, c.at_ns, c.seq, c.amount,
       (
           c.total + coalesce(
               (SELECT s.shift FROM total_shift AS s
                WHERE s.limit_id = c.limit_id AND (s.at_ns, s.seq) <= (c.at_ns, c.seq)
                ORDER BY s.at_ns DESC, s.seq DESC LIMIT 1),
               0
           )
       ) & 4611686018427387903 AS total
FROM charge AS c;

-- Permits that are open and hold slots, or have an id. `permit_id` grows from each to the next: it is the fencing
-- number, as long as the slots are those that were granted first. The last row stays when its permit has ended, until the next one has got its number.
CREATE TABLE permit (
    permit_id  INTEGER PRIMARY KEY,
    -- nobody, once it was detached, or its owner has died and its id is still known
    owner_id   INTEGER,
    at_ns      INTEGER NOT NULL,
    expires_ns INTEGER,
    ended_ns   INTEGER,
    id         TEXT,
    -- what was asked for under the id: an amount and a key a line, by key
    request    TEXT,
    detached   INTEGER NOT NULL DEFAULT 0,
    -- the fencing number, if its slots were taken again since it was granted
    fence      INTEGER
) STRICT;

CREATE INDEX permit_fence ON permit (fence) WHERE fence IS NOT NULL;
CREATE INDEX permit_expires ON permit (expires_ns) WHERE expires_ns IS NOT NULL;
CREATE UNIQUE INDEX permit_by_id ON permit (id) WHERE id IS NOT NULL;

-- The charges of permits that have an id, so that anybody can settle them.
CREATE TABLE permit_charge (
    permit_id INTEGER NOT NULL,
    limit_id  INTEGER NOT NULL,
    seq       INTEGER NOT NULL,
    amount    INTEGER NOT NULL,
    PRIMARY KEY (permit_id, limit_id)
) STRICT, WITHOUT ROWID;

-- Permits with an id that have ended, for an hour: who asks again under the same id is not charged again.
CREATE TABLE ended_permit (
    id        TEXT PRIMARY KEY,
    permit_id INTEGER NOT NULL,
    at_ns     INTEGER NOT NULL,
    ended_ns  INTEGER NOT NULL,
    request   TEXT    NOT NULL,
    -- settled, cancelled or expired
    outcome   TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX ended_permit_ended ON ended_permit (ended_ns);

-- The slots that a permit holds of a limit. They count until they expire.
CREATE TABLE slot (
    limit_id   INTEGER NOT NULL,
    permit_id  INTEGER NOT NULL,
    amount     INTEGER NOT NULL,
    expires_ns INTEGER,
    PRIMARY KEY (limit_id, permit_id)
) STRICT, WITHOUT ROWID;

-- Who waits in line for slots, the smallest number first, and for what. Nothing is charged for it. `ready_ns` is
-- when it was told that it is its turn.
CREATE TABLE ticket (
    ticket_id   INTEGER PRIMARY KEY,
    owner_id    INTEGER NOT NULL,
    since_ns    INTEGER NOT NULL,
    deadline_ns INTEGER,
    ready_ns    INTEGER
) STRICT;

CREATE TABLE ticket_take (
    ticket_id INTEGER NOT NULL,
    limit_id  INTEGER NOT NULL,
    amount    INTEGER NOT NULL,
    PRIMARY KEY (ticket_id, limit_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX ticket_take_limit ON ticket_take (limit_id, ticket_id);

-- One row per rate, or one for the slots.
DROP VIEW limits;

CREATE VIEW limits AS
SELECT l.key, l.unit, 'rate' AS kind, r.capacity, r.window_ns, l.pad_ns
FROM limit_definition AS l
JOIN rate AS r USING (limit_id)
UNION ALL
SELECT l.key, l.unit, 'slots', l.slots, NULL, NULL
FROM limit_definition AS l
WHERE l.slots IS NOT NULL
ORDER BY 1, 5;

DROP VIEW status;

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
                   (SELECT c.total FROM ledger AS c
                    WHERE c.limit_id = w.limit_id AND c.at_ns <= w.now_ns
                    ORDER BY c.at_ns DESC, c.seq DESC LIMIT 1)
                   -
                   (SELECT c.total - c.amount FROM ledger AS c
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
                           (SELECT c.total - c.amount FROM ledger AS c
                            WHERE c.limit_id = b.limit_id AND c.at_ns > b.at_ns - w.reach_ns
                            ORDER BY c.at_ns, c.seq LIMIT 1)
                       ) & 4611686018427387903
                   )
            FROM ledger AS b
            WHERE b.limit_id = w.limit_id
              AND b.at_ns > w.now_ns AND b.at_ns < w.now_ns + w.reach_ns
           ) AS booked_peak,
           (SELECT c.at_ns FROM ledger AS c
            WHERE c.limit_id = w.limit_id
              AND c.at_ns > w.now_ns - w.reach_ns AND c.at_ns <= w.now_ns
            ORDER BY c.at_ns LIMIT 1) + w.reach_ns AS release_ns
    FROM window AS w
),
held AS (
    SELECT l.key, l.unit, l.slots,
           coalesce(
               (SELECT sum(s.amount) FROM slot AS s
                WHERE s.limit_id = l.limit_id AND (s.expires_ns IS NULL OR s.expires_ns > p.now_ns)),
               0
           ) AS used
    FROM present AS p
    CROSS JOIN limit_definition AS l
    WHERE l.slots IS NOT NULL
),
line AS (
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
           strftime('%Y-%m-%d %H:%M:%f', (release_ns + shift_ns) / 1e9, 'unixepoch') AS next_release,
           window_ns
    FROM measured
    UNION ALL
    SELECT key, unit, slots || ' slots', used, max(0, slots - used), slots,
           round(100.0 * used / slots, 1), NULL, NULL
    FROM held
)
SELECT key, unit, rate, used, available, capacity, percent, next_release
FROM line
ORDER BY key, window_ns;

CREATE VIEW permits AS
WITH present (now_ns, shift_ns) AS (
    SELECT max(
               high_ns,
               CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000000
                   + 999999 - wall_minus_instant_ns
           ),
           wall_minus_instant_ns
    FROM clock
)
SELECT p.id,
       coalesce(p.fence, p.permit_id) AS fence,
       o.pid,
       strftime('%Y-%m-%d %H:%M:%f', (p.at_ns + c.shift_ns) / 1e9, 'unixepoch') AS since,
       strftime('%Y-%m-%d %H:%M:%f', (p.expires_ns + c.shift_ns) / 1e9, 'unixepoch') AS expires,
       (
           SELECT group_concat(t.amount || ' ' || l.key, ', ')
           FROM (
               SELECT s.limit_id, s.amount FROM slot AS s WHERE s.permit_id = p.permit_id
               UNION ALL
               SELECT h.limit_id, h.amount FROM permit_charge AS h WHERE h.permit_id = p.permit_id
           ) AS t
           JOIN limit_definition AS l USING (limit_id)
       ) AS holds,
       CASE
           WHEN p.expires_ns <= c.now_ns THEN 'expired'
           WHEN p.at_ns > c.now_ns THEN 'booked'
           WHEN p.detached THEN 'detached'
           WHEN p.owner_id IS NULL THEN 'abandoned'
           ELSE 'held'
       END AS state
FROM present AS c
CROSS JOIN permit AS p
LEFT JOIN owner AS o USING (owner_id)
WHERE p.ended_ns IS NULL
UNION ALL
SELECT e.id, e.permit_id, NULL,
       strftime('%Y-%m-%d %H:%M:%f', (e.at_ns + c.shift_ns) / 1e9, 'unixepoch'), NULL, NULL, e.outcome
FROM present AS c
CROSS JOIN ended_permit AS e;

-- Who waits in line, the first one first.
CREATE VIEW waiting AS
SELECT t.ticket_id AS ticket,
       o.pid,
       strftime('%Y-%m-%d %H:%M:%f', (t.since_ns + c.wall_minus_instant_ns) / 1e9, 'unixepoch') AS since,
       strftime('%Y-%m-%d %H:%M:%f', (t.deadline_ns + c.wall_minus_instant_ns) / 1e9, 'unixepoch') AS deadline,
       (
           SELECT group_concat(w.amount || ' ' || l.key, ', ')
           FROM ticket_take AS w
           JOIN limit_definition AS l USING (limit_id)
           WHERE w.ticket_id = t.ticket_id
       ) AS wants
FROM clock AS c
CROSS JOIN ticket AS t
LEFT JOIN owner AS o USING (owner_id)
ORDER BY t.ticket_id;
