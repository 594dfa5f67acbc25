-- Circuit breakers: limits that let nobody through for a while when too many calls fail.

CREATE TABLE breaker_policy (
    limit_id        INTEGER PRIMARY KEY,
    window_ns       INTEGER NOT NULL,
    minimum_calls   INTEGER NOT NULL,
    failure_percent INTEGER NOT NULL,
    slow_call_ns    INTEGER NOT NULL,
    slow_percent    INTEGER NOT NULL,
    open_ns         INTEGER NOT NULL,
    probes          INTEGER NOT NULL
) STRICT;

-- Those that are not closed: open until an instant, before which they are paused, and half-open from then on. Whoever writes here
-- counts `clock.definitions` up, but for the probes that have succeeded.
CREATE TABLE breaker (
    limit_id  INTEGER PRIMARY KEY,
    since_ns  INTEGER NOT NULL,
    until_ns  INTEGER NOT NULL,
    successes INTEGER NOT NULL,
    reason    TEXT    NOT NULL
) STRICT;

-- What was reported of calls, in tenths of the window of their breaker.
CREATE TABLE outcome (
    limit_id INTEGER NOT NULL,
    at_ns    INTEGER NOT NULL,
    calls    INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    slow     INTEGER NOT NULL,
    PRIMARY KEY (limit_id, at_ns)
) STRICT, WITHOUT ROWID;

-- When it was taken: what was taken before a breaker opened is no probe of it.
ALTER TABLE slot ADD COLUMN since_ns INTEGER NOT NULL DEFAULT 0;

CREATE VIEW breakers AS
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
       CASE WHEN b.limit_id IS NULL THEN 'closed' WHEN b.until_ns > c.now_ns THEN 'open' ELSE 'half-open' END AS state,
       b.reason,
       strftime('%Y-%m-%d %H:%M:%f', (b.since_ns + c.shift_ns) / 1e9, 'unixepoch') AS since,
       strftime('%Y-%m-%d %H:%M:%f', (b.until_ns + c.shift_ns) / 1e9, 'unixepoch') AS probes_from,
       b.successes,
       coalesce(sum(o.calls), 0) AS calls,
       coalesce(sum(o.failures), 0) AS failures,
       coalesce(sum(o.slow), 0) AS slow,
       (SELECT count(*) FROM slot AS s
        WHERE s.limit_id = n.limit_id AND (s.expires_ns IS NULL OR s.expires_ns > c.now_ns)) AS in_flight
FROM present AS c
CROSS JOIN named_limit AS n
CROSS JOIN breaker_policy AS p ON p.limit_id = n.definition_id
LEFT JOIN breaker AS b ON b.limit_id = n.limit_id
LEFT JOIN outcome AS o ON o.limit_id = n.limit_id AND o.at_ns > c.now_ns - p.window_ns
GROUP BY n.limit_id
ORDER BY n.key;

DROP VIEW limits;

-- One row per rate, or one for the bucket, the slots or the breaker.
CREATE VIEW limits AS
SELECT l.key, l.unit, 'rate' AS kind, r.capacity, r.window_ns, l.pad_ns, l.resolution_ns, l.definition,
       l.is_pattern AS pattern,
       strftime('%Y-%m-%d %H:%M:%f', (l.changed_ns + c.wall_minus_instant_ns) / 1e9, 'unixepoch') AS changed
FROM clock AS c CROSS JOIN limit_definition AS l JOIN rate AS r USING (limit_id)
UNION ALL
SELECT l.key, l.unit, 'quota', q.capacity, NULL, l.pad_ns, l.resolution_ns, l.definition, l.is_pattern,
       strftime('%Y-%m-%d %H:%M:%f', (l.changed_ns + c.wall_minus_instant_ns) / 1e9, 'unixepoch')
FROM clock AS c CROSS JOIN limit_definition AS l JOIN quota AS q USING (limit_id)
UNION ALL
SELECT l.key, l.unit, CASE WHEN l.slots IS NULL THEN 'bucket' ELSE 'slots' END, coalesce(l.slots, l.burst), NULL, NULL,
       NULL, l.definition, l.is_pattern,
       strftime('%Y-%m-%d %H:%M:%f', (l.changed_ns + c.wall_minus_instant_ns) / 1e9, 'unixepoch')
FROM clock AS c CROSS JOIN limit_definition AS l
WHERE l.slots IS NOT NULL OR l.burst IS NOT NULL
UNION ALL
SELECT l.key, l.unit, 'breaker', p.probes, p.window_ns, NULL, NULL, l.definition, l.is_pattern,
       strftime('%Y-%m-%d %H:%M:%f', (l.changed_ns + c.wall_minus_instant_ns) / 1e9, 'unixepoch')
FROM clock AS c CROSS JOIN limit_definition AS l JOIN breaker_policy AS p USING (limit_id)
ORDER BY 1, 3 DESC, 5;

DROP VIEW status;

CREATE VIEW status AS
SELECT s.key, s.unit, s.rate, s.used,
       CASE WHEN p.key IS NULL THEN s.available ELSE 0 END AS available,
       s.capacity,
       round(100.0 * s.used / s.capacity, 1) AS percent,
       s.next_release,
       coalesce((SELECT amount FROM debt WHERE debt.limit_id = s.limit_id), 0) AS debt,
       s.decreasing,
       p.until AS paused_until
FROM (
    SELECT limit_id, key, unit, rate, used, available, capacity, next_release, decreasing, position FROM standing
    UNION ALL
    SELECT n.limit_id, b.key, NULL, 'breaker ' || b.state || coalesce(': ' || b.reason, ''), b.in_flight,
           NULL, NULL, NULL, 0, 0
    FROM breakers AS b JOIN named_limit AS n ON n.key = b.key
) AS s
LEFT JOIN pauses AS p ON p.key = s.key
ORDER BY s.key, s.position;

-- When a rate that follows a provider was last changed, cut, and refused.
CREATE TABLE adaptation (
    limit_id   INTEGER PRIMARY KEY,
    changed_ns INTEGER NOT NULL,
    cut_ns     INTEGER NOT NULL,
    refused_ns INTEGER NOT NULL
) STRICT;
