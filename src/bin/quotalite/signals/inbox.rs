//! Where signals stay until somebody looks for them.

#[cfg(target_os = "linux")]
pub(super) use self::pending::Inbox;
#[cfg(not(target_os = "linux"))]
pub(super) use self::taken::Inbox;

/// Who has sent a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sender {
    Process,
    /// The kernel, on behalf of a terminal above all: the command was sent it, too, as all that are in front.
    Kernel,
}

/// They stay pending, so that whoever looks knows of all that were sent before.
#[cfg(target_os = "linux")]
mod pending {
    use std::io;
    use std::os::fd::AsFd;
    use std::thread;
    use std::time::Duration;

    use nix::errno::Errno;
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use nix::sys::signal::{SigSet, Signal};
    use nix::sys::signalfd::{SfdFlags, SignalFd};

    use super::Sender;

    /// As in `<asm-generic/siginfo.h>`: everything that a process sends has no more than this.
    const SI_USER: i32 = 0;

    /// How long it rests where the kernel has no memory for waiting.
    const NAP: Duration = Duration::from_millis(100);

    #[derive(Debug)]
    pub(in super::super) struct Inbox(SignalFd);

    impl Inbox {
        /// These have to be blocked in all threads.
        pub(in super::super) fn new(signals: SigSet) -> io::Result<Self> {
            let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
            Ok(Self(SignalFd::with_flags(&signals, flags)?))
        }

        /// Waits until there is one, or for a while.
        pub(in super::super) fn wait(&self) {
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                thread::sleep(NAP);
            }
        }

        /// Takes one, if there is one.
        pub(in super::super) fn next(&self) -> Option<(Signal, Sender)> {
            let info = loop {
                match self.0.read_signal() {
                    Err(Errno::EINTR) => {}
                    read => break read.ok()??,
                }
            };
            let signal = Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()?;
            let sender = match info.ssi_code {
                ..=SI_USER => Sender::Process,
                _ => Sender::Kernel,
            };
            Some((signal, sender))
        }
    }
}

/// One is taken by whoever waits, and found a moment later by whoever looks.
#[cfg(not(target_os = "linux"))]
mod taken {
    use std::io;
    use std::sync::{Mutex, PoisonError};

    use nix::sys::signal::{SigSet, Signal};

    use super::Sender;

    #[derive(Debug)]
    pub(in super::super) struct Inbox {
        signals: SigSet,
        taken: Mutex<Option<Signal>>,
    }

    impl Inbox {
        /// These have to be blocked in all threads.
        pub(in super::super) fn new(signals: SigSet) -> io::Result<Self> {
            let taken = Mutex::new(None);
            Ok(Self { signals, taken })
        }

        /// Waits until there is one.
        pub(in super::super) fn wait(&self) {
            let signal = self.signals.wait().ok();
            *self.taken.lock().unwrap_or_else(PoisonError::into_inner) = signal;
        }

        /// Takes one, if there is one. Who has sent it, nothing portable tells: what can be typed is taken to have been.
        pub(in super::super) fn next(&self) -> Option<(Signal, Sender)> {
            let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
            let signal = taken.take()?;
            let sender = match signal {
                Signal::SIGINT | Signal::SIGQUIT => Sender::Kernel,
                _ => Sender::Process,
            };
            Some((signal, sender))
        }
    }
}
