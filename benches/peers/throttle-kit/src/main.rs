//! The worker for `throttle-kit` on SQLite. The driver, `../run`, starts it.
//!
//! Its documentation has no settings for SQLite, so it runs with what it opens by itself: a rollback journal,
//! synced with every call. <https://docs.rs/throttle-kit/2.1.2/throttle_kit/struct.SqliteBackend.html>

#[expect(dead_code, reason = "the other project uses the rest")]
#[path = "../../rust/src/worker.rs"]
mod worker;

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use throttle_kit::{Quota, RateLimitBackend as _, SqliteBackend};
use worker::{Outcome, Task};

fn main() {
    let task = Task::from_args();
    let backend = SqliteBackend::new(&task.place).expect("a file");
    // It counts in whole milliseconds and divides by the time between two grants, so it panics above 1000 a
    // second. A burst that is never used up grants everything. There is one quota, so no second window.
    let quota = Quota::per_second(task.per_second.min(1_000)).allow_burst(task.per_second);
    let call = || {
        // The future waits for nothing. `check_sync` would build a runtime for every call.
        let check = pin!(backend.check("key", &quota));
        let Poll::Ready(result) = check.poll(&mut Context::from_waker(Waker::noop())) else {
            return Outcome::Failed("not ready at once".to_owned());
        };
        if result.allowed {
            Outcome::Granted
        } else {
            Outcome::Refused
        }
    };
    worker::run(vec![call]);
}
