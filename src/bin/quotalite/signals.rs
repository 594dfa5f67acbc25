//! Signals that come while somebody waits in line, and while a command runs.

mod inbox;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill};
use nix::unistd::Pid;
use quotalite::Limiter;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};

use self::inbox::{Inbox, Sender};
use crate::disposition::{end_by, hear_of_children, is_ignored};

/// By these a process is asked to end.
const REQUESTS_TO_END: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGHUP,
];

/// Some send a signal to a process and to its group, which is the same request: `timeout`, for one.
const AT_ONCE: Duration = Duration::from_millis(300);

/// These mean what the command makes of them, and end a process that makes nothing of them.
const NOTICES: [Signal; 3] = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGALRM];

/// Takes the signals that are for the command, in a thread of its own.
///
/// No handler is set, so that the command finds signals as they were here: ignored, if they were. They are blocked
/// in all threads, and the command is started with what was blocked before.
#[derive(Debug)]
pub(crate) struct Signals {
    shared: Arc<Mutex<Shared>>,
    blocked_before: SigSet,
}

#[derive(Debug)]
struct Shared {
    inbox: Arc<Inbox>,
    stage: Stage,
    /// What came in this stage: what ends this process while it waits, and a request to end while the command runs.
    came: Option<Signal>,
}

#[derive(Debug)]
enum Stage {
    /// Nothing is at stake.
    Idle,
    /// It has to give back what it has booked before it ends. Since when it does, if a signal came.
    InLine(Limiter, Option<Instant>),
    Running(Pid),
    /// It has told how it ended, and that is what this process ends with.
    Ended,
}

impl Signals {
    /// Has to be called before there is any other thread: those that are started later block what this one blocks.
    pub(crate) fn heed() -> io::Result<Self> {
        hear_of_children();
        let all: SigSet = REQUESTS_TO_END.into_iter().chain(NOTICES).collect();
        let blocked_before = all.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        // What was blocked or ignored before is none of ours, and comes to no command either.
        let ours: SigSet = all
            .iter()
            .filter(|signal| !blocked_before.contains(*signal) && !is_ignored(*signal))
            .collect();
        let inbox = Arc::new(Inbox::new(ours)?);
        let shared = Arc::new(Mutex::new(Shared {
            inbox: Arc::clone(&inbox),
            stage: Stage::Idle,
            came: None,
        }));
        let heard = Arc::clone(&shared);
        let hear = move || {
            loop {
                inbox.wait();
                lock(&heard).hear_all();
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

    /// From now on, signals let this limiter wait no more, and whoever has waited ends this process: see
    /// [`end_if_asked`](Self::end_if_asked).
    pub(crate) fn stop(&self, limiter: &Limiter) {
        let mut shared = lock(&self.shared);
        shared.hear_all();
        shared.stage = Stage::InLine(limiter.clone(), None);
    }

    /// Ends this process by the signal that came while it was in line, if one did: after this. Else the next one ends it.
    pub(crate) fn end_if_asked(&self, give_back: impl FnOnce()) {
        let mut shared = lock(&self.shared);
        shared.hear_all();
        if let Stage::InLine(..) = shared.stage {
            if let Some(signal) = shared.came {
                // Another one ends it meanwhile.
                drop(shared);
                give_back();
                end_by(signal);
            }
            shared.stage = Stage::Idle;
        }
    }

    /// Starts a command with the signals that are to be blocked in it, unless one has come before. What comes meanwhile is for
    /// the command.
    pub(crate) fn start<E>(
        &self,
        start: impl FnOnce(&SigSet) -> Result<Pid, E>,
    ) -> Result<Option<Pid>, E> {
        let mut shared = lock(&self.shared);
        shared.hear_all();
        if shared.came.is_some() {
            return Ok(None);
        }
        let pid = start(&self.blocked_before)?;
        shared.stage = Stage::Running(pid);
        // What was typed since then may have come before there was a command.
        while let Some((signal, _)) = shared.inbox.next() {
            shared.hear(signal, Sender::Process);
        }
        Ok(Some(pid))
    }

    /// Waits until the command has ended. Nothing if nobody can tell how.
    pub(crate) fn wait(&self, pid: Pid) -> io::Result<Option<WaitIdStatus>> {
        let id = rustix::process::Pid::from_raw(pid.as_raw());
        let id = WaitId::Pid(id.ok_or(io::ErrorKind::InvalidInput)?);
        // It keeps its number until it is reaped, so that no other process gets a signal for it.
        let status = waitid(id.clone(), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        // What was typed for both has come by now.
        let mut shared = lock(&self.shared);
        shared.hear_all();
        shared.stage = Stage::Ended;
        drop(shared);
        match status {
            Ok(status) => {
                waitid(id, WaitIdOptions::EXITED)?;
                Ok(status)
            }
            Err(rustix::io::Errno::CHILD) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether a request to end came while the command ran.
    pub(crate) fn came(&self) -> bool {
        lock(&self.shared).came.is_some()
    }
}

/// Whether a command that this signal has ended was asked to end.
pub(crate) fn asks_to_end(signal: i32) -> bool {
    REQUESTS_TO_END
        .into_iter()
        .any(|known| known as i32 == signal)
}

impl Shared {
    fn hear_all(&mut self) {
        while let Some((signal, sender)) = self.inbox.next() {
            self.hear(signal, sender);
        }
    }

    fn hear(&mut self, signal: Signal, sender: Sender) {
        let asks_to_end = REQUESTS_TO_END.contains(&signal);
        match &mut self.stage {
            Stage::Running(pid) => {
                if asks_to_end {
                    self.came = Some(signal);
                }
                // A terminal that hangs up tells its session's leader, and not always whoever is in front.
                if sender == Sender::Process || signal == Signal::SIGHUP {
                    // It may have ended just now.
                    let _ = kill(*pid, signal);
                }
            }
            Stage::Ended if !asks_to_end => {}
            Stage::InLine(limiter, since @ None) => {
                self.came = Some(signal);
                *since = Some(Instant::now());
                limiter.stop_waiting();
            }
            Stage::InLine(_, Some(since)) if since.elapsed() < AT_ONCE => {}
            // Whoever asks again does not want to wait for a locked file; and once the command has ended, what is left may be output
            // that nobody reads.
            Stage::Idle | Stage::InLine(..) | Stage::Ended => end_by(signal),
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
