//! What it costs to hand out from blocks, beside an acquisition for each call, and how much of the capacity is usable then.
//! Run `cargo bench --bench blocks`.

mod support;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use quotalite::{Blocks, Limit, Limiter, ManualClock, SECOND};
use support::{PLENTY, compare};

fn ratios(_: &mut Criterion) {
    let directory = tempfile::tempdir().unwrap();
    let open = |name: &str| {
        let limiter = Limiter::open(directory.path().join(name)).unwrap();
        let limit = Limit::new("key").per_second(PLENTY);
        limiter.define(limit).unwrap();
        limiter
    };
    let single = open("single.db");
    let beside = open("beside.db");
    let open_block = beside.blocks("key", 100).unwrap().lifetime(60 * SECOND);
    hand_out(&open_block);
    let [ten, hundred, thousand] = [10, 100, 1_000].map(|size| {
        let limiter = open(&format!("{size}.db"));
        limiter.blocks("key", size).unwrap()
    });
    compare(&mut [
        ("granted, each by itself", Box::new(|| grant(&single))),
        ("handed out, 10 at a time", Box::new(|| hand_out(&ten))),
        ("handed out, 100 at a time", Box::new(|| hand_out(&hundred))),
        (
            "handed out, 1 000 at a time",
            Box::new(|| hand_out(&thousand)),
        ),
        ("granted beside an open block", Box::new(|| grant(&beside))),
    ]);
    println!(
        "{:<44} {:>12} {:>12} {:>8}",
        "usable capacity, 4 handles of a rate of 10 000", "greedy", "steady", "at least"
    );
    for (lifetime_ms, window_ms) in [
        (1, 1_000),
        (10, 1_000),
        (100, 1_000),
        (500, 1_000),
        (100, 10_000),
        (100, 60_000),
    ] {
        let [lifetime, window] = [lifetime_ms, window_ms].map(Duration::from_millis);
        let name = format!("blocks of 100 for {lifetime:?}, window of {window:?}");
        let [greedy, steady] = [20_000, 11].map(|burst| usable(lifetime, window, burst));
        // All that handles can hold unused, and what was used a window and a lifetime ago.
        let free = 1.0 - f64::from(HANDLES * SIZE) / f64::from(CAPACITY);
        let bound = free * window.div_duration_f64(window + lifetime);
        println!(
            "{name:<44} {greedy:>10.1} % {steady:>10.1} % {:>6.1} %",
            bound * 100.0
        );
    }
}

fn grant(limiter: &Limiter) {
    assert!(limiter.try_acquire("key").unwrap().is_granted());
}

fn hand_out(blocks: &Blocks) {
    assert!(blocks.try_acquire().unwrap().is_granted());
}

const HANDLES: u32 = 4;
const SIZE: u32 = 100;
const CAPACITY: u32 = 10_000;

/// How much of a capacity four handles in turns get, in per cent, if they ask for a burst of so many each thousandth of a window.
fn usable(lifetime: Duration, window: Duration, burst: u32) -> f64 {
    const WINDOWS: u32 = 20;
    let clock = ManualClock::new();
    let limiter = Limiter::in_memory_with(clock.clone());
    limiter
        .define(Limit::new("key").rate(CAPACITY.into(), window))
        .unwrap();
    let blocks = || {
        limiter
            .blocks("key", SIZE.into())
            .unwrap()
            .lifetime(lifetime)
    };
    let handles: Vec<Blocks> = (0..HANDLES).map(|_| blocks()).collect();
    let mut granted = 0_u32;
    for _ in 0..WINDOWS * 1_000 {
        let mut denied = 0;
        for handle in handles.iter().cycle().take(burst as usize) {
            let is_granted = handle.try_acquire().unwrap().is_granted();
            granted += u32::from(is_granted);
            denied = if is_granted { 0 } else { denied + 1 };
            if denied == handles.len() {
                break;
            }
        }
        clock.advance(window / 1_000);
    }
    f64::from(granted) * 100.0 / f64::from(CAPACITY * WINDOWS)
}

criterion_group!(benches, ratios);
criterion_main!(benches);
