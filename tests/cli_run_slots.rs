//! Slots that `quotalite run` holds: for how long, and who has them when it is gone.
#![cfg(all(feature = "cli", target_os = "linux"))]
mod support;

use std::collections::BTreeSet;
use std::fs::File;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use quotalite::{Inspector, Limit, Limiter, PermitRow, PermitState, SECOND};
use support::processes::{Process, eventually, in_a_pid_namespace, signal_by, start};
use support::running::{UNTIL_TOLD, limiter_with, run};
use support::shell::{document, done};
use support::{Scratch, scratch};

/// A command that runs until it is told to stop. What `run` says goes to a file.
fn started(scratch: &Scratch) -> Process {
    let mut command = run(scratch, ["--limit", "one", "--", "sh", "-c", UNTIL_TOLD]);
    command.stderr(File::create(scratch.path().join("said")).unwrap());
    let process = start(command);
    eventually("it runs", || scratch.path().join("ready").exists());
    process
}

fn said(scratch: &Scratch) -> String {
    std::fs::read_to_string(scratch.path().join("said")).unwrap()
}

fn stop(scratch: &Scratch, process: Process) {
    signal_by(&scratch.path().join("stop"));
    process.wait_well();
}

fn held(scratch: &Scratch) -> Option<PermitRow> {
    let inspector = Inspector::open(scratch.file()).unwrap();
    let permits = inspector.look(|look| look.permits()).unwrap();
    let mut held = permits.into_iter();
    held.find(|permit| permit.state == PermitState::Held)
}

fn is_free(limiter: &Limiter) -> bool {
    limiter.try_acquire("one").unwrap().is_granted()
}

fn timed(scratch: &Scratch, timeout: Duration) -> Limiter {
    limiter_with(scratch, Limit::slots("one", 1).timeout(timeout))
}

#[test]
fn a_slot_is_renewed_for_as_long_as_its_command_runs() {
    let scratch = scratch();
    let limiter = timed(&scratch, 3 * SECOND);
    let process = started(&scratch);
    eventually("it has been renewed", || {
        let permit = held(&scratch).expect("it is held");
        let ends = permit.expires.expect("it has a timeout");
        assert!(!is_free(&limiter));
        ends.saturating_duration_since(permit.at) > 6 * SECOND
    });
    stop(&scratch, process);
    assert!(
        is_free(&limiter),
        "it comes back with the end of the command"
    );
    assert_eq!(said(&scratch), "");
}

#[test]
fn who_has_lost_its_slot_says_so_and_lets_its_command_go_on() {
    let scratch = scratch();
    let limiter = timed(&scratch, Duration::from_millis(300));
    let process = started(&scratch);
    process.send(Signal::SIGSTOP);
    eventually("it has timed out", || is_free(&limiter));
    process.send(Signal::SIGCONT);
    eventually("it says so", || {
        said(&scratch).contains("others may run beside the command")
    });
    assert!(!scratch.path().join("stopped").exists());
    stop(&scratch, process);
    assert!(scratch.path().join("stopped").exists());
}

#[test]
fn a_command_that_was_left_alone_loses_its_slot_to_the_timeout() {
    let scratch = scratch();
    let limiter = timed(&scratch, Duration::from_millis(300));
    started(&scratch).kill();
    eventually("it has timed out", || is_free(&limiter));
    assert!(!scratch.path().join("stopped").exists());
    signal_by(&scratch.path().join("stop"));
    eventually("it ends", || scratch.path().join("stopped").exists());
}

#[test]
fn who_holds_a_slot_of_a_run_that_was_killed_is_named() {
    let scratch = scratch();
    let file = scratch.file();
    limiter_with(&scratch, Limit::slots("one", 1));
    let process = started(&scratch);
    let run = process.id();
    let heirs = || {
        let permits = document(&file, &["permits"]);
        let [permit] = permits["permits"].as_array().unwrap().as_slice() else {
            panic!("{permits}");
        };
        assert_eq!(permit["pid"], run);
        permit["heirs"].clone()
    };
    assert_eq!(heirs(), serde_json::json!([]), "it holds the slot itself");
    process.kill();
    let pid = std::fs::read_to_string(scratch.path().join("pid")).unwrap();
    let pid: u32 = pid.trim().parse().unwrap();
    // What the command has started has inherited it, too.
    assert!(heirs().as_array().unwrap().contains(&pid.into()));
    for arguments in [&["permits"] as &[&str], &["explain", "one=1"]] {
        let told = support::shell::run(&file, arguments).out;
        assert!(told.contains("is gone or elsewhere: held by"), "{told}");
        assert!(told.contains(&format!("{pid} (sh)")), "{told}");
    }
    signal_by(&scratch.path().join("stop"));
    eventually("it ends", || heirs_of(&scratch, run) == 0);
    assert!(!done(&file, &["permits"]).contains("held by"));
}

fn heirs_of(scratch: &Scratch, pid: u32) -> usize {
    let inspector = Inspector::open(scratch.file()).unwrap();
    let owners = inspector.look(|look| look.owners()).unwrap();
    let owner = owners.iter().find(|owner| owner.pid == pid);
    let owner = owner.expect("nobody has needed its slot").id;
    inspector.heirs(&[owner]).len()
}

#[test]
fn processes_that_call_themselves_alike_are_told_apart() {
    let Some(unshare) = in_a_pid_namespace() else {
        println!("skipped: this user may not make a pid namespace");
        return;
    };
    let scratch = scratch();
    limiter_with(&scratch, Limit::slots("one", 2));
    let until_told = ["--", "sh", "-c", UNTIL_TOLD];
    let run_apart = || {
        let run = run(&scratch, ["--limit", "one"].iter().chain(&until_told));
        let mut apart = Command::new(unshare[0]);
        apart
            .args(&unshare[1..])
            .arg(run.get_program())
            .args(run.get_args())
            .env("QUOTALITE_DB", scratch.file())
            .current_dir(scratch.path())
            .stdin(Stdio::null());
        start(apart)
    };
    let processes = [run_apart(), run_apart()];
    let permits = || document(&scratch.file(), &["permits"])["permits"].clone();
    eventually("both run", || permits().as_array().unwrap().len() == 2);
    eventually("they have begun", || scratch.path().join("ready").exists());
    let permits = permits();
    let heirs: [BTreeSet<u64>; 2] = [0, 1].map(|at| {
        let heirs = permits[at]["heirs"].as_array().unwrap();
        heirs.iter().map(|pid| pid.as_u64().unwrap()).collect()
    });
    assert_eq!(permits[0]["pid"], permits[1]["pid"]);
    assert!(heirs.iter().all(|heirs| !heirs.is_empty()), "{permits}");
    assert!(heirs[0].is_disjoint(&heirs[1]), "{permits}");
    signal_by(&scratch.path().join("stop"));
    for process in processes {
        process.wait_well();
    }
}
