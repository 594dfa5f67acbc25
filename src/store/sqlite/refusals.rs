//! Requests that were refused lately, and refusals that are known to stand: nothing was written since, and the time
//! has not come.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::generation::{Generation, Seen};
use crate::clock::{Change, Clock, Reading, Timeline};
use crate::decision::Denial;
use crate::plan::Plan;
use crate::request::Request;

/// How many are remembered at most.
const PLACES: usize = 256;

/// For how long one is remembered before the file is looked at again, in real time: whoever writes to the file by
/// other means than this crate moves no counter, and a file that was replaced is not noticed before.
const REMEMBERED: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(super) struct Refusals {
    hasher: RandomState,
    places: Box<[Mutex<Option<Refused>>]>,
}

#[derive(Debug)]
struct Refused {
    request: Request,
    known: Option<Known>,
}

/// A refusal that time alone ends, if nobody writes.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) denial: Denial,
    /// How the file's instants followed the clock.
    pub(super) timeline: Timeline,
    /// What was written until then.
    pub(super) seen: Seen,
    pub(super) since: Instant,
}

/// What is known of a request.
#[derive(Debug)]
pub(super) enum Hint {
    Nothing,
    /// It was refused when it was last asked for.
    WasRefused,
    /// It is refused.
    IsRefused(Denial),
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
        let key = plan.takes().next().map_or("", |(key, _)| key);
        let number = self.hasher.hash_one(key) % PLACES as u64;
        let place = &self.places[usize::try_from(number).unwrap_or(0)];
        place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says what became of a request.
    pub(super) fn remember(&self, plan: &Plan<'_>, is_refused: bool) {
        *self.place(plan) = is_refused.then(|| Refused {
            request: plan.to_request(),
            known: None,
        });
    }

    /// Says that a request is refused until something is written.
    pub(super) fn know(&self, plan: &Plan<'_>, known: Known) {
        *self.place(plan) = Some(Refused {
            request: plan.to_request(),
            known: Some(known),
        });
    }

    /// What is known of a request now.
    pub(super) fn hint(&self, plan: &Plan<'_>, generation: &Generation, clock: &dyn Clock) -> Hint {
        let place = self.place(plan);
        match &*place {
            Some(refused) if plan.takes().eq(refused.request.takes()) => {
                let known = refused.known.as_ref();
                let denial = known.and_then(|known| known.still(generation, clock));
                denial.map_or(Hint::WasRefused, Hint::IsRefused)
            }
            _ => Hint::Nothing,
        }
    }
}

impl Known {
    /// The refusal as of now, if it still stands.
    fn still(&self, generation: &Generation, clock: &dyn Clock) -> Option<Denial> {
        if self.since.elapsed() >= REMEMBERED {
            return None;
        }
        let present = self.timeline.present(Reading::of(clock));
        let shift_ns = present.timeline.calendar_shift_ns;
        let is_as_it_was = present.change != Change::Fixed
            && shift_ns == self.timeline.calendar_shift_ns
            && present.now < self.denial.retry_at()?
            // Looked at last: what was written before the clock was read is known.
            && generation.seen() == Some(self.seen);
        is_as_it_was.then(|| self.denial.as_of(present.now))
    }
}
