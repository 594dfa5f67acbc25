//! The rows that make up the definition of a limit.

use std::time::Duration;

use rusqlite::OptionalExtension;

use super::transaction::Transaction;
use crate::breaker::BreakerPolicy;
use crate::calendar::LimitId;
use crate::clock::Timestamp;
use crate::error::Error;
use crate::limit::{Limit, LimitError, Period, Quota, Window, nanos};
use crate::pause::PausePolicy;
use crate::settlement::Overage;
use crate::store::Known;

const NEXT_NUMBER: &str = "UPDATE limit_number SET last = last + 1 RETURNING last";

impl Transaction<'_> {
    /// A number that no limit has had.
    pub(super) fn next_limit(&mut self) -> Result<LimitId, Error> {
        self.wrote();
        self.link
            .connection
            .prepare_cached(NEXT_NUMBER)
            .and_then(|mut s| s.query_row([], |row| row.get(0).map(LimitId)))
            .map_err(|error| self.sqlite(error))
    }
}

const WRITE: &str = "INSERT INTO limit_definition
        (limit_id, key, is_pattern, unit, pad_ns, overage, slots, timeout_ns, burst, refill, refill_ns,
        changed_ns, was_lowered, definition, resolution_ns, keep_ns)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
    ON CONFLICT (limit_id) DO UPDATE SET is_pattern = ?3, unit = ?4, pad_ns = ?5, overage = ?6, slots = ?7,
        timeout_ns = ?8, burst = ?9, refill = ?10, refill_ns = ?11, changed_ns = ?12, was_lowered = ?13,
        definition = ?14, resolution_ns = ?15, keep_ns = ?16";
const DELETE_RATES: &str = "DELETE FROM rate WHERE limit_id = ?1";
const DELETE_QUOTAS: &str = "DELETE FROM quota WHERE limit_id = ?1";
const INSERT_RATE: &str = "INSERT INTO rate (limit_id, window_ns, capacity) VALUES (?1, ?2, ?3)";
const INSERT_QUOTA: &str =
    "INSERT INTO quota (limit_id, period, zone, capacity) VALUES (?1, ?2, ?3, ?4)";

impl Transaction<'_> {
    /// Writes a definition in the place of the one that the limit has, if any. Whether that lowers it shall be said in
    /// a second step.
    pub(super) fn write_definition(
        &mut self,
        id: LimitId,
        limit: &Limit,
        was_lowered: bool,
    ) -> Result<(), Error> {
        self.wrote();
        let connection = self.link.connection;
        let bucket = limit.bucket();
        let write = || -> rusqlite::Result<()> {
            connection
                .prepare_cached(WRITE)?
                .execute(rusqlite::params![
                    id.0,
                    limit.key(),
                    limit.is_pattern(),
                    limit.unit(),
                    limit.pad_ns(),
                    limit.overage().as_str(),
                    limit.slot_count().map(u64::cast_signed),
                    limit.timeout_ns(),
                    bucket.map(|bucket| bucket.burst().cast_signed()),
                    bucket.map(|bucket| bucket.refill().cast_signed()),
                    bucket.map(|bucket| bucket.per_ns()),
                    self.now().as_nanos(),
                    was_lowered,
                    limit.as_given().to_string(),
                    limit.resolution_ns(),
                    limit.keep_ns(),
                ])?;
            connection.prepare_cached(DELETE_RATES)?.execute([id.0])?;
            connection.prepare_cached(DELETE_QUOTAS)?.execute([id.0])?;
            for rate in limit.rates() {
                let capacity = rate.capacity_units();
                match rate.window() {
                    Window::Rolling(window) => connection
                        .prepare_cached(INSERT_RATE)?
                        .execute((id.0, nanos(window), capacity))?,
                    Window::Calendar(quota) => connection
                        .prepare_cached(INSERT_QUOTA)?
                        .execute((id.0, quota.period().as_str(), quota.zone_name(), capacity))?,
                };
            }
            Ok(())
        };
        write().map_err(|error| self.sqlite(error))?;
        self.write_policy(id, limit.pauses())?;
        self.write_breaker(id, limit.breaker_policy())?;
        self.write_refill(id, limit)?;
        self.write_boundaries(limit)
    }
}

const READ_POLICY: &str = "SELECT first_ns, strikes, within_ns, cap_ns, slow_start_percent
    FROM pause_policy WHERE limit_id = ?1";
const WRITE_POLICY: &str = "INSERT OR REPLACE INTO pause_policy
        (limit_id, first_ns, strikes, within_ns, cap_ns, slow_start_percent)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6)";
const DELETE_POLICY: &str = "DELETE FROM pause_policy WHERE limit_id = ?1";

impl Transaction<'_> {
    fn write_policy(&self, id: LimitId, policy: PausePolicy) -> Result<(), Error> {
        let PausePolicy {
            first,
            strikes,
            within,
            cap,
            slow_start_percent,
        } = policy;
        let [first_ns, within_ns, cap_ns] = [first, within, cap].map(nanos);
        let row = (
            id.0,
            first_ns,
            strikes,
            within_ns,
            cap_ns,
            slow_start_percent,
        );
        let connection = self.link.connection;
        let write = || -> rusqlite::Result<usize> {
            if policy == PausePolicy::default() {
                connection.prepare_cached(DELETE_POLICY)?.execute([id.0])
            } else {
                connection.prepare_cached(WRITE_POLICY)?.execute(row)
            }
        };
        write().map(drop).map_err(|error| self.sqlite(error))
    }

    /// What a limit does about strikes, as it stands there: it is checked with the rest of the definition.
    fn read_policy(&self, id: LimitId) -> Result<Option<PausePolicy>, Error> {
        self.link
            .connection
            .prepare_cached(READ_POLICY)
            .and_then(|mut s| {
                s.query_row([id.0], |row| {
                    let span = |ns: i64| Duration::from_nanos(u64::try_from(ns).unwrap_or(0));
                    Ok(PausePolicy {
                        first: span(row.get(0)?),
                        strikes: u32::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
                        within: span(row.get(2)?),
                        cap: span(row.get(3)?),
                        slow_start_percent: u8::try_from(row.get::<_, i64>(4)?).unwrap_or(0),
                    })
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const DELETE_ADAPTATION: &str = "DELETE FROM adaptation WHERE limit_id = ?1";

const READ_BREAKER: &str = "SELECT window_ns, minimum_calls, failure_percent, slow_call_ns,
        slow_percent, open_ns, probes
    FROM breaker_policy WHERE limit_id = ?1";
const WRITE_BREAKER: &str = "INSERT OR REPLACE INTO breaker_policy
        (limit_id, window_ns, minimum_calls, failure_percent, slow_call_ns, slow_percent, open_ns, probes)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";
const DELETE_BREAKER: &str = "DELETE FROM breaker_policy WHERE limit_id = ?1";

impl Transaction<'_> {
    fn write_breaker(&self, id: LimitId, policy: Option<BreakerPolicy>) -> Result<(), Error> {
        let Some(policy) = policy else {
            return Ok(());
        };
        let [window_ns, slow_call_ns, open_ns] =
            [policy.window, policy.slow_call, policy.open_for].map(nanos);
        let row = (
            id.0,
            window_ns,
            policy.minimum_calls,
            policy.failure_percent,
            slow_call_ns,
            policy.slow_percent,
            open_ns,
            policy.probes,
        );
        self.link
            .connection
            .prepare_cached(WRITE_BREAKER)
            .and_then(|mut s| s.execute(row))
            .map(drop)
            .map_err(|error| self.sqlite(error))
    }

    /// When a breaker opens and closes, as it stands there: it is checked with the rest of the definition.
    fn read_breaker(&self, id: LimitId) -> Result<Option<BreakerPolicy>, Error> {
        self.link
            .connection
            .prepare_cached(READ_BREAKER)
            .and_then(|mut s| {
                s.query_row([id.0], |row| {
                    let span = |ns: i64| Duration::from_nanos(u64::try_from(ns).unwrap_or(0));
                    let count = |count: i64| u32::try_from(count).unwrap_or(0);
                    let percent = |count: i64| u8::try_from(count).unwrap_or(0);
                    Ok(BreakerPolicy {
                        window: span(row.get(0)?),
                        minimum_calls: count(row.get(1)?),
                        failure_percent: percent(row.get(2)?),
                        slow_call: span(row.get(3)?),
                        slow_percent: percent(row.get(4)?),
                        open_for: span(row.get(5)?),
                        probes: count(row.get(6)?),
                    })
                })
                .optional()
            })
            .map_err(|error| self.sqlite(error))
    }
}

const DELETE_REFILLS: &str = "DELETE FROM refill WHERE limit_id = ?1";
const DELETE: &str = "DELETE FROM limit_definition WHERE limit_id = ?1";

impl Transaction<'_> {
    pub(super) fn delete_definition(&mut self, id: LimitId) -> Result<(), Error> {
        self.wrote();
        for sql in [
            DELETE,
            DELETE_RATES,
            DELETE_QUOTAS,
            DELETE_REFILLS,
            DELETE_POLICY,
            DELETE_BREAKER,
            DELETE_ADAPTATION,
        ] {
            self.link
                .connection
                .prepare_cached(sql)
                .and_then(|mut s| s.execute([id.0]))
                .map_err(|error| self.sqlite(error))?;
        }
        self.forget_learned(id)?;
        self.forget_strikes(id)?;
        self.forget_breaker(id)
    }
}

/// Selects what a [`Head`] is read from.
macro_rules! heads {
    ($which:literal) => {
        concat!(
            "SELECT limit_id, key, is_pattern, unit, pad_ns, overage, slots, timeout_ns, burst, refill,
                refill_ns, changed_ns, was_lowered, resolution_ns, keep_ns
            FROM limit_definition ",
            $which
        )
    };
}

const READ: &str = heads!("WHERE key = ?1");
const READ_FROM: &str = heads!("WHERE limit_id >= ?1 ORDER BY limit_id LIMIT 1");
const READ_ALL: &str = heads!("ORDER BY key");
const READ_PATTERNS: &str = heads!("WHERE is_pattern");

impl Transaction<'_> {
    /// The definition of a key, or the pattern that is written so.
    pub(super) fn read_definition(&self, key: &str) -> Result<Option<Known>, Error> {
        self.read_one(READ, key)
    }

    /// The definition with the smallest number from this one on.
    pub(super) fn read_definition_from(&self, id: LimitId) -> Result<Option<Known>, Error> {
        self.read_one(READ_FROM, id.0)
    }

    /// All definitions, by key.
    pub(super) fn read_all_definitions(&self) -> Result<Vec<Known>, Error> {
        self.read_many(READ_ALL)
    }

    /// All patterns, and those that this program cannot read: what they match it cannot limit.
    pub(super) fn read_patterns(&self) -> Result<Patterns, Error> {
        let mut patterns = Patterns::default();
        for head in self.read_heads(READ_PATTERNS)? {
            match self.complete(&head) {
                Ok(known) => patterns.known.push(known),
                Err(Error::Definition { key, source }) => patterns.unreadable.push((key, source)),
                Err(error) => return Err(error),
            }
        }
        Ok(patterns)
    }

    fn read_one(&self, sql: &str, wanted: impl rusqlite::ToSql) -> Result<Option<Known>, Error> {
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.query_row([wanted], Head::read).optional())
            .map_err(|error| self.sqlite(error))?
            .map(|head| self.complete(&head))
            .transpose()
    }

    fn read_many(&self, sql: &str) -> Result<Vec<Known>, Error> {
        let heads = self.read_heads(sql)?;
        heads.iter().map(|head| self.complete(head)).collect()
    }

    fn read_heads(&self, sql: &str) -> Result<Vec<Head>, Error> {
        self.link
            .connection
            .prepare_cached(sql)
            .and_then(|mut s| s.query_map([], Head::read)?.collect())
            .map_err(|error| self.sqlite(error))
    }
}

/// The patterns of a file.
#[derive(Default)]
pub(super) struct Patterns {
    pub(super) known: Vec<Known>,
    /// Those that this program cannot read, and why.
    pub(super) unreadable: Vec<(String, LimitError)>,
}

/// A row of `limit_definition`.
struct Head {
    id: LimitId,
    key: String,
    is_pattern: bool,
    unit: Option<String>,
    pad_ns: i64,
    overage: String,
    slots: Option<i64>,
    timeout_ns: Option<i64>,
    burst: Option<i64>,
    refill: Option<i64>,
    refill_ns: Option<i64>,
    changed_ns: i64,
    was_lowered: bool,
    resolution_ns: i64,
    keep_ns: i64,
}

impl Head {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: LimitId(row.get(0)?),
            key: row.get(1)?,
            is_pattern: row.get(2)?,
            unit: row.get(3)?,
            pad_ns: row.get(4)?,
            overage: row.get(5)?,
            slots: row.get(6)?,
            timeout_ns: row.get(7)?,
            burst: row.get(8)?,
            refill: row.get(9)?,
            refill_ns: row.get(10)?,
            changed_ns: row.get(11)?,
            was_lowered: row.get(12)?,
            resolution_ns: row.get(13)?,
            keep_ns: row.get(14)?,
        })
    }

    /// Checks everything as if a caller had given it: the file may have been edited.
    fn build(
        &self,
        rates: &[(i64, i64)],
        quotas: &[(i64, Quota)],
        policy: Option<PausePolicy>,
        breaker: Option<BreakerPolicy>,
    ) -> Result<Limit, String> {
        let positive = |number: i64| u64::try_from(number).map_err(|_| "a number is negative");
        let span = |ns: i64| positive(ns).map(Duration::from_nanos);
        let mut builder = if self.is_pattern {
            Limit::pattern(self.key.as_str())
        } else {
            Limit::new(self.key.as_str())
        };
        if let Some(count) = self.slots {
            builder = builder.slots(positive(count)?);
        }
        for (capacity, window_ns) in rates {
            builder = builder.rate(positive(*capacity)?, span(*window_ns)?);
        }
        for (capacity, quota) in quotas {
            let zone = quota.zone_name();
            builder = builder.quota(positive(*capacity)?, quota.period(), zone);
        }
        if let Some(burst) = self.burst {
            builder = builder.burst(positive(burst)?);
        }
        if let (Some(refill), Some(refill_ns)) = (self.refill, self.refill_ns) {
            builder = builder.refill(positive(refill)?, span(refill_ns)?);
        }
        let overage = Overage::parse(&self.overage)
            .ok_or_else(|| format!("there is no overage `{}`", self.overage))?;
        builder = builder
            .pad(span(self.pad_ns)?)
            .resolution(span(self.resolution_ns)?)
            .keep(span(self.keep_ns)?)
            .overage(overage);
        if let Some(unit) = &self.unit {
            builder = builder.unit(unit);
        }
        if let Some(timeout_ns) = self.timeout_ns {
            builder = builder.timeout(span(timeout_ns)?);
        }
        if let Some(policy) = policy {
            builder = builder.pauses(policy);
        }
        if let Some(policy) = breaker {
            builder = builder.breaker(policy);
        }
        builder.build().map_err(|error| error.to_string())
    }
}

const READ_RATES: &str =
    "SELECT capacity, window_ns FROM rate WHERE limit_id = ?1 ORDER BY window_ns";
const READ_QUOTAS: &str = "SELECT capacity, period, zone FROM quota WHERE limit_id = ?1";

impl Transaction<'_> {
    /// Adds the rates.
    fn complete(&self, head: &Head) -> Result<Known, Error> {
        let connection = self.link.connection;
        let rates: Vec<(i64, i64)> = connection
            .prepare_cached(READ_RATES)
            .and_then(|mut s| {
                s.query_map([head.id.0], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let quotas: Vec<(i64, String, String)> = connection
            .prepare_cached(READ_QUOTAS)
            .and_then(|mut s| {
                s.query_map([head.id.0], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let damaged = |what: String| {
            self.place
                .damaged(format!("the definition of `{}` is wrong: {what}", head.key))
        };
        let mut known_quotas = Vec::with_capacity(quotas.len());
        for (capacity, period, zone) in quotas {
            let Some(period) = Period::parse(&period) else {
                return Err(damaged(format!("there is no period `{period}`")));
            };
            // Another program may have defined it, that was built to know time zones.
            let quota = period.in_zone(&zone).map_err(|source| Error::Definition {
                key: head.key.clone(),
                source,
            })?;
            known_quotas.push((capacity, quota));
        }
        let policy = self.read_policy(head.id)?;
        let breaker = self.read_breaker(head.id)?;
        Ok(Known {
            id: head.id,
            limit: head
                .build(&rates, &known_quotas, policy, breaker)
                .map_err(damaged)?,
            pattern: None,
            changed: Timestamp::from_nanos(head.changed_ns),
            was_lowered: head.was_lowered,
        })
    }
}

// So many, that people see the right one although nobody has written to the file for a while.
const MOST_BOUNDARIES: usize = 100;
const LAST_BOUNDARY: &str = "SELECT max(wall_ns) FROM boundary WHERE period = ?1 AND zone = ?2";
const INSERT_BOUNDARY: &str =
    "INSERT OR IGNORE INTO boundary (period, zone, wall_ns) VALUES (?1, ?2, ?3)";
const DELETE_BOUNDARIES: &str =
    "DELETE FROM boundary WHERE period = ?1 AND zone = ?2 AND wall_ns < ?3";

impl Transaction<'_> {
    /// Writes down where the periods of a limit begin, unless enough of them are written down.
    pub(super) fn write_boundaries(&mut self, limit: &Limit) -> Result<(), Error> {
        for rate in limit.rates() {
            let Window::Calendar(quota) = rate.window() else {
                continue;
            };
            let (period, zone) = (quota.period().as_str(), quota.zone_name());
            let wall_ns = self
                .now()
                .as_nanos()
                .saturating_add(self.timeline().calendar_shift_ns);
            let mut boundaries = Vec::with_capacity(MOST_BOUNDARIES);
            let (mut from, mut until) = quota.around(wall_ns);
            while boundaries.len() < MOST_BOUNDARIES && from < until {
                boundaries.push(from);
                from = until;
                until = quota.around(from).1;
            }
            let connection = self.link.connection;
            let write = || -> rusqlite::Result<bool> {
                let last: Option<i64> = connection
                    .prepare_cached(LAST_BOUNDARY)?
                    .query_row((period, zone), |row| row.get(0))?;
                let enough = boundaries.get(MOST_BOUNDARIES / 2).copied();
                if last.is_some() && last >= enough {
                    return Ok(false);
                }
                for wall_ns in &boundaries {
                    connection
                        .prepare_cached(INSERT_BOUNDARY)?
                        .execute((period, zone, wall_ns))?;
                }
                // The one before the present is kept for a clock that is set back.
                let before = boundaries
                    .first()
                    .map_or(i64::MIN, |first| first.saturating_sub(1));
                let (oldest, _) = quota.around(before);
                connection
                    .prepare_cached(DELETE_BOUNDARIES)?
                    .execute((period, zone, oldest))?;
                Ok(true)
            };
            if write().map_err(|error| self.sqlite(error))? {
                self.wrote();
            }
        }
        Ok(())
    }
}
