//! `quotalite run`: what is admitted, what it costs, and what is passed on.
//!
//! Everything here runs in real time: it is other processes and the kernel that bring it about.
#![cfg(all(feature = "cli", target_os = "linux"))]
mod support;

use std::fs::Permissions;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use quotalite::{Inspector, Limit, Limiter, PausePolicy, SECOND};
use support::mount::{Mount, fill};
use support::processes::{eventually, signal_by, start};
use support::running::{audited, charges, code, in_line, limiter_with, most_inside, run, sh};
use support::scratch;

#[test]
fn eight_shells_run_no_more_commands_than_the_rate_admits() {
    let scratch = scratch();
    let others = limiter_with(&scratch, Limit::new("mail").rates("20/s, 100000/h"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..16 {
                others.acquire("mail").unwrap();
            }
        });
        let shells = "seq 64 | xargs -P8 -I@ run --limit mail --rate '20/s, 100000/h' -- sh -c 'echo @ >> book'";
        assert_eq!(code(&scratch, shells), 0);
    });
    let book = std::fs::read_to_string(scratch.path().join("book")).unwrap();
    let mut lines: Vec<u32> = book.lines().map(|line| line.parse().unwrap()).collect();
    lines.sort_unstable();
    assert_eq!(lines, (1..=64).collect::<Vec<_>>());
    assert_eq!(audited(&scratch, "mail", 20), 64 + 16);
}

#[test]
fn no_more_commands_run_at_once_than_there_are_slots() {
    for (limits, per_second) in [
        ("--limit disk --slots 3", None),
        ("--limit mail --rate '30/s, 100000/h' --slots 3", Some(30)),
    ] {
        let scratch = scratch();
        let shells = format!(
            "seq 48 | xargs -P8 -I@ run {limits} -- sh -c 'echo in >> book; sleep 0.03; echo out >> book'"
        );
        assert_eq!(code(&scratch, &shells), 0);
        let (most, count) = most_inside(&scratch);
        assert_eq!(count, 48);
        assert!(most <= 3, "{limits}: {most} at once");
        assert!(most > 1, "{limits}: never two at once");
        if let Some(per_second) = per_second {
            assert_eq!(audited(&scratch, "mail", per_second), 48);
        }
    }
}

#[test]
fn what_a_command_ends_with_is_passed_on() {
    let scratch = scratch();
    std::fs::write(scratch.path().join("not-executable"), "").unwrap();
    let script = scratch.path().join("no-interpreter");
    std::fs::write(&script, "true").unwrap();
    std::fs::set_permissions(script, Permissions::from_mode(0o700)).unwrap();
    for (command, expected) in [
        ("true", 0),
        ("sh -c 'exit 3'", 3),
        ("sh -c 'exit 75'", 75),
        ("sh -c 'exit 255'", 255),
        ("sh -c 'kill -TERM $$'", 143),
        ("sh -c 'kill -9 $$'", 137),
        // A real-time signal, which has no name.
        ("sh -c 'kill -40 $$'", 168),
        ("./not-executable", 126),
        ("./no-interpreter", 126),
        ("/", 126),
        ("./not-there", 127),
        ("no-such-command", 127),
        ("''", 127),
    ] {
        let line = format!("run --limit a --rate '1000/s, 1000/h' --slots 1 -- {command}");
        assert_eq!(code(&scratch, &line), expected, "{command}");
    }
    assert_eq!(audited(&scratch, "a", 1_000), 7);
}

#[test]
fn what_cannot_be_admitted_is_not_run() {
    let scratch = scratch();
    assert_eq!(code(&scratch, "run --limit a -- touch ran"), 125, "no file");
    let limiter = limiter_with(&scratch, Limit::new("a").per_hour(2));
    limiter.define(Limit::slots("one", 1)).unwrap();
    let _all = [
        limiter.acquire(("a", 2)).unwrap(),
        limiter.acquire("one").unwrap(),
    ];
    for (arguments, expected) in [
        ("--limit a --within 0", 75),
        ("--limit one --within 0", 75),
        ("--limit a --within 5s", 124),
        ("--limit one --within 10ms", 124),
        ("--limit a=3", 64),
        ("--limit unknown", 64),
        ("--limit a --limit a", 64),
        ("--limit a --rate 3/h", 64),
        ("--limit a --rate nonsense", 64),
        ("--limit a --slots 1", 64),
        ("--limit a --limit one --slots 1", 64),
        ("--limit a --within 0 --retry 1", 64),
        ("--limit a --retry-on 0 --retry 1", 64),
        ("", 64),
    ] {
        let line = format!("run {arguments} -- touch ran");
        assert_eq!(code(&scratch, &line), expected, "{arguments}");
    }
    assert!(!scratch.path().join("ran").exists());
    assert_eq!(audited(&scratch, "a", 2), 2);
    assert_eq!(in_line(&scratch), 0);
}

#[test]
fn a_refusal_says_when_to_come_back() {
    let scratch = scratch();
    let limiter = limiter_with(&scratch, Limit::new("a").per_hour(1));
    let _permit = limiter.acquire("a").unwrap();
    let output = sh(&scratch, "run --limit a --within 0 -- true");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("`a` (1/h) admits 1 in"), "{said}");
}

#[test]
fn a_different_definition_is_shown_beside_the_one_that_was_given() {
    let scratch = scratch();
    assert_eq!(code(&scratch, "run --limit a --rate 10/s -- true"), 0);
    let output = sh(
        &scratch,
        "run --limit a --rate '11/s, 300/min' -- touch ran",
    );
    assert_eq!(output.status.code(), Some(64));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("`a: 10/s`") && said.contains("`a: 11/s, 300/min`"),
        "{said}"
    );
    assert!(!scratch.path().join("ran").exists());
}

#[test]
fn a_command_that_cannot_be_started_charges_nothing() {
    let scratch = scratch();
    let line = "run --limit a --rate 1/h --slots 1 -- no-such-command";
    assert_eq!(code(&scratch, line), 127);
    assert_eq!(charges(&scratch, "a"), []);
    let line = "run --limit a --rate 1/h --slots 1 --within 0 -- true";
    assert_eq!(code(&scratch, line), 0);
}

#[test]
fn nothing_but_the_command_writes_to_the_output() {
    let scratch = scratch();
    for options in ["", "--retry-match 429"] {
        let line = format!(
            "run --json --limit a --rate 9/s {options} -- sh -c 'printf out; printf err >&2'"
        );
        let output = sh(&scratch, &line);
        assert_eq!(
            (&*output.stdout, &*output.stderr),
            (b"out" as &[u8], b"err" as &[u8])
        );
    }
}

#[test]
fn nothing_is_run_on_a_full_disk_and_what_ran_is_what_counts() {
    let scratch = scratch();
    let Some(_mount) = Mount::tmpfs(scratch.path(), "512k") else {
        println!("skipped: this user may not mount a filesystem");
        return;
    };
    let limiter = limiter_with(&scratch, Limit::slots("one", 1));
    limiter.define(Limit::new("a").per_hour(100)).unwrap();
    drop(limiter);
    let limits = "--limit a --limit one";
    // The command itself fills it, so that its slot cannot be given back as usual.
    let fill_up = "head -c 1000000 /dev/zero > ballast; exit 5";
    let line = format!("run {limits} -- sh -c '{fill_up}'");
    assert_eq!(code(&scratch, &line), 5);
    fill(&scratch.path().join("more"));
    let output = sh(&scratch, &format!("run {limits} -- echo ran"));
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(output.stdout, b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("limits.db"), "{said}");
    for ballast in ["ballast", "more"] {
        std::fs::remove_file(scratch.path().join(ballast)).unwrap();
    }
    let line = format!("run {limits} --within 0 -- true");
    assert_eq!(code(&scratch, &line), 0);
    assert_eq!(audited(&scratch, "a", 100), 2);
}

#[test]
fn output_goes_through_to_who_does_not_wait_for_it() {
    let scratch = scratch();
    // The pipe is soon full, and says so to all that write into it.
    let write_much = "head -c 300000 /dev/zero | tr '\\0' x";
    let line = [
        "--limit",
        "a",
        "--rate",
        "9/s",
        "--retry-match",
        "429",
        "--",
        "sh",
        "-c",
        write_much,
    ];
    let (mut read, write) = std::io::pipe().unwrap();
    let full = write.try_clone().unwrap();
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK;
    fcntl(&write, FcntlArg::F_SETFL(flags)).unwrap();
    let mut command = run(&scratch, line);
    let process = start({
        command.stdout(write);
        command
    });
    eventually("the pipe is full", || {
        let mut pipe = [PollFd::new(full.as_fd(), PollFlags::POLLOUT)];
        poll(&mut pipe, PollTimeout::ZERO).unwrap() == 0
    });
    drop(full);
    let mut seen = Vec::new();
    read.read_to_end(&mut seen).unwrap();
    assert_eq!(seen.len(), 300_000);
    process.wait_well();
}

/// Fails so many times, and then ends well.
fn fail(times: u32, how: &str) -> String {
    format!("sh -c 'echo try | tee -a tries; [ $(wc -l < tries) -gt {times} ] || {{ {how}; }}'")
}

#[test]
fn each_try_waits_and_pays() {
    let scratch = scratch();
    let limits = "--limit a=3 --rate '1000/s, 1000/h' --slots 1";
    let line = format!("run {limits} --retry 3 -- {}", fail(2, "exit 75"));
    let output = sh(&scratch, &line);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"try\ntry\ntry\n");
    assert_eq!(audited(&scratch, "a", 1_000), 9);
    assert_eq!(charges(&scratch, "a").len(), 3);
}

#[test]
fn giving_up_passes_on_the_last_exit_code() {
    for (options, command, expected, tries) in [
        ("--retry 1", "exit 75", 75, 2),
        ("--retry 1 --retry-on 8,9", "exit 9", 9, 2),
        ("--retry 1 --retry-on 8,9", "exit 75", 75, 1),
        ("--retry 1", "exit 1", 1, 1),
        ("", "exit 75", 75, 1),
        // Whoever asks it to end wants no other try.
        ("--retry 1 --retry-on 143", "kill -TERM $$", 143, 1),
        ("--retry 1 --retry-on 137", "kill -KILL $$", 137, 2),
    ] {
        let scratch = scratch();
        let limits = "--limit a --rate '1000/s, 1000/h' --slots 1";
        let line = format!("run {limits} {options} -- {}", fail(9, command));
        assert_eq!(code(&scratch, &line), expected, "{options}: {command}");
        assert_eq!(audited(&scratch, "a", 1_000), tries, "{options}: {command}");
    }
}

#[test]
fn the_slot_is_free_between_two_tries() {
    let scratch = scratch();
    // The first delay can be short: the command itself says when it is over, and the slot is looked for from then on.
    let arguments = ["--limit", "one", "--slots", "1", "--retry", "1000"];
    let mut command = run(&scratch, arguments);
    command.args(["--", "sh", "-c", "[ -e stop ] || exit 75"]);
    let process = start(command);
    eventually("the slots are defined", || {
        Inspector::open(scratch.file()).is_ok()
    });
    let limiter = Limiter::open(scratch.file()).unwrap();
    let mut had = 0;
    eventually("the slot was had five times", || {
        had += usize::from(
            limiter
                .try_acquire("one")
                .is_ok_and(|found| found.is_granted()),
        );
        had >= 5
    });
    signal_by(&scratch.path().join("stop"));
    process.wait_well();
}

#[test]
fn a_line_that_matches_pauses_the_limits_for_everybody() {
    let scratch = scratch();
    let limiter = limiter_with(&scratch, Limit::new("a").per_second(100));
    limiter.define(Limit::slots("one", 1)).unwrap();
    let line = "run --limit a --limit one --retry-match '(?i)rate limit|429' --";
    for (command, expected, is_paused) in [
        ("sh -c 'echo HTTP 429'", 0, false),
        ("sh -c 'echo HTTP 500 >&2; exit 1'", 1, false),
        ("sh -c 'echo Rate limited >&2; exit 1'", 1, true),
    ] {
        assert_eq!(code(&scratch, &format!("{line} {command}")), expected);
        let denial = limiter.try_acquire("a").unwrap().denied();
        assert_eq!(
            denial.is_some_and(|denial| denial.is_paused()),
            is_paused,
            "{command}"
        );
        assert!(limiter.try_acquire("one").unwrap().is_granted());
    }
}

#[test]
fn who_was_rate_limited_is_run_again_after_the_pause() {
    let scratch = scratch();
    let policy = PausePolicy::default().first(2 * SECOND);
    limiter_with(
        &scratch,
        Limit::new("a").per_second(100).per_hour(100).pauses(policy),
    );
    let line = format!(
        "run --limit a --retry 1 --retry-match 429 -- {}",
        fail(1, "echo 429; exit 1")
    );
    let output = sh(&scratch, &line);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, b"try\n429\ntry\n");
    let charges = charges(&scratch, "a");
    let [first, second] = &*charges else {
        panic!("{charges:?}");
    };
    assert!(second.at.as_nanos() - first.at.as_nanos() >= 2_000_000_000);
}
