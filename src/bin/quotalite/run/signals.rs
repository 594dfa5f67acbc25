//! Signals that come while a command waits for its turn, and while it runs.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, raise};
use nix::unistd::Pid;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

/// Takes the signals by which a process is asked to end, in a thread of its own.
///
/// No handler is set, so that the command finds signals as they were here: ignored, if they were. They are blocked
/// in all threads, and the command is started with what was blocked before.
#[derive(Debug)]
pub(super) struct Signals {
    shared: Arc<Mutex<Shared>>,
    blocked_before: SigSet,
}

#[derive(Debug)]
struct Shared {
    stage: Stage,
    /// What came since the command was started.
    came: Option<Signal>,
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    /// Nothing runs that a signal could be for but this process.
    Waiting,
    Running(Pid),
    /// It has told how it ended, and that is what this process ends with.
    Ended,
}

impl Signals {
    /// Has to be called before there is any other thread: those that are started later block what this one blocks.
    pub(super) fn heed() -> io::Result<Self> {
        let all = [
            Signal::SIGINT,
            Signal::SIGQUIT,
            Signal::SIGTERM,
            Signal::SIGHUP,
        ];
        let blocked_before = SigSet::from_iter(all).thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // What was blocked before is none of ours.
        let ours: SigSet = all
            .into_iter()
            .filter(|signal| !blocked_before.contains(*signal))
            .collect();
        let shared = Arc::new(Mutex::new(Shared {
            stage: Stage::Waiting,
            came: None,
        }));
        let heard = Arc::clone(&shared);
        let hear = move || {
            while let Ok(signal) = ours.wait() {
                lock(&heard).hear(signal);
            }
        };
        thread::Builder::new()
            .name("signals".to_owned())
            .spawn(hear)?;
        Ok(Self {
            shared,
            blocked_before,
        })
    }

    /// Starts a command with the signals that are to be blocked in it. What comes meanwhile is for the command.
    pub(super) fn start<E>(&self, start: impl FnOnce(&SigSet) -> Result<Pid, E>) -> Result<Pid, E> {
        let mut shared = lock(&self.shared);
        let pid = start(&self.blocked_before)?;
        *shared = Shared {
            stage: Stage::Running(pid),
            came: None,
        };
        Ok(pid)
    }

    /// Waits until the command has ended. Nothing if nobody can tell how: whoever ignores SIGCHLD, or has started a program
    /// that way, is not told.
    pub(super) fn wait(&self, pid: Pid) -> io::Result<Option<WaitIdStatus>> {
        let id = rustix::process::Pid::from_raw(pid.as_raw());
        let id = WaitId::Pid(id.ok_or(io::ErrorKind::InvalidInput)?);
        // It keeps its number until it is reaped, so that no other process gets a signal for it.
        let status = waitid(id.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        lock(&self.shared).stage = Stage::Ended;
        match status {
            Ok(status) => {
                waitid(id, WaitIdOptions::EXITED)?;
                Ok(status)
            }
            Err(rustix::io::Errno::CHILD) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a signal came while the command ran.
    pub(super) fn came(&self) -> bool {
        lock(&self.shared).came.is_some()
    }

    /// From now on, until a command is started, signals end this process.
    pub(super) fn may_end_us(&self) {
        let mut shared = lock(&self.shared);
        shared.stage = Stage::Waiting;
        if let Some(signal) = shared.came.take() {
            end_by(signal);
        }
    }
}

impl Shared {
    fn hear(&mut self, signal: Signal) {
        match self.stage {
            // What was typed can have been for the command, and come late.
            Stage::Ended
                if self.came.is_none() && matches!(signal, Signal::SIGINT | Signal::SIGQUIT) =>
            {
                self.came = Some(signal);
            }
            // Once it has ended, what is left may be output that nobody reads.
            Stage::Waiting | Stage::Ended => end_by(signal),
            Stage::Running(pid) => {
                self.came = Some(signal);
                // The others come from a terminal, which has sent them to all that are in front of it.
                if matches!(signal, Signal::SIGTERM | Signal::SIGHUP) {
                    // It may have ended just now.
                    let _ = kill(pid, signal);
                }
            }
        }
    }
}

/// Does what the signal would have done if it had not been blocked: nothing, if it is ignored.
fn end_by(signal: Signal) {
    let only = SigSet::from(signal);
    if only.thread_unblock().is_ok() {
        // What is raised for a thread that does not block it has been dealt with when this returns.
        let _ = raise(signal);
        let _ = only.thread_block();
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
