//! What docs/cli.md and the README show is what the program prints.
#![cfg(feature = "cli")]

use std::path::Path;
use std::process::Command;

use regex::Regex;

const PAGE: &str = include_str!("../docs/cli.md");
const README: &str = include_str!("../README.md");

/// A line that no command prints, between the output of two.
const MARK: &str = "-- the next command --";

struct Step {
    command: String,
    shown: String,
}

/// What stands in blocks of `console`: commands after a `$`, and what they print.
fn steps(page: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut is_inside = false;
    for line in page.lines() {
        if line.starts_with("```") {
            is_inside = line == "```console";
        } else if !is_inside {
        } else if let Some(command) = line.strip_prefix("$ ") {
            let command = command.to_owned();
            steps.push(Step {
                command,
                shown: String::new(),
            });
        } else if let Some(step) = steps.last_mut() {
            step.shown.push_str(line);
            step.shown.push('\n');
        }
    }
    steps
}

/// Runs all commands in one shell, and returns what each has printed.
fn play(steps: &[Step], directory: &Path) -> Vec<String> {
    let mut script = "exec 2>&1\n".to_owned();
    for step in steps {
        let says = format!("printf '%s\\n' '{MARK}'");
        script.extend([&*step.command, "\n", &*says, "\n"]);
    }
    let program = Path::new(env!("CARGO_BIN_EXE_quotalite"));
    let path = std::env::var("PATH").unwrap();
    let output = Command::new("bash")
        .args(["-c", &script])
        .current_dir(directory)
        .env(
            "PATH",
            format!("{}:{path}", program.parent().unwrap().display()),
        )
        .env_remove("QUOTALITE_DB")
        .env("TZ", "UTC")
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let mark = format!("{MARK}\n");
    printed.split(&mark).map(str::to_owned).collect()
}

/// The same without what is different each time: times, numbers of processes, ids, and how far a line is padded for them.
fn told(text: &str) -> String {
    let mut told = text.to_owned();
    for (pattern, mask) in [
        (r"/[^ ]+/([a-z]+\.db)", "$1"),
        (r"\b[0-9A-HJKMNP-TV-Z]{26}\b", "<id>"),
        (r"\b[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z", "<time>"),
        (
            r"\b([0-9]{4}-[0-9]{2}-[0-9]{2} )?[0-9]{2}:[0-9]{2}:[0-9]{2}\b",
            "<time>",
        ),
        (r"\b(process|pid|quotalite) +[0-9]+", "$1 <pid>"),
        (r#""(pid|fence)":[0-9]+"#, r#""$1":<number>"#),
        (r#"_s":[0-9.e-]+"#, r#"_s":<seconds>"#),
        (
            r"\b[0-9.]+(ns|µs|ms|s|m|min|h)( [0-9.]+(ns|µs|ms|s|m|min|h))*\b",
            "<long>",
        ),
        (r"[0-9][0-9 ]* (to [0-9 ]+)?bytes", "<bytes>"),
        (r"[0-9]+ of [0-9]+ pages", "<pages>"),
        (r"SQLite 3[0-9.]+", "<SQLite>"),
        // Fences.
        (r"\b[0-9]{10,}\b", "<number>"),
        (r"[█▏▎▍▌▋▊▉·]{10}", "<bar>"),
        (r" +", " "),
        (r" +\n", "\n"),
    ] {
        told = Regex::new(pattern)
            .unwrap()
            .replace_all(&told, mask)
            .into_owned();
    }
    told.trim_end().to_owned()
}

#[test]
fn the_page_about_the_command_line_is_true() {
    check(&steps(PAGE), 20);
}

#[test]
fn so_is_the_readme() {
    check(&steps(README), 5);
}

/// Plays so many steps at least.
#[track_caller]
fn check(steps: &[Step], least: usize) {
    assert!(steps.len() > least, "{}", steps.len());
    let directory = tempfile::tempdir().unwrap();
    let printed = play(steps, directory.path());
    if std::env::var_os("QUOTALITE_SHOW").is_some() {
        for (step, printed) in steps.iter().zip(&printed) {
            println!("$ {}\n{printed}", step.command);
        }
    }
    for (step, printed) in steps.iter().zip(&printed) {
        assert_eq!(
            told(&step.shown),
            told(printed),
            "$ {}\n{printed}",
            step.command
        );
    }
    assert_eq!(printed.len(), steps.len() + 1);
}

#[test]
fn another_answer_is_noticed() {
    assert_eq!(
        told("gpu  held by process 17 for 18ms\n"),
        told("gpu  held by process 234 for 1s 8ms")
    );
    assert_ne!(told("gpu: 2 slots"), told("gpu: 3 slots"));
    assert_ne!(told("admitted"), told("refused"));
    assert_ne!(told("4 used"), told("5 used"));
}
