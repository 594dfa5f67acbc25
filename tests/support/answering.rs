//! Providers that answer what they are told to, and the policies and limits that they are tried with.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use quotalite::{
    Answer, Jitter, Limit, LimitBuilder, Limiter, PausePolicy, RateUsage, RetryPolicy, Retryable,
};

/// What a provider answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said(pub Answer);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "provider: {}", self.0)
    }
}

impl std::error::Error for Said {}

impl Retryable for Said {
    fn answer(&self) -> Answer {
        self.0
    }
}

pub const TRANSIENT: Answer = Answer::Transient;
pub const STRIKE: Answer = Answer::RateLimited { retry_after: None };

pub const fn limited(seconds: u64) -> Answer {
    Answer::RateLimited {
        retry_after: Some(Duration::from_secs(seconds)),
    }
}

/// Answers so, one call after the other, and succeeds from then on.
pub fn answers(
    all: impl IntoIterator<Item = Answer>,
) -> impl FnMut() -> Result<&'static str, Said> {
    let mut all: VecDeque<Answer> = all.into_iter().collect();
    move || match all.pop_front() {
        Some(answer) => Err(Said(answer)),
        None => Ok("done"),
    }
}

/// A limit that starts at once after a pause.
pub fn brisk(limit: LimitBuilder) -> LimitBuilder {
    limit.pauses(PausePolicy::default().slow_start(100))
}

pub fn define(limiter: &Limiter, key: &str) {
    let limit = Limit::new(key).per_second(100).per_hour(100_000);
    limiter.define(brisk(limit)).unwrap();
}

pub fn used(limiter: &Limiter, key: &str) -> u64 {
    let usage = limiter.usage(key).unwrap();
    usage.rates().iter().map(RateUsage::used).max().unwrap()
}

pub fn plain() -> RetryPolicy {
    RetryPolicy::default().jitter(Jitter::None)
}

pub fn secs(seconds: &[u64]) -> Vec<Duration> {
    seconds.iter().copied().map(Duration::from_secs).collect()
}
