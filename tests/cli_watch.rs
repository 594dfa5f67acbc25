//! `quotalite watch`: what happens is told, in its order, and once.
#![cfg(feature = "cli")]

use std::io::{BufRead, BufReader};
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
        let mut program = start(db, &["--json"]);
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
        limiter.define(Limit::new("begun").per_hour(1_000)).unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            limiter.acquire("begun").unwrap();
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
        let deadline = Instant::now() + Duration::from_secs(60);
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
