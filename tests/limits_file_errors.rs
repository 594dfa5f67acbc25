//! What is said of a limits file that is wrong: each message names the line, and the key of the limit.
#![cfg(feature = "file")]

use quotalite::LimitsFile;

/// What is wrong is told with its line, and the key of the limit.
fn assert_refused(cases: &[(&str, &str)]) {
    for (text, message) in cases {
        let error = LimitsFile::parse(text).unwrap_err();
        assert_eq!(error.to_string(), *message, "{text}");
        let place = error.place().unwrap();
        let start = format!("line {}", place.line());
        assert!(message.starts_with(&start), "{text}");
        assert_eq!(place.file(), None);
    }
}

#[test]
fn a_text_that_is_not_toml_is_refused_where_it_stops_to_be() {
    assert_refused(&[
        (
            "[limits.openai:requests]\nrates = \"1/s\"",
            "line 1, column 15: limit `openai:requests`: invalid unquoted key, expected letters, numbers, `-`, `_`, found `:`",
        ),
        (
            "[limits.a]\n\nrates = 10/s",
            "line 3, column 9: limit `a`: string values must be quoted, expected literal string, found `10/s`",
        ),
        (
            "[limits.a]\nslots = 1\n\n  [limits",
            "line 4, column 10: unclosed table, expected `]`",
        ),
        (
            "[limits.a]\nslots = 1\n  [limits.é",
            "line 3, column 11: limit `é`: invalid unquoted key, expected letters, numbers, `-`, `_`, found `é`",
        ),
        (
            "[limits.a]\nrates = '10/s\n[limits.b]\nslots = 1",
            "line 2, column 14: limit `a`: invalid literal string, expected `'`",
        ),
        (
            "[limits.a]\nslots = 1\n[limits.b]\nslots = 2\n[limits.a]\nslots = 3",
            "line 5, column 9: limit `a`: duplicate key, found `a`",
        ),
        (
            "[limits.a]\nslots = 1\r\n  slots = 2",
            "line 3, column 3: limit `a`: duplicate key, found `slots`",
        ),
        (
            "[limits]\na = { slots = 1 }\nb = { slots = x }",
            "line 3, column 15: limit `b`: string values must be quoted, expected literal string, found `x`",
        ),
        (
            "\u{feff}limits",
            "line 1, column 7: key with no value, expected `=`",
        ),
    ]);
}

#[test]
fn a_name_that_means_nothing_is_refused() {
    assert_refused(&[
        (
            "[limit.a]\nslots = 1",
            "line 1: there is no `limit` here, only limits and patterns",
        ),
        (
            "[limits.a]\nslots = 1\n\n[defaults]",
            "line 4: there is no `defaults` here, only limits and patterns",
        ),
        (
            "[limits.a]\nrate = \"10/s\"",
            "line 2: limit `a`: there is no `rate` here, only rates, pad, resolution, keep, slots, timeout, burst, refill, unit, overage and pauses",
        ),
        (
            "[patterns.\"a*\"]\nrates = \"10/s\"\n\"b\\n\" = 1",
            "line 3: pattern `a*`: there is no `b\\n` here, only rates, pad, resolution, keep, slots, timeout, burst, refill, unit, overage and pauses",
        ),
        (
            "[limits.openai.tokens]\nrates = \"10/s\"",
            "line 1: limit `openai`: a key with dots stands in quotes: \"openai.tokens\"",
        ),
        (
            "\nlimits.a.b.c.slots = 1",
            "line 2: limit `a`: a key with dots stands in quotes: \"a.b.c\"",
        ),
    ]);
}

#[test]
fn a_value_of_another_type_is_refused() {
    assert_refused(&[
        ("limits = 3", "line 1: `limits` is a table, not 3"),
        (
            "[[patterns]]\nslots = 1",
            "line 1: `patterns` is a table, not an array",
        ),
        (
            "[limits]\na = \"10/s\"",
            "line 2: limit `a`: a limit is a table of fields, not \"10/s\"",
        ),
        (
            "[limits.a]\nrates = [\"10/s\"]",
            "line 2: limit `a`: `rates` is a text such as \"10/s, 300/min\", not an array",
        ),
        (
            "[limits.gpu]\nslots = \"8\"",
            "line 2: limit `gpu`: `slots` is a whole number above zero, not \"8\"",
        ),
        (
            "[limits.gpu]\nslots = -8",
            "line 2: limit `gpu`: `slots` is a whole number above zero, not -8",
        ),
        (
            "[limits.gpu]\nslots = 8.5",
            "line 2: limit `gpu`: `slots` is a whole number above zero, not 8.5",
        ),
        (
            "[limits.a]\nrefill = \"10/s\"\nburst = 18446744073709551616",
            "line 3: limit `a`: `burst` is a whole number above zero, not 18446744073709551616",
        ),
        (
            "[limits.a]\nrefill = 10",
            "line 2: limit `a`: `refill` is a text such as \"10/s\", not 10",
        ),
        (
            "[limits.a]\nrates = \"1/s\"\npad = 50",
            "line 3: limit `a`: `pad` is a time such as \"50ms\" or \"10min\", not 50",
        ),
        (
            "[limits.a]\nrates = \"1/s\"\nkeep = 7",
            "line 3: limit `a`: `keep` is a time such as \"50ms\" or \"10min\", not 7",
        ),
        (
            "[limits.a]\nrates = \"1/s\"\nkeep = true",
            "line 3: limit `a`: `keep` is a time such as \"50ms\" or \"10min\", not true",
        ),
        (
            "[limits.a]\nrates = \"1/s\"\nunit = true",
            "line 3: limit `a`: `unit` is a text such as \"tokens\", not true",
        ),
        (
            "[limits.a]\nrates = \"1/s\"\noverage = \"forgive it all, and then tell nobody about it\"",
            "line 3: limit `a`: `overage` is \"debt\", \"charge\" or \"deny\", not \"forgive it all, and then tell nobody abo..\"",
        ),
        (
            "[limits.a]\nslots = 1\noverage = {}",
            "line 3: limit `a`: `overage` is \"debt\", \"charge\" or \"deny\", not a table",
        ),
    ]);
}

#[test]
fn a_text_that_is_no_rate_or_time_is_refused() {
    assert_refused(&[
        (
            "[limits.\"openai:requests\"]\nrates = \"10/s, 300/fortnight\"",
            "line 2: limit `openai:requests`: `10/s, 300/fortnight` is wrong at byte 10: \
             expected a window: ms, s, min, h or d, found `fortnight`",
        ),
        (
            "[limits.a]\nrates = \"1/s, ten/min\"\nnot_a_field = 1",
            "line 2: limit `a`: `1/s, ten/min` is wrong at byte 5: expected a number, found `ten/min`",
        ),
        (
            "[limits.a]\npad = \"1.5s\"",
            "line 2: limit `a`: `1.5s` is wrong at byte 1: expected a unit of time: ms, s, min, h or d, found `.5s`",
        ),
        (
            "[limits.a]\nkeep = \"a week\"",
            "line 2: limit `a`: `a week` is wrong at byte 0: expected a number, found `a`",
        ),
        (
            "[limits.a]\nkeep = \"1 week\"",
            "line 2: limit `a`: `1 week` is wrong at byte 2: expected a unit of time: ms, s, min, h or d, found `week`",
        ),
        (
            "[limits.a]\ntimeout = \"min\"",
            "line 2: limit `a`: `min` is wrong at byte 0: expected a number, found `min`",
        ),
        (
            "[limits.a]\ntimeout = \"1h 30min\"",
            "line 2: limit `a`: `1h 30min` is wrong at byte 3: expected one time and no more, found `30min`",
        ),
        (
            "[limits.a]\nburst = 1\nrefill = \"10 calls/s\"",
            "line 3: limit `a`: `10 calls/s` is wrong at byte 3: a rate by itself has no unit, found `calls`",
        ),
    ]);
}

#[test]
fn a_limit_that_cannot_be_built_is_refused_at_its_field() {
    let many: Vec<String> = (1..=17).map(|n| format!("1/{n}s")).collect();
    let many = format!("[limits.a]\nrates = \"{}\"", many.join(", "));
    assert_refused(&[
        (
            "[limits.a]",
            "line 1: limit `a`: it needs `rates`, `slots`, or `burst` and `refill`",
        ),
        (
            "\n[patterns.\"a*\"]\npad = \"1s\"\nunit = \"calls\"",
            "line 2: pattern `a*`: it needs `rates`, `slots`, or `burst` and `refill`",
        ),
        (
            "[limits.a]\nburst = 100",
            "line 1: limit `a`: a bucket needs a burst and a refill, this one has no refill",
        ),
        (
            "[limits.a]\npad = \"1s\"\nburst = 1\nrefill = \"1/s\"",
            "line 2: limit `a`: a bucket has no pad",
        ),
        (
            "[limits.a]\nrates = \"10/s, 300/min\"\nresolution = \"2s\"",
            "line 3: limit `a`: a resolution is at most the shortest window, 1s, not 2s",
        ),
        (
            "[limits.a]\nresolution = \"1s\"\nslots = 1",
            "line 2: limit `a`: a limit of slots has no resolution",
        ),
        (
            "[limits.a]\nslots = 1\nkeep = \"7d\"",
            "line 3: limit `a`: a limit of slots has no history",
        ),
        (
            "[limits.a]\nburst = 1\nkeep = \"7d\"\nrefill = \"1/s\"",
            "line 3: limit `a`: a bucket has no history",
        ),
        (
            "[limits.a]\nkeep = \"367d\"\nrates = \"1/s\"",
            "line 2: limit `a`: a history is kept for at most 366 days, not 31708800s",
        ),
        (
            "[limits.a]\nburst = 0\nrefill = \"1/s\"",
            "line 2: limit `a`: a capacity is 1 to 9007199254740992, not 0",
        ),
        (
            "[limits.a]\nburst = 367\nrefill = \"1/d\"",
            "line 3: limit `a`: a bucket of 367 that refills at 1/d takes more than 366 days to fill",
        ),
        (
            "[limits.a]\nslots = 0",
            "line 2: limit `a`: a limit has 1 to 9007199254740992 slots, not 0",
        ),
        (
            "[limits.a]\nslots = 1\nrates = \"1/s\"",
            "line 3: limit `a`: a limit of slots has no rate",
        ),
        (
            "[limits.a]\noverage = \"deny\"\nslots = 1",
            "line 2: limit `a`: a limit of slots has no overage",
        ),
        (
            "[limits.a]\nslots = 1\ntimeout = \"0s\"",
            "line 3: limit `a`: a timeout is 1 ms to 366 days, not 0ns",
        ),
        (
            "[limits.a]\ntimeout = \"10s\"\nrates = \"1/s\"",
            "line 2: limit `a`: only a limit of slots has a timeout",
        ),
        (
            "[limits.a]\nrates = \"1/s\"\npad = \"999999999999999d\"",
            "line 3: limit `a`: a pad is at most 366 days, not 18446744073709551615.999999999s",
        ),
        (
            "[limits.a]\nrates = \"1/s, 2/1000ms\"",
            "line 2: limit `a`: two rates have the same window: 1/s and 2/s",
        ),
        (
            &many,
            "line 2: limit `a`: a limit has at most 16 rates, this one has 17",
        ),
        (
            "[limits.a]\nrates = \"1 tokens/s\"\nunit = \"calls\"",
            "line 3: limit `a`: a limit has one unit, not `tokens` and `calls`",
        ),
        (
            "[limits.a]\nunit = \"\"\nrates = \"1/s\"",
            "line 2: limit `a`: a unit has 1 to 64 bytes and no control characters, this one has 0 bytes",
        ),
    ]);
}

#[test]
fn a_key_that_is_none_is_refused() {
    let long = format!("[limits.{}]\nslots = 1", "k".repeat(257));
    let long_message = format!(
        "line 1: limit `{}`: a key has 1 to 256 bytes, this one has 257",
        "k".repeat(257)
    );
    assert_refused(&[
        (
            "[limits.\"\"]\nslots = 1",
            "line 1: limit ``: a key has 1 to 256 bytes, this one has 0",
        ),
        (
            "[limits.\"a\\tb\"]\nslots = 1",
            "line 1: limit `a\\tb`: a key has no control characters, this one has one at byte 1",
        ),
        (&long, &long_message),
        (
            "[patterns.\"tenant\"]\nslots = 1",
            "line 1: pattern `tenant`: a pattern has a `*` for what differs, and no two in a row; `tenant` is none",
        ),
        (
            "[limits.\"a*\"]\nslots = 1\n\n[patterns.\"a*\"]\nslots = 1",
            "line 4: pattern `a*`: the key is defined in line 1 already",
        ),
    ]);
}

#[test]
fn the_first_thing_that_is_wrong_is_told() {
    assert_refused(&[(
        "[limits.b]\nslots = 0\n[limits.a]\nslots = 0",
        "line 2: limit `b`: a limit has 1 to 9007199254740992 slots, not 0",
    )]);
}

#[test]
fn a_zone_that_is_none_is_named_with_its_line() {
    let error =
        LimitsFile::parse("[limits.a]\nrates = '1/calendar day in Mars/Olympus'").unwrap_err();
    let message = error.to_string();
    let start = "line 2: limit `a`: `1/calendar day in Mars/Olympus` is wrong at byte 18: \
                 there is no time zone `Mars/Olympus` here: ";
    assert!(message.starts_with(start), "{message}");
    #[cfg(not(feature = "calendar"))]
    assert!(
        message.ends_with("this program was built without the feature `calendar` of quotalite")
    );
}

#[cfg(feature = "calendar")]
#[test]
fn a_bucket_refills_by_no_calendar() {
    let error = LimitsFile::parse("[limits.a]\nburst = 1\nrefill = '1/calendar day'").unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 3: limit `a`: a bucket has no calendar quota"
    );
}

#[test]
fn what_is_said_of_pauses_is_checked() {
    assert_refused(&[
        (
            "[limits.a]\nrates = '1/s'\npauses = '30s'",
            "line 3: limit `a`: `pauses` is a table such as { first = \"30s\" }, not \"30s\"",
        ),
        (
            "[limits.a]\nrates = '1/s'\npauses = { first = '30s', last = '1s' }",
            "line 3: limit `a`: there is no `last` here, only first, strikes, within, cap and slow_start",
        ),
        (
            "[limits.a]\nrates = '1/s'\npauses = { strikes = 0 }",
            "line 3: limit `a`: pauses become longer from 1 to 64 strikes on, not 0",
        ),
        (
            "[limits.a]\nrates = '1/s'\npauses = { slow_start = 1000 }",
            "line 3: limit `a`: `slow_start` is a number from 1 to 100, not 1000",
        ),
    ]);
}
