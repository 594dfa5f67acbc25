//! `quotalite replay`: what another definition would have made of what was charged.
#![cfg(all(feature = "cli", unix))]

mod support;

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use nix::pty::{Winsize, openpty};
use quotalite::{
    Booking, Limit, LimitBuilder, Limiter, MINUTE, ManualClock, OnConflict, Period, SECOND,
};
use serde_json::Value;
use support::{Scratch, open_raw, scratch};

const SECOND_NS: i64 = 1_000_000_000;

fn quotalite(db: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quotalite"));
    command
        .arg("replay")
        .args(arguments)
        .env("QUOTALITE_DB", db)
        .env("TZ", "UTC")
        .stdin(Stdio::null());
    command
}

fn run(scratch: &Scratch, arguments: &[&str]) -> Output {
    quotalite(&scratch.file(), arguments).output().unwrap()
}

fn text(scratch: &Scratch, arguments: &[&str]) -> String {
    let output = run(scratch, arguments);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout).unwrap()
}

fn json(scratch: &Scratch, arguments: &[&str]) -> Value {
    let arguments: Vec<&str> = arguments.iter().copied().chain(["--json"]).collect();
    serde_json::from_str(&text(scratch, &arguments)).unwrap()
}

/// What is wrong with a call, and its exit code.
fn failure(scratch: &Scratch, arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(scratch, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    (output.status.code(), errors)
}

/// A file in which these amounts are charged to `k`, so many nanoseconds after an instant an hour ago.
fn planted(limit: LimitBuilder, charges: &[(i64, u64)]) -> Scratch {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(limit).unwrap();
    let start_ns = limiter.now().unwrap().as_nanos() - 3_600 * SECOND_NS;
    drop(limiter);
    let mut raw = open_raw(&scratch.file());
    let transaction = raw.transaction().unwrap();
    let mut total = 0_i64;
    let mut insert = transaction
        .prepare(
            "INSERT INTO charge (limit_id, at_ns, seq, amount, total)
             SELECT limit_id, ?1, ?2, ?3, ?4 FROM limit_definition WHERE key = 'k'",
        )
        .unwrap();
    for (seq, (at_ns, amount)) in (0_i64..).zip(charges) {
        total += amount.cast_signed();
        insert
            .execute((start_ns + at_ns, seq, amount.cast_signed(), total))
            .unwrap();
    }
    drop(insert);
    transaction.commit().unwrap();
    scratch
}

fn kept() -> LimitBuilder {
    Limit::new("k").per_second(10).keep(1_000 * MINUTE)
}

#[test]
fn of_ten_at_once_half_are_refused_or_wait_a_second() {
    let scratch = planted(kept(), &[(0, 1); 10]);
    let told = json(&scratch, &["--limit", "k", "--as", "5/s"]);
    assert_eq!(
        (&told["charges"], &told["amount"]),
        (&10.into(), &10.into())
    );
    let none = serde_json::json!({"count": 0, "share": 0.0, "amount": 0});
    let as_it_is = &told["as_it_is"];
    assert_eq!(as_it_is["definition"], "10/s, keep 1000min");
    assert_eq!(as_it_is["refused"], none);
    assert_eq!(as_it_is["delayed"]["count"], 0);
    assert_eq!(as_it_is["delayed"]["longest_s"], Value::Null);
    let half = serde_json::json!({"count": 5, "share": 0.5, "amount": 5});
    let instead = &told["instead"];
    assert_eq!((&instead["refused"], &instead["never_fit"]), (&half, &none));
    assert_eq!(
        instead["delayed"],
        serde_json::json!({
            "count": 5, "share": 0.5, "amount": 5,
            "median_s": 1.0, "p90_s": 1.0, "p99_s": 1.0, "longest_s": 1.0
        })
    );
    let first = &told["columns"][0];
    let drawn = ["amount", "refused", "delayed"].map(|name| first[name].as_u64().unwrap());
    assert_eq!(drawn, [10, 5, 5]);
    assert_eq!(told["columns"].as_array().unwrap().len(), 60);
}

#[test]
fn delays_have_a_median_and_a_tail() {
    // A second apart, ten each, through a bucket that gives one a second.
    let scratch = planted(kept(), &[(0, 10)]);
    let told = json(
        &scratch,
        &["--limit", "k", "--burst", "5", "--refill", "1/s"],
    );
    assert_eq!(told["instead"]["definition"], "burst 5, refill 1/s");
    assert_eq!(told["instead"]["never_fit"]["amount"], 10);
    assert_eq!(told["instead"]["refused"]["count"], 0);

    let scratch = planted(kept(), &[(0, 1); 10]);
    let told = json(
        &scratch,
        &["--limit", "k", "--burst", "5", "--refill", "1/s"],
    );
    let delayed = &told["instead"]["delayed"];
    assert_eq!(
        *delayed,
        serde_json::json!({
            "count": 5, "share": 0.5, "amount": 5,
            "median_s": 3.0, "p90_s": 5.0, "p99_s": 5.0, "longest_s": 5.0
        })
    );
}

#[test]
fn a_pad_is_part_of_what_is_tried() {
    let scratch = planted(kept(), &[(0, 5), (SECOND_NS, 5)]);
    let refused = |arguments: &[&str]| {
        let told = json(&scratch, &[&["--limit", "k"], arguments].concat());
        told["instead"]["refused"]["count"].as_u64().unwrap()
    };
    assert_eq!(refused(&["--as", "5/s"]), 0);
    assert_eq!(refused(&["--as", "5/s", "--pad", "1ms"]), 1);
}

/// The rates of a definition: capacities and windows.
type Rates<'r> = &'r [(u64, i64)];

/// Whether an amount at an instant keeps every window within its capacity, beside what is charged.
fn fits(rates: Rates<'_>, charged: &[(i64, u64)], (at, amount): (i64, u64)) -> bool {
    rates.iter().all(|(capacity, window)| {
        let later = charged.iter().map(|(other, _)| *other);
        let ends = later.filter(|end| (at..at + window).contains(end));
        ends.chain([at]).all(|end| {
            let in_window = |other: i64| end - window < other && other <= end;
            let of_others = charged.iter().filter(|(other, _)| in_window(*other));
            of_others.map(|(_, amount)| amount).sum::<u64>() + amount <= *capacity
        })
    })
}

/// How many are refused and never fit, and how long the delays are, found by trying.
fn by_trying(rates: Rates<'_>, charges: &[(i64, u64)]) -> (u64, u64, Vec<i64>) {
    let (mut refused, mut never, mut delays) = (0, 0, Vec::new());
    let (mut now, mut in_line) = (Vec::new(), Vec::new());
    for (at, amount) in charges.iter().copied() {
        if rates.iter().any(|(capacity, _)| amount > *capacity) {
            never += 1;
            continue;
        }
        if fits(rates, &now, (at, amount)) {
            now.push((at, amount));
        } else {
            refused += 1;
        }
        // Something can only begin to fit when something else leaves a window.
        let leave = in_line
            .iter()
            .flat_map(|(other, _)| rates.iter().map(move |(_, window)| other + window));
        let mut instants: Vec<i64> = leave.filter(|instant| *instant > at).chain([at]).collect();
        instants.sort_unstable();
        let mut found = instants
            .into_iter()
            .filter(|instant| fits(rates, &in_line, (*instant, amount)));
        let then = found.next().unwrap();
        drop(found);
        in_line.push((then, amount));
        if then > at {
            delays.push(then - at);
        }
    }
    delays.sort_unstable();
    (refused, never, delays)
}

#[test]
fn figures_are_those_that_are_found_by_trying() {
    let mut seed = 7_u64;
    let mut draw = |below: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % below
    };
    let rates: [Rates<'_>; 3] = [
        &[(5, SECOND_NS)],
        &[(4, SECOND_NS), (12, 10 * SECOND_NS)],
        &[
            (3, SECOND_NS / 2),
            (20, 7 * SECOND_NS),
            (60, 60 * SECOND_NS),
        ],
    ];
    let texts = ["5/s", "4/s, 12/10s", "3/500ms, 20/7s, 60/min"];
    let mut most_delayed = 0;
    for round in 0..24 {
        let mut at_ns = 0;
        let steps_ns = [50_000_000, 300_000_000, 900_000_000][round % 3];
        let charges: Vec<(i64, u64)> = (0..160)
            .map(|_| {
                at_ns += i64::try_from(draw(steps_ns)).unwrap();
                (at_ns, 1 + draw(6))
            })
            .collect();
        let scratch = planted(kept(), &charges);
        let which = round / 3 % 3;
        let (refused, never, delays) = by_trying(rates[which], &charges);
        let told = json(&scratch, &["--limit", "k", "--as", texts[which]]);
        let instead = &told["instead"];
        let story = format!("round {round}: {} of {charges:?}", texts[which]);
        assert_eq!(instead["refused"]["count"], refused, "{story}");
        assert_eq!(instead["never_fit"]["count"], never, "{story}");
        assert_eq!(instead["delayed"]["count"], delays.len(), "{story}");
        let rank = |percent: usize| (delays.len() * percent).div_ceil(100).max(1) - 1;
        for (name, percent) in [
            ("median_s", 50),
            ("p90_s", 90),
            ("p99_s", 99),
            ("longest_s", 100),
        ] {
            let delay = delays
                .get(rank(percent))
                .map(|delay| Duration::from_nanos(delay.unsigned_abs()).as_secs_f64());
            assert_eq!(instead["delayed"][name].as_f64(), delay, "{name}, {story}");
        }
        most_delayed = most_delayed.max(delays.len());
    }
    assert!(most_delayed > 100, "{most_delayed}: no line was long");
}

#[test]
fn what_a_worker_was_granted_fits_as_it_is() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter
        .define(
            Limit::new("k")
                .rate(20, SECOND / 50)
                .per_minute(5_000)
                .keep(MINUTE),
        )
        .unwrap();
    let mut granted = 0;
    for amount in (1..8).cycle().take(400) {
        let permit = limiter.try_acquire(("k", amount)).unwrap().granted();
        granted += u64::from(permit.is_some());
    }
    let _booked = limiter.book(("k", 20)).unwrap().accept();
    limiter
        .update("k", |limit| limit.to_builder().per_hour(1_000_000))
        .unwrap();
    let _ahead = limiter.book(("k", 20)).unwrap();
    let told = json(&scratch, &["--limit", "k", "--as", "1000000/s"]);
    let charges = told["charges"].as_u64().unwrap();
    // The first booking may lie ahead still, and may have come.
    assert!(
        (granted..=granted + 2).contains(&charges),
        "{charges} of {granted}"
    );
    for figure in ["refused", "delayed", "never_fit"] {
        assert_eq!(told["as_it_is"][figure]["count"], 0, "{told}");
    }
    assert!(!text(&scratch, &["--limit", "k", "--as", "9/s"]).contains("Not all of it fits"));
}

/// Whatever was granted, given back and waited for fits the definition that it was granted by.
#[test]
fn nothing_that_was_granted_is_refused_as_it_is() {
    let ms = Duration::from_millis(1);
    let plain = || Limit::new("k").keep(1_000 * MINUTE);
    let limits = [
        plain().rate(9, 50 * ms).rate(40, 900 * ms),
        plain().rate(9, 50 * ms).pad(7 * ms),
        plain().rate(9, 50 * ms).resolution(7 * ms),
        plain()
            .rate(9, 50 * ms)
            .quota(300, Period::Day, "Asia/Tokyo"),
    ];
    for limit in limits {
        let scratch = scratch();
        let clock = ManualClock::new();
        // 20 s before midnight in Tokyo.
        clock.set_wall(SystemTime::UNIX_EPOCH + 1_699_973_980 * SECOND);
        let builder = Limiter::builder(scratch.file());
        let limiter = builder.clock(clock.clone()).open().unwrap();
        let limit = limit.build().unwrap();
        limiter.define(&limit).unwrap();
        let mut permits = Vec::new();
        for step in 0..4_000_u64 {
            let mixed = step.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            clock.advance(ms * u32::try_from(mixed % 23).unwrap());
            let ask = ("k", 1 + mixed / 23 % 7);
            if mixed % 5 == 0 && limit.resolution().is_none() {
                permits.extend(limiter.book_within(ask, SECOND).ok().map(Booking::accept));
            } else {
                permits.extend(limiter.try_acquire(ask).unwrap().granted());
            }
            if mixed % 11 == 0
                && let Some(permit) = permits.pop()
            {
                permit.settle([("k", mixed % 2)]).unwrap();
            }
        }
        drop(limiter);
        let told = json(&scratch, &["--limit", "k", "--as", "8/50ms"]);
        let charges = told["charges"].as_u64().unwrap();
        assert!(charges > 200, "{limit}: {charges}");
        assert!(
            told["instead"]["refused"]["count"].as_u64() > Some(10),
            "{limit}"
        );
        for figure in ["refused", "delayed", "never_fit"] {
            assert_eq!(
                told["as_it_is"][figure]["count"], 0,
                "{limit}: {figure} of {charges}"
            );
        }
    }
}

#[test]
fn a_ledger_that_does_not_fit_its_own_definition_is_pointed_out() {
    let scratch = planted(kept(), &[(0, 6), (1, 4), (2, 3)]);
    let told = json(&scratch, &["--limit", "k", "--as", "13/s"]);
    assert_eq!(told["as_it_is"]["refused"]["count"], 1);
    assert_eq!(told["instead"]["refused"]["count"], 0);
    let shown = text(&scratch, &["--limit", "k", "--as", "13/s"]);
    assert!(
        shown.contains("Not all of it fits the present definition"),
        "{shown}"
    );
}

#[test]
fn a_limit_without_history_is_told_how_to_keep_one() {
    let kept = planted(kept(), &[(0, 1)]);
    let told = text(&kept, &["--limit", "k", "--as", "5/s"]);
    assert!(!told.contains("--history"), "{told}");
    let told = json(&kept, &["--limit", "k", "--as", "5/s"]);
    assert_eq!(told["keeps_s"], 60_000.0);

    let none = planted(Limit::new("k").per_second(10).per_hour(500), &[(0, 1)]);
    let told = text(&none, &["--limit", "k", "--as", "5/s"]);
    assert!(
        told.contains("`k` keeps no history beyond its windows, of 1h: "),
        "{told}"
    );
    assert!(told.contains("--history 7d"), "{told}");
    let told = json(&none, &["--limit", "k", "--as", "5/s"]);
    assert_eq!(told["keeps_s"], Value::Null);
}

#[test]
fn an_empty_ledger_is_no_error() {
    let scratch = planted(kept(), &[]);
    let drawn = scratch.path().join("empty.svg");
    let told = text(
        &scratch,
        &[
            "--limit",
            "k",
            "--as",
            "5/s",
            "--svg",
            drawn.to_str().unwrap(),
        ],
    );
    assert_eq!(told, "k: 0 charges to replay\n");
    roxmltree::Document::parse(&fs::read_to_string(drawn).unwrap()).unwrap();
    let told = json(&scratch, &["--limit", "k", "--as", "5/s"]);
    assert_eq!(
        (&told["charges"], &told["first"]),
        (&0.into(), &Value::Null)
    );
    assert_eq!(told["instead"]["delayed"]["median_s"], Value::Null);
    // A key that a pattern would make, and nobody has used.
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::pattern("t:*").per_second(1)).unwrap();
    let told = text(&scratch, &["--limit", "t:1", "--as", "5/s"]);
    assert!(told.starts_with("t:1: 0 charges to replay\n"), "{told}");
}

#[test]
fn what_cannot_be_replayed_is_refused() {
    let scratch = planted(kept(), &[(0, 1)]);
    let limiter = Limiter::open(scratch.file()).unwrap();
    for limit in [
        Limit::slots("slots", 2),
        Limit::new("bucket").burst(2).refill(1, SECOND),
        Limit::pattern("t:*").per_second(1),
    ] {
        limiter.define(limit).unwrap();
    }
    for (arguments, message) in [
        (&["--limit", "nobody", "--as", "5/s"][..], "`nobody`"),
        (&["--limit", "slots", "--as", "5/s"], "no ledger to replay"),
        (&["--limit", "bucket", "--as", "5/s"], "no ledger to replay"),
        (&["--limit", "t:*", "--as", "5/s"], "is a pattern"),
        (&["--limit", "k"], "which other definition"),
        (&["--as", "5/s"], "--limit"),
        (&["--limit", "k", "--as", "5/fortnight"], "fortnight"),
        (&["--limit", "k", "--as", "0/s"], "a capacity is 1 to"),
        (&["--limit", "k", "--burst", "5"], "refill"),
        (
            &[
                "--limit", "k", "--as", "5/s", "--burst", "5", "--refill", "1/s",
            ],
            "cannot be used with",
        ),
        (&["--limit", "k", "--as", "5/s", "--since", "soon"], "soon"),
    ] {
        let (code, errors) = failure(&scratch, arguments);
        assert_eq!(code, Some(64), "{arguments:?}: {errors}");
        assert!(errors.contains(message), "{arguments:?}: {errors}");
    }
    let nowhere = scratch.path().join("nowhere").join("picture.svg");
    let nowhere = nowhere.to_str().unwrap();
    let (code, errors) = failure(&scratch, &["--limit", "k", "--as", "5/s", "--svg", nowhere]);
    assert_eq!(code, Some(125), "{errors}");
    assert!(errors.contains("picture.svg"), "{errors}");

    let other = support::scratch();
    let (code, _) = failure(&other, &["--limit", "k", "--as", "5/s"]);
    assert_eq!(code, Some(125));
    assert!(!other.file().exists());
}

#[test]
fn no_file_is_overwritten_by_the_picture() {
    let scratch = planted(kept(), &[(0, 3)]);
    let taken = scratch.path().join("limits.toml");
    fs::write(&taken, "precious").unwrap();
    let arguments = [
        "--limit",
        "k",
        "--as",
        "5/s",
        "--svg",
        taken.to_str().unwrap(),
    ];
    let (code, errors) = failure(&scratch, &arguments);
    assert_eq!(code, Some(64), "{errors}");
    assert!(errors.contains("nothing is overwritten"), "{errors}");
    assert_eq!(fs::read_to_string(&taken).unwrap(), "precious");
}

#[test]
fn it_can_begin_later() {
    let scratch = planted(
        kept(),
        &[(0, 7), (3_000 * SECOND_NS, 2), (3_000 * SECOND_NS, 1)],
    );
    let since = |since: &str| {
        let told = json(&scratch, &["--limit", "k", "--as", "5/s", "--since", since]);
        let figures = [
            &told["charges"],
            &told["amount"],
            &told["instead"]["never_fit"]["count"],
        ];
        figures.map(|figure| figure.as_u64().unwrap())
    };
    assert_eq!(since("2h"), [3, 10, 1]);
    assert_eq!(since("30m"), [2, 3, 0]);
    assert_eq!(since("1s"), [0, 0, 0]);
    let told = json(&scratch, &["--limit", "k", "--as", "5/s"]);
    let [first, last] = ["first", "last"].map(|name| told[name].as_str().unwrap().to_owned());
    assert_eq!(since("1970-01-01T00:00:00Z"), [3, 10, 1]);
    assert_eq!(since("1970-01-01"), [3, 10, 1]);
    assert_eq!(since("2200-01-01 12:00"), [0, 0, 0]);
    // They are told to a microsecond, which is cut off.
    assert_eq!(since(&first), [3, 10, 1]);
    assert_eq!(since(&last), [2, 3, 0]);
}

#[test]
fn the_svg_is_xml_whatever_the_key() {
    let scratch = planted(kept(), &[(0, 1); 10]);
    let raw = open_raw(&scratch.file());
    let key = "<&\"'>]]> é \u{ffff}";
    raw.execute("UPDATE limit_definition SET key = ?1", [key])
        .unwrap();
    raw.execute("UPDATE clock SET definitions = definitions + 1", [])
        .unwrap();
    let drawn = scratch.path().join("drawn.svg");
    let told = text(
        &scratch,
        &[
            "--limit",
            key,
            "--as",
            "5 calls/s",
            "--svg",
            drawn.to_str().unwrap(),
        ],
    );
    assert!(told.starts_with(key), "{told}");
    let drawn = fs::read_to_string(drawn).unwrap();
    let document = roxmltree::Document::parse(&drawn).unwrap();
    let title = document
        .descendants()
        .find(|node| node.attribute("class") == Some("title"))
        .unwrap();
    assert_eq!(title.text(), Some("<&\"'>]]> é \u{fffd}: 5 calls/s"));
    let bars = |class: &str| {
        let nodes = document.descendants();
        let bars = nodes.filter(|node| node.attribute("class") == Some(class));
        bars.count()
    };
    // One bar of each, and its sample in the legend.
    assert_eq!((bars("load"), bars("delayed"), bars("capacity")), (2, 2, 2));
}

#[test]
fn a_narrow_terminal_is_not_overrun() {
    use unicode_width::UnicodeWidthStr;

    let charges: Vec<(i64, u64)> = (0..500)
        .map(|n: i64| (n * 90_000_000, 1 + n.unsigned_abs() % 5))
        .collect();
    let scratch = planted(kept().without_rates().per_second(100), &charges);
    for columns in [40, 80] {
        let size = Winsize {
            ws_row: 24,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        let terminal = openpty(Some(&size), None).unwrap();
        let mut child = quotalite(&scratch.file(), &["--limit", "k", "--as", "15/s"])
            .stdout(terminal.slave)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut shown = Vec::new();
        // It ends with an error when nobody has the other side open any more.
        let _ = fs::File::from(terminal.master).read_to_end(&mut shown);
        assert!(child.wait().unwrap().success());
        let shown = String::from_utf8(shown).unwrap();
        assert!(shown.contains('\u{1b}'), "it has colours: {shown}");
        let plain = anstream::adapter::strip_str(&shown).to_string();
        for shown in ["█", "as it is", "instead"] {
            assert!(plain.contains(shown), "{plain}");
        }
        assert_eq!(plain.contains("MEDIAN"), columns == 80, "{plain}");
        for line in plain.lines() {
            let is_text = line.starts_with("k: ") || line.starts_with("refused if");
            assert!(
                is_text || line.width() <= usize::from(columns),
                "{columns}: {line}"
            );
        }
    }
}

#[test]
fn what_is_booked_ahead_is_no_part_of_it() {
    let scratch = scratch();
    let limiter = Limiter::open(scratch.file()).unwrap();
    limiter.define(Limit::new("k").per_hour(2)).unwrap();
    let _now = limiter.try_acquire(("k", 2)).unwrap();
    let _later = limiter.book(("k", 2)).unwrap();
    let told = json(&scratch, &["--limit", "k", "--as", "5/s"]);
    assert_eq!((&told["charges"], &told["amount"]), (&1.into(), &2.into()));
}

#[test]
fn a_replay_changes_nothing() {
    let scratch = planted(kept(), &[(0, 9), (1, 1)]);
    let before: i64 = scratch.sqlite("SELECT sum(amount + total) FROM charge");
    text(&scratch, &["--limit", "k", "--as", "1/h"]);
    let after: i64 = scratch.sqlite("SELECT sum(amount + total) FROM charge");
    assert_eq!(before, after);
    let limiter = Limiter::open(scratch.file()).unwrap();
    let same = limiter.define_or(kept(), OnConflict::Fail).unwrap();
    assert_eq!(same, quotalite::Definition::Unchanged);
}
