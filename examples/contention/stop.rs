//! Who interrupts a run gets the space of its files back: the signals that ask for it end it in the ordinary way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{SigSet, Signal};

use crate::Failure;

static WANTED: AtomicBool = AtomicBool::new(false);

/// Listens for signals from now on. To be called before other threads and processes are started: they take over that
/// nothing interrupts them, and end when this process ends them.
pub fn listen() -> Result<(), Failure> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block()?;
    thread::spawn(move || {
        if signals.wait().is_ok() {
            WANTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

pub fn is_wanted() -> bool {
    WANTED.load(Ordering::Relaxed)
}
