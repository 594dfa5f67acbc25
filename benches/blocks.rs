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
        let bound = window_ms as f64 / (window_ms + lifetime_ms) as f64;
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

/// How much of a capacity four handles in turns get, in per cent, if they ask for a burst of so many each thousandth of a window.
fn usable(lifetime: Duration, window: Duration, burst: u32) -> f64 {
    const CAPACITY: u64 = 10_000;
    const WINDOWS: u32 = 20;
    let clock = ManualClock::new();
    let limiter = Limiter::in_memory_with(clock.clone());
    limiter
        .define(Limit::new("key").rate(CAPACITY, window))
        .unwrap();
    let blocks = || limiter.blocks("key", 100).unwrap().lifetime(lifetime);
    let handles = [(); 4].map(|()| blocks());
    let mut granted = 0_u64;
    for _ in 0..WINDOWS * 1_000 {
        let mut denied = 0;
        for handle in handles.iter().cycle().take(burst as usize) {
            let is_granted = handle.try_acquire().unwrap().is_granted();
            granted += u64::from(is_granted);
            denied = if is_granted { 0 } else { denied + 1 };
            if denied == handles.len() {
                break;
            }
        }
        clock.advance(window / 1_000);
    }
    granted as f64 * 100.0 / (CAPACITY * u64::from(WINDOWS)) as f64
}

criterion_group!(benches, ratios);
criterion_main!(benches);
