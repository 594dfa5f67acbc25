-- Pauses: nobody is admitted by a limit before an instant, whatever its rates say.

-- What a limit does about strikes, if that is not the default: a minute; doubled from the third in 5 minutes on; at most 15
-- minutes; half of the rates in the first window after it.
CREATE TABLE pause_policy (
    limit_id           INTEGER PRIMARY KEY,
    first_ns           INTEGER NOT NULL,
    strikes            INTEGER NOT NULL,
    within_ns          INTEGER NOT NULL,
    cap_ns             INTEGER NOT NULL,
    slow_start_percent INTEGER NOT NULL
) STRICT;

-- The last pause of each ledger, which may be over, and how many strikes counted when it was last made longer. Whoever
-- writes here counts `clock.definitions` up: the others remember what they have read.
CREATE TABLE pause (
    limit_id INTEGER PRIMARY KEY,
    since_ns INTEGER NOT NULL,
    until_ns INTEGER NOT NULL,
    strikes  INTEGER NOT NULL
) STRICT;

-- The strikes against a ledger that still count.
CREATE TABLE strike (
    strike_id INTEGER PRIMARY KEY,
    limit_id  INTEGER NOT NULL,
    at_ns     INTEGER NOT NULL,
    fades_ns  INTEGER NOT NULL
) STRICT;

CREATE INDEX strike_by_limit ON strike (limit_id, fades_ns);

-- Which permit is to follow its booking.
CREATE INDEX permit_booking ON permit (owner_id, booking_id) WHERE booking_id IS NOT NULL;

CREATE VIEW pauses AS
WITH present (now_ns, shift_ns) AS (
    SELECT max(
               high_ns,
               CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000000
                   + 999999 - wall_minus_instant_ns
           ),
           wall_minus_instant_ns
    FROM clock
)
SELECT n.key,
       strftime('%Y-%m-%d %H:%M:%f', (p.since_ns + c.shift_ns) / 1e9, 'unixepoch') AS since,
       strftime('%Y-%m-%d %H:%M:%f', (p.until_ns + c.shift_ns) / 1e9, 'unixepoch') AS until,
       round((p.until_ns - c.now_ns) / 1e9, 3) AS seconds_left,
       p.strikes
FROM present AS c
CROSS JOIN pause AS p ON p.until_ns > c.now_ns
CROSS JOIN named_limit AS n ON n.limit_id = p.limit_id
ORDER BY n.key;

DROP VIEW status;

-- What `status` is made of.
CREATE VIEW standing AS
WITH present (now_ns, shift_ns, wall_shift_ns) AS (
    SELECT max(
               high_ns,
               CAST(round((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000000
                   + 999999 - wall_minus_instant_ns
           ),
           wall_minus_instant_ns,
           calendar_shift_ns
    FROM clock
),
-- What was charged after `after_ns` counts now; what is charged now counts before `until_ns`. `reach_ns` is how long a
-- charge counts, unless it is until the calendar's next boundary.
window AS (
    SELECT n.limit_id, n.key, d.unit, d.was_lowered, p.now_ns, p.shift_ns, r.capacity,
           r.window_ns AS position,
           r.window_ns + d.pad_ns + d.resolution_ns AS reach_ns,
           p.now_ns - r.window_ns - d.pad_ns - d.resolution_ns AS after_ns,
           p.now_ns + r.window_ns + d.pad_ns + d.resolution_ns
               - CASE d.resolution_ns WHEN 0 THEN 0 ELSE p.now_ns % d.resolution_ns END AS until_ns,
           r.capacity || coalesce(' ' || d.unit, '') || '/' || CASE
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
           END AS rate
    FROM present AS p
    CROSS JOIN named_limit AS n
    CROSS JOIN limit_definition AS d ON d.limit_id = n.definition_id
    CROSS JOIN rate AS r ON r.limit_id = d.limit_id
    UNION ALL
    SELECT n.limit_id, n.key, d.unit, d.was_lowered, p.now_ns, p.shift_ns, q.capacity,
           CASE q.period
               WHEN 'day' THEN 86400000000001
               WHEN 'week' THEN 604800000000001
               WHEN 'month' THEN 2678400000000001
               ELSE 31536000000000001
           END,
           NULL,
           (SELECT max(b.wall_ns) FROM boundary AS b
            WHERE b.period = q.period AND b.zone = q.zone AND b.wall_ns <= p.now_ns + p.wall_shift_ns)
               - p.wall_shift_ns - d.pad_ns - d.resolution_ns - 1,
           (SELECT min(b.wall_ns) FROM boundary AS b
            WHERE b.period = q.period AND b.zone = q.zone AND b.wall_ns > p.now_ns + p.wall_shift_ns)
               - p.wall_shift_ns,
           q.capacity || coalesce(' ' || d.unit, '') || '/calendar ' || q.period || ' in ' || q.zone
    FROM present AS p
    CROSS JOIN named_limit AS n
    CROSS JOIN limit_definition AS d ON d.limit_id = n.definition_id
    CROSS JOIN quota AS q ON q.limit_id = d.limit_id
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
                    WHERE c.limit_id = w.limit_id AND c.at_ns > w.after_ns AND c.at_ns <= w.now_ns
                    ORDER BY c.at_ns, c.seq LIMIT 1)
               ) & 4611686018427387903,
               0
           ) + coalesce(
               (SELECT sum(o.amount) FROM open_block AS o
                WHERE o.limit_id = w.limit_id AND o.until_ns > w.now_ns),
               0
           ) AS used,
           -- the most that any window holds which a charge made now would count in, bookings included
           (SELECT max(
                       ((
                           b.total
                           -
                           (SELECT c.total - c.amount FROM ledger AS c
                            WHERE c.limit_id = b.limit_id
                              AND c.at_ns > coalesce(b.at_ns - w.reach_ns, w.after_ns)
                            ORDER BY c.at_ns, c.seq LIMIT 1)
                       ) & 4611686018427387903) + coalesce(
                           (SELECT sum(o.amount) FROM open_block AS o
                            WHERE o.limit_id = b.limit_id AND o.until_ns > b.at_ns),
                           0
                       )
                   )
            FROM ledger AS b
            WHERE b.limit_id = w.limit_id AND b.at_ns > w.now_ns AND b.at_ns < w.until_ns
           ) AS booked_peak,
           coalesce(
               (SELECT coalesce(c.at_ns + w.reach_ns, w.until_ns) FROM ledger AS c
                WHERE c.limit_id = w.limit_id AND c.at_ns > w.after_ns AND c.at_ns <= w.now_ns
                ORDER BY c.at_ns LIMIT 1),
               (SELECT coalesce(min(o.until_ns) + w.reach_ns, w.until_ns) FROM open_block AS o
                WHERE o.limit_id = w.limit_id AND o.until_ns > w.now_ns
                HAVING count(*) > 0)
           ) AS release_ns
    FROM window AS w
),
-- A bucket in nanoseconds: how long one takes to flow in, and when it is full again, with what is booked up to now.
bucket_now AS (
    SELECT n.limit_id, n.key, d.unit, d.was_lowered, p.now_ns, p.shift_ns, d.burst,
           d.refill_ns * 1.0 / d.refill AS one_ns,
           d.burst || coalesce(' ' || d.unit, '') AS size,
           d.refill || '/' || CASE
               WHEN refill_ns = 86400000000000 THEN 'd'
               WHEN refill_ns = 3600000000000 THEN 'h'
               WHEN refill_ns = 60000000000 THEN 'min'
               WHEN refill_ns = 1000000000 THEN 's'
               WHEN refill_ns % 1000000000 = 0 THEN (refill_ns / 1000000000) || 's'
               WHEN refill_ns % 1000000 = 0 THEN (refill_ns / 1000000) || 'ms'
               ELSE refill_ns || 'ns'
           END AS speed,
           max(
               0,
               -- What stands there in the terms of an earlier definition holds until the present one came.
               max(coalesce(
                   (SELECT CASE
                        WHEN (f.refill, f.refill_ns) = (d.refill, d.refill_ns)
                        THEN f.full_ns - p.now_ns + f.full_part * 1.0 / f.refill
                        ELSE max(f.full_ns - d.changed_ns + f.full_part * 1.0 / f.refill, 0)
                            * f.refill / f.refill_ns * d.refill_ns / d.refill - (p.now_ns - d.changed_ns)
                    END
                    FROM bucket AS f WHERE f.limit_id = n.limit_id),
                   0
               ), 0)
               + coalesce(
                   (SELECT sum(c.amount) FROM charge AS c
                    WHERE c.limit_id = n.limit_id AND c.at_ns <= p.now_ns), 0
               ) * d.refill_ns * 1.0 / d.refill
           ) AS left_ns
    FROM present AS p
    CROSS JOIN named_limit AS n
    CROSS JOIN limit_definition AS d ON d.limit_id = n.definition_id
    WHERE d.burst IS NOT NULL
),
level AS (
    SELECT b.*,
           CAST(b.left_ns / b.one_ns - 1e-9 AS INTEGER)
               + (b.left_ns / b.one_ns - 1e-9 > CAST(b.left_ns / b.one_ns - 1e-9 AS INTEGER)) AS used,
           -- What those who have booked need of it, if nothing flowed in that it could not hold.
           coalesce(
               (SELECT min(
                           (c.at_ns - b.now_ns - b.left_ns) / b.one_ns + b.burst
                           - (SELECT sum(e.amount) FROM charge AS e
                              WHERE e.limit_id = b.limit_id AND e.at_ns > b.now_ns AND e.at_ns <= c.at_ns)
                       )
                FROM charge AS c
                WHERE c.limit_id = b.limit_id AND c.at_ns > b.now_ns),
               b.burst
           ) AS spare
    FROM bucket_now AS b
),
held AS (
    SELECT n.limit_id, n.key, d.unit, d.was_lowered, d.slots,
           coalesce(
               (SELECT sum(s.amount) FROM slot AS s
                WHERE s.limit_id = n.limit_id AND (s.expires_ns IS NULL OR s.expires_ns > p.now_ns)),
               0
           ) AS used
    FROM present AS p
    CROSS JOIN named_limit AS n
    CROSS JOIN limit_definition AS d ON d.limit_id = n.definition_id
    WHERE d.slots IS NOT NULL
),
line AS (
    SELECT limit_id, key, unit, rate, used,
           max(0, capacity - max(used, coalesce(booked_peak, 0))) AS available,
           capacity,
           strftime('%Y-%m-%d %H:%M:%f', (release_ns + shift_ns) / 1e9, 'unixepoch') AS next_release,
           was_lowered AND max(used, coalesce(booked_peak, 0)) > capacity AS decreasing,
           position
    FROM measured
    UNION ALL
    SELECT limit_id, key, unit, 'burst ' || size || ', refill ' || speed, used,
           CAST(max(0, min(burst - used, spare)) AS INTEGER),
           burst,
           CASE WHEN used > 0 THEN strftime(
               '%Y-%m-%d %H:%M:%f', (now_ns + left_ns - (used - 1) * one_ns + shift_ns) / 1e9, 'unixepoch'
           ) END,
           was_lowered AND (used > burst OR spare < 0),
           0
    FROM level
    UNION ALL
    SELECT limit_id, key, unit, slots || ' slots', used, max(0, slots - used), slots, NULL,
           was_lowered AND used > slots,
           0
    FROM held
)
SELECT limit_id, key, unit, rate, used, available, capacity, next_release, decreasing, position
FROM line;

CREATE VIEW status AS
SELECT s.key, s.unit, s.rate, s.used,
       CASE WHEN p.key IS NULL THEN s.available ELSE 0 END AS available,
       s.capacity,
       round(100.0 * s.used / s.capacity, 1) AS percent,
       s.next_release,
       coalesce((SELECT amount FROM debt WHERE debt.limit_id = s.limit_id), 0) AS debt,
       s.decreasing,
       p.until AS paused_until
FROM standing AS s LEFT JOIN pauses AS p ON p.key = s.key
ORDER BY s.key, s.position;
