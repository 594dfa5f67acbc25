//! Processes that hand out one key from blocks at full speed, and others that ask for each call: whoever is killed, no
//! window holds more calls than its capacity.
//!
//! Everything here runs on the machine's clock, because a clock that can be set belongs to one process.
#![cfg(target_os = "linux")]
mod support;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::ForkResult;
use quotalite::{BootId, Clock, Error, Limit, Limiter, SECOND, SystemClock};
use support::processes::{Process, number, path, play, size, spawn};
use support::{Scratch, scratch};

const MS: Duration = Duration::from_millis(1);
const RATES: [(u64, Duration); 2] = [(3_000, Duration::from_millis(100)), (20_000, SECOND)];
const LIFETIME: Duration = Duration::from_millis(20);

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("hand out", hand_out),
        ("ask for each", ask_for_each),
        ("fork", fork_with_a_block),
        ("fork in a call", fork_while_a_thread_calls),
    ]);
}

/// The machine's clock, and what it showed last: by that a call was decided.
#[derive(Debug)]
struct Witness(SystemClock);

static LAST_NS: AtomicU64 = AtomicU64::new(0);

impl Clock for Witness {
    fn boot(&self) -> BootId {
        self.0.boot()
    }

    fn elapsed(&self) -> Duration {
        let elapsed = self.0.elapsed();
        let ns = u64::try_from(elapsed.as_nanos()).unwrap();
        LAST_NS.store(ns, Ordering::Relaxed);
        elapsed
    }

    fn wall(&self) -> SystemTime {
        self.0.wall()
    }

    fn sleep_until(&self, deadline: Duration) {
        self.0.sleep_until(deadline);
    }
}

fn open() -> Limiter {
    let clock = Witness(SystemClock::new().unwrap());
    let builder = Limiter::builder(path("FILE"));
    builder.clock(clock).open().unwrap()
}

/// Notes the instants of calls, some at a time. Who is killed has some more behind it, which nobody will know of.
struct Diary {
    file: File,
    noted: Vec<u8>,
}

impl Diary {
    fn open() -> Self {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(path("DIARY"));
        Self {
            file: file.unwrap(),
            noted: Vec::new(),
        }
    }

    fn note(&mut self) {
        let ns = LAST_NS.load(Ordering::Relaxed);
        self.noted.extend(ns.to_ne_bytes());
        if self.noted.len() >= 512 {
            self.write();
        }
    }

    fn write(&mut self) {
        self.file.write_all(&self.noted).unwrap();
        self.noted.clear();
    }
}

/// Calls until its time is over, or it is killed.
fn call(mut is_granted: impl FnMut() -> bool) {
    let mut diary = Diary::open();
    let deadline = Instant::now() + Duration::from_millis(number("MS"));
    while Instant::now() < deadline {
        if is_granted() {
            diary.note();
        } else {
            thread::sleep(MS / 4);
        }
    }
    diary.write();
}

fn hand_out() {
    let limiter = open();
    let hot = limiter.blocks("hot", 50).unwrap().lifetime(LIFETIME);
    call(|| hot.try_acquire().unwrap().is_granted());
}

fn ask_for_each() {
    let limiter = open();
    call(|| limiter.try_acquire("hot").unwrap().is_granted());
}

fn start(scratch: &Scratch, role: &str, diary: &Path, ms: u64) -> Process {
    let (file, ms) = (scratch.file(), ms.to_string());
    spawn(
        role,
        &[
            ("FILE", file.to_str().unwrap()),
            ("DIARY", diary.to_str().unwrap()),
            ("MS", &ms),
        ],
    )
}

fn read(diaries: &[PathBuf]) -> Vec<u64> {
    let mut calls = Vec::new();
    for diary in diaries {
        let bytes = std::fs::read(diary).unwrap_or_default();
        let words = bytes.chunks_exact(8);
        calls.extend(words.map(|word| u64::from_ne_bytes(word.try_into().unwrap())));
    }
    calls.sort_unstable();
    calls
}

/// The most calls that any window of so long holds which ends at one of them.
fn fullest(calls: &[u64], window: Duration) -> usize {
    let window_ns = u64::try_from(window.as_nanos()).unwrap();
    let mut first = 0;
    let ends = calls.iter().enumerate().map(|(last, end_ns)| {
        while calls[first] + window_ns <= *end_ns {
            first += 1;
        }
        last + 1 - first
    });
    ends.max().unwrap_or(0)
}

fn define() -> (Scratch, Limiter) {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let rates = RATES.iter();
    let limit = rates.fold(Limit::new("hot"), |limit, (capacity, window)| {
        limit.rate(*capacity, *window)
    });
    limiter.define(limit).unwrap();
    (scratch, limiter)
}

#[test]
fn processes_that_hand_out_at_full_speed_and_are_killed_exceed_no_window() {
    let (scratch, limiter) = define();
    let ms = size(2_500, 60_000);
    let mut diaries = Vec::new();
    let mut begin = |role: &str| {
        let diary = scratch.path().join(format!("diary {}", diaries.len()));
        diaries.push(diary.clone());
        start(&scratch, role, &diary, ms)
    };
    let others = ["hand out", "hand out", "ask for each", "ask for each"].map(&mut begin);
    for _ in 0..size(6, 200) {
        let killed = ["hand out", "hand out"].map(&mut begin);
        thread::sleep(Duration::from_millis(fastrand::u64(150..400)));
        killed.into_iter().for_each(Process::kill);
    }
    others.into_iter().for_each(Process::wait_well);

    let calls = read(&diaries);
    for (capacity, window) in RATES {
        let fullest = fullest(&calls, window);
        println!("at most {fullest} of {capacity} calls in {window:?}");
        assert!(fullest as u64 <= capacity, "{fullest} calls in {window:?}");
        assert!(fullest as u64 > capacity / 2, "only {fullest} calls");
    }
    // What the last of them had taken comes back by itself.
    thread::sleep(LIFETIME + SECOND);
    let whole = ("hot", RATES[0].0);
    assert!(limiter.try_acquire(whole).unwrap().is_granted());
    assert_eq!(
        scratch.sqlite::<String>("PRAGMA integrity_check"),
        "ok",
        "of the file"
    );
}

#[expect(
    unsafe_code,
    reason = "fork is what is tested; the child calls the limiter and ends"
)]
fn fork() -> ForkResult {
    // SAFETY: no thread of this process but those of the limiter holds a lock that the child needs.
    unsafe { nix::unistd::fork() }.unwrap()
}

fn wait_for(child: nix::unistd::Pid) {
    assert_eq!(waitpid(child, None), Ok(WaitStatus::Exited(child, 0)));
}

/// What the parent has taken is the parent's.
fn fork_with_a_block() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let hot = limiter.blocks("hot", 10).unwrap().lifetime(60 * SECOND);
    assert!(hot.try_acquire().unwrap().is_granted());
    let used = || limiter.usage("hot").unwrap().rates()[0].used();
    match fork() {
        ForkResult::Child => {
            assert_eq!(used(), 10);
            assert!(hot.try_acquire().unwrap().is_granted());
            assert_eq!(used(), 20);
            drop(hot);
            assert_eq!(used(), 11);
            std::process::exit(0);
        }
        ForkResult::Parent { child } => wait_for(child),
    }
    assert!(hot.try_acquire_many(9).unwrap().is_granted());
    drop(hot);
    assert_eq!(used(), 11);
}

/// A thread that only the parent has keeps the block in the child for ever.
fn fork_while_a_thread_calls() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let hot = Arc::new(limiter.blocks("hot", 10).unwrap());
    let raw = support::open_raw(&path("FILE"));
    raw.execute_batch("BEGIN IMMEDIATE").unwrap();
    let has_begun = Arc::new(Barrier::new(2));
    let calling = thread::spawn({
        let (hot, has_begun) = (Arc::clone(&hot), Arc::clone(&has_begun));
        move || {
            has_begun.wait();
            hot.try_acquire().unwrap().is_granted()
        }
    });
    has_begun.wait();
    thread::sleep(100 * MS);
    match fork() {
        ForkResult::Child => {
            let told = hot.try_acquire();
            assert!(matches!(told, Err(Error::Forked { .. })), "{told:?}");
            std::process::exit(0);
        }
        ForkResult::Parent { child } => wait_for(child),
    }
    raw.execute_batch("ROLLBACK").unwrap();
    assert!(calling.join().unwrap());
}

#[test]
fn a_forked_child_hands_out_nothing_of_its_parents() {
    for role in ["fork", "fork in a call"] {
        let scratch = scratch();
        let limiter = Limiter::open(scratch.file()).unwrap();
        let limit = Limit::new("hot").rate(1_000, 60 * SECOND);
        limiter.define(limit).unwrap();
        let diary = scratch.path().join("diary");
        start(&scratch, role, &diary, 0).wait_well();
    }
}
