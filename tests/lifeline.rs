//! Slots that are held for programs: they come back when those have ended, even if whoever started them was killed.
#![cfg(target_os = "linux")]
mod support;

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};

use quotalite::{Error, Limit, Limiter, RequestError};
use support::processes::{
    Process, argument, await_signal, eventually, path, play, signal_by, spawn,
};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[("hold for a program", hold_for_a_program)]);
}

/// Holds a slot, starts a program that goes on until it is told to end, and waits to be killed.
fn hold_for_a_program() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let permit = limiter.acquire("slots").unwrap();
    let mut lifeline = Some(limiter.lifeline().unwrap());
    let story = argument("STORY");
    if story == "drops it before" {
        lifeline.take();
    }
    // The directory goes when the test has failed.
    let until_told = "while [ -d \"${0%/*}\" ]; do \
        [ -e \"$0\" ] && : > \"$0-heard\" && exit; sleep 0.02; done";
    let mut program = Command::new("sh")
        .args(["-c", until_told, &argument("STOP")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(lifeline);
    if story == "gives it back" {
        drop(permit);
    }
    signal_by(&path("READY"));
    program.wait().unwrap();
}

/// One slot, and a process that plays this story with it, as far as its program runs.
fn start(scratch: &Scratch, story: &str) -> (Limiter, Process) {
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::slots("slots", 1)).unwrap();
    let of = |name: &str| scratch.path().join(name).to_str().unwrap().to_owned();
    let arguments = [
        ("FILE", &*of("limits.db")),
        ("READY", &of("ready")),
        ("STOP", &of("stop")),
        ("STORY", story),
    ];
    let process = spawn("hold for a program", &arguments);
    await_signal(&scratch.path().join("ready"));
    (limiter, process)
}

fn is_free(limiter: &Limiter) -> bool {
    limiter.try_acquire("slots").unwrap().is_granted()
}

/// Lets the program end, and waits until it says so.
fn stop(directory: &Path) {
    signal_by(&directory.join("stop"));
    await_signal(&directory.join("stop-heard"));
}

#[test]
fn a_slot_comes_back_when_the_program_has_ended_that_it_is_held_for() {
    let scratch = scratch();
    let (limiter, process) = start(&scratch, "is killed");
    assert!(!is_free(&limiter));
    process.kill();
    for _ in 0..20 {
        assert!(!is_free(&limiter), "beside the program that goes on");
    }
    let another = Limiter::open(scratch.file()).unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| another.acquire("slots").unwrap());
        std::thread::sleep(quotalite::SECOND / 10);
        assert!(!waiting.is_finished(), "beside the program that goes on");
        stop(scratch.path());
        drop(waiting.join().unwrap());
    });
    assert!(is_free(&limiter));
}

#[test]
fn a_program_that_is_started_later_keeps_nothing() {
    let scratch = scratch();
    let (limiter, process) = start(&scratch, "drops it before");
    assert!(!is_free(&limiter));
    process.kill();
    eventually("the slot is free", || is_free(&limiter));
    stop(scratch.path());
}

#[test]
fn what_is_given_back_comes_back_at_once() {
    let scratch = scratch();
    let (limiter, process) = start(&scratch, "gives it back");
    assert!(is_free(&limiter));
    process.kill();
    assert!(is_free(&limiter));
    stop(scratch.path());
}

#[test]
fn a_lifeline_is_out_of_the_way_of_what_scripts_redirect() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let (one, other) = (limiter.lifeline().unwrap(), limiter.lifeline().unwrap());
    assert!(one.as_raw_fd() >= 100 && other.as_raw_fd() > one.as_raw_fd());
    assert_eq!(scratch.sqlite::<i64>("SELECT count(*) FROM owner"), 1);
}

#[test]
fn in_memory_there_is_nothing_to_inherit() {
    let lifeline = Limiter::in_memory().unwrap().lifeline();
    assert!(
        matches!(lifeline, Err(Error::Request(RequestError::NoFile))),
        "{lifeline:?}"
    );
}
