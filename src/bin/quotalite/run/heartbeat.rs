//! What keeps slots that have a timeout for as long as a command runs.

use std::convert::Infallible;
use std::fmt;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use quotalite::Permit;

/// So many renewals fall into one timeout: one may come late, or fail.
const BEATS: u32 = 3;

/// The file is not written more often than this for one command.
const SHORTEST: Duration = Duration::from_millis(1);

/// Renews a permit while something is done, if it has a timeout.
pub(super) fn with_heartbeat<T>(
    permit: &Permit,
    timeout: Option<Duration>,
    warn: impl Fn(&dyn fmt::Display) + Sync,
    work: impl FnOnce() -> T,
) -> T {
    let Some(timeout) = timeout else {
        return work();
    };
    let (done, is_done) = mpsc::channel();
    thread::scope(|scope| {
        let warn = &warn;
        let heart = thread::Builder::new().name("heartbeat".to_owned());
        let started = heart.spawn_scoped(scope, move || beat(permit, timeout, &is_done, warn));
        if let Err(error) = started {
            warn(&format_args!(
                "its slots come back after {timeout:?}, even if the command still runs: {error}"
            ));
        }
        let result = work();
        drop(done);
        result
    })
}

fn beat(
    permit: &Permit,
    timeout: Duration,
    is_done: &Receiver<Infallible>,
    warn: &impl Fn(&dyn fmt::Display),
) {
    let pause = (timeout / BEATS).max(SHORTEST);
    let mut has_failed = false;
    while is_done.recv_timeout(pause) == Err(RecvTimeoutError::Timeout) {
        match permit.renew(timeout) {
            Ok(Some(_)) => has_failed = false,
            Ok(None) => {
                warn(
                    &"its slots have timed out, and others may run beside the command: nobody could renew them in time",
                );
                return;
            }
            Err(error) => {
                if !has_failed {
                    warn(&format_args!(
                        "its slots are not renewed, and time out: {error}"
                    ));
                }
                has_failed = true;
            }
        }
    }
}
