//! The figures that count, and what they should be.

use std::time::Duration;

use serde_json::{Value, json};

use crate::records::{Record, Records, Row};
use crate::report::grouped;
use crate::subjects::charges;

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

/// All of them. `most` is the size of the largest ledger.
pub fn figures(records: &Records, most: u64) -> Vec<Figure> {
    use Aim::{AtLeast, AtMost};
    const GRANTED: &str = "threads_1_granted";
    let to_raw = |id: &str| records.get(id).map(Record::to_raw);
    let ratio = |id: &str, other: &str| Some(records.get(id)?.to(records.get(other)?));
    let slower = |id: &str| ratio(GRANTED, id);
    let crowd = records.get("processes_8_granted");
    let worst_ms = crowd.map(|record| record.worst().as_secs_f64() * 1e3);
    let line = slower("book").zip(slower("refused_by_line"));
    let later = grouped(most);
    let figure = |key, value, aim, meaning: &str| Figure {
        key,
        value,
        aim,
        meaning: meaning.to_owned(),
    };
    vec![
        figure(
            "granted_1",
            to_raw(GRANTED),
            AtLeast(0.9),
            "throughput / raw",
        ),
        figure(
            "threads_8",
            to_raw("threads_8_granted"),
            AtLeast(5.0),
            "throughput of 8 threads / raw",
        ),
        figure(
            "processes_8",
            to_raw("processes_8_granted"),
            AtLeast(0.9),
            "throughput of 8 processes / raw",
        ),
        figure(
            "worst_wait_ms",
            worst_ms,
            AtMost(50.0),
            "the longest call of 8 processes, in ms",
        ),
        figure(
            "fairness",
            crowd.map(Record::spread),
            AtMost(1.5),
            "most / fewest calls of 8 processes",
        ),
        figure(
            "refused_memory",
            ratio("refused_memory", GRANTED),
            AtLeast(50.0),
            "throughput, refused again / granted",
        ),
        figure(
            "refused_read",
            ratio("refused_read", GRANTED),
            AtLeast(2.5),
            "throughput, refused another amount / granted",
        ),
        figure(
            "block_100",
            ratio("block_100", GRANTED),
            AtLeast(50.0),
            "throughput, from a block of 100 / granted",
        ),
        figure(
            "charges_1e7",
            ratio("charges_100", &charges(most)),
            AtMost(1.3),
            &format!("time beside {later} charges / beside 100"),
        ),
        figure(
            "settle_1e7",
            slower("settle"),
            AtMost(5.0),
            &format!("time to settle before {later} charges / granted"),
        ),
        figure(
            "line_1e4",
            line.map(|(book, refused)| book.max(refused)),
            AtMost(5.0),
            "time to book or be refused, the longer / granted",
        ),
    ]
}

/// Everything as one object.
pub fn to_json(about: Value, figures: &[Figure], rows: &[Row<'_>]) -> Value {
    let mut object = about;
    for figure in figures {
        object[figure.key] = json!(figure.value);
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
    object["rows"] = rows.iter().map(row).collect();
    object
}
