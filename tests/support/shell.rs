//! `quotalite`, as a process on a file of a test.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

pub fn program(db: &Path) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_quotalite"));
    program
        .env("QUOTALITE_DB", db)
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    program
}

pub struct Ended {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

pub fn ended(output: Output) -> Ended {
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub fn run(db: &Path, arguments: &[&str]) -> Ended {
    ended(program(db).args(arguments).output().unwrap())
}

/// Runs what has to succeed.
#[track_caller]
pub fn done(db: &Path, arguments: &[&str]) -> String {
    let ended = run(db, arguments);
    assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.err);
    ended.out
}

#[track_caller]
pub fn document(db: &Path, arguments: &[&str]) -> Value {
    let ended = run(db, &[arguments, &["--json"]].concat());
    serde_json::from_str(&ended.out)
        .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}{}", ended.out, ended.err))
}

/// All commands that only look, on the limit `calls`.
pub const LOOKS: [&[&str]; 9] = [
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
