//! `quotalite watch`: what happens is told, in its order, and once.
#![cfg(feature = "cli")]

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use quotalite::{
    Backoff, BreakerPolicy, HOUR, Limit, LimitBuilder, Limiter, OnConflict, Report, Request,
};
use serde_json::Value;

struct Watch {
    program: Child,
    events: Receiver<Value>,
}

fn start(db: &Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_quotalite"))
        .args(["watch", "--every", "20ms", "--db"])
        .arg(db)
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

impl Watch {
    fn start(db: &Path, limiter: &Limiter) -> Self {
        Self::begin(start(db, &["--json"]), limiter, "begun")
    }

    /// Waits until it tells of this key, which matches what it watches.
    fn begin(mut program: Child, limiter: &Limiter, begun: &str) -> Self {
        let out: ChildStdout = program.stdout.take().unwrap();
        let (tell, events) = channel();
        thread::spawn(move || {
            for line in BufReader::new(out).lines() {
                let event = serde_json::from_str(&line.unwrap()).unwrap();
                if tell.send(event).is_err() {
                    return;
                }
            }
        });
        let watch = Self { program, events };
        // It watches from its first look on, and that it has come says what it sees of a limit nobody else uses.
        limiter.define(Limit::new(begun).per_hour(1_000)).unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            limiter.acquire(begun).unwrap();
            if watch
                .events
                .recv_timeout(Duration::from_millis(200))
                .is_ok()
            {
                return watch;
            }
            assert!(Instant::now() < deadline, "it never told anything");
        }
    }

    /// Waits for an event, and skips what is not of this kind and key.
    #[track_caller]
    fn next(&self, event: &str, key: Option<&str>) -> Value {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let told = self.events.recv_timeout(left);
            let told = told.unwrap_or_else(|_| panic!("no `{event}` of {key:?}"));
            assert!(told["at"].is_string(), "{told}");
            if told["event"] == event && key.is_none_or(|key| told["key"] == key) {
                return told;
            }
        }
    }
}

impl Watch {
    /// What is told until an event of this key, but for charges.
    fn told_until(&self, event: &str, key: &str) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let next = self.events.recv_timeout(Duration::from_mins(1));
            let next = next.unwrap_or_else(|_| panic!("no `{event}` of {key}: {told:?}"));
            if next["event"] == event && next["key"] == key {
                return told;
            }
            if next["event"] != "charged" {
                told.push(next["event"].as_str().unwrap().to_owned());
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

#[test]
fn what_happens_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    let watch = Watch::start(&db, &limiter);
    let me = std::process::id();

    limiter.define(Limit::new("calls").per_hour(5)).unwrap();
    assert_eq!(watch.next("defined", Some("calls"))["definition"], "5/h");
    limiter.acquire(("calls", 3)).unwrap();
    let charged = watch.next("charged", Some("calls"));
    assert_eq!(
        (&charged["amount"], &charged["charges"]),
        (&3.into(), &1.into())
    );
    limiter.acquire(("calls", 2)).unwrap();
    watch.next("full", Some("calls"));
    let booking = limiter.book("calls").unwrap();
    let booked = watch.next("booked", Some("calls"));
    assert_eq!((&booked["amount"], &booked["pid"]), (&1.into(), &me.into()));
    drop(booking);
    watch.next("booking_gone", Some("calls"));
    let larger = Limit::new("calls").per_hour(9);
    limiter.define_or(larger, OnConflict::Replace).unwrap();
    assert_eq!(watch.next("changed", Some("calls"))["definition"], "9/h");
    watch.next("free", Some("calls"));
    limiter.pause("calls", Backoff::planned(HOUR / 6)).unwrap();
    assert!(watch.next("paused", Some("calls"))["until"].is_string());
    limiter.resume("calls").unwrap();
    watch.next("resumed", Some("calls"));
    for _ in 0..2 {
        limiter.reset("calls").unwrap();
        watch.next("reset", Some("calls"));
    }

    limiter.define(Limit::slots("gpu", 1)).unwrap();
    let permit = limiter
        .acquire(&Request::new().take("gpu", 1).id("job"))
        .unwrap();
    let granted = watch.next("granted", None);
    assert_eq!(
        (&granted["id"], &granted["pid"]),
        (&"job".into(), &me.into())
    );
    assert_eq!(granted["takes"][0]["key"], "gpu");
    thread::scope(|scope| {
        let waits = scope.spawn(|| limiter.acquire("gpu").map(drop));
        watch.next("waits", None);
        permit.settle::<&str>([]).unwrap();
        assert_eq!(watch.next("settled", None)["id"], "job");
        watch.next("waits_no_more", None);
        waits.join().unwrap().unwrap();
    });
    let permit = limiter.acquire("gpu").unwrap();
    let granted = watch.next("granted", None);
    drop(permit);
    assert_eq!(watch.next("released", None)["fence"], granted["fence"]);
    let ask = Request::new().take("gpu", 1).id("other");
    let permit = limiter.acquire(&ask).unwrap();
    assert_eq!(watch.next("granted", None)["id"], "other");
    permit.cancel().unwrap();
    assert_eq!(watch.next("cancelled", None)["id"], "other");
    let mut holds = Command::new(env!("CARGO_BIN_EXE_quotalite"))
        .args(["run", "--limit", "gpu", "--db"])
        .arg(&db)
        .args(["--", "cat"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(watch.next("granted", None)["pid"], holds.id());
    holds.kill().unwrap();
    holds.wait().unwrap();
    // What it ran goes on, and keeps the slot, until its input ends.
    drop(holds.stdin.take());
    assert_eq!(watch.next("owner_died", None)["pid"], holds.id());

    let policy = BreakerPolicy::default().minimum_calls(1).failure_rate(50);
    limiter.define(Limit::breaker("breaker", policy)).unwrap();
    watch.next("defined", Some("breaker"));
    limiter
        .acquire("breaker")
        .unwrap()
        .report(Report::failure())
        .unwrap();
    let opened = watch.next("breaker", Some("breaker"));
    assert_eq!(opened["state"], "open");
    assert_eq!(opened["reason"], "1 of 1 calls failed");
    limiter.remove("calls").unwrap();
    watch.next("removed", Some("calls"));
}

/// Every charge is told once, by sums that are exact, whenever transactions commit.
#[test]
fn the_sums_are_what_was_charged() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    let watch = Watch::start(&db, &limiter);
    let large = |key: &str| -> LimitBuilder { Limit::new(key).per_hour(1 << 40) };
    limiter.define(large("calls")).unwrap();
    watch.next("defined", Some("calls"));
    let workers = 3;
    let calls = 4_000;
    thread::scope(|scope| {
        for worker in 0..workers {
            let db = &db;
            scope.spawn(move || {
                let limiter = Limiter::open(db).unwrap();
                for _ in 0..calls {
                    limiter.acquire(("calls", worker + 1)).unwrap();
                }
            });
        }
    });
    // Charges of one instant in one transaction are one row.
    let expected = calls * (1..=workers).sum::<u64>();
    let mut told = 0;
    while told < expected {
        told += watch.next("charged", Some("calls"))["amount"]
            .as_u64()
            .unwrap();
    }
    limiter.acquire(("calls", 7)).unwrap();
    assert_eq!(watch.next("charged", Some("calls"))["amount"], 7);
    assert_eq!(told, expected);
}

#[test]
fn lines_are_for_people_and_end_with_their_reader() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(1_000)).unwrap();
    let mut program = start(&db, &["calls"]);
    let mut out = BufReader::new(program.stdout.take().unwrap());
    let mut line = String::new();
    thread::scope(|scope| {
        let reads = scope.spawn(|| out.read_line(&mut line).unwrap());
        while !reads.is_finished() {
            limiter.acquire(("calls", 5)).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(line.contains("  calls  charged "), "{line}");
    drop(out);
    // Nothing happens any more, and it ends all the same.
    let output = program.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stderr, b"");
}

/// The next look is an hour away.
#[test]
fn it_ends_at_once_with_its_reader() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    Limiter::open(&db).unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_quotalite"))
        .args(["watch", "--every", "1h", "--db"])
        .arg(&db)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // Most likely it has looked by then, and sleeps; if it has not, it ends all the same.
    thread::sleep(Duration::from_millis(500));
    drop(program.stdout.take());
    assert_eq!(program.wait().unwrap().code(), Some(0));
}

#[test]
fn a_pause_and_its_end_are_told_once() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(5)).unwrap();
    let watch = Watch::start(&db, &limiter);
    limiter.pause("calls", Backoff::planned(HOUR / 6)).unwrap();
    watch.told_until("paused", "calls");
    limiter.resume("calls").unwrap();
    assert_eq!(watch.told_until("resumed", "calls"), [""; 0]);
    limiter.define(Limit::new("end").per_hour(5)).unwrap();
    assert_eq!(watch.told_until("defined", "end"), [""; 0]);
}

#[test]
fn slots_that_are_taken_again_under_an_id_are_not_told_as_released() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::slots("gpu", 1)).unwrap();
    let watch = Watch::start(&db, &limiter);
    let ask = Request::new().take("gpu", 1).id("job");
    let permit = limiter.acquire(&ask).unwrap();
    let granted = watch.next("granted", None);
    drop(permit);
    assert_eq!(watch.next("abandoned", None)["fence"], granted["fence"]);
    let _permit = limiter.acquire(&ask).unwrap();
    let held = watch.next("held", None);
    assert_eq!(held["id"], "job");
    assert_ne!(held["fence"], granted["fence"]);
    limiter.define(Limit::new("end").per_hour(5)).unwrap();
    assert_eq!(watch.told_until("defined", "end"), [""; 0]);
}

/// Who has ended and leaves nothing but a permit under an id has not died, and who dies with a slot of another limit does not
/// concern who watches this one.
#[test]
fn only_deaths_that_concern_what_is_watched_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::slots("ours:gpu", 2)).unwrap();
    limiter.define(Limit::slots("theirs:gpu", 2)).unwrap();
    let watch = Watch::begin(start(&db, &["--json", "ours:*"]), &limiter, "ours:begun");
    let quotalite = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quotalite"));
        command.arg("--db").arg(&db).args(arguments);
        command
    };
    let waited = quotalite(&["wait", "ours:begun", "--id", "job"]).status();
    assert_eq!(waited.unwrap().code(), Some(0));
    assert_eq!(watch.next("granted", None)["id"], "job");
    let killed = |key: &str| {
        let mut holds = quotalite(&["run", "--limit", key, "--", "cat"]);
        let mut holds = holds.stdin(Stdio::piped()).spawn().unwrap();
        while limiter.usage(key).unwrap().held() == 0 {
            thread::sleep(Duration::from_millis(5));
        }
        holds.kill().unwrap();
        holds.wait().unwrap();
        drop(holds.stdin.take());
        holds.id()
    };
    killed("theirs:gpu");
    let died = killed("ours:gpu");
    let told = watch.next("owner_died", None);
    assert_eq!(told["pid"], died);
}

#[test]
fn patterns_that_concern_what_is_watched_are_told() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    let watch = Watch::begin(
        start(&db, &["--json", "tenant:a*"]),
        &limiter,
        "tenant:a:begun",
    );
    for pattern in ["tenant:b*", "user:*", "tenant:*"] {
        let limit = Limit::pattern(pattern).per_hour(5);
        limiter.define(limit).unwrap();
    }
    assert_eq!(watch.told_until("defined", "tenant:*"), [""; 0]);
    limiter.remove("tenant:*").unwrap();
    assert_eq!(watch.told_until("removed", "tenant:*"), [""; 0]);
}

#[test]
fn it_goes_on_while_the_file_is_locked() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(1_000)).unwrap();
    let mut program = start(&db, &["calls"]);
    let mut errors = BufReader::new(program.stderr.take().unwrap());
    let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
    thread::scope(|scope| {
        let begins = scope.spawn(|| lines.next().unwrap().unwrap());
        while !begins.is_finished() {
            limiter.acquire("calls").unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    });
    drop(limiter);
    let other = rusqlite::Connection::open(&db).unwrap();
    other.busy_timeout(Duration::ZERO).unwrap();
    let exclusive = "PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE";
    // It finds its turn between two looks.
    while other.execute_batch(exclusive).is_err() {
        thread::sleep(Duration::from_millis(3));
    }
    let mut said = String::new();
    errors.read_line(&mut said).unwrap();
    assert!(said.contains("was locked by others"), "{said}");
    drop(other);
    let limiter = Limiter::open(&db).unwrap();
    limiter.acquire(("calls", 500)).unwrap();
    let is_told =
        |line: io::Result<String>| line.unwrap().contains("  calls  charged 500 in 1 charge");
    assert!(lines.any(is_told));
    program.kill().unwrap();
    program.wait().unwrap();
}

/// Who watches all night does not lose it, and goes on with the keys that were there.
#[test]
fn more_keys_than_can_be_watched_are_told_when_they_come() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    let keys = |range: std::ops::Range<u64>| {
        let limits = range.map(|at| Limit::new(format!("key:{at:04}")).per_hour(100));
        limiter.define_all(limits, OnConflict::Fail).unwrap();
    };
    keys(2..1_000);
    let watch = Watch::start(&db, &limiter);
    keys(0..2);
    watch.next("too_many_keys", None);
    limiter.acquire("key:0000").unwrap();
    limiter.acquire("begun").unwrap();
    limiter.acquire(("key:0999", 3)).unwrap();
    assert_eq!(watch.next("charged", Some("key:0999"))["amount"], 3);
}

#[test]
fn more_keys_than_can_be_watched_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    let limits = (0..1_001).map(|at| Limit::new(format!("key:{at}")).per_second(1));
    limiter.define_all(limits, OnConflict::Fail).unwrap();
    let refused = start(&db, &[]).wait_with_output().unwrap();
    assert_eq!(refused.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("narrower"));
}
