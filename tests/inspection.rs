//! What an operator reads in the file with a stock `sqlite3` shell, beside what the library says.
mod support;

use std::process::Command;
use std::time::Duration;

use quotalite::{DAY, HOUR, Limit, Limiter, ManualClock, Request, SECOND};
use rusqlite::Connection;
use support::{open_raw, scratch};

/// Rows as text, columns joined by `|`, as the shell prints them.
fn rows(connection: &Connection, query: &str) -> Vec<String> {
    let mut statement = connection.prepare(query).unwrap();
    let columns = statement.column_count();
    let row_text = |row: &rusqlite::Row<'_>| {
        let cell = |column| {
            Ok(match row.get(column)? {
                rusqlite::types::Value::Null => String::new(),
                rusqlite::types::Value::Integer(number) => number.to_string(),
                rusqlite::types::Value::Real(number) => format!("{number:?}"),
                rusqlite::types::Value::Text(text) => text,
                rusqlite::types::Value::Blob(_) => unreachable!("no view has blobs"),
            })
        };
        let cells: rusqlite::Result<Vec<String>> = (0..columns).map(cell).collect();
        Ok(cells?.join("|"))
    };
    statement
        .query_map([], row_text)
        .unwrap()
        .map(Result::unwrap)
        .collect()
}

/// Real time: the views read the clock of the machine. The windows are hours, so that nothing changes
/// while the test runs.
fn a_file_in_use() -> (support::Scratch, Limiter) {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(Limit::new("requests").rate(3, HOUR).rate(20, 3 * DAY))
        .unwrap();
    limiter
        .define(
            Limit::new("tokens")
                .rate(90_000, HOUR)
                .unit("tokens")
                .pad(Duration::from_millis(250)),
        )
        .unwrap();
    let ask = Request::new().take("requests", 1).take("tokens", 30_000);
    for _ in 0..2 {
        assert!(limiter.try_acquire(&ask).unwrap().is_granted());
    }
    let _ = limiter.book(("requests", 3)).unwrap().accept();
    (scratch, limiter)
}

#[test]
fn limits_shows_each_rate_as_it_was_given() {
    let (scratch, _limiter) = a_file_in_use();
    assert_eq!(
        rows(
            &open_raw(&scratch.file()),
            "SELECT key, unit, kind, capacity, window_ns, pad_ns, definition, pattern FROM limits"
        ),
        [
            "requests||rate|3|3600000000000|0|3/h, 20/3d|0",
            "requests||rate|20|259200000000000|0|3/h, 20/3d|0",
            "tokens|tokens|rate|90000|3600000000000|250000000|90000 tokens/h, pad 250ms|0",
        ]
    );
}

#[test]
fn status_agrees_with_usage() {
    let (scratch, limiter) = a_file_in_use();
    let connection = open_raw(&scratch.file());
    assert_eq!(
        rows(
            &connection,
            "SELECT key, unit, rate, used, available, capacity, percent FROM status"
        ),
        [
            "requests||3/h|2|0|3|66.7",
            "requests||20/3d|2|15|20|10.0",
            "tokens|tokens|90000 tokens/h|60000|30000|90000|66.7",
        ]
    );
    for key in ["requests", "tokens"] {
        let usage = limiter.usage(key).unwrap();
        let said: Vec<String> = usage
            .rates()
            .iter()
            .map(|rate| format!("{}|{}", rate.used(), rate.available()))
            .collect();
        let query = format!("SELECT used, available FROM status WHERE key = '{key}'");
        assert_eq!(rows(&connection, &query), said);
    }
}

#[test]
fn status_names_the_next_release_as_a_time_that_people_read() {
    let (scratch, limiter) = a_file_in_use();
    let connection = open_raw(&scratch.file());
    let usage = limiter.usage("tokens").unwrap();
    let release_ns = usage.rates()[0].next_release().unwrap().as_nanos();
    let off_s: f64 = connection
        .query_row(
            "SELECT abs((julianday(next_release) - 2440587.5) * 86400.0 - ?1 / 1e9)
             FROM status WHERE key = 'tokens'",
            [release_ns],
            |row| row.get(0),
        )
        .unwrap();
    assert!(off_s < 1.0, "{off_s} s from what the library says");
}

#[test]
fn charges_marks_what_is_booked() {
    let (scratch, limiter) = a_file_in_use();
    let connection = open_raw(&scratch.file());
    assert_eq!(
        rows(
            &connection,
            "SELECT key, amount, booked FROM charges ORDER BY at_ns, key"
        ),
        [
            "requests|1|0",
            "tokens|30000|0",
            "requests|1|0",
            "tokens|30000|0",
            "requests|3|1"
        ]
    );
    let off_s: f64 = connection
        .query_row(
            "SELECT max(abs((julianday(at) - 2440587.5) * 86400.0 - at_ns / 1e9)) FROM charges",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert!(off_s < 0.01, "{off_s} s between `at` and `at_ns`");
    let now_ns = limiter.now().unwrap().as_nanos();
    let future: i64 = connection
        .query_row(
            "SELECT count(*) FROM charges WHERE booked <> (at_ns > ?1)",
            [now_ns],
            |row| row.get(0),
        )
        .unwrap();
    assert_eq!(future, 0);
}

#[test]
fn an_empty_limit_is_all_available() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("idle").per_second(7)).unwrap();
    assert_eq!(
        rows(&open_raw(&scratch.file()), "SELECT * FROM status"),
        ["idle||7/s|0|7|7|0.0||0|0|"]
    );
}

#[test]
fn the_views_follow_a_wall_clock_that_was_set() {
    let scratch = scratch();
    let clock = ManualClock::new();
    let wall = std::time::SystemTime::now();
    clock.set_wall(wall);
    let limiter = Limiter::builder(scratch.file())
        .clock(clock.clone())
        .open()
        .unwrap();
    limiter.define(Limit::new("k").rate(5, DAY)).unwrap();
    // An operator puts the clock right, and it shows in the file with the next charge a second later.
    clock.set_wall(wall - HOUR);
    clock.advance(2 * SECOND);
    assert!(limiter.try_acquire("k").unwrap().is_granted());
    let connection = open_raw(&scratch.file());
    let shift_s: f64 = connection
        .query_row(
            "SELECT (julianday(at) - 2440587.5) * 86400.0 - at_ns / 1e9 FROM charges",
            [],
            |row| row.get(0),
        )
        .unwrap();
    assert!((shift_s + 3_600.0).abs() < 0.01, "{shift_s}");
}

#[test]
fn totals_that_have_wrapped_around_still_give_the_right_usage() {
    let scratch = scratch();
    let clock = ManualClock::new();
    clock.set_wall(std::time::SystemTime::now());
    let limiter = Limiter::builder(scratch.file())
        .clock(clock.clone())
        .open()
        .unwrap();
    limiter
        .define(Limit::new("k").rate(quotalite::MAX_CAPACITY, HOUR))
        .unwrap();
    // 2^53 an hour reaches 2^62 after 512 hours.
    for _ in 0..513 {
        assert!(
            limiter
                .try_acquire(("k", quotalite::MAX_CAPACITY))
                .unwrap()
                .is_granted()
        );
        assert!(!limiter.try_acquire("k").unwrap().is_granted());
        clock.advance(HOUR);
    }
    clock.set_wall(std::time::SystemTime::now());
    assert!(limiter.try_acquire(("k", 5)).unwrap().is_granted());
    let last: i64 = scratch.sqlite("SELECT total FROM charge ORDER BY at_ns DESC LIMIT 1");
    assert_eq!(last, (1 << 53) + 5, "513 times 2^53, and 5, modulo 2^62");
    assert_eq!(limiter.usage("k").unwrap().rates()[0].used(), 5);
    assert_eq!(scratch.sqlite::<i64>("SELECT used FROM status"), 5);
}

/// The shell of the distribution is older than the library's SQLite; the views must not need more.
#[test]
fn a_stock_shell_reads_the_views_without_writing() {
    let version = Command::new("sqlite3").arg("-version").output();
    let Ok(version) = version else {
        println!("not tested: there is no sqlite3 shell on this machine");
        return;
    };
    println!("sqlite3 {}", String::from_utf8_lossy(&version.stdout));
    let (scratch, limiter) = a_file_in_use();
    for view in ["limits", "status", "charges"] {
        let output = Command::new("sqlite3")
            .arg("-readonly")
            .arg(scratch.file())
            .arg(format!("SELECT count(*) FROM {view}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{view}: {output:?}");
        let count: i64 = String::from_utf8(output.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert_eq!(count, if view == "charges" { 5 } else { 3 });
    }
    assert!(limiter.try_acquire(("tokens", 1)).unwrap().is_granted());
}

/// One slot is held with tokens, one permit is detached, one has ended, and somebody waits in line.
fn a_file_with_permits() -> (support::Scratch, Limiter, quotalite::Permit) {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::slots("slots", 3)).unwrap();
    limiter
        .define(Limit::new("tokens").rate(900, HOUR))
        .unwrap();
    let ask = |slots: u64| Request::new().take("slots", slots).take("tokens", 100);
    let held = limiter.acquire(&ask(2).id("job 1")).unwrap();
    limiter
        .acquire(&ask(1).id("job 2"))
        .unwrap()
        .detach(HOUR)
        .unwrap();
    limiter
        .acquire(&Request::new().take("tokens", 7).id("job 3"))
        .unwrap()
        .settle([("tokens", 5)])
        .unwrap();
    let waiting = limiter.clone();
    std::thread::spawn(move || waiting.acquire_within(&ask(1), HOUR).map(drop));
    let deadline = std::time::Instant::now() + 20 * SECOND;
    while limiter.usage("slots").unwrap().waiting() == 0 {
        assert!(std::time::Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(1));
    }
    (scratch, limiter, held)
}

#[test]
fn permits_and_waiting_show_who_holds_and_who_waits() {
    let (scratch, limiter, held) = a_file_with_permits();
    let connection = open_raw(&scratch.file());
    // Who waits gets a permit without an id once there is a slot, and drops it.
    let permits = || {
        rows(
            &connection,
            "SELECT id, pid IS NOT NULL, expires IS NOT NULL, holds, state FROM permits
             WHERE id IS NOT NULL ORDER BY id",
        )
    };
    assert_eq!(
        permits(),
        [
            "job 1|1|0|2 slots, 100 tokens|held",
            "job 2|0|1|1 slots, 100 tokens|detached",
            "job 3|0|0||settled",
        ]
    );
    let fences = rows(&connection, "SELECT fence FROM permits WHERE id = 'job 1'");
    assert_eq!(fences, [held.fence().unwrap().to_string()]);
    let pid = std::process::id();
    assert_eq!(
        rows(
            &connection,
            "SELECT pid, wants, deadline > since FROM waiting"
        ),
        [format!("{pid}|1 slots, 100 tokens|1")]
    );
    assert_eq!(
        rows(
            &connection,
            "SELECT key, kind, capacity, window_ns IS NULL FROM limits"
        ),
        ["slots|slots|3|1", "tokens|rate|900|0"]
    );
    assert_eq!(
        rows(
            &connection,
            "SELECT key, rate, used, available, capacity, percent, next_release IS NULL FROM status
             WHERE key = 'slots'"
        ),
        ["slots|3 slots|3|0|3|100.0|1"]
    );
    drop(held);
    assert!(
        permits()[0].ends_with("|100 tokens|abandoned"),
        "{:?}",
        permits()
    );
    assert!(
        limiter
            .settle("job 1", [("tokens", 1)])
            .unwrap()
            .settlement()
            .is_some()
    );
    assert!(permits()[0].ends_with("||settled"), "{:?}", permits());
}

#[test]
fn an_old_shell_reads_the_permits_and_the_line() {
    let (scratch, _limiter, held) = a_file_with_permits();
    let query = "SELECT id, holds, state FROM permits ORDER BY id; SELECT wants FROM waiting; \
                 SELECT key, used FROM status ORDER BY key;";
    let output = Command::new("sqlite3")
        .arg("-readonly")
        .arg(scratch.file())
        .arg(query)
        .output();
    let Ok(output) = output else {
        println!("skipped: there is no sqlite3");
        return;
    };
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        "job 1|2 slots, 100 tokens|held\njob 2|1 slots, 100 tokens|detached\njob 3||settled\n\
         1 slots, 100 tokens\nslots|3\ntokens|205\n",
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    drop(held);
}
