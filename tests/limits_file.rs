//! Limits that stand in a TOML file: what is read, what is refused, and what becomes of the database.
#![cfg(feature = "file")]

mod support;

use std::fs;
use std::time::Duration;

use proptest::prelude::*;
use quotalite::{
    DAY, Definition, Error, Limit, Limiter, LimitsFile, LimitsFileError, MINUTE, ManualClock,
    OnConflict, Overage, SECOND,
};

use support::{Scratch, on_file, scratch};

const MS: Duration = Duration::from_millis(1);
const SHIPPED: &str = include_str!("../examples/limits.toml");

/// A limiter in a file and one in memory.
fn both() -> [(Option<Scratch>, Limiter); 2] {
    let (scratch, limiter, _) = on_file();
    let in_memory = Limiter::in_memory_with(ManualClock::new());
    [(Some(scratch), limiter), (None, in_memory)]
}

fn parse(text: &str) -> LimitsFile {
    LimitsFile::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

#[test]
fn a_file_says_what_builders_say() {
    let cases = [
        (
            "[limits.\"openai:requests\"]\nrates = \"10/s, 300/min\"\npad = \"50ms\"",
            Limit::new("openai:requests")
                .per_second(10)
                .per_minute(300)
                .pad(50 * MS),
        ),
        (
            "[limits.\"openai:tokens\"]\nrates = \"90000 tokens/min\"\noverage = \"charge\"",
            Limit::new("openai:tokens")
                .rate(90_000, MINUTE)
                .unit("tokens")
                .overage(Overage::Charge),
        ),
        (
            "[limits.a]\nunit = 'tokens'\nrates = '5/90s'\noverage = 'deny'",
            Limit::new("a")
                .rate(5, 90 * SECOND)
                .unit("tokens")
                .overage(Overage::Deny),
        ),
        (
            "[limits.hot]\nrates = \"864000000/d\"\nresolution = \"1min\"",
            Limit::new("hot").per_day(864_000_000).resolution(MINUTE),
        ),
        (
            "[limits.mail]\nrates = \"10/s\"\nkeep = \"7d\"",
            Limit::new("mail").per_second(10).keep(7 * DAY),
        ),
        (
            "[patterns.\"tenant:*\"]\nkeep = \" 90 min \"\nrates = \"10/s\"",
            Limit::pattern("tenant:*").per_second(10).keep(90 * MINUTE),
        ),
        (
            "[limits.mail]\nrates = \"10/s\"\nkeep = \"0s\"",
            Limit::new("mail").per_second(10),
        ),
        (
            "[limits.gpu]\nslots = 8\ntimeout = \"10min\"",
            Limit::slots("gpu", 8).timeout(10 * MINUTE),
        ),
        ("[limits.gpu]\nslots = 0x1_0", Limit::slots("gpu", 16)),
        (
            "[limits.search]\nburst = 100\nrefill = \"10/s\"\nunit = \"calls\"",
            Limit::new("search")
                .burst(100)
                .refill(10, SECOND)
                .unit("calls"),
        ),
        (
            "[patterns.\"tenant:*:daily-tokens\"]\nrates = \"100000 tokens/d\"",
            Limit::pattern("tenant:*:daily-tokens")
                .rate(100_000, DAY)
                .unit("tokens"),
        ),
        (
            "[limits.\"a * is no pattern here\"]\nrates = \"1/s\"\npad = \" 2 hours \"",
            Limit::new("a * is no pattern here")
                .per_second(1)
                .pad(120 * MINUTE),
        ),
        (
            "limits.a = { rates = \"1/s\", overage = \"debt\" }",
            Limit::new("a").per_second(1),
        ),
        (
            "\u{feff}[patterns]\r\n\"*\".slots = +1\r\n",
            Limit::pattern("*").slots(1),
        ),
    ];
    for (text, builder) in cases {
        assert_eq!(parse(text).limits(), [builder.build().unwrap()], "{text}");
    }
    for text in [
        "",
        "\n",
        "# nothing yet",
        "[limits]",
        "[limits]\n[patterns]",
    ] {
        assert!(parse(text).limits().is_empty());
    }
}

#[cfg(feature = "calendar")]
#[test]
fn a_file_can_have_calendar_quotas() {
    let text = "[limits.gemini]\nrates = \"15/min, 1500/calendar day in America/Los_Angeles\"";
    let limit = Limit::new("gemini").per_minute(15).quota(
        1_500,
        quotalite::Period::Day,
        "America/Los_Angeles",
    );
    assert_eq!(parse(text).limits(), [limit.build().unwrap()]);
}

#[test]
fn limits_come_in_the_order_of_the_file() {
    let file = parse(
        "[limits.z]\nslots = 1\n[patterns.\"*\"]\nslots = 2\n\n[limits.a]\nslots = 3\n[limits]\nm.slots = 4",
    );
    let read: Vec<_> = file
        .limits()
        .iter()
        .map(|limit| (limit.key(), file.place_of(limit.key()).unwrap().line()))
        .collect();
    assert_eq!(read, [("z", 1), ("*", 3), ("a", 6), ("m", 9)]);
    assert_eq!(file.place_of("other"), None);
}

#[test]
fn errors_name_the_file() {
    let scratch = scratch();
    let path = scratch.path().join("limits.toml");
    let shown = path.display();
    let cases: [(&[u8], String); 4] = [
        (
            b"\n[limits.a]\nrates = '10/fortnight'",
            format!(
                "{shown}:3: limit `a`: `10/fortnight` is wrong at byte 3: \
                 expected a window: ms, s, min, h or d, found `fortnight`"
            ),
        ),
        (
            b"[limits.a]\nslots = ",
            format!(
                "{shown}:2:9: limit `a`: string values must be quoted, expected literal string"
            ),
        ),
        (
            b"[limits.a]\nunit = '\xff'",
            format!("{shown}:2:9: the file is not UTF-8"),
        ),
        (
            b"\xef\xbb\xbf\xc3",
            format!("{shown}:1:1: the file is not UTF-8"),
        ),
    ];
    for (bytes, message) in cases {
        fs::write(&path, bytes).unwrap();
        let error = LimitsFile::read(&path).unwrap_err();
        assert_eq!(error.to_string(), message);
        assert_eq!(error.place().unwrap().file(), Some(&*path));
    }
    fs::remove_file(&path).unwrap();
    let error = LimitsFile::read(&path).unwrap_err();
    let message = error.to_string();
    assert!(message.starts_with(&format!("{shown}: the limits cannot be read: ")));
    assert!(error.place().is_none());
}

#[test]
fn the_shipped_file_is_applied_and_stays() {
    let scratch = scratch();
    let path = scratch.path().join("limits.toml");
    fs::write(&path, SHIPPED).unwrap();
    let file = LimitsFile::read(&path).unwrap();
    for (_scratch, limiter) in both() {
        let outcome = limiter.apply(&file, OnConflict::Fail).unwrap();
        let keys: Vec<&str> = outcome.iter().map(|(limit, _)| limit.key()).collect();
        assert_eq!(
            keys,
            [
                "openai:requests",
                "openai:tokens",
                "openai:tokens:day",
                "gpu",
                "search",
                "tenant:*:daily-tokens"
            ]
        );
        assert!(outcome.iter().all(|(_, it)| *it == Definition::Created));
        for conflict in [OnConflict::Fail, OnConflict::Adopt, OnConflict::Replace] {
            let outcome = limiter.apply(&file, conflict).unwrap();
            assert!(outcome.iter().all(|(_, it)| *it == Definition::Unchanged));
        }
        for limit in file.limits() {
            assert_eq!(limiter.limit(limit.key()).unwrap(), *limit);
        }
    }
}

#[cfg(feature = "calendar")]
#[test]
fn what_the_shipped_file_leaves_out_can_be_put_in() {
    let quota = SHIPPED
        .replace("# [limits.", "[limits.")
        .replace("# rates", "rates");
    assert_eq!(
        parse(&quota).limits().len(),
        parse(SHIPPED).limits().len() + 1
    );
}

#[test]
fn one_conflict_among_ten_changes_nothing() {
    let tables = (0..10).map(|n| format!("[limits.k{n}]\nrates = \"{}/s\"\n", n + 1));
    let file = parse(&tables.collect::<String>());
    for (_scratch, limiter) in both() {
        limiter.define(Limit::new("k2").per_second(3)).unwrap();
        limiter.define(Limit::new("k7").per_second(80)).unwrap();
        let before = limiter.limits().unwrap();
        let error = limiter.apply(&file, OnConflict::Fail).unwrap_err();
        let place = error.place().unwrap();
        assert_eq!((place.line(), place.key()), (15, Some("k7")));
        let message = error.to_string();
        assert!(
            message.starts_with("line 15: limit is defined as `k7: 80/s`, not as `k7: 8/s`, in "),
            "{message}"
        );
        let LimitsFileError::Refused { source, .. } = error else {
            panic!("{error:?}")
        };
        assert!(matches!(*source, Error::Conflict { .. }));
        assert_eq!(limiter.limits().unwrap(), before);
        assert!(limiter.changes("k0").unwrap().is_empty());
    }
}

#[test]
fn what_stands_is_adopted_or_replaced() {
    let file = parse("[limits.a]\nrates = \"1/s\"\n[limits.b]\nslots = 2");
    for (_scratch, limiter) in both() {
        let stored = Limit::new("a").per_second(5).build().unwrap();
        limiter.define(&stored).unwrap();
        let outcome = limiter.apply(&file, OnConflict::Adopt).unwrap();
        let [a, b] = file.limits() else { panic!() };
        assert_eq!(
            outcome,
            [
                (a, Definition::Adopted(stored.clone())),
                (b, Definition::Created)
            ]
        );
        assert_eq!(limiter.limit("a").unwrap(), stored);
        let outcome = limiter.apply(&file, OnConflict::Replace).unwrap();
        assert_eq!(
            outcome,
            [
                (a, Definition::Replaced(stored)),
                (b, Definition::Unchanged)
            ]
        );
        assert_eq!(limiter.limit("a").unwrap(), *a);
    }
}

#[test]
fn a_limit_does_not_become_another_kind() {
    let file =
        parse("[limits.a]\nrates = \"1/s\"\n\n[limits.b]\nslots = 2\n\n[limits.c]\nslots = 2");
    for (_scratch, limiter) in both() {
        limiter.define(Limit::new("a").per_second(5)).unwrap();
        limiter.define(Limit::new("b").per_second(5)).unwrap();
        let before = limiter.limits().unwrap();
        let error = limiter.apply(&file, OnConflict::Replace).unwrap_err();
        let place = error.place().unwrap();
        assert_eq!((place.line(), place.key()), (4, Some("b")));
        let message = error.to_string();
        let start = "line 4: limit `b` is rates and cannot become slots, in ";
        assert!(message.starts_with(start), "{message}");
        assert_eq!(limiter.limits().unwrap(), before);
    }
}

#[test]
fn what_is_about_no_limit_is_passed_on() {
    let (scratch, limiter, _) = on_file();
    fs::remove_file(scratch.file()).unwrap();
    // Real time: a look at the files holds for a moment.
    std::thread::sleep(std::time::Duration::from_millis(1));
    let error = limiter
        .apply(&parse(SHIPPED), OnConflict::Fail)
        .unwrap_err();
    assert!(error.place().is_none());
    assert!(matches!(
        error,
        LimitsFileError::Limiter(Error::Moved { .. })
    ));
}

#[test]
fn tables_as_deep_as_can_be_are_no_danger() {
    for depth in [10, 100, 10_000, 100_000] {
        let texts = [
            format!("limits{}.slots = 1", ".a".repeat(depth)),
            format!("[limits{}]\nslots = 1", ".a".repeat(depth)),
            format!("limits = {}", "{a = ".repeat(depth)),
            format!("limits.a.rates = {}", "[".repeat(depth)),
        ];
        for text in texts {
            assert!(LimitsFile::parse(&text).is_err());
        }
    }
}

/// Reads what may be anything, and looks at what comes of it.
fn survives(text: &str) {
    match LimitsFile::parse(text) {
        Ok(file) => {
            for limit in file.limits() {
                let place = file.place_of(limit.key()).unwrap();
                assert_eq!(place.key(), Some(limit.key()));
                assert!((1..=text.split('\n').count()).contains(&place.line()));
            }
            let limiter = Limiter::in_memory_with(ManualClock::new());
            limiter.apply(&file, OnConflict::Fail).unwrap();
        }
        Err(error) => {
            let place = error.place().unwrap();
            assert!((1..=text.split('\n').count()).contains(&place.line()));
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
}

/// What limits are written with, and what TOML is.
fn piece() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "[limits.a]\n",
        "[limits.\"b:c\"]",
        "[patterns.\"*\"]\n",
        "[[limits]]",
        "[limits]\n",
        "limits",
        "patterns",
        "rates",
        "pad",
        "keep",
        "slots",
        "timeout",
        "burst",
        "refill",
        "unit",
        "overage",
        " = ",
        ".",
        ",",
        "\n",
        "\r\n",
        "\r",
        "\"10/s\"",
        "'1 a/min'",
        "\"50ms\"",
        "\"debt\"",
        "8",
        "-1",
        "0x",
        "1e9",
        "nan",
        "true",
        "1979-05-27",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "'",
        "\"\"\"",
        "#",
        "\\",
        "\u{feff}",
        "\0",
        "é",
        " ",
        "99999999999999999999",
    ])
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        survives(&text);
    }

    #[test]
    fn no_text_of_the_right_pieces_panics(pieces in prop::collection::vec(piece(), 0..24)) {
        survives(&pieces.concat());
    }

    #[test]
    fn no_change_of_a_good_file_panics(
        changes in prop::collection::vec((any::<prop::sample::Index>(), 0_usize..12, piece()), 1..4)
    ) {
        let mut text: Vec<char> = SHIPPED.chars().collect();
        for (at, removed, piece) in changes {
            let at = at.index(text.len() + 1);
            let end = text.len().min(at + removed);
            text.splice(at..end, piece.chars());
        }
        survives(&text.into_iter().collect::<String>());
    }
}
