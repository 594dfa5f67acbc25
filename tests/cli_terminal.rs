//! The program `quotalite` at terminals, narrow ones and such as nobody reads.
#![cfg(feature = "cli")]
mod support;

use std::io::Read;
use std::process::{Command, Stdio};

use quotalite::rusqlite;
use regex::Regex;
use support::shell::{document, done, ended, program, run};

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
fn it_fits_a_terminal_of_40_columns_and_has_colour_only_there() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let key = "global:llm:a-provider:a-model-with-a-long-name:rpm";
    done(&db, &["limits", "set", key, "10/s, 300/min"]);
    done(&db, &["wait", &format!("{key}=5")]);
    done(&db, &["pause", key, "5m"]);
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
    assert!(
        plain.contains("AVAILABLE") && plain.contains("paused 5m"),
        "{plain}"
    );
    for line in plain.lines() {
        assert!(line.trim_end().chars().count() <= 40, "{line:?}");
    }
    assert!(on_terminal(100, &[]).unwrap().contains("\x1b["));
    assert!(!done(&db, &["status"]).contains('\x1b'), "not into a pipe");
    assert!(done(&db, &["status", "--color", "always"]).contains("\x1b["));
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
