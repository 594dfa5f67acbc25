//! A clock that stands still until it is told to go on.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{BootId, Clock};

/// A clock for tests: it stands still until it is told to go on, and those who sleep on it wake when it
/// is. Clones are handles to the same clock.
///
/// ```
/// use std::time::Duration;
/// use quotalite::{Decision, Limit, Limiter, ManualClock};
///
/// let clock = ManualClock::new();
/// let limiter = Limiter::in_memory_with(clock.clone());
/// limiter.define(Limit::new("mail").per_second(1))?;
/// assert!(limiter.try_acquire("mail")?.is_granted());
/// clock.advance(Duration::from_nanos(999_999_999));
/// assert!(!limiter.try_acquire("mail")?.is_granted());
/// clock.advance(Duration::from_nanos(1));
/// assert!(limiter.try_acquire("mail")?.is_granted());
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Debug)]
struct State {
    boot: u128,
    elapsed: Duration,
    wall: SystemTime,
    sleepers: usize,
}

impl Default for State {
    fn default() -> Self {
        Self {
            boot: 1,
            elapsed: Duration::from_secs(100),
            wall: UNIX_EPOCH + Duration::from_secs(1_700_000_000),
            sleepers: 0,
        }
    }
}

impl ManualClock {
    /// A clock 100 seconds after its first boot, on 14 November 2023.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets time go by.
    pub fn advance(&self, duration: Duration) {
        let mut state = self.state();
        state.elapsed = state.elapsed.saturating_add(duration);
        state.wall = state.wall.checked_add(duration).unwrap_or(state.wall);
        self.shared.moved.notify_all();
    }

    /// Sets the wall clock, as an operator or a time server would; no time goes by.
    pub fn set_wall(&self, wall: SystemTime) {
        self.state().wall = wall;
    }

    /// Starts a new boot, `uptime` ago. The wall clock stays as it is: set it for the time that the
    /// machine was off.
    pub fn reboot(&self, uptime: Duration) {
        let mut state = self.state();
        state.boot += 1;
        state.elapsed = uptime;
        self.shared.moved.notify_all();
    }

    /// How many threads sleep on this clock. Who waits in line for slots is not among them, as it may be called
    /// before the clock is: see [`Usage::waiting`](crate::Usage::waiting).
    #[must_use]
    pub fn sleepers(&self) -> usize {
        self.state().sleepers
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Clock for ManualClock {
    fn boot(&self) -> BootId {
        BootId(self.state().boot)
    }

    fn elapsed(&self) -> Duration {
        self.state().elapsed
    }

    fn wall(&self) -> SystemTime {
        self.state().wall
    }

    fn is_real(&self) -> bool {
        false
    }

    fn sleep_until(&self, deadline: Duration) {
        let mut state = self.state();
        state.sleepers += 1;
        let mut state = self
            .shared
            .moved
            .wait_while(state, |state| state.elapsed < deadline)
            .unwrap_or_else(PoisonError::into_inner);
        state.sleepers -= 1;
    }
}
