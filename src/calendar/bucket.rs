//! Buckets that refill, as the instant at which they will be full again.
//!
//! Taking something out moves that instant by the time in which as much flows in; a request fits if the bucket then
//! is never more than its depth away from being full. That is the generic cell rate algorithm. Here it
//! counts in parts of nanoseconds, of which an amount always takes a whole number.
//!
//! What was poured out is one number. What is booked stands in the ledger until its instant has come, so that what is
//! asked for meanwhile can go between, where that delays nobody.

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

/// A bucket of which this much is taken out, at an instant.
pub(crate) fn poured(bucket: Bucket, full: Option<Full>, at: Timestamp, amount: i64) -> Full {
    let from = full.map_or(fine(bucket, at), |full| {
        full.fine(bucket).max(fine(bucket, at))
    });
    Full::of(bucket, from + bucket.weight(amount))
}

/// A bucket into which this much is put back, or from which this much more is taken if that is negative, at an instant.
/// It never holds more than it can.
pub(crate) fn refilled_by(
    bucket: Bucket,
    full: Option<Full>,
    now: Timestamp,
    amount: i64,
) -> Option<Full> {
    if amount < 0 {
        return Some(poured(bucket, full, now, -amount));
    }
    full.filter(|full| full.fine(bucket) > fine(bucket, now))
        .map(|full| {
            let sooner = full.fine(bucket) - bucket.weight(amount);
            Full::of(bucket, sooner.max(fine(bucket, now)))
        })
}

/// What is missing in a bucket when its definition changes stays missing.
pub(crate) fn rescaled(former: Bucket, bucket: Bucket, full: Full, now: Timestamp) -> Full {
    let missing = full.fine(former) - fine(former, now);
    if missing <= 0 {
        return Full {
            at: full.at,
            part: 0,
        };
    }
    // In the time in which as much flows into the new one; rounded up, so that nothing is given away.
    let per = i128::from(former.per_ns());
    let new_per = i128::from(bucket.per_ns());
    let (units, rest) = (missing.div_euclid(per), missing.rem_euclid(per));
    let rest = -(-(rest * new_per)).div_euclid(per);
    let missing = units.saturating_mul(new_per).saturating_add(rest);
    let missing = missing.min(FARTHEST_NS * bucket.parts());
    Full::of(bucket, fine(bucket, now).saturating_add(missing))
}

/// How far ahead a bucket can be full again: a hundred years.
const FARTHEST_NS: i128 = 100 * 366 * 86_400 * 1_000_000_000;

/// How much can be taken out of a bucket at once where nobody asks whether it is there.
pub(crate) fn farthest(bucket: Bucket) -> i64 {
    let farthest = FARTHEST_NS * bucket.parts() / i128::from(bucket.per_ns()) / 2;
    i64::try_from(farthest).unwrap_or(i64::MAX)
}

/// A bucket as its ledger leaves it when everything booked for instants up to `now` has been taken out.
pub(crate) fn spent<L: Ledgers>(
    ledgers: &mut L,
    limit: LimitId,
    bucket: Bucket,
    now: Timestamp,
) -> Result<Option<Full>, L::Error> {
    let mut full = ledgers.full_at(limit)?;
    let mut booked = Booked::of(limit);
    while let Some((at, amount)) = booked.next(ledgers)? {
        if at > now {
            break;
        }
        full = Some(poured(bucket, full, at, amount));
    }
    Ok(full)
}

/// What stands in the ledger, instant by instant.
struct Booked {
    limit: LimitId,
    after: Timestamp,
}

impl Booked {
    const fn of(limit: LimitId) -> Self {
        Self {
            limit,
            after: Timestamp::from_nanos(i64::MIN),
        }
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
        let full = ledgers.full_at(self.limit)?;
        let mut full = full.map_or(Fine::MIN / 4, |full| full.fine(self.bucket));
        let mut booked = Booked::of(self.limit);
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
