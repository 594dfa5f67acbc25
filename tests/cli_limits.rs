//! `quotalite limits`: what is defined, seen and changed from a shell.
#![cfg(feature = "cli")]
mod support;

use std::fs;

use quotalite::{Limit, Limiter};
use serde_json::Value;
use support::shell::{document, done, run};

#[test]
fn limits_are_set_shown_changed_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    assert_eq!(
        done(
            &db,
            &["limits", "set", "calls", "10/s, 300/min", "--pad", "50ms"]
        ),
        "calls: 10/s, 300/min, pad 50ms (created)\n"
    );
    done(
        &db,
        &["limits", "set", "calls", "10/s, 300/min", "--pad", "50ms"],
    );
    done(
        &db,
        &["limits", "set", "gpu", "--slots", "8", "--timeout", "10m"],
    );
    done(
        &db,
        &[
            "limits", "set", "search", "--burst", "100", "--refill", "10/s",
        ],
    );
    done(
        &db,
        &[
            "limits",
            "set",
            "tenant:*:tokens",
            "100000/d",
            "--unit",
            "tokens",
        ],
    );
    assert_eq!(
        done(&db, &["limits", "list"]),
        "\
KEY              DEFINITION
calls            10/s, 300/min, pad 50ms
gpu              8 slots, timeout 10min
search           burst 100, refill 10/s
tenant:*:tokens  100000 tokens/d          pattern
"
    );
    let kept = run(&db, &["limits", "set", "calls", "20/s", "--no-replace"]);
    assert_eq!(kept.code, Some(64));
    assert!(
        kept.err
            .contains("`calls: 10/s, 300/min, pad 50ms`, not as `calls: 20/s, pad 50ms`"),
        "{}",
        kept.err
    );
    assert_eq!(
        done(
            &db,
            &["limits", "set", "calls", "10/s, 300/min", "--no-replace"]
        ),
        "calls: 10/s, 300/min, pad 50ms (unchanged)\n"
    );
    assert_eq!(
        done(&db, &["limits", "set", "calls", "20/s"]),
        "calls: 20/s, pad 50ms (replaced: it was 10/s, 300/min, pad 50ms)\n"
    );
    let shown = document(&db, &["limits", "show", "calls"]);
    let changes = shown["changes"].as_array().unwrap();
    let actions: Vec<_> = changes
        .iter()
        .map(|change| change["action"].as_str().unwrap())
        .collect();
    assert_eq!(actions, ["replaced", "created"]);
    assert_eq!(changes[0]["program"], "quotalite");
    let of_pattern = document(&db, &["limits", "show", "tenant:7:tokens"]);
    assert_eq!(of_pattern["definition"], "100000 tokens/d");
    assert_eq!(of_pattern["made_by"], "tenant:*:tokens");
    assert_eq!(of_pattern["changes"][0]["action"], "created");
    assert_eq!(
        document(&db, &["limits", "show", "calls"])["made_by"],
        Value::Null
    );
    let shown = done(&db, &["limits", "show", "tenant:7:tokens"]);
    let first = "tenant:7:tokens: 100000 tokens/d, by the pattern tenant:*:tokens\n";
    assert!(shown.starts_with(first), "{shown}");

    // Nobody is asked who is not at a terminal.
    assert_eq!(run(&db, &["limits", "remove", "gpu"]).code, Some(64));
    assert_eq!(
        done(&db, &["limits", "remove", "gpu", "--yes"]),
        "gpu: 8 slots, timeout 10min (removed)\n"
    );
    let held = Limiter::open(&db).unwrap();
    held.define(Limit::slots("held", 1)).unwrap();
    let _permit = held.acquire("held").unwrap();
    let refused = run(&db, &["limits", "remove", "held", "--yes"]);
    assert_eq!(refused.code, Some(64));
    assert!(refused.err.contains("--force"), "{}", refused.err);
    done(&db, &["limits", "remove", "held", "--yes", "--force"]);
}

#[test]
fn a_change_keeps_what_it_does_not_name() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "calls", "20/s", "--pad", "50ms"]);
    done(
        &db,
        &["limits", "set", "gpu", "--slots", "8", "--timeout", "10m"],
    );
    done(
        &db,
        &[
            "limits",
            "set",
            "tenant:*:tokens",
            "100000/d",
            "--unit",
            "tokens",
        ],
    );
    assert_eq!(
        done(
            &db,
            &[
                "limits",
                "set",
                "calls",
                "20/s",
                "--overage",
                "charge",
                "--pad",
                "0"
            ]
        ),
        "calls: 20/s, overage charge (replaced: it was 20/s, pad 50ms)\n"
    );
    assert_eq!(
        done(&db, &["limits", "set", "gpu", "--slots", "9"]),
        "gpu: 9 slots, timeout 10min (replaced: it was 8 slots, timeout 10min)\n"
    );
    assert_eq!(
        done(&db, &["limits", "set", "gpu", "--slots", "8"])
            .matches("timeout")
            .count(),
        2
    );
    // A key that a pattern has limited until now is defined by itself.
    assert_eq!(
        done(&db, &["limits", "set", "tenant:1:tokens", "5/d"]),
        "tenant:1:tokens: 5/d (created)\n"
    );
    assert_eq!(
        done(&db, &["limits", "set", "tenant:*:tokens", "200000/d"]),
        "tenant:*:tokens: 200000 tokens/d (replaced: it was 100000 tokens/d)\n"
    );
}

#[test]
fn a_key_of_a_pattern_is_defined_without_the_terms_of_that() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    done(&db, &["limits", "set", "tenant:*", "5/h", "--pad", "50ms"]);
    for key in ["tenant:1", "tenant:2"] {
        let arguments = ["limits", "set", key, "6/h", "--no-replace"];
        assert_eq!(
            done(&db, &arguments[..4]),
            format!("{key}: 6/h (created)\n")
        );
        assert_eq!(done(&db, &arguments), format!("{key}: 6/h (unchanged)\n"));
    }
    let only = done(&db, &["limits", "set", "tenant:3", "6/h", "--no-replace"]);
    assert_eq!(only, "tenant:3: 6/h (created)\n");
}

#[test]
fn a_unit_is_changed_and_taken_away() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    for (arguments, definition) in [
        (&["9 tokens/s"][..], "9 tokens/s"),
        (&["8/s"], "8 tokens/s"),
        (&["7 words/s"], "7 words/s"),
        (&["6/s", "--unit", "letters"], "6 letters/s"),
        (&["5/s", "--unit", ""], "5/s"),
        (&["4 words/s, 9 words/min", "--no-replace"], ""),
        (&["3 words/s, 5 letters/min"], ""),
        (&["2 words/s", "--unit", "letters"], ""),
    ] {
        let ended = run(&db, &[&["limits", "set", "text"], arguments].concat());
        let is_done = ended.code == Some(0);
        assert_eq!(
            is_done,
            !definition.is_empty(),
            "{arguments:?}: {}",
            ended.err
        );
        if is_done {
            let stored = document(&db, &["limits", "show", "text"]);
            assert_eq!(stored["definition"], definition, "{arguments:?}");
        }
    }
    for (refill, definition) in [
        ("9 tokens/s", "burst 5 tokens, refill 9/s"),
        ("8/s", "burst 5 tokens, refill 8/s"),
        ("7 words/s", "burst 5 words, refill 7/s"),
    ] {
        let bucket = [
            "limits", "set", "bucket", "--burst", "5", "--refill", refill,
        ];
        done(&db, &bucket);
        let stored = document(&db, &["limits", "show", "bucket"]);
        assert_eq!(stored["definition"], definition);
    }
}

#[test]
fn a_file_of_limits_is_applied_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    let file = directory.path().join("limits.toml");
    fs::write(
        &file,
        "[limits.a]\nrates = '10/s'\n[limits.b]\nrates = 'many'\n",
    )
    .unwrap();
    let refused = run(&db, &["limits", "apply", file.to_str().unwrap()]);
    assert_eq!(refused.code, Some(64));
    assert!(refused.err.contains("limits.toml:4"), "{}", refused.err);
    assert!(!db.exists(), "nothing is made for a bad file");
    fs::write(&file, "[limits.a]\nrates = '10/s'\n[limits.b]\nslots = 2\n").unwrap();
    assert_eq!(
        done(&db, &["limits", "apply", file.to_str().unwrap()]),
        "a: 10/s (created)\nb: 2 slots (created)\n"
    );
}

#[test]
fn what_is_said_of_a_definition_is_changed_and_the_rest_stays() {
    let directory = tempfile::tempdir().unwrap();
    let db = directory.path().join("limits.db");
    for (arguments, definition) in [
        (&["calls", "10 things/s"] as &[&str], "10 things/s"),
        (&["calls", "--history", "7d"], "10 things/s, keep 7d"),
        (&["calls", "--history", "0"], "10 things/s"),
        (&["calls", "--unit", ""], "10/s"),
        (
            &["calls", "--pause-cap", "2h", "--slow-start", "100"],
            "10/s, pauses of 1min, doubled from 3 in 5min on, at most 2h, slow start 100 %",
        ),
        (
            &["calls", "--pause-cap", "15m", "--slow-start", "50"],
            "10/s",
        ),
        (&["gpu", "--slots", "2"], "2 slots"),
        (&["gpu", "--timeout", "5m"], "2 slots, timeout 5min"),
        (&["gpu", "--slots", "3"], "3 slots, timeout 5min"),
        (&["gpu", "--timeout", "0"], "3 slots"),
        (
            &["search", "--burst", "5", "--refill", "2/s"],
            "burst 5, refill 2/s",
        ),
        (&["search", "--burst", "7"], "burst 7, refill 2/s"),
        (&["search", "--refill", "3/s"], "burst 7, refill 3/s"),
        (
            &["search", "--overage", "deny"],
            "burst 7, refill 3/s, overage deny",
        ),
        (&["user:*", "5/s"], "5/s"),
        (&["user:*", "--pad", "1s"], "5/s, pad 1s"),
        (
            &["user:*", "--resolution", "1s"],
            "5/s, pad 1s, resolution 1s",
        ),
        // What a pattern makes of a key is nothing that stays.
        (&["user:1", "20/100ms"], "20/100ms"),
    ] {
        let set = document(&db, &[&["limits", "set"], arguments].concat());
        assert_eq!(set["definition"], definition, "{arguments:?}");
        let again = [&["limits", "set"], arguments, &["--no-replace"]].concat();
        assert_eq!(
            document(&db, &again)["outcome"],
            "unchanged",
            "{arguments:?}"
        );
    }
}
