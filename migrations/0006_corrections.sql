-- Corrections far back in a ledger, in a few levels, so that each costs a few rows however many there are.

-- The totals of a ledger before (at_ns, seq), back to the next such row of the same level, are this much larger than they
-- stand in `charge`, modulo 2^62; for each level, one row counts. A correction changes rows here instead of every row of
-- the ledger before it: from the place of the correction back to that of a row of the next level, and on that level from there.
-- Where there is a row of a level, there is one of each lower level.
CREATE TABLE correction (
    limit_id INTEGER NOT NULL,
    level    INTEGER NOT NULL,
    at_ns    INTEGER NOT NULL,
    seq      INTEGER NOT NULL,
    shift    INTEGER NOT NULL,
    PRIMARY KEY (limit_id, level, at_ns, seq)
) STRICT, WITHOUT ROWID;

-- Until now a row held for the totals from its place on, up to the next one. All of a ledger's totals can be moved by
-- the same, for only differences mean anything: so that those after its last row are as they stand in `charge`.
INSERT INTO correction (limit_id, level, at_ns, seq, shift)
SELECT limit_id, 0, at_ns, seq,
       (coalesce(lag(shift) OVER ledger, 0) - last_value(shift) OVER ledger) & 4611686018427387903
FROM total_shift
WINDOW ledger AS (
    PARTITION BY limit_id ORDER BY at_ns, seq
    ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING
);

INSERT INTO correction (limit_id, level, at_ns, seq, shift)
SELECT limit_id, column1, at_ns, seq, 0
FROM (VALUES (1, 16), (2, 256), (3, 4096), (4, 65536))
CROSS JOIN (
    SELECT limit_id, at_ns, seq, row_number() OVER (PARTITION BY limit_id ORDER BY at_ns, seq) AS number
    FROM total_shift
)
WHERE number % column2 = 0;

DROP TABLE total_shift;

DROP VIEW ledger;

-- The ledgers with their true totals.
CREATE VIEW ledger AS
SELECT c.limit_id, c.at_ns, c.seq, c.amount,
       (((((((((c.total
           + coalesce(
               (SELECT s.shift FROM correction AS s
                WHERE s.limit_id = c.limit_id AND s.level = 0 AND (s.at_ns, s.seq) > (c.at_ns, c.seq)
                ORDER BY s.at_ns, s.seq LIMIT 1),
               0
           )) & 4611686018427387903)
           + coalesce(
               (SELECT s.shift FROM correction AS s
                WHERE s.limit_id = c.limit_id AND s.level = 1 AND (s.at_ns, s.seq) > (c.at_ns, c.seq)
                ORDER BY s.at_ns, s.seq LIMIT 1),
               0
           )) & 4611686018427387903)
           + coalesce(
               (SELECT s.shift FROM correction AS s
                WHERE s.limit_id = c.limit_id AND s.level = 2 AND (s.at_ns, s.seq) > (c.at_ns, c.seq)
                ORDER BY s.at_ns, s.seq LIMIT 1),
               0
           )) & 4611686018427387903)
           + coalesce(
               (SELECT s.shift FROM correction AS s
                WHERE s.limit_id = c.limit_id AND s.level = 3 AND (s.at_ns, s.seq) > (c.at_ns, c.seq)
                ORDER BY s.at_ns, s.seq LIMIT 1),
               0
           )) & 4611686018427387903)
           + coalesce(
               (SELECT s.shift FROM correction AS s
                WHERE s.limit_id = c.limit_id AND s.level = 4 AND (s.at_ns, s.seq) > (c.at_ns, c.seq)
                ORDER BY s.at_ns, s.seq LIMIT 1),
               0
           )) & 4611686018427387903 AS total
FROM charge AS c;
