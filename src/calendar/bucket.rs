//! Buckets that refill, as the instant at which they will be full again.
//!
//! Taking something out moves that instant by the time in which as much flows in; a request fits if the bucket then
//! is never more than its depth away from being full. That is the generic cell rate algorithm. Here it
//! counts in parts of nanoseconds, of which an amount always takes a whole number.
//!
//! What was poured out is one number, and a few more for those who put something back. What is booked stands in the
//! ledger until its instant has come, so that what is asked for meanwhile can go between, where that delays nobody.

use smallvec::SmallVec;

use super::{Fit, Ledgers, LimitId, Use};
use crate::clock::Timestamp;
use crate::limit::Bucket;

/// When a bucket is full again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) at: Timestamp,
    /// How many parts of a nanosecond later: less than the bucket's refill.
    pub(crate) part: i64,
}

/// An instant in parts of nanoseconds.
type Fine = i128;

fn fine(bucket: Bucket, at: Timestamp) -> Fine {
    i128::from(at.as_nanos()) * bucket.parts()
}

impl Full {
    fn fine(self, bucket: Bucket) -> Fine {
        fine(bucket, self.at) + i128::from(self.part)
    }

    fn of(bucket: Bucket, fine: Fine) -> Self {
        let at_ns = fine.div_euclid(bucket.parts());
        Self {
            at: Timestamp::from_nanos(i64::try_from(at_ns).unwrap_or(i64::MAX)),
            part: i64::try_from(fine.rem_euclid(bucket.parts())).unwrap_or(0),
        }
    }
}

/// The first whole nanosecond from a part on, if it can be written down.
fn whole(bucket: Bucket, fine: Fine) -> Option<Timestamp> {
    let at_ns = -(-fine).div_euclid(bucket.parts());
    i64::try_from(at_ns).ok().map(Timestamp::from_nanos)
}

/// How full a bucket is by what was poured out of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Level {
    pub(crate) full: Full,
    /// What stands in the ledger for instants up to this is part of it. Where there is none, nothing is.
    pub(crate) through: Option<Timestamp>,
}

/// What was poured out of a bucket: when it is full again, and how empty it was in between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Poured {
    pub(crate) full: Full,
    pub(crate) through: Option<Timestamp>,
    lows: SmallVec<[Low; 4]>,
}

/// How much was missing just before something was taken out, in the time in which it flows in. Never was less
/// missing at a later low. What was taken before a low and is put back after it can have been missed by no more
/// than that: the rest would have flowed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Low {
    at: Timestamp,
    missing: Fine,
}

/// How many lows are remembered; where there are more, the oldest are taken together on the strict side.
const MOST_LOWS: usize = 64;

/// More is missing in no bucket.
const MOST_MISSING: Fine = 1 << 118;

impl Poured {
    /// A bucket that is full at an instant.
    fn full(at: Timestamp) -> Self {
        Self {
            full: Full { at, part: 0 },
            through: None,
            lows: SmallVec::new(),
        }
    }

    pub(crate) const fn level(&self) -> Level {
        Level {
            full: self.full,
            through: self.through,
        }
    }

    fn missing(&self, bucket: Bucket, at: Timestamp) -> Fine {
        (self.full.fine(bucket) - fine(bucket, at)).max(0)
    }

    /// Takes something out at an instant.
    pub(crate) fn take(&mut self, bucket: Bucket, at: Timestamp, amount: i64) {
        let missing = self.missing(bucket, at);
        while self.lows.last().is_some_and(|low| low.missing >= missing) {
            self.lows.pop();
        }
        self.lows.push(Low { at, missing });
        if self.lows.len() > MOST_LOWS {
            let oldest = self.lows.remove(0);
            self.lows[0].missing = oldest.missing;
        }
        self.full = Full::of(bucket, fine(bucket, at) + missing + bucket.weight(amount));
    }

    /// Puts something back that was taken out at an instant: as much of it as would still be there if it had never been
    /// taken.
    pub(crate) fn put_back(
        &mut self,
        bucket: Bucket,
        taken_at: Timestamp,
        now: Timestamp,
        amount: i64,
    ) {
        let later = self.lows.iter_mut().filter(|low| low.at > taken_at);
        let mut back = bucket
            .weight(amount)
            .min(self.full.fine(bucket) - fine(bucket, now))
            .max(0);
        for low in later {
            back = back.min(low.missing);
        }
        for low in self.lows.iter_mut().filter(|low| low.at > taken_at) {
            low.missing -= back;
        }
        let mut least = Fine::MAX;
        for place in (0..self.lows.len()).rev() {
            if self.lows[place].missing >= least {
                self.lows.remove(place);
            } else {
                least = self.lows[place].missing;
            }
        }
        self.full = Full::of(bucket, self.full.fine(bucket) - back);
    }

    /// What is missing in a bucket when its definition changes stays missing.
    pub(crate) fn rescaled(mut self, former: Bucket, bucket: Bucket, now: Timestamp) -> Self {
        let missing = self.missing(former, now);
        if missing == 0 {
            return Self {
                through: self.through,
                ..Self::full(self.full.at.min(now))
            };
        }
        // Rounded up, so that nothing is given away, and what could come back down.
        let (missing, _) = in_terms_of(former, bucket, missing);
        self.full = Full::of(bucket, fine(bucket, now) + missing);
        for low in &mut self.lows {
            (_, low.missing) = in_terms_of(former, bucket, low.missing);
        }
        self
    }

    /// The lows, as a file keeps them: of each the instant and what was missing, as 8 and 16 bytes, the lowest first.
    pub(crate) fn lows_to_bytes(&self) -> Vec<u8> {
        let bytes = self.lows.iter().flat_map(|low| {
            let at = low.at.as_nanos().to_le_bytes();
            at.into_iter().chain(low.missing.to_le_bytes())
        });
        bytes.collect()
    }

    /// What a file says, as far as it can be.
    pub(crate) fn read(full: Full, lows: &[u8]) -> Self {
        let low = |bytes: &[u8]| {
            let (at, missing) = bytes.split_first_chunk::<8>()?;
            let missing = Fine::from_le_bytes(missing.try_into().ok()?);
            Some(Low {
                at: Timestamp::from_nanos(i64::from_le_bytes(*at)),
                missing: missing.clamp(0, MOST_MISSING),
            })
        };
        let lows = lows.chunks_exact(24).filter_map(low);
        Self {
            full,
            through: None,
            lows: lows.take(MOST_LOWS).collect(),
        }
    }
}

/// A bucket of which something is taken out now, by somebody who does not wait.
pub(crate) fn poured_now(
    bucket: Bucket,
    poured: Option<Poured>,
    now: Timestamp,
    amount: i64,
) -> Poured {
    let mut poured = poured.unwrap_or_else(|| Poured::full(now));
    poured.take(bucket, now, amount);
    poured
}

/// A bucket into which something is put back that was taken out at an instant, or out of which more is taken now
/// if that is negative.
pub(crate) fn corrected(
    bucket: Bucket,
    poured: Option<Poured>,
    taken_at: Timestamp,
    now: Timestamp,
    amount: i64,
) -> Option<Poured> {
    if amount < 0 {
        return Some(poured_now(bucket, poured, now, amount.saturating_neg()));
    }
    let mut poured = poured?;
    poured.put_back(bucket, taken_at, now, amount);
    Some(poured)
}

/// The time in which as much flows into another bucket as into this one, rounded up and rounded down.
fn in_terms_of(former: Bucket, bucket: Bucket, time: Fine) -> (Fine, Fine) {
    let per = i128::from(former.per_ns());
    let new_per = i128::from(bucket.per_ns());
    let farthest = FARTHEST_NS * bucket.parts();
    let (units, rest) = (time.div_euclid(per), time.rem_euclid(per));
    let whole = units.saturating_mul(new_per);
    let up = whole.saturating_add(-(-(rest * new_per)).div_euclid(per));
    let down = whole.saturating_add((rest * new_per).div_euclid(per));
    (up.min(farthest), down.min(farthest))
}

/// How far ahead a bucket can be full again: a hundred years.
const FARTHEST_NS: i128 = 100 * 366 * 86_400 * 1_000_000_000;

/// How much can be taken out of a bucket at once where nobody asks whether it is there.
pub(crate) fn farthest(bucket: Bucket) -> i64 {
    let farthest = FARTHEST_NS * bucket.parts() / i128::from(bucket.per_ns()) / 2;
    i64::try_from(farthest).unwrap_or(i64::MAX)
}

/// A bucket out of which everything has been poured that was booked for instants up to `now`. Nothing if nothing
/// was, and nothing before.
pub(crate) fn poured_until<L: Ledgers>(
    ledgers: &mut L,
    limit: LimitId,
    bucket: Bucket,
    mut poured: Option<Poured>,
    now: Timestamp,
) -> Result<Option<Poured>, L::Error> {
    let mut booked = Booked::of(limit, poured.as_ref().and_then(|poured| poured.through));
    while let Some((at, amount)) = booked.next(ledgers)? {
        if at > now {
            break;
        }
        poured
            .get_or_insert_with(|| Poured::full(at))
            .take(bucket, at, amount);
    }
    Ok(poured)
}

/// What stands in the ledger after an instant, instant by instant.
struct Booked {
    limit: LimitId,
    after: Timestamp,
}

impl Booked {
    fn of(limit: LimitId, after: Option<Timestamp>) -> Self {
        let after = after.unwrap_or(Timestamp::from_nanos(i64::MIN));
        Self { limit, after }
    }

    fn next<L: Ledgers>(&mut self, ledgers: &mut L) -> Result<Option<(Timestamp, i64)>, L::Error> {
        let Some(first) = ledgers.first_after(self.limit, self.after)? else {
            return Ok(None);
        };
        self.after = first.at;
        // All charges of the instant together.
        let last = ledgers.last_at(self.limit, first.at)?.unwrap_or(first);
        Ok(Some((first.at, last.total.since(first.before()))))
    }
}

/// A bucket and what is booked of it.
pub(super) struct Tank {
    pub(super) limit: LimitId,
    pub(super) bucket: Bucket,
}

impl Tank {
    /// When it is full again with what is booked up to `at`, what comes after that, and first of all of it.
    fn at<L: Ledgers>(&self, ledgers: &mut L, at: Timestamp) -> Result<(Fine, Later), L::Error> {
        let level = ledgers.level(self.limit)?;
        let mut full = level.map_or(Fine::MIN / 4, |level| level.full.fine(self.bucket));
        let mut booked = Booked::of(self.limit, level.and_then(|level| level.through));
        loop {
            let next = booked.next(ledgers)?;
            match next {
                Some((booked_at, amount)) if booked_at <= at => {
                    full = self.take(full, booked_at, amount);
                }
                next => return Ok((full, Later { booked, next })),
            }
        }
    }

    fn take(&self, full: Fine, at: Timestamp, amount: i64) -> Fine {
        let full = full.max(fine(self.bucket, at)) + self.bucket.weight(amount);
        // Far beyond all that can be booked: a file that was edited may add up to more.
        full.min(Fine::MAX / 4)
    }

    fn is_over(&self, full: Fine, at: Timestamp) -> bool {
        full > fine(self.bucket, at) + self.bucket.depth()
    }

    /// Whether an amount can be taken at `at`, and what is booked after it still can.
    ///
    /// Where something could not: whatever is taken before that instant, or at it, is in its way, and later the bucket
    /// holds no more than all of this leaves. The last one of these is waited for longest.
    pub(super) fn fit<L: Ledgers>(
        &self,
        ledgers: &mut L,
        at: Timestamp,
        amount: i64,
    ) -> Result<Fit, L::Error> {
        let (mut without, mut later) = self.at(ledgers, at)?;
        let mut with = self.take(without, at, amount);
        let mut in_the_way = self.is_over(with, at).then_some(without);
        while let Some((booked_at, booked)) = later.next(ledgers)? {
            without = self.take(without, booked_at, booked);
            with = self.take(with, booked_at, booked);
            // It was full in between: from here on nobody can tell.
            if with == without {
                break;
            }
            if self.is_over(with, booked_at) {
                in_the_way = Some(without);
            }
        }
        Ok(match in_the_way {
            None => Fit::Now,
            Some(full) => {
                let fits = full + self.bucket.weight(amount) - self.bucket.depth();
                whole(self.bucket, fits).map_or(Fit::Never, Fit::NotBefore)
            }
        })
    }

    /// The most that can be taken at `at`; less than zero if more was taken than it can hold.
    pub(super) fn room<L: Ledgers>(&self, ledgers: &mut L, at: Timestamp) -> Result<i64, L::Error> {
        let (full, mut later) = self.at(ledgers, at)?;
        let mut without = full.max(fine(self.bucket, at));
        let mut room = fine(self.bucket, at) + self.bucket.depth() - without;
        // For how long it is full before what comes next: so much more can be taken, and nobody will tell.
        let mut idle: Fine = 0;
        while let Some((booked_at, booked)) = later.next(ledgers)? {
            idle += (fine(self.bucket, booked_at) - without).max(0);
            if idle >= room {
                break;
            }
            without = self.take(without, booked_at, booked);
            let left = fine(self.bucket, booked_at) + self.bucket.depth() - without;
            room = room.min(idle + left.max(0));
        }
        let units = room.div_euclid(i128::from(self.bucket.per_ns()));
        Ok(i64::try_from(units).unwrap_or(i64::MIN))
    }

    pub(super) fn usage<L: Ledgers>(
        &self,
        ledgers: &mut L,
        now: Timestamp,
    ) -> Result<Use, L::Error> {
        let (full, mut later) = self.at(ledgers, now)?;
        let per = i128::from(self.bucket.per_ns());
        let missing = (full - fine(self.bucket, now)).max(0);
        let used = -(-missing).div_euclid(per);
        let mut is_over = self.is_over(full, now);
        let mut then = full;
        while let Some((booked_at, booked)) = later.next(ledgers)? {
            then = self.take(then, booked_at, booked);
            is_over |= self.is_over(then, booked_at);
        }
        Ok(Use {
            used: i64::try_from(used).unwrap_or(i64::MAX),
            available: self.room(ledgers, now)?.max(0),
            next_release: (used > 0)
                .then(|| whole(self.bucket, full - (used - 1) * per))
                .flatten(),
            is_over,
        })
    }
}

/// What is booked after an instant, the first of which is known.
struct Later {
    booked: Booked,
    next: Option<(Timestamp, i64)>,
}

impl Later {
    fn next<L: Ledgers>(&mut self, ledgers: &mut L) -> Result<Option<(Timestamp, i64)>, L::Error> {
        match self.next.take() {
            None => Ok(None),
            found => {
                self.next = self.booked.next(ledgers)?;
                Ok(found)
            }
        }
    }
}

#[cfg(test)]
mod tests;
