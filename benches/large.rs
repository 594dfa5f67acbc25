//! What large numbers cost: ledgers of millions of charges, corrections far back in them, and long lines of callers who have
//! booked. Run `cargo bench --bench large`.
//!
//! Calls are timed one by one and in turns; what counts are the ratios to a raw transaction and to an acquisition.

mod support;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use quotalite::{Limit, LimitBuilder, Limiter, MAX_CAPACITY, MINUTE, ManualClock, Permit, Request};
use rusqlite::Connection;
use support::{KEYED, PLENTY, Raw};
use tempfile::TempDir;

/// A name, and what does something once and says how long it took.
type Subject<'a> = (String, Box<dyn FnMut() -> Duration + 'a>);

fn timed(call: impl FnOnce()) -> Duration {
    let start = Instant::now();
    call();
    start.elapsed()
}

/// Times each subject as often, in turns, and prints the medians beside those of the first two: a raw transaction and an
/// acquisition.
fn compare(rounds: usize, subjects: &mut [Subject<'_>]) {
    let mut times = vec![Vec::with_capacity(rounds); subjects.len()];
    for _ in 0..rounds {
        for ((_, subject), times) in subjects.iter_mut().zip(&mut times) {
            times.push(subject());
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let medians: Vec<Duration> = times.iter_mut().map(median).collect();
    println!(
        "{:<60} {:>12} {:>8} {:>12}",
        "in turns, median of a call", "time", "/ raw", "/ acquisition"
    );
    for ((name, _), median) in subjects.iter().zip(&medians) {
        let ratio = |to: Duration| median.as_secs_f64() / to.as_secs_f64();
        let (raw, acquisition) = (ratio(medians[0]), ratio(medians[1]));
        println!("{name:<60} {median:>12?} {raw:>8.2} {acquisition:>12.2}");
    }
}

/// Where a bench is run, and the two that all is compared with.
struct Place {
    directory: TempDir,
    clock: ManualClock,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            clock: ManualClock::new(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn open(&self, name: &str) -> Limiter {
        let builder = Limiter::builder(self.path(name));
        builder.clock(self.clock.clone()).open().unwrap()
    }

    /// Time goes on by about as much as a call takes.
    fn tick(&self) {
        self.clock.advance(Duration::from_micros(10));
    }

    fn grant(&self, limiter: &Limiter) -> Duration {
        self.tick();
        timed(|| assert!(limiter.try_acquire("key").unwrap().is_granted()))
    }
}

/// A raw transaction, and an acquisition that has nothing to do with large numbers.
fn baselines<'a>() -> Vec<Subject<'a>> {
    let place = Place::new();
    let mut raw = Raw::open(place.directory.path(), "raw.db", KEYED);
    let limiter = place.open("granted.db");
    limiter.define(roomy()).unwrap();
    vec![
        (
            "raw transaction, a row keyed as a charge".into(),
            Box::new(move || timed(|| raw.transaction())),
        ),
        ("granted".into(), Box::new(move || place.grant(&limiter))),
    ]
}

fn roomy() -> Limit {
    Limit::new("key")
        .per_hour(PLENTY)
        .rate(PLENTY, MINUTE)
        .build()
        .unwrap()
}

/// A connection that writes in a hurry.
fn connect(path: &Path) -> Connection {
    let connection = Connection::open(path).unwrap();
    connection
        .execute_batch("PRAGMA synchronous = OFF; PRAGMA cache_size = -65536")
        .unwrap();
    connection
}

/// Charges to the first limit of a file, as the crate writes them, at an even pace up to an instant.
fn charge(connection: &Connection, until_ns: i64, count: i64) {
    let sql = "WITH RECURSIVE
        last AS (SELECT at_ns, total FROM charge ORDER BY limit_id DESC, at_ns DESC, seq DESC LIMIT 1),
        number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < ?2)
        INSERT INTO charge (limit_id, at_ns, seq, amount, total)
        SELECT 1, at_ns + (?1 - at_ns) / ?2 * n, 0, 1, total + n FROM number CROSS JOIN last";
    connection
        .prepare_cached(sql)
        .unwrap()
        .execute((until_ns, count))
        .unwrap();
}

/// A ledger with permits at its beginning, then so many other charges, and permits spread among these.
struct Ledger {
    place: Place,
    count: i64,
    limiter: Limiter,
    early: Vec<Permit>,
    spread: Vec<Permit>,
}

const EARLY: usize = 4_000;
const SPREAD: u32 = 10_000;

impl Ledger {
    fn filled(count: i64, spread: u32) -> Self {
        let place = Place::new();
        let limiter = place.open("ledger.db");
        limiter.define(roomy()).unwrap();
        let acquire = || {
            place.tick();
            limiter.acquire(("key", 1_800)).unwrap()
        };
        let early = (0..EARLY).map(|_| acquire()).collect();
        let connection = connect(&place.path("ledger.db"));
        let pause = Duration::from_mins(50) / spread;
        let spread = (0..spread)
            .map(|_| {
                place.clock.advance(pause);
                let now_ns = limiter.now().unwrap().as_nanos();
                charge(&connection, now_ns, count / i64::from(spread));
                acquire()
            })
            .collect();
        Self {
            place,
            count,
            limiter,
            early,
            spread,
        }
    }

    fn grant(&self) -> Duration {
        self.place.grant(&self.limiter)
    }

    /// Two write in turns, so that each reads anew what it goes by.
    fn grant_by_two(&self) {
        let other = self.place.open("ledger.db");
        let mut subjects = baselines();
        for limiter in [&self.limiter, &other] {
            let subject = Box::new(|| self.place.grant(limiter));
            subjects.push(("granted: one of two who write in turns".into(), subject));
        }
        compare(EARLY, &mut subjects);
    }
}

fn settle(permit: &Permit) -> Duration {
    timed(|| drop(permit.settle([("key", 620)]).unwrap()))
}

/// Settles, in order, what was acquired so many acquisitions ago.
fn settle_late(later: usize) -> Subject<'static> {
    let place = Place::new();
    let limiter = place.open("ledger.db");
    limiter.define(roomy()).unwrap();
    let mut open = VecDeque::new();
    let run = move || {
        while open.len() <= later {
            place.tick();
            open.push_back(limiter.acquire(("key", 1_800)).unwrap());
        }
        settle(&open.pop_front().unwrap())
    };
    (format!("settled: {later} later charges"), Box::new(run))
}

fn corrections(_: &mut Criterion) {
    let start = Instant::now();
    let mut ledgers = vec![
        Ledger::filled(100, 1),
        Ledger::filled(1_000_000, 1),
        Ledger::filled(10_000_000, SPREAD),
    ];
    println!("ledgers written in {:?}", start.elapsed());
    let mut subjects = baselines();
    for ledger in &ledgers {
        let name = format!("granted: {} live charges", ledger.count);
        subjects.push((name, Box::new(|| ledger.grant())));
    }
    compare(EARLY, &mut subjects);
    drop(subjects);
    ledgers[ledgers.len() - 1].grant_by_two();
    let mut subjects = baselines();
    subjects.extend([0, 10, 100, 10_000].map(settle_late));
    for ledger in &mut ledgers[1..] {
        let mut permits = ledger.early.drain(..EARLY / 2);
        subjects.push((
            format!("settled: {} later charges", ledger.count),
            Box::new(move || settle(&permits.next().unwrap())),
        ));
    }
    compare(EARLY / 2, &mut subjects);
    drop(subjects);
    let mut ledger = ledgers.pop().unwrap();
    drop(ledgers);
    fastrand::seed(1);
    fastrand::shuffle(&mut ledger.spread);
    let mut subjects = baselines();
    let mut permits = ledger.spread.drain(..);
    subjects.push((
        format!("settled: anywhere among {}", ledger.count),
        Box::new(move || settle(&permits.next().unwrap())),
    ));
    compare(SPREAD as usize, &mut subjects);
    drop(subjects);
    println!("after {SPREAD} corrections in as many places:");
    let mut permits = ledger.early.drain(..);
    let mut subjects = baselines();
    subjects.push((
        "settled: all of them later".into(),
        Box::new(move || settle(&permits.next().unwrap())),
    ));
    compare(EARLY / 2, &mut subjects);
    drop(subjects);
    let mut subjects = baselines();
    subjects.push(("granted".into(), Box::new(|| ledger.grant())));
    compare(EARLY, &mut subjects);
    drop(subjects);
    ledger.grant_by_two();
}

fn huge_amounts(_: &mut Criterion) {
    let place = Place::new();
    let limiter = place.open("huge.db");
    limiter
        .define(Limit::new("key").per_second(MAX_CAPACITY))
        .unwrap();
    let mut subjects = baselines();
    subjects.push((
        format!("granted: {} each second", MAX_CAPACITY - 1),
        Box::new(|| {
            place.clock.advance(Duration::from_secs(1));
            let ask = ("key", MAX_CAPACITY - 1);
            timed(|| assert!(limiter.try_acquire(ask).unwrap().is_granted()))
        }),
    ));
    compare(4_000, &mut subjects);
}

/// Limits, how many have booked, and what each asks for.
struct Line {
    name: &'static str,
    limits: Vec<LimitBuilder>,
    booked: usize,
    ask: fn() -> Request,
}

fn lines() -> [Line; 4] {
    let a = |capacity| Limit::new("a").per_second(capacity);
    let one = || Request::new().take("a", 1);
    [
        Line {
            name: "1/s",
            limits: vec![a(1)],
            booked: 10_000,
            ask: one,
        },
        Line {
            name: "10/s and 300/min",
            limits: vec![a(10).rate(300, MINUTE)],
            booked: 10_000,
            ask: one,
        },
        Line {
            name: "1/s, and 100 of 6 000/min",
            limits: vec![a(1), Limit::new("b").rate(6_000, MINUTE)],
            booked: 10_000,
            ask: || Request::new().take("a", 1).take("b", 100),
        },
        // What is left over in each window is less than some ask for, so that none can be passed over unseen.
        Line {
            name: "1 to 5 of 10/s",
            limits: vec![a(10)],
            booked: 1_000,
            ask: || Request::new().take("a", fastrand::u64(1..=5)),
        },
    ]
}

fn long_lines(_: &mut Criterion) {
    for line in lines() {
        let place = Place::new();
        let limiter = place.open("line.db");
        for limit in line.limits {
            limiter.define(limit).unwrap();
        }
        fastrand::seed(1);
        let book = || {
            place.tick();
            let ask = (line.ask)();
            let start = Instant::now();
            let permit = limiter.book(&ask).unwrap().accept();
            (start.elapsed(), permit)
        };
        let mut permits: Vec<Permit> = (0..line.booked).map(|_| book().1).collect();
        println!("{}: {} have booked", line.name, line.booked);
        let mut subjects = baselines();
        subjects.push((
            "booked".into(),
            Box::new(|| {
                let (took, permit) = book();
                permits.push(permit);
                took
            }),
        ));
        subjects.push((
            "refused".into(),
            Box::new(|| {
                let ask = (line.ask)();
                timed(|| assert!(!limiter.try_acquire(&ask).unwrap().is_granted()))
            }),
        ));
        compare(line.booked / 10, &mut subjects);
    }
}

criterion_group!(benches, corrections, huge_amounts, long_lines);
criterion_main!(benches);
