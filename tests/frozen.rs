//! Processes that are stopped and go on: nobody waits for them for longer than it said, and nobody
//! takes what is theirs.
//!
//! Real time: it is the kernel that stops them.
#![cfg(target_os = "linux")]
mod support;

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use quotalite::{Decision, Error, HOUR, Limit, Limiter, Request, SECOND};
use support::audit::audit;
use support::processes::{
    Diary, Process, await_signal, eventually, path, play, read_diaries, signal_by, size, spawn,
};
use support::{Scratch, open_raw, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("freeze", freeze_inside_a_transaction),
        ("book", book_and_sleep),
        ("work", work),
    ]);
}

const MILLISECOND: Duration = Duration::from_millis(1);

fn freeze_inside_a_transaction() {
    let connection = open_raw(&path("FILE"));
    connection.execute_batch("BEGIN IMMEDIATE").unwrap();
    signal_by(&path("READY"));
    nix::sys::signal::raise(Signal::SIGSTOP).unwrap();
    connection.execute_batch("COMMIT").unwrap();
}

fn is_stopped(process: &Process) -> bool {
    // The state stands behind the name, which is in parentheses and may hold anything.
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    // The stopped thread is not the first one, but a stop signal stops all of them.
    stat.rsplit(") ").next().unwrap().starts_with('T')
}

/// A process that holds the write lock and has been stopped.
fn frozen_writer(scratch: &Scratch) -> Process {
    let (file, ready) = (scratch.file(), scratch.path().join("frozen"));
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
    ];
    let writer = spawn("freeze", &arguments);
    await_signal(&ready);
    eventually("it is stopped", || is_stopped(&writer));
    writer
}

fn open_with_mail(scratch: &Scratch, busy_deadline: Duration) -> Limiter {
    let builder = Limiter::builder(scratch.file()).busy_deadline(busy_deadline);
    let limiter = builder.open().unwrap();
    limiter.define(Limit::new("mail").per_second(1)).unwrap();
    limiter
}

type Call<'c> = &'c dyn Fn() -> Result<(), Error>;

#[test]
fn a_frozen_writer_is_reported_as_busy_after_the_busy_deadline_and_never_as_a_denial() {
    let scratch = scratch();
    let limiter = open_with_mail(&scratch, 300 * MILLISECOND);
    limiter.define(Limit::new("post").per_minute(1)).unwrap();
    // Full, so that a denial would be at hand.
    assert!(limiter.try_acquire("post").unwrap().is_granted());
    let writer = frozen_writer(&scratch);
    let calls: [(&str, Call<'_>); 4] = [
        ("try_acquire", &|| limiter.try_acquire("post").map(drop)),
        ("acquire", &|| limiter.acquire("post").map(drop)),
        ("acquire_within", &|| {
            limiter.acquire_within("post", HOUR).map(drop)
        }),
        ("define", &|| {
            limiter.define(Limit::new("other").per_second(1)).map(drop)
        }),
    ];
    for (name, call) in calls {
        let asked = Instant::now();
        let result = call();
        let took = asked.elapsed();
        assert!(
            matches!(result, Err(Error::Busy { waited, .. }) if waited >= 300 * MILLISECOND),
            "{name}: {result:?}"
        );
        assert!(
            took >= 300 * MILLISECOND && took < SECOND,
            "{name}: {took:?}"
        );
    }
    // Who only looks needs no lock.
    assert_eq!(limiter.usage("post").unwrap().rates()[0].used(), 1);
    writer.send(Signal::SIGCONT);
    eventually("the lock is free", || limiter.try_acquire("post").is_ok());
    assert!(!limiter.try_acquire("post").unwrap().is_granted());
    writer.wait_well();
    audit(&scratch.file(), &[]).assert_clean();
}

#[test]
fn who_can_wait_for_a_tenth_of_a_second_waits_no_longer_for_a_frozen_writer() {
    let scratch = scratch();
    let limiter = open_with_mail(&scratch, 5 * SECOND);
    let now = limiter.now().unwrap();
    let writer = frozen_writer(&scratch);
    for longest in [Duration::ZERO, 100 * MILLISECOND] {
        let asked = Instant::now();
        let result = limiter.acquire_until("mail", now.checked_add(longest).unwrap());
        assert!(matches!(result, Err(Error::Busy { .. })), "{result:?}");
        let result = limiter.acquire_within("mail", longest);
        assert!(matches!(result, Err(Error::Busy { .. })), "{result:?}");
        assert!(
            asked.elapsed() < SECOND,
            "{longest:?}: {:?}",
            asked.elapsed()
        );
    }
    drop(writer);
    assert!(limiter.try_acquire("mail").unwrap().is_granted());
}

#[test]
fn what_is_dropped_beside_a_frozen_writer_comes_back_later() {
    let scratch = scratch();
    let limiter = open_with_mail(&scratch, 100 * MILLISECOND);
    let other = open_with_mail(&scratch, SECOND);
    limiter.define(Limit::slots("slots", 1)).unwrap();
    limiter.define(Limit::new("post").per_hour(1)).unwrap();
    let slot = limiter.acquire("slots").unwrap();
    let _post = limiter.acquire("post").unwrap();
    let booking = limiter.book("post").unwrap();
    let refused = other.try_acquire("slots").unwrap();
    assert!(!refused.is_granted());
    let writer = std::thread::scope(|scope| {
        let waiter = limiter.clone();
        let waits = scope.spawn(move || waiter.acquire("slots"));
        eventually("it waits in line", || {
            limiter.usage("slots").unwrap().waiting() == 1
        });
        let writer = frozen_writer(&scratch);
        // It tries again after a second at the latest, and gives up.
        let answer = waits.join().unwrap();
        assert!(matches!(answer, Err(Error::Busy { .. })), "{answer:?}");
        writer
    });
    drop((slot, booking));
    writer.send(Signal::SIGCONT);
    writer.wait_well();
    // Refused before as well, so that it would not ask for the lock.
    assert!(limiter.try_acquire(("slots", 1)).unwrap().is_granted());
    assert!(other.try_acquire("slots").unwrap().is_granted());
    let left: i64 = scratch.sqlite("SELECT count(*) FROM ticket");
    assert_eq!(left, 0);
    let charges: i64 = scratch.sqlite("SELECT count(*) FROM charge WHERE limit_id = 3");
    assert_eq!(charges, 1);
    audit(&scratch.file(), &[]).assert_clean();
}

/// A call that has to open the file first, as after a fork or a removal, keeps its deadline too.
#[test]
fn a_frozen_writer_holds_up_no_call_that_opens_the_file_anew() {
    let scratch = scratch();
    let limiter = open_with_mail(&scratch, 300 * MILLISECOND);
    let lock_file = scratch.path().join("limits.db-lock");
    std::fs::remove_file(&lock_file).unwrap();
    // What was looked at a moment ago is not looked at again.
    eventually("the removal is noticed", || {
        matches!(limiter.try_acquire("mail"), Err(Error::Moved { .. }))
    });
    let writer = frozen_writer(&scratch);
    let asked = Instant::now();
    let result = limiter.acquire_within("mail", 100 * MILLISECOND);
    assert!(matches!(result, Err(Error::Busy { .. })), "{result:?}");
    assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
    drop(writer);
    assert!(limiter.acquire_within("mail", SECOND).is_ok());
}

#[test]
fn opening_beside_a_frozen_writer_of_a_file_that_is_up_to_date_does_not_need_the_lock() {
    let scratch = scratch();
    drop(open_with_mail(&scratch, 300 * MILLISECOND));
    let writer = frozen_writer(&scratch);
    let asked = Instant::now();
    let builder = Limiter::builder(scratch.file()).busy_deadline(300 * MILLISECOND);
    let opened = builder.open();
    // Either it opens, or it says `Busy` as its documentation has it.
    assert!(
        matches!(opened, Ok(_) | Err(Error::Busy { .. })),
        "{opened:?} after {:?}",
        asked.elapsed()
    );
    drop(writer);
}

fn book_and_sleep() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let bookings: Vec<_> = (0..100).map(|_| limiter.book("mail").unwrap()).collect();
    signal_by(&path("READY"));
    std::thread::sleep(HOUR);
    drop(bookings);
}

#[test]
fn the_bookings_of_a_stopped_process_stand() {
    let scratch = scratch();
    let limiter = open_with_mail(&scratch, 5 * SECOND);
    let (file, ready) = (scratch.file(), scratch.path().join("ready"));
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("READY", ready.to_str().unwrap()),
    ];
    let owner = spawn("book", &arguments);
    await_signal(&ready);
    owner.send(Signal::SIGSTOP);
    eventually("it is stopped", || is_stopped(&owner));
    for _ in 0..5 {
        let refused = limiter.acquire_within("mail", 3 * SECOND);
        assert!(matches!(refused, Err(Error::TooLate { .. })), "{refused:?}");
        assert!(!limiter.try_acquire("mail").unwrap().is_granted());
    }
    let booked: i64 = scratch.sqlite("SELECT count(*) FROM booking");
    assert!(booked >= 99, "{booked}");
    // And it is dead as soon as it is, stopped or not.
    owner.kill();
    assert!(limiter.acquire_within("mail", SECOND).is_ok());
}

fn work() {
    let limiter = Limiter::builder(path("FILE"))
        .busy_deadline(50 * MILLISECOND)
        .open()
        .unwrap();
    let mut diary = Diary::open(&path("DIARY"));
    let ask = Request::new().take("mail", 1);
    while !path("STOP").exists() {
        match limiter.try_acquire(&ask) {
            Ok(Decision::Granted(permit)) => diary.note(permit.at(), &ask),
            Ok(Decision::Denied(denial)) => panic!("nothing is full: {denial}"),
            Err(Error::Busy { .. }) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn processes_that_are_stopped_at_any_moment_go_on_and_lose_nothing() {
    let stops: usize = size(15, 200);
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::new("mail").per_hour(1_000_000_000))
        .unwrap();
    let stop = scratch.path().join("stop");
    let diaries: Vec<_> = (0..4)
        .map(|number| scratch.path().join(format!("diary-{number}")))
        .collect();
    let workers: Vec<Process> = diaries
        .iter()
        .map(|diary| {
            let file = scratch.file();
            let arguments = [
                ("FILE", file.to_str().unwrap()),
                ("DIARY", diary.to_str().unwrap()),
                ("STOP", stop.to_str().unwrap()),
            ];
            spawn("work", &arguments)
        })
        .collect();
    for diary in &diaries {
        await_signal(diary);
    }
    for _ in 0..stops {
        let worker = &workers[fastrand::usize(..workers.len())];
        worker.send(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_millis(fastrand::u64(1..120)));
        worker.send(Signal::SIGCONT);
        std::thread::sleep(Duration::from_micros(fastrand::u64(100..20_000)));
    }
    signal_by(&stop);
    for worker in workers {
        worker.wait_well();
    }
    let acknowledged = read_diaries(&diaries);
    let report = audit(&scratch.file(), &acknowledged);
    report.assert_clean();
    assert_eq!(report.charges, acknowledged.len());
}

/// A process that opens the file holds a lock meanwhile, and can be stopped in the middle of it.
#[test]
fn who_can_wait_for_a_tenth_of_a_second_waits_no_longer_for_somebody_who_opens_the_file() {
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::libc;
    let scratch = scratch();
    let limiter = open_with_mail(&scratch, 5 * SECOND);
    let now = limiter.now().unwrap();
    let status = std::process::Command::new("rm")
        .args(["limits.db-wal", "limits.db-shm"])
        .current_dir(scratch.path())
        .status();
    assert!(status.unwrap().success());
    let lost = limiter.try_acquire("mail");
    assert!(matches!(lost, Err(Error::Moved { .. })), "{lost:?}");
    let lock_file = std::fs::File::options()
        .write(true)
        .open(scratch.path().join("limits.db-lock"))
        .unwrap();
    let guard = libc::flock {
        l_type: libc::F_WRLCK.try_into().unwrap(),
        l_whence: libc::SEEK_SET.try_into().unwrap(),
        l_start: 0,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&lock_file, FcntlArg::F_OFD_SETLK(&guard)).unwrap();
    let asked = Instant::now();
    let result = limiter.acquire_until("mail", now.checked_add(100 * MILLISECOND).unwrap());
    assert!(matches!(result, Err(Error::Busy { .. })), "{result:?}");
    assert!(asked.elapsed() < SECOND, "{:?}", asked.elapsed());
    drop(lock_file);
    let limit = Limit::new("mail").per_second(1);
    assert!(limiter.define(limit).is_ok());
    assert!(limiter.try_acquire("mail").unwrap().is_granted());
}
