//! What an operator reads of limits of every kind with a stock `sqlite3` shell, beside what the library says.
mod support;

use std::time::SystemTime;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use quotalite::{
    Action, DAY, HOUR, Limit, Limiter, MINUTE, ManualClock, OnConflict, Overage, Permit, Request,
    SECOND, Usage,
};
use rusqlite::Connection;
use support::{Scratch, open_raw, scratch};

/// The views read the clock of the machine, so the limiter's begins there. What is charged is charged in its past, and
/// what is asked of the views does not change within the minutes that a slow test could take.
fn a_file() -> (Scratch, Limiter, ManualClock) {
    let scratch = scratch();
    let clock = ManualClock::new();
    clock.set_wall(SystemTime::now());
    let limiter = Limiter::builder(scratch.file())
        .clock(clock.clone())
        .open()
        .unwrap();
    (scratch, limiter, clock)
}

/// `used`, `available`, `debt` and `decreasing` of each row of a limit.
fn status(connection: &Connection, key: &str) -> Vec<(i64, i64, i64, bool)> {
    let mut statement = connection
        .prepare_cached("SELECT used, available, debt, decreasing FROM status WHERE key = ?1")
        .unwrap();
    let rows = statement.query_map([key], |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    });
    rows.unwrap().map(Result::unwrap).collect()
}

/// The same as the library tells it. Whether a row decreases is told of the limit as a whole.
fn told(usage: &Usage) -> Vec<(i64, i64, i64)> {
    let debt = usage.debt();
    let rates = usage.rates().iter();
    let rates = rates.map(|rate| (rate.used(), rate.available()));
    let bucket = usage.bucket().into_iter();
    let bucket = bucket.map(|bucket| (bucket.used(), bucket.available()));
    let slots = usage.limit().slot_count();
    let slots = slots.map(|_| (usage.held(), usage.available()));
    let all = rates.chain(bucket).chain(slots);
    all.map(|(used, available)| {
        (
            used.cast_signed(),
            available.cast_signed(),
            debt.cast_signed(),
        )
    })
    .collect()
}

const KEYS: [&str; 5] = ["rate", "bucket", "slots", "tenant:1", "tenant:2"];

#[derive(Clone, Copy, Debug)]
enum Step {
    Take { key: usize, amount: u64 },
    Book { key: usize, amount: u64 },
    Settle { permit: usize, used: u64 },
    Shrink { key: usize, to: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..KEYS.len(), 1_u64..5).prop_map(|(key, amount)| Step::Take { key, amount }),
        2 => (0..KEYS.len(), 1_u64..5).prop_map(|(key, amount)| Step::Book { key, amount }),
        3 => (0_usize..20, 0_u64..15).prop_map(|(permit, used)| Step::Settle { permit, used }),
        1 => (0..3_usize, 4_u64..9).prop_map(|(key, to)| Step::Shrink { key, to }),
    ]
}

fn limit(key: usize, size: u64) -> Limit {
    let limit = match key {
        0 => Limit::new("rate")
            .rate(size, 30 * MINUTE)
            .rate(size + 3, HOUR),
        1 => Limit::new("bucket").burst(size).refill(1, 7 * 24 * HOUR),
        2 => Limit::slots("slots", size),
        _ => Limit::pattern("tenant:*").rate(size, HOUR),
    };
    limit.build().unwrap()
}

#[test]
fn status_says_of_every_kind_what_usage_says() {
    let story = |steps: Vec<Step>| {
        let (scratch, limiter, clock) = a_file();
        let limits = [0, 1, 2, 3].map(|key| limit(key, 8));
        limiter.define_all(limits, OnConflict::Fail).unwrap();
        limiter.define(Limit::new("tick").per_second(1)).unwrap();
        let connection = open_raw(&scratch.file());
        let mut permits: Vec<(usize, Permit)> = Vec::new();
        for step in steps {
            match step {
                Step::Take { key, amount } => {
                    let decision = limiter.try_acquire((KEYS[key], amount));
                    let granted = decision.ok().and_then(quotalite::Decision::granted);
                    permits.extend(granted.map(|permit| (key, permit)));
                }
                Step::Book { key, amount } => {
                    if let Ok(booking) = limiter.book((KEYS[key], amount)) {
                        permits.push((key, booking.accept()));
                    }
                }
                Step::Settle { permit, used } => {
                    if let Some((key, permit)) = permits.get(permit)
                        && *key != 2
                    {
                        permit.settle([(KEYS[*key], used)]).unwrap();
                    }
                }
                Step::Shrink { key, to } => {
                    limiter
                        .define_or(limit(key, to), OnConflict::Replace)
                        .unwrap();
                }
            }
            // The views take the instant that was last written down, if the clock of the machine is behind it.
            clock.advance(MINUTE);
            assert!(limiter.try_acquire("tick").unwrap().is_granted());
            for key in KEYS {
                let usage = limiter.usage(key).unwrap();
                let seen = status(&connection, key);
                let decreases = seen.iter().any(|row| row.3);
                prop_assert_eq!(decreases, usage.is_decreasing(), "{} {:?}", key, usage);
                let seen: Vec<_> = seen.into_iter().map(|row| (row.0, row.1, row.2)).collect();
                // Until something is charged to a key that a pattern matches, there is no row for it.
                let said = told(&usage);
                let is_unused = seen.is_empty() && said.iter().all(|row| row.0 == 0);
                prop_assert!(is_unused || seen == said, "{key}: {seen:?} {said:?}");
            }
        }
        Ok::<(), TestCaseError>(())
    };
    let config = Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&prop::collection::vec(step(), 1..25), story)
        .unwrap();
}

#[test]
fn a_limit_says_who_changed_it_and_when() {
    support::in_both_stores(|limiter, clock| {
        limiter.define(Limit::new("k").per_second(1)).unwrap();
        for capacity in 2..=20 {
            clock.advance(SECOND);
            let limit = Limit::new("k").per_second(capacity);
            limiter.define_or(limit, OnConflict::Replace).unwrap();
        }
        // Neither of these is a change.
        limiter.define(Limit::new("k").per_second(20)).unwrap();
        limiter
            .define_or(Limit::new("k").per_second(3), OnConflict::Adopt)
            .unwrap();
        assert!(limiter.define(Limit::new("k").per_second(3)).is_err());
        let changes = limiter.changes("k").unwrap();
        assert_eq!(changes.len(), quotalite::LimitChange::KEPT);
        let now = limiter.now().unwrap();
        for (age, (change, capacity)) in (0..).zip(changes.iter().zip((1..=20).rev())) {
            assert_eq!(change.action(), Action::Replaced);
            assert_eq!(change.definition(), format!("{capacity}/s"));
            assert_eq!(change.pid(), std::process::id());
            assert!(change.program().starts_with("inspection_of_kinds"));
            assert_eq!(now.saturating_duration_since(change.at()), age * SECOND);
        }
        limiter.remove("k").unwrap();
        let last = &limiter.changes("k").unwrap()[0];
        assert_eq!(
            (last.action(), last.definition()),
            (Action::Removed, "20/s")
        );
        assert!(limiter.changes("nobody").unwrap().is_empty());
    });
}

#[test]
fn a_person_reads_definitions_and_changes_as_they_were_given() {
    let (scratch, limiter, _clock) = a_file();
    limiter
        .define(
            Limit::new("api")
                .burst(20)
                .refill(10, DAY)
                .unit("calls")
                .overage(Overage::Charge),
        )
        .unwrap();
    limiter
        .define(Limit::pattern("tenant:*").slots(3).timeout(MINUTE))
        .unwrap();
    limiter
        .update("tenant:*", |limit| limit.to_builder().slots(2))
        .unwrap();
    let ask = Request::new().take("api", 5).take("tenant:7", 1);
    let _held = limiter.try_acquire(&ask).unwrap();
    let connection = open_raw(&scratch.file());
    let text = |query: &str| -> Vec<String> {
        let mut statement = connection.prepare(query).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    };
    assert_eq!(
        text("SELECT format('%s|%s|%s|%s', key, kind, definition, pattern) FROM limits"),
        [
            "api|bucket|burst 20 calls, refill 10/d, overage charge|0",
            "tenant:*|slots|2 slots, timeout 1min|1",
        ]
    );
    assert_eq!(
        text("SELECT format('%s|%s|%s', key, action, definition) FROM changes"),
        [
            "tenant:*|replaced|2 slots, timeout 1min",
            "tenant:*|created|3 slots, timeout 1min",
            "api|created|burst 20 calls, refill 10/d, overage charge",
        ]
    );
    assert_eq!(
        text("SELECT format('%s|%s|%s', key, rate, used) FROM status"),
        ["api|burst 20 calls, refill 10/d|5", "tenant:7|2 slots|1"]
    );
    assert_eq!(
        text("SELECT holds FROM permits"),
        ["1 tenant:7"],
        "what has no id is known by its slots alone"
    );
}

#[cfg(feature = "calendar")]
#[test]
fn a_calendar_quota_stands_beside_its_rates() {
    use quotalite::Period;
    let (scratch, limiter, _clock) = a_file();
    let limit = Limit::new("k")
        .rate(5, HOUR)
        .quota(50, Period::Year, "America/Los_Angeles")
        .quota(20, Period::Month, "Asia/Kolkata");
    limiter.define(limit).unwrap();
    let permit = limiter.acquire(("k", 4)).unwrap();
    let usage = limiter.usage("k").unwrap();
    let connection = open_raw(&scratch.file());
    let seen: Vec<_> = status(&connection, "k")
        .into_iter()
        .map(|row| (row.0, row.1, row.2))
        .collect();
    assert_eq!(seen, told(&usage));
    let mut statement = connection
        .prepare("SELECT rate, unixepoch(next_release) FROM status")
        .unwrap();
    let rows: Vec<(String, i64)> = statement
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    for ((printed, release_s), rate) in rows.iter().zip(usage.rates()) {
        assert_eq!(*printed, rate.rate().to_string());
        let release_ns = rate.next_release().unwrap().as_nanos();
        assert_eq!(*release_s, release_ns / 1_000_000_000, "{printed}");
    }
    permit.cancel().unwrap();
    assert_eq!(status(&connection, "k")[1], (0, 20, 0, false));
}
