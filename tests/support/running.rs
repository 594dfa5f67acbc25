//! `quotalite run`, as a process on a file of a test.

use std::ffi::OsStr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output, Stdio};

use quotalite::{ChargeRow, Inspector, LimitBuilder, Limiter, Timestamp};

use super::Scratch;

pub const QUOTALITE: &str = env!("CARGO_BIN_EXE_quotalite");

/// `quotalite run` on the file of this directory, in which commands are run, too.
pub fn run<A: AsRef<OsStr>>(scratch: &Scratch, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = quotalite(scratch, "run");
    command.args(arguments);
    command
}

/// One of its commands on the file of this directory.
pub fn quotalite(scratch: &Scratch, name: &str) -> Command {
    // Whoever runs the tests may ignore signals, as `nohup` does.
    let mut command = Command::new("env");
    command
        .args(["--default-signal", QUOTALITE, name])
        .env("QUOTALITE_DB", scratch.file())
        .current_dir(scratch.path())
        .stdin(Stdio::null());
    command
}

/// The same, written as in a shell, and what it came to.
pub fn sh(scratch: &Scratch, line: &str) -> Output {
    Command::new("sh")
        .args(["-c", &line.replace("run ", &format!("{QUOTALITE} run "))])
        .env("QUOTALITE_DB", scratch.file())
        .current_dir(scratch.path())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What it ended with, as shells say it.
pub fn code(scratch: &Scratch, line: &str) -> i32 {
    let status = sh(scratch, line).status;
    let of_signal = || status.signal().map(|signal| signal + 128);
    status.code().or_else(of_signal).unwrap()
}

/// A command that says that it runs, and goes on until it is told to end, or the test has ended.
pub const UNTIL_TOLD: &str = "echo $$ > pid; : > ready; \
    while [ -e ready ] && [ ! -e stop ]; do sleep 0.02; done; : > stopped";

/// What is charged to a limit, and in no second more than this.
#[track_caller]
pub fn audited(scratch: &Scratch, key: &str, per_second: u64) -> u64 {
    let charges = charges(scratch, key);
    for last in &charges {
        let is_within = |charge: &&ChargeRow| {
            let age_ns = last.at.as_nanos() - charge.at.as_nanos();
            (0..1_000_000_000).contains(&age_ns)
        };
        let in_window = charges.iter().filter(is_within).map(|charge| charge.amount);
        let in_window: u64 = in_window.sum();
        assert!(
            in_window <= per_second,
            "{in_window} in the second to {:?}",
            last.at
        );
    }
    charges.iter().map(|charge| charge.amount).sum()
}

pub fn charges(scratch: &Scratch, key: &str) -> Vec<ChargeRow> {
    let inspector = Inspector::open(scratch.file()).unwrap();
    let since = Timestamp::from_nanos(i64::MIN);
    inspector.look(|look| look.charges(key, since)).unwrap()
}

/// How many waited in line, and for how many something is booked.
pub fn in_line(scratch: &Scratch) -> usize {
    let inspector = Inspector::open(scratch.file()).unwrap();
    inspector
        .look(|look| Ok(look.waiting()?.len() + look.bookings()?.len()))
        .unwrap()
}

pub fn limiter_with(scratch: &Scratch, limit: LimitBuilder) -> Limiter {
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(limit).unwrap();
    limiter
}

/// The most commands that were inside at once, and how many there were, by a file to which each writes when it
/// begins and before it ends.
#[track_caller]
pub fn most_inside(scratch: &Scratch) -> (i32, usize) {
    let book = std::fs::read_to_string(scratch.path().join("book")).unwrap_or_default();
    let (mut inside, mut most) = (0, 0);
    for line in book.lines() {
        inside += if line == "in" { 1 } else { -1 };
        most = most.max(inside);
    }
    assert_eq!(inside, 0, "who went in went out");
    (most, book.lines().count() / 2)
}
