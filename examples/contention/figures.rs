//! What came of all rounds: medians, and the ratios that count.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::histogram::Histogram;
use crate::round::Sample;
use crate::subjects::{Subject, charges};

/// The figures of one round of one subject.
struct Round {
    per_second: f64,
    /// Of the baseline, measured shortly before.
    raw_per_second: f64,
    /// What the caller that got most done has done, relative to the one that got least done. Nothing counts as one.
    spread: f64,
    cpu_us: f64,
}

/// All rounds of a subject.
#[derive(Default)]
pub struct Record {
    rounds: Vec<Round>,
    times: Histogram,
}

/// One line of the table.
pub struct Row<'a> {
    pub subject: &'a Subject,
    pub per_second: f64,
    pub to_raw: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
    pub worst: Duration,
    pub spread: f64,
    pub cpu_us: f64,
}

impl Record {
    /// Adds a round, of which each process has sent a sample, and returns its throughput.
    pub fn add(&mut self, samples: &[Sample], raw_per_second: Option<f64>) -> f64 {
        let callers: Vec<u64> = samples
            .iter()
            .flat_map(|s| s.calls.iter().copied())
            .collect();
        let calls = as_f64(callers.iter().sum());
        let took = samples
            .iter()
            .map(|sample| sample.took)
            .max()
            .unwrap_or_default();
        let cpu: Duration = samples.iter().map(|sample| sample.cpu).sum();
        let (most, least) = (callers.iter().max(), callers.iter().min());
        let per_second = calls / took.as_secs_f64();
        self.rounds.push(Round {
            per_second,
            raw_per_second: raw_per_second.unwrap_or(per_second),
            spread: as_f64(most.copied().unwrap_or(0)) / as_f64(least.copied().unwrap_or(0).max(1)),
            cpu_us: cpu.as_secs_f64() * 1e6 / calls.max(1.0),
        });
        for sample in samples {
            self.times.add(&sample.times);
        }
        per_second
    }

    pub fn row<'a>(&self, subject: &'a Subject) -> Row<'a> {
        Row {
            subject,
            per_second: self.median(|round| round.per_second),
            to_raw: self.median(|round| round.per_second / round.raw_per_second),
            p50: self.times.per_mille(500),
            p99: self.times.per_mille(990),
            p999: self.times.per_mille(999),
            worst: self.times.worst(),
            spread: self.median(|round| round.spread),
            cpu_us: self.median(|round| round.cpu_us),
        }
    }

    fn median(&self, figure: impl Fn(&Round) -> f64) -> f64 {
        median(self.rounds.iter().map(figure))
    }
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What is to be reached.
#[derive(Clone, Copy)]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

/// One of the figures that count.
pub struct Figure {
    pub key: &'static str,
    pub meaning: String,
    pub aim: Aim,
    /// Nothing where there is nothing to measure.
    pub value: Option<f64>,
}

impl Figure {
    pub fn is_met(&self) -> Option<bool> {
        self.value.map(|value| match self.aim {
            Aim::AtLeast(least) => value >= least,
            Aim::AtMost(most) => value <= most,
        })
    }
}

/// All that was measured, by the names of the subjects.
pub type Records = HashMap<String, Record>;

/// The figures that count. `most` is the size of the largest ledger.
pub fn figures(records: &Records, most: u64) -> Vec<Figure> {
    use Aim::{AtLeast, AtMost};
    let to_raw = |id: &str| {
        let record = records.get(id)?;
        Some(record.median(|round| round.per_second / round.raw_per_second))
    };
    let granted = "threads_1_granted";
    let ratio = |id: &str, other: &str| ratio(records, id, other);
    let crowd = records.get("processes_8_granted");
    let longest = charges(most);
    let later = crate::report::grouped(most);
    let slower = |id: &str| ratio(granted, id);
    let line = slower("book")
        .zip(slower("refused_by_line"))
        .map(|(a, b)| a.max(b));
    let figure = |key, meaning: &str, aim, value| Figure {
        key,
        meaning: meaning.to_owned(),
        aim,
        value,
    };
    vec![
        figure(
            "granted_1",
            "granted, one caller / raw",
            AtLeast(0.9),
            to_raw(granted),
        ),
        figure(
            "threads_8",
            "granted, 8 threads / raw",
            AtLeast(5.0),
            to_raw("threads_8_granted"),
        ),
        figure(
            "processes_8",
            "granted, 8 processes / raw",
            AtLeast(0.9),
            to_raw("processes_8_granted"),
        ),
        figure(
            "worst_wait_ms",
            "the longest call of 8 processes, in ms",
            AtMost(50.0),
            crowd.map(|record| record.times.worst().as_secs_f64() * 1e3),
        ),
        figure(
            "fairness",
            "8 processes, the most / the fewest calls",
            AtMost(1.5),
            crowd.map(|record| record.median(|round| round.spread)),
        ),
        figure(
            "refused_memory",
            "refused again / granted",
            AtLeast(50.0),
            ratio("refused_memory", granted),
        ),
        figure(
            "refused_read",
            "refused, another amount / granted",
            AtLeast(2.5),
            ratio("refused_read", granted),
        ),
        figure(
            "block_100",
            "handed out from a block of 100 / granted",
            AtLeast(50.0),
            block_100(records),
        ),
        figure(
            "charges_1e7",
            &format!("time with {later} live charges / with 100"),
            AtMost(1.3),
            ratio("charges_100", &longest),
        ),
        figure(
            "settle_1e7",
            &format!("time to settle before {later} charges / granted"),
            AtMost(5.0),
            slower("settle"),
        ),
        figure(
            "line_1e4",
            "time to book or be refused behind 10 000 / granted",
            AtMost(5.0),
            line,
        ),
    ]
}

/// How many times faster a permit from a block of 100 is than one granted by itself.
fn block_100(_records: &Records) -> Option<f64> {
    None
}

/// The throughput of one subject relative to that of another.
fn ratio(records: &Records, id: &str, other: &str) -> Option<f64> {
    let (these, those) = (records.get(id)?, records.get(other)?);
    let pairs = these.rounds.iter().zip(&those.rounds);
    Some(median(
        pairs.map(|(this, that)| this.per_second / that.per_second),
    ))
}

/// Everything as one object.
pub fn to_json(figures: &[Figure], rows: &[Row<'_>], run: Map<String, Value>) -> Value {
    let mut object = run;
    for figure in figures {
        object.insert(figure.key.to_owned(), json!(figure.value));
    }
    let row = |row: &Row<'_>| {
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        let subject = row.subject;
        json!({
            "id": subject.id, "calls": subject.calls.to_string(), "processes": subject.processes,
            "threads": subject.threads, "size": subject.size,
            "calls_per_second": row.per_second, "ratio_to_raw": row.to_raw,
            "p50_us": micros(row.p50), "p99_us": micros(row.p99), "p999_us": micros(row.p999),
            "worst_us": micros(row.worst), "fairness": row.spread, "cpu_us_per_call": row.cpu_us,
        })
    };
    object.insert("rows".to_owned(), rows.iter().map(row).collect());
    Value::Object(object)
}

#[expect(clippy::cast_precision_loss, reason = "for ratios")]
fn as_f64(number: u64) -> f64 {
    number as f64
}
