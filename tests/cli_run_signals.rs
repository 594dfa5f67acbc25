//! `quotalite run`, its command, or both are killed, interrupted, or read by nobody: slots and places come back when they
//! are to, and not before.
//!
//! Everything here runs in real time: it is other processes and the kernel that bring it about.
#![cfg(all(feature = "cli", target_os = "linux"))]
mod support;

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::pty::openpty;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use quotalite::{HOUR, Limit};
use support::processes::{
    Process, await_signal, eventually, in_a_pid_namespace, signal_by, size, start,
};
use support::running::{
    QUOTALITE, UNTIL_TOLD, charges, code, in_line, limiter_with, most_inside, quotalite, run,
};
use support::{Scratch, open_raw, scratch};

/// Starts a command that goes on until it is told to end.
fn start_until_told(scratch: &Scratch, arguments: &[&str]) -> Process {
    let mut command = run(scratch, arguments);
    // No terminal sends signals to the group of the tests.
    command
        .args(["--", "sh", "-c", UNTIL_TOLD])
        .process_group(0);
    let process = start(command);
    await_signal(&scratch.path().join("ready"));
    process
}

#[track_caller]
fn assert_taken(scratch: &Scratch) {
    let line = "run --limit one --within 0 -- true";
    assert_eq!(code(scratch, line), 75, "a slot that is taken");
}

/// The process of the command itself.
fn command_of(directory: &Path) -> Pid {
    let text = std::fs::read_to_string(directory.join("pid")).unwrap();
    Pid::from_raw(text.trim().parse().unwrap())
}

#[test]
fn a_slot_stays_taken_while_the_command_outlives_run() {
    let scratch = scratch();
    let process = start_until_told(&scratch, &["--limit", "one", "--slots", "1"]);
    assert_taken(&scratch);
    process.kill();
    assert_taken(&scratch);
    let next = start(run(
        &scratch,
        ["--limit", "one", "--", "sh", "-c", "test -e stopped"],
    ));
    eventually("the next one waits", || in_line(&scratch) == 1);
    assert_taken(&scratch);
    signal_by(&scratch.path().join("stop"));
    next.wait_well();
    assert_eq!(code(&scratch, "run --limit one --within 0 -- true"), 0);
}

#[test]
fn no_more_commands_run_at_once_whoever_is_killed() {
    let scratch = scratch();
    limiter_with(&scratch, Limit::slots("disk", 2));
    let command = "echo in >> book; sleep 0.05; echo out >> book";
    let begin = || {
        start(run(
            &scratch,
            ["--limit", "disk", "--", "sh", "-c", command],
        ))
    };
    let mut running: Vec<Process> = (0..6).map(|_| begin()).collect();
    let mut killed = 0;
    while killed < size(40, 400) {
        std::thread::sleep(Duration::from_millis(fastrand::u64(0..30)));
        let chosen = running.swap_remove(fastrand::usize(..running.len()));
        if let Some(process) = chosen.still_running() {
            // It may end just now.
            process.send(Signal::SIGKILL);
            let status = process.wait();
            killed += usize::from(status.signal() == Some(9));
        }
        running.push(begin());
    }
    for process in running {
        process.wait_well();
    }
    // What still runs has lost the one that waited for it, and holds its slot.
    let both = "run --limit disk=2 --within 60s -- true";
    assert_eq!(code(&scratch, both), 0);
    let (most, count) = most_inside(&scratch);
    assert!(most <= 2, "{most} at once, of {count}");
    assert!(most == 2 && count > 5, "{count}");
}

#[test]
fn a_slot_comes_back_when_the_command_is_killed() {
    let scratch = scratch();
    let process = start_until_told(&scratch, &["--limit", "one", "--slots", "1"]);
    assert_taken(&scratch);
    kill(command_of(scratch.path()), Signal::SIGKILL).unwrap();
    assert_eq!(process.wait().signal(), Some(9));
    assert_eq!(code(&scratch, "run --limit one --within 0 -- true"), 0);
}

#[test]
fn a_daemon_keeps_no_slot_of_a_command_that_has_ended() {
    let scratch = scratch();
    let daemon = "(while [ -d \"$PWD\" ] && [ ! -e stop ]; do echo on; sleep 0.02; done) & exit 0";
    for options in [&[] as &[&str], &["--retry-match", "429"]] {
        let mut command = run(&scratch, ["--limit", "one", "--slots", "1"]);
        command.args(options).args(["--", "sh", "-c", daemon]);
        // What it writes is nobody's, and closes no pipe of the tests.
        command.stdout(Stdio::null()).stderr(Stdio::null());
        start(command).wait_well();
        assert_eq!(code(&scratch, "run --limit one --within 0 -- true"), 0);
    }
    signal_by(&scratch.path().join("stop"));
}

#[test]
fn signals_that_are_sent_to_run_are_passed_on() {
    for signal in [
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGALRM,
    ] {
        let name = &signal.as_str()["SIG".len()..];
        for (trap, expected) in [
            (format!("trap 'exit 40' {name};"), Some(40)),
            (String::new(), None),
        ] {
            let scratch = scratch();
            let command = format!("{trap} {UNTIL_TOLD}");
            let arguments = ["--limit", "one", "--slots", "1", "--", "sh", "-c", &command];
            let process = start(run(&scratch, arguments));
            await_signal(&scratch.path().join("ready"));
            process.send(signal);
            let status = process.wait();
            assert_eq!(status.code(), expected, "{signal}, {trap}");
            let ended_by = expected.is_none().then_some(signal as i32);
            assert_eq!(status.signal(), ended_by, "{signal}");
            assert_eq!(code(&scratch, "run --limit one --within 0 -- true"), 0);
        }
    }
}

#[test]
fn run_waits_for_a_command_that_deals_with_an_interrupt() {
    for (trap, code_of_run, signal) in [
        ("", None, Some(2)),
        ("trap 'exit 4' INT;", Some(4), None),
        ("trap '' INT;", Some(0), None),
    ] {
        let scratch = scratch();
        let command = format!("{trap} {UNTIL_TOLD}");
        let arguments = ["--limit", "one", "--slots", "1", "--", "sh", "-c", &command];
        let process = start({
            let mut command = run(&scratch, arguments);
            command.process_group(0);
            command
        });
        await_signal(&scratch.path().join("ready"));
        let group = Pid::from_raw(process.id().try_into().unwrap());
        killpg(group, Signal::SIGINT).unwrap();
        if code_of_run == Some(0) {
            signal_by(&scratch.path().join("stop"));
        }
        let status = process.wait();
        assert_eq!((status.code(), status.signal()), (code_of_run, signal));
        assert_eq!(code(&scratch, "run --limit one --within 0 -- true"), 0);
    }
}

#[test]
fn signals_that_are_ignored_stay_ignored() {
    let scratch = scratch();
    let command = "run --limit a --rate 1/s -- sh -c 'kill -HUP $$; kill -INT $$; exit 5'";
    assert_eq!(code(&scratch, &format!("trap '' HUP INT; {command}")), 5);
}

#[test]
fn a_signal_that_is_ignored_is_no_reason_to_give_up() {
    let scratch = scratch();
    // It sends the signal to the process that has started it.
    let fails_once = "[ -e tried ] || { : > tried; kill -HUP $PPID; exit 75; }";
    let command = format!("run --limit a --rate 100/s --retry 1 -- sh -c '{fails_once}'");
    assert_eq!(
        code(&scratch, &format!("trap '' HUP; {command}; exit $?")),
        0
    );
}

#[test]
fn how_a_command_ended_is_known_where_children_are_ignored() {
    let scratch = scratch();
    let line = "env --ignore-signal=CHLD run --limit a --rate 100/s -- sh -c 'exit 5'";
    assert_eq!(code(&scratch, line), 5);
}

#[test]
fn a_core_is_that_of_the_command() {
    let scratch = scratch();
    let line =
        "ulimit -c unlimited; run --limit a --rate 100/s -- sh -c 'ulimit -c 0; kill -ABRT $$'";
    assert_eq!(code(&scratch, line), 134);
    let found = std::fs::read_dir(scratch.path()).unwrap();
    let names = found.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let cores: Vec<_> = names.filter(|name| name.starts_with("core")).collect();
    assert!(cores.is_empty(), "{cores:?}");
}

#[test]
fn an_interrupt_while_waiting_gives_the_place_back() {
    for signal in [
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGKILL,
    ] {
        let scratch = scratch();
        let limiter = limiter_with(&scratch, Limit::slots("one", 1));
        let permit = limiter.acquire("one").unwrap();
        let wait = |command: &str| start(run(&scratch, ["--limit", "one", "--", "touch", command]));
        let first = wait("first");
        eventually("the first one waits", || in_line(&scratch) == 1);
        let second = wait("second");
        eventually("both wait", || in_line(&scratch) == 2);
        first.send(signal);
        assert_eq!(first.wait().signal(), Some(signal as i32));
        drop(permit);
        second.wait_well();
        assert!(!scratch.path().join("first").exists());
        assert!(scratch.path().join("second").exists());
    }
}

/// Nobody else has to look for that. Some send a signal to a process and to its group.
#[test]
fn whoever_is_asked_to_end_gives_back_what_it_has_booked() {
    for signal in [
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGUSR1,
    ] {
        let scratch = scratch();
        let limiter = limiter_with(&scratch, Limit::new("a").per_hour(1));
        limiter.define(Limit::slots("one", 1)).unwrap();
        limiter.acquire("a").unwrap();
        let _held = limiter.acquire("one").unwrap();
        for key in ["a", "one"] {
            let mut wait = quotalite(&scratch, "wait");
            wait.arg(key);
            let run = run(&scratch, ["--limit", key, "--", "touch", "ran"]);
            for command in [run, wait] {
                let process = start(command);
                eventually("it waits", || in_line(&scratch) == 1);
                process.send(signal);
                process.send(signal);
                assert_eq!(process.wait().signal(), Some(signal as i32), "{key}");
                assert_eq!(in_line(&scratch), 0, "{key}");
                assert_eq!(charges(&scratch, "a").len(), 1, "{key}");
            }
        }
        assert!(!scratch.path().join("ran").exists());
    }
}

#[test]
fn whoever_is_asked_again_ends_at_once() {
    let scratch = scratch();
    let limiter = limiter_with(&scratch, Limit::new("a").per_hour(1));
    limiter.acquire("a").unwrap();
    let process = start(run(&scratch, ["--limit", "a", "--", "true"]));
    eventually("it has booked", || in_line(&scratch) == 1);
    let locked = open_raw(&scratch.file());
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    process.send(Signal::SIGTERM);
    std::thread::sleep(Duration::from_secs(1));
    process.send(Signal::SIGINT);
    assert_eq!(process.wait().signal(), Some(2));
    assert_eq!(in_line(&scratch), 1, "nothing could be given back");
}

#[test]
fn a_signal_ends_also_whoever_would_have_been_refused() {
    for name in ["run", "wait"] {
        let scratch = scratch();
        let limiter = limiter_with(&scratch, Limit::new("a").per_hour(2));
        limiter.acquire("a").unwrap();
        let locked = open_raw(&scratch.file());
        locked.execute_batch("BEGIN IMMEDIATE").unwrap();
        let mut command = quotalite(&scratch, name);
        if name == "run" {
            command.args(["--limit", "a", "--within", "0", "--", "touch", "ran"]);
        } else {
            command.args(["a", "--within", "0"]);
        }
        let process = start(command);
        // It waits for the lock by now, or is about to.
        std::thread::sleep(Duration::from_millis(300));
        process.send(Signal::SIGTERM);
        std::thread::sleep(Duration::from_millis(100));
        locked.execute_batch("COMMIT").unwrap();
        assert_eq!(process.wait().signal(), Some(15), "{name}");
        let charged: u64 = charges(&scratch, "a").iter().map(|row| row.amount).sum();
        assert_eq!(charged, 1, "{name}: it was charged and told nobody");
        assert!(!scratch.path().join("ran").exists());
    }
}

/// Which dies of no signal.
#[test]
fn the_first_process_of_a_container_ends_too() {
    let Some(unshare) = in_a_pid_namespace() else {
        return;
    };
    let scratch = scratch();
    let limiter = limiter_with(&scratch, Limit::new("a").per_hour(1));
    limiter.acquire("a").unwrap();
    let waits = quotalite(&scratch, "wait");
    let mut command = Command::new(unshare[0]);
    command
        .args(&unshare[1..])
        .arg(waits.get_program())
        .args(waits.get_args())
        .arg("a")
        .env("QUOTALITE_DB", scratch.file());
    let process = start(command);
    eventually("it has booked", || in_line(&scratch) == 1);
    let outside = process.id();
    let children = std::fs::read_to_string(format!("/proc/{outside}/task/{outside}/children"));
    let first = children.unwrap().trim().parse().unwrap();
    kill(Pid::from_raw(first), Signal::SIGTERM).unwrap();
    assert_eq!(process.wait().code(), Some(143));
    assert_eq!(in_line(&scratch), 0);
}

#[test]
fn what_was_booked_by_one_that_is_killed_comes_back_to_who_needs_it() {
    let scratch = scratch();
    let limiter = limiter_with(&scratch, Limit::new("a").per_hour(1));
    limiter.acquire("a").unwrap();
    let process = start(run(&scratch, ["--limit", "a", "--", "touch", "ran"]));
    eventually("it has booked", || in_line(&scratch) == 1);
    process.kill();
    let booking = limiter.book("a").unwrap();
    assert!(booking.wait_time() <= HOUR, "{:?}", booking.wait_time());
    assert!(!scratch.path().join("ran").exists());
}

#[test]
fn a_command_learns_that_nobody_reads_any_more() {
    let scratch = scratch();
    for options in [&[] as &[&str], &["--retry-match", "429"]] {
        let mut command = run(&scratch, ["--limit", "a", "--rate", "9/s"]);
        command.args(options).args(["--", "yes"]);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut first = [0; 2];
        child.stdout.take().unwrap().read_exact(&mut first).unwrap();
        assert_eq!(&first, b"y\n");
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(13), "{options:?}");
    }
}

#[test]
fn run_can_be_ended_while_nobody_reads_what_its_command_has_written() {
    let scratch = scratch();
    let mut command = run(&scratch, ["--limit", "one", "--slots", "1"]);
    // More than fits one pipe, and less than fits two.
    let write = "head -c 100000 /dev/zero; : > stopped";
    command.args(["--retry-match", "429", "--", "sh", "-c", write]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    await_signal(&scratch.path().join("stopped"));
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let mut status = None;
    eventually("it has ended", || {
        kill(pid, Signal::SIGTERM).unwrap();
        status = child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().signal(), Some(15));
    assert_eq!(code(&scratch, "run --limit one --within 0 -- true"), 0);
}

#[test]
fn an_interrupt_ends_the_wait_for_the_next_try() {
    let scratch = scratch();
    let arguments = ["--limit", "a", "--rate", "1000/s", "--retry", "1000"];
    let mut command = run(&scratch, arguments);
    command.args(["--", "sh", "-c", "echo >> tries; exit 75"]);
    let process = start(command);
    eventually("it waits for its third try at least", || {
        std::fs::read(scratch.path().join("tries")).is_ok_and(|tries| tries.len() >= 2)
    });
    process.send(Signal::SIGTERM);
    // Or it ran just then, and is not run again.
    let status = process.wait();
    let ended = status.signal() == Some(15) || status.code() == Some(75);
    assert!(ended, "{status}");
}

/// The kernel tells the leader of the session alone, which is `run` where a shell or `ssh` has become it.
#[test]
fn a_terminal_that_hangs_up_ends_the_command_too() {
    let scratch = scratch();
    limiter_with(&scratch, Limit::slots("one", 1));
    let pty = openpty(None, None).unwrap();
    // Or what is started would keep its own terminal up.
    rustix::io::fcntl_setfd(&pty.master, rustix::io::FdFlags::CLOEXEC).unwrap();
    let arguments = ["--limit", "one", "--", "sh", "-c", UNTIL_TOLD];
    let run = run(&scratch, arguments);
    let mut leader = Command::new("setsid");
    leader
        .arg("--ctty")
        .arg(run.get_program())
        .args(run.get_args())
        .env("QUOTALITE_DB", scratch.file())
        .current_dir(scratch.path())
        .stdin(pty.slave.try_clone().unwrap())
        .stdout(pty.slave.try_clone().unwrap())
        .stderr(pty.slave);
    let process = start(leader);
    await_signal(&scratch.path().join("ready"));
    drop(pty.master);
    assert_eq!(process.wait().signal(), Some(1));
    assert_eq!(code(&scratch, "run --limit one --within 0 -- true"), 0);
}

#[test]
fn an_interrupt_is_typed_at_a_terminal() {
    let scratch = scratch();
    let limiter = limiter_with(&scratch, Limit::slots("one", 1));
    let permit = limiter.acquire("one").unwrap();
    let line = format!("{QUOTALITE} run --limit one -- sh -c '{UNTIL_TOLD}'");
    let mut script = Command::new("env");
    script
        .args(["--default-signal", "script", "-qefc", &line, "seen"])
        .env("QUOTALITE_DB", scratch.file())
        .env("SHELL", "/bin/sh")
        .current_dir(scratch.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null());
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: there is no `script`");
        return;
    }
    let mut child = script.spawn().unwrap();
    eventually("it waits", || in_line(&scratch) == 1);
    drop(permit);
    await_signal(&scratch.path().join("ready"));
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"\x03").unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    let seen = std::fs::read_to_string(scratch.path().join("seen")).unwrap();
    assert!(
        seen.contains("quotalite: waits for `one` (1 slot)"),
        "{seen}"
    );
    assert!(limiter.try_acquire("one").unwrap().is_granted());
}
