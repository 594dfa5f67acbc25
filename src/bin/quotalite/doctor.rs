//! What may be wrong with the file: `doctor`.

use std::io::{self, Write};
use std::path::Path;

use clap::Args;
use quotalite::{Checkup, Finding, Severity};
use serde::Serialize;

use crate::shell::{Code, Failure, Shell};
use crate::show::{BAD, BOLD, DIM, GOOD, WARN};

/// Look for what may be wrong with the file, and say what it means and what to do
///
/// Nothing is changed without --fix, and nobody has to wait. Ends with 1 if something is wrong and is still so; notes are nothing
/// wrong. A large file
/// is read as a whole: that takes its time.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Mend what can be mended while others use the file; a damaged one is not touched
    #[arg(long)]
    fix: bool,
}

#[derive(Debug, Serialize)]
struct Doctor<'a> {
    file: &'a Path,
    findings: Vec<Found<'a>>,
    checked: &'a [String],
}

#[derive(Debug, Serialize)]
struct Found<'a> {
    kind: &'static str,
    severity: &'static str,
    subject: &'a str,
    what: &'a str,
    why: &'static str,
    todo: &'static str,
    fixed: bool,
}

/// A file so large takes more than a moment to read.
const LARGE: u64 = 256 << 20;

pub(crate) fn doctor(shell: &Shell, args: &DoctorArgs) -> Result<Code, Failure> {
    let file = shell.db()?;
    if file.metadata().is_ok_and(|found| found.len() > LARGE) {
        shell.remark("reading all of the file ...");
    }
    let first = Checkup::of(file)?;
    let (last, mended) = if args.fix && !first.findings().is_empty() {
        let mended = first.mend();
        (Checkup::of(file)?, mended)
    } else {
        (first.clone(), Ok(()))
    };
    let is_same = |a: &Finding, b: &Finding| (a.kind(), a.subject()) == (b.kind(), b.subject());
    let left = |found: &Finding| last.findings().iter().find(|left| is_same(left, found));
    let fixed = first
        .findings()
        .iter()
        .filter(|found| left(found).is_none())
        .map(|found| (found, true));
    let findings = last.findings().iter().map(|found| (found, false));
    let answer = Doctor {
        file,
        findings: findings
            .chain(fixed)
            .map(|(found, fixed)| Found {
                kind: found.kind().as_str(),
                severity: found.severity().as_str(),
                subject: found.subject(),
                what: found.what(),
                why: found.why(),
                todo: found.todo(),
                fixed,
            })
            .collect(),
        checked: last.checked(),
    };
    shell.print(&answer, |out| answer.write(out))?;
    mended?;
    let is_wrong = |found: &Finding| found.severity() != Severity::Note;
    Ok(if last.findings().iter().any(is_wrong) {
        Code::Found
    } else {
        Code::Done
    })
}

impl Doctor<'_> {
    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for checked in self.checked {
            writeln!(out, "{GOOD}ok{GOOD:#}  {checked}")?;
        }
        for found in &self.findings {
            let style = if found.fixed {
                GOOD
            } else if found.severity == Severity::Fault.as_str() {
                BAD
            } else if found.severity == Severity::Warning.as_str() {
                WARN
            } else {
                DIM
            };
            let state = if found.fixed { "fixed" } else { found.severity };
            writeln!(out)?;
            writeln!(
                out,
                "{style}{state}{style:#}  {BOLD}{}{BOLD:#}: {}  {DIM}({}){DIM:#}",
                found.subject, found.what, found.kind
            )?;
            writeln!(out, "  why:  {}", found.why)?;
            if !found.fixed {
                writeln!(out, "  todo: {}", found.todo)?;
            }
        }
        if self.findings.is_empty() {
            writeln!(out, "nothing found")?;
        }
        Ok(())
    }
}
