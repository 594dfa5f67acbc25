//! A process that has the file open more than once when its sidecars are removed, while another one works.
#![cfg(target_os = "linux")]
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use quotalite::{Error, Limit, Limiter, Request};
use support::audit::audit;
use support::processes::{Diary, await_signal, path, play, read_diaries, signal_by, spawn};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[("work beside", work_beside)]);
}

fn open_with_mail(file: &Path) -> Limiter {
    let limiter = Limiter::open(file).unwrap();
    limiter
        .define(Limit::new("mail").per_hour(1_000_000))
        .unwrap();
    limiter
}

/// Notes what is granted until `until`, and counts what goes wrong.
fn work(limiter: &Limiter, diary: &mut Diary, until: Instant) -> BTreeMap<String, u32> {
    let ask = Request::new().take("mail", 1);
    let mut errors = BTreeMap::new();
    while Instant::now() < until {
        match limiter.try_acquire(&ask) {
            Ok(decision) => diary.note(decision.granted().unwrap().at(), &ask),
            Err(error) => *errors.entry(error.to_string()).or_insert(0) += 1,
        }
        thread::sleep(Duration::from_millis(2));
    }
    errors
}

/// Real time, as the removal of a file is noticed by the kernel's stamps.
const WORKED: Duration = Duration::from_millis(700);

fn work_beside() {
    let limiter = open_with_mail(&path("FILE"));
    let mut diary = Diary::open(&path("DIARY"));
    signal_by(&path("READY"));
    let errors = work(&limiter, &mut diary, Instant::now() + WORKED);
    assert!(errors.is_empty(), "{errors:?}");
}

/// Removes the sidecars, lets another process work, and `limiter` beside it: all that either was granted
/// from then on stands in the one file.
fn both_crowds_are_one(scratch: &Scratch, limiter: &Limiter) {
    let beside = |name: &str| scratch.path().join(name);
    let (ready, theirs, ours) = (beside("ready"), beside("theirs"), beside("ours"));
    thread::sleep(Duration::from_millis(100));
    let status = Command::new("rm")
        .args([beside("limits.db-wal"), beside("limits.db-shm")])
        .status();
    assert!(status.unwrap().success());
    let other = spawn(
        "work beside",
        &[
            ("FILE", scratch.file().to_str().unwrap()),
            ("DIARY", theirs.to_str().unwrap()),
            ("READY", ready.to_str().unwrap()),
        ],
    );
    await_signal(&ready);
    let mut diary = Diary::open(&ours);
    let errors = work(limiter, &mut diary, Instant::now() + WORKED / 2);
    let moved = Error::Moved {
        file: fs::canonicalize(scratch.path()).unwrap().join("limits.db"),
    };
    assert!(
        errors
            .iter()
            .all(|(error, times)| *error == moved.to_string() && *times <= 2),
        "{errors:?}"
    );
    other.wait_well();
    let acknowledged = read_diaries([&ours, &theirs]);
    let [of_ours, of_theirs] = [&ours, &theirs].map(|diary| read_diaries([diary]).len());
    assert!(of_ours > 0 && of_theirs > 0, "{of_ours}, {of_theirs}");
    audit(&scratch.file(), &acknowledged).assert_clean();
}

#[test]
fn another_limiter_of_the_same_process_does_not_tie_it_to_the_lost_files() {
    let scratch = scratch();
    drop(open_with_mail(&scratch.file()));
    let (one, idle) = (
        open_with_mail(&scratch.file()),
        open_with_mail(&scratch.file()),
    );
    idle.usage("mail").unwrap();
    both_crowds_are_one(&scratch, &one);
    assert!(matches!(idle.try_acquire("mail"), Err(Error::Moved { .. })));
    assert!(idle.try_acquire("mail").unwrap().is_granted());
}

/// Ends threads, also when what they run beside has failed.
struct Done<'d>(&'d AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn threads_that_look_do_not_tie_their_process_to_the_lost_files() {
    let scratch = scratch();
    drop(open_with_mail(&scratch.file()));
    let limiter = open_with_mail(&scratch.file());
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let _done = Done(&done);
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    // Moved, for a moment, or an answer.
                    let _ = limiter.usage("mail");
                }
            });
        }
        both_crowds_are_one(&scratch, &limiter);
    });
}

#[test]
fn two_limiters_of_a_process_alone_keep_what_either_was_granted() {
    let scratch = scratch();
    drop(open_with_mail(&scratch.file()));
    let (one, idle) = (
        open_with_mail(&scratch.file()),
        open_with_mail(&scratch.file()),
    );
    // Real time: by the stamps of the files it tells whether somebody else can have written.
    thread::sleep(Duration::from_millis(100));
    for _ in 0..5 {
        assert!(one.try_acquire("mail").unwrap().is_granted());
    }
    let sidecars = ["limits.db-wal", "limits.db-shm"];
    let status = Command::new("rm")
        .args(sidecars)
        .current_dir(scratch.path())
        .status();
    assert!(status.unwrap().success());
    assert!(matches!(one.try_acquire("mail"), Err(Error::Moved { .. })));
    assert!(one.try_acquire("mail").unwrap().is_granted());
    drop(idle);
    assert_eq!(scratch.sqlite::<i64>("SELECT count(*) FROM charge"), 6);
}
