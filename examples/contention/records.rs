//! What came of all rounds of each subject.

use std::collections::HashMap;
use std::time::Duration;

use crate::histogram::Histogram;
use crate::round::Sample;
use crate::subjects::Subject;

/// All that was measured, by the names of the subjects.
pub type Records = HashMap<String, Record>;

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
            to_raw: self.to_raw(),
            p50: self.times.per_mille(500),
            p99: self.times.per_mille(990),
            p999: self.times.per_mille(999),
            worst: self.worst(),
            spread: self.spread(),
            cpu_us: self.median(|round| round.cpu_us),
        }
    }

    /// Throughput relative to that of the baseline.
    pub fn to_raw(&self) -> f64 {
        self.median(|round| round.per_second / round.raw_per_second)
    }

    /// Throughput relative to that of another subject, each round to the same round.
    pub fn to(&self, other: &Self) -> f64 {
        let pairs = self.rounds.iter().zip(&other.rounds);
        median(pairs.map(|(this, that)| this.per_second / that.per_second))
    }

    /// The longest call of all rounds.
    pub fn worst(&self) -> Duration {
        self.times.worst()
    }

    pub fn spread(&self) -> f64 {
        self.median(|round| round.spread)
    }

    /// How many processors the calls kept busy.
    pub fn processors(&self) -> f64 {
        self.median(|round| round.cpu_us * round.per_second / 1e6)
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

#[expect(clippy::cast_precision_loss, reason = "for ratios")]
fn as_f64(number: u64) -> f64 {
    number as f64
}
