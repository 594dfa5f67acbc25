//! Ending waits before their time, on both stores.
mod support;

use std::sync::Barrier;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use quotalite::{Decision, Error, HOUR, Limit, Limiter, ManualClock, Peek, Permit, Request};
use support::{in_both_stores, scratch};

type Answer = Result<Permit, Error>;

/// A limiter on the machine's clock, and another one of the same limits where there can be one.
fn in_both_real(check: impl Fn(&Limiter, Option<&Limiter>)) {
    check(&Limiter::in_memory().unwrap(), None);
    let scratch = scratch();
    let [one, other] = [(); 2].map(|()| Limiter::open(scratch.file()).unwrap());
    check(&one, Some(&other));
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

fn waits(limiter: &Limiter, ask: &Request) -> JoinHandle<Answer> {
    let (limiter, ask) = (limiter.clone(), ask.clone());
    thread::spawn(move || limiter.acquire(&ask))
}

/// How many have booked of a limit that admits one an hour, and is full.
fn booked(limiter: &Limiter, key: &str) -> u64 {
    match limiter.peek(key).unwrap() {
        Peek::Later(denial) => denial.retry_after().unwrap().as_secs().div_ceil(3_600) - 1,
        Peek::Now => panic!("it is not full"),
    }
}

fn in_line(limiter: &Limiter, key: &str) -> u64 {
    limiter.usage(key).unwrap().waiting()
}

/// What a thread ends with that is asleep. All sleep for ten seconds at once, and must not sleep them out.
#[track_caller]
fn ends_soon<T>(sleeper: JoinHandle<T>) -> T {
    let told = Instant::now();
    while !sleeper.is_finished() {
        assert!(told.elapsed() < Duration::from_secs(5), "it sleeps on");
        thread::sleep(Duration::from_millis(1));
    }
    sleeper.join().unwrap()
}

fn assert_stopped(answer: Answer, key: &str) {
    match answer {
        Err(Error::Stopped { key: named, .. }) => assert_eq!(named, key),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_booked_comes_back_at_once() {
    in_both_real(|limiter, other| {
        limiter.define(Limit::new("mail").per_hour(1)).unwrap();
        drop(limiter.acquire("mail").unwrap());
        let mail = Request::new().take("mail", 1);
        let elsewhere = other.map(|other| waits(other, &mail));
        let of_others = u64::from(elsewhere.is_some());
        until("another is first", || booked(limiter, "mail") == of_others);
        let line: Vec<_> = (0..8).map(|_| waits(limiter, &mail)).collect();
        until("eight have booked", || {
            booked(limiter, "mail") == of_others + 8
        });
        limiter.stop_waiting();
        for waiter in line {
            assert_stopped(ends_soon(waiter), "mail");
        }
        assert_eq!(booked(limiter, "mail"), of_others);
        if let (Some(elsewhere), Some(other)) = (elsewhere, other) {
            assert!(!elsewhere.is_finished());
            other.stop_waiting();
            assert_stopped(ends_soon(elsewhere), "mail");
            assert_eq!(booked(limiter, "mail"), 0);
        }
    });
}

#[test]
fn who_waits_for_slots_leaves_the_line() {
    in_both_real(|limiter, _| {
        limiter.define(Limit::slots("gpu", 1)).unwrap();
        limiter.define(Limit::new("calls").per_hour(1)).unwrap();
        let held = limiter.acquire("gpu").unwrap();
        let both = Request::new().take("gpu", 1).take("calls", 1);
        let line: Vec<_> = (0..4).map(|_| waits(limiter, &both)).collect();
        until("four wait", || in_line(limiter, "gpu") == 4);
        limiter.stop_waiting();
        for waiter in line {
            assert_stopped(ends_soon(waiter), "gpu");
        }
        assert_eq!(in_line(limiter, "gpu"), 0);
        drop(held);
        assert!(limiter.try_acquire(&both).unwrap().is_granted());
    });
}

#[test]
fn what_needs_no_waiting_goes_on() {
    in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("mail").per_hour(1)).unwrap();
        limiter.stop_waiting();
        let permit = limiter.acquire_within("mail", HOUR).unwrap();
        for _ in 0..2 {
            assert_stopped(limiter.acquire("mail"), "mail");
            assert_stopped(limiter.book("mail").unwrap().wait(), "mail");
        }
        assert_eq!(booked(limiter, "mail"), 0);
        assert!(matches!(
            limiter.try_acquire("mail").unwrap(),
            Decision::Denied(_)
        ));
        permit.cancel().unwrap();
        assert!(limiter.book("mail").unwrap().wait().is_ok());
        clock.advance(HOUR);
        assert!(limiter.acquire("mail").is_ok());
    });
}

/// Only its test can bring such a clock forward, and whoever sleeps on it hears of nothing before.
#[test]
fn on_a_clock_that_stands_still_it_is_heard_when_the_time_has_come() {
    let clock = ManualClock::new();
    let limiter = Limiter::in_memory_with(clock.clone());
    limiter.define(Limit::new("mail").per_hour(1)).unwrap();
    drop(limiter.acquire("mail").unwrap());
    let waiter = waits(&limiter, &Request::new().take("mail", 1));
    until("it sleeps", || clock.sleepers() == 1);
    limiter.stop_waiting();
    clock.advance(HOUR);
    assert_stopped(waiter.join().unwrap(), "mail");
    assert!(limiter.try_acquire("mail").unwrap().is_granted());
}

/// What it sleeps on is that of a file that nobody finds any more.
#[test]
fn who_has_booked_in_a_file_that_was_removed_hears_it_too() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("mail").per_hour(1)).unwrap();
    drop(limiter.acquire("mail").unwrap());
    let waiter = waits(&limiter, &Request::new().take("mail", 1));
    until("it has booked", || booked(&limiter, "mail") == 1);
    for suffix in ["", "-wal", "-shm", "-lock"] {
        std::fs::remove_file(format!("{}{suffix}", scratch.file().display())).unwrap();
    }
    assert!(limiter.try_acquire("mail").is_err());
    limiter.stop_waiting();
    assert!(ends_soon(waiter).is_err());
}

/// Whoever is about to go to sleep when it is said must not miss it.
#[test]
fn nobody_misses_it() {
    const THREADS: usize = 4;
    for round in 0..60 {
        in_both_real(|limiter, _| {
            limiter.define(Limit::new("mail").per_hour(1)).unwrap();
            drop(limiter.acquire("mail").unwrap());
            let start = Barrier::new(THREADS + 1);
            thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| {
                        start.wait();
                        assert_stopped(limiter.acquire("mail"), "mail");
                    });
                }
                start.wait();
                thread::sleep(Duration::from_micros(50 * round));
                limiter.stop_waiting();
            });
            assert_eq!(booked(limiter, "mail"), 0);
        });
    }
}

#[cfg(feature = "retry")]
#[test]
fn who_waits_for_its_next_try_gives_up() {
    use std::sync::mpsc;

    use quotalite::{Answer, RetryErrorKind, RetryPolicy, retry};

    in_both_real(|limiter, _| {
        limiter.define(Limit::new("mail").per_hour(9)).unwrap();
        let (called, calls) = mpsc::channel();
        let own = limiter.clone();
        let worker = thread::spawn(move || {
            let call = || {
                called.send(()).unwrap();
                Err::<(), _>("no answer")
            };
            retry(RetryPolicy::exponential(HOUR, 3))
                .classify_errors(|_: &&str| Answer::Transient)
                .run(&own, "mail", call)
                .unwrap_err()
        });
        calls.recv().unwrap();
        // It goes to sleep, which nobody can see.
        thread::sleep(Duration::from_millis(100));
        limiter.stop_waiting();
        let error = ends_soon(worker);
        assert_eq!(error.kind(), RetryErrorKind::Limiter);
        assert!(matches!(error.limiter_error(), Some(Error::Stopped { .. })));
        assert_eq!(error.into_last(), Some("no answer"));
    });
}
