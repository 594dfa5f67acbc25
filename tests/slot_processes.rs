//! Slots shared by many processes: never more inside than there are slots, and none lost, whoever is killed.
//!
//! Everything here runs in real time: it is other processes and the kernel that bring it about.
#![cfg(target_os = "linux")]
mod support;

use std::path::PathBuf;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use quotalite::{Decision, Error, HOUR, Limit, Limiter, Permit, Request, SECOND};
use support::audit::audit;
use support::processes::{
    Diary, Process, await_signal, eventually, number, path, play, read_diaries, signal_by, size,
    spawn, whole_lines,
};
use support::stays::{Book, Stay, monotonic_ns, most_at_once, read_stays};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("hold", hold_until_killed),
        ("take turns", take_turns),
        ("ignore slots", ignore_slots),
        ("mix", mix),
        ("enter beside others", enter_beside_others),
    ]);
}

const MILLISECOND: Duration = Duration::from_millis(1);

/// How many slots there are.
const SLOTS: u64 = 3;

fn open_with_slots(scratch: &Scratch) -> Limiter {
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::slots("slots", SLOTS)).unwrap();
    limiter
}

/// A process and what it writes while it is inside.
#[derive(Debug)]
struct Worker {
    process: Process,
    name: String,
    book: PathBuf,
}

/// Starts processes, and keeps what those wrote that have ended.
#[derive(Debug)]
struct Crowd<'s> {
    scratch: &'s Scratch,
    role: &'static str,
    started: usize,
    running: Vec<Worker>,
    /// What each of the ended ones wrote, in the order of their ends.
    stays: Vec<Vec<Stay>>,
}

impl<'s> Crowd<'s> {
    fn new(scratch: &'s Scratch, role: &'static str) -> Self {
        Self {
            scratch,
            role,
            started: 0,
            running: Vec::new(),
            stays: Vec::new(),
        }
    }

    fn start(&mut self) -> &Worker {
        let name = format!("worker-{}", self.started);
        self.started += 1;
        let book = self.scratch.path().join(&name);
        let (file, stop) = (self.scratch.file(), self.stop_sign());
        let arguments = [
            ("FILE", file.to_str().unwrap()),
            ("STOP", stop.to_str().unwrap()),
            ("BOOK", book.to_str().unwrap()),
            ("DIARY", &format!("{}-diary", book.display())),
            ("INSIDE", &format!("{}-inside", book.display())),
            ("ME", &self.started.to_string()),
        ];
        let process = spawn(self.role, &arguments);
        self.running.push(Worker {
            process,
            name,
            book,
        });
        self.running.last().unwrap()
    }

    fn stop_sign(&self) -> PathBuf {
        self.scratch.path().join("stop")
    }

    /// Kills one of them. When this returns, the kernel has let go of all that it held.
    fn kill(&mut self, position: usize) -> String {
        let worker = self.running.swap_remove(position);
        let killed_ns = monotonic_ns();
        worker.process.kill();
        self.stays.push(read_stays(&worker.book, Some(killed_ns)));
        worker.name
    }

    fn kill_any(&mut self) -> String {
        self.kill(fastrand::usize(..self.running.len()))
    }

    fn kill_all(&mut self) {
        while !self.running.is_empty() {
            self.kill(0);
        }
    }

    /// Asks them to stop, and waits until they have.
    fn stop(&mut self) {
        signal_by(&self.stop_sign());
        for worker in self.running.drain(..) {
            worker.process.wait_well();
            self.stays.push(read_stays(&worker.book, None));
        }
    }

    /// Waits until each of them has been inside so often.
    #[track_caller]
    fn await_turns(&self, turns: usize) {
        eventually("each has had its turns", || {
            self.running.iter().all(|worker| {
                let book = whole_lines(&worker.book);
                book.lines().filter(|line| line.starts_with("in")).count() >= turns
            })
        });
    }

    fn most_at_once(&self) -> i64 {
        most_at_once(&self.stays.concat())
    }

    fn diaries(&self) -> Vec<PathBuf> {
        (0..self.started)
            .map(|number| self.scratch.path().join(format!("worker-{number}-diary")))
            .collect()
    }
}

/// That a process which comes now finds all slots free and nobody in line, and leaves nothing behind.
fn assert_all_is_free(scratch: &Scratch) {
    let limiter = Limiter::open(scratch.file()).unwrap();
    let all = limiter.try_acquire(("slots", SLOTS)).unwrap().granted();
    let all = all.expect("all slots are free");
    assert!(!limiter.try_acquire("slots").unwrap().is_granted());
    let count = |query: &str| -> i64 { scratch.sqlite(&format!("SELECT count(*) FROM {query}")) };
    assert_eq!(count("slot"), 1, "its own");
    drop(all);
    assert_eq!(limiter.usage("slots").unwrap().held(), 0);
    for table in ["slot", "ticket", "ticket_take"] {
        assert_eq!(count(table), 0, "{table}");
    }
    assert_eq!(count("permit WHERE ended_ns IS NULL"), 0);
    assert!(count("permit") <= 1);
    let integrity: String = scratch.sqlite("PRAGMA integrity_check");
    assert_eq!(integrity, "ok");
}

/// The median and the longest of some times, which it prints.
fn distribution(what: &str, mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    let (median, longest) = (at(50), at(100));
    let (p90, count) = (at(90), times.len());
    println!("{what}: median {median:?}, p90 {p90:?}, longest {longest:?} of {count}");
    (median, longest)
}

fn hold_until_killed() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut book = Book::open(&path("BOOK"));
    let permit = limiter.acquire("slots").unwrap();
    book.goes_in(1);
    signal_by(&path("INSIDE"));
    std::thread::sleep(HOUR);
    drop(permit);
}

fn await_inside(worker: &Worker) {
    await_signal(
        &worker
            .book
            .with_file_name(format!("{}-inside", worker.name)),
    );
}

#[test]
fn the_slot_of_a_killed_holder_is_there_for_whoever_asks_next() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch);
    let mut holders = Crowd::new(&scratch, "hold");
    for _ in 0..SLOTS {
        await_inside(holders.start());
    }
    let own_book = scratch.path().join("own-book");
    let mut book = Book::open(&own_book);
    let (mut by_asking, mut by_waiting) = (Vec::new(), Vec::new());
    for round in 0..size(20, 200) {
        assert!(!limiter.try_acquire("slots").unwrap().is_granted());
        if round % 2 == 0 {
            holders.kill_any();
            let killed = Instant::now();
            let permit = loop {
                if let Decision::Granted(permit) = limiter.try_acquire("slots").unwrap() {
                    break permit;
                }
                assert!(killed.elapsed() < 10 * SECOND, "a slot is lost");
            };
            by_asking.push(killed.elapsed());
            book.goes_in(1);
            assert!(!limiter.try_acquire("slots").unwrap().is_granted());
            book.goes_out();
            drop(permit);
            await_inside(holders.start());
        } else {
            // Nobody wakes those who wait: they look after the dead themselves, now and then.
            holders.start();
            eventually("it waits", || {
                limiter.usage("slots").unwrap().waiting() == 1
            });
            holders.kill(fastrand::usize(..holders.running.len() - 1));
            let killed = Instant::now();
            let waits = holders.running.iter().max_by_key(|worker| {
                let number: usize = worker.name["worker-".len()..].parse().unwrap();
                number
            });
            await_inside(waits.unwrap());
            by_waiting.push(killed.elapsed());
        }
    }
    holders.kill_all();
    let (median, longest) = distribution("killed to granted, by asking", by_asking);
    assert!(
        median < 20 * MILLISECOND && longest < SECOND,
        "{median:?} {longest:?}"
    );
    let (median, longest) = distribution("killed to inside, by waiting", by_waiting);
    assert!(
        median < 200 * MILLISECOND && longest < 2 * SECOND,
        "{median:?} {longest:?}"
    );
    let stays = [holders.stays.concat(), read_stays(&own_book, None)].concat();
    assert_eq!(most_at_once(&stays), SLOTS.cast_signed());
    assert_all_is_free(&scratch);
}

/// Waits, is inside for a moment, and goes to the end of the line, until it is told to stop.
fn take_turns() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut book = Book::open(&path("BOOK"));
    let stop = path("STOP");
    while !stop.exists() {
        let permit = limiter.acquire("slots").unwrap();
        stay_inside(&mut book, 1);
        drop(permit);
    }
}

fn stay_inside(book: &mut Book, slots: u64) {
    book.goes_in(slots);
    std::thread::sleep(Duration::from_micros(fastrand::u64(200..2_000)));
    book.goes_out();
}

/// The most turns that one of them had while all were there, and the fewest.
fn turns(stays: &[Vec<Stay>]) -> (usize, usize) {
    let all_there = |edge: fn(&[Stay]) -> i64| stays.iter().map(move |stays| edge(stays));
    let from = all_there(|stays| stays[0].from_ns).max().unwrap();
    let to = all_there(|stays| stays.last().unwrap().from_ns).min();
    let to = to.unwrap();
    let turns = stays.iter().map(|stays| {
        let during = stays
            .iter()
            .filter(|stay| (from..=to).contains(&stay.from_ns));
        during.count()
    });
    (turns.clone().max().unwrap(), turns.min().unwrap())
}

#[test]
fn eight_processes_take_turns_in_three_slots() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch);
    let mut crowd = Crowd::new(&scratch, "take turns");
    for _ in 0..8 {
        crowd.start();
    }
    crowd.await_turns(size(100, 2_000));
    crowd.stop();
    let (most, fewest) = turns(&crowd.stays);
    println!("turns: {fewest} to {most}");
    assert!(fewest >= 50, "{fewest}");
    assert!(most * 2 <= fewest * 3, "{fewest} to {most}");
    assert_eq!(crowd.most_at_once(), SLOTS.cast_signed());
    assert_eq!(limiter.usage("slots").unwrap().waiting(), 0);
    assert_all_is_free(&scratch);
}

#[test]
fn processes_killed_at_any_moment_leave_no_slot_and_no_place_in_line_behind() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch);
    let mut crowd = Crowd::new(&scratch, "take turns");
    for _ in 0..8 {
        crowd.start();
    }
    for _ in 0..size(20, 200) {
        std::thread::sleep(Duration::from_micros(fastrand::u64(5_000..60_000)));
        crowd.kill_any();
        crowd.start();
    }
    // Whoever is left goes on, and gets its turn beside the others.
    let asked = Instant::now();
    let permit = limiter.acquire_within("slots", 20 * SECOND).unwrap();
    println!("after the kills, waited {:?}", asked.elapsed());
    drop(permit);
    crowd.await_turns(10);
    crowd.stop();
    let turns: usize = crowd.stays.iter().map(Vec::len).sum();
    println!(
        "{turns} turns, {} slots at once at most",
        crowd.most_at_once()
    );
    assert_eq!(crowd.most_at_once(), SLOTS.cast_signed());
    assert_all_is_free(&scratch);
}

fn define_mix(limiter: &Limiter) {
    // The hours keep each charge from being swept before the audit has seen it.
    let requests = Limit::new("requests").rate(200, SECOND / 10);
    limiter.define(requests.rate(1_000_000_000, HOUR)).unwrap();
    let tokens = Limit::new("tokens").per_second(10_000);
    limiter.define(tokens.rate(1_000_000_000, HOUR)).unwrap();
}

/// Asks for everything at once by turns with and without waiting, and ends each permit in one of the ways in which
/// it can be ended. What it notes is what the ledger has to hold from then on.
fn mix() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut book = Book::open(&path("BOOK"));
    let mut diary = Diary::open(&path("DIARY"));
    fastrand::seed(number("ME"));
    let stop = path("STOP");
    while !stop.exists() {
        let (slots, estimate) = (fastrand::u64(1..=2), fastrand::u64(2..=40));
        let ask = Request::new()
            .take("requests", 1)
            .take("tokens", estimate)
            .take("slots", slots);
        let permit = if fastrand::bool() {
            match limiter.try_acquire(&ask).unwrap() {
                Decision::Granted(permit) => permit,
                Decision::Denied(denial) => {
                    std::thread::sleep(denial.retry_after().unwrap_or(MILLISECOND));
                    continue;
                }
            }
        } else {
            match limiter.acquire_within(&ask, SECOND / 5) {
                Ok(permit) => permit,
                // Busy: on a busy machine, the lock may take as long.
                Err(Error::TooLate { .. } | Error::Busy { .. }) => continue,
                Err(error) => panic!("{error}"),
            }
        };
        stay_inside(&mut book, slots);
        if let Some(charged) = end(permit, estimate) {
            let (at, tokens) = charged;
            diary.note(
                at,
                &Request::new().take("requests", 1).take("tokens", tokens),
            );
        }
    }
}

/// Ends a permit, and says what remains charged.
fn end(permit: Permit, estimate: u64) -> Option<(quotalite::Timestamp, u64)> {
    let at = permit.at();
    match fastrand::u8(..10) {
        0 => {
            permit.cancel().unwrap();
            None
        }
        1 => {
            drop(permit);
            Some((at, estimate))
        }
        _ => {
            // Not more: an overage may be charged to windows that were full and are past, which the audit
            // would take for windows that are over.
            let used = fastrand::u64(1..=estimate);
            let settled = permit.settle([("tokens", used)]).unwrap();
            let settlement = settled.settlement().unwrap();
            Some((at, settlement.amount("tokens").unwrap().charged()))
        }
    }
}

#[test]
fn requests_for_rates_and_slots_keep_to_both_whoever_is_killed() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch);
    define_mix(&limiter);
    let mut crowd = Crowd::new(&scratch, "mix");
    for _ in 0..6 {
        crowd.start();
    }
    let kills = size(15, 150);
    for _ in 0..kills {
        std::thread::sleep(Duration::from_micros(fastrand::u64(20_000..120_000)));
        crowd.kill_any();
        crowd.start();
    }
    crowd.await_turns(20);
    crowd.stop();
    let most = crowd.most_at_once();
    let acknowledged = read_diaries(&crowd.diaries());
    let report = audit(&scratch.file(), &acknowledged);
    println!(
        "{kills} kills: {} charges, {} acknowledged, {most} slots at once at most",
        report.charges,
        acknowledged.len()
    );
    report.assert_clean();
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    // Beside what was acknowledged there is what was charged to the killed: a permit for each of them.
    assert!(report.charges <= acknowledged.len() + 2 * kills);
    assert_eq!(most, SLOTS.cast_signed());
    assert_all_is_free(&scratch);
    eventually("the rates are free again", || {
        let free = |key: &str| limiter.usage(key).unwrap().rates()[0].used() == 0;
        free("requests") && free("tokens")
    });
}

/// What somebody does who believes that there are no limits.
fn ignore_slots() {
    let mut book = Book::open(&path("BOOK"));
    let stop = path("STOP");
    while !stop.exists() {
        stay_inside(&mut book, 1);
    }
}

#[test]
fn the_oracle_catches_those_who_ignore_slots() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch);
    let mut crowd = Crowd::new(&scratch, "take turns");
    for _ in 0..4 {
        crowd.start();
    }
    let mut cheats = Crowd::new(&scratch, "ignore slots");
    // Their books are others than those of the honest.
    cheats.started = crowd.started;
    cheats.start();
    crowd.await_turns(100);
    crowd.stop();
    let cheat = cheats.running.pop().unwrap();
    cheat.process.wait_well();
    assert!(crowd.most_at_once() <= SLOTS.cast_signed());
    let all = [crowd.stays.concat(), read_stays(&cheat.book, None)].concat();
    assert_eq!(most_at_once(&all), SLOTS.cast_signed() + 1);
    assert_eq!(limiter.usage("slots").unwrap().held(), 0);
}

#[test]
fn the_oracle_counts_who_overlaps_and_not_who_follows() {
    let stay = |from_ns, to_ns, slots| Stay {
        from_ns,
        to_ns,
        slots,
    };
    assert_eq!(most_at_once(&[]), 0);
    assert_eq!(most_at_once(&[stay(1, 5, 1), stay(5, 9, 1)]), 1);
    assert_eq!(most_at_once(&[stay(1, 6, 1), stay(5, 9, 2)]), 3);
    let scratch = scratch();
    let book = scratch.path().join("book");
    std::fs::write(&book, "in 10 2\nout 20\nin 30 1\n").unwrap();
    let read = read_stays(&book, Some(50));
    assert_eq!(read, [stay(10, 20, 2), stay(30, 50, 1)]);
    // It was let in after the kill was sent, and before it came.
    assert_eq!(read_stays(&book, Some(25))[1], stay(30, 30, 1));
}

/// Takes a slot, for the first time in this process, while other threads of it are refused one, and dies.
fn enter_beside_others() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let start = Barrier::new(5);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                start.wait();
                loop {
                    assert!(!limiter.try_acquire("full").unwrap().is_granted());
                }
            });
        }
        start.wait();
        let _permit = limiter.acquire("slots").unwrap();
        std::process::abort();
    });
}

/// A process must not take itself for dead while it becomes an owner.
#[test]
fn what_a_process_takes_first_comes_back_when_it_dies() {
    let scratch = scratch();
    let limiter = open_with_slots(&scratch);
    limiter.define(Limit::slots("full", 1)).unwrap();
    let _held = limiter.acquire("full").unwrap();
    let file = scratch.file();
    for round in 0..size(30, 300) {
        let status = spawn("enter beside others", &[("FILE", file.to_str().unwrap())]).wait();
        assert!(!status.success());
        let all = limiter.try_acquire(("slots", SLOTS)).unwrap();
        assert!(all.is_granted(), "round {round}");
    }
}
