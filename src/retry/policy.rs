//! How often a call is tried again, and after which delays.

use std::fmt;
use std::time::Duration;

use backon::{BackoffBuilder, ConstantBuilder, ExponentialBuilder};

use crate::limit::{MINUTE, SECOND};
use crate::permit::random;

/// How many retries a [`RetryPolicy`] can have: each is kept in the history of its job.
pub const MAX_RETRIES: u32 = 1_000;

/// How often a call is tried again, and after which delays.
///
/// The default has the delays 1, 2, 4, 8 and 16 s, each with [full jitter](Jitter::Full): five retries, so that a job is at
/// most six calls.
///
/// ```
/// use std::time::Duration;
/// use quotalite::{Jitter, MINUTE, RetryPolicy, SECOND};
///
/// let in_seconds = |policy: RetryPolicy| -> Vec<f64> {
///     let delays = policy.jitter(Jitter::None).retries(8).delays();
///     delays.map(|delay| delay.as_secs_f64()).collect()
/// };
/// let doubling = RetryPolicy::default(); // exponential(SECOND, 2).cap(MINUTE)
/// assert_eq!(in_seconds(doubling), [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
/// let growing = RetryPolicy::linear(SECOND, Duration::from_millis(500)).cap(3 * SECOND);
/// assert_eq!(in_seconds(growing), [1.0, 1.5, 2.0, 2.5, 3.0, 3.0, 3.0, 3.0]);
/// assert_eq!(in_seconds(RetryPolicy::fixed(2 * SECOND)), [2.0; 8]);
/// ```
///
/// What is wrong with a policy is told by whoever runs it, as [`RetryErrorKind::Policy`](crate::RetryErrorKind::Policy),
/// before anything is acquired or called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "it does nothing until it is given to `retry`"]
pub struct RetryPolicy {
    growth: Growth,
    cap: Duration,
    retries: u32,
    jitter: Jitter,
    seed: Option<u64>,
    within: Option<Duration>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Growth {
    Exponential { first: Duration, factor: u16 },
    Linear { first: Duration, step: Duration },
    Fixed { delay: Duration },
}

/// What chance makes of a delay, so that those who failed together do not come back together: see [Exponential Backoff And
/// Jitter](https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/) (Marc Brooker, AWS Architecture Blog,
/// 2015), where these names come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Jitter {
    /// Any time from none to the delay. It spreads them best, and lets some come back at once.
    #[default]
    Full,
    /// Any time from half of the delay to all of it.
    Equal,
    /// The delay as it is.
    None,
}

/// What is wrong with a [`RetryPolicy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RetryPolicyError {
    /// There are more retries than [`MAX_RETRIES`].
    #[error("a policy has at most {MAX_RETRIES} retries, this one has {count}")]
    Retries {
        /// How many there are.
        count: u32,
    },
    /// Each delay would be the one before times nothing.
    #[error("the factor of a policy is at least 1")]
    Factor,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self::exponential(SECOND, 2)
    }
}

impl RetryPolicy {
    /// The first delay, and from then on each one `factor` times as long as the one before, up to the [cap](Self::cap). A
    /// delay that is not the first is rounded to a microsecond, or to a millisecond from a second on.
    pub const fn exponential(first: Duration, factor: u16) -> Self {
        Self::of(Growth::Exponential { first, factor })
    }

    /// The first delay, and from then on each one longer than the one before by `step`, up to the [cap](Self::cap).
    pub const fn linear(first: Duration, step: Duration) -> Self {
        Self::of(Growth::Linear { first, step })
    }

    /// The same delay each time, or the [cap](Self::cap) if that is shorter.
    pub const fn fixed(delay: Duration) -> Self {
        Self::of(Growth::Fixed { delay })
    }

    const fn of(growth: Growth) -> Self {
        Self {
            growth,
            cap: MINUTE,
            retries: 5,
            jitter: Jitter::Full,
            seed: None,
            within: None,
        }
    }

    /// No delay is longer than this. Defaults to a minute. The pause of a limit can be longer: it has a cap of its own.
    pub const fn cap(mut self, cap: Duration) -> Self {
        self.cap = cap;
        self
    }

    /// How often the call is made again at most, besides the first time: 0 to [`MAX_RETRIES`]. Defaults to 5.
    pub const fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// What chance makes of the delays. Defaults to [`Jitter::Full`].
    pub const fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Draws the same jitter in each run, for tests. Without a seed, every run draws its own, also after a `fork`.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// How long a job may take until its last try is admitted, from when it is run. A try that is known to come later is
    /// given up at once, without waiting for it; none is begun later. What has been called is not interrupted. There is no
    /// such end by default.
    pub const fn within(mut self, longest: Duration) -> Self {
        self.within = Some(longest);
        self
    }

    /// The delays of one run, in their order: as many as there are retries, with jitter.
    ///
    /// A policy that is wrong has delays all the same.
    pub fn delays(&self) -> impl Iterator<Item = Duration> + use<> {
        let drawn = || u64::try_from(random() >> 64).unwrap_or_default();
        let seed = self.seed.unwrap_or_else(drawn);
        let (jitter, mut rng) = (self.jitter, fastrand::Rng::with_seed(seed));
        self.plain_delays()
            .map(move |delay| jitter.of(delay, &mut rng))
    }

    fn plain_delays(&self) -> Box<dyn Iterator<Item = Duration>> {
        let cap = self.cap;
        let times = usize::try_from(self.retries).unwrap_or(usize::MAX);
        // The jitter of `backon` makes delays longer, up to twice as long: it is none of those that are named here.
        match self.growth {
            Growth::Exponential { first, factor } => {
                let delays = ExponentialBuilder::new()
                    .with_min_delay(first)
                    .with_factor(f32::from(factor))
                    .with_max_delay(cap)
                    .with_max_times(times)
                    .build();
                Box::new(delays.map(move |delay| rounded(delay, first).min(cap)))
            }
            Growth::Linear { first, step } => {
                let delay = move |retry| first.saturating_add(step.saturating_mul(retry));
                Box::new((0..self.retries).map(move |retry| delay(retry).min(cap)))
            }
            Growth::Fixed { delay } => {
                let delays = ConstantBuilder::new()
                    .with_delay(delay.min(cap))
                    .with_max_times(times);
                Box::new(delays.build())
            }
        }
    }

    pub(super) const fn count(&self) -> u32 {
        self.retries
    }

    pub(super) const fn longest(&self) -> Option<Duration> {
        self.within
    }

    pub(super) fn check(&self) -> Result<(), RetryPolicyError> {
        if self.retries > MAX_RETRIES {
            let count = self.retries;
            return Err(RetryPolicyError::Retries { count });
        }
        if matches!(self.growth, Growth::Exponential { factor: 0, .. }) {
            return Err(RetryPolicyError::Factor);
        }
        Ok(())
    }
}

impl fmt::Display for RetryPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cap, retries, .. } = self;
        write!(f, "{retries} retries after ")?;
        match self.growth {
            Growth::Exponential { first, factor } => write!(f, "{first:?}, times {factor} each")?,
            Growth::Linear { first, step } => write!(f, "{first:?}, plus {step:?} each")?,
            Growth::Fixed { delay } => write!(f, "{delay:?} each")?,
        }
        write!(f, ", at most {cap:?}, {}", self.jitter)?;
        match self.within {
            Some(within) => write!(f, ", within {within:?}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Jitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "full jitter",
            Self::Equal => "equal jitter",
            Self::None => "no jitter",
        })
    }
}

impl Jitter {
    fn of(self, delay: Duration, rng: &mut fastrand::Rng) -> Duration {
        let mut up_to = |longest: Duration| {
            let nanos = u64::try_from(longest.as_nanos()).unwrap_or(u64::MAX);
            Duration::from_nanos(rng.u64(0..=nanos))
        };
        match self {
            Self::Full => up_to(delay),
            Self::Equal => {
                let half = delay / 2;
                half + up_to(delay.saturating_sub(half))
            }
            Self::None => delay,
        }
    }
}

/// `backon` multiplies in floats of seven digits; the others are noise.
fn rounded(delay: Duration, first: Duration) -> Duration {
    if delay <= first {
        return first;
    }
    let unit_ns = if delay < SECOND { 1_000 } else { 1_000_000 };
    let nanos = (delay.subsec_nanos() + unit_ns / 2) / unit_ns * unit_ns;
    let rounded =
        Duration::from_secs(delay.as_secs()).saturating_add(Duration::from_nanos(nanos.into()));
    rounded.max(first)
}
