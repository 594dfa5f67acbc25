//! Each fault that is planted is found by what it is, and where there is none nothing is found.
#![cfg(all(feature = "cli", target_os = "linux"))]
mod support;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use quotalite::{
    Checkup, DAY, HOUR, Limit, Limiter, ManualClock, OnConflict, Overage, Request, SECOND,
};
use serde_json::Value;
use support::audit::all_rows;
use support::processes::{await_signal, eventually, path, play, read_diaries, signal_by, spawn};
use support::working::{self, Workers};
use support::{Scratch, open_raw, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[(working::ROLE, working::work), ("hold", hold)]);
}

fn run(file: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_quotalite"))
        .arg("--db")
        .arg(file)
        .arg("doctor")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// What a doctor has said.
struct Said {
    code: Option<i32>,
    answer: Value,
}

impl Said {
    /// What it has to end with: notes are nothing wrong.
    fn expected_code(&self) -> i32 {
        let findings = self.answer["findings"].as_array().unwrap();
        let is_wrong = |found: &Value| found["severity"] != "note" && found["fixed"] == false;
        i32::from(findings.iter().any(is_wrong))
    }

    /// The kinds of what was found, and whether it is fixed.
    fn kinds(&self) -> Vec<(&str, bool)> {
        let findings = self.answer["findings"].as_array().unwrap();
        findings
            .iter()
            .map(|found| {
                for field in ["severity", "subject", "what", "why", "todo"] {
                    assert!(
                        !found[field].as_str().unwrap().is_empty(),
                        "{field}: {found}"
                    );
                }
                (
                    found["kind"].as_str().unwrap(),
                    found["fixed"].as_bool().unwrap(),
                )
            })
            .collect()
    }
}

fn said(file: &Path, arguments: &[&str]) -> Said {
    let output = run(file, &[&["--json"], arguments].concat());
    let answer = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {output:?}"));
    print!("{}", String::from_utf8_lossy(&output.stderr));
    Said {
        code: output.status.code(),
        answer,
    }
}

#[track_caller]
fn finds(file: &Path, kinds: &[&str]) {
    let said = said(file, &[]);
    let expected: Vec<(&str, bool)> = kinds.iter().map(|kind| (*kind, false)).collect();
    assert_eq!(said.kinds(), expected, "{:#}", said.answer);
    assert_eq!(said.code, Some(said.expected_code()));
}

/// A file with something of everything in it, that nobody has open.
fn file() -> Scratch {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    working::define(&limiter);
    limiter.define(Limit::new("rate").rate(100, DAY)).unwrap();
    limiter
        .define(
            Limit::new("charging")
                .rate(10, HOUR)
                .overage(Overage::Charge),
        )
        .unwrap();
    limiter.define(Limit::slots("many", 3)).unwrap();
    for _ in 0..40 {
        limiter.acquire("rate").unwrap();
        limiter.acquire(("tenant:1", 2)).unwrap();
        limiter.acquire(("bucket", 1)).unwrap();
    }
    let ask = Request::new().take("many", 1).take("rate", 1);
    let permit = limiter.acquire(&ask.id("job")).unwrap();
    permit.detach(HOUR).unwrap();
    scratch
}

fn change(file: &Path, sql: &str) {
    let raw = open_raw(file);
    raw.execute_batch(sql).unwrap();
}

const RATE: &str = "(SELECT limit_id FROM limit_definition WHERE key = 'rate')";

#[test]
fn nothing_is_found_where_nothing_is_wrong_and_nothing_is_changed() {
    let scratch = file();
    let rows = all_rows(&scratch.file());
    for arguments in [&[][..], &["--fix"]] {
        let said = said(&scratch.file(), arguments);
        assert_eq!((said.kinds(), said.code), (vec![], Some(0)));
        assert!(said.answer["checked"].as_array().unwrap().len() > 5);
    }
    assert_eq!(all_rows(&scratch.file()), rows);
    let output = run(&scratch.file(), &[]);
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("nothing found\n"));
}

#[test]
fn what_no_limiter_would_write_is_found_for_what_it_is() {
    let now = "(SELECT high_ns FROM clock)";
    // What is planted, what is found, and whether it can be fixed.
    let faults = [
        (
            format!("UPDATE charge SET total = total + 1 WHERE limit_id = {RATE}
                AND at_ns = (SELECT max(at_ns) FROM charge WHERE limit_id = {RATE})"),
            "wrong_totals",
            false,
        ),
        (
            format!("UPDATE charge SET amount = -5, total = (total - amount - 5) & 4611686018427387903
                WHERE limit_id = {RATE} AND at_ns = (SELECT min(at_ns) FROM charge WHERE limit_id = {RATE});
                UPDATE charge SET total = (total - 6) & 4611686018427387903 WHERE limit_id = {RATE}
                AND at_ns > (SELECT min(at_ns) FROM charge WHERE limit_id = {RATE})"),
            "wrong_amount",
            false,
        ),
        (
            format!("UPDATE limit_definition SET changed_ns = 0;
                UPDATE rate SET capacity = 40 WHERE limit_id = {RATE}"),
            "window_over",
            false,
        ),
        (
            format!("UPDATE limit_definition SET changed_ns = 0, was_lowered = 1 WHERE limit_id = {RATE};
                UPDATE rate SET capacity = 40 WHERE limit_id = {RATE}"),
            "decreasing",
            false,
        ),
        (
            "UPDATE limit_definition SET changed_ns = 0; UPDATE slot SET amount = 4".to_owned(),
            "slots_over",
            false,
        ),
        (
            format!("INSERT INTO charge VALUES (999, {now}, 0, 1, 1), (999, {now}, 1, 1, 2)"),
            "orphans",
            true,
        ),
        ("INSERT INTO slot VALUES (999, 5, 1, NULL, 0)".to_owned(), "orphans", true),
        ("INSERT INTO rate VALUES (999, 1000000000, 5)".to_owned(), "orphans", true),
        ("INSERT INTO ticket_take VALUES (77, 1, 1)".to_owned(), "orphans", true),
        ("INSERT INTO pause VALUES (999, 1, 2, 1)".to_owned(), "orphans", true),
        ("INSERT INTO permit_charge VALUES (77, 1, 0, 1, 0)".to_owned(), "orphans", true),
        (
            format!("INSERT INTO booking VALUES (4711, 1, {RATE}, {now} + 60000000000, 0, 1, {now} + 60000000000)"),
            "no_owner",
            true,
        ),
        ("INSERT INTO ticket VALUES (1, 4711, 1, NULL, NULL)".to_owned(), "no_owner", true),
        (
            "UPDATE permit SET owner_id = 4711, ended_ns = NULL, detached = 0".to_owned(),
            "no_owner",
            true,
        ),
        (
            format!("UPDATE permit SET expires_ns = {now} - 3700000000000 WHERE id = 'job';
                UPDATE slot SET expires_ns = {now} - 3700000000000"),
            "expired_permits",
            true,
        ),
        ("DELETE FROM rate WHERE limit_id = 1".to_owned(), "bad_definition", false),
        (
            "UPDATE quota SET zone = 'Moon/Tycho'".to_owned(),
            "unknown_zone",
            false,
        ),
        (
            "UPDATE clock SET high_ns = high_ns + 5400000000000".to_owned(),
            "clock_apart",
            false,
        ),
        ("PRAGMA user_version = 99".to_owned(), "newer_schema", false),
        ("PRAGMA user_version = 11".to_owned(), "older_schema", false),
        ("PRAGMA application_id = 77".to_owned(), "foreign", false),
        ("PRAGMA journal_mode = DELETE".to_owned(), "setup", true),
        ("PRAGMA auto_vacuum = NONE; PRAGMA journal_mode = DELETE; VACUUM; PRAGMA journal_mode = WAL".to_owned(), "setup", false),
    ];
    for (sql, kind, is_fixable) in faults {
        let scratch = file();
        let file = scratch.file();
        change(&file, &sql);
        finds(&file, &[kind]);
        let said = said(&file, &["--fix"]);
        assert_eq!(
            said.kinds(),
            [(kind, is_fixable)],
            "{sql}: {:#}",
            said.answer
        );
        assert_eq!(said.code, Some(said.expected_code()));
        if is_fixable {
            finds(&file, &[]);
        }
    }
}

#[test]
fn what_was_settled_above_its_estimate_is_no_fault() {
    let scratch = file();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let permit = limiter.acquire(("charging", 5)).unwrap();
    permit.settle([("charging", 25)]).unwrap();
    let permit = limiter.acquire(("rate", 5)).unwrap();
    permit.settle([("rate", 250)]).unwrap();
    finds(&scratch.file(), &["overcharged"]);
}

#[test]
fn a_limit_that_was_lowered_while_it_was_in_use_is_no_fault() {
    let scratch = file();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let less = Limit::new("rate").rate(10, DAY);
    limiter.define_or(less, OnConflict::Replace).unwrap();
    finds(&scratch.file(), &["decreasing"]);
    limiter.reset("rate").unwrap();
    // A pattern that takes keys over from another lets less through than they have in use.
    limiter.acquire(("tenant:91", 15)).unwrap();
    let pattern = Limit::pattern("tenant:9*").rate(3, HOUR);
    limiter.define(pattern).unwrap();
    finds(&scratch.file(), &["decreasing"]);
}

#[test]
fn damage_is_told_and_nothing_of_it_is_touched() {
    let scratch = file();
    let file = scratch.file();
    let limiter = Limiter::open(&file).unwrap();
    for _ in 0..500 {
        limiter.acquire("calls").unwrap();
    }
    limiter.compact().unwrap();
    drop(limiter);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 1_024 * 3 / 4 * 1_024;
    for byte in &mut bytes[middle..middle + 3_000] {
        *byte ^= 0x5A;
    }
    std::fs::write(&file, &bytes).unwrap();
    finds(&file, &["damaged"]);
    let said = said(&file, &["--fix"]);
    assert_eq!(
        (said.kinds(), said.code),
        (vec![("damaged", false)], Some(1))
    );
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
}

type Plant<'a> = &'a dyn Fn(&Scratch);

#[test]
fn what_stands_at_the_path_and_around_it_is_looked_at() {
    let chmod = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    let cases: [(&str, Plant<'_>, bool); 10] = [
        (
            "missing",
            &|scratch| std::fs::remove_file(scratch.file()).unwrap(),
            false,
        ),
        (
            "not_a_file",
            &|scratch| {
                let aside = scratch.path().join("aside");
                std::fs::rename(scratch.file(), &aside).unwrap();
                std::os::unix::fs::symlink(aside, scratch.file()).unwrap();
            },
            false,
        ),
        (
            "not_a_file",
            &|scratch| {
                std::fs::remove_file(scratch.file()).unwrap();
                std::fs::create_dir(scratch.file()).unwrap();
            },
            false,
        ),
        (
            "foreign",
            &|scratch| {
                std::fs::write(
                    scratch.file(),
                    "a letter to somebody, as long as it is".repeat(99),
                )
                .unwrap();
            },
            false,
        ),
        (
            "empty",
            &|scratch| std::fs::write(scratch.file(), "").unwrap(),
            false,
        ),
        (
            "sidecar_mode",
            &|scratch| chmod(&scratch.path().join("limits.db-lock"), 0o640),
            true,
        ),
        (
            "sidecar_mode",
            &|scratch| chmod(&scratch.file(), 0o660),
            true,
        ),
        (
            "open_directory",
            &|scratch| chmod(scratch.path(), 0o777),
            false,
        ),
        (
            "world_readable",
            &|scratch| {
                chmod(&scratch.file(), 0o644);
                chmod(&scratch.path().join("limits.db-lock"), 0o644);
            },
            false,
        ),
        (
            "world_writable",
            &|scratch| {
                chmod(&scratch.file(), 0o666);
                chmod(&scratch.path().join("limits.db-lock"), 0o666);
            },
            false,
        ),
    ];
    for (kind, plant, is_fixable) in cases {
        let scratch = file();
        plant(&scratch);
        finds(&scratch.file(), &[kind]);
        let said = said(&scratch.file(), &["--fix"]);
        assert_eq!(said.kinds(), [(kind, is_fixable)], "{:#}", said.answer);
    }
    let said = said(Path::new("/nowhere/at/all.db"), &[]);
    assert_eq!(
        (said.kinds(), said.code),
        (vec![("missing", false)], Some(1))
    );
}

#[test]
fn mending_lets_nobody_in_because_the_database_was_left_open() {
    let scratch = file();
    let mode_of = |name: &str| {
        let path = scratch.path().join(name);
        path.metadata().unwrap().permissions().mode() & 0o777
    };
    for (database, lock) in [(0o660, 0o660), (0o666, 0o660), (0o600, 0o600)] {
        std::fs::set_permissions(scratch.file(), Permissions::from_mode(database)).unwrap();
        said(&scratch.file(), &["--fix"]);
        assert_eq!(mode_of("limits.db-lock"), lock, "beside {database:o}");
        assert_eq!(mode_of("limits.db"), database);
    }
}

#[test]
fn a_sidecar_of_another_user_is_told() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: this user may not give files away");
    }
    let scratch = file();
    let lock = scratch.path().join("limits.db-lock");
    nix::unistd::chown(&lock, Some(12_345.into()), None).unwrap();
    finds(&scratch.file(), &["foreign_sidecar"]);
}

#[test]
fn a_user_who_may_not_write_is_told_so() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: this user cannot become another");
    }
    let scratch = file();
    let other = |path: &Path, mode| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    other(scratch.path(), 0o755);
    let binary = scratch.path().join("quotalite");
    std::fs::copy(env!("CARGO_BIN_EXE_quotalite"), &binary).unwrap();
    let output = Command::new(&binary)
        .arg("--db")
        .arg(scratch.file())
        .args(["doctor", "--json", "--fix"])
        .uid(12_345)
        .gid(12_345)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["findings"][0]["kind"], "unreadable", "{answer:#}");
}

#[test]
fn a_long_wal_is_cut() {
    let scratch = file();
    let file = scratch.file();
    let limiter = Limiter::open(&file).unwrap();
    limiter.acquire("rate").unwrap();
    let wal = std::fs::OpenOptions::new()
        .write(true)
        .open(scratch.path().join("limits.db-wal"))
        .unwrap();
    wal.set_len(100 << 20).unwrap();
    finds(&file, &["long_wal"]);
    let said = said(&file, &["--fix"]);
    assert_eq!(
        (said.kinds(), said.code),
        (vec![("long_wal", true)], Some(0))
    );
    limiter.acquire("rate").unwrap();
    assert_eq!(limiter.usage("rate").unwrap().rates()[0].used(), 43);
}

#[test]
fn a_wal_of_another_database_is_told_and_not_read() {
    let scratch = file();
    let file = scratch.file();
    let aside = scratch.path().join("aside.db");
    std::fs::copy(&file, &aside).unwrap();
    // The WAL stays behind when its last user is killed.
    let ready = scratch.path().join("ready");
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
    ];
    let holder = spawn("hold", &arguments);
    await_signal(&ready);
    holder.kill();
    std::fs::rename(&aside, &file).unwrap();
    let before = std::fs::read(&file).unwrap();
    finds(&file, &["foreign_wal"]);
    assert_eq!(std::fs::read(&file).unwrap(), before);
    let said = said(&file, &["--fix"]);
    assert_eq!(
        (said.kinds(), said.code),
        (vec![("foreign_wal", true)], Some(0))
    );
}

#[test]
fn free_pages_are_told() {
    let scratch = file();
    let file = scratch.file();
    change(
        &file,
        "CREATE TABLE filler (text TEXT);
        WITH RECURSIVE n (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 6000)
        INSERT INTO filler SELECT hex(zeroblob(450)) FROM n;
        DROP TABLE filler",
    );
    finds(&file, &["free_pages"]);
    let said = said(&file, &["--fix"]);
    assert_eq!(
        (said.kinds(), said.code),
        (vec![("free_pages", true)], Some(0))
    );
    assert!(file.metadata().unwrap().len() < 1 << 20);
}

/// Holds slots, a booking and a charge until it is killed.
fn hold() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let _held = limiter.acquire(("many", 2)).unwrap();
    limiter.acquire(("charging", 10)).unwrap();
    let _booked = limiter.book(("charging", 10)).unwrap();
    signal_by(&path("READY"));
    loop {
        std::thread::park();
    }
}

#[test]
fn what_the_dead_hold_is_told_and_given_back() {
    let scratch = file();
    let file = scratch.file();
    let ready = scratch.path().join("ready");
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
    ];
    let holder = spawn("hold", &arguments);
    await_signal(&ready);
    finds(&file, &[]);
    let pid = holder.id();
    holder.kill();
    finds(&file, &["dead_owner"]);
    let said = said(&file, &["--fix"]);
    assert_eq!(
        (said.kinds(), said.code),
        (vec![("dead_owner", true)], Some(0))
    );
    assert_eq!(
        said.answer["findings"][0]["subject"],
        format!("process {pid}")
    );
    let limiter = Limiter::open(&file).unwrap();
    assert_eq!(limiter.usage("many").unwrap().held(), 1);
    assert!(limiter.book(("charging", 10)).unwrap().wait_time() < HOUR + SECOND);
}

#[test]
fn who_holds_something_by_a_lock_that_nobody_sees_is_told() {
    let scratch = file();
    let file = scratch.file();
    let ready = scratch.path().join("ready");
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
    ];
    let _holder = spawn("hold", &arguments);
    await_signal(&ready);
    std::fs::remove_file(scratch.path().join("limits.db-lock")).unwrap();
    finds(&file, &["unseen_owner"]);
}

#[test]
fn no_false_alarm_is_raised_beside_workers() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    working::define(&limiter);
    let workers = Workers::start(&scratch, 4);
    let told = |workers: &Workers| read_diaries(&workers.diaries).len();
    let mut seen = 0;
    for round in 0..25 {
        eventually("they have done something more", || {
            told(&workers) > seen + 20
        });
        seen = told(&workers);
        let arguments: &[&str] = if round % 5 == 4 { &["--fix"] } else { &[] };
        let said = said(&scratch.file(), arguments);
        assert_eq!(
            (said.kinds(), said.code),
            (vec![], Some(0)),
            "{:#}",
            said.answer
        );
    }
    workers.stop();
    // One may have ended ahead of what it had booked and accepted.
    eventually("what they have booked is past", || {
        said(&scratch.file(), &[]).kinds() != [("dead_owner", false)]
    });
    finds(&scratch.file(), &[]);
}

#[test]
fn a_backup_passes() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    working::define(&limiter);
    let workers = Workers::start(&scratch, 2);
    eventually("they are at it", || {
        read_diaries(&workers.diaries).len() > 100
    });
    let copy: PathBuf = scratch.path().join("copy.db");
    quotalite::Inspector::open(scratch.file())
        .unwrap()
        .backup(&copy)
        .unwrap();
    workers.stop();
    // Whoever held something when it was made is dead in the copy.
    let said = said(&copy, &["--fix"]);
    assert!(
        said.kinds()
            .iter()
            .all(|found| *found == ("dead_owner", true)),
        "{:#}",
        said.answer
    );
    finds(&copy, &[]);
}

#[test]
fn a_look_is_as_of_the_clock_that_the_file_is_used_on() {
    let (scratch, limiter, clock) = support::on_file();
    limiter.define(Limit::new("k").rate(1, HOUR)).unwrap();
    limiter.acquire("k").unwrap();
    drop(limiter.book("k").unwrap().accept());
    let kinds = |clock: &ManualClock| {
        let checkup = Checkup::of_with(scratch.file(), clock.clone()).unwrap();
        let findings = checkup.findings().iter().map(quotalite::Finding::kind);
        findings.collect::<Vec<_>>()
    };
    assert_eq!(kinds(&clock), []);
    change(
        &scratch.file(),
        "UPDATE charge SET at_ns = at_ns - 5 WHERE at_ns = (SELECT max(at_ns) FROM charge)",
    );
    assert_eq!(
        kinds(&clock),
        [quotalite::FindingKind::Decreasing],
        "it is new"
    );
    change(
        &scratch.file(),
        "UPDATE limit_definition SET changed_ns = 0",
    );
    assert_eq!(kinds(&clock), [quotalite::FindingKind::WindowOver]);
    clock.advance(HOUR);
    assert_eq!(kinds(&clock), []);
}
