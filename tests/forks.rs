//! Processes that fork in the middle of something.
#![cfg(target_os = "linux")]
mod support;

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::ForkResult;
use quotalite::{Error, Limit, Limiter, SECOND};
use support::audit::audit;
use support::processes::{
    Process, await_signal, command_under, in_a_pid_namespace, path, play, signal_by, size, spawn,
};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("fork after the loss", fork_after_the_loss),
        ("fork with two limiters", fork_with_two_limiters),
        ("fork over and over", fork_over_and_over),
        ("fork and name permits", fork_and_name_permits),
        ("fork beside a connection", fork_beside_a_connection),
        ("fork a twin", fork_a_twin),
    ]);
}

#[expect(
    unsafe_code,
    reason = "fork is what is tested; the child calls the limiter and ends"
)]
fn fork() -> ForkResult {
    // SAFETY: no thread of this process but those of the limiter holds a lock that the child needs.
    unsafe { nix::unistd::fork() }.unwrap()
}

fn start(scratch: &Scratch, role: &str, names: &[&str]) -> Process {
    let paths: Vec<PathBuf> = names.iter().map(|name| scratch.path().join(name)).collect();
    let file = scratch.file();
    let mut arguments = vec![("FILE", file.to_str().unwrap())];
    for (name, path) in names.iter().zip(&paths) {
        arguments.push((name, path.to_str().unwrap()));
    }
    spawn(role, &arguments)
}

/// Two limiters, of which one had booked and has lost its files.
fn fork_after_the_loss() {
    let one = Limiter::open(path("FILE")).unwrap();
    let other = Limiter::open(path("FILE")).unwrap();
    other.usage("slow").unwrap();
    thread::sleep(SECOND / 10);
    let _in_hand: Vec<_> = (0..20).map(|_| one.book("slow").unwrap()).collect();
    // All that was charged still is in the WAL.
    let status = Command::new("rm").arg(path("limits.db-shm")).status();
    assert!(status.unwrap().success());
    let lost = one.try_acquire("slow");
    assert!(matches!(lost, Err(Error::Moved { .. })), "{lost:?}");
    match fork() {
        ForkResult::Child => {
            // The bookings are the parent's, who lives.
            assert!(!one.try_acquire("slow").unwrap().is_granted());
            assert!(!other.try_acquire("slow").unwrap().is_granted());
            signal_by(&path("READY"));
            await_signal(&path("LEAVE"));
            signal_by(&path("LEFT"));
            std::process::exit(0);
        }
        ForkResult::Parent { .. } => thread::sleep(quotalite::HOUR),
    }
}

#[test]
fn a_child_forked_after_the_files_were_lost_does_not_keep_its_parents_bookings_alive() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("slow").per_second(1)).unwrap();
    drop(limiter);
    let parent = start(
        &scratch,
        "fork after the loss",
        &["limits.db-shm", "READY", "LEAVE", "LEFT"],
    );
    await_signal(&scratch.path().join("READY"));
    parent.kill();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let turn = limiter.acquire_within("slow", 2 * SECOND);
    assert!(turn.is_ok(), "{turn:?}");
    audit(&scratch.file(), &[]).assert_clean();
    signal_by(&scratch.path().join("LEAVE"));
    await_signal(&scratch.path().join("LEFT"));
}

/// Both have booked, and the child calls but one of them.
fn fork_with_two_limiters() {
    let one = Limiter::open(path("FILE")).unwrap();
    let other = Limiter::open(path("FILE")).unwrap();
    let _mine = one.book("slow").unwrap();
    let _in_hand: Vec<_> = (0..20).map(|_| other.book("slow").unwrap()).collect();
    match fork() {
        ForkResult::Child => {
            assert!(!one.try_acquire("slow").unwrap().is_granted());
            signal_by(&path("READY"));
            await_signal(&path("LEAVE"));
            signal_by(&path("LEFT"));
            std::process::exit(0);
        }
        ForkResult::Parent { .. } => thread::sleep(quotalite::HOUR),
    }
}

#[test]
fn the_first_call_of_a_child_lets_go_of_the_bookings_of_all_limiters() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("slow").per_second(1)).unwrap();
    let parent = start(
        &scratch,
        "fork with two limiters",
        &["READY", "LEAVE", "LEFT"],
    );
    await_signal(&scratch.path().join("READY"));
    parent.kill();
    let turn = limiter.acquire_within("slow", 2 * SECOND);
    assert!(turn.is_ok(), "{turn:?}");
    signal_by(&scratch.path().join("LEAVE"));
    await_signal(&scratch.path().join("LEFT"));
}

/// Forks while the threads of a limiter open connections.
fn fork_over_and_over() {
    for round in 0..size(40, 1_000) {
        let limiter = Arc::new(Limiter::builder(path("FILE")).readers(4).open().unwrap());
        let barrier = Arc::new(Barrier::new(4));
        let lookers: Vec<_> = (0..3)
            .map(|_| {
                let (limiter, barrier) = (Arc::clone(&limiter), Arc::clone(&barrier));
                thread::spawn(move || {
                    barrier.wait();
                    limiter.usage("mail").unwrap();
                })
            })
            .collect();
        barrier.wait();
        let moment = Instant::now() + Duration::from_micros(fastrand::u64(0..2_000));
        while Instant::now() < moment {}
        match fork() {
            ForkResult::Child => {
                let answer = limiter.try_acquire("mail");
                let expected = matches!(answer, Ok(_) | Err(Error::Forked { .. }));
                // Not even dropped: the harness of this test is not in this process.
                end(i32::from(!expected));
            }
            ForkResult::Parent { child } => {
                let deadline = Instant::now() + 20 * SECOND;
                loop {
                    match waitpid(child, Some(WaitPidFlag::WNOHANG)).unwrap() {
                        WaitStatus::StillAlive if Instant::now() < deadline => {
                            thread::sleep(Duration::from_millis(1));
                        }
                        WaitStatus::StillAlive => {
                            kill(child, Signal::SIGKILL).unwrap();
                            panic!("round {round}: it hangs");
                        }
                        status => {
                            assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
                            break;
                        }
                    }
                }
            }
        }
        for looker in lookers {
            looker.join().unwrap();
        }
    }
}

#[expect(
    unsafe_code,
    reason = "a forked child ends without the cleaning up of its parent"
)]
fn end(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { nix::libc::_exit(code) }
}

#[test]
fn a_forked_child_works_or_is_told_that_it_cannot_and_never_hangs() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::new("mail").per_hour(1_000_000))
        .unwrap();
    drop(limiter);
    start(&scratch, "fork over and over", &[]).wait_well();
    audit(&scratch.file(), &[]).assert_clean();
}

fn fork_and_name_permits() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let name_one = || limiter.acquire("slow").unwrap().id().unwrap().to_string();
    name_one();
    for name in ["one", "other"] {
        match fork() {
            ForkResult::Child => {
                std::fs::write(path(name), name_one()).unwrap();
                end(0);
            }
            ForkResult::Parent { child } => {
                assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            }
        }
    }
}

#[test]
fn forked_children_give_their_permits_different_ids() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("slow").per_hour(100)).unwrap();
    start(&scratch, "fork and name permits", &["one", "other"]).wait_well();
    let random_part = |name| {
        let id = std::fs::read_to_string(scratch.path().join(name)).unwrap();
        // Behind the time.
        id[10..].to_owned()
    };
    assert_ne!(random_part("one"), random_part("other"));
}

/// A child cannot close a connection that belongs to the program, and would write without a lock beside it.
fn fork_beside_a_connection() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let in_a_child = |is_right: fn(&Result<quotalite::Decision, Error>) -> bool| match fork() {
        ForkResult::Child => end(i32::from(!is_right(&limiter.try_acquire("slow")))),
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
        }
    };
    let connection = limiter.connect().unwrap();
    in_a_child(|answer| matches!(answer, Err(Error::Forked { .. })));
    drop(connection);
    in_a_child(Result::is_ok);
}

#[test]
fn a_child_forked_beside_an_open_connection_is_told_so() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("slow").per_hour(100)).unwrap();
    drop(limiter);
    start(&scratch, "fork beside a connection", &[]).wait_well();
    audit(&scratch.file(), &[]).assert_clean();
}

/// A child in a pid namespace of its own is the first process there, as its parent is in its own.
#[expect(unsafe_code, reason = "nothing safe makes a namespace here")]
fn fork_a_twin() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let hot = limiter.blocks("slow", 10).unwrap().lifetime(60 * SECOND);
    let hand_out = |times: usize| {
        let handed = (0..times).filter(|_| hot.try_acquire().unwrap().is_granted());
        i32::try_from(handed.count()).unwrap()
    };
    assert_eq!((std::process::id(), hand_out(4)), (1, 4));
    // SAFETY: it takes a number, and changes nothing but in which namespace children are made.
    assert_eq!(unsafe { nix::libc::unshare(nix::libc::CLONE_NEWPID) }, 0);
    match fork() {
        ForkResult::Child => {
            assert_eq!(std::process::id(), 1);
            end(hand_out(20));
        }
        ForkResult::Parent { child } => {
            assert_eq!(waitpid(child, None).unwrap(), WaitStatus::Exited(child, 0));
            assert_eq!(hand_out(20), 6);
        }
    }
}

#[test]
fn a_child_with_the_process_id_of_its_parent_hands_out_nothing_of_its_block() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("slow").per_hour(10)).unwrap();
    let Some(unshare) = in_a_pid_namespace() else {
        return;
    };
    let file = scratch.file();
    let arguments = [("FILE", file.to_str().unwrap())];
    let twins = command_under(&unshare, "fork a twin", &arguments);
    support::processes::start(twins).wait_well();
    assert_eq!(limiter.usage("slow").unwrap().available(), 0);
}
