//! A ledger once more, by another definition: decided by the limiter itself, on a clock that is told the time.

use std::time::{Duration, SystemTime};

use quotalite::{Error, Limit, Limiter, MAX_CAPACITY, ManualClock, Peek, Timestamp};

/// What was charged, and is asked for again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    pub(crate) at: Timestamp,
    pub(crate) amount: u64,
}

/// What would have become of each charge.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rerun {
    /// If nobody waited.
    pub(crate) now: Vec<Fate>,
    /// If everybody waited in line.
    pub(crate) in_line: Vec<Fate>,
}

/// What would have become of one charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Admitted,
    /// Not admitted then, and nothing was charged.
    Refused,
    /// Admitted so much later.
    Delayed(Duration),
    /// Never admitted: it is more than the limit holds.
    Never,
}

/// Asks a limit for these charges, which are in the order of time. The wall clock is as of the first of them.
pub(crate) fn rerun(limit: &Limit, charges: &[Charge], wall: SystemTime) -> Result<Rerun, Error> {
    let now = if_nobody_waits(limit, charges, wall)?;
    let in_line = if now.contains(&Fate::Refused) {
        if_all_wait(limit, charges, wall, LOOKS_AHEAD_EVERY)?
    } else {
        // Who is never refused never waits.
        now.clone()
    };
    Ok(Rerun { now, in_line })
}

fn if_nobody_waits(
    limit: &Limit,
    charges: &[Charge],
    wall: SystemTime,
) -> Result<Vec<Fate>, Error> {
    let mut stage = Stage::new(limit, charges, wall)?;
    let mut fates = Vec::with_capacity(charges.len());
    for charge in charges {
        stage.go_to(charge.at);
        fates.push(stage.try_now(charge.amount)?);
    }
    Ok(fates)
}

/// After so many places in line, a look is taken at where it ends.
const LOOKS_AHEAD_EVERY: usize = 32;

/// Where the line is long, each place would be searched for from its beginning. But where the smallest amount that is still to
/// come finds no place, nothing does, now or later, since nothing is given back. So the clock may as well show the first
/// instant at which that one would be admitted: each place stays the same.
fn if_all_wait(
    limit: &Limit,
    charges: &[Charge],
    wall: SystemTime,
    looks_ahead_every: usize,
) -> Result<Vec<Fate>, Error> {
    let mut stage = Stage::new(limit, charges, wall)?;
    let smallest = smallest_from(charges);
    let mut fates = Vec::with_capacity(charges.len());
    let mut delayed = 0_usize;
    for (charge, smallest) in charges.iter().zip(smallest) {
        stage.go_to(charge.at);
        let fate = stage.book(*charge)?;
        fates.push(fate);
        if matches!(fate, Fate::Delayed(_)) {
            delayed += 1;
            if delayed.is_multiple_of(looks_ahead_every)
                && let Peek::Later(denial) = stage.limiter.peek((stage.key, smallest))?
                && let Some(end) = denial.retry_at()
            {
                stage.go_to(end);
            }
        }
    }
    Ok(fates)
}

/// The smallest amount from each charge on.
fn smallest_from(charges: &[Charge]) -> Vec<u64> {
    let mut smallest: Vec<u64> = charges.iter().map(|charge| charge.amount).collect();
    for at in (1..smallest.len()).rev() {
        smallest[at - 1] = smallest[at - 1].min(smallest[at]);
    }
    smallest
}

/// A limiter of its own, with the instants of the file.
struct Stage<'l> {
    limiter: Limiter,
    clock: ManualClock,
    key: &'l str,
    at: Timestamp,
}

impl<'l> Stage<'l> {
    fn new(limit: &'l Limit, charges: &[Charge], wall: SystemTime) -> Result<Self, Error> {
        let at = charges
            .first()
            .map_or(Timestamp::from_nanos(0), |first| first.at);
        let clock = ManualClock::new();
        // A limiter begins with the instant that its wall clock shows. Then that is set to what it showed, which is
        // where calendars look.
        let since_epoch = Duration::from_nanos(u64::try_from(at.as_nanos()).unwrap_or(0));
        clock.set_wall(SystemTime::UNIX_EPOCH + since_epoch);
        let limiter = Limiter::in_memory_with(clock.clone());
        clock.set_wall(wall);
        limiter.define(limit)?;
        Ok(Self {
            at: limiter.now()?,
            limiter,
            clock,
            key: limit.key(),
        })
    }

    /// Goes on to an instant, unless it is there already.
    fn go_to(&mut self, at: Timestamp) {
        self.clock.advance(at.saturating_duration_since(self.at));
        self.at = self.at.max(at);
    }

    fn try_now(&self, amount: u64) -> Result<Fate, Error> {
        if amount > MAX_CAPACITY {
            return Ok(Fate::Never);
        }
        match self.limiter.try_acquire((self.key, amount)) {
            Ok(decision) if decision.is_granted() => Ok(Fate::Admitted),
            Ok(_) => Ok(Fate::Refused),
            Err(Error::NeverFits { .. }) => Ok(Fate::Never),
            Err(error) => Err(error),
        }
    }

    fn book(&self, charge: Charge) -> Result<Fate, Error> {
        if charge.amount > MAX_CAPACITY {
            return Ok(Fate::Never);
        }
        match self.limiter.book((self.key, charge.amount)) {
            Ok(booking) => {
                let delay = booking.at().saturating_duration_since(charge.at);
                // It stays charged, whatever becomes of the permit.
                drop(booking.accept());
                Ok(if delay.is_zero() {
                    Fate::Admitted
                } else {
                    Fate::Delayed(delay)
                })
            }
            Err(Error::NeverFits { .. }) => Ok(Fate::Never),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quotalite::Period;

    use super::*;

    fn charges(all: &[(i64, u64)]) -> Vec<Charge> {
        let charge = |(ms, amount): &(i64, u64)| Charge {
            at: Timestamp::from_nanos((1_800_000_000_000 + ms) * 1_000_000),
            amount: *amount,
        };
        all.iter().map(charge).collect()
    }

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_refused_charges_nothing_and_what_is_delayed_is_charged_later() {
        let limit = Limit::new("k").per_second(2).build().unwrap();
        let all = charges(&[(0, 2), (400, 1), (900, 3), (1_000, 2)]);
        let Rerun { now, in_line } = rerun(&limit, &all, SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(
            now,
            [Fate::Admitted, Fate::Refused, Fate::Never, Fate::Admitted]
        );
        assert_eq!(
            in_line,
            [
                Fate::Admitted,
                Fate::Delayed(S * 6 / 10),
                Fate::Never,
                Fate::Delayed(S)
            ]
        );
    }

    #[test]
    fn days_end_by_the_wall_clock_of_then() {
        let limit = Limit::new("k").rates("1/calendar day").build().unwrap();
        let all = charges(&[(0, 1), (10_000, 1)]);
        // It was 5 s to midnight.
        let wall = SystemTime::UNIX_EPOCH + S * (86_400 * 20_000 - 5);
        let Rerun { now, .. } = rerun(&limit, &all, wall).unwrap();
        assert_eq!(now, [Fate::Admitted; 2]);
        let Rerun { now, in_line } = rerun(&limit, &all, wall + S * 60).unwrap();
        assert_eq!(now, [Fate::Admitted, Fate::Refused]);
        assert_eq!(in_line[1], Fate::Delayed(S * (86_400 - 65)));
    }

    #[test]
    fn nothing_is_nothing() {
        let limit = Limit::new("k").per_second(2).build().unwrap();
        let Rerun { now, in_line } = rerun(&limit, &[], SystemTime::UNIX_EPOCH).unwrap();
        assert!(now.is_empty() && in_line.is_empty());
    }

    #[test]
    fn an_amount_that_no_limit_could_hold_is_no_error() {
        let limit = Limit::new("k").per_second(2).build().unwrap();
        let all = charges(&[(0, u64::MAX), (0, MAX_CAPACITY + 1), (0, 1)]);
        let Rerun { now, in_line } = rerun(&limit, &all, SystemTime::UNIX_EPOCH).unwrap();
        let fates = [Fate::Never, Fate::Never, Fate::Admitted];
        assert_eq!((&now[..], &in_line[..]), (&fates[..], &fates[..]));
    }

    fn limits() -> impl Strategy<Value = Limit> {
        let window = |ms: u64| Duration::from_millis(ms);
        let k = || Limit::new("k");
        let rates = (
            3_u64..20,
            1_u64..400,
            prop::option::of((10_u64..60, 400_u64..3_000)),
        );
        let rates = rates.prop_map(move |(capacity, ms, longer)| {
            let limit = k().rate(capacity, window(ms));
            match longer {
                Some((capacity, ms)) => limit.rate(capacity, window(ms)),
                None => limit,
            }
        });
        let merged = (3_u64..20, 10_u64..400).prop_map(move |(capacity, ms)| {
            k().rate(capacity, window(ms)).resolution(window(ms / 3))
        });
        let bucket = (3_u64..20, 1_u64..20, 1_u64..300)
            .prop_map(move |(burst, refill, ms)| k().burst(burst).refill(refill, window(ms)));
        let quota = (3_u64..20, 1_u64..20, 1_u64..400).prop_map(move |(day, capacity, ms)| {
            k().quota(day, Period::Day, "UTC")
                .rate(capacity, window(ms))
        });
        prop_oneof![3 => rates, 1 => merged, 2 => bucket, 1 => quota]
            .prop_map(|limit| limit.build().unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn looking_ahead_changes_no_place(
            limit in limits(),
            steps in prop::collection::vec((0_i64..30, 1_u64..8), 1..150),
        ) {
            let mut ms = 0;
            let all: Vec<(i64, u64)> = steps
                .into_iter()
                .map(|(step, amount)| {
                    ms += step;
                    (ms, amount)
                })
                .collect();
            let all = charges(&all);
            let wall = SystemTime::UNIX_EPOCH + S * (86_400 * 20_000 - 2);
            let plain = if_all_wait(&limit, &all, wall, usize::MAX).unwrap();
            for every in [1, 2, 7] {
                prop_assert_eq!(&if_all_wait(&limit, &all, wall, every).unwrap(), &plain);
            }
        }
    }
}
