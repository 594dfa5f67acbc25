//! What slots and settlements cost beside a raw transaction, and how long it takes until a process that waits for a
//! slot goes on when another one lets go. Run `cargo bench --bench slots`.
//!
//! Ratios are measured in turns, as in `acquire`. The waiting process is this binary, started anew in a role.

mod support;

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use quotalite::{Limit, Limiter, MINUTE, Permit, Request};
use rusqlite::Connection;
use support::{KEYED, PLAIN, PLENTY, Raw, compare};
use tempfile::TempDir;

const ROLE: &str = "QUOTALITE_BENCH_WAITS_IN";

fn main() {
    if let Some(file) = std::env::var_os(ROLE) {
        wait_for_slots(&Limiter::open(file).unwrap());
        return;
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}

fn open(directory: &TempDir, name: &str) -> Limiter {
    let limiter = Limiter::open(directory.path().join(name)).unwrap();
    limiter.define(Limit::slots("slots", 1)).unwrap();
    let tokens = Limit::new("tokens").rate(PLENTY, MINUTE);
    limiter.define(tokens).unwrap();
    limiter
}

fn acquire(limiter: &Limiter, ask: &Request) -> Permit {
    let decision = limiter.try_acquire(black_box(ask)).unwrap();
    decision.granted().unwrap()
}

fn ratios(_: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let mut plain = Raw::open(directory.path(), "plain.db", PLAIN);
    let mut keyed = Raw::open(directory.path(), "keyed.db", KEYED);
    let (slots, settled) = (open(&directory, "slots.db"), open(&directory, "settled.db"));
    let (taken, both) = (open(&directory, "taken.db"), open(&directory, "both.db"));
    let (slot, tokens) = (
        Request::new().take("slots", 1),
        Request::new().take("tokens", 1_800),
    );
    let slot_and_tokens = tokens.clone().take("slots", 1);
    let _held = acquire(&taken, &slot);
    let settle =
        |limiter: &Limiter, ask: &Request| acquire(limiter, ask).settle([("tokens", 620)]).unwrap();
    compare(&mut [
        ("raw transaction, one row", Box::new(|| plain.transaction())),
        (
            "two raw transactions, rows keyed as charges",
            Box::new(|| {
                keyed.transaction();
                keyed.transaction();
            }),
        ),
        (
            "a slot: acquire, drop",
            Box::new(|| drop(acquire(&slots, &slot))),
        ),
        (
            "tokens: acquire, settle",
            Box::new(|| drop(settle(&settled, &tokens))),
        ),
        (
            "a slot and tokens: acquire, settle",
            Box::new(|| drop(settle(&both, &slot_and_tokens))),
        ),
        (
            "a slot: denied",
            Box::new(|| assert!(!taken.try_acquire(black_box(&slot)).unwrap().is_granted())),
        ),
    ]);
}

/// A settlement corrects the totals of the charges made since.
fn late_settlements(_: &mut Criterion) {
    println!("{:<44} {:>12}", "settle, median of a call", "time");
    for (later, count) in [(0, 101), (1_000, 101), (1_000_000, 5)] {
        let directory = tempfile::tempdir().unwrap();
        let limiter = open(&directory, "late.db");
        let ask = Request::new().take("tokens", 1_800);
        let permits: Vec<Permit> = (0..count).map(|_| acquire(&limiter, &ask)).collect();
        charge_later(&directory, later);
        // The last ones first, so that each has as many after it as the others, but for a few.
        let mut times: Vec<Duration> = permits
            .iter()
            .rev()
            .map(|permit| {
                let start = Instant::now();
                permit.settle([("tokens", 620)]).unwrap();
                start.elapsed()
            })
            .collect();
        let name = format!("{later} to {} later charges", later + count - 1);
        println!("{name:<44} {:>12?}", percentile(&mut times, 50));
    }
}

fn charge_later(directory: &TempDir, count: i64) {
    let mut connection = Connection::open(directory.path().join("late.db")).unwrap();
    let transaction = connection.transaction().unwrap();
    {
        let mut insert = transaction
            .prepare(
                "INSERT INTO charge (limit_id, at_ns, seq, amount, total)
                 SELECT limit_id, at_ns + 1, 0, 1, total + 1 FROM charge
                 ORDER BY limit_id DESC, at_ns DESC, seq DESC LIMIT 1",
            )
            .unwrap();
        for _ in 0..count {
            insert.execute([]).unwrap();
        }
    }
    transaction.commit().unwrap();
    thread::sleep(Duration::from_nanos(count.unsigned_abs()));
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().into()
}

fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = usage.user_time() + usage.system_time();
    Duration::from_micros(time.num_microseconds().unsigned_abs())
}

/// What the other process is told to do.
const WAIT_FOR_A_SLOT: &[u8] = b"slot\n";
const JUST_ANSWER: &[u8] = b"answer\n";

/// In the other process: for each line that comes in, waits for a slot if that is what it says, and says when it
/// went on and what CPU time the wait took.
fn wait_for_slots(limiter: &Limiter) {
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let came = monotonic();
        let before = cpu_time();
        let permit = (line.unwrap() == "slot").then(|| limiter.acquire("slots").unwrap());
        let at = if permit.is_some() { monotonic() } else { came };
        let used = cpu_time().saturating_sub(before);
        drop(permit);
        let mut answer = String::new();
        writeln!(answer, "{} {}", at.as_nanos(), used.as_nanos()).unwrap();
        out.write_all(answer.as_bytes()).unwrap();
    }
}

/// The other process.
struct Waiter {
    process: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Waiter {
    fn start(directory: &TempDir, name: &str) -> Self {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, directory.path().join(name))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ask, answers) = (process.stdin.take(), process.stdout.take());
        Self {
            process,
            ask: ask.unwrap(),
            answers: BufReader::new(answers.unwrap()),
        }
    }

    /// Lets it wait while this process holds the slot for as long as the pause. Returns how long it took from letting go
    /// to its going on.
    fn round(&mut self, limiter: &Limiter, pause: Duration) -> Duration {
        let held = limiter.acquire("slots").unwrap();
        self.ask.write_all(WAIT_FOR_A_SLOT).unwrap();
        while limiter.usage("slots").unwrap().waiting() == 0 {
            thread::sleep(Duration::from_micros(100));
        }
        thread::sleep(pause);
        let released = monotonic();
        drop(held);
        self.answer().0.saturating_sub(released)
    }

    /// How long a line takes through a pipe: what the kernel needs to wake a process.
    fn round_by_pipe(&mut self, pause: Duration) -> Duration {
        thread::sleep(pause);
        let sent = monotonic();
        self.ask.write_all(JUST_ANSWER).unwrap();
        self.answer().0.saturating_sub(sent)
    }

    fn answer(&mut self) -> (Duration, Duration) {
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let mut numbers = answer
            .split_whitespace()
            .map(|number| Duration::from_nanos(number.parse().unwrap()));
        (numbers.next().unwrap(), numbers.next().unwrap())
    }

    fn end(self) {
        let Self {
            mut process, ask, ..
        } = self;
        drop(ask);
        assert!(process.wait().unwrap().success());
    }
}

fn wake_ups(_: &mut Criterion) {
    const ROUNDS: usize = 1_000;
    let directory = tempfile::tempdir().unwrap();
    let limiter = open(&directory, "wakes.db");
    let mut waiter = Waiter::start(&directory, "wakes.db");
    let mut raw = Raw::open(directory.path(), "raw.db", PLAIN);
    let (mut cold, mut by_pipe, mut by_slot) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let pause = || Duration::from_micros(fastrand::u64(200..2_000));
        // A processor that has slept is slow, and going on after a wait takes two transactions in a row.
        thread::sleep(pause());
        let start = Instant::now();
        raw.transaction();
        cold.push(start.elapsed());
        by_pipe.push(waiter.round_by_pipe(pause()));
        by_slot.push(waiter.round(&limiter, pause()));
    }
    println!(
        "{:<44} {:>12} {:>12} {:>12}",
        "waking another process, in turns", "median", "p99", "longest"
    );
    for (name, times) in [
        ("a raw transaction after a pause", &mut cold),
        ("a line through a pipe", &mut by_pipe),
        ("a slot: let go to going on", &mut by_slot),
    ] {
        let [median, p99, longest] = [50, 99, 100].map(|percent| percentile(times, percent));
        println!("{name:<44} {median:>12?} {p99:>12?} {longest:>12?}");
    }
    waiter.end();
}

/// What waiting costs while nothing happens, for one process and for many in line behind each other.
fn crowds(_: &mut Criterion) {
    const IDLE: Duration = Duration::from_secs(5);
    for count in [1, 50] {
        let directory = tempfile::tempdir().unwrap();
        let limiter = open(&directory, "crowd.db");
        let held = limiter.acquire("slots").unwrap();
        let mut crowd: Vec<Waiter> = (0..count)
            .map(|_| Waiter::start(&directory, "crowd.db"))
            .collect();
        for waiter in &mut crowd {
            waiter.ask.write_all(WAIT_FOR_A_SLOT).unwrap();
        }
        while limiter.usage("slots").unwrap().waiting() < count {
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(IDLE);
        drop(held);
        let used: Duration = crowd.iter_mut().map(|waiter| waiter.answer().1).sum();
        let per_second = used.div_f64(IDLE.as_secs_f64());
        println!("CPU time of processes that wait, {count:>2} of them: {per_second:?} a second");
        crowd.into_iter().for_each(Waiter::end);
    }
}

criterion_group!(benches, ratios, late_settlements, wake_ups, crowds);
