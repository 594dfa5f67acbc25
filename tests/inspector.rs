//! A look into the file sees what is there, and leaves nothing.
#![cfg(feature = "inspect")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use quotalite::{
    Backoff, ChargeKind, Error, Inspector, Limit, Limiter, MINUTE, ManualClock, Peek, PermitState,
    Request, SECOND, Timestamp, rusqlite,
};

fn files(directory: &Path) -> BTreeSet<String> {
    std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .collect()
}

fn limits() -> [quotalite::LimitBuilder; 4] {
    [
        Limit::new("calls").per_second(2).per_minute(10),
        Limit::slots("slots", 2),
        Limit::pattern("tenant:*").per_minute(5),
        Limit::new("other").burst(3).refill(1, SECOND),
    ]
}

#[test]
fn who_spent_what_was_merged_is_known_at_the_instant_of_the_row() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let clock = ManualClock::new();
    let limiter = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
    limiter
        .define(Limit::new("calls").per_hour(10).resolution(MINUTE))
        .unwrap();
    clock.advance(MINUTE + SECOND);
    let take = |id: &str| limiter.acquire(&Request::new().take("calls", 1).id(id));
    take("settled").unwrap().settle([("calls", 1)]).unwrap();
    clock.advance(SECOND);
    let _open = take("open").unwrap();
    let inspector = Inspector::open_with(&path, clock.clone()).unwrap();
    let (charges, spenders) = inspector
        .look(|look| {
            let since = Timestamp::from_nanos(0);
            Ok((
                look.charges("calls", since)?,
                look.spenders("calls", since)?,
            ))
        })
        .unwrap();
    let [row] = &*charges else {
        panic!("{charges:?}");
    };
    let mut ids: Vec<_> = spenders
        .iter()
        .map(|spender| (spender.at, spender.id.as_deref()))
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [(row.at, Some("open")), (row.at, Some("settled"))]);
    let later = inspector
        .look(|look| look.spenders("calls", row.at))
        .unwrap();
    assert_eq!(later, [], "what is no later than the row is not later");
}

#[test]
fn who_spent_is_known_under_an_id_and_while_a_process_answers_for_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let clock = ManualClock::new();
    let limiter = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
    limiter.define(Limit::new("calls").per_hour(10)).unwrap();
    limiter.define(Limit::new("a calls").per_hour(10)).unwrap();
    let take = |key: &str, id: &str| {
        clock.advance(SECOND);
        limiter
            .acquire(&Request::new().take(key, 1).id(id))
            .unwrap()
    };
    let me = Some(std::process::id());
    let open = take("calls", "open");
    take("calls", "settled").settle([("calls", 1)]).unwrap();
    take("calls", "cancelled").cancel().unwrap();
    let _other = take("a calls", "other");
    take("a calls", "settled other")
        .settle([("a calls", 1)])
        .unwrap();
    clock.advance(SECOND);
    let _nameless = limiter.acquire("calls").unwrap();
    clock.advance(SECOND);
    let booked = limiter.book(("calls", 9)).unwrap();
    let inspector = Inspector::open_with(&path, clock.clone()).unwrap();
    let spenders = |key: &str| {
        let rows = inspector.look(|look| look.spenders(key, Timestamp::from_nanos(0)));
        let rows = rows.unwrap().into_iter();
        rows.map(|row| (row.id, row.pid, row.at))
            .collect::<Vec<_>>()
    };
    let named = |id: &str| Some(id.to_owned());
    let start = open.at();
    let after = |seconds: u64| start.checked_add(Duration::from_secs(seconds)).unwrap();
    let expected = [
        (named("open"), me, start),
        (named("settled"), None, after(1)),
        (None, me, booked.at()),
    ];
    assert_eq!(spenders("calls"), expected);
    let expected = [
        (named("other"), me, after(3)),
        (named("settled other"), None, after(4)),
    ];
    assert_eq!(spenders("a calls"), expected);
    // Each is the instant of a charge.
    let charges = inspector.look(|look| look.charges("calls", Timestamp::from_nanos(0)));
    let instants: BTreeSet<_> = charges.unwrap().iter().map(|row| row.at).collect();
    for (_, _, at) in spenders("calls") {
        assert!(instants.contains(&at), "{at:?}");
    }
    let unknown = inspector.look(|look| look.spenders("nobody", start));
    assert!(matches!(unknown, Err(Error::UnknownLimit { .. })));
}

#[test]
fn it_sees_what_the_limiter_sees() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let clock = ManualClock::new();
    let limiter = Limiter::builder(&path).clock(clock.clone()).open().unwrap();
    for limit in limits() {
        limiter.define(limit).unwrap();
    }
    let _call = limiter
        .acquire(&Request::new().take("calls", 2).take("slots", 1))
        .unwrap();
    let _named = limiter
        .acquire(&Request::new().take("tenant:7", 3).id("job"))
        .unwrap();
    let booked = limiter.book(("calls", 1)).unwrap();
    limiter
        .pause("other", Backoff::planned(Duration::from_secs(30)))
        .unwrap();

    let inspector = Inspector::open_with(&path, clock.clone()).unwrap();
    inspector
        .look(|look| {
            assert_eq!(look.now(), limiter.now()?);
            assert_eq!(look.limits()?, limiter.limits()?);
            assert_eq!(look.keys("*", 99)?, ["calls", "other", "slots", "tenant:7"]);
            assert_eq!(look.keys("*", 2)?, ["calls", "other"]);
            assert_eq!(look.keys("tenant:*", 99)?, ["tenant:7"]);
            assert_eq!(look.keys("slots", 99)?, ["slots"]);
            assert_eq!(look.keys("slot", 99)?, [""; 0]);
            assert_eq!(look.key_count()?, 4);
            for key in look.keys("*", 99)? {
                assert_eq!(look.usage(&key)?, limiter.usage(&key)?);
                assert_eq!(look.limit(&key)?, limiter.limit(&key)?);
                for amount in 1..3 {
                    let ask = (key.as_str(), amount);
                    assert_eq!(look.peek(ask)?, limiter.peek(ask)?, "{ask:?}");
                }
            }
            let charges: Vec<_> = look
                .charges("calls", Timestamp::from_nanos(0))?
                .iter()
                .map(|row| (row.amount, row.kind, row.at))
                .collect();
            let then = look.now().checked_add(SECOND).unwrap();
            let expected = [
                (2, ChargeKind::Charged, look.now()),
                (1, ChargeKind::Booked, then),
            ];
            assert_eq!(charges, expected);
            assert_eq!(look.charges("calls", look.now())?.len(), 1);
            let bookings = look.bookings()?;
            let [row] = bookings.as_slice() else {
                panic!("{bookings:?}")
            };
            assert_eq!((row.key.as_str(), row.amount, row.at), ("calls", 1, then));
            assert_eq!(row.pid, std::process::id());
            let permits = look.permits()?;
            let [slots, named] = permits.as_slice() else {
                panic!("{permits:?}")
            };
            assert_eq!(slots.takes, [("slots".to_owned(), 1)]);
            assert_eq!(
                (slots.state, slots.pid),
                (PermitState::Held, Some(std::process::id()))
            );
            assert_eq!(named.id.as_deref(), Some("job"));
            assert_eq!(named.takes, [("tenant:7".to_owned(), 3)]);
            let owners = look.owners()?;
            assert_eq!(owners.len(), 1);
            assert_eq!(owners[0].is_alive, Some(true));
            assert_eq!(look.waiting()?, []);
            assert_eq!(look.changes("calls")?.len(), 1);
            Ok(())
        })
        .unwrap();
    drop(booked);

    clock.advance(Duration::from_secs(31));
    let peeked = inspector.look(|look| look.peek(("other", 3))).unwrap();
    assert_eq!(peeked, Peek::Now);
    let unknown = inspector.look(|look| look.usage("nobody")).unwrap_err();
    assert!(matches!(unknown, Error::UnknownLimit { .. }), "{unknown}");
}

#[test]
fn instants_are_shown_as_the_wall_clock_would() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let limiter = Limiter::open(&path).unwrap();
    let inspector = Inspector::open(&path).unwrap();
    let before = std::time::SystemTime::now();
    let (wall, back) = inspector
        .look(|look| {
            let wall = look.wall(look.now());
            Ok((wall, (look.instant(wall), look.now())))
        })
        .unwrap();
    assert!(
        wall >= before - SECOND && wall <= before + SECOND * 5,
        "{wall:?}"
    );
    assert_eq!(back.0, back.1);
    drop(limiter);
}

#[test]
fn nothing_is_made_by_looking() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let missing = Inspector::open(&path).unwrap_err();
    assert!(matches!(missing, Error::Io { .. }), "{missing}");
    assert_eq!(files(directory.path()), BTreeSet::new());

    drop(Limiter::open(&path).unwrap());
    let closed = files(directory.path());
    assert_eq!(
        closed,
        ["limits.db", "limits.db-lock"].map(str::to_owned).into()
    );
    let inspector = Inspector::open(&path).unwrap();
    inspector.look(|look| look.owners()).unwrap();
    assert_eq!(files(directory.path()), closed);

    // What a crash has left stays as it is, for those who know whether it belongs together.
    let limiter = Limiter::open(&path).unwrap();
    limiter.define(Limit::new("k").per_second(1)).unwrap();
    std::mem::forget(limiter);
    let open = files(directory.path());
    let wal = std::fs::metadata(directory.path().join("limits.db-wal"))
        .unwrap()
        .len();
    inspector.look(|look| look.keys("*", 9)).unwrap();
    assert_eq!(files(directory.path()), open);
    let now = std::fs::metadata(directory.path().join("limits.db-wal"))
        .unwrap()
        .len();
    assert_eq!(now, wal);
}

#[test]
fn a_copy_without_its_lock_file_can_be_looked_at() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    let limiter = Limiter::open(&path).unwrap();
    limiter.define(Limit::slots("s", 1)).unwrap();
    let _permit = limiter.acquire("s").unwrap();
    let copy = directory.path().join("copy.db");
    rusqlite::Connection::open(&path)
        .unwrap()
        .execute("VACUUM INTO ?1", [copy.to_str().unwrap()])
        .unwrap();
    let inspector = Inspector::open(&copy).unwrap();
    let owners = inspector.look(|look| look.owners()).unwrap();
    assert_eq!(owners[0].is_alive, None);
    assert!(!files(directory.path()).contains("copy.db-lock"));
}

#[test]
fn files_of_other_versions_and_programs_are_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("limits.db");
    drop(Limiter::open(&path).unwrap());
    let set = |sql: &str| {
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection.execute_batch(sql).unwrap();
    };
    set("PRAGMA user_version = 3");
    let older = Inspector::open(&path).unwrap_err();
    assert!(
        matches!(older, Error::OlderSchema { found: 3, .. }),
        "{older}"
    );
    set("PRAGMA user_version = 99");
    let newer = Inspector::open(&path).unwrap_err();
    assert!(
        matches!(newer, Error::NewerSchema { found: 99, .. }),
        "{newer}"
    );
    set("PRAGMA application_id = 7");
    let foreign = Inspector::open(&path).unwrap_err();
    assert!(matches!(foreign, Error::ForeignFile { .. }), "{foreign}");
    std::fs::write(directory.path().join("noise.db"), [7; 4_096]).unwrap();
    let noise = Inspector::open(directory.path().join("noise.db")).unwrap_err();
    assert!(matches!(noise, Error::Sqlite { .. }), "{noise}");
}
