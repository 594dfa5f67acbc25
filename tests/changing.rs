//! Limits that one process changes and removes while others use them: nobody ever sees half a change, and who asks next is
//! decided by the new definition.
//!
//! Everything here runs on the machine's clock, because a clock that can be set belongs to one process.
#![cfg(target_os = "linux")]
mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use quotalite::{
    Decision, Error, HOUR, Limit, Limiter, MINUTE, OnConflict, Request, SECOND, Timestamp,
};
use support::audit::audit;
use support::processes::{
    Diary, Process, argument, await_signal, eventually, path, play, read_diaries, signal_by, size,
    spawn,
};
use support::{Scratch, scratch};

#[test]
#[ignore = "the entry of child processes"]
fn child() {
    play(&[
        ("change without end", change_without_end),
        ("use what changes", use_what_changes),
        ("define", define),
        ("hold", hold),
        ("wait in line", wait_in_line),
    ]);
}

/// How many processes use what one changes.
const USERS: usize = 8;

const TENTH: Duration = Duration::from_millis(100);

/// Whatever the larger one admits may be charged when the smaller one comes; whatever the smaller one admits fits the
/// larger one. The hour is there to keep each charge from being swept before the audit has seen it.
fn small() -> Limit {
    let limit = Limit::new("k").rate(2_000, TENTH).rate(12_000, SECOND);
    let limit = limit.rate(1_000_000_000, HOUR).unit("small ones");
    limit.pad(Duration::from_millis(7)).build().unwrap()
}

fn large() -> Limit {
    let limit = Limit::new("k").rate(4_000, TENTH).rate(24_000, SECOND);
    limit
        .rate(2_000_000_000, HOUR)
        .unit("large ones")
        .build()
        .unwrap()
}

fn change_without_end() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let (small, large) = (small(), large());
    let mut changes = 0;
    while !path("STOP").exists() {
        for limit in [&small, &large] {
            limiter.define_or(limit, OnConflict::Replace).unwrap();
            changes += 1;
        }
    }
    std::fs::write(path("CHANGES"), format!("{changes}")).unwrap();
}

/// Acquires in all ways, and reads the definition in all ways.
fn use_what_changes() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let mut diary = Diary::open(&path("DIARY"));
    let known = [small(), large()];
    let mut seen = [0_u64; 2];
    while !path("STOP").exists() {
        let ask = Request::new().take("k", fastrand::u64(1..=20));
        match fastrand::u8(0..3) {
            0 => diary.note(limiter.acquire(&ask).unwrap().at(), &ask),
            1 => match limiter.try_acquire(&ask).unwrap() {
                Decision::Granted(permit) => diary.note(permit.at(), &ask),
                Decision::Denied(denial) => {
                    let mut rates = known.iter().flat_map(Limit::rates);
                    let found = denial.obstacle();
                    assert!(
                        rates.any(|rate| quotalite::Obstacle::Rate(*rate) == found),
                        "{found}"
                    );
                }
            },
            _ => {
                let booking = limiter.book(&ask).unwrap();
                if fastrand::bool() {
                    diary.note(booking.wait().unwrap().at(), &ask);
                }
            }
        }
        let found = if fastrand::bool() {
            limiter.limit("k").unwrap()
        } else {
            limiter.usage("k").unwrap().limit().clone()
        };
        let which = known.iter().position(|limit| *limit == found);
        seen[which.unwrap_or_else(|| panic!("half a change: {found}"))] += 1;
    }
    std::fs::write(path("SEEN"), format!("{} {}", seen[0], seen[1])).unwrap();
}

#[test]
fn nobody_sees_half_a_change_and_nobody_gets_more_than_the_larger_definition() {
    let lasts = size(2 * SECOND, 2 * MINUTE);
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(large()).unwrap();
    let place = |name: String| scratch.path().join(name);
    let (file, stop) = (scratch.file(), place("stop".to_owned()));
    let changes = place("changes".to_owned());
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("STOP", stop.to_str().unwrap()),
        ("CHANGES", changes.to_str().unwrap()),
    ];
    let one = spawn("change without end", &arguments);
    let diaries: Vec<PathBuf> = (0..USERS).map(|n| place(format!("diary-{n}"))).collect();
    let seen: Vec<PathBuf> = (0..USERS).map(|n| place(format!("seen-{n}"))).collect();
    let user = |number: usize| {
        let arguments = [
            ("FILE", file.to_str().unwrap()),
            ("STOP", stop.to_str().unwrap()),
            ("DIARY", diaries[number].to_str().unwrap()),
            ("SEEN", seen[number].to_str().unwrap()),
        ];
        spawn("use what changes", &arguments)
    };
    let users: Vec<Process> = (0..USERS).map(user).collect();
    std::thread::sleep(lasts);
    signal_by(&stop);
    for process in users.into_iter().chain([one]) {
        process.wait_well();
    }
    limiter.define_or(large(), OnConflict::Replace).unwrap();
    let acknowledged = read_diaries(&diaries);
    let report = audit(&scratch.file(), &acknowledged);
    let changes = std::fs::read_to_string(changes).unwrap();
    println!(
        "{} charges and {changes} changes in {lasts:?}",
        report.charges
    );
    report.assert_clean();
    assert!(acknowledged.len() > 100);
    for seen in seen {
        let seen = std::fs::read_to_string(seen).unwrap();
        let counts: Vec<u64> = seen
            .split(' ')
            .map(|count| count.parse().unwrap())
            .collect();
        assert!(
            counts.iter().all(|count| *count > 0),
            "both were seen: {counts:?}"
        );
    }
}

/// Defines a limit of so much an hour, for all.
fn define() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let limit = Limit::new("k").per_hour(argument("CAPACITY").parse().unwrap());
    limiter.define_or(limit, OnConflict::Replace).unwrap();
}

fn defined_by_another(scratch: &Scratch, capacity: u64) {
    let file = scratch.file();
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("CAPACITY", &capacity.to_string()),
    ];
    spawn("define", &arguments).wait_well();
}

/// When one is admitted, which it is not now.
#[track_caller]
fn retry_at(limiter: &Limiter) -> Option<Timestamp> {
    limiter
        .try_acquire("k")
        .unwrap()
        .denied()
        .unwrap()
        .retry_at()
}

#[test]
fn the_next_decision_of_every_process_is_by_the_new_definition() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("k").per_hour(2)).unwrap();
    let charge = || limiter.try_acquire("k").unwrap().granted().unwrap().at();
    let mut charged = vec![charge(), charge()];
    for capacity in 3..=6 {
        // Refused from memory, as often as one likes.
        for _ in 0..10 {
            assert_eq!(retry_at(&limiter), charged[0].checked_add(HOUR));
        }
        defined_by_another(&scratch, capacity);
        charged.push(charge());
    }
    for capacity in (1..=5).rev() {
        defined_by_another(&scratch, capacity);
        // Of six, so many have to leave that one fits beside the others.
        let leaves = charged[6 - usize::try_from(capacity).unwrap()];
        assert_eq!(retry_at(&limiter), leaves.checked_add(HOUR));
        let usage = limiter.usage("k").unwrap();
        assert!(usage.is_decreasing());
        assert_eq!((usage.rates()[0].used(), usage.available()), (6, 0));
    }
    defined_by_another(&scratch, 7);
    assert!(!limiter.usage("k").unwrap().is_decreasing());
    charge();
}

/// Has something of a limit until it is killed: a slot, a booking, or a permit with an id.
fn hold() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let _permit;
    let _booking;
    match argument("WHAT").as_str() {
        "slot" => _permit = limiter.acquire("k").unwrap(),
        "booking" => {
            assert!(limiter.try_acquire("k").unwrap().is_granted());
            _booking = limiter.book("k").unwrap();
        }
        _ => {
            _permit = limiter
                .acquire(&Request::new().take("k", 1).id("job"))
                .unwrap();
        }
    }
    signal_by(&path("READY"));
    std::thread::sleep(HOUR);
}

#[test]
fn what_another_process_uses_is_removed_only_by_force_and_freely_when_that_is_dead() {
    for what in ["slot", "booking", "permit"] {
        let limit = || match what {
            "slot" => Limit::slots("k", 1),
            _ => Limit::new("k").per_hour(1),
        };
        for is_forced in [false, true] {
            let scratch = scratch();
            let limiter = Limiter::open(scratch.file()).unwrap();
            limiter.define(limit()).unwrap();
            let (file, ready) = (scratch.file(), scratch.path().join("ready"));
            let arguments = [
                ("FILE", file.to_str().unwrap()),
                ("READY", ready.to_str().unwrap()),
                ("WHAT", what),
            ];
            let holder = spawn("hold", &arguments);
            await_signal(&ready);
            let refused = limiter.remove("k");
            let Err(Error::InUse { by, .. }) = refused else {
                panic!("{what}: {refused:?}");
            };
            let found = (by.slots, by.bookings, by.permits);
            let expected = match what {
                "slot" => (1, 0, 0),
                "booking" => (0, 1, 0),
                _ => (0, 0, 1),
            };
            assert_eq!(found, expected, "{what}");
            assert!(limiter.limit("k").is_ok(), "it still stands");
            if is_forced {
                limiter.force_remove("k").unwrap();
                holder.kill();
            } else {
                holder.kill();
                if what == "permit" {
                    // It can be settled under its id by whoever comes.
                    assert!(matches!(limiter.remove("k"), Err(Error::InUse { .. })));
                    limiter.cancel("job").unwrap();
                }
                limiter.remove("k").unwrap();
            }
            assert!(matches!(
                limiter.try_acquire("k"),
                Err(Error::UnknownLimit { .. })
            ));
            limiter.define(limit()).unwrap();
            assert!(
                limiter.try_acquire("k").unwrap().is_granted(),
                "{what}: it is a new one"
            );
            assert_eq!(scratch.sqlite::<String>("PRAGMA integrity_check"), "ok");
        }
    }
}

/// Waits in line, and says what it was told.
fn wait_in_line() {
    let limiter = Limiter::open(path("FILE")).unwrap();
    let request = Request::new().take("slots", 1).take(argument("KEY"), 1);
    let answer = match limiter.acquire(&request) {
        Ok(_) => "granted".to_owned(),
        Err(Error::UnknownLimit { key, .. }) => format!("no {key}"),
        Err(error) => panic!("{error}"),
    };
    let told = path("TOLD");
    std::fs::write(told.with_extension("new"), answer).unwrap();
    std::fs::rename(told.with_extension("new"), told).unwrap();
}

/// Lets another process wait for a slot and something else, while something is changed. Returns what it was told.
fn told_when(
    slots: &Limit,
    other: &Limit,
    key: &str,
    change: impl FnOnce(&Limiter) -> Result<(), Error>,
) -> String {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(slots).unwrap();
    limiter.define(other).unwrap();
    let held = Request::new().take("slots", 1).take(key, 1);
    let held = limiter.acquire(&held).unwrap();
    let (file, told) = (scratch.file(), scratch.path().join("told"));
    let arguments = [
        ("FILE", file.to_str().unwrap()),
        ("TOLD", told.to_str().unwrap()),
        ("KEY", key),
    ];
    let waiter = spawn("wait in line", &arguments);
    eventually("it waits", || limiter.usage(key).unwrap().waiting() == 1);
    let start = Instant::now();
    change(&limiter).unwrap();
    await_signal(&told);
    let took = start.elapsed();
    println!("told after {took:?}");
    // Far longer than it takes, and shorter than anybody looks again by itself.
    assert!(took < SECOND / 2, "{took:?}");
    waiter.wait_well();
    drop(held);
    std::fs::read_to_string(told).unwrap()
}

fn slots(key: &str, count: u64) -> Limit {
    Limit::slots(key, count).build().unwrap()
}

fn pattern_of_slots(count: u64) -> Limit {
    Limit::pattern("t:*").slots(count).build().unwrap()
}

#[test]
fn who_waits_for_a_limit_that_is_removed_is_told_so_at_once() {
    let one = slots("slots", 1);
    let rate = Limit::new("k").per_hour(10).build().unwrap();
    let pattern = Limit::pattern("t:*").per_hour(10).build().unwrap();
    let cases = [
        (&rate, "k", "slots", "no slots"),
        // While the slot is held on.
        (&rate, "k", "k", "no k"),
        (&pattern, "t:1", "t:*", "no t:1"),
    ];
    for (other, key, removed, expected) in cases {
        let told = told_when(&one, other, key, |limiter| {
            let refused = limiter.remove(removed);
            let Err(Error::InUse { by, .. }) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(by.waiting, 1);
            limiter.force_remove(removed).map(drop)
        });
        assert_eq!(told, expected);
    }
}

#[test]
fn who_waits_for_a_limit_that_is_increased_goes_at_once() {
    let replace = |limit: Limit| {
        move |limiter: &Limiter| limiter.define_or(&limit, OnConflict::Replace).map(drop)
    };
    let rate = Limit::new("k").per_hour(10).build().unwrap();
    let told = told_when(&slots("slots", 1), &rate, "k", replace(slots("slots", 2)));
    assert_eq!(told, "granted");
    let few = Limit::new("k").per_hour(1).build().unwrap();
    let told = told_when(&slots("slots", 2), &few, "k", replace(rate));
    assert_eq!(told, "granted");
    let (one, two) = (pattern_of_slots(1), pattern_of_slots(2));
    let told = told_when(&slots("slots", 2), &one, "t:1", replace(two));
    assert_eq!(told, "granted");
    // By a definition of its own, or a pattern that says more about it.
    let told = told_when(&slots("slots", 2), &one, "t:1", replace(slots("t:1", 2)));
    assert_eq!(told, "granted");
    let special = Limit::pattern("t:1*").slots(2).build().unwrap();
    let told = told_when(&slots("slots", 2), &one, "t:12", replace(special));
    assert_eq!(told, "granted");
}
