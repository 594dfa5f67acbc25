//! What an operator does with a file in use: `backup`, `compact`, `reset` and `limits set`.
#![cfg(all(feature = "cli", target_os = "linux"))]
mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quotalite::{Backoff, Error, HOUR, Inspector, Limit, Limiter, MINUTE, OnConflict, Request};
use serde_json::Value;
use support::audit::audit;
use support::processes::{
    Acknowledged, Process, await_signal, eventually, path, play, read_diaries, signal_by, spawn,
};
use support::working::{self, Workers};
use support::{Scratch, open_raw, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[(working::ROLE, working::work), ("hold", hold)]);
}

fn quotalite(file: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quotalite"));
    command.arg("--db").arg(file).stdin(Stdio::null());
    command
}

fn run(file: &Path, arguments: &[&str]) -> Output {
    quotalite(file).args(arguments).output().unwrap()
}

#[track_caller]
fn well(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[track_caller]
fn json(file: &Path, arguments: &[&str]) -> Value {
    let output = run(file, &[&["--json"], arguments].concat());
    serde_json::from_str(&well(&output)).unwrap()
}

fn with_workers(count: usize) -> (Scratch, Limiter, Workers) {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    working::define(&limiter);
    let workers = Workers::start(&scratch, count);
    (scratch, limiter, workers)
}

/// What the workers were told up to now.
fn told(workers: &Workers) -> Vec<Acknowledged> {
    read_diaries(&workers.diaries)
}

/// Holds a slot and a booking until it is killed.
fn hold() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let ask = Request::new().take("held", 1).take("calls", 1).id("job");
    let _held = limiter.acquire(&ask).unwrap();
    limiter.acquire("booked").unwrap();
    let _booked = limiter.book("booked").unwrap();
    signal_by(&path("READY"));
    loop {
        std::thread::park();
    }
}

fn holder(scratch: &Scratch, limiter: &Limiter) -> Process {
    limiter.define(Limit::slots("held", 1)).unwrap();
    limiter.define(Limit::new("calls").rate(100, HOUR)).unwrap();
    limiter.define(Limit::new("booked").rate(1, HOUR)).unwrap();
    let ready = scratch.path().join("ready");
    let file = scratch.file();
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
    ];
    let process = spawn("hold", &arguments);
    await_signal(&ready);
    process
}

#[test]
fn a_backup_under_load_has_everything_that_was_acknowledged_before_it_began() {
    let (scratch, _limiter, workers) = with_workers(4);
    let copies: Vec<_> = (0..4)
        .map(|n| scratch.path().join(format!("copy-{n}.db")))
        .collect();
    let mut seen = 0;
    for copy in &copies {
        eventually("they have done something more", || {
            told(&workers).len() > seen + 200
        });
        let before = told(&workers);
        seen = before.len();
        let answer = json(&scratch.file(), &["backup", copy.to_str().unwrap()]);
        let length = copy.metadata().unwrap().len();
        assert_eq!(answer["bytes"].as_u64(), Some(length));
        assert_eq!(copy.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let report = audit(copy, &before);
        report.assert_clean();
        assert!(report.charges > 0);
    }
    workers.stop();
    for copy in &copies {
        let raw = open_raw(copy);
        let pragma = |name: &str| -> String {
            let query = format!("SELECT CAST({name} AS TEXT) FROM pragma_{name}");
            raw.query_row(&query, [], |row| row.get(0)).unwrap()
        };
        let properties = ["page_size", "auto_vacuum", "journal_mode", "freelist_count"].map(pragma);
        assert_eq!(properties, ["1024", "2", "wal", "0"]);
        drop(raw);
        let limiter = Limiter::open(copy).unwrap();
        let all = Request::new().take("slots", 2).take("timed", 2);
        limiter
            .acquire_within(&all, Duration::from_secs(5))
            .unwrap();
    }
}

#[test]
fn in_a_copy_nobody_holds_anything_and_the_original_stays_as_it_is() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let _holder = holder(&scratch, &limiter);
    let copy = scratch.path().join("copy.db");
    well(&run(&scratch.file(), &["backup", copy.to_str().unwrap()]));
    assert!(!limiter.try_acquire("held").unwrap().is_granted());
    let of_copy = Limiter::open(&copy).unwrap();
    assert!(of_copy.try_acquire("held").unwrap().is_granted());
    // What was charged stays charged, and its permit can be settled.
    assert_eq!(of_copy.usage("calls").unwrap().available(), 99);
    of_copy.settle("job", [("calls", 0)]).unwrap();
    assert_eq!(of_copy.usage("calls").unwrap().available(), 100);
    assert_eq!(limiter.usage("calls").unwrap().available(), 99);
    // What was booked behind the first comes back.
    let first = of_copy.book("booked").unwrap();
    assert!(first.wait_time() <= HOUR, "{:?}", first.wait_time());
    let second = limiter.book("booked").unwrap();
    assert!(second.wait_time() > HOUR, "{:?}", second.wait_time());
}

/// The names of files that have this in them.
fn names_with(scratch: &Scratch, part: &str) -> Vec<String> {
    let entries = std::fs::read_dir(scratch.path()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.contains(part)).collect();
    names.sort();
    names
}

#[test]
fn a_backup_overwrites_nothing() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("k").per_day(1)).unwrap();
    let names = || names_with(&scratch, "");
    let copy = scratch.path().join("copy.db");
    for taken in ["copy.db", "copy.db-wal", "copy.db-shm"] {
        let path = scratch.path().join(taken);
        std::fs::write(&path, "somebody's").unwrap();
        let before = names();
        let output = run(&scratch.file(), &["backup", copy.to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(64), "{taken}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody's");
        assert_eq!(names(), before);
        std::fs::remove_file(path).unwrap();
    }
    std::os::unix::fs::symlink(scratch.path().join("elsewhere"), &copy).unwrap();
    let output = run(&scratch.file(), &["backup", copy.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(64));
    assert!(!scratch.path().join("elsewhere").exists());
}

#[test]
fn a_backup_that_fails_or_is_killed_leaves_nothing_at_its_path() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::pattern("tenant:*").rate(9, HOUR))
        .unwrap();
    for group in 0..100 {
        let asks: Vec<_> = (0..100)
            .map(|n| Request::new().take(format!("tenant:{group}:{n}"), 1))
            .collect();
        limiter.try_acquire_all(&asks).unwrap();
    }
    let copy = scratch.path().join("copy.db");
    let file = scratch.file();
    // No file may become larger than some KiB, which is how a full disk looks to SQLite.
    let full = Command::new("sh")
        .args([
            "-c",
            "trap '' XFSZ; ulimit -f 200; exec \"$0\" --db \"$1\" backup \"$2\"",
        ])
        .arg(env!("CARGO_BIN_EXE_quotalite"))
        .args([&file, &copy])
        .output()
        .unwrap();
    assert_eq!(full.status.code(), Some(125), "{full:?}");
    // It is the copy that has no room.
    let said = String::from_utf8_lossy(&full.stderr);
    assert!(said.contains("copy.db"), "{said}");
    assert_eq!(names_with(&scratch, "copy"), [""; 0]);
    let mut killed = 0;
    for micros in (0..60).map(|n| n * 1_000) {
        let mut child = quotalite(&file)
            .arg("backup")
            .arg(&copy)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(micros));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        killed += usize::from(!status.success());
        if copy.exists() {
            // It has this name and no other.
            assert_eq!(names_with(&scratch, ".part"), [""; 0]);
            audit(&copy, &[]).assert_clean();
            assert_eq!(
                Limiter::open(&copy)
                    .unwrap()
                    .usage("tenant:99:99")
                    .unwrap()
                    .available(),
                8
            );
            for end in ["", "-wal", "-shm", "-lock"] {
                let _ = std::fs::remove_file(scratch.path().join(format!("copy.db{end}")));
            }
        }
        for part in names_with(&scratch, ".part") {
            assert!(part.starts_with("copy.db."), "{part}");
            std::fs::remove_file(scratch.path().join(part)).unwrap();
        }
        assert_eq!(names_with(&scratch, "copy"), [""; 0]);
    }
    assert!(killed > 0);
}

#[test]
fn a_copy_has_one_name_whenever_the_backup_is_killed() {
    let scratch = scratch();
    let file = scratch.file();
    let limiter = Limiter::open(&file).unwrap();
    limiter.define(Limit::new("k").per_day(1)).unwrap();
    let copy = scratch.path().join("copy.db");
    // More often than it renames or removes a file.
    for when in 1..=40 {
        let inject = format!("inject=/^(rename|link|unlink):signal=KILL:when={when}");
        let mut strace = Command::new("strace");
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &inject]);
        let quotalite = env!("CARGO_BIN_EXE_quotalite");
        strace.arg(quotalite).arg("--db").arg(&file).arg("backup");
        let Ok(status) = strace.arg(&copy).stdout(Stdio::null()).status() else {
            return println!("skipped: strace cannot be run");
        };
        let parts = names_with(&scratch, ".part");
        assert!(
            !copy.exists() || parts.is_empty(),
            "{inject}: {parts:?}, {status}"
        );
        for name in names_with(&scratch, "copy") {
            std::fs::remove_file(scratch.path().join(name)).unwrap();
        }
        if status.success() {
            assert!(when > 1);
            return;
        }
    }
    panic!("it never ended");
}

#[test]
fn a_backup_says_which_file_is_wrong() {
    let scratch = scratch();
    let file = scratch.file();
    let limiter = Limiter::open(&file).unwrap();
    limiter.define(Limit::pattern("k:*").rate(9, HOUR)).unwrap();
    for n in 0..2_000 {
        limiter.acquire(&format!("k:{n}")).unwrap();
    }
    drop(limiter);
    let whole = std::fs::read(&file).unwrap();
    let mut bytes = whole.clone();
    let half = bytes.len() / 2;
    for byte in &mut bytes[half..] {
        *byte ^= 0x5A;
    }
    std::fs::write(&file, &bytes).unwrap();
    let copy = scratch.path().join("copy.db");
    let error = Inspector::open(&file).unwrap().backup(&copy).unwrap_err();
    assert!(matches!(error, Error::Sqlite { .. }), "{error:?}");
    assert!(error.to_string().contains("limits.db"), "{error}");
    assert!(!error.to_string().contains("copy.db"), "{error}");
    assert_eq!(names_with(&scratch, "copy"), [""; 0]);

    // Somebody keeps it to himself.
    std::fs::write(&file, &whole).unwrap();
    let inspector = Inspector::open(&file).unwrap();
    let raw = open_raw(&file);
    raw.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE")
        .unwrap();
    let error = inspector.backup(&copy).unwrap_err();
    assert!(matches!(error, Error::Busy { .. }), "{error:?}");
    assert!(error.to_string().contains("limits.db"), "{error}");
    assert_eq!(names_with(&scratch, "copy"), [""; 0]);
}

#[test]
fn reset_asks_and_forgets_what_was_charged() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("k").per_day(5)).unwrap();
    limiter.define(Limit::slots("s", 1)).unwrap();
    limiter.define(Limit::pattern("p:*").per_day(5)).unwrap();
    let keys = ["k", "s", "p:1", "p:2"];
    let used = || {
        keys.map(|key| {
            let usage = limiter.usage(key).unwrap();
            usage.held()
                + usage
                    .rates()
                    .iter()
                    .map(quotalite::RateUsage::used)
                    .sum::<u64>()
        })
    };
    let ask = Request::new()
        .take("k", 2)
        .take("s", 1)
        .take("p:1", 2)
        .take("p:2", 2);
    let permit = limiter.acquire(&ask).unwrap();
    limiter.pause("k", Backoff::planned(MINUTE)).unwrap();
    let file = scratch.file();
    let output = run(&file, &["reset", "k"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--yes"));
    assert_eq!(used(), [2, 1, 2, 2], "nothing was done without a yes");
    assert_eq!(json(&file, &["reset", "k", "--yes"])["reset"][0], "k");
    assert_eq!(used(), [0, 1, 2, 2]);
    assert!(limiter.usage("k").unwrap().pause().is_none());
    well(&run(&file, &["reset", "p:1", "--yes"]));
    assert_eq!(used(), [0, 1, 0, 2]);
    let all = json(&file, &["reset", "--all", "--yes"]);
    assert_eq!(all["reset"].as_array().unwrap().len(), 3);
    assert_eq!(used(), [0; 4]);
    permit.settle([("k", 5)]).unwrap();
    assert_eq!(used(), [0; 4]);
    let shown = json(&file, &["limits", "show", "k"]);
    assert_eq!(shown["changes"][0]["action"], "reset", "{shown}");
    for arguments in [
        &["reset"][..],
        &["reset", "unknown", "--yes"],
        &["reset", "k", "--all"],
    ] {
        assert_eq!(
            run(&file, arguments).status.code(),
            Some(64),
            "{arguments:?}"
        );
    }
    let missing = scratch.path().join("missing.db");
    assert_eq!(
        run(&missing, &["reset", "--all", "--yes"]).status.code(),
        Some(125)
    );
    assert!(!missing.exists());
    let error = Limiter::builder(&missing).create(false).open().unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
}

#[test]
fn a_reset_of_all_that_fails_says_how_far_it_came() {
    let scratch = scratch();
    let file = scratch.file();
    let limiter = Limiter::open(&file).unwrap();
    for key in ["a", "b", "c"] {
        limiter.define(Limit::new(key).per_hour(9)).unwrap();
        limiter.acquire(key).unwrap();
    }
    let fault = "CREATE TRIGGER fault BEFORE INSERT ON limit_change WHEN new.key = 'b'
                 BEGIN SELECT raise(ABORT, 'a fault'); END";
    open_raw(&file).execute_batch(fault).unwrap();
    let output = run(&file, &["reset", "--all", "--yes"]);
    assert_eq!(output.status.code(), Some(125));
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(
        told.contains("reset before that: 1 limit; the others are as they were"),
        "{told}"
    );
    let used = ["a", "b", "c"].map(|key| limiter.usage(key).unwrap().rates()[0].used());
    assert_eq!(used, [0, 1, 1]);
}

#[test]
fn a_limit_is_set_whether_or_not_others_define_and_remove_it() {
    let scratch = scratch();
    let file = scratch.file();
    let limiter = Limiter::open(&file).unwrap();
    let has_ended = AtomicBool::new(false);
    let outputs: Vec<Output> = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !has_ended.load(Ordering::Relaxed) {
                let limit = Limit::new("k").per_second(7).unit("calls");
                limiter.define_or(limit, OnConflict::Replace).unwrap();
                limiter.remove("k").unwrap();
            }
        });
        let set = || run(&file, &["--json", "limits", "set", "k", "5/s"]);
        let outputs = (0..60).map(|_| set()).collect();
        has_ended.store(true, Ordering::Relaxed);
        outputs
    });
    for output in outputs {
        let set: Value = serde_json::from_str(&well(&output)).unwrap();
        // What was defined has a unit, and keeps it.
        let (definition, former) = match set["outcome"].as_str() {
            Some("created") => ("5/s", Value::Null),
            Some("replaced") => ("5 calls/s", "7 calls/s".into()),
            _ => panic!("{set}"),
        };
        assert_eq!(set["definition"], definition, "{set}");
        assert_eq!(set["former"], former, "{set}");
    }
}

#[test]
fn a_reset_under_load_loses_nobody() {
    let (scratch, limiter, workers) = with_workers(4);
    let file = scratch.file();
    for _ in 0..20 {
        well(&run(&file, &["reset", "--all", "--yes"]));
    }
    let seen = told(&workers).len();
    eventually("they go on", || told(&workers).len() > seen + 200);
    workers.stop();
    audit(&file, &[]).assert_clean();
    let all = Request::new().take("slots", 2).take("timed", 2);
    limiter
        .acquire_within(&all, Duration::from_secs(20))
        .unwrap();
}

fn flood(limiter: &Limiter, keys: usize) {
    for group in 0..keys / 100 {
        let asks: Vec<_> = (0..100)
            .map(|n| Request::new().take(format!("flood:{group}:{n}"), 1))
            .collect();
        for decision in limiter.try_acquire_all(&asks).unwrap() {
            assert!(decision.unwrap().is_granted());
        }
    }
}

#[test]
fn compact_makes_a_file_small_while_others_use_it() {
    let (scratch, limiter, workers) = with_workers(3);
    let file = scratch.file();
    let define = |window: Duration| {
        let old = Limit::new("old").rate(1_000_000, window).build().unwrap();
        let flood = Limit::pattern("flood:*").rate(5, window).build().unwrap();
        limiter
            .define_all([old, flood], OnConflict::Replace)
            .unwrap();
    };
    define(HOUR);
    flood(&limiter, 50_000);
    for _ in 0..3_000 {
        limiter.acquire("old").unwrap();
    }
    let count = |what: &str| -> i64 {
        let query = format!("SELECT count(*) FROM {what}");
        open_raw(&file)
            .query_row(&query, [], |row| row.get(0))
            .unwrap()
    };
    let flooded = "pattern_key WHERE key LIKE 'flood:%'";
    assert_eq!(count(flooded), 50_000);
    // All of it has left its windows from one moment to the next, but for what a clock that falls back may ask for.
    std::thread::sleep(Duration::from_millis(1_100));
    define(Duration::from_millis(50));
    let answer = json(&file, &["compact"]);
    assert_eq!(count(flooded), 0);
    let old = "charge WHERE limit_id = (SELECT limit_id FROM limit_definition WHERE key = 'old')";
    assert_eq!(count(old), 0);
    let [before, after] =
        ["before_bytes", "after_bytes"].map(|name| answer[name].as_u64().unwrap());
    assert!(before > 4_000_000, "{before}");
    let told = told(&workers);
    workers.stop();
    audit(&file, &told).assert_clean();
    // The WAL may not have been cut beside them; now nobody is in the way.
    let last = json(&file, &["compact"]);
    assert_eq!(last["wal_is_cut"], true, "{last}");
    let last = last["after_bytes"].as_u64().unwrap();
    assert!(last * 3 < before, "{before} {after} {last}");
    assert_eq!(count("pragma_freelist_count WHERE freelist_count > 0"), 0);
}
