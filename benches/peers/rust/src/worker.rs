//! The closed loop of a worker, the same for every peer: what `workers/loop.py` is for Python.

use std::io::{BufRead as _, Write as _};
use std::sync::Barrier;
use std::thread;

use rustix::time::{ClockId, clock_gettime};

/// What a call came to.
pub enum Outcome {
    Granted,
    Refused,
    Failed(String),
}

/// What the driver asks for, in the order of the arguments.
pub struct Task {
    pub peer: String,
    /// A file or a URL.
    pub place: String,
    pub per_second: u32,
    /// For peers that can have two windows; none in a contended cell.
    pub per_minute: Option<u32>,
    pub threads: usize,
}

impl Task {
    pub fn from_args() -> Self {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let [peer, place, per_second, per_minute, threads] = args.as_slice() else {
            panic!("expected PEER PLACE PER_SECOND PER_MINUTE THREADS");
        };
        let per_minute = per_minute.parse().expect("a number");
        Self {
            peer: peer.clone(),
            place: place.clone(),
            per_second: per_second.parse().expect("a number"),
            per_minute: (per_minute > 0).then_some(per_minute),
            threads: threads.parse().expect("a number"),
        }
    }
}

/// Of refusals that come faster than this, one is logged: a peer in memory refuses thirty million times a second.
const REFUSALS_APART_NS: i64 = 10_000;

fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec * 1_000_000_000 + now.tv_nsec
}

/// Says that the worker is ready, reads from when until when it shall run, and calls until then. Each thread has a
/// caller of its own; all threads' logs are printed as one line of JSON.
pub fn run<C: FnMut() -> Outcome + Send>(callers: Vec<C>) {
    println!("ready");
    let mut line = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut line)
        .expect("a line");
    let mut words = line
        .split_whitespace()
        .map(|word| word.parse().expect("a number"));
    let (Some(start_ns), Some(end_ns)) = (words.next(), words.next()) else {
        return; // The driver has gone away.
    };
    let together = Barrier::new(callers.len());
    let logs: Vec<String> = thread::scope(|scope| {
        let threads: Vec<_> = callers
            .into_iter()
            .map(|mut call| {
                let together = &together;
                scope.spawn(move || {
                    together.wait();
                    while now_ns() < start_ns {
                        thread::yield_now();
                    }
                    Log::of(start_ns, end_ns, &mut call).to_json()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    println!("[{}]", logs.join(","));
    std::io::stdout().flush().expect("a reader");
}

/// Instants are relative to the common start.
struct Log {
    calls: u64,
    failures: u64,
    failed: Vec<(i64, i64)>,
    first_failure: Option<String>,
    /// When the last call returned.
    end_ns: i64,
    longest_ns: i64,
    latencies: Latencies,
    granted: u64,
    grants: Vec<(i64, i64)>,
    refused: u64,
    refusals: Vec<(i64, i64)>,
}

/// More grants than any limit that is reached lets through: beyond that, they are only counted.
const GRANTS_LOGGED: usize = 50_000;

impl Log {
    fn of(start_ns: i64, end_ns: i64, call: &mut impl FnMut() -> Outcome) -> Self {
        let mut log = Self {
            calls: 0,
            failures: 0,
            failed: Vec::new(),
            first_failure: None,
            end_ns: 0,
            longest_ns: 0,
            latencies: Latencies::new(),
            granted: 0,
            grants: Vec::with_capacity(GRANTS_LOGGED),
            refused: 0,
            refusals: Vec::with_capacity(GRANTS_LOGGED),
        };
        let mut refused_ns = i64::MIN / 2;
        loop {
            let before_ns = now_ns();
            if before_ns >= end_ns {
                return log;
            }
            let outcome = call();
            let after_ns = now_ns();
            let span = (before_ns - start_ns, after_ns - start_ns);
            log.calls += 1;
            log.end_ns = span.1;
            log.longest_ns = log.longest_ns.max(after_ns - before_ns);
            log.latencies.add(after_ns - before_ns);
            match outcome {
                Outcome::Granted => {
                    log.granted += 1;
                    if log.grants.len() < GRANTS_LOGGED {
                        log.grants.push(span);
                    }
                }
                Outcome::Refused => {
                    log.refused += 1;
                    if before_ns - refused_ns >= REFUSALS_APART_NS {
                        refused_ns = before_ns;
                        log.refusals.push(span);
                    }
                }
                Outcome::Failed(error) => {
                    log.failures += 1;
                    log.failed.push(span);
                    log.first_failure.get_or_insert(error);
                }
            }
        }
    }

    fn to_json(&self) -> String {
        format!(
            "{{\"calls\":{},\"granted\":{},\"refused\":{},\"failures\":{},\"first_failure\":{:?},\"end_ns\":{},\
             \"longest_ns\":{},\"latencies\":{},\"grants\":{},\"refusals\":{},\"failed\":{}}}",
            self.calls,
            self.granted,
            self.refused,
            self.failures,
            self.first_failure.as_deref().unwrap_or_default(),
            self.end_ns,
            self.longest_ns,
            self.latencies.to_json(),
            spans(&self.grants),
            spans(&self.refusals),
            spans(&self.failed),
        )
    }
}

fn spans(spans: &[(i64, i64)]) -> String {
    let pairs: Vec<String> = spans
        .iter()
        .map(|(before, after)| format!("[{before},{after}]"))
        .collect();
    format!("[{}]", pairs.join(","))
}

/// How many calls took how long, to three digits, so that counting costs the loop next to nothing.
struct Latencies {
    counts: Vec<u64>,
}

impl Latencies {
    fn new() -> Self {
        Self {
            counts: vec![0; 12 * 1_000],
        }
    }

    fn add(&mut self, latency_ns: i64) {
        let mut digits = usize::try_from(latency_ns).unwrap_or(0);
        let mut tens = 0;
        while digits >= 1_000 {
            digits /= 10;
            tens += 1;
        }
        self.counts[tens * 1_000 + digits] += 1;
    }

    /// Pairs of a latency and how many calls had it, in order.
    fn to_json(&self) -> String {
        let mut latencies = Vec::new();
        for (index, count) in self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            let latency_ns =
                (index % 1_000) * 10_usize.pow(u32::try_from(index / 1_000).expect("small"));
            latencies.push(format!("[{latency_ns},{count}]"));
        }
        format!("[{}]", latencies.join(","))
    }
}
