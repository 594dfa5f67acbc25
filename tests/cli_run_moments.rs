//! Signals that come to `run` and `wait` at moments that are too short to be hit, and that `strace` makes last.
#![cfg(all(feature = "cli", target_os = "linux"))]
mod support;

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quotalite::Limit;
use support::processes::{Process, eventually, start};
use support::running::{code, in_line, limiter_with, quotalite, run};
use support::{Scratch, scratch};

/// A command of this crate whose calls of this kind are each begun a moment later, if there is a `strace`.
fn delayed(scratch: &Scratch, command: &Command, calls: &str, paths: &[&Path]) -> Option<Command> {
    let strace = Command::new("strace").arg("--version").output();
    if strace.is_err() {
        println!("skipped: there is no `strace`");
        return None;
    }
    let mut traced = Command::new("strace");
    let inject = format!("inject={calls}:delay_enter=200000");
    traced.args(["-f", "-o", "trace", "-e", &inject]);
    for path in paths {
        traced.arg("-P").arg(path);
    }
    traced
        .arg(command.get_program())
        .args(command.get_args())
        .env("QUOTALITE_DB", scratch.file())
        .current_dir(scratch.path())
        .stdin(Stdio::null());
    Some(traced)
}

fn beside(scratch: &Scratch, suffix: &str) -> PathBuf {
    let mut name = scratch.file().into_os_string();
    name.push(suffix);
    name.into()
}

/// The process that `strace` has started.
fn traced_by(strace: u32) -> Pid {
    let children = format!("/proc/{strace}/task/{strace}/children");
    let children = std::fs::read_to_string(children).unwrap();
    Pid::from_raw(children.trim().parse().unwrap())
}

fn is_taken(scratch: &Scratch) -> bool {
    code(scratch, "run --limit one --within 0 -- true") == 75
}

/// Starts a command that waits for a slot, and gives it to it.
fn admitted(scratch: &Scratch, traced: Command) -> Process {
    let limiter = limiter_with(scratch, Limit::slots("one", 1));
    let held = limiter.acquire("one").unwrap();
    let process = start(traced);
    eventually("it waits", || in_line(scratch) == 1);
    drop(held);
    eventually("it is admitted", || in_line(scratch) == 0);
    process
}

/// It was ended by the signal, and the slot is free again.
fn assert_given_back(scratch: &Scratch, status: ExitStatus, signal: Signal) {
    // `strace` ends as it has ended.
    assert_eq!(status.signal(), Some(signal as i32), "{status}");
    assert!(!is_taken(scratch), "the slot is taken");
}

#[test]
fn who_is_asked_to_end_before_its_command_is_started_does_not_start_it() {
    let scratch = scratch();
    let command = run(&scratch, ["--limit", "one", "--", "touch", "ran"]);
    // Slots are held by a descriptor of the lock file, of which it makes another one.
    let lock = beside(&scratch, "-lock");
    let Some(traced) = delayed(&scratch, &command, "fcntl", &[&lock]) else {
        return;
    };
    let process = admitted(&scratch, traced);
    kill(traced_by(process.id()), Signal::SIGTERM).unwrap();
    assert_given_back(&scratch, process.wait(), Signal::SIGTERM);
    assert!(!scratch.path().join("ran").exists(), "it has run");
}

#[test]
fn what_is_typed_before_there_is_a_command_is_for_the_command() {
    let scratch = scratch();
    let pty = openpty(None, None).unwrap();
    rustix::io::fcntl_setfd(&pty.master, rustix::io::FdFlags::CLOEXEC).unwrap();
    // It would go on for long if nobody told it.
    let command = run(&scratch, ["--limit", "one", "--", "sleep", "10"]);
    let calls = "clone,clone3,fork,vfork";
    let Some(traced) = delayed(&scratch, &command, calls, &[]) else {
        return;
    };
    let mut leader = Command::new("setsid");
    leader
        .args(["--ctty", "--wait"])
        .arg(traced.get_program())
        .args(traced.get_args())
        .env("QUOTALITE_DB", scratch.file())
        .current_dir(scratch.path())
        .stdin(pty.slave.try_clone().unwrap())
        .stdout(pty.slave.try_clone().unwrap())
        .stderr(pty.slave);
    let process = admitted(&scratch, leader);
    // It has what it needs, and is about to start.
    std::thread::sleep(Duration::from_millis(100));
    let mut typed = std::fs::File::from(pty.master);
    typed.write_all(b"\x03").unwrap();
    assert_given_back(&scratch, process.wait(), Signal::SIGINT);
}

/// Nobody has been told that it was admitted.
#[test]
fn who_is_asked_to_end_before_it_says_that_it_was_admitted_gives_it_back() {
    let scratch = scratch();
    let mut command = quotalite(&scratch, "wait");
    command.args(["one", "--detach", "1h"].map(OsStr::new));
    // Detaching is another transaction.
    let wal = beside(&scratch, "-wal");
    let Some(traced) = delayed(&scratch, &command, "pwrite64", &[&wal]) else {
        return;
    };
    let process = admitted(&scratch, traced);
    kill(traced_by(process.id()), Signal::SIGTERM).unwrap();
    assert_given_back(&scratch, process.wait(), Signal::SIGTERM);
}
