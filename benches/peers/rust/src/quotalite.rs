//! This crate, with its defaults.

use quotalite::{Decision, Limit, Limiter, MINUTE, SECOND};

use crate::worker::{Outcome, Task};

pub fn caller(task: &Task) -> impl FnMut() -> Outcome + Send + use<> {
    let limiter = Limiter::open(&task.place).expect("a file");
    let mut limit = Limit::new("key").rate(u64::from(task.per_second), SECOND);
    if let Some(per_minute) = task.per_minute {
        limit = limit.rate(u64::from(per_minute), MINUTE);
    }
    limiter.define(limit).expect("a definition");
    move || match limiter.try_acquire("key") {
        Ok(Decision::Granted(_)) => Outcome::Granted,
        Ok(Decision::Denied(_)) => Outcome::Refused,
        Err(error) => Outcome::Failed(error.to_string()),
    }
}
