//! Random histories, compared step by step with a model that is too simple to be wrong.
//!
//! `cargo test` plays some hundreds of them; `QUOTALITE_HISTORIES=20000` says how many per test, and
//! `QUOTALITE_TOPICS=bq` that they are about buckets and quotas, and not about changes, patterns, what is handed out from
//! memory (`h`), what is merged (`m`) and pauses (`s`).

mod support;

#[path = "support/asks.rs"]
mod asks;
#[path = "support/bent.rs"]
mod bent;
#[path = "support/broken.rs"]
mod broken;
#[path = "support/bucket.rs"]
mod bucket;
#[path = "support/check.rs"]
mod check;
#[path = "support/definitions.rs"]
mod definitions;
#[path = "support/entry.rs"]
mod entry;
#[path = "support/history.rs"]
mod history;
#[path = "support/line.rs"]
mod line;
#[path = "support/model.rs"]
mod model;
#[path = "support/periods.rs"]
mod periods;
#[path = "support/player.rs"]
mod player;
#[path = "support/real.rs"]
mod real;
#[path = "support/shapes.rs"]
mod shapes;
#[path = "support/strikes.rs"]
mod strikes;
#[path = "support/subject.rs"]
mod subject;
#[path = "support/told.rs"]
mod told;
#[path = "support/witness.rs"]
mod witness;

use std::env;

use asks::{Amount, Ask, Pace, Patience};
use bent::{Bend, Bent};
use broken::{Broken, Flaw};
use history::{FIRST_WALL_NS, History, Op, Topics, history};
use player::{Check, play};
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestError, TestRunner};
use quotalite::Overage;
use real::{Real, Twist};
use shapes::Shape;
use subject::Subject;

fn play_many(play: impl Fn(&History) -> Check) {
    let told = env::var("QUOTALITE_HISTORIES").ok();
    let count = told.map_or(300, |count| count.parse().expect("a number of histories"));
    let mut runner = TestRunner::new(Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/histories.regressions",
        ))),
        ..Config::with_cases(count)
    });
    let topics = env::var("QUOTALITE_TOPICS").ok();
    let played = runner.run(&history(topics), |history| {
        play(&history).map_err(TestCaseError::fail)
    });
    match played {
        Ok(()) => {}
        Err(TestError::Fail(why, history)) => panic!("{why}\n{history:#?}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn limiters_of_one_file_do_what_the_model_does() {
    play_many(|history| play(&mut Real::on_file(history.slots), history.slots, history));
}

#[test]
fn a_limiter_in_memory_does_what_the_model_does() {
    play_many(|history| play(&mut Real::in_memory(), 1, history));
}

/// How many histories it takes until one tells a difference, of at most so many.
fn noticed_after<S: Subject>(
    subject: impl Fn() -> S,
    cut: impl Fn(History) -> History,
    at_most: u32,
) -> Option<u32> {
    let mut runner = TestRunner::deterministic();
    let histories = history(None);
    (1..=at_most).find(|_| {
        let history = histories
            .new_tree(&mut runner)
            .expect("nothing is filtered");
        play(&mut subject(), 1, &cut(history.current())).is_err()
    })
}

#[track_caller]
fn assert_noticed(flaw: Flaw) {
    let after = noticed_after(|| Broken::with(flaw), History::plain, 300);
    println!("{flaw:?}: noticed in history {after:?}");
    assert!(after.is_some(), "300 histories did not notice: {flaw:?}");
}

#[track_caller]
fn assert_twist_noticed(twist: Twist) {
    let after = noticed_after(|| Real::twisted(twist), |history| history, 100);
    println!("{twist:?}: noticed in history {after:?}");
    assert!(after.is_some(), "100 histories did not notice: {twist:?}");
}

/// What is left of histories if they are all about these.
fn about(topics: Topics) -> impl Fn(History) -> History {
    move |history| {
        let is_any = [topics.buckets, topics.patterns, topics.quotas];
        assert!(is_any.contains(&true));
        history.only(topics)
    }
}

#[track_caller]
fn assert_bend_noticed(bend: Bend, topics: Topics) {
    let straight = noticed_after(|| Bent::with(Bend::Nothing), about(topics), 100);
    assert_eq!(straight, None);
    let after = noticed_after(|| Bent::with(bend), about(topics), 100);
    println!("{bend:?}: noticed in history {after:?}");
    assert!(after.is_some(), "100 histories did not notice: {bend:?}");
}

const BUCKETS: Topics = Topics {
    buckets: true,
    changes: false,
    patterns: false,
    quotas: false,
    handles: false,
    merged: false,
    strikes: false,
};

#[test]
fn histories_notice_a_bucket_that_counts_tokens_in_whole_nanoseconds() {
    assert_bend_noticed(Bend::CutsTokens, BUCKETS);
}

#[test]
fn histories_notice_a_bucket_that_is_a_window() {
    assert_bend_noticed(Bend::WindowsForBuckets, BUCKETS);
}

#[test]
fn histories_notice_a_pattern_that_has_one_ledger_for_all() {
    let patterns = Topics {
        patterns: true,
        ..Topics::default()
    };
    assert_bend_noticed(Bend::OneLedgerForAll, patterns);
}

#[cfg(feature = "calendar")]
#[test]
fn histories_notice_days_of_utc_in_other_zones() {
    let quotas = Topics {
        quotas: true,
        ..Topics::default()
    };
    assert_bend_noticed(Bend::DaysOfUtc, quotas);
}

#[test]
fn a_plain_limiter_without_a_flaw_is_not_accused() {
    let broken = || Broken::with(Flaw::Nothing);
    assert_eq!(noticed_after(broken, History::plain, 300), None);
}

#[test]
fn histories_notice_a_limiter_that_forgets_the_timeouts_of_slots() {
    assert_twist_noticed(Twist::ForgetsTimeouts);
}

#[test]
fn histories_notice_a_limiter_that_goes_by_the_wall_clock() {
    assert_twist_noticed(Twist::GoesByTheWall);
}

#[test]
fn histories_notice_a_limiter_that_charges_twice_under_one_id() {
    assert_twist_noticed(Twist::ChargesTwice);
}

#[test]
fn histories_notice_a_limiter_that_counts_blocks_from_their_end() {
    assert_twist_noticed(Twist::BlocksCountFromTheirEnd);
}

#[test]
fn histories_notice_a_limiter_that_counts_blocks_from_their_start() {
    assert_twist_noticed(Twist::BlocksCountFromTheirStart);
}

#[test]
fn histories_notice_a_limiter_that_takes_each_strike_for_the_first() {
    assert_twist_noticed(Twist::ForgetsStrikes);
}

#[test]
fn histories_notice_a_limiter_that_keeps_nobody_away() {
    assert_twist_noticed(Twist::ForgetsPauses);
}

#[test]
fn histories_notice_a_limiter_that_merges_charges_and_does_not_count_them_longer() {
    assert_twist_noticed(Twist::MergesTooShort);
}

#[test]
fn histories_notice_a_limiter_that_counts_what_was_not_cleaned_up_yet() {
    assert_noticed(Flaw::CountsUntilCleaned);
}

#[test]
fn histories_notice_a_limiter_that_charges_one_limit_and_is_stopped_by_the_next() {
    assert_noticed(Flaw::ChargesOneByOne);
}

#[test]
fn histories_notice_a_limiter_with_fixed_buckets() {
    assert_noticed(Flaw::FixedBuckets);
}

#[test]
fn histories_notice_a_limiter_that_overtakes_those_who_booked() {
    assert_noticed(Flaw::Overtakes);
}

#[test]
fn histories_notice_a_limiter_that_counts_a_charge_a_nanosecond_too_long() {
    assert_noticed(Flaw::ClosedWindow);
}

#[test]
fn histories_notice_a_limiter_that_frees_nothing_when_a_permit_is_settled() {
    assert_noticed(Flaw::FreesNothing);
}

#[test]
fn histories_notice_a_limiter_that_corrects_a_charge_at_the_instant_of_its_settlement() {
    assert_noticed(Flaw::CorrectsAtPresent);
}

#[test]
fn histories_notice_a_limiter_that_settles_at_the_expense_of_those_who_booked() {
    assert_noticed(Flaw::GrowsIntoBookings);
}

fn shape_of(rates: &[(usize, u64)]) -> Shape {
    Shape {
        rates: rates.to_vec(),
        grows: false,
        is_huge: false,
        pad: 0,
        resolution: 0,
        policy: 0,
        overage: Overage::Debt,
        bucket: None,
        quotas: Vec::new(),
    }
}

fn try_one(line: usize) -> Op {
    Op::Try {
        slot: 0,
        ask: Ask(vec![(line, Amount::Units(1))]),
    }
}

fn book_one_of_each(lines: &[usize]) -> Op {
    Op::Book {
        slot: 1,
        ask: Ask(lines.iter().map(|line| (*line, Amount::Units(1))).collect()),
        patience: Patience::Forever,
    }
}

/// The rows that followed kept counting what had been swept, and the new one did not.
fn charge_before_a_booking_when_the_past_is_swept() -> History {
    History {
        slots: 2,
        // One a millisecond, and three in 40 ms; the other limit makes the booking wait.
        shapes: vec![shape_of(&[(0, 1), (5, 3)]), shape_of(&[(3, 1)])],
        pools: Vec::new(),
        ops: vec![
            try_one(0),
            Op::Advance(Pace::Seconds(2)),
            try_one(1),
            // The first acquisition of a limiter sweeps.
            book_one_of_each(&[0, 1]),
            try_one(0),
            Op::Advance(Pace::Change { nudge_ns: 0 }),
            Op::Advance(Pace::Change { nudge_ns: 0 }),
            Op::Usage { slot: 0, line: 0 },
        ],
        topics: Topics::default(),
        start_ns: FIRST_WALL_NS,
    }
}

#[test]
fn a_charge_before_a_booking_adds_up_when_the_past_is_swept() {
    let history = charge_before_a_booking_when_the_past_is_swept();
    play(&mut Real::on_file(2), 2, &history).unwrap();
}

#[test]
fn a_charge_before_a_booking_adds_up_in_memory_when_the_past_is_swept() {
    let history = charge_before_a_booking_when_the_past_is_swept();
    play(&mut Real::in_memory(), 1, &history).unwrap();
}
