//! Workers that use a file in every way, as long as they are let.

use std::path::PathBuf;
use std::time::Duration;

use quotalite::{Booking, Decision, HOUR, Limit, Limiter, Request, SECOND};

use super::Scratch;
use super::processes::{Diary, Process, path, signal_by, spawn};

pub const ROLE: &str = "work";

/// The hour is there to keep each charge from being swept before an audit has seen it.
pub fn define(limiter: &Limiter) {
    let limits = [
        Limit::new("calls")
            .rate(400, SECOND / 10)
            .rate(100_000_000, HOUR),
        Limit::new("bucket").burst(50).refill(500, SECOND),
        Limit::new("merged")
            .rate(500, SECOND)
            .resolution(SECOND / 20),
        Limit::new("calendar").quota(1 << 40, quotalite::Period::Day, "UTC"),
        Limit::slots("slots", 2),
        Limit::slots("timed", 2).timeout(SECOND),
        Limit::pattern("tenant:*")
            .rate(100, SECOND)
            .rate(20, SECOND / 10),
    ];
    for limit in limits {
        limiter.define(limit).unwrap();
    }
}

/// In a child: what it does until it is told to stop. That no call fails is to say that none has waited for the file until the
/// deadline of calls.
pub fn work() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut diary = Diary::open(&path("DIARY"));
    let blocks = limiter.blocks("calls", 5).unwrap();
    while !path("STOP").exists() {
        turn(&limiter, &mut diary, fastrand::u8(0..10));
        if fastrand::u8(0..8) == 0 {
            let _decision = blocks.try_acquire().unwrap();
        }
    }
}

/// One use.
fn turn(limiter: &Limiter, diary: &mut Diary, kind: u8) {
    let tenant = format!("tenant:{}", fastrand::u8(0..30));
    let some = fastrand::u64(1..=5);
    match kind {
        0 | 1 => {
            let ask = Request::new().take("calls", some);
            let permit = limiter.acquire(&ask).unwrap();
            diary.note(permit.at(), &ask);
        }
        2 => {
            // It may have used more than it has asked for.
            if let Decision::Granted(permit) = limiter.try_acquire((&*tenant, some)).unwrap() {
                let used = fastrand::u64(0..=7);
                permit.settle([(&*tenant, used)]).unwrap();
            }
        }
        3 => {
            let ask = Request::new().take("slots", 1).take(&tenant, 1);
            if let Decision::Granted(permit) = limiter.try_acquire(&ask).unwrap() {
                std::thread::sleep(Duration::from_micros(300));
                drop(permit);
            }
        }
        4 => {
            let booking = limiter.book((&*tenant, some)).unwrap();
            match fastrand::u8(0..3) {
                0 => booking.cancel().unwrap(),
                1 => drop(booking.accept()),
                _ => drop(booking.wait_at_most()),
            }
        }
        5 => drop(limiter.try_acquire(("bucket", some)).unwrap()),
        6 => drop(limiter.try_acquire(("merged", some)).unwrap()),
        7 => {
            let id = format!("{}-{}", std::process::id(), fastrand::u64(..));
            let ask = Request::new().take(&tenant, some).take("timed", 1).id(&id);
            if let Decision::Granted(permit) = limiter.try_acquire(&ask).unwrap()
                && fastrand::bool()
            {
                limiter.settle(&id, [(&tenant, 1)]).unwrap();
                drop(permit);
            }
        }
        8 => {
            let ask = Request::new().take("slots", 1).take("bucket", 1);
            // Too late, mostly.
            let _ = limiter.acquire_within(&ask, Duration::from_millis(20));
        }
        _ => drop(limiter.try_acquire(("calendar", some)).unwrap()),
    }
}

trait WaitAtMost {
    fn wait_at_most(self) -> Option<quotalite::Permit>;
}

impl WaitAtMost for Booking {
    fn wait_at_most(self) -> Option<quotalite::Permit> {
        (self.wait_time() < Duration::from_millis(100)).then(|| self.wait().unwrap())
    }
}

/// Workers on a file, until they are told to stop.
#[derive(Debug)]
pub struct Workers {
    processes: Vec<Process>,
    pub diaries: Vec<PathBuf>,
    stop: PathBuf,
}

impl Workers {
    pub fn start(scratch: &Scratch, count: usize) -> Self {
        let place = |name: String| scratch.path().join(name);
        let diaries: Vec<_> = (0..count).map(|n| place(format!("diary-{n}"))).collect();
        let (file, stop) = (scratch.file(), place("stop".to_owned()));
        let start = |number: usize| {
            let arguments = [
                ("FILE", file.to_str().unwrap()),
                ("STOP", stop.to_str().unwrap()),
                ("DIARY", diaries[number].to_str().unwrap()),
            ];
            spawn(ROLE, &arguments)
        };
        Self {
            processes: (0..count).map(start).collect(),
            diaries,
            stop,
        }
    }

    /// Lets them end.
    pub fn stop(self) {
        signal_by(&self.stop);
        for process in self.processes {
            process.wait_well();
        }
    }
}
