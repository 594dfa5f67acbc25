//! Pauses among processes: whoever waits does so for the end of a pause that another process has made, and what it is
//! told is what stands in the ledger.
#![cfg(target_os = "linux")]
mod support;

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use quotalite::{
    Backoff, Booking, Decision, Error, HOUR, Limit, Limiter, PausePolicy, Request, SECOND,
    Timestamp,
};
use support::audit::{Report, audit};
use support::processes::{
    Acknowledged, Diary, Process, argument, await_signal, kill_at_each, number, path, play,
    read_diaries, run_and_kill, signal_by, size, spawn,
};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[("work", work), ("pause", pause_for_long)]);
}

const WORKERS: usize = 6;

fn ask() -> Request {
    Request::new().take("requests", 1)
}

/// Acquires until it is told to stop: now or not, in line, by bookings of its own, or by what it sleeps itself without
/// looking again, which is wrong.
fn work() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let (stop, way) = (path("STOP"), argument("WAY"));
    let mut diary = Diary::open(&path("DIARY"));
    while !stop.exists() {
        let at = match way.as_str() {
            "tries" => tries(&limiter),
            "waits" => waits(&limiter),
            "checks" => Some(checks(&limiter)),
            _ => Some(goes_by_the_first_instant(&limiter)),
        };
        if let Some(at) = at {
            diary.note(at, &ask());
        }
        thread::sleep(Duration::from_micros(number("PAUSE_US")));
    }
}

fn tries(limiter: &Limiter) -> Option<Timestamp> {
    match limiter.try_acquire(&ask()).unwrap() {
        Decision::Granted(permit) => Some(permit.at()),
        Decision::Denied(denial) => {
            thread::sleep(denial.retry_after().unwrap());
            None
        }
    }
}

fn waits(limiter: &Limiter) -> Option<Timestamp> {
    let longest = Duration::from_millis(fastrand::u64(1..200));
    match limiter.acquire_within(&ask(), longest) {
        Ok(permit) => {
            assert!(
                limiter.now().unwrap() >= permit.at(),
                "it went ahead too early"
            );
            Some(permit.at())
        }
        Err(Error::TooLate { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

fn checks(limiter: &Limiter) -> Timestamp {
    let mut booking = limiter.book(&ask()).unwrap();
    while let Some(left) = booking.check().unwrap() {
        thread::sleep(left);
    }
    booking.accept().at()
}

fn goes_by_the_first_instant(limiter: &Limiter) -> Timestamp {
    let booking = limiter.book(&ask()).unwrap();
    thread::sleep(booking.wait_time());
    booking.accept().at()
}

/// What somebody knows who pauses a limit: nobody is admitted after the first instant and before the second.
type Interval = (Timestamp, Timestamp);

/// Pauses the limit again and again, and sometimes lifts that before its end.
fn pause_often(limiter: &Limiter, times: usize) -> Vec<Interval> {
    let mut intervals = Vec::new();
    for _ in 0..times {
        let length = Duration::from_millis(fastrand::u64(1..60));
        let pause = limiter
            .pause("requests", Backoff::retry_after(length))
            .unwrap();
        if fastrand::u8(..4) == 0 {
            thread::sleep(length / 2);
            let before = limiter.now().unwrap();
            limiter.resume("requests").unwrap();
            intervals.push((pause.since(), pause.until().min(before)));
        } else {
            intervals.push((pause.since(), pause.until()));
            thread::sleep(length);
        }
        thread::sleep(Duration::from_millis(fastrand::u64(0..30)));
    }
    intervals
}

/// Lets processes work while limits are paused. Returns what they were told within a pause, and what else is wrong.
fn work_while_paused(ways: &[&str], times: usize) -> (Vec<Acknowledged>, usize, Report) {
    let scratch: Scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    let policy = PausePolicy::default().slow_start(100);
    let limit = Limit::new("requests")
        .rate(10, SECOND / 50)
        .rate(1_000_000_000, HOUR);
    limiter.define(limit.pauses(policy)).unwrap();
    let stop = scratch.path().join("stop");
    let diaries: Vec<PathBuf> = (0..WORKERS)
        .map(|worker| scratch.path().join(format!("diary-{worker}")))
        .collect();
    let workers: Vec<Process> = diaries
        .iter()
        .zip(ways.iter().cycle())
        .map(|(diary, way)| {
            let file = scratch.file();
            spawn(
                "work",
                &[
                    ("FILE", file.to_str().unwrap()),
                    ("DIARY", diary.to_str().unwrap()),
                    ("STOP", stop.to_str().unwrap()),
                    ("WAY", way),
                    ("PAUSE_US", if *way == "tries" { "500" } else { "0" }),
                ],
            )
        })
        .collect();
    await_signal(&diaries[0]);
    let intervals = pause_often(&limiter, times);
    signal_by(&stop);
    for worker in workers {
        worker.wait_well();
    }
    let acknowledged = read_diaries(&diaries);
    let report = audit(&scratch.file(), &acknowledged);
    let is_within = |charge: &&Acknowledged| {
        let at = Timestamp::from_nanos(charge.at_ns);
        intervals
            .iter()
            .any(|(since, until)| *since < at && at < *until)
    };
    let within: Vec<Acknowledged> = acknowledged.iter().filter(is_within).cloned().collect();
    (within, acknowledged.len(), report)
}

#[test]
fn nobody_goes_ahead_while_another_process_has_paused_the_limit() {
    let (within, count, report) = work_while_paused(&["waits", "tries", "checks"], size(25, 1_000));
    println!("{count} granted, {} within a pause", within.len());
    assert!(count > 100, "only {count} were granted");
    assert_eq!(within, []);
    report.assert_clean();
}

#[test]
fn whoever_goes_by_what_it_was_told_first_is_caught() {
    let (within, _, report) = work_while_paused(&["guesses"], size(25, 100));
    assert!(!within.is_empty());
    assert!(!report.missing.is_empty());
}

/// Pauses the limit, and notes that it has.
fn pause_for_long() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let pause = limiter
        .pause("requests", Backoff::retry_after(HOUR / 6))
        .unwrap();
    Diary::open(&path("DIARY")).note(pause.until(), &ask());
}

/// Kills a process that moves what is booked, and looks whether that is where those who have booked are told.
fn pauser_is_killed_at(calls: &str, when: usize) -> Option<bool> {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::new("requests").per_minute(1))
        .unwrap();
    let mut bookings: Vec<Booking> = (0..5).map(|_| limiter.book(&ask()).unwrap()).collect();
    let ahead: Vec<Timestamp> = bookings.iter().skip(1).map(Booking::at).collect();
    let diary = scratch.path().join("diary");
    let killed = run_and_kill(&scratch.file(), &diary, "pause", calls, when)?;

    let fault = format!("{calls} {when}");
    let pause = limiter.usage("requests").unwrap().pause();
    let told = read_diaries([&diary]);
    assert!(
        pause.is_some() || told.is_empty(),
        "{fault}: it was told of no pause"
    );
    for booking in &mut bookings {
        booking.check().unwrap();
    }
    let now: Vec<Timestamp> = bookings.iter().skip(1).map(Booking::at).collect();
    match pause {
        None => assert_eq!(now, ahead, "{fault}: half of them were moved"),
        Some(pause) => {
            let is_behind = now.iter().all(|at| *at >= pause.until());
            assert!(is_behind, "{fault}: {now:?} before {pause:?}");
            assert!(now.is_sorted(), "{fault}: {now:?}");
        }
    }
    // The ledger has each of them where it is told.
    let acknowledged: Vec<Acknowledged> = bookings
        .iter()
        .map(|booking| Acknowledged {
            key: "requests".to_owned(),
            at_ns: booking.at().as_nanos(),
            amount: 1,
        })
        .collect();
    let report = audit(&scratch.file(), &acknowledged);
    report.assert_clean();
    assert_eq!(report.charges, 5, "{fault}");
    Some(killed)
}

#[test]
fn who_is_killed_while_it_pauses_a_limit_moves_all_that_is_booked_or_nothing() {
    let plan = [
        ("fcntl", 60, size(9, 1)),
        ("pwrite64", 40, size(6, 1)),
        ("pread64", 16, size(5, 1)),
        ("futex", 12, size(3, 1)),
        ("close", 8, size(3, 1)),
    ];
    kill_at_each(&plan, pauser_is_killed_at);
}
