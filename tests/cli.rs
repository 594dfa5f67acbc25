//! The program `quotalite`, as a process beside workers that use the same file.
#![cfg(feature = "cli")]

use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use quotalite::{BreakerPolicy, Limit, Limiter, Report, Request, rusqlite};
use regex::Regex;
use serde_json::{Value, json};

fn program(db: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_quotalite"));
    program
        .env("QUOTALITE_DB", db)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    program
}

struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn run(db: &Path, arguments: &[&str]) -> Ended {
    ended(program(db).args(arguments).output().unwrap())
}

/// Runs what has to succeed.
#[track_caller]
fn done(db: &Path, arguments: &[&str]) -> String {
    let ended = run(db, arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.err);
    ended.out
}

#[track_caller]
fn document(db: &Path, arguments: &[&str]) -> Value {
    let ended = run(db, &[arguments, &["--json"]].concat());
    serde_json::from_str(&ended.out)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}{}", ended.out, ended.err))
}

/// All commands that only look, on the limit `calls`.
const LOOKS: [&[&str]; 9] = [
    &["status"],
    &["status", "c*", "--max", "1"],
    &["usage", "calls"],
    &["limits", "list"],
    &["limits", "show", "calls"],
    &["charges", "calls", "--since", "1m"],
    &["permits", "--all"],
    &["peek", "calls=2"],
    &["explain", "calls=2"],
];

#[test]
fn limits_are_set_shown_changed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    assert_eq!(
        done(
            &db,
            &["limits", "set", "calls", "10/s, 300/min", "--pad", "50ms"]
        ),
        "calls: 10/s, 300/min, pad 50ms (created)\n"
    );
    done(
        &db,
        &["limits", "set", "calls", "10/s, 300/min", "--pad", "50ms"],
    );
    done(
        &db,
        &["limits", "set", "gpu", "--slots", "8", "--timeout", "10m"],
    );
    done(
        &db,
        &[
            "limits", "set", "search", "--burst", "100", "--refill", "10/s",
        ],
    );
    done(
        &db,
        &[
            "limits",
            "set",
            "tenant:*:tokens",
            "100000/d",
            "--unit",
            "tokens",
        ],
    );
    assert_eq!(
        done(&db, &["limits", "list"]),
        "\
KEY              DEFINITION
calls            10/s, 300/min, pad 50ms
gpu              8 slots, timeout 10min
search           burst 100, refill 10/s
tenant:*:tokens  100000 tokens/d          pattern
"
    );
    let kept = run(&db, &["limits", "set", "calls", "20/s", "--no-replace"]);
    assert_eq!(kept.code, Some(64));
    assert!(
        kept.err
            .contains("`calls: 10/s, 300/min, pad 50ms`, not as `calls: 20/s`"),
        "{}",
        kept.err
    );
    assert_eq!(
        done(&db, &["limits", "set", "calls", "20/s"]),
        "calls: 20/s, pad 50ms (replaced: it was 10/s, 300/min, pad 50ms)\n"
    );
    let shown = document(&db, &["limits", "show", "calls"]);
    let changes = shown["changes"].as_array().unwrap();
    let actions: Vec<_> = changes
        .iter()
        .map(|change| change["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["replaced", "created"]);
    assert_eq!(changes[0]["program"], "quotalite");
    let of_pattern = document(&db, &["limits", "show", "tenant:7:tokens"]);
    assert_eq!(of_pattern["definition"], "100000 tokens/d");

    // Nobody is asked who is not at a terminal.
    assert_eq!(run(&db, &["limits", "remove", "gpu"]).code, Some(64));
    assert_eq!(
        done(&db, &["limits", "remove", "gpu", "--yes"]),
        "gpu: 8 slots, timeout 10min (removed)\n"
    );
    let held = Limiter::open(&db).unwrap();
    held.define(Limit::slots("held", 1)).unwrap();
    let _permit = held.acquire("held").unwrap();
    let refused = run(&db, &["limits", "remove", "held", "--yes"]);
    assert_eq!(refused.code, Some(64));
    assert!(refused.err.contains("--force"), "{}", refused.err);
    done(&db, &["limits", "remove", "held", "--yes", "--force"]);
}

#[test]
fn a_change_keeps_what_it_does_not_name() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "20/s", "--pad", "50ms"]);
    done(
        &db,
        &["limits", "set", "gpu", "--slots", "8", "--timeout", "10m"],
    );
    done(
        &db,
        &[
            "limits",
            "set",
            "tenant:*:tokens",
            "100000/d",
            "--unit",
            "tokens",
        ],
    );
    assert_eq!(
        done(
            &db,
            &[
                "limits",
                "set",
                "calls",
                "20/s",
                "--overage",
                "charge",
                "--pad",
                "0"
            ]
        ),
        "calls: 20/s, overage charge (replaced: it was 20/s, pad 50ms)\n"
    );
    assert_eq!(
        done(&db, &["limits", "set", "gpu", "--slots", "9"]),
        "gpu: 9 slots, timeout 10min (replaced: it was 8 slots, timeout 10min)\n"
    );
    assert_eq!(
        done(&db, &["limits", "set", "gpu", "--slots", "8"])
            .matches("timeout")
            .count(),
        2
    );
    // A key that a pattern has limited until now is defined by itself.
    assert_eq!(
        done(&db, &["limits", "set", "tenant:1:tokens", "5/d"]),
        "tenant:1:tokens: 5/d (created)\n"
    );
    assert_eq!(
        done(&db, &["limits", "set", "tenant:*:tokens", "200000/d"]),
        "tenant:*:tokens: 200000 tokens/d (replaced: it was 100000 tokens/d)\n"
    );
}

#[test]
fn a_file_of_limits_is_applied_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let file = directory.path().join("limits.toml");
    fs::write(
        &file,
        "[limits.a]\nrates = '10/s'\n[limits.b]\nrates = 'many'\n",
    )
    .unwrap();
    let refused = run(&db, &["limits", "apply", file.to_str().unwrap()]);
    assert_eq!(refused.code, Some(64));
    assert!(refused.err.contains("limits.toml:4"), "{}", refused.err);
    assert!(!db.exists(), "nothing is made for a bad file");
    fs::write(&file, "[limits.a]\nrates = '10/s'\n[limits.b]\nslots = 2\n").unwrap();
    assert_eq!(
        done(&db, &["limits", "apply", file.to_str().unwrap()]),
        "a: 10/s (created)\nb: 2 slots (created)\n"
    );
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
    assert_eq!(run(&db, &["cancel", "nobody"]).code, Some(1));
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
}

#[test]
fn what_stands_in_a_file_steers_no_terminal() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/h"]);
    done(&db, &["wait", "calls=10", "--id", "job", "--detach", "1h"]);
    done(&db, &["limits", "set", "tenant:*", "10/h"]);
    done(&db, &["wait", "tenant:7"]);
    // Programs were written down as they were called, and somebody else may have written the rest.
    let evil = "\u{1b}]0;title\u{7}\u{9b}2J\u{202e}\u{7f}\rx";
    let write = |sql: &str| {
        let file = rusqlite::Connection::open(&db).unwrap();
        file.execute(sql, [evil]).unwrap();
    };
    write("UPDATE limit_change SET program = ?1 || char(10)");
    write("UPDATE permit SET id = id || ?1");
    let colours = Regex::new("\u{1b}\\[[0-9;]*m").unwrap();
    let check = |arguments: &[&str]| {
        for more in [&[][..], &["--json"], &["--color", "always"]] {
            let ended = run(&db, &[arguments, more].concat());
            let printed = ended.out + &ended.err;
            let printed = colours.replace_all(&printed, "");
            let steers = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
            assert!(!printed.contains(steers), "{arguments:?}: {printed:?}");
        }
    };
    let id = format!("job{evil}");
    let looks: [&[&str]; 6] = [
        &["status"],
        &["limits", "show", "calls"],
        &["charges", "calls"],
        &["permits"],
        &["explain", "calls"],
        &["usage", &format!("nobody{evil}")],
    ];
    for arguments in looks {
        check(arguments);
    }
    let shown = document(&db, &["limits", "show", "calls"]);
    assert_eq!(shown["changes"][0]["program"], format!("{evil}\n"));
    assert!(done(&db, &["limits", "show", "calls"]).contains("?]0;title??2J???x?"));
    assert_eq!(document(&db, &["permits"])["permits"][0]["id"], id);
    write("UPDATE pattern_key SET key = key || ?1");
    looks.into_iter().for_each(check);
    write("UPDATE limit_definition SET key = key || ?1");
    looks.into_iter().for_each(check);
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
    assert_eq!(done(&db, &["resume", "calls"]), "calls: was not paused\n");
    assert_eq!(run(&db, &["pause", "calls"]).code, Some(64));
}

#[test]
fn misuse_is_told_and_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/s"]);
    let before = done(&db, &["limits", "list"]);
    for (arguments, part) in [
        (&["usage", "nobody"][..], "limit `nobody` is not defined"),
        (&["charges", "nobody"], "not defined"),
        (&["permits", "nobody"], "not defined"),
        (&["wait", "calls=0"], "the amount of `calls` is zero"),
        (&["wait", "calls", "calls"], "`calls`"),
        (&["wait", "calls=11"], "never admits 11"),
        (&["wait"], "required"),
        (&["peek", "=3"], "it names no limit"),
        (&["wait", "calls", "--within", "soon"], "soon"),
        (&["wait", "calls", "--within", "30"], "of what?"),
        (&["limits", "set", "calls"], "required"),
        (&["limits", "set", "calls", "ten a second"], "wrong at byte"),
        (
            &["limits", "set", "calls", "--slots", "3"],
            "remove it first",
        ),
        (
            &["limits", "set", "a", "1/s", "--slots", "3"],
            "cannot be used with",
        ),
        (&["limits", "set", "b", "--burst", "3"], "--refill"),
        (
            &[
                "limits",
                "set",
                "b",
                "--burst",
                "3",
                "--refill",
                "1/s, 2/min",
            ],
            "at one rate",
        ),
        (&["limits", "remove", "nobody", "--yes"], "not defined"),
        (&["pause", "nobody", "1s"], "not defined"),
        (&["sing"], "unrecognized subcommand"),
    ] {
        let ended = run(&db, arguments);
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains(part), "{arguments:?}: {}", ended.err);
        assert_eq!(ended.out, "", "{arguments:?}");
    }
    assert_eq!(done(&db, &["limits", "list"]), before);
    let mut nameless = program(&db);
    let nameless = ended(
        nameless
            .env_remove("QUOTALITE_DB")
            .arg("status")
            .output()
            .unwrap(),
    );
    assert_eq!(nameless.code, Some(64));
    assert!(nameless.err.contains("QUOTALITE_DB"), "{}", nameless.err);
}

#[test]
fn looking_makes_no_file_and_migrates_none() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let names = || fs::read_dir(directory.path()).unwrap().count();
    let writes: [&[&str]; 5] = [
        &["wait", "calls"],
        &["pause", "calls", "1s"],
        &["resume", "calls"],
        &["settle", "id"],
        &["limits", "remove", "calls", "--yes"],
    ];
    for arguments in LOOKS.iter().chain(&writes) {
        let ended = run(&db, arguments);
        assert_eq!(ended.code, Some(125), "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains("No such file"), "{}", ended.err);
        assert_eq!(names(), 0, "{arguments:?}");
    }
    drop(Limiter::open(&db).unwrap());
    let set = |sql: &str| {
        let connection = rusqlite::Connection::open(&db).unwrap();
        connection.execute_batch(sql).unwrap();
    };
    let version = || -> i64 {
        let connection = rusqlite::Connection::open(&db).unwrap();
        connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap()
    };
    for (schema, part) in [(3, "brought up to date"), (99, "schema version 99")] {
        set(&format!("PRAGMA user_version = {schema}"));
        for arguments in LOOKS {
            let ended = run(&db, arguments);
            assert_eq!(ended.code, Some(125), "{arguments:?}: {}", ended.err);
            assert!(ended.err.contains(part), "{arguments:?}: {}", ended.err);
        }
        assert_eq!(version(), schema);
    }
}

#[test]
fn a_damaged_or_locked_away_file_is_an_error_with_a_way_on() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    fs::write(&db, [7; 8_192]).unwrap();
    for arguments in LOOKS {
        let ended = run(&db, arguments);
        assert_eq!(ended.code, Some(125), "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains("doctor"), "{arguments:?}: {}", ended.err);
    }
    assert_eq!(fs::read(&db).unwrap(), [7; 8_192]);
    fs::remove_file(&db).unwrap();
    done(&db, &["limits", "set", "calls", "10/s"]);
    // Root may read everything; somebody else may not.
    if nix::unistd::geteuid().is_root() {
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let path = directory.path().join("program");
        fs::copy(env!("CARGO_BIN_EXE_quotalite"), &path).unwrap();
        for arguments in LOOKS {
            let mut other = Command::new(&path);
            other
                .uid(65_534)
                .gid(65_534)
                .env("QUOTALITE_DB", &db)
                .args(arguments);
            let ended = ended(other.output().unwrap());
            assert_eq!(ended.code, Some(125), "{arguments:?}: {}", ended.err);
            assert!(ended.err.contains("limits.db"), "{}", ended.err);
        }
    } else {
        fs::set_permissions(&db, fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(run(&db, &["status"]).code, Some(125));
    }
}

#[test]
fn a_full_disk_is_an_error_and_the_file_as_before() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/s"]);
    let mut traced = Command::new("strace");
    traced
        .args([
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "inject=pwrite64:error=ENOSPC",
            "--",
        ])
        .arg(env!("CARGO_BIN_EXE_quotalite"))
        .args(["wait", "calls"])
        .env("QUOTALITE_DB", &db);
    let Ok(full) = traced.output() else {
        return eprintln!("there is no strace: not tested");
    };
    let full = ended(full);
    assert_eq!(full.code, Some(125), "{}", full.err);
    assert!(full.err.contains("limits.db"), "{}", full.err);
    assert_eq!(document(&db, &["charges", "calls"])["total"], 0);
    // What is printed can fail, too.
    let nowhere = fs::File::options().write(true).open("/dev/full").unwrap();
    let unprinted = ended(program(&db).arg("status").stdout(nowhere).output().unwrap());
    assert_eq!(unprinted.code, Some(125));
    assert!(unprinted.err.contains("printing"), "{}", unprinted.err);
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_without_a_word() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/s"]);
    let mut watches = program(&db)
        .args(["status", "--watch", "--every", "10ms"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut some = [0; 10];
    let mut out = watches.stdout.take().unwrap();
    out.read_exact(&mut some).unwrap();
    drop(out);
    let ended = ended(watches.wait_with_output().unwrap());
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
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
        is_over.store(true, Ordering::Relaxed);
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
        is_over.store(true, Ordering::Relaxed);
    });
    let usage = document(&db, &["usage", "tokens"]);
    let spent = spent.load(Ordering::Relaxed) + 8 * 20;
    assert_eq!(usage["parts"][0]["used"], spent, "{usage}");
    assert_eq!(document(&db, &["usage", "slots"])["parts"][0]["used"], 0);
}

#[test]
fn it_fits_a_terminal_of_40_columns_and_has_colour_only_there() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let key = "global:llm:a-provider:a-model-with-a-long-name:rpm";
    done(&db, &["limits", "set", key, "10/s, 300/min"]);
    done(&db, &["wait", &format!("{key}=5")]);
    let on_terminal = |columns: u32, variables: &[(&str, &str)]| {
        let quotalite = env!("CARGO_BIN_EXE_quotalite");
        let line = format!("stty rows 24 cols {columns}; '{quotalite}' status");
        let mut script = Command::new("script");
        script
            .args(["-qec", &line, "/dev/null"])
            .env("QUOTALITE_DB", &db);
        script.env("TERM", "xterm-256color").env_remove("NO_COLOR");
        script.envs(variables.iter().copied()).stdin(Stdio::null());
        let ended = ended(script.output().ok()?);
        assert_eq!(ended.code, Some(0), "{}", ended.out);
        Some(ended.out)
    };
    let Some(plain) = on_terminal(40, &[("NO_COLOR", "1")]) else {
        return eprintln!("there is no script(1): not tested");
    };
    assert!(!plain.contains('\x1b'), "{plain:?}");
    assert!(plain.contains("global:llm:"), "{plain}");
    for line in plain.lines() {
        assert!(line.trim_end().chars().count() <= 40, "{line:?}");
    }
    assert!(on_terminal(100, &[]).unwrap().contains("\x1b["));
    assert!(!done(&db, &["status"]).contains('\x1b'), "not into a pipe");
    assert!(done(&db, &["status", "--color", "always"]).contains("\x1b["));
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
    fs::create_dir(&pages).unwrap();
    done(&db, &["man", pages.to_str().unwrap()]);
    for page in [
        "quotalite.1",
        "quotalite-status.1",
        "quotalite-limits-set.1",
    ] {
        let text = fs::read_to_string(pages.join(page)).unwrap();
        assert!(text.contains(".SH"), "{page}");
    }
    assert_eq!(run(&db, &["man", "/nowhere"]).code, Some(125));
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

/// Another user who may only read would leave files of his own, and the owner could not write any more.
#[test]
fn a_look_by_somebody_who_may_not_write_leaves_nothing_behind() {
    if !nix::unistd::geteuid().is_root() {
        return eprintln!("only root can be two users: not tested");
    }
    let directory = tempfile::tempdir().unwrap();
    let shared = directory.path().join("shared");
    fs::create_dir(&shared).unwrap();
    for (path, mode) in [(directory.path(), 0o755), (&shared, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let program = directory.path().join("program");
    fs::copy(env!("CARGO_BIN_EXE_quotalite"), &program).unwrap();
    let db = shared.join("limits.db");
    let as_user = |user: u32, arguments: &[&str]| {
        let mut command = Command::new(&program);
        command.uid(user).gid(user).env("QUOTALITE_DB", &db);
        ended(command.args(arguments).output().unwrap())
    };
    let (owner, other) = (65_533, 65_534);
    assert_eq!(
        as_user(owner, &["limits", "set", "calls", "10/s"]).code,
        Some(0)
    );
    fs::set_permissions(&db, fs::Permissions::from_mode(0o644)).unwrap();
    for arguments in LOOKS {
        let looked = as_user(other, arguments);
        assert_eq!(looked.code, Some(125), "{arguments:?}: {}", looked.out);
        assert!(looked.err.contains("may write"), "{}", looked.err);
    }
    assert_eq!(fs::read_dir(&shared).unwrap().count(), 2);
    let waited = as_user(owner, &["wait", "calls"]);
    assert_eq!(waited.code, Some(0), "{}", waited.err);
}

#[test]
fn a_journal_of_another_program_is_not_rolled_back_by_a_look() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("other.db");
    let journal = directory.path().join("other.db-journal");
    let other = rusqlite::Connection::open(&db).unwrap();
    other
        .execute_batch("CREATE TABLE t (x); PRAGMA cache_size = 1")
        .unwrap();
    drop(other);
    fs::write(&journal, [7; 1_024]).unwrap();
    let before = fs::read(&db).unwrap();
    for arguments in LOOKS.iter().chain(&[&["doctor"][..]]) {
        assert_ne!(run(&db, arguments).code, Some(0), "{arguments:?}");
    }
    assert_eq!(fs::read(&db).unwrap(), before);
    assert_eq!(fs::read(&journal).unwrap(), [7; 1_024]);
}

#[test]
fn an_answer_that_nobody_reads_is_the_same_answer() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "1/h"]);
    let code = |arguments: &[&str]| {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = program(&db);
        command
            .args(arguments)
            .stdout(writer)
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(code(&["peek", "calls"]), Some(0));
    done(&db, &["wait", "calls"]);
    for arguments in [
        &["peek", "calls"][..],
        &["peek", "calls", "--json"],
        &["explain", "calls"],
    ] {
        assert_eq!(code(arguments), Some(75), "{arguments:?}");
    }
    assert_eq!(code(&["status", "--watch", "--every", "10ms"]), Some(0));
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
