//! Requests that were refused lately, and refusals that are known to stand: nothing was written since, and the time
//! has not come.

use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::generation::{Generation, Seen};
use crate::clock::{Clock, Reading, Timeline, Timestamp};
use crate::decision::Denial;
use crate::plan::{Patience, Plan};
use crate::request::Request;
use crate::store::{Few, latest};

/// How many are remembered at most.
const PLACES: usize = 256;

/// For how long one is remembered before the file is looked at again, in real time: whoever writes to the file by
/// other means than this crate moves no counter, and a file that was replaced is not noticed before.
#[cfg(not(test))]
const REMEMBERED: Duration = Duration::from_millis(1);
/// Here nothing but what was written ends it.
#[cfg(test)]
const REMEMBERED: Duration = Duration::from_hours(1);

#[derive(Debug)]
pub(super) struct Refusals {
    hasher: RandomState,
    places: Box<[Mutex<Option<Refused>>]>,
}

#[derive(Debug)]
struct Refused {
    request: Request,
    known: Option<Known>,
    /// The smallest amounts of each of its limits that were refused since one was granted.
    least: Few<u64>,
}

impl Refused {
    fn new(plan: &Plan<'_>, known: Option<Known>, former: Option<Self>) -> Self {
        let mut least: Few<u64> = plan.takes().map(|(_, amount)| amount).collect();
        if let Some(former) = former.filter(|former| former.is_of(plan)) {
            for (least, former) in least.iter_mut().zip(former.least) {
                *least = former.min(*least);
            }
        }
        Self {
            request: plan.to_request(),
            known,
            least,
        }
    }

    /// Whether a plan asks for the same limits.
    fn is_of(&self, plan: &Plan<'_>) -> bool {
        let keys = self.request.takes().map(|(key, _)| key);
        plan.takes().map(|(key, _)| key).eq(keys)
    }

    /// Whether a plan asks for as much as was refused, or more.
    fn covers(&self, plan: &Plan<'_>) -> bool {
        let mut amounts = plan.takes().zip(&self.least);
        self.is_of(plan) && amounts.all(|((_, amount), least)| amount >= *least)
    }
}

/// A refusal that time alone ends, if nobody writes.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) denial: Denial,
    /// How the file's instants followed the clock.
    pub(super) timeline: Timeline,
    /// Whether it would end earlier or later if the wall clock was set.
    pub(super) goes_by_wall: bool,
    /// What was written until then.
    pub(super) seen: Seen,
    /// The time then, as [`real_time`] tells it.
    pub(super) since: Duration,
}

/// What is known of a request.
#[derive(Debug)]
pub(super) enum Hint {
    Nothing,
    /// It was refused when it was last asked for, or less was.
    WasRefused,
    /// It is refused.
    IsRefused {
        denial: Denial,
        /// The last instant that its caller allows, if that is not now.
        deadline: Option<Timestamp>,
    },
}

impl Default for Refusals {
    fn default() -> Self {
        Self {
            hasher: RandomState::new(),
            places: (0..PLACES).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Refusals {
    fn place(&self, plan: &Plan<'_>) -> MutexGuard<'_, Option<Refused>> {
        let mut hasher = self.hasher.build_hasher();
        plan.takes().for_each(|(key, _)| key.hash(&mut hasher));
        let number = hasher.finish() % PLACES as u64;
        let place = &self.places[usize::try_from(number).unwrap_or(0)];
        place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what became of a request.
    pub(super) fn remember(&self, plan: &Plan<'_>, is_refused: bool) {
        let mut place = self.place(plan);
        let former = place.take();
        *place = is_refused.then(|| Refused::new(plan, None, former));
    }

    /// Says that a request is refused until something is written.
    pub(super) fn know(&self, plan: &Plan<'_>, known: Known) {
        let mut place = self.place(plan);
        match &mut *place {
            Some(refused) if plan.takes().eq(refused.request.takes()) => {
                refused.known = Some(known);
            }
            other => *other = Some(Refused::new(plan, Some(known), other.take())),
        }
    }

    /// What is known of a request now.
    pub(super) fn hint(&self, plan: &Plan<'_>, generation: &Generation, clock: &dyn Clock) -> Hint {
        let place = self.place(plan);
        match &*place {
            Some(refused) if plan.takes().eq(refused.request.takes()) => {
                let known = refused.known.as_ref();
                let hint = known.and_then(|known| known.still(plan, generation, clock));
                hint.unwrap_or(Hint::WasRefused)
            }
            Some(refused) if refused.covers(plan) => Hint::WasRefused,
            _ => Hint::Nothing,
        }
    }
}

impl Known {
    /// The refusal as of now, if it still stands.
    fn still(&self, plan: &Plan<'_>, generation: &Generation, clock: &dyn Clock) -> Option<Hint> {
        let elapsed = clock.elapsed();
        if real_time(clock, elapsed).saturating_sub(self.since) >= REMEMBERED {
            return None;
        }
        let now = self.timeline.goes_on(clock, elapsed)?;
        if self.goes_by_wall {
            let present = self.timeline.present(Reading::of(clock));
            if present.timeline.calendar_shift_ns != self.timeline.calendar_shift_ns {
                return None;
            }
        }
        let latest = latest(plan.patience, now, elapsed);
        // Looked at last: what was written before the clock was read is known.
        let stands = latest < self.denial.retry_at()? && generation.seen() == Some(self.seen);
        stands.then(|| Hint::IsRefused {
            denial: self.denial.as_of(now),
            deadline: (plan.patience != Patience::Now).then_some(latest),
        })
    }
}

/// A time that goes on as real time does.
pub(super) fn real_time(clock: &dyn Clock, elapsed: Duration) -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    if clock.is_real() {
        elapsed
    } else {
        START.elapsed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use crate::{Error, Limit, Limiter, MINUTE, ManualClock, OnConflict, Permit, Request, SECOND};

    /// What may happen between two times that somebody asks.
    #[derive(Clone, Debug)]
    enum Op {
        Ask {
            limiter: usize,
            request: usize,
        },
        AskToWait {
            limiter: usize,
            request: usize,
            ms: u64,
        },
        Hold {
            limiter: usize,
            request: usize,
        },
        Settle {
            permit: usize,
            used: u64,
        },
        Cancel {
            permit: usize,
        },
        Drop {
            permit: usize,
        },
        Book {
            limiter: usize,
        },
        Define {
            limiter: usize,
            capacity: u64,
        },
        Advance {
            ms: u64,
        },
        SetWall {
            s: u64,
        },
    }

    fn op() -> impl Strategy<Value = Op> {
        let limiter = 0_usize..2;
        prop_oneof![
            20 => (limiter.clone(), 0_usize..5).prop_map(|(limiter, request)| Op::Ask { limiter, request }),
            6 => (limiter.clone(), 0_usize..4, 0_u64..900)
                .prop_map(|(limiter, request, ms)| Op::AskToWait { limiter, request, ms }),
            4 => (limiter.clone(), 0_usize..5).prop_map(|(limiter, request)| Op::Hold { limiter, request }),
            2 => (0_usize..20, 0_u64..6).prop_map(|(permit, used)| Op::Settle { permit, used }),
            2 => (0_usize..20).prop_map(|permit| Op::Cancel { permit }),
            1 => (0_usize..20).prop_map(|permit| Op::Drop { permit }),
            1 => limiter.clone().prop_map(|limiter| Op::Book { limiter }),
            1 => (limiter, 2_u64..8).prop_map(|(limiter, capacity)| Op::Define { limiter, capacity }),
            4 => (0_u64..800).prop_map(|ms| Op::Advance { ms }),
            1 => (0_u64..200_000).prop_map(|s| Op::SetWall { s }),
        ]
    }

    fn limits() -> Vec<Limit> {
        let builders = [
            Limit::new("a").per_second(3).per_minute(20),
            Limit::new("b").rate(5, MINUTE),
            #[cfg(feature = "calendar")]
            Limit::new("c").quota(6, crate::Period::Day, "Europe/Berlin"),
            #[cfg(not(feature = "calendar"))]
            Limit::new("c").rate(6, MINUTE),
            Limit::new("d").burst(4).refill(1, SECOND),
            Limit::slots("e", 2),
        ];
        builders
            .into_iter()
            .map(|limit| limit.build().unwrap())
            .collect()
    }

    fn requests() -> [Request; 5] {
        [
            Request::new().take("a", 2),
            Request::new().take("a", 1).take("b", 2),
            Request::new().take("c", 3),
            Request::new().take("d", 2),
            Request::new().take("a", 1).take("e", 1),
        ]
    }

    /// What is told, step by step.
    fn play(limiters: &[&Limiter; 2], clock: &ManualClock, ops: &[Op]) -> Vec<String> {
        let requests = requests();
        limiters[0].define_all(limits(), OnConflict::Fail).unwrap();
        let mut permits: Vec<Permit> = Vec::new();
        let mut bookings = Vec::new();
        let mut told = Vec::new();
        for op in ops {
            told.push(match *op {
                Op::Ask { limiter, request } => {
                    let ask = || limiters[limiter].try_acquire(&requests[request]).unwrap();
                    // Decided with the lock, then by a look, then from memory.
                    let decisions = [ask(), ask(), ask()].map(crate::Decision::denied);
                    format!("{decisions:?}")
                }
                Op::AskToWait {
                    limiter,
                    request,
                    ms,
                } => {
                    let longest = Duration::from_millis(ms);
                    let ask = || match limiters[limiter].book_within(&requests[request], longest) {
                        Ok(booking) => format!("{:?}", booking.wait_time()),
                        Err(Error::TooLate {
                            denial, deadline, ..
                        }) => format!("{denial:?} {deadline:?}"),
                        Err(error) => panic!("{error}"),
                    };
                    format!("{:?}", [ask(), ask(), ask()])
                }
                Op::Hold { limiter, request } => {
                    let permit = limiters[limiter].try_acquire(&requests[request]).unwrap();
                    permits.extend(permit.granted());
                    permits.len().to_string()
                }
                Op::Settle { permit, used } if permit < permits.len() => {
                    let key = "a";
                    let _ = permits[permit].settle([(key, used)]);
                    String::new()
                }
                Op::Cancel { permit } if permit < permits.len() => {
                    format!("{:?}", permits[permit].cancel().unwrap())
                }
                Op::Drop { permit } if permit < permits.len() => {
                    drop(permits.swap_remove(permit));
                    String::new()
                }
                Op::Book { limiter } => {
                    let booking = limiters[limiter].book(("b", 1)).unwrap();
                    let wait = booking.wait_time();
                    bookings.push(booking);
                    if bookings.len() > 2 {
                        drop(bookings.remove(0));
                    }
                    format!("{wait:?}")
                }
                Op::Define { limiter, capacity } => {
                    let limit = Limit::new("a").per_second(capacity);
                    limiters[limiter]
                        .define_or(limit, OnConflict::Replace)
                        .unwrap();
                    String::new()
                }
                Op::Advance { ms } => {
                    clock.advance(Duration::from_millis(ms));
                    String::new()
                }
                Op::SetWall { s } => {
                    let wall = std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + s);
                    clock.set_wall(wall);
                    String::new()
                }
                _ => String::new(),
            });
        }
        told
    }

    /// A row that goes without the counter is missed for as long as what was refused is remembered.
    #[test]
    fn what_was_refused_is_answered_from_memory() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("limits.db");
        let limiter = Limiter::open(&file).unwrap();
        limiter.define(Limit::new("a").per_day(4)).unwrap();
        let is_granted = |amount| limiter.try_acquire(("a", amount)).unwrap().is_granted();
        assert!(is_granted(4));
        assert!(!is_granted(2) && !is_granted(2));
        let raw = rusqlite::Connection::open(&file).unwrap();
        raw.execute_batch("DELETE FROM charge").unwrap();
        assert!(!is_granted(2));
        // What was not asked for before is looked at.
        assert!(is_granted(3));
        assert!(!is_granted(2));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(debug_assertions) { 60 } else { 1_000 }))]

        /// The store in memory remembers no refusals.
        #[test]
        fn what_is_refused_from_memory_is_what_would_be_refused(
            ops in prop::collection::vec(op(), 1..120),
        ) {
            let clock = ManualClock::new();
            let memory = Limiter::in_memory_with(clock.clone());
            let expected = play(&[&memory, &memory], &clock, &ops);

            let directory = tempfile::tempdir().unwrap();
            let clock = ManualClock::new();
            let open = || {
                let builder = Limiter::builder(directory.path().join("limits.db"));
                builder.clock(clock.clone()).open().unwrap()
            };
            let (one, other) = (open(), open());
            prop_assert_eq!(play(&[&one, &other], &clock, &ops), expected);
        }
    }
}
