//! What signals do to this process.
#![expect(
    unsafe_code,
    reason = "handlers can be anything; these are only the default and none"
)]

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, Signal, raise, signal};

/// Whether whoever has started this process wants a signal to be ignored. Only for signals that end a process by default, and
/// while they are blocked.
pub(crate) fn is_ignored(asked: Signal) -> bool {
    // What is pending stays so: only ignoring a signal discards it.
    // SAFETY: no handler is set, so none can do harm.
    let before = unsafe { signal(asked, SigHandler::SigDfl) };
    let is_ignored = matches!(before, Ok(SigHandler::SigIgn));
    if is_ignored {
        // SAFETY: as above.
        let _ = unsafe { signal(asked, SigHandler::SigIgn) };
    }
    is_ignored
}

/// Lets children that have ended wait until they are asked how, even if this process was started by one that ignored them.
pub(crate) fn hear_of_children() {
    // SAFETY: no handler is set, so none can do harm.
    let _ = unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) };
}

/// Ends this process as a signal does by default.
pub(crate) fn end_by(signal_to_die_of: Signal) -> ! {
    leave_no_core();
    // SAFETY: no handler is set, so none can do harm.
    let _ = unsafe { signal(signal_to_die_of, SigHandler::SigDfl) };
    if SigSet::from(signal_to_die_of).thread_unblock().is_ok() {
        // What is raised for a thread that does not block it has been dealt with when this returns.
        let _ = raise(signal_to_die_of);
    }
    // The first process of a container does not die of signals.
    std::process::exit(128_i32.saturating_add(signal_to_die_of as i32))
}

/// What is wrong is wrong with the command, whose core must not be replaced by that of this process.
fn leave_no_core() {
    #[cfg(target_os = "linux")]
    let _ = nix::sys::prctl::set_dumpable(false);
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_CORE) {
        let _ = setrlimit(Resource::RLIMIT_CORE, 0, most);
    }
}
