//! Exact rolling windows: what was charged at `t` counts while `now - t < window`.
//!
//! Time is an argument everywhere, so that tests can choose it. It must not go back from call to call.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::limits::{Limits, Quota};

/// The windows of requests and of tokens, charged both or neither.
#[derive(Debug)]
pub struct Windows {
    requests: Option<Window>,
    tokens: Option<Window>,
}

#[derive(Debug)]
struct Window {
    quota: Quota,
    held: VecDeque<(Instant, u64)>,
    sum: u64,
}

/// How long until an amount fits, if nobody else takes the room. The longer, the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wait {
    None,
    For(Duration),
    Forever,
}

/// A request that did not fit, and what each window would have made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Misfit {
    pub requests: Wait,
    pub tokens: Wait,
}

/// How a window stands at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    pub quota: Quota,
    pub remaining: u64,
    /// Until the oldest charge leaves, if there is one.
    pub until_next: Option<Duration>,
    /// Until nothing is charged.
    pub until_empty: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standings {
    pub requests: Option<Standing>,
    pub tokens: Option<Standing>,
}

impl Windows {
    pub fn new(limits: &Limits) -> Self {
        Self {
            requests: limits.requests.map(Window::new),
            tokens: limits.tokens.map(Window::new),
        }
    }

    /// Charges one request and its tokens, if both fit.
    pub fn try_take(&mut self, at: Instant, tokens: u64) -> Result<(), Misfit> {
        self.check(at, tokens)?;
        self.charge(at, tokens);
        Ok(())
    }

    /// Whether one request and its tokens fit.
    pub fn check(&mut self, at: Instant, tokens: u64) -> Result<(), Misfit> {
        let wait = |window: &mut Option<Window>, amount| {
            window
                .as_mut()
                .map_or(Wait::None, |window| window.wait(at, amount))
        };
        let misfit = Misfit {
            requests: wait(&mut self.requests, 1),
            tokens: wait(&mut self.tokens, tokens),
        };
        if misfit.wait() == Wait::None {
            Ok(())
        } else {
            Err(misfit)
        }
    }

    /// Charges one request and its tokens, whether they fit or not.
    pub fn charge(&mut self, at: Instant, tokens: u64) {
        if let Some(requests) = &mut self.requests {
            requests.charge(at, 1);
        }
        if let Some(window) = &mut self.tokens {
            window.charge(at, tokens);
        }
    }

    pub fn standings(&mut self, at: Instant) -> Standings {
        let standing =
            |window: &mut Option<Window>| window.as_mut().map(|window| window.standing(at));
        Standings {
            requests: standing(&mut self.requests),
            tokens: standing(&mut self.tokens),
        }
    }
}

impl Misfit {
    /// Until both fit.
    pub fn wait(&self) -> Wait {
        self.requests.max(self.tokens)
    }
}

impl Window {
    fn new(quota: Quota) -> Self {
        Self {
            quota,
            held: VecDeque::new(),
            sum: 0,
        }
    }

    fn expire(&mut self, at: Instant) {
        while let Some(&(since, amount)) = self.held.front() {
            if at.duration_since(since) < self.quota.window {
                break;
            }
            self.sum -= amount;
            self.held.pop_front();
        }
    }

    fn wait(&mut self, at: Instant, amount: u64) -> Wait {
        self.expire(at);
        let Some(room) = self.quota.limit.checked_sub(amount) else {
            return Wait::Forever;
        };
        let (mut sum, mut wait) = (self.sum, Wait::None);
        for &(since, amount) in &self.held {
            if sum <= room {
                break;
            }
            sum -= amount;
            wait = Wait::For(self.left(at, since));
        }
        wait
    }

    fn charge(&mut self, at: Instant, amount: u64) {
        if amount == 0 {
            return;
        }
        self.held.push_back((at, amount));
        self.sum += amount;
    }

    fn standing(&mut self, at: Instant) -> Standing {
        self.expire(at);
        let left = |charge: Option<&(Instant, u64)>| charge.map(|&(since, _)| self.left(at, since));
        Standing {
            quota: self.quota,
            remaining: self.quota.limit.saturating_sub(self.sum),
            until_next: left(self.held.front()),
            until_empty: left(self.held.back()).unwrap_or_default(),
        }
    }

    fn left(&self, at: Instant, since: Instant) -> Duration {
        self.quota.window.saturating_sub(at.duration_since(since))
    }
}
