//! The program `quotalite`: what its commands do.
#![cfg(feature = "cli")]
mod support;

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use quotalite::{BreakerPolicy, Limit, Limiter, Report, Request};
use regex::Regex;
use serde_json::{Value, json};
use support::shell::{document, done, program, run};

#[test]
fn charges_are_asked_for_since_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/h"]);
    done(&db, &["wait", "calls=3"]);
    for (since, total) in [
        ("1h", 3),
        ("2026-07-01T12:00:00Z", 3),
        ("2026-07-01 12:00", 3),
        ("9999-07-01T12:00:00Z", 0),
    ] {
        let charges = document(&db, &["charges", "calls", "--since", since]);
        assert_eq!(charges["total"], total, "{since}");
    }
    let charges = done(
        &db,
        &["charges", "calls", "--since", "9999-07-01T12:00:00Z"],
    );
    assert_eq!(charges, "no charges\n");
    done(&db, &["limits", "set", "gpu", "--slots", "3"]);
    done(
        &db,
        &["limits", "set", "search", "--burst", "3", "--refill", "1/s"],
    );
    assert!(done(&db, &["charges", "gpu"]).contains("`quotalite permits`"));
    assert!(done(&db, &["charges", "search"]).starts_with("a bucket knows how full it is"));
}

#[test]
fn a_permit_goes_from_wait_to_settle_through_its_id() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "tokens", "1000/h"]);
    done(&db, &["limits", "set", "gpu", "--slots", "1"]);
    let id = done(&db, &["wait", "tokens=600", "gpu", "--detach", "10m"]);
    let id = id.trim();
    assert_eq!(run(&db, &["wait", "gpu", "--within", "0"]).code, Some(75));
    assert_eq!(
        run(&db, &["wait", "tokens=500", "--within", "1s"]).code,
        Some(124)
    );
    assert_eq!(run(&db, &["peek", "gpu"]).code, Some(75));
    assert_eq!(run(&db, &["wait", "tokens=1001"]).code, Some(64));
    let permits = document(&db, &["permits", "gpu"]);
    assert_eq!(permits["permits"][0]["id"], id);
    assert_eq!(permits["permits"][0]["state"], "detached");
    let settled = document(&db, &["settle", id, "tokens=100"]);
    assert_eq!(settled["outcome"], "settled");
    assert_eq!(document(&db, &["usage", "tokens"])["parts"][0]["used"], 100);
    assert_eq!(run(&db, &["peek", "gpu", "tokens=900"]).code, Some(0));
    let again = run(&db, &["settle", id]);
    assert_eq!((again.code, again.out.as_str()), (Some(1), ""));
    assert!(
        again.err.contains("settled or cancelled before"),
        "{}",
        again.err
    );
    assert_eq!(
        document(&db, &["permits"])["permits"]
            .as_array()
            .unwrap()
            .len(),
        0
    );
    assert_eq!(
        document(&db, &["permits", "--all"])["permits"][0]["state"],
        "settled"
    );

    // Under an id, what is asked for twice is charged once.
    let first = document(&db, &["wait", "tokens=5", "--id", "job", "--detach", "1m"]);
    let second = document(&db, &["wait", "tokens=5", "--id", "job", "--detach", "1m"]);
    assert_eq!(
        (&first["resumed"], &second["resumed"]),
        (&Value::Bool(false), &Value::Bool(true))
    );
    assert_eq!(document(&db, &["usage", "tokens"])["parts"][0]["used"], 105);
    done(&db, &["cancel", "job"]);
    assert_eq!(document(&db, &["charges", "tokens"])["total"], 100);
    let nobody = run(&db, &["cancel", "nobody"]);
    assert_eq!(nobody.code, Some(1));
    assert!(
        nobody.err.contains("no permit `nobody` is known"),
        "{}",
        nobody.err
    );
}

#[test]
fn whoever_waits_is_admitted_when_its_turn_comes() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "gpu", "--slots", "1"]);
    let limiter = Limiter::open(&db).unwrap();
    let permit = limiter.acquire("gpu").unwrap();
    let mut waits = program(&db).args(["wait", "gpu"]).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(30);
    while limiter.usage("gpu").unwrap().waiting() == 0 {
        assert!(Instant::now() < deadline, "it never came in line");
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(waits.try_wait().unwrap(), None);
    let explained = document(&db, &["explain", "gpu"]);
    let limit = &explained["limits"][0];
    assert_eq!(limit["permits"][0]["pid"], std::process::id());
    assert_eq!(limit["waiting"][0]["pid"], waits.id());
    drop(permit);
    assert!(waits.wait().unwrap().success());
}

#[test]
fn explain_says_what_stands_in_the_way_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::new("calls").per_hour(10)).unwrap();
    limiter.define(Limit::slots("gpu", 2)).unwrap();
    limiter.define(Limit::new("quiet").per_hour(10)).unwrap();
    let policy = BreakerPolicy::default().minimum_calls(1).failure_rate(50);
    limiter.define(Limit::breaker("breaker", policy)).unwrap();
    let _call = limiter.acquire(("calls", 7)).unwrap();
    let _holds = limiter.acquire(("gpu", 2)).unwrap();
    limiter
        .acquire("breaker")
        .unwrap()
        .report(Report::failure())
        .unwrap();
    done(&db, &["pause", "quiet", "5m"]);

    let now = run(&db, &["explain", "calls=3"]);
    assert_eq!(now.code, Some(0));
    assert!(
        now.out.starts_with("It would be admitted now."),
        "{}",
        now.out
    );
    let text = run(&db, &["explain", "calls=4", "gpu", "quiet", "breaker"]);
    assert_eq!(text.code, Some(75));
    for part in [
        "It would be refused now",
        "10/h: 7 of 10 used, 3 available, 4 wanted",
        "largest charges that count:\n    7 at",
        "only under an id",
        "2 of 2 slots held, 1 wanted",
        &format!("held by process {}", std::process::id()),
        "lets nobody in, and will in ",
        "paused since",
    ] {
        assert!(text.out.contains(part), "{part}: {}", text.out);
    }
    done(&db, &["resume", "quiet"]);
    assert_eq!(run(&db, &["explain", "quiet"]).code, Some(0));
    assert_eq!(run(&db, &["explain", "calls=11"]).code, Some(64));
}

#[test]
fn explain_tells_a_breaker_from_slots() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    let policy = BreakerPolicy::default().minimum_calls(1).probes(2);
    let breaker = |open_for| Limit::breaker("calls", policy.open_for(open_for));
    limiter.define(breaker(Duration::from_hours(1))).unwrap();
    let closed = done(&db, &["explain", "calls"]);
    assert!(closed.contains("  lets calls through\n"), "{closed}");
    let fail = || {
        let permit = limiter.acquire("calls").unwrap();
        permit.report(Report::failure()).unwrap();
    };
    let refused = |parts: &[&str]| {
        let ended = run(&db, &["explain", "calls"]);
        assert_eq!(ended.code, Some(75));
        for part in parts {
            assert!(ended.out.contains(part), "{part}: {}", ended.out);
        }
        for part in ["slot", "room", "paused"] {
            assert!(!ended.out.contains(part), "{part}: {}", ended.out);
        }
    };
    fail();
    refused(&[
        "and admitted in ",
        "  lets nobody through, and will in ",
        "breaker open since",
        "1 of 1 calls failed; nobody before",
        "then 2 probes at a time: `quotalite resume` closes it",
    ]);
    assert!(
        Regex::new("open (1h|59m.*): 1 of 1")
            .unwrap()
            .is_match(&done(&db, &["status"]))
    );
    done(&db, &["resume", "calls"]);

    limiter
        .update("calls", |_| breaker(Duration::from_millis(1)))
        .unwrap();
    fail();
    let _first = limiter.acquire("calls").unwrap();
    let half = done(&db, &["explain", "calls"]);
    assert!(half.contains("  lets a probe through\n"), "{half}");
    assert!(
        half.contains("2 probes at a time, 1 under way, 0 of 2 succeeded"),
        "{half}"
    );
    let second = limiter.acquire("calls").unwrap();
    second.report(Report::success()).unwrap();
    refused(&[
        "and admitted when a probe has ended: calls stands in the way",
        "  lets no more probes through, and will when a probe has ended",
        "2 probes at a time, 2 under way, 1 of 2 succeeded: one that fails opens it again",
    ]);
}

#[test]
fn who_has_spent_what_is_told_where_the_file_knows_it() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/h"]);
    let limiter = Limiter::open(&db).unwrap();
    let request = Request::new().take("calls", 4).id("nightly");
    let _open = limiter.acquire(&request).unwrap();
    done(&db, &["wait", "calls=3", "--id", "ended"]);
    done(&db, &["settle", "ended", "calls=2"]);
    done(&db, &["wait", "calls"]);
    let me = std::process::id();
    let explained = run(&db, &["explain", "calls=9"]).out;
    for part in [
        format!(": process {me}, id nightly\n"),
        ": id ended\n".to_owned(),
        "only under an id".to_owned(),
    ] {
        assert!(explained.contains(&part), "{part}: {explained}");
    }
    let charges = document(&db, &["charges", "calls"]);
    let by = |at: usize| {
        (
            &charges["charges"][at]["ids"],
            &charges["charges"][at]["pids"],
        )
    };
    assert_eq!(by(0), (&json!(["nightly"]), &json!([me])));
    assert_eq!(by(1), (&json!(["ended"]), &json!([])));
    assert_eq!(by(2), (&json!([]), &json!([])));
    let largest = document(&db, &["explain", "calls=9"]);
    assert_eq!(
        largest["limits"][0]["largest"][0]["ids"],
        json!(["nightly"])
    );
    assert!(done(&db, &["charges", "calls"]).contains("id nightly"));
    let last = document(&db, &["charges", "calls", "--max", "1"]);
    assert_eq!(
        last["charges"].as_array().unwrap().as_slice(),
        [charges["charges"][2].clone()]
    );
}

#[test]
fn pauses_are_seen_and_lifted() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/s"]);
    let paused = document(&db, &["pause", "calls", "--strike"]);
    assert_eq!(
        (&paused["paused"], &paused["strikes"]),
        (&Value::Bool(true), &Value::from(1))
    );
    let cut = run(&db, &["pause", "calls", "2h"]);
    assert_eq!(cut.code, Some(0));
    assert!(cut.err.contains("caps its pauses"), "{}", cut.err);
    let left = document(&db, &["status"])["limits"][0]["paused_for_s"]
        .as_f64()
        .unwrap();
    assert!((890.0..=900.0).contains(&left), "{left}");
    assert!(
        done(&db, &["status"]).contains("paused 1"),
        "in the table, too"
    );
    assert_eq!(done(&db, &["resume", "calls"]), "calls: resumed\n");
    let status = &document(&db, &["status"])["limits"][0];
    assert_eq!(status["paused_for_s"], Value::Null);
    done(&db, &["limits", "set", "slow", "10/h"]);
    done(&db, &["pause", "slow", "1m"]);
    done(&db, &["resume", "slow"]);
    let slowly = done(&db, &["status", "slow"]);
    assert!(slowly.contains("starts slowly"), "{slowly}");
    let explained = done(&db, &["explain", "slow"]);
    assert!(
        explained.contains("starts slowly after a pause"),
        "{explained}"
    );
    assert_eq!(done(&db, &["resume", "calls"]), "calls: was not paused\n");
    assert_eq!(run(&db, &["pause", "calls"]).code, Some(64));
}

#[test]
fn the_program_documents_itself() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(
            done(&db, &["completions", shell]).contains("quotalite"),
            "{shell}"
        );
    }
    let pages = directory.path().join("man");
    done(&db, &["man", pages.to_str().unwrap()]);
    for page in [
        "quotalite.1",
        "quotalite-status.1",
        "quotalite-limits-set.1",
    ] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH"), "{page}");
    }
    assert_eq!(run(&db, &["man", "/dev/null/man"]).code, Some(125));
    let help = done(&db, &["--help"]);
    assert!(help.contains("Exit codes:"), "{help}");
    let few = document(&db, &["bench", "--each", "40ms"]);
    let lines = few["lines"].as_array().unwrap();
    assert_eq!(lines.len(), 8);
    for line in lines {
        assert!(line["calls_per_s"].as_f64().unwrap() > 0.0, "{line}");
    }
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        1,
        "its file is gone again"
    );
}

#[test]
fn what_those_in_line_wait_for_is_not_available() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let limiter = Limiter::open(&db).unwrap();
    limiter.define(Limit::slots("gpu", 4)).unwrap();
    limiter.define(Limit::new("calls").per_hour(9)).unwrap();
    let held = limiter.acquire(("gpu", 2)).unwrap();
    let available = |key: &str| document(&db, &["usage", key])["available"].clone();
    assert_eq!([available("gpu"), available("calls")], [2, 9]);
    std::thread::scope(|scope| {
        let ask = quotalite::Request::new().take("gpu", 3).take("calls", 4);
        let wanting = limiter.clone();
        scope.spawn(move || wanting.acquire(&ask).map(drop));
        let in_line = || document(&db, &["usage", "gpu"])["waiting"] == 1;
        while !in_line() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // What it is short of is kept for it; what it is not short of, others may use.
        assert_eq!([available("gpu"), available("calls")], [0, 9]);
        let parts = document(&db, &["usage", "gpu"])["parts"][0]["available"].clone();
        assert_eq!(parts, 0);
        assert_eq!(run(&db, &["peek", "gpu"]).code, Some(75));
        assert_eq!(run(&db, &["peek", "calls=9"]).code, Some(0));
        drop(held);
    });
    assert_eq!([available("gpu"), available("calls")], [4, 5]);
}

#[test]
fn a_pause_says_why_it_is_not_as_long_as_was_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(
        &db,
        &["limits", "set", "calls", "10/s", "--pause-cap", "1h"],
    );
    assert_eq!(
        done(&db, &["pause", "calls", "30m"]),
        "calls: paused for 30m\n"
    );
    let shorter = run(&db, &["pause", "calls", "5m"]);
    let is_about = |out: &str, times: [&str; 2]| {
        let is = |time: &str| out == format!("calls: paused for {time}\n");
        assert!(times.into_iter().any(is), "{out}");
    };
    // Moments have gone by.
    is_about(&shorter.out, ["30m", "29m 59s"]);
    assert!(
        shorter.err.contains("paused for longer before"),
        "{}",
        shorter.err
    );
    let longer = run(&db, &["pause", "calls", "2h"]);
    is_about(&longer.out, ["1h", "59m 59s"]);
    assert!(
        longer.err.contains("limits set calls --pause-cap \"2h\""),
        "{}",
        longer.err
    );
}

#[test]
fn who_waits_for_what_was_cancelled_ends_and_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "1/5s"]);
    done(&db, &["wait", "calls"]);
    let mut waits = program(&db);
    let mut waits = waits
        .args(["wait", "calls", "--id", "mine"])
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while document(&db, &["permits"])["permits"][0]["state"] != "booked" {
        assert!(Instant::now() < deadline, "it never booked");
    }
    done(&db, &["cancel", "mine"]);
    assert_eq!(waits.wait().unwrap().code(), Some(1));
    let used = document(&db, &["usage", "calls"])["parts"][0]["used"].clone();
    assert_eq!(used, 0);
    // Whoever asks for what has ended is told.
    done(&db, &["wait", "calls", "--id", "done"]);
    done(&db, &["settle", "done"]);
    let again = document(&db, &["wait", "calls", "--id", "done"]);
    assert_eq!(
        (&again["resumed"], &again["ended"]),
        (&json!(true), &json!(true))
    );
    let detached = run(&db, &["wait", "calls", "--id", "done", "--detach", "1h"]);
    assert_eq!(detached.code, Some(1), "{}", detached.err);
}
