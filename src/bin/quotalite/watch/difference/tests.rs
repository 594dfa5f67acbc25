use std::collections::{BTreeMap, BTreeSet};

use quotalite::{BreakerState, PermitState, Timestamp};

use super::super::snapshot::{OfLimit, Permit, PermitName, Snapshot};
use super::difference;

fn at(second: i64) -> Timestamp {
    Timestamp::from_nanos(second * 1_000_000_000)
}

fn empty() -> Snapshot {
    Snapshot {
        now: at(100),
        limits: BTreeMap::new(),
        has_too_many: false,
        definitions: BTreeMap::new(),
        resets: BTreeSet::new(),
        permits: BTreeMap::new(),
        bookings: BTreeMap::new(),
        waiting: BTreeMap::new(),
        ended: BTreeSet::new(),
        dead: BTreeSet::new(),
    }
}

fn limit(of: OfLimit) -> Snapshot {
    Snapshot {
        limits: BTreeMap::from([("calls".to_owned(), of)]),
        ..empty()
    }
}

fn full(is_full: bool) -> OfLimit {
    OfLimit {
        is_full: Some(is_full),
        ..OfLimit::default()
    }
}

fn charged(rows: &[(i64, u64, u64)]) -> Snapshot {
    let rows = rows
        .iter()
        .map(|(second, rows, amount)| (at(*second), (*rows, *amount)));
    limit(OfLimit {
        charged: rows.collect(),
        ..OfLimit::default()
    })
}

fn paused(until: i64, is_full: bool) -> Snapshot {
    limit(OfLimit {
        paused_until: Some(at(until)),
        ..full(is_full)
    })
}

fn breaker(state: BreakerState) -> Snapshot {
    limit(OfLimit {
        breaker: Some((state, Some("why".to_owned()))),
        ..OfLimit::default()
    })
}

fn defined(key: &str, definition: &str) -> Snapshot {
    Snapshot {
        definitions: BTreeMap::from([(key.to_owned(), definition.to_owned())]),
        ..empty()
    }
}

fn reset(key: &str, second: i64) -> Snapshot {
    Snapshot {
        resets: BTreeSet::from([(at(second), key.to_owned())]),
        ..empty()
    }
}

fn permit(id: Option<(&str, i64)>, fence: u64, pid: Option<u32>, state: PermitState) -> Snapshot {
    let name = match id {
        Some((id, second)) => PermitName::Id(id.to_owned(), at(second)),
        None => PermitName::Fence(fence),
    };
    let takes = if state.is_open() {
        vec![("gpu".to_owned(), 1)]
    } else {
        Vec::new()
    };
    let permit = Permit {
        id: id.map(|(id, _)| id.to_owned()),
        pid,
        fence,
        takes,
        state,
    };
    Snapshot {
        permits: BTreeMap::from([(name, permit)]),
        ..empty()
    }
}

fn booked(count: u64, second: i64) -> Snapshot {
    Snapshot {
        bookings: BTreeMap::from([(("calls".to_owned(), at(second), 5, 7), count)]),
        ..empty()
    }
}

fn waits(count: u64) -> Snapshot {
    let takes = vec![("gpu".to_owned(), 1)];
    Snapshot {
        waiting: BTreeMap::from([((at(90), Some(7), takes), count)]),
        ..empty()
    }
}

fn dead(pids: &[u32]) -> Snapshot {
    Snapshot {
        dead: pids.iter().copied().collect(),
        ..empty()
    }
}

fn too_many(snapshot: Snapshot) -> Snapshot {
    Snapshot {
        has_too_many: true,
        ..snapshot
    }
}

#[track_caller]
fn told(former: &Snapshot, present: &Snapshot, expected: &[&str]) {
    let wall = |at: Timestamp| {
        let second = (at.as_nanos() / 1_000_000_000).to_string();
        (second.clone(), second)
    };
    let events = difference(former, present, &wall);
    let told: Vec<String> = events
        .iter()
        .map(|event| {
            assert_eq!((&*event.at, &*event.time), ("100", "100"));
            let key = event.key.iter().map(|key| format!("{key} "));
            key.chain([event.text()]).collect()
        })
        .collect();
    assert_eq!(told, expected);
}

#[test]
fn nothing_is_told_twice() {
    for snapshot in [
        limit(full(true)),
        charged(&[(99, 1, 5)]),
        paused(200, false),
        breaker(BreakerState::Open),
        defined("calls", "5/s"),
        permit(Some(("job", 90)), 1, Some(7), PermitState::Held),
        permit(Some(("job", 90)), 1, None, PermitState::Settled),
        booked(2, 200),
        waits(2),
        dead(&[7]),
        too_many(empty()),
    ] {
        told(&snapshot, &snapshot, &[]);
    }
}

#[test]
fn charges_are_told_once_by_sums() {
    let cases: [(&[_], &[_], &[&str]); 7] = [
        (&[], &[(99, 1, 5)], &["calls charged 5 in 1 charge"]),
        (
            &[(98, 1, 5)],
            &[(98, 1, 5), (99, 2, 7)],
            &["calls charged 7 in 2 charges"],
        ),
        // Committed late, in front of what was seen.
        (
            &[(98, 1, 5)],
            &[(97, 1, 3), (98, 1, 5)],
            &["calls charged 3 in 1 charge"],
        ),
        // Another one at the same instant, and merged with the row that was there.
        (
            &[(98, 1, 5)],
            &[(98, 2, 6)],
            &["calls charged 1 in 1 charge"],
        ),
        (
            &[(98, 1, 5)],
            &[(98, 1, 9)],
            &["calls charged 4 in 1 charge"],
        ),
        // What is looked at no more, what was swept, and what was given back.
        (&[(88, 3, 5), (98, 1, 5)], &[(98, 1, 5)], &[]),
        (&[(98, 1, 5)], &[(98, 1, 2)], &[]),
    ];
    for (former, present, expected) in cases {
        told(&charged(former), &charged(present), expected);
    }
}

#[test]
fn limits_are_full_and_paused_and_each_is_told_once() {
    let cases: [(Snapshot, Snapshot, &[&str]); 13] = [
        (limit(full(false)), limit(full(true)), &["calls full"]),
        (limit(full(true)), limit(full(false)), &["calls free"]),
        (empty(), limit(full(true)), &["calls full"]),
        (empty(), limit(full(false)), &[]),
        (
            limit(full(false)),
            paused(200, false),
            &["calls paused until 200"],
        ),
        (paused(200, false), limit(full(false)), &["calls resumed"]),
        (
            paused(200, false),
            paused(300, false),
            &["calls paused until 300"],
        ),
        (paused(200, true), limit(full(true)), &["calls resumed"]),
        (
            paused(200, true),
            limit(full(false)),
            &["calls resumed", "calls free"],
        ),
        (limit(full(true)), limit(OfLimit::default()), &[]),
        (
            empty(),
            breaker(BreakerState::Open),
            &["calls breaker open: why"],
        ),
        (empty(), breaker(BreakerState::Closed), &[]),
        (
            breaker(BreakerState::Open),
            breaker(BreakerState::HalfOpen),
            &["calls breaker half-open: why"],
        ),
    ];
    for (former, present, expected) in cases {
        told(&former, &present, expected);
    }
}

#[test]
fn definitions_are_told() {
    let cases: [(Snapshot, Snapshot, &[&str]); 3] = [
        (empty(), defined("a*", "5/s"), &["a* defined: 5/s"]),
        (
            defined("a*", "5/s"),
            defined("a*", "6/s"),
            &["a* changed: 6/s"],
        ),
        (defined("a*", "5/s"), empty(), &["a* removed"]),
    ];
    for (former, present, expected) in cases {
        told(&former, &present, expected);
    }
}

#[test]
fn resets_are_told_each_time() {
    told(&empty(), &reset("a", 99), &["a reset"]);
    told(&reset("a", 98), &reset("a", 99), &["a reset"]);
    told(&reset("a", 99), &reset("a", 99), &[]);
    told(&reset("a", 98), &empty(), &[]);
}

#[test]
fn a_key_of_which_nothing_is_left_is_free_where_its_pattern_still_stands() {
    let with = |definition: &str, of: Snapshot| Snapshot {
        definitions: defined(definition, "5/s").definitions,
        ..of
    };
    let reset_of = |pattern: &str| with(pattern, reset(pattern, 99));
    let former = with("c*", limit(full(true)));
    told(&former, &reset_of("c*"), &["c* reset", "calls free"]);
    let free = with("c*", limit(full(false)));
    told(&free, &reset_of("c*"), &["c* reset"]);
    told(&former, &empty(), &["c* removed"]);
}

#[test]
fn more_keys_than_are_watched_are_told_and_come_silently_later() {
    let message = "too many keys: more than 1 000 match, and new ones are not watched";
    told(&empty(), &too_many(empty()), &[message]);
    told(&too_many(empty()), &empty(), &[]);
    told(&too_many(empty()), &limit(full(true)), &[]);
    told(&too_many(empty()), &charged(&[(99, 3, 5)]), &[]);
}

#[test]
fn permits_are_known_by_their_ids_if_they_have_any() {
    use PermitState::{Abandoned, Booked, Cancelled, Detached, Expired, Held, Settled};
    let job = |fence, pid, state| permit(Some(("job", 90)), fence, pid, state);
    let again = |fence, pid, state| permit(Some(("job", 95)), fence, pid, state);
    let plain = |fence, state| permit(None, fence, Some(7), state);
    let cases: [(Snapshot, Snapshot, &[&str]); 18] = [
        (empty(), plain(1, Held), &["granted: 1 gpu by process 7"]),
        (plain(1, Held), empty(), &["released: 1 gpu by process 7"]),
        (
            plain(1, Held),
            plain(2, Held),
            &[
                "granted: 1 gpu by process 7",
                "released: 1 gpu by process 7",
            ],
        ),
        (
            plain(1, Held),
            plain(1, Expired),
            &["expired: 1 gpu by process 7"],
        ),
        (plain(1, Expired), empty(), &[]),
        // Told as a booking, until its instant comes.
        (empty(), plain(1, Booked), &[]),
        (plain(1, Booked), empty(), &[]),
        (
            plain(1, Booked),
            plain(1, Held),
            &["granted: 1 gpu by process 7"],
        ),
        (job(1, Some(7), Booked), again(1, Some(7), Booked), &[]),
        (
            job(1, Some(7), Held),
            job(1, None, Settled),
            &["settled: 1 gpu by process 7, id job"],
        ),
        (
            job(1, Some(7), Held),
            job(1, None, Abandoned),
            &["abandoned: 1 gpu, id job"],
        ),
        (
            job(1, Some(7), Held),
            job(1, None, Detached),
            &["detached: 1 gpu, id job"],
        ),
        // Its slots are taken again: another fencing number, and no other permit.
        (
            job(1, None, Abandoned),
            job(2, Some(8), Held),
            &["held: 1 gpu by process 8, id job"],
        ),
        (
            job(1, Some(7), Held),
            job(2, Some(7), Held),
            &["held: 1 gpu by process 7, id job"],
        ),
        (
            job(1, Some(7), Held),
            job(1, Some(8), Held),
            &["held: 1 gpu by process 8, id job"],
        ),
        (
            job(1, None, Cancelled),
            again(2, Some(7), Held),
            &["granted: 1 gpu by process 7, id job"],
        ),
        (job(1, None, Settled), empty(), &[]),
        (empty(), job(1, None, Settled), &["settled, id job"]),
    ];
    for (former, present, expected) in cases {
        told(&former, &present, expected);
    }
}

#[test]
fn a_permit_that_was_cancelled_is_another_than_the_one_that_follows_under_its_id() {
    let mut present = permit(Some(("job", 90)), 1, None, PermitState::Cancelled);
    let mut next = permit(Some(("job", 95)), 2, Some(7), PermitState::Held);
    present.permits.append(&mut next.permits);
    told(
        &permit(Some(("job", 90)), 1, Some(7), PermitState::Held),
        &present,
        &[
            "cancelled: 1 gpu by process 7, id job",
            "granted: 1 gpu by process 7, id job",
        ],
    );
}

#[test]
fn those_who_are_alike_are_counted() {
    let (is_booked, is_gone) = (
        "calls booked 5 for 200 by process 7",
        "calls booking gone by process 7",
    );
    let (came, left) = (
        "waits: 1 gpu by process 7",
        "waits no more: 1 gpu by process 7",
    );
    let cases: [(Snapshot, Snapshot, &[&str]); 8] = [
        (empty(), booked(2, 200), &[is_booked, is_booked]),
        (booked(1, 200), booked(2, 200), &[is_booked]),
        (booked(3, 200), booked(1, 200), &[is_gone, is_gone]),
        (booked(1, 200), empty(), &[is_gone]),
        // Its instant has come.
        (booked(1, 100), empty(), &[]),
        (empty(), waits(2), &[came, came]),
        (waits(1), waits(2), &[came]),
        (waits(2), waits(1), &[left]),
    ];
    for (former, present, expected) in cases {
        told(&former, &present, expected);
    }
}

#[test]
fn a_death_is_told_once_for_each_process() {
    told(&empty(), &dead(&[7]), &["owner died: process 7"]);
    told(&dead(&[7]), &dead(&[7, 8]), &["owner died: process 8"]);
    told(&dead(&[7]), &empty(), &[]);
}
