//! `governor` shares nothing between processes: its workers are threads of one, and what it does is what one
//! process could do at most. A limiter has one quota, so there is no second window.
//! <https://docs.rs/governor/0.10.4/governor/struct.RateLimiter.html#method.direct>

use std::num::NonZeroU32;

use governor::{Quota, RateLimiter};

use crate::worker::{self, Outcome, Task};

pub fn run(task: &Task) {
    let per_second = NonZeroU32::new(task.per_second).expect("not zero");
    let limiter = RateLimiter::direct(Quota::per_second(per_second));
    let call = || match limiter.check() {
        Ok(()) => Outcome::Granted,
        Err(_) => Outcome::Refused,
    };
    worker::run(vec![call; task.threads]);
}
