//! Threads of one limiter that want to write at the same moment. These tests need real threads and real locks; what
//! they wait for is that a thread has come to where it waits, and not a moment of the clock.
mod support;

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use quotalite::{Decision, Error, Limit, Limiter, MINUTE, Request, SECOND};
use rusqlite::Connection;
use support::{in_both_stores, on_file, open_raw, scratch};

/// Holds the write lock of a file.
struct Held(Connection);

impl Held {
    fn of(file: &std::path::Path) -> Self {
        let raw = open_raw(file);
        raw.execute_batch("BEGIN IMMEDIATE").unwrap();
        Self(raw)
    }

    fn let_go(self) {
        self.0.execute_batch("ROLLBACK").unwrap();
    }
}

/// So long after it has begun, a thread that has nothing else to do has come to where it waits.
fn let_it_come() {
    thread::sleep(Duration::from_millis(30));
}

#[test]
fn threads_are_admitted_as_often_as_the_limit_allows_and_no_more() {
    in_both_stores(|limiter, clock| {
        limiter
            .define(Limit::new("k").per_second(1_000).per_minute(2_500))
            .unwrap();
        for expected in [1_000, 1_000, 500] {
            let granted = AtomicU64::new(0);
            thread::scope(|scope| {
                for _ in 0..8 {
                    scope.spawn(|| {
                        while limiter.try_acquire("k").unwrap().is_granted() {
                            granted.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
            });
            assert_eq!(granted.into_inner(), expected);
            clock.advance(SECOND);
        }
    });
}

/// Whoever comes at the instant that a denial has named must not be decided as of one before it.
#[test]
fn nobody_is_decided_as_of_an_instant_before_it_came() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("k").per_second(1_000)).unwrap();
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..1_000 {
                    let before = limiter.now().unwrap();
                    let decided = match limiter.try_acquire("k").unwrap() {
                        Decision::Granted(permit) => permit.at(),
                        Decision::Denied(denial) => denial.now(),
                    };
                    assert!(decided >= before, "{decided:?} is before {before:?}");
                }
            });
        }
    });
}

#[test]
fn what_threads_settle_and_cancel_is_theirs_alone() {
    in_both_stores(|limiter, _| {
        limiter
            .define(Limit::new("k").rate(u64::MAX >> 12, MINUTE))
            .unwrap();
        let kept = AtomicU64::new(0);
        thread::scope(|scope| {
            for thread in 0..8 {
                let kept = &kept;
                scope.spawn(move || {
                    for turn in 0..100_u64 {
                        let amount = 1 + (thread * 31 + turn * 7) % 50;
                        let permit = limiter.acquire(("k", amount)).unwrap();
                        let used = match turn % 3 {
                            0 => {
                                permit.cancel().unwrap();
                                0
                            }
                            1 => {
                                permit.settle([("k", amount * 2)]).unwrap();
                                amount * 2
                            }
                            _ => {
                                permit.settle([("k", amount / 2)]).unwrap();
                                amount / 2
                            }
                        };
                        kept.fetch_add(used, Ordering::Relaxed);
                    }
                });
            }
        });
        let usage = limiter.usage("k").unwrap();
        assert_eq!(usage.rates()[0].used(), kept.into_inner());
    });
}

#[test]
fn one_row_stands_for_all_that_is_charged_at_once_and_each_can_be_corrected() {
    let (scratch, limiter, clock) = on_file();
    limiter.define(Limit::new("k").rate(100, MINUTE)).unwrap();
    // The first one sweeps, and writes its own charge for that.
    limiter.acquire("k").unwrap().cancel().unwrap();
    let permits: Vec<_> = limiter
        .try_acquire_all([("k", 10), ("k", 20), ("k", 30)])
        .unwrap()
        .into_iter()
        .map(|decision| decision.unwrap().granted().unwrap())
        .collect();
    let rows = || scratch.sqlite::<String>("SELECT json_group_array(amount) FROM charge");
    assert_eq!(rows(), "[60]");
    clock.advance(SECOND);
    permits[1].cancel().unwrap();
    assert_eq!(rows(), "[40]");
    permits[2].settle([("k", 5)]).unwrap();
    assert_eq!(rows(), "[15]");
    // More than was asked for, up to what fits.
    permits[0].settle([("k", 200)]).unwrap();
    assert_eq!(rows(), "[100]");
    assert_eq!(limiter.usage("k").unwrap().debt(), 105);
}

#[test]
fn a_row_goes_when_nothing_is_left_of_it() {
    let (scratch, limiter, _) = on_file();
    limiter.define(Limit::new("k").rate(100, MINUTE)).unwrap();
    let permits = limiter.try_acquire_all([("k", 10), ("k", 20)]).unwrap();
    for permit in permits {
        permit.unwrap().granted().unwrap().cancel().unwrap();
    }
    assert_eq!(scratch.sqlite::<i64>("SELECT count(*) FROM charge"), 0);
    assert_eq!(limiter.usage("k").unwrap().available(), 100);
}

/// One that gets an id has a part of a row, and anybody can settle it.
#[test]
fn a_part_of_a_row_is_settled_by_its_id() {
    let (_scratch, limiter, _) = on_file();
    limiter.define(Limit::new("k").rate(100, MINUTE)).unwrap();
    let asks = [
        Request::new().take("k", 10),
        Request::new().take("k", 20).id("one"),
    ];
    let mut decisions = limiter.try_acquire_all(&asks).unwrap().into_iter();
    let unnamed = decisions.next().unwrap().unwrap().granted().unwrap();
    let named = decisions.next().unwrap().unwrap().granted().unwrap();
    limiter.settle("one", [("k", 1)]).unwrap();
    assert_eq!(limiter.usage("k").unwrap().available(), 89);
    let id = unnamed.id().unwrap().to_string();
    limiter.settle(&id, [("k", 2)]).unwrap();
    assert_eq!(limiter.usage("k").unwrap().available(), 97);
    drop(named);
}

/// Starts one thread after the other while somebody else holds the lock, so that one transaction is for all.
fn start_in_order<T: Send + 'static>(
    limiter: &Limiter,
    calls: impl IntoIterator<Item = fn(&Limiter) -> T>,
) -> Vec<JoinHandle<T>> {
    let start = |call: fn(&Limiter) -> T| {
        let limiter = limiter.clone();
        let thread = thread::spawn(move || call(&limiter));
        let_it_come();
        thread
    };
    calls.into_iter().map(start).collect()
}

fn results<T>(threads: Vec<JoinHandle<T>>) -> Vec<T> {
    let join = |thread: JoinHandle<T>| thread.join().unwrap();
    threads.into_iter().map(join).collect()
}

fn told(result: &Result<Decision, Error>) -> &'static str {
    match result {
        Ok(Decision::Granted(_)) => "granted",
        Ok(Decision::Denied(_)) => "denied",
        Err(Error::UnknownLimit { .. }) => "unknown",
        Err(Error::NeverFits { .. }) => "never",
        Err(Error::Busy { .. }) => "busy",
        Err(Error::Sqlite { .. }) => "sqlite",
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn who_came_first_is_served_first_and_errors_are_told_to_whom_they_concern() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("k").per_hour(3)).unwrap();
    let held = Held::of(&scratch.file());
    let one = |limiter: &Limiter| limiter.try_acquire("k");
    let nobody = |limiter: &Limiter| limiter.try_acquire("nobody");
    let too_many = |limiter: &Limiter| limiter.try_acquire(("k", 4));
    let calls: [fn(&Limiter) -> _; 7] = [one, nobody, one, too_many, one, one, one];
    let threads = start_in_order(&limiter, calls);
    held.let_go();
    let told: Vec<&str> = results(threads).iter().map(told).collect();
    assert_eq!(
        told,
        [
            "granted", "unknown", "granted", "never", "granted", "denied", "denied"
        ]
    );
    // The first has begun alone; the others have one row together.
    assert!(scratch.sqlite::<i64>("SELECT count(*) FROM charge") <= 2);
}

#[test]
fn whoever_makes_a_transaction_fail_fails_alone() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("good").per_hour(10)).unwrap();
    limiter.define(Limit::new("bad").per_hour(10)).unwrap();
    // As a disk that fails for one and not for the others.
    open_raw(&scratch.file())
        .execute_batch(
            "CREATE TRIGGER fails BEFORE INSERT ON charge
             WHEN NEW.limit_id = (SELECT limit_id FROM limit_definition WHERE key = 'bad')
             BEGIN SELECT RAISE(ABORT, 'no'); END",
        )
        .unwrap();
    let held = Held::of(&scratch.file());
    let good = |limiter: &Limiter| limiter.try_acquire("good");
    let bad = |limiter: &Limiter| limiter.try_acquire("bad");
    let calls: [fn(&Limiter) -> _; 5] = [good, bad, good, bad, good];
    let threads = start_in_order(&limiter, calls);
    held.let_go();
    let told: Vec<&str> = results(threads).iter().map(told).collect();
    assert_eq!(told, ["granted", "sqlite", "granted", "sqlite", "granted"]);
    let used = |key| 10 - limiter.usage(key).unwrap().available();
    assert_eq!((used("good"), used("bad")), (3, 0));
    assert!(limiter.try_acquire("good").unwrap().is_granted());
}

#[test]
fn whoever_has_no_time_left_goes_and_is_charged_nothing() {
    let scratch = scratch();
    let limiter = Limiter::builder(scratch.file())
        .busy_deadline(Duration::from_secs(20))
        .open()
        .unwrap();
    limiter.define(Limit::new("k").per_hour(10)).unwrap();
    let held = Held::of(&scratch.file());
    let patient: fn(&Limiter) -> (bool, Duration) = |limiter| {
        let since = Instant::now();
        let is_granted = limiter.try_acquire("k").is_ok_and(|it| it.is_granted());
        (is_granted, since.elapsed())
    };
    let hasty: fn(&Limiter) -> (bool, Duration) = |limiter| {
        let since = Instant::now();
        let result = limiter.acquire_within("k", Duration::from_millis(100));
        assert!(matches!(result, Err(Error::Busy { .. })), "{result:?}");
        (false, since.elapsed())
    };
    let mut threads = start_in_order(&limiter, [patient, hasty, patient]);
    let (_, waited) = threads.remove(1).join().unwrap();
    assert!(waited < Duration::from_secs(10), "{waited:?}");
    held.let_go();
    let all = results(threads);
    assert!(all.iter().all(|(is_granted, _)| *is_granted), "{all:?}");
    assert_eq!(limiter.usage("k").unwrap().available(), 8);
}

/// What only its own thread can do stands in the same queue.
#[test]
fn definitions_keep_their_place_among_acquisitions() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("k").per_hour(1)).unwrap();
    let held = Held::of(&scratch.file());
    let one: fn(&Limiter) -> &'static str = |limiter| told(&limiter.try_acquire("k"));
    let threads = start_in_order(
        &limiter,
        [
            one,
            one,
            |limiter| {
                limiter
                    .update("k", |_| Limit::new("k").per_hour(3))
                    .unwrap();
                "updated"
            },
            one,
            one,
            one,
        ],
    );
    held.let_go();
    let told = results(threads);
    // Whether the definition was read before or after, the update reads and then replaces: those behind it come
    // between or after.
    assert_eq!(told[0], "granted");
    assert_eq!(told[2], "updated");
    assert!(told.iter().filter(|told| **told == "granted").count() <= 3);
    assert_eq!(limiter.limit("k").unwrap().rates()[0].capacity(), 3);
}
