//! What users want to know, in a few aligned lines.

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use crate::audit::{Findings, as_f64};
use crate::team::{Fate, Run, Worker};
use crate::{Failure, Job};

/// Prints the report. False if a law was broken.
pub fn print(
    run: &Run,
    findings: &Findings,
    jobs: Option<&[Job]>,
    db: &Path,
) -> Result<bool, Failure> {
    let mut out = String::new();
    let grants: usize = run.workers.iter().map(|worker| worker.grants.len()).sum();
    let (processes, seconds) = (run.workers.len(), run.took.as_secs_f64());
    writeln!(
        out,
        "{grants} grants to {processes} processes in {seconds:.1} s\n"
    )?;
    write_workers(&mut out, run, jobs.is_some())?;
    write_rates(&mut out, run, findings)?;
    for (name, figure, meaning) in facts(run, findings, jobs, db)? {
        writeln!(out, "{name:<14}  {figure:>7}  {meaning}")?;
    }
    writeln!(
        out,
        "\nlook yourself:\n  sqlite3 -readonly -box {} 'SELECT * FROM status'",
        quoted(db)
    )?;
    let broken = broken_laws(run, findings);
    for law in &broken {
        writeln!(out, "BROKEN: {law}")?;
    }
    match io::stdout().write_all(out.as_bytes()) {
        // Whoever reads only the first lines still wants the exit status.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(broken.is_empty()),
    }
}

/// What must never be, however slow the machine is.
fn broken_laws(run: &Run, findings: &Findings) -> Vec<&'static str> {
    let laws = [
        (over(findings) > 0, "a limit was exceeded"),
        (findings.sought == 0, "nobody was granted anything"),
        (
            findings.missing > 0,
            "an acknowledged grant is not in the ledger",
        ),
        (
            findings.unacknowledged > run.kills,
            "a charge was made that nobody was granted",
        ),
        (not_done_once(run) > 0, "a job was not done exactly once"),
        (
            run.workers.iter().any(|worker| worker.fate == Fate::Failed),
            "a worker failed",
        ),
    ];
    laws.iter()
        .filter(|(is_broken, _)| *is_broken)
        .map(|(_, law)| *law)
        .collect()
}

fn over(findings: &Findings) -> usize {
    findings.rates.iter().map(|rate| rate.over).sum()
}

fn not_done_once(run: &Run) -> usize {
    run.done.iter().filter(|times| **times != 1).count()
}

type Fact = (&'static str, String, String);

fn facts(
    run: &Run,
    findings: &Findings,
    jobs: Option<&[Job]>,
    db: &Path,
) -> Result<Vec<Fact>, Failure> {
    let mut facts = Vec::new();
    let mut fact = |name, figure: &dyn ToString, meaning: &dyn ToString| {
        facts.push((name, figure.to_string(), meaning.to_string()));
    };
    fact(
        "fairness",
        &fairness(run),
        &"most / fewest grants of workers that ran throughout",
    );
    fact(
        "over the limit",
        &over(findings),
        &format!(
            "of {} windows: every rate at every charge",
            findings.windows
        ),
    );
    fact(
        "missing",
        &findings.missing,
        &format!("of {} acknowledged grants", findings.sought),
    );
    fact(
        "unacknowledged",
        &findings.unacknowledged,
        &"charges; a killed worker may leave one",
    );
    if let Some(booked) = run.booked.as_ref().filter(|booked| booked.at_kill > 0) {
        let back = booked.at_kill.saturating_sub(booked.still(db)?);
        fact(
            "given back",
            &back,
            &format!(
                "of {} charges that the killed worker had booked",
                booked.at_kill
            ),
        );
    }
    if let Some(used) = findings.capacity_used {
        fact(
            "capacity used",
            &format!("{:.1} %", used * 100.0),
            &"of the rate in the way, over all time waited",
        );
    }
    if findings.outlasted > 0 {
        fact(
            "early room",
            &findings.outlasted,
            &"waits whose way was free sooner, by what was given back",
        );
    }
    let mut late: Vec<i64> = waits(run).map(|grant| grant.late_ns).collect();
    if !late.is_empty() {
        let [p50, p99] = [50, 99].map(|percent| milliseconds(percentile(&mut late, percent)));
        fact(
            "woken late by",
            &p50,
            &format!("p50, {p99} p99, after the permit's instant"),
        );
    }
    if let Some(jobs) = jobs {
        let once = jobs.len() - not_done_once(run);
        fact(
            "jobs done once",
            &once,
            &format!("of {}; {} handed out again", jobs.len(), run.again),
        );
    }
    Ok(facts)
}

fn write_workers(out: &mut String, run: &Run, with_jobs: bool) -> fmt::Result {
    let jobs_head = if with_jobs { "    jobs" } else { "" };
    writeln!(
        out,
        "worker  granted    tokens{jobs_head}  wait p50      p99"
    )?;
    for (position, worker) in run.workers.iter().enumerate() {
        let tokens: u64 = worker.grants.iter().map(|grant| grant.tokens).sum();
        let mut waited: Vec<i64> = worker.grants.iter().map(|grant| grant.waited_ns).collect();
        let jobs = if with_jobs {
            format!("{:>8}", worker.done)
        } else {
            String::new()
        };
        let fate = match (worker.fate, worker.founder) {
            (Fate::Killed, _) => "  killed",
            (Fate::Failed, _) => "  failed",
            (_, false) => "  in its place",
            _ => "",
        };
        writeln!(
            out,
            "{:>6}  {:>7}  {tokens:>8}{jobs}  {:>8}  {:>7}{fate}",
            position + 1,
            worker.grants.len(),
            milliseconds(percentile(&mut waited, 50)),
            milliseconds(percentile(&mut waited, 99)),
        )?;
    }
    writeln!(out)
}

fn write_rates(out: &mut String, run: &Run, findings: &Findings) -> fmt::Result {
    writeln!(
        out,
        "{:<14}  {:<20}  fullest window  waited for  refused by",
        "limit", "rate"
    )?;
    for found in &findings.rates {
        let refused = run.workers.iter().filter(|worker| {
            worker
                .refused
                .as_ref()
                .is_some_and(|(key, rate)| *key == found.key && *rate == found.rate.to_string())
        });
        let full = as_f64(found.peak) / as_f64(found.rate.capacity()) * 100.0;
        writeln!(
            out,
            "{:<14}  {:<20}  {:>12.1} %  {:>10}  {:>10}",
            found.key,
            found.rate.to_string(),
            full,
            found.waits,
            refused.count()
        )?;
    }
    writeln!(out)
}

fn fairness(run: &Run) -> String {
    let whole = |worker: &&Worker| worker.founder && worker.fate == Fate::Finished;
    let grants = run
        .workers
        .iter()
        .filter(whole)
        .map(|worker| worker.grants.len() as u64);
    match (grants.clone().max(), grants.min()) {
        (Some(most), Some(fewest)) if fewest > 0 => format!("{:.2}", as_f64(most) / as_f64(fewest)),
        _ => "-".to_owned(),
    }
}

fn waits(run: &Run) -> impl Iterator<Item = &crate::worker::Grant> {
    run.workers
        .iter()
        .flat_map(|worker| &worker.grants)
        .filter(|grant| grant.waited_ns > 0)
}

/// The value that this many percent of the values do not exceed; zero if there are none.
fn percentile(values: &mut [i64], percent: usize) -> i64 {
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100).saturating_sub(1);
    values.get(rank).copied().unwrap_or(0)
}

fn milliseconds(nanos: i64) -> String {
    let milliseconds = Duration::from_nanos(nanos.unsigned_abs()).as_secs_f64() * 1e3;
    let digits = if milliseconds < 10.0 { 2 } else { 0 };
    format!("{milliseconds:.digits$} ms")
}

/// A path as a shell reads it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c))
    {
        return text;
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}
