//! Many processes on one file: nothing over, nothing missing, whoever is killed.
//!
//! Everything here runs on the machine's clock, because a clock that can be set belongs to one process.
#![cfg(target_os = "linux")]
mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use quotalite::{Decision, Error, HOUR, Limit, Limiter, Request, SECOND};
use support::audit::{all_rows, audit};
use support::processes::{
    Diary, Process, argument, await_signal, eventually, number, path, play, read_diaries,
    signal_by, size, spawn,
};
use support::{Scratch, open_raw, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("work", work),
        ("open", open_in_a_storm),
        ("ask in vain", ask_in_vain),
        ("book far ahead", book_far_ahead),
        ("charge without the lock", charge_without_the_lock),
    ]);
}

/// How many processes work at the same time.
const WORKERS: usize = 8;

/// Two limits that bind now and then. The hour is there to keep each charge from being swept before the
/// audit has seen it.
fn define_work(limiter: &Limiter, tokens_per_second: u64) {
    let requests = Limit::new("requests").rate(2_000, SECOND / 10);
    limiter.define(requests.rate(1_000_000_000, HOUR)).unwrap();
    let tokens = Limit::new("tokens").per_second(tokens_per_second);
    limiter.define(tokens.rate(1_000_000_000, HOUR)).unwrap();
}

/// Acquires until it has so many permits (0: until it is killed), by turns without and with waiting; with so many threads.
fn work() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let threads = number("THREADS");
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work_until(&limiter, number("COUNT") / threads));
        }
    });
}

fn work_until(limiter: &Limiter, wanted: u64) {
    let mut diary = Diary::open(&path("DIARY"));
    let mut had = 0;
    while wanted == 0 || had < wanted {
        let ask = Request::new()
            .take("requests", 1)
            .take("tokens", fastrand::u64(1..=20));
        let permit = if fastrand::bool() {
            match limiter.try_acquire(&ask).unwrap() {
                Decision::Granted(permit) => permit,
                Decision::Denied(denial) => {
                    std::thread::sleep(denial.retry_after().unwrap());
                    continue;
                }
            }
        } else {
            match limiter.acquire_within(&ask, SECOND / 2) {
                Ok(permit) => permit,
                Err(Error::TooLate { .. }) => continue,
                Err(error) => panic!("{error}"),
            }
        };
        diary.note(permit.at(), &ask);
        had += 1;
    }
}

/// Every other one has several threads, which share transactions.
fn worker(scratch: &Scratch, diary: &Path, count: usize) -> Process {
    static STARTED: AtomicUsize = AtomicUsize::new(0);
    let threads = if STARTED.fetch_add(1, Ordering::Relaxed).is_multiple_of(2) {
        1
    } else {
        5
    };
    let arguments = [
        ("THREADS", threads.to_string()),
        ("FILE", scratch.file().display().to_string()),
        ("DIARY", diary.display().to_string()),
        ("COUNT", count.to_string()),
    ];
    spawn(
        "work",
        &arguments
            .each_ref()
            .map(|(name, value)| (*name, value.as_str())),
    )
}

fn diary(scratch: &Scratch, number: usize) -> PathBuf {
    scratch.path().join(format!("diary-{number}"))
}

#[test]
fn eight_processes_get_what_they_are_told_and_no_more() {
    let permits = size(4_000, 100_000);
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    define_work(&limiter, size(20_000, 200_000));
    let diaries: Vec<PathBuf> = (0..WORKERS).map(|number| diary(&scratch, number)).collect();
    let start = Instant::now();
    let workers: Vec<Process> = diaries
        .iter()
        .map(|diary| worker(&scratch, diary, permits / WORKERS))
        .collect();
    for worker in workers {
        worker.wait_well();
    }
    println!("{permits} permits in {:?}", start.elapsed());
    let acknowledged = read_diaries(&diaries);
    assert_eq!(acknowledged.len(), 2 * permits);
    let report = audit(&scratch.file(), &acknowledged);
    report.assert_clean();
    let amounts = acknowledged.iter().map(|charge| charge.amount);
    assert_eq!(
        report.amount,
        amounts.sum::<i64>(),
        "all were acknowledged, and only they"
    );
    assert!(limiter.acquire_within("requests", SECOND).is_ok());
}

/// How many processes open a fresh file at the same moment.
const OPENERS: usize = 16;

fn open_in_a_storm() {
    let directory = path("DIRECTORY");
    let me = argument("ME");
    for round in 0..number("ROUNDS") {
        let gate = File::open(directory.join(format!("gate-{round}"))).unwrap();
        signal_by(&directory.join(format!("ready-{round}-{me}")));
        // The parent holds the gate for itself until everybody is here.
        gate.lock_shared().unwrap();
        let limiter = Limiter::open(directory.join(format!("{round}.db"))).unwrap();
        limiter.define(Limit::new("mail").per_second(100)).unwrap();
        assert!(limiter.try_acquire("mail").unwrap().is_granted());
    }
}

#[test]
fn sixteen_processes_open_fresh_files_at_once_and_none_fails() {
    let rounds: u64 = size(8, 60);
    let scratch = scratch();
    let gates: Vec<File> = (0..rounds)
        .map(|round| {
            let gate = File::create(scratch.path().join(format!("gate-{round}"))).unwrap();
            gate.lock().unwrap();
            gate
        })
        .collect();
    let openers: Vec<Process> = (0..OPENERS)
        .map(|me| {
            let arguments = [
                ("DIRECTORY", scratch.path().to_str().unwrap()),
                ("ME", &me.to_string()),
                ("ROUNDS", &rounds.to_string()),
            ];
            spawn("open", &arguments)
        })
        .collect();
    for (round, gate) in gates.into_iter().enumerate() {
        for me in 0..OPENERS {
            await_signal(&scratch.path().join(format!("ready-{round}-{me}")));
        }
        gate.unlock().unwrap();
    }
    for opener in openers {
        opener.wait_well();
    }
    for round in 0..rounds {
        let report = audit(&scratch.path().join(format!("{round}.db")), &[]);
        report.assert_clean();
        assert_eq!(report.charges, OPENERS, "file {round}");
    }
}

fn ask_in_vain() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let ask = Request::new().take("second", 1).take("minute", 1);
    for attempt in 0..number("COUNT") {
        // By turns each of the calls that may be refused.
        match attempt % 3 {
            0 => {
                let denial = limiter.try_acquire(&ask).unwrap().denied().unwrap();
                assert_eq!(denial.key(), "minute");
            }
            1 => {
                let refused = limiter.acquire_within(&ask, Duration::from_millis(5));
                assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
            }
            _ => assert!(limiter.peek(&ask).unwrap().denial().is_some()),
        }
    }
}

#[test]
fn what_is_refused_leaves_no_trace_in_any_ledger() {
    const ASKERS: usize = 4;
    const ATTEMPTS: usize = 15_000;
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("second").per_second(10)).unwrap();
    limiter
        .define(Limit::new("minute").per_minute(100))
        .unwrap();
    assert!(limiter.try_acquire(("second", 5)).unwrap().is_granted());
    assert!(limiter.try_acquire(("minute", 100)).unwrap().is_granted());
    let before = all_rows(&scratch.file());
    let count = (ATTEMPTS / ASKERS).to_string();
    let askers: Vec<Process> = (0..ASKERS)
        .map(|_| {
            let file = scratch.file();
            let arguments = [("FILE", file.to_str().unwrap()), ("COUNT", &count)];
            spawn("ask in vain", &arguments)
        })
        .collect();
    for asker in askers {
        asker.wait_well();
    }
    assert_eq!(all_rows(&scratch.file()), before);
    eventually("the second is free again", || {
        limiter.usage("second").unwrap().available() == 10
    });
}

#[test]
fn killed_processes_take_nothing_with_them() {
    let kills: usize = size(15, 200);
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    // So tight that there are always bookings in line which die with their process.
    define_work(&limiter, 20_000);
    let mut diaries: Vec<PathBuf> = (0..WORKERS).map(|number| diary(&scratch, number)).collect();
    let mut workers: Vec<Process> = diaries
        .iter()
        .map(|diary| worker(&scratch, diary, 0))
        .collect();
    for _ in 0..kills {
        // Real time: the moment has to be any.
        std::thread::sleep(Duration::from_micros(fastrand::u64(5_000..60_000)));
        let next = diary(&scratch, diaries.len());
        let replacement = worker(&scratch, &next, 0);
        diaries.push(next);
        workers.swap_remove(fastrand::usize(..workers.len())).kill();
        workers.push(replacement);
    }
    for worker in workers {
        worker.kill();
    }
    let acknowledged = read_diaries(&diaries);
    let report = audit(&scratch.file(), &acknowledged);
    println!(
        "{kills} kills: {} charges, {} acknowledged",
        report.charges,
        acknowledged.len()
    );
    assert!(acknowledged.len() > kills);
    report.assert_clean();
    let next = Limiter::open(scratch.file()).unwrap();
    assert!(next.acquire_within("requests", SECOND).is_ok());
    audit(&scratch.file(), &acknowledged).assert_clean();
}

fn book_far_ahead() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let bookings: Vec<_> = (0..number("COUNT"))
        .map(|_| limiter.book("slow").unwrap())
        .collect();
    signal_by(&path("READY"));
    // Until it is killed.
    std::thread::sleep(HOUR);
    drop(bookings);
}

/// A process that has booked so much that the next in line would wait for minutes.
fn far_booker(scratch: &Scratch) -> Process {
    let (file, ready) = (scratch.file(), scratch.path().join("ready"));
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
        ("COUNT", "300"),
    ];
    let booker = spawn("book far ahead", &arguments);
    await_signal(&ready);
    booker
}

#[test]
fn the_bookings_of_a_killed_process_come_back_to_whoever_asks_next() {
    for ask_by in ["booking", "try", "within"] {
        let scratch = scratch();
        let limiter = Limiter::open(scratch.file()).unwrap();
        limiter.define(Limit::new("slow").per_second(1)).unwrap();
        let booker = far_booker(&scratch);
        let refused = limiter.book_within("slow", 200 * SECOND);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
        booker.kill();
        match ask_by {
            "booking" => {
                let booking = limiter.book("slow").unwrap();
                assert!(booking.wait_time() <= SECOND, "{:?}", booking.wait_time());
            }
            "try" => match limiter.try_acquire("slow").unwrap() {
                Decision::Granted(_) => {}
                Decision::Denied(denial) => {
                    assert!(denial.retry_after() <= Some(SECOND), "{denial}");
                }
            },
            _ => assert!(limiter.acquire_within("slow", SECOND).is_ok()),
        }
        let left: i64 = scratch.sqlite("SELECT count(*) FROM charge");
        assert!(left <= 5, "{left} charges are left, by {ask_by}");
        audit(&scratch.file(), &[]).assert_clean();
    }
}

/// A limiter as one would write it: it reads how much is used, then inserts, in a transaction that
/// takes the write lock only when it writes; and when that fails it tries the insert again.
fn charge_without_the_lock() {
    let connection = open_raw(&path("FILE"));
    let capacity: i64 = connection
        .query_row("SELECT capacity FROM rate", [], |row| row.get(0))
        .unwrap();
    loop {
        connection.execute_batch("BEGIN DEFERRED").unwrap();
        let used: i64 = connection
            .query_row("SELECT coalesce(sum(amount), 0) FROM charge", [], |row| {
                row.get(0)
            })
            .unwrap();
        if used >= capacity {
            connection.execute_batch("ROLLBACK").unwrap();
            break;
        }
        while connection
            .execute(
                "INSERT INTO charge (limit_id, at_ns, seq, amount, total)
                 SELECT 1, coalesce(max(at_ns), 0) + 1, 0, 1, coalesce(max(total), 0) + 1
                 FROM charge",
                [],
            )
            .is_err()
        {
            // What the insert fails with is that the read is out of date. Starting anew would be right.
            connection
                .execute_batch("ROLLBACK; BEGIN DEFERRED")
                .unwrap();
        }
        connection.execute_batch("COMMIT").unwrap();
    }
}

#[test]
fn the_audit_catches_a_limiter_that_reads_before_it_locks() {
    // The race is at the end, where the last charges are given out, and has to be lost but once.
    let is_caught = (0..5).any(|_| {
        let scratch = scratch();
        let limiter = Limiter::open(scratch.file()).unwrap();
        limiter.define(Limit::new("mail").per_hour(500)).unwrap();
        drop(limiter);
        let file = scratch.file();
        let cheats: Vec<Process> = (0..WORKERS)
            .map(|_| {
                spawn(
                    "charge without the lock",
                    &[("FILE", file.to_str().unwrap())],
                )
            })
            .collect();
        for cheat in cheats {
            cheat.wait_well();
        }
        let report = audit(&scratch.file(), &[]);
        println!("the broken limiter admitted {} of 500", report.charges);
        assert!(report.wrong_totals.is_empty(), "only its count is wrong");
        !report.over.is_empty()
    });
    assert!(is_caught);
}

#[test]
fn the_audit_catches_a_window_that_is_over_a_wrong_total_and_a_lost_charge() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("mail").per_hour(10)).unwrap();
    let diary_path = diary(&scratch, 0);
    let mut diary = Diary::open(&diary_path);
    let ask = Request::new().take("mail", 2);
    for _ in 0..5 {
        diary.note(
            limiter.try_acquire(&ask).unwrap().granted().unwrap().at(),
            &ask,
        );
    }
    let acknowledged = read_diaries([&diary_path]);
    audit(&scratch.file(), &acknowledged).assert_clean();
    let edit = |sql: &str| open_raw(&scratch.file()).execute_batch(sql).unwrap();
    edit("UPDATE rate SET capacity = 9");
    assert_eq!(audit(&scratch.file(), &acknowledged).over.len(), 1);
    edit("UPDATE rate SET capacity = 10; UPDATE charge SET total = total + 1 WHERE total = 4");
    assert_eq!(audit(&scratch.file(), &acknowledged).wrong_totals.len(), 2);
    edit("UPDATE charge SET total = total - 1 WHERE total = 5");
    audit(&scratch.file(), &acknowledged).assert_clean();
    let twice = [&acknowledged[..], &acknowledged[..1]].concat();
    assert_eq!(audit(&scratch.file(), &twice).missing.len(), 1);
    edit("DELETE FROM charge WHERE total = 10");
    assert_eq!(audit(&scratch.file(), &acknowledged).missing.len(), 1);
}
