//! Processes that open the file for the first time after something happened to it: what stands beside it may
//! belong to a database that stood there before.
#![cfg(target_os = "linux")]
mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use quotalite::{Error, Limit, Limiter};
use support::audit::audit;
use support::processes::{Process, await_signal, command, path, play, signal_by, spawn, start};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("work, then wait", work_then_wait),
        ("open without threads", open_without_threads),
    ]);
}

fn open_with_mail(file: &Path) -> Limiter {
    let limiter = Limiter::open(file).unwrap();
    limiter
        .define(Limit::new("mail").per_hour(1_000_000))
        .unwrap();
    limiter
}

#[track_caller]
fn acquire_times(limiter: &Limiter, count: usize) {
    for _ in 0..count {
        assert!(limiter.try_acquire("mail").unwrap().is_granted());
    }
}

fn run(program: &str, arguments: &[&Path]) {
    let status = Command::new(program).args(arguments).status().unwrap();
    assert!(status.success(), "{program} {arguments:?}");
}

fn beside(scratch: &Scratch, suffix: &str) -> PathBuf {
    scratch.path().join(format!("limits.db{suffix}"))
}

fn work_then_wait() {
    let limiter = open_with_mail(&path("FILE"));
    acquire_times(&limiter, 50);
    signal_by(&path("READY"));
    await_signal(&path("LEAVE"));
    // Moved, or an answer; it must not harm anybody.
    let _ = limiter.try_acquire("mail");
}

/// A process that has charged fifty, most of them in the WAL, and has the file open.
fn worker(scratch: &Scratch) -> Process {
    drop(open_with_mail(&scratch.file()));
    let (ready, leave) = (scratch.path().join("ready"), scratch.path().join("leave"));
    let arguments = [
        ("FILE", scratch.file().display().to_string()),
        ("READY", ready.display().to_string()),
        ("LEAVE", leave.display().to_string()),
    ];
    let worker = spawn(
        "work, then wait",
        &arguments
            .each_ref()
            .map(|(name, value)| (*name, value.as_str())),
    );
    await_signal(&ready);
    worker
}

/// Another database, large enough to be damaged by a WAL that is not its own: 41 limits, 700 charges.
fn another(scratch: &Scratch) -> PathBuf {
    let other = scratch.path().join("other.db");
    let limiter = open_with_mail(&other);
    for number in 0..40 {
        let limit = Limit::new(format!("extra-{number}")).per_day(5);
        limiter.define(limit).unwrap();
    }
    acquire_times(&limiter, 700);
    other
}

#[test]
fn a_newcomer_finds_a_database_renamed_over_the_file_whole() {
    for killed in [false, true] {
        let scratch = scratch();
        let mut worker = Some(worker(&scratch));
        let other = another(&scratch);
        if killed {
            worker.take().unwrap().kill();
        }
        run("mv", &[&other, &scratch.file()]);
        assert!(
            beside(&scratch, "-wal").exists(),
            "the former one's is there"
        );
        let newcomer = Limiter::open(scratch.file()).unwrap();
        assert_eq!(newcomer.limits().unwrap().len(), 41, "killed: {killed}");
        acquire_times(&newcomer, 5);
        if let Some(worker) = worker {
            signal_by(&scratch.path().join("leave"));
            worker.wait_well();
        }
        acquire_times(&newcomer, 5);
        drop(newcomer);
        let charges: i64 = scratch.sqlite("SELECT count(*) FROM charge");
        assert!((710..=711).contains(&charges), "{charges}");
        audit(&scratch.file(), &[]).assert_clean();
    }
}

#[test]
fn a_database_put_there_with_its_own_wal_keeps_it() {
    let scratch = scratch();
    let worker = worker(&scratch);
    // Another process was killed, and left a WAL in which most of what it had charged still is.
    let away = support::scratch();
    let other = self::worker(&away);
    other.kill();
    worker.kill();
    for suffix in ["-wal", "-shm", ""] {
        run("mv", &[&beside(&away, suffix), &beside(&scratch, suffix)]);
    }
    let newcomer = open_with_mail(&scratch.file());
    acquire_times(&newcomer, 5);
    let charges: i64 = scratch.sqlite("SELECT count(*) FROM charge");
    assert_eq!(charges, 55);
    audit(&scratch.file(), &[]).assert_clean();
}

#[test]
fn a_newcomer_works_where_the_wal_was_removed_under_others() {
    let scratch = scratch();
    let worker = worker(&scratch);
    run("rm", &[&beside(&scratch, "-wal")]);
    let newcomer = open_with_mail(&scratch.file());
    acquire_times(&newcomer, 5);
    signal_by(&scratch.path().join("leave"));
    worker.wait_well();
    acquire_times(&newcomer, 5);
    audit(&scratch.file(), &[]).assert_clean();
}

fn open_without_threads() {
    let answer = Limiter::open(path("FILE"));
    assert!(matches!(answer, Err(Error::Io { .. })), "{answer:?}");
}

#[test]
fn a_process_that_gets_no_threads_is_told_so() {
    let scratch = scratch();
    let file = scratch.file();
    let mut child = command("open without threads", &[("FILE", file.to_str().unwrap())]);
    // The stack of a thread that nobody has room for; the test itself runs on the first thread.
    child
        .arg("--test-threads=1")
        .env("RUST_MIN_STACK", (1_u64 << 50).to_string());
    start(child).wait_well();
    acquire_times(&open_with_mail(&file), 1);
}
