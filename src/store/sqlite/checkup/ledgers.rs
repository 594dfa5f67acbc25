//! The laws of the ledgers, looked at row by row: nothing here trusts a total.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::calendar::{LimitId, Total, window_start};
use crate::checkup::{Finding, FindingKind};
use crate::clock::Timestamp;
use crate::definition::Known;
use crate::error::Error;
use crate::settlement::Overage;
use crate::store::sqlite::transaction::Transaction;
use crate::usage::Usage;

const DEFINITIONS: &str = "SELECT limit_id, key FROM limit_definition ORDER BY limit_id";

impl Transaction<'_> {
    /// The definitions that cannot be read, and why.
    pub(super) fn unreadable(&self) -> Result<Vec<(String, Error)>, Error> {
        let all: Vec<(i64, String)> = self
            .link
            .connection
            .prepare_cached(DEFINITIONS)
            .and_then(|mut s| {
                s.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
                    .collect()
            })
            .map_err(|error| self.sqlite(error))?;
        let mut unreadable = Vec::new();
        for (id, key) in all {
            match self.read_definition_from(LimitId(id)) {
                Err(error @ (Error::Definition { .. } | Error::Damaged { .. })) => {
                    unreadable.push((key, error));
                }
                Err(error) => return Err(error),
                Ok(_) => {}
            }
        }
        Ok(unreadable)
    }
}

const NEXT: &str = "SELECT min(limit_id) FROM (
        SELECT min(limit_id) AS limit_id FROM limit_definition WHERE limit_id > ?1
        UNION ALL SELECT min(limit_id) FROM pattern_key WHERE limit_id > ?1
    )";

impl Transaction<'_> {
    /// Looks at the ledger with the next number after this one. Returns that, unless there is none.
    pub(super) fn check_next_ledger(
        &mut self,
        after: i64,
        found: &mut Vec<Finding>,
    ) -> Result<Option<i64>, Error> {
        let next: Option<i64> = self
            .link
            .connection
            .prepare_cached(NEXT)
            .and_then(|mut s| s.query_row([after], |row| row.get(0)))
            .map_err(|error| self.sqlite(error))?;
        let Some(id) = next else {
            return Ok(None);
        };
        match self.known_by_id(LimitId(id)) {
            Ok(Some(known)) if !known.limit.is_pattern() => self.check_ledger(&known, found)?,
            // What cannot be read was told, and the ledger of a key whose pattern is gone counts for nothing.
            Ok(_) | Err(Error::Definition { .. } | Error::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(Some(id))
    }

    fn check_ledger(&mut self, known: &Known, found: &mut Vec<Finding>) -> Result<(), Error> {
        let mut tell = |kind, what: String| {
            found.push(Finding {
                kind,
                subject: known.limit.key().to_owned(),
                what,
            });
        };
        let limit = &known.limit;
        let now = self.now();
        let rates = limit.rates();
        let starts = rates
            .iter()
            .map(|rate| window_start(limit, rate, self.wall_shift(), now));
        let oldest = starts.min().unwrap_or(now);
        let ledger = self.read_ledger(known.id, oldest)?;
        if let Some(what) = ledger.wrong_amount.clone() {
            tell(FindingKind::WrongAmount, what);
        }
        if let Some(what) = ledger.wrong_total.clone() {
            tell(FindingKind::WrongTotals, what);
        }
        let over = self.over(known, &ledger)?;
        if let Some((kind, what)) = over {
            tell(kind, what);
        }
        Ok(())
    }

    fn wall_shift(&self) -> i64 {
        self.timeline().calendar_shift_ns
    }

    /// Whether more is in use, or promised, than a limit allows, and whether that is as it should be.
    fn over(
        &mut self,
        known: &Known,
        ledger: &Ledger,
    ) -> Result<Option<(FindingKind, String)>, Error> {
        let (limit, now) = (&known.limit, self.now());
        if limit.resolution_ns() > 0 && self.is_merged_ahead(known.id)? {
            // Rows that are booked count before anybody is let through by them.
            return Ok(None);
        }
        let mut reach_ns = 0;
        let mut what = None;
        let mut kind = FindingKind::WindowOver;
        for rate in limit.rates() {
            let start = |at| window_start(limit, rate, self.wall_shift(), at);
            reach_ns = reach_ns.max(now.as_nanos().saturating_sub(start(now).as_nanos()));
            if let Some((at, used)) = ledger.over(start, now, rate.capacity_units()) {
                let ahead = at.saturating_duration_since(now);
                let when = if ahead.is_zero() {
                    " that ends now".to_owned()
                } else {
                    format!(" that ends in {ahead:.1?}")
                };
                what = Some(format!("{used} of {rate} in the window{when}"));
            }
        }
        if limit.bucket().is_some() || limit.slot_count().is_some() {
            let usage = Usage::read(self, known.id, limit, now)?;
            if usage.is_over() {
                what = Some(match limit.slot_count() {
                    Some(count) => {
                        kind = FindingKind::SlotsOver;
                        format!("{} of {count} slots are held", usage.held())
                    }
                    None => "more is missing in the bucket, or booked, than it can hold".to_owned(),
                });
            }
        }
        let Some(what) = what else {
            return Ok(None);
        };
        // Of the keys that a new pattern has taken over nobody has looked at each.
        let is_new = known.changed.saturating_plus_ns(reach_ns) > now
            || self.is_held_since_before(known.id, known.changed)?;
        let charges_more = limit.overage() == Overage::Charge && limit.slot_count().is_none();
        Ok(Some(if known.was_lowered || is_new && !charges_more {
            (FindingKind::Decreasing, what)
        } else if charges_more {
            (FindingKind::Overcharged, what)
        } else {
            (kind, what)
        }))
    }
}

const HELD_BEFORE: &str = "SELECT EXISTS (
        SELECT 1 FROM slot WHERE limit_id = ?1 AND since_ns < ?2
        UNION ALL SELECT 1 FROM bucket WHERE limit_id = ?1 AND written_ns < ?2
    )";

impl Transaction<'_> {
    fn is_held_since_before(&self, id: LimitId, changed: Timestamp) -> Result<bool, Error> {
        self.link
            .connection
            .prepare_cached(HELD_BEFORE)
            .and_then(|mut s| s.query_row((id.0, changed.as_nanos()), |row| row.get(0)))
            .map_err(|error| self.sqlite(error))
    }
}

type Place = (i64, i64);

/// What was read of a ledger.
#[derive(Default)]
struct Ledger {
    /// The instants and amounts of all that may count now or later.
    recent: Vec<(Timestamp, i64)>,
    /// The blocks that are open, by their ends.
    open: Vec<(Timestamp, i64)>,
    wrong_amount: Option<String>,
    wrong_total: Option<String>,
}

impl Ledger {
    /// The first window that ends now, or where something is booked, and holds more than this.
    fn over(
        &self,
        start: impl Fn(Timestamp) -> Timestamp,
        now: Timestamp,
        capacity: i64,
    ) -> Option<(Timestamp, i64)> {
        let due = self.recent.partition_point(|(at, _)| *at <= now);
        let mut ends: BTreeSet<Timestamp> = self.recent[due..].iter().map(|(at, _)| *at).collect();
        ends.insert(now);
        let mut next = 0;
        let mut window = VecDeque::new();
        let mut sum: i64 = 0;
        for end in ends {
            while let Some(row) = self.recent.get(next).filter(|(at, _)| *at <= end) {
                sum = sum.saturating_add(row.1);
                window.push_back(*row);
                next += 1;
            }
            let start = start(end);
            while let Some((_, amount)) = pop_if(&mut window, |(at, _)| *at <= start) {
                sum = sum.saturating_sub(amount);
            }
            let open = self.open.iter().filter(|(until, _)| *until > end);
            let used = open.fold(sum, |used, (_, amount)| used.saturating_add(*amount));
            if used > capacity {
                return Some((end, used));
            }
        }
        None
    }
}

/// The first of a queue, if it is so.
fn pop_if<T>(queue: &mut VecDeque<T>, is_so: impl FnOnce(&T) -> bool) -> Option<T> {
    if is_so(queue.front()?) {
        queue.pop_front()
    } else {
        None
    }
}

const ROWS: &str =
    "SELECT at_ns, seq, amount, total FROM charge WHERE limit_id = ?1 ORDER BY at_ns, seq";
const CORRECTIONS: &str = "SELECT level, at_ns, seq, shift FROM correction
    WHERE limit_id = ?1 ORDER BY level, at_ns, seq";
const OPEN: &str = "SELECT at_ns, seq FROM block WHERE limit_id = ?1 AND at_ns > ?2";

impl Transaction<'_> {
    fn read_ledger(&self, id: LimitId, oldest: Timestamp) -> Result<Ledger, Error> {
        let connection = self.link.connection;
        let now_ns = self.now().as_nanos();
        let read = || -> rusqlite::Result<Ledger> {
            let mut ledger = Ledger::default();
            let mut shifts = BTreeMap::<i64, VecDeque<(Place, i64)>>::new();
            let mut statement = connection.prepare_cached(CORRECTIONS)?;
            let mut rows = statement.query([id.0])?;
            while let Some(row) = rows.next()? {
                let level = shifts.entry(row.get(0)?).or_default();
                level.push_back(((row.get(1)?, row.get(2)?), row.get(3)?));
            }
            let mut statement = connection.prepare_cached(OPEN)?;
            let open: BTreeSet<Place> = statement
                .query_map((id.0, now_ns), |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            let mut last: Option<i64> = None;
            let mut statement = connection.prepare_cached(ROWS)?;
            let mut rows = statement.query([id.0])?;
            while let Some(row) = rows.next()? {
                let place: Place = (row.get(0)?, row.get(1)?);
                let (amount, stored): (i64, i64) = (row.get(2)?, row.get(3)?);
                let at = Timestamp::from_nanos(place.0);
                // A total is corrected by the next place of each level.
                let mut total = stored;
                for level in shifts.values_mut() {
                    while pop_if(level, |(at, _)| *at <= place).is_some() {}
                    let shift = level.front().map_or(0, |(_, shift)| *shift);
                    total = total.wrapping_add(shift) & Total::MASK;
                }
                if amount < 0 && ledger.wrong_amount.is_none() {
                    ledger.wrong_amount = Some(format!("a charge of {amount} at {}", place.0));
                }
                let sum = last.map(|last| last.wrapping_add(amount) & Total::MASK);
                if sum.is_some_and(|sum| sum != total) && ledger.wrong_total.is_none() {
                    ledger.wrong_total = Some(format!(
                        "the total of the charge at {} is {total}, and the sum {}",
                        place.0,
                        sum.unwrap_or(0)
                    ));
                }
                last = Some(total);
                if at > oldest {
                    ledger.recent.push((at, amount));
                }
                if open.contains(&place) {
                    ledger.open.push((at, amount));
                }
            }
            Ok(ledger)
        };
        read().map_err(|error| self.sqlite(error))
    }
}
