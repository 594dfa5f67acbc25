//! The program `quotalite` where something is wrong: with what it is told, with the file, or with the disk.
#![cfg(feature = "cli")]
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use quotalite::{Limiter, rusqlite};
use support::shell::{LOOKS, document, done, ended, program, run};

/// Each of these is misused, says so, and changes nothing.
#[track_caller]
fn are_misused(all: &[(&[&str], &str)]) {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/s"]);
    done(&db, &["limits", "set", "tenant:*:calls", "10/s"]);
    let before = done(&db, &["limits", "list"]);
    for (arguments, part) in all {
        let ended = run(&db, arguments);
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}", ended.err);
        assert!(ended.err.contains(part), "{arguments:?}: {}", ended.err);
        assert_eq!(ended.out, "", "{arguments:?}");
    }
    assert_eq!(done(&db, &["limits", "list"]), before);
}

#[test]
fn misuse_is_told_and_changes_nothing() {
    are_misused(&[
        (&["usage", "nobody"][..], "limit `nobody` is not defined"),
        (&["charges", "nobody"], "not defined"),
        (&["permits", "nobody"], "not defined"),
        (&["wait", "calls=0"], "the amount of `calls` is zero"),
        (&["wait", "calls", "calls"], "`calls`"),
        (&["wait", "calls=11"], "never admits 11"),
        (&["wait"], "required"),
        (&["peek", "=3"], "it names no limit"),
        (&["wait", "calls=1.5"], "no whole number"),
        (&["wait", "calls", "--detach", "0"], "longer than nothing"),
        (&["wait", "tenant:*:calls"], "it is a pattern"),
        (&["explain", "tenant:*:calls=2"], "it is a pattern"),
        (
            &["run", "--limit", "a*", "--rate", "1/s", "--", "true"],
            "it is a pattern",
        ),
        (&["usage", "tenant:*:calls"], "it is a pattern"),
        (&["charges", "tenant:*:calls"], "it is a pattern"),
        (&["permits", "tenant:*:calls"], "it is a pattern"),
        (&["pause", "tenant:*:calls", "1s"], "it is a pattern"),
        (
            &["charges", "calls", "--since", "soon"],
            "neither a length of time nor a time",
        ),
        (&["wait", "calls", "--within", "soon"], "soon"),
        (&["wait", "calls", "--within", "30"], "of what?"),
        (&["replay", "--limit", "calls"], "which other definition"),
        (&["pause", "calls", "0s"], "longer than nothing"),
        (&["limits", "remove", "nobody", "--yes"], "not defined"),
        (&["pause", "nobody", "1s"], "not defined"),
        (
            &["limits", "remove", "tenant:1:calls", "--yes"],
            "the pattern `tenant:*:calls` makes it",
        ),
        (&["wait", "calls", "--within", "5x"], "no length of time"),
        (
            &["wait", "calls", "--within", "1 month"],
            "differ in length",
        ),
        (
            &[
                "run",
                "--limit",
                "calls",
                "--retry",
                "1",
                "--retry-on",
                "300",
                "--",
                "true",
            ],
            "1 to 255",
        ),
        (&["run", "--limit", "calls", "echo", "hi"], "-- COMMAND"),
        (&["sing"], "unrecognized subcommand"),
    ]);
}

#[test]
fn what_defines_nothing_is_told_and_changes_nothing() {
    are_misused(&[
        (&["limits", "set", "calls"][..], "nothing of it is said"),
        (&["limits", "set", "5/s", "calls"], "the key comes first"),
        (&["limits", "set", "b", "burst 3, refill 1/s"], "--burst"),
        (&["limits", "set", "b", "2 slots"], "--slots"),
        (&["limits", "set", "nobody", "--pad", "1s"], "needs rates"),
        (&["limits", "set", "calls", "--timeout", "1s"], "of slots"),
        (&["limits", "set", "calls", "--refill", "1/s"], "burst"),
        (&["limits", "set", "calls", "--slow-start", "0"], "1..=100"),
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
        (&["limits", "set", "a", "--slots", "2.5"], "no whole number"),
        (
            &["limits", "set", "c", "5 things/s", "--unit", ""],
            "the rates say `things`",
        ),
    ]);
}

#[test]
fn a_file_has_to_be_named() {
    let mut nameless = program(Path::new(""));
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
    fs::set_permissions(&db, fs::Permissions::from_mode(0o600)).unwrap();
    let looked = as_user(other, &["status"]);
    assert!(looked.err.contains("may write"), "{}", looked.err);
    assert!(
        looked.err.contains("as the user that it belongs to"),
        "{}",
        looked.err
    );
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
fn whoever_cannot_open_a_file_is_told_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let set: &[&str] = &["limits", "set", "calls", "10/s"];
    for (name, arguments, part) in [
        ("none/limits.db", set, "make that first"),
        ("none/limits.db", &["status"], "make that first"),
        (
            "limits.db",
            &["status"],
            "`quotalite limits set KEY RATES` makes a file",
        ),
        ("empty.db", &["status"], "nothing was ever defined in it"),
    ] {
        fs::write(directory.path().join("empty.db"), "").unwrap();
        let ended = run(&directory.path().join(name), arguments);
        assert_eq!(ended.code, Some(125), "{name}: {}", ended.err);
        assert!(ended.err.contains(part), "{name}: {}", ended.err);
    }
    // A variable that is empty stands for no file, and is in nobody's way.
    let empty = run(Path::new(""), &["completions", "bash"]);
    assert_eq!(empty.code, Some(0), "{}", empty.err);
    let nameless = run(Path::new(""), &["status"]);
    assert_eq!(nameless.code, Some(64));
    assert!(nameless.err.contains("QUOTALITE_DB"), "{}", nameless.err);
}

#[test]
fn a_permit_whose_id_nobody_was_told_is_cancelled() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "10/h"]);
    let used = || document(&db, &["usage", "calls"])["parts"][0]["used"].clone();
    let wait = |arguments: &[&str], out: Stdio| {
        let mut wait = program(&db);
        wait.args(["wait", "calls", "--detach", "1h"])
            .args(arguments);
        ended(wait.stdout(out).output().unwrap())
    };
    let full = || {
        Stdio::from(
            fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap(),
        )
    };
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    for out in [full(), closed()] {
        let lost = wait(&[], out);
        assert_eq!(lost.code, Some(125), "{}", lost.err);
        assert!(lost.err.contains("it was cancelled"), "{}", lost.err);
        assert_eq!(used(), 0);
    }
    // Whoever has named it can end it.
    assert_eq!(wait(&["--id", "mine"], closed()).code, Some(0));
    assert_eq!(used(), 1);
    done(&db, &["cancel", "mine"]);
}

#[test]
fn a_file_that_defines_nothing_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let file = directory.path().join("limits.toml");
    fs::write(&file, "").unwrap();
    let applied = run(&db, &["limits", "apply", file.to_str().unwrap()]);
    assert_eq!(applied.code, Some(0));
    assert!(
        applied.err.contains("no limit is defined"),
        "{}",
        applied.err
    );
}
