//! What may happen between six workers and a provider, and what has to come of it.

use std::fmt;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use quotalite::{BreakerPolicy, Limit, Limiter, OnConflict, PausePolicy, SECOND};

use crate::provider::Provider;
use crate::provider::dialect::Dialect;
use crate::provider::limits::{Limits, Quota};
use crate::provider::report::Report;
use crate::provider::settings::{Mode, Settings};
use crate::worker::{BREAKER, Done, IN_FLIGHT, Orders, REQUESTS, TOKENS};

const WORKERS: usize = 6;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    Short,
    Long,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    Steady,
    Learning,
    Outage,
}

/// One figure, and whether it is as it has to be.
pub struct Line {
    what: &'static str,
    value: String,
    aim: Option<(bool, &'static str)>,
}

impl Line {
    pub fn is_well(&self) -> bool {
        self.aim.is_none_or(|(is_met, _)| is_met)
    }

    fn told(what: &'static str, value: impl fmt::Display) -> Self {
        Self {
            what,
            value: value.to_string(),
            aim: None,
        }
    }

    fn aimed(
        what: &'static str,
        value: impl fmt::Display,
        is_met: bool,
        aim: &'static str,
    ) -> Self {
        Self {
            aim: Some((is_met, aim)),
            ..Self::told(what, value)
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:34}{:>10}", self.what, self.value)?;
        match self.aim {
            None => Ok(()),
            Some((true, aim)) => write!(f, "   as it has to be: {aim}"),
            Some((false, aim)) => write!(f, "   WRONG, it has to be: {aim}"),
        }
    }
}

impl Story {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Learning => "learning",
            Self::Outage => "outage",
        }
    }

    pub const fn plot(self) -> &'static str {
        match self {
            Self::Steady => "the limits are known, and padded for the way to the provider",
            Self::Learning => {
                "the limits are a guess, three times too high, and learned from headers"
            }
            Self::Outage => "the provider fails for a while, and comes back",
        }
    }

    pub fn tell(self, size: Size) -> Vec<Line> {
        let scratch = tempfile::tempdir().expect("a directory");
        let file = scratch.path().join("limits.db");
        let limiter = Limiter::open(&file).expect("a new file");
        // Calls go on all the time only where the window is short.
        let (per_window, window) = match self {
            Self::Outage => (100, SECOND),
            _ => (1_000, 10 * SECOND),
        };
        let pad = window / 33;
        let provider = Provider::start(Settings {
            limits: Limits {
                requests: Some(Quota::new(per_window, window)),
                tokens: Some(Quota::new(per_window * 100, window)),
                concurrency: Some(40),
            },
            dialect: Dialect::Ietf,
            latency: Duration::from_millis(20),
            jitter: Duration::from_millis(10),
            ..Settings::default()
        });
        let guess = if self == Self::Learning { 3 } else { 1 };
        let pauses = PausePolicy::default().first(SECOND).cap(10 * SECOND);
        let limits = [
            Limit::new(REQUESTS)
                .rate(per_window * guess, window)
                .pad(pad)
                .pauses(pauses),
            Limit::new(TOKENS)
                .rate(per_window * 100 * guess, window)
                .pad(pad)
                .pauses(pauses),
            Limit::slots(IN_FLIGHT, 40),
            Limit::breaker(
                BREAKER,
                BreakerPolicy::default()
                    .window(SECOND / 2)
                    .minimum_calls(5)
                    .open_for(SECOND)
                    .probes(2),
            ),
        ];
        limiter
            .define_all(limits, OnConflict::Fail)
            .expect("limits");
        let jobs = match (size, self) {
            (Size::Short, Self::Steady) => 3_000,
            (Size::Short, _) => 2_400,
            (Size::Long, Self::Steady) => 10_000,
            (Size::Long, _) => 6_000,
        };
        let orders = Orders {
            file: file.display().to_string(),
            url: provider.url(),
            jobs: jobs / WORKERS,
            learns: self == Self::Learning,
        };
        let begun = Instant::now();
        let workers: Vec<Child> = (0..WORKERS).map(|_| start(&orders)).collect();
        let outage = (self == Self::Outage).then(|| fail_for_a_while(&provider));
        let mut done = Done::default();
        for worker in workers {
            let output = worker.wait_with_output().expect("a worker");
            assert!(output.status.success(), "a worker ended badly");
            done.add(serde_json::from_slice(&output.stdout).expect("what it has done"));
        }
        let report = provider.report();
        let audit = provider.audit();
        let mut lines = vec![
            Line::told("jobs", done.jobs),
            Line::told("calls", done.calls),
            Line::told("time", format!("{:.1} s", begun.elapsed().as_secs_f64())),
            Line::aimed("given up", done.gave_up, done.gave_up == 0, "0"),
            Line::aimed(
                "provider over its limits",
                audit.len(),
                audit.is_empty(),
                "0",
            ),
        ];
        lines.extend(match self {
            Self::Steady => steady(&report, done),
            Self::Learning => learning(&report, window),
            Self::Outage => after(&report, done, outage.unwrap_or_default(), per_window),
        });
        lines
    }
}

fn start(orders: &Orders) -> Child {
    let program = std::env::current_exe().expect("this program");
    Command::new(program)
        .arg("worker")
        .arg(serde_json::to_string(orders).expect("orders"))
        .stdout(Stdio::piped())
        .spawn()
        .expect("a worker")
}

fn steady(report: &Report, done: Done) -> Vec<Line> {
    let used = report.requests.used.unwrap_or(0.0);
    vec![
        Line::aimed("answers of 429", done.refused, done.refused == 0, "0"),
        Line::aimed(
            "of the provider's capacity used",
            format!("{:.1} %", used * 100.0),
            used >= 0.95,
            "95 % or more",
        ),
        amplification(done),
    ]
}

fn amplification(done: Done) -> Line {
    let thousandths = done.calls * 1_000 / done.jobs.max(1);
    Line::aimed(
        "calls per job",
        format!("{}.{:03}", thousandths / 1_000, thousandths % 1_000),
        thousandths <= 1_500,
        "at most 1.5",
    )
}

fn learning(report: &Report, window: Duration) -> Vec<Line> {
    let refused = |seconds: &[crate::provider::report::Second]| -> u64 {
        seconds
            .iter()
            .map(|second| second.arrivals - second.accepted)
            .sum()
    };
    // What is learned is in force at once; what was sent before may still be refused.
    let first = usize::try_from(window.as_secs()).unwrap_or(0) + 1;
    let first = first.min(report.per_second.len());
    let (within, later) = report.per_second.split_at(first);
    let later = refused(later);
    vec![
        Line::told("refused in the first window", refused(within)),
        Line::aimed("refused after that", later, later == 0, "0"),
    ]
}

/// What was seen of an outage.
#[derive(Clone, Copy, Debug, Default)]
struct Outage {
    /// What was in flight when it began.
    in_flight: usize,
    lasted: Duration,
    /// At which second it ended.
    ended_s: usize,
}

fn fail_for_a_while(provider: &Provider) -> Outage {
    thread::sleep(Duration::from_secs(4));
    let begun = Instant::now();
    provider.outage(Mode::Down);
    let in_flight = provider.report().in_flight;
    thread::sleep(Duration::from_secs(6));
    provider.outage(Mode::Up);
    let ended = Duration::from_secs_f64(provider.report().seconds);
    Outage {
        in_flight,
        lasted: begun.elapsed(),
        ended_s: usize::try_from(ended.as_secs()).unwrap_or(0),
    }
}

fn after(report: &Report, done: Done, outage: Outage, rate_s: u64) -> Vec<Line> {
    // It takes half of the calls of half a second to open it, and as many are in flight then as may be; from then on two probes
    // a second.
    let most = rate_s / 4 + 40 + 2 * (outage.lasted.as_secs() + 1);
    let sent = report.in_outage.down;
    let end = outage.ended_s.min(report.per_second.len());
    let first = report.per_second[end..]
        .iter()
        .take(2)
        .map(|second| second.arrivals);
    let first: u64 = first.max().unwrap_or(0);
    vec![
        Line::told("in flight when it began", outage.in_flight),
        Line::aimed(
            "sent during the outage",
            sent,
            sent <= most,
            "what opens it, what is in flight, two probes a second",
        ),
        Line::told("arrivals in a second after it", first),
        Line::aimed(
            "of the rate",
            format!("{} %", first * 100 / rate_s),
            first * 10 <= rate_s * 12,
            "120 % at most, as seconds are counted",
        ),
        amplification(done),
    ]
}
