//! How answers and files are compared with the model.

use std::collections::BTreeMap;

use quotalite::Obstacle;

use crate::entry::End;
use crate::line::{Charge, Line, Sum};
use crate::model::{Model, Verdict};
use crate::subject::{Answer, FileEntry, Refused, Row, Takes};

/// The running totals of a ledger count modulo this.
const TOTALS_WRAP_AT: Sum = 1 << 62;

/// The position of rows that stand for all that is entered at their instant.
const MERGED: i64 = -2;

impl Model {
    /// Compares an answer with the verdict. What was charged is in the model already, and a refusal
    /// charges nothing, so this is asked after the verdict was given.
    #[expect(clippy::too_many_lines, reason = "a table of answers")]
    pub fn check(&self, verdict: &Verdict, answer: &Answer, takes: &Takes) -> Result<(), String> {
        match (verdict, answer) {
            (
                Verdict::Admitted { at_ns, .. },
                Answer::Admitted {
                    at_ns: told,
                    waits_ns,
                    ..
                },
            ) if at_ns == told && *waits_ns == at_ns - self.now_ns => Ok(()),
            (
                Verdict::Resumed { at_ns, waits, .. },
                Answer::Admitted {
                    at_ns: told,
                    waits_ns,
                    ..
                },
            ) if at_ns == told
                && *waits_ns
                    == if *waits {
                        (at_ns - self.now_ns).max(0)
                    } else {
                        0
                    } =>
            {
                Ok(())
            }
            (
                Verdict::Taken { key, count, amount },
                Answer::Taken {
                    key: told,
                    count: there,
                    amount: asked,
                    now_ns,
                },
            ) if (key, count, amount, self.now_ns) == (told, there, asked, *now_ns) => Ok(()),
            (Verdict::NotBookable { key }, Answer::NotBookable { key: told }) if key == told => {
                Ok(())
            }
            (
                Verdict::IdTaken { id, stored },
                Answer::IdTaken {
                    id: told,
                    stored: found,
                },
            ) if (id, stored) == (told, found) => Ok(()),
            (
                Verdict::Later {
                    at_ns,
                    deadline_ns: None,
                },
                Answer::Refused(refused),
            ) if (*at_ns, self.now_ns) == (refused.retry_at_ns, refused.now_ns) => Ok(()),
            (
                Verdict::Later {
                    at_ns,
                    deadline_ns: Some(_),
                },
                Answer::TooLate { refused, .. },
            ) if (*at_ns, self.now_ns) == (refused.retry_at_ns, refused.now_ns) => Ok(()),
            (
                Verdict::Refused {
                    retry_at_ns,
                    deadline_ns: None,
                },
                Answer::Refused(refused),
            ) if *retry_at_ns == refused.retry_at_ns => self.check_refusal(refused, takes),
            (
                Verdict::Refused {
                    retry_at_ns,
                    deadline_ns: Some(deadline_ns),
                },
                Answer::TooLate {
                    refused,
                    deadline_ns: told,
                },
            ) if *retry_at_ns == refused.retry_at_ns
                && (deadline_ns == told
                    || (*deadline_ns < self.now_ns && *told == self.now_ns)) =>
            {
                self.check_refusal(refused, takes)
            }
            (Verdict::Wrong, Answer::Unknown { key })
                if takes.iter().any(|take| take.0 == *key) && self.limit(key).is_none() =>
            {
                Ok(())
            }
            (
                Verdict::Wrong,
                Answer::NeverFits {
                    key,
                    amount,
                    obstacle,
                },
            ) if takes.contains(&(key.clone(), *amount))
                && self.limit(key).is_some_and(|limit| match obstacle {
                    Obstacle::Rate(rate) => limit.rates().contains(rate),
                    Obstacle::Bucket(bucket) => limit.bucket() == Some(*bucket),
                    obstacle => limit.slot_count() == Some(obstacle.capacity()),
                })
                && obstacle.capacity() < *amount =>
            {
                Ok(())
            }
            _ => Err(format!("it must be {verdict:?}, it was {answer:?}")),
        }
    }

    /// A nanosecond before the request fits, the rate that the denial names forbids it by itself.
    fn check_refusal(&self, refused: &Refused, takes: &Takes) -> Result<(), String> {
        if refused.now_ns != self.now_ns {
            return Err(format!("now is {}, the denial: {refused:?}", self.now_ns));
        }
        if !takes.contains(&(refused.key.clone(), refused.amount)) {
            return Err(format!("a denial of something else: {refused:?}"));
        }
        if refused.obstacle == Obstacle::Paused {
            return match self.paused_until_ns(&refused.key) {
                Some(until_ns) if until_ns == refused.retry_at_ns => Ok(()),
                other => Err(format!("paused until {other:?}, the denial: {refused:?}")),
            };
        }
        let line = &self.lines[&refused.key];
        let (just_before_ns, amount) = (refused.retry_at_ns - 1, refused.amount);
        let is_the_one = match refused.obstacle {
            Obstacle::Rate(rate) => {
                line.limit.rates().contains(&rate)
                    && !line.rate_admits(&rate, just_before_ns, amount)
            }
            Obstacle::Bucket(bucket) => {
                line.limit.bucket() == Some(bucket) && !line.admits(just_before_ns, amount)
            }
            Obstacle::SlowStart => !self.start_admits(line, just_before_ns, amount),
            _ => false,
        };
        if is_the_one {
            Ok(())
        } else {
            Err(format!(
                "something else stands in the way than what {refused:?} says"
            ))
        }
    }

    /// Compares the permits that a file knows of with the list.
    pub fn check_entries(&self, file: &[FileEntry]) -> Result<(), String> {
        let now_ns = self.now_ns;
        let is_due = |row: &&FileEntry| row.expires_ns.is_none_or(|expires_ns| expires_ns > now_ns);
        let mut open: Vec<&FileEntry> = file.iter().filter(is_due).collect();
        for entry in self.entries.iter().filter(|entry| entry.is_open(now_ns)) {
            let is_it = |row: &&FileEntry| {
                row.id == entry.id
                    && row.is_owned == entry.owner.is_some()
                    && row.is_detached == entry.is_detached
                    && row.expires_ns == entry.expires_ns
                    && entry.fence.is_none_or(|fence| fence == row.fence)
                    && row.slots.len() == entry.slots.len()
                    && row.slots.iter().all(|take| entry.slots.contains(take))
            };
            let Some(position) = open.iter().position(is_it) else {
                return Err(format!("{entry:?} is not in the file: {open:?}"));
            };
            open.swap_remove(position);
        }
        match open.first() {
            Some(row) => Err(format!("nobody was granted {row:?}")),
            None => Ok(()),
        }
    }

    /// After a boot that came up with an earlier instant than the last: who had timed out by then may have been
    /// struck out, and does not come back.
    pub fn forget_what_was_struck_out(&mut self, latest_ns: i64, file: &[FileEntry]) {
        for entry in &mut self.entries {
            let was_over = entry
                .expires_ns
                .filter(|expires_ns| *expires_ns <= latest_ns);
            let is_there = |row: &FileEntry| {
                Some(row.fence) == entry.fence || (row.id.is_some() && row.id == entry.id)
            };
            if let Some(expires_ns) = was_over
                && entry.end.is_none()
                && !file.iter().any(is_there)
            {
                entry.end = Some((End::Expired, expires_ns));
            }
        }
    }

    /// Compares the ledgers of a file with the charges.
    pub fn check_rows(&self, ledgers: &BTreeMap<String, Vec<Row>>) -> Result<(), String> {
        for key in ledgers.keys() {
            // What is left of the key of a pattern that was removed is swept later.
            if !self.lines.contains_key(key) && !key.contains(':') {
                return Err(format!("there are rows of `{key}`, which nobody defined"));
            }
        }
        let none = Vec::new();
        for (key, line) in &self.lines {
            let rows = ledgers.get(key).unwrap_or(&none);
            check_totals(rows)
                .and_then(|()| line.check_charges(rows, self.now_ns))
                .and_then(|()| line.check_law())
                .map_err(|what| format!("`{key}`: {what}: {rows:?}"))?;
        }
        Ok(())
    }

    /// After a boot that came up with an earlier instant than the last: what had left its windows may
    /// have been swept, and does not come back. Rows that are still there count again.
    pub fn forget_what_was_swept(&mut self, latest_ns: i64, ledgers: &BTreeMap<String, Vec<Row>>) {
        for (key, line) in &mut self.lines {
            let mut rows = ledgers.get(key).cloned().unwrap_or_default();
            if line.limit.bucket().is_some() {
                continue;
            }
            let still_counts = |line: &Line, at_ns: i64| line.forgotten_ns(at_ns) > latest_ns;
            let counting: Vec<bool> = line
                .charges
                .iter()
                .map(|charge| still_counts(line, charge.at_ns))
                .collect();
            let mut counting = counting.into_iter();
            let charged = sums_by_instant(line.charges.iter().map(|c| (c.at_ns, c.amount.into())));
            let there = sums_by_instant(rows.iter().map(|row| (row.at_ns, row.amount.into())));
            line.charges.retain(|charge| {
                // One row may stand for several charges.
                let is_whole = there.get(&charge.at_ns) == charged.get(&charge.at_ns);
                if counting.next() == Some(true) || is_whole {
                    return true;
                }
                let found = rows
                    .iter()
                    .position(|row| row.at_ns == charge.at_ns && is_amount(row, charge.amount));
                found.map(|position| rows.remove(position)).is_some()
            });
        }
    }
}

fn is_amount(row: &Row, amount: u64) -> bool {
    u64::try_from(row.amount) == Ok(amount)
}

/// Each total is the one before it and the amount of its row.
fn check_totals(rows: &[Row]) -> Result<(), String> {
    for row in rows {
        if row.amount <= 0 || !(0..TOTALS_WRAP_AT).contains(&Sum::from(row.total)) {
            return Err(format!("a row that nobody should write: {row:?}"));
        }
    }
    for pair in rows.windows(2) {
        let step = Sum::from(pair[1].total) - Sum::from(pair[0].total);
        if step.rem_euclid(TOTALS_WRAP_AT) != Sum::from(pair[1].amount) {
            return Err(format!("the totals do not add up: {pair:?}"));
        }
    }
    Ok(())
}

impl Line {
    /// Every charge that still counts has its row, and every row its charges: a booked one its own, of the others one
    /// row may stand for several of one instant. Where charges are merged, it does for those that are booked, too.
    fn check_charges(&self, rows: &[Row], now_ns: i64) -> Result<(), String> {
        let (booked, charged): (Vec<&Charge>, Vec<&Charge>) = self
            .charges
            .iter()
            .partition(|charge| charge.booked_by.is_some() && !charge.is_merged);
        let is_own = |row: &&Row| row.owner_id.is_some() && row.seq != MERGED;
        let mut missing = booked;
        for row in rows.iter().filter(is_own) {
            let found = missing
                .iter()
                .position(|charge| charge.at_ns == row.at_ns && is_amount(row, charge.amount));
            let Some(position) = found else {
                return Err(format!("nothing was booked for {row:?}"));
            };
            missing.swap_remove(position);
        }
        let owed = sums_by_instant(charged.iter().map(|c| (c.at_ns, Sum::from(c.amount))));
        let unbooked = rows.iter().filter(|row| !is_own(row));
        let there = sums_by_instant(unbooked.map(|row| (row.at_ns, Sum::from(row.amount))));
        for (at_ns, sum) in &there {
            if *sum > owed.get(at_ns).copied().unwrap_or(0) {
                return Err(format!("too much was charged at {at_ns}: {rows:?}"));
            }
        }
        let is_short = |at_ns: i64| {
            there.get(&at_ns).copied().unwrap_or(0) < owed.get(&at_ns).copied().unwrap_or(0)
        };
        let still_counts = |at_ns: i64| at_ns > now_ns || self.forgotten_ns(at_ns) > now_ns;
        missing.extend(charged.into_iter().filter(|charge| is_short(charge.at_ns)));
        match missing.iter().find(|charge| still_counts(charge.at_ns)) {
            Some(charge) => Err(format!("there is no row of {charge:?}")),
            None => Ok(()),
        }
    }
}

fn sums_by_instant(amounts: impl Iterator<Item = (i64, Sum)>) -> BTreeMap<i64, Sum> {
    let mut sums = BTreeMap::new();
    for (at_ns, amount) in amounts {
        *sums.entry(at_ns).or_default() += amount;
    }
    sums
}
