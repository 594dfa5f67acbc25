//! The command: how it is started, and how it ends.

use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use nix::errno::Errno;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::Pid;
use regex::bytes::Regex;
use rustix::process::WaitIdStatus;

use super::output::Output;
use crate::shell::{Code, Failure};
use crate::signals::{Signals, asks_to_end};

/// A command, ready to be started any number of times.
#[derive(Debug)]
pub(super) struct Program {
    /// Its name comes first.
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

/// How a command has ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    pub(super) code: Code,
    /// Whether somebody wanted it to.
    pub(super) on_demand: bool,
    /// Whether a line of its output is what was looked for.
    pub(super) matches: bool,
}

impl Program {
    pub(super) fn new(command: &[OsString]) -> Result<Self, Failure> {
        let to_c = |text: &OsStr| {
            CString::new(text.as_bytes())
                .map_err(|_| Failure::misused("an argument of a command holds no zero byte"))
        };
        let variable = |(mut name, value): (OsString, OsString)| {
            name.push("=");
            name.push(value);
            CString::new(name.into_vec()).ok()
        };
        Ok(Self {
            arguments: command
                .iter()
                .map(|argument| to_c(argument))
                .collect::<Result<_, _>>()?,
            environment: std::env::vars_os().filter_map(variable).collect(),
        })
    }

    /// Starts it, with its output going through pipes if that is looked at.
    pub(super) fn start(
        &self,
        signals: &Signals,
        pattern: Option<&Regex>,
    ) -> Result<Running, Failure> {
        let opened = pattern.map(Output::open).transpose();
        let opened = opened
            .map_err(|error| Failure::failed(format_args!("passing its output on: {error}")))?;
        let (output, ends) = opened.unzip();
        let start = |blocked: &SigSet| {
            let mut actions = PosixSpawnFileActions::init()?;
            if let Some(ends) = &ends {
                ends.attach(&mut actions)?;
            }
            let name = self.arguments.first().ok_or(Errno::ENOENT)?;
            let attributes = attributes(blocked)?;
            posix_spawnp(
                name,
                &actions,
                &attributes,
                &self.arguments,
                &self.environment,
            )
        };
        let pid = signals
            .start(start)
            .map_err(|errno| self.cannot_start(errno))?
            .ok_or_else(|| Failure::failed("a signal came before the command was started"))?;
        Ok(Running { pid, output })
    }

    fn cannot_start(&self, errno: Errno) -> Failure {
        let name = self.arguments.first().map(|name| name.to_string_lossy());
        let name = name.unwrap_or_default();
        match errno {
            Errno::ENOENT => Failure::of(Code::Child(127), format_args!("`{name}` is not found")),
            errno => {
                let why = errno.desc();
                let message = format_args!("`{name}` cannot be executed: {why}");
                let failure = Failure::of(Code::Child(126), message);
                if errno == Errno::ENOEXEC {
                    return failure.hint("a script begins with a line like `#!/bin/sh`");
                }
                failure
            }
        }
    }
}

/// Signals as they were when this process was started. The standard library ignores closed pipes; whether they were ignored before
/// that, nobody knows any more, and commands seldom expect it.
fn attributes(blocked: &SigSet) -> nix::Result<PosixSpawnAttr> {
    let mut attributes = PosixSpawnAttr::init()?;
    attributes.set_flags(
        PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
    )?;
    attributes.set_sigmask(blocked)?;
    attributes.set_sigdefault(&SigSet::from(Signal::SIGPIPE))?;
    Ok(attributes)
}

/// A command that was started.
#[derive(Debug)]
pub(super) struct Running {
    pid: Pid,
    output: Option<Output>,
}

impl Running {
    /// Waits until it has ended, and what it has written is passed on.
    pub(super) fn wait(self, signals: &Signals) -> Result<Ended, Failure> {
        let status = signals.wait(self.pid);
        let matches = self.output.is_some_and(Output::end);
        let status = status
            .map_err(|error| Failure::failed(format_args!("waiting for the command: {error}")))?;
        let exited = status.as_ref().and_then(WaitIdStatus::exit_status);
        let signal = status.as_ref().and_then(WaitIdStatus::terminating_signal);
        let exited = exited.map(|code| Code::Child(u8::try_from(code).unwrap_or(u8::MAX)));
        let Some(code) = exited.or(signal.map(Code::Signal)) else {
            let lost =
                "nobody can tell how the command has ended: something else has waited for it";
            return Err(Failure::failed(lost));
        };
        Ok(Ended {
            code,
            on_demand: signals.came() || signal.is_some_and(asks_to_end),
            matches,
        })
    }
}
