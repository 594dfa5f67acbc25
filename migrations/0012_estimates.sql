-- By how much estimates are off, so that the next ones are better.

-- One row for each definition that somebody has settled estimates for: keys that a pattern matches share that of the
-- pattern. Both sums fade once 50 calls are known, and are in thousandths of the unit of the limit.
CREATE TABLE estimate (
    limit_id              INTEGER PRIMARY KEY,
    calls                 INTEGER NOT NULL,
    estimated_thousandths INTEGER NOT NULL,
    used_thousandths      INTEGER NOT NULL
) STRICT;

-- What was used of each unit that was estimated.
CREATE VIEW estimates AS
SELECT d.key, e.calls, round(e.used_thousandths * 1.0 / e.estimated_thousandths, 3) AS ratio
FROM limit_definition AS d
JOIN estimate AS e USING (limit_id)
ORDER BY d.key;
