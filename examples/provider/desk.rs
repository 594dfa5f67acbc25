//! The one place where requests are admitted. It is used under one lock, and is told what time it is.

use std::time::{Duration, Instant};

use super::audit::{Accepted, Era, Overrun, overruns};
use super::limits::Limits;
use super::report::{InOutage, Refused, Report, Second, Share, available};
use super::settings::{Mode, Outage, Settings};
use super::windows::{Standings, Wait, Windows};

#[derive(Debug)]
pub struct Desk {
    settings: Settings,
    limits: Limits,
    outage: Outage,
    windows: Windows,
    chance: fastrand::Rng,
    started: Instant,
    first_arrival: Option<Instant>,
    /// Everything that was charged, because limits that change may look further back than the old ones.
    charges: Vec<Charge>,
    eras: Vec<Era>,
    /// The counters. What follows from elsewhere is filled in when the report is asked for.
    counted: Report,
}

#[derive(Clone, Copy, Debug)]
struct Charge {
    at: Instant,
    tokens: u64,
    accepted: bool,
}

/// The decision on a request, and how the windows stand after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub verdict: Verdict,
    pub standings: Standings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A slot is held until [`Desk::release`].
    Accepted {
        latency: Duration,
    },
    Refused {
        reason: Reason,
        /// Until it is worth another try, if it will ever be and that is known.
        retry_after: Option<Duration>,
    },
    Malformed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    Requests,
    Tokens,
    Concurrency,
    RateLimited,
    Down,
}

impl Desk {
    pub fn new(settings: Settings, at: Instant) -> Self {
        let mut desk = Self {
            settings,
            limits: settings.limits,
            outage: Outage::default(),
            windows: Windows::new(&settings.limits),
            chance: fastrand::Rng::new(),
            started: at,
            first_arrival: None,
            charges: Vec::new(),
            eras: Vec::new(),
            counted: Report::default(),
        };
        desk.reset(at);
        desk
    }

    /// Decides on a request of so many tokens, or on one that nobody can read.
    pub fn arrive(&mut self, at: Instant, tokens: Option<u64>) -> Answer {
        self.first_arrival.get_or_insert(at);
        let verdict = self.decide(at, tokens);
        self.count(at, tokens, verdict);
        Answer {
            verdict,
            standings: self.windows.standings(at),
        }
    }

    /// An answer has left: its slot is free.
    pub fn release(&mut self) {
        self.counted.in_flight -= 1;
    }

    pub fn set_limits(&mut self, at: Instant, limits: Limits) {
        self.limits = limits;
        self.windows = Windows::new(&limits);
        for charge in &self.charges {
            self.windows.charge(charge.at, charge.tokens);
        }
        self.begin_era(at);
    }

    pub fn set_outage(&mut self, at: Instant, outage: Outage) {
        self.outage = outage;
        self.begin_era(at);
    }

    /// Forgets every request but those in flight. The limits and the mode stay what they are.
    pub fn reset(&mut self, at: Instant) {
        self.windows = Windows::new(&self.limits);
        self.chance = fastrand::Rng::with_seed(self.settings.seed);
        self.started = at;
        self.first_arrival = None;
        self.charges.clear();
        self.eras.clear();
        let in_flight = self.counted.in_flight;
        self.counted = Report {
            in_flight,
            max_in_flight: in_flight,
            ..Report::default()
        };
        self.begin_era(at);
    }

    pub fn report(&self, at: Instant) -> Report {
        let share = |accepted, quota: fn(&Limits) -> _| {
            let from = self.first_arrival;
            Share::new(
                accepted,
                from.and_then(|from| available(&self.eras, from, at, quota)),
            )
        };
        Report {
            seconds: at.duration_since(self.started).as_secs_f64(),
            requests: share(self.counted.accepted, |limits| limits.requests),
            tokens: share(self.counted.accepted_tokens, |limits| limits.tokens),
            ..self.counted.clone()
        }
    }

    pub fn audit(&self) -> Vec<Overrun> {
        let accepted: Vec<Accepted> = self
            .charges
            .iter()
            .filter(|charge| charge.accepted)
            .map(|charge| Accepted {
                at: charge.at,
                tokens: charge.tokens,
            })
            .collect();
        overruns(&accepted, &self.eras)
    }

    fn decide(&mut self, at: Instant, tokens: Option<u64>) -> Verdict {
        let reason = match self.outage.mode {
            Mode::Down => Some(Reason::Down),
            Mode::RateLimited => Some(Reason::RateLimited),
            Mode::Up | Mode::Slow => None,
        };
        if let Some(reason) = reason {
            let retry_after = self.outage.retry_after_s.map(Duration::from_secs);
            return Verdict::Refused {
                reason,
                retry_after,
            };
        }
        let Some(tokens) = tokens else {
            return Verdict::Malformed;
        };
        let is_full = self
            .limits
            .concurrency
            .is_some_and(|most| self.counted.in_flight >= most);
        if !is_full && self.windows.try_take(at, tokens).is_ok() {
            self.remember(at, tokens, true);
            return Verdict::Accepted {
                latency: self.latency() + self.jitter(),
            };
        }
        self.refuse(at, tokens, is_full)
    }

    fn refuse(&mut self, at: Instant, tokens: u64, is_full: bool) -> Verdict {
        let reason = match self.windows.check(at, tokens) {
            Err(misfit) if misfit.requests != Wait::None => Reason::Requests,
            Err(_) => Reason::Tokens,
            Ok(()) => Reason::Concurrency,
        };
        if self.settings.charge_refused {
            self.windows.charge(at, 0);
            self.remember(at, 0, false);
        }
        let in_windows = match self.windows.check(at, tokens) {
            Ok(()) => Wait::None,
            Err(misfit) => misfit.wait(),
        };
        // Nobody can know when a slot will be free. The latency of an answer is a fair guess.
        let for_slot = if is_full {
            Wait::For(self.latency().max(Duration::from_millis(1)))
        } else {
            Wait::None
        };
        let retry_after = match in_windows.max(for_slot) {
            Wait::None => Some(Duration::ZERO),
            Wait::For(wait) => Some(wait),
            Wait::Forever => None,
        };
        Verdict::Refused {
            reason,
            retry_after,
        }
    }

    fn remember(&mut self, at: Instant, tokens: u64, accepted: bool) {
        self.charges.push(Charge {
            at,
            tokens,
            accepted,
        });
    }

    fn count(&mut self, at: Instant, tokens: Option<u64>, verdict: Verdict) {
        let second = usize::try_from(at.duration_since(self.started).as_secs()).unwrap_or(0);
        let Report {
            arrivals,
            accepted,
            accepted_tokens,
            malformed,
            refused,
            in_outage,
            in_flight,
            max_in_flight,
            per_second,
            ..
        } = &mut self.counted;
        if per_second.len() <= second {
            per_second.resize(second + 1, Second::default());
        }
        let this_second = &mut per_second[second];
        *arrivals += 1;
        this_second.arrivals += 1;
        if let Some(in_mode) = in_outage.of(self.outage.mode) {
            *in_mode += 1;
        }
        match verdict {
            Verdict::Accepted { .. } => {
                *accepted += 1;
                *accepted_tokens += tokens.unwrap_or(0);
                this_second.accepted += 1;
                *in_flight += 1;
                *max_in_flight = (*max_in_flight).max(*in_flight);
            }
            Verdict::Refused { reason, .. } => {
                *refused.by(reason) += 1;
                this_second.too_many_requests += u64::from(reason != Reason::Down);
            }
            Verdict::Malformed => *malformed += 1,
        }
    }

    fn begin_era(&mut self, at: Instant) {
        self.eras.push(Era {
            since: at,
            after: self.charges.iter().filter(|charge| charge.accepted).count(),
            limits: self.limits,
            open: self.outage.mode.serves(),
        });
    }

    fn latency(&self) -> Duration {
        self.settings.latency * self.slowness()
    }

    fn jitter(&mut self) -> Duration {
        let most = u64::try_from(self.settings.jitter.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.chance.u64(0..=most)) * self.slowness()
    }

    fn slowness(&self) -> u32 {
        if self.outage.mode == Mode::Slow {
            10
        } else {
            1
        }
    }
}

impl Refused {
    fn by(&mut self, reason: Reason) -> &mut u64 {
        match reason {
            Reason::Requests => &mut self.requests,
            Reason::Tokens => &mut self.tokens,
            Reason::Concurrency => &mut self.concurrency,
            Reason::RateLimited | Reason::Down => &mut self.outage,
        }
    }
}

impl InOutage {
    fn of(&mut self, mode: Mode) -> Option<&mut u64> {
        match mode {
            Mode::Up => None,
            Mode::Slow => Some(&mut self.slow),
            Mode::RateLimited => Some(&mut self.rate_limited),
            Mode::Down => Some(&mut self.down),
        }
    }
}
