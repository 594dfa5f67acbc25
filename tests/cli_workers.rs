//! The program `quotalite` beside workers that use the same file.
#![cfg(feature = "cli")]
mod support;

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quotalite::{Limiter, Request, rusqlite};
use serde_json::Value;
use support::shell::{LOOKS, document, done, program, run};

/// Tells workers that it is over, also where an assertion fails: the test would wait for them for ever.
struct EndsWorkers<'a>(&'a AtomicBool);

impl Drop for EndsWorkers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn looking_needs_no_lock_and_keeps_nobody_from_one() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "1000000/s"]);
    let limiter = Limiter::builder(&db)
        .busy_deadline(Duration::from_secs(2))
        .open()
        .unwrap();

    // Somebody has the write lock, and keeps it.
    let writer = rusqlite::Connection::open(&db).unwrap();
    writer.execute_batch("BEGIN IMMEDIATE").unwrap();
    for arguments in LOOKS {
        done(&db, arguments);
    }
    writer.execute_batch("ROLLBACK").unwrap();
    drop(writer);

    // And one that is stopped in the middle of looking again and again keeps nobody.
    let mut watches = program(&db)
        .args(["status", "--watch", "--every", "10ms", "--json"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(watches.id()).unwrap());
    for _ in 0..20 {
        kill(pid, Signal::SIGSTOP).unwrap();
        for _ in 0..50 {
            limiter.acquire("calls").unwrap();
        }
        kill(pid, Signal::SIGCONT).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    watches.kill().unwrap();
    watches.wait().unwrap();
}

#[test]
fn every_look_is_true_beside_workers_at_full_speed() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "200/s"]);
    done(&db, &["limits", "set", "slots", "--slots", "3"]);
    done(&db, &["limits", "set", "tenant:*", "50/s"]);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = EndsWorkers(&is_over);
        for worker in 0..2 {
            let (db, is_over) = (&db, &is_over);
            scope.spawn(move || {
                let limiter = Limiter::open(db).unwrap();
                let mut round = 0;
                while !is_over.load(Ordering::Relaxed) {
                    round += 1;
                    let tenant = format!("tenant:{}", (round + worker) % 5);
                    let _slot = limiter.acquire("slots").unwrap();
                    let _decision = limiter.try_acquire(tenant.as_str()).unwrap();
                    let _decision = limiter.try_acquire("calls").unwrap();
                }
            });
        }
        for _ in 0..5 {
            for arguments in LOOKS {
                let ended = run(&db, &[arguments, &["--json"]].concat());
                assert!(
                    matches!(ended.code, Some(0 | 75)),
                    "{arguments:?}: {}",
                    ended.err
                );
                let _parsed: Value = serde_json::from_str(&ended.out).unwrap();
            }
            let status = document(&db, &["status"]);
            for limit in status["limits"].as_array().unwrap() {
                for part in limit["parts"].as_array().unwrap() {
                    let number = |name: &str| part[name].as_u64().unwrap();
                    assert!(number("used") <= number("capacity"), "{limit}");
                    assert!(
                        number("available") <= number("capacity") - number("used"),
                        "{limit}"
                    );
                }
            }
        }
    });
}

#[test]
fn what_is_waited_for_settled_and_resumed_beside_workers_counts_once() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    // So much that nobody waits for it, even while it starts slowly after a pause.
    done(&db, &["limits", "set", "tokens", "1000000000/h"]);
    done(&db, &["limits", "set", "slots", "--slots", "2"]);
    let spent = AtomicU64::new(0);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _ends = EndsWorkers(&is_over);
        for _ in 0..2 {
            scope.spawn(|| {
                let limiter = Limiter::open(&db).unwrap();
                let request = Request::new().take("slots", 1).take("tokens", 3);
                while !is_over.load(Ordering::Relaxed) {
                    let permit = limiter.acquire(&request).unwrap();
                    permit.settle([("tokens", 1)]).unwrap();
                    spent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..8 {
            let id = format!("job-{round}");
            let waits = ["wait", "tokens=50", "slots", "--id", &id, "--detach", "10m"];
            assert_eq!(done(&db, &waits).trim(), id);
            let settled = document(&db, &["settle", &id, "tokens=20"]);
            assert_eq!(settled["outcome"], "settled");
            assert_eq!(run(&db, &["settle", &id]).code, Some(1));
            // Nobody would be admitted within the time that a test has.
            done(&db, &["pause", "tokens", "15m"]);
            assert_eq!(done(&db, &["resume", "tokens"]), "tokens: resumed\n");
            let before = spent.load(Ordering::Relaxed);
            let deadline = Instant::now() + Duration::from_mins(1);
            while spent.load(Ordering::Relaxed) < before + 4 {
                assert!(Instant::now() < deadline, "nobody goes on after {id}");
                thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let usage = document(&db, &["usage", "tokens"]);
    let spent = spent.load(Ordering::Relaxed) + 8 * 20;
    assert_eq!(usage["parts"][0]["used"], spent, "{usage}");
    assert_eq!(document(&db, &["usage", "slots"])["parts"][0]["used"], 0);
}

#[test]
fn what_is_rate_limited_pauses_the_others_also_where_nobody_waits() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/s"]);
    let fails = [
        "run",
        "--limit",
        "calls",
        "--within",
        "0",
        "--retry-match",
        "429",
        "--",
    ];
    let ended = run(
        &db,
        &[&fails[..], &["sh", "-c", "echo HTTP 429; exit 9"]].concat(),
    );
    assert_eq!(ended.code, Some(9), "{}", ended.err);
    assert_eq!(run(&db, &["peek", "calls"]).code, Some(75));
    assert!(done(&db, &["status"]).contains("paused"));
}
