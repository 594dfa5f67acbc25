//! How the connections of one process are split: one that writes and threads that queue for it, or one for
//! each thread; and whether readers need connections of their own. Run `cargo bench --bench split`.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use quotalite::{Limit, Limiter, MINUTE};
use tempfile::TempDir;

const THREADS: usize = 8;
const ROUNDS: usize = 15;
const CALLS: u32 = 1_000;
const PLENTY: u64 = 1 << 40;

struct Times {
    per_call: Duration,
    longest: Duration,
}

/// Lets a thread for each limiter acquire at once.
fn crowd(limiters: &[Limiter]) -> Times {
    let barrier = Barrier::new(limiters.len() + 1);
    thread::scope(|scope| {
        let threads: Vec<_> = limiters
            .iter()
            .map(|limiter| {
                scope.spawn(|| {
                    barrier.wait();
                    let mut longest = Duration::ZERO;
                    for _ in 0..CALLS {
                        let start = Instant::now();
                        assert!(limiter.try_acquire("key").unwrap().is_granted());
                        longest = longest.max(start.elapsed());
                    }
                    longest
                })
            })
            .collect();
        barrier.wait();
        let start = Instant::now();
        let longest = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .max();
        Times {
            per_call: start.elapsed() / (CALLS * u32::try_from(limiters.len()).unwrap()),
            longest: longest.unwrap(),
        }
    })
}

/// The time of a look at the usage while another thread acquires without pause.
fn look_beside_a_writer(limiter: &Limiter, readers: usize) -> Times {
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(limiter.try_acquire("key").unwrap().is_granted());
            }
        });
        let start = Instant::now();
        let threads: Vec<_> = (0..readers)
            .map(|_| {
                scope.spawn(|| {
                    let mut longest = Duration::ZERO;
                    for _ in 0..CALLS {
                        let start = Instant::now();
                        limiter.usage("key").unwrap();
                        longest = longest.max(start.elapsed());
                    }
                    longest
                })
            })
            .collect();
        let longest = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .max();
        let per_call = start.elapsed() / (CALLS * u32::try_from(readers).unwrap());
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        Times {
            per_call,
            longest: longest.unwrap(),
        }
    })
}

fn open(directory: &TempDir, name: &str, readers: u32) -> Limiter {
    let path = directory.path().join(name);
    let limiter = Limiter::builder(path).readers(readers).open().unwrap();
    limiter
        .define(Limit::new("key").per_second(PLENTY).rate(PLENTY, MINUTE))
        .unwrap();
    limiter
}

type Subject<'a> = (&'a str, Box<dyn FnMut() -> Times + 'a>);

/// Measures in turns and prints medians.
fn main() {
    let directory = tempfile::tempdir().unwrap();
    let shared = open(&directory, "shared.db", 4);
    let shared: Vec<Limiter> = (0..THREADS).map(|_| shared.clone()).collect();
    let own: Vec<Limiter> = (0..THREADS)
        .map(|_| open(&directory, "own.db", 4))
        .collect();
    let (one, four) = (
        open(&directory, "one.db", 1),
        open(&directory, "four.db", 4),
    );
    let alone = [open(&directory, "alone.db", 4)];
    let mut subjects: Vec<Subject<'_>> = vec![
        ("acquire: 1 thread", Box::new(|| crowd(&alone))),
        (
            "acquire: 8 threads, one writing connection",
            Box::new(|| crowd(&shared)),
        ),
        (
            "acquire: 8 threads, a connection each",
            Box::new(|| crowd(&own)),
        ),
        (
            "usage: 4 threads, 1 reader, beside a writer",
            Box::new(|| look_beside_a_writer(&one, 4)),
        ),
        (
            "usage: 4 threads, 4 readers, beside a writer",
            Box::new(|| look_beside_a_writer(&four, 4)),
        ),
    ];
    let mut times: Vec<Vec<Times>> = subjects.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for ((_, subject), times) in subjects.iter_mut().zip(&mut times) {
            times.push(subject());
        }
    }
    println!(
        "{:<46} {:>12} {:>16}",
        "in turns, medians", "per call", "longest call"
    );
    for ((name, _), times) in subjects.iter().zip(&mut times) {
        times.sort_by_key(|time| time.longest);
        let longest = times[times.len() / 2].longest;
        times.sort_by_key(|time| time.per_call);
        let per_call = times[times.len() / 2].per_call;
        println!("{name:<46} {per_call:>12?} {longest:>16?}");
    }
}
