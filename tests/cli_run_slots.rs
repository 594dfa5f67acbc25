//! Slots that `quotalite run` holds: for how long, and who has them when it is gone.
#![cfg(all(feature = "cli", target_os = "linux"))]
mod support;

use std::fs::File;
use std::time::Duration;

use nix::sys::signal::Signal;
use quotalite::{Inspector, Limit, Limiter, PermitRow, PermitState, SECOND};
use support::processes::{Process, eventually, signal_by, start};
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
        let expected = format!("has ended, and lives on in {pid} (sh)");
        assert!(told.contains(&expected), "{told}");
    }
    signal_by(&scratch.path().join("stop"));
    eventually("it ends", || heirs_of(&scratch, run).is_empty());
    assert!(!done(&file, &["permits"]).contains("lives on"));
}

fn heirs_of(scratch: &Scratch, pid: u32) -> Vec<u32> {
    let inspector = Inspector::open(scratch.file()).unwrap();
    let heirs = inspector.look(|look| {
        let owners = look.owners()?;
        let owner = owners.iter().find(|owner| owner.pid == pid);
        Ok(look.heirs(owner.expect("nobody has needed its slot")))
    });
    heirs.unwrap()
}
