//! A round: one caller or several call again and again until its time is over.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use crate::Failure;
use crate::histogram::Histogram;

/// When a round begins and ends, by the clock that all processes share.
#[derive(Clone, Copy)]
pub struct Span {
    start: Duration,
    end: Duration,
}

impl Span {
    /// Begins after a moment that is enough to tell all callers of it.
    pub fn of(length: Duration, callers: usize) -> Result<Self, Failure> {
        let telling =
            Duration::from_millis(3) + Duration::from_micros(200) * u32::try_from(callers)?;
        let start = monotonic()? + telling;
        Ok(Self {
            start,
            end: start + length,
        })
    }

    pub fn parse(text: &str) -> Result<Self, Failure> {
        let (start, end) = text
            .split_once(' ')
            .ok_or("a round has a start and an end")?;
        Ok(Self {
            start: Duration::from_nanos(start.parse()?),
            end: Duration::from_nanos(end.parse()?),
        })
    }

    /// Waits for the start; returns it and the end. A process that is woken late has lost that time.
    fn begin(self) -> Result<(Instant, Instant), Failure> {
        thread::sleep(self.start.saturating_sub(monotonic()?));
        let late = monotonic()?.saturating_sub(self.start);
        let start = Instant::now()
            .checked_sub(late)
            .ok_or("the clock has just started")?;
        Ok((start, start + self.end.saturating_sub(self.start)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.start.as_nanos(), self.end.as_nanos())
    }
}

fn monotonic() -> Result<Duration, Failure> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// What came of a round in one process.
pub struct Sample {
    /// How many calls each caller has finished in time.
    pub calls: Vec<u64>,
    /// How long that took: the whole round, unless what they call has run out.
    pub took: Duration,
    /// The processor time of the whole process.
    pub cpu: Duration,
    pub times: Histogram,
}

impl Sample {
    /// What [`Display`](fmt::Display) has written.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [calls, took, cpu, times] = fields[..] else {
            return Err(format!("no sample: {text}").into());
        };
        let calls: Result<Vec<u64>, _> = calls.split(',').map(str::parse).collect();
        Ok(Self {
            calls: calls?,
            took: Duration::from_nanos(took.parse()?),
            cpu: Duration::from_nanos(cpu.parse()?),
            times: Histogram::parse(times)?,
        })
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let calls: Vec<String> = self.calls.iter().map(u64::to_string).collect();
        let (took, cpu) = (self.took.as_nanos(), self.cpu.as_nanos());
        write!(f, "{} {took} {cpu} {}", calls.join(","), self.times)
    }
}

/// One call; false if there is nothing left to call.
pub type Call<'a> = Box<dyn FnMut() -> Result<bool, Failure> + Send + 'a>;

/// Lets each caller call in a thread of its own. Only the last one of so many calls is timed: reading the clock
/// takes as long as a part of a call that does not touch the file.
pub fn run(span: Span, timed_of: u32, callers: Vec<Call<'_>>) -> Result<Sample, Failure> {
    let cpu_before = cpu_time()?;
    let tallies: Vec<Result<Tally, Failure>> = thread::scope(|scope| {
        let threads: Vec<_> = callers
            .into_iter()
            .map(|call| scope.spawn(move || repeat(span, timed_of, call)))
            .collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread
                .join()
                .unwrap_or_else(|_| Err("a caller panicked".into()))
        };
        threads.into_iter().map(join).collect()
    });
    let mut sample = Sample {
        calls: Vec::new(),
        took: Duration::ZERO,
        cpu: cpu_time()?.saturating_sub(cpu_before),
        times: Histogram::default(),
    };
    for tally in tallies {
        let tally = tally?;
        sample.calls.push(tally.calls);
        sample.took = sample.took.max(tally.took);
        sample.times.add(&tally.times);
    }
    Ok(sample)
}

struct Tally {
    calls: u64,
    took: Duration,
    times: Histogram,
}

fn repeat(span: Span, timed_of: u32, mut call: Call<'_>) -> Result<Tally, Failure> {
    let (start, end) = span.begin()?;
    let (mut calls, mut times) = (0, Histogram::default());
    let mut now = Instant::now();
    while now < end {
        for _ in 1..timed_of {
            calls += u64::from(call()?);
        }
        let before = if timed_of > 1 { Instant::now() } else { now };
        if !call()? {
            let took = now - start;
            return Ok(Tally { calls, took, times });
        }
        now = Instant::now();
        times.record(now - before);
        // What ends after the round was hardly disturbed by those who have stopped: it has a time, and does not count.
        calls += u64::from(now <= end);
    }
    let took = end - start;
    Ok(Tally { calls, took, times })
}

fn cpu_time() -> Result<Duration, Failure> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(
        time.num_microseconds().unsigned_abs(),
    ))
}
