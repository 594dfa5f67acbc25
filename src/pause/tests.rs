use proptest::prelude::*;

use super::*;
use crate::limit::SECOND;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_nanos(seconds * 1_000_000_000)
}

/// For how many seconds each strike pauses that comes as soon as the pause before it has ended.
fn lengths(policy: &PausePolicy, backoffs: &[Backoff], rest_s: i64) -> Vec<i64> {
    let mut strikes = Strikes::default();
    let mut now = at(1_000);
    let mut lengths = Vec::new();
    for backoff in backoffs {
        let pause = strikes.strike(policy, *backoff, now);
        lengths.push((pause.until().as_nanos() - now.as_nanos()) / 1_000_000_000);
        now = pause.until().saturating_plus_ns(rest_s * 1_000_000_000);
    }
    lengths
}

#[test]
fn strikes_that_go_on_pause_for_longer_and_longer_up_to_the_cap() {
    let policy = PausePolicy::default();
    let strikes = [Backoff::strike(); 9];
    assert_eq!(
        lengths(&policy, &strikes, 0),
        [60, 60, 120, 240, 480, 900, 900, 900, 900]
    );
    // Each fades after five minutes without a pause.
    assert_eq!(
        lengths(&policy, &strikes[..6], 149),
        [60, 60, 120, 120, 120, 120]
    );
    assert_eq!(lengths(&policy, &strikes[..4], 300), [60, 60, 60, 60]);
}

#[test]
fn a_time_that_was_told_counts_in_place_of_the_schedule_up_to_the_cap() {
    let policy = PausePolicy::default();
    let told = |seconds| Backoff::retry_after(Duration::from_secs(seconds));
    let backoffs = [
        told(7),
        told(7),
        told(7),
        Backoff::strike(),
        told(u64::MAX),
        Backoff::retry_after(Duration::MAX),
        told(0),
    ];
    assert_eq!(lengths(&policy, &backoffs, 0), [7, 7, 7, 240, 900, 900, 0]);
}

#[test]
fn what_had_been_sent_before_a_pause_is_no_other_strike() {
    let policy = PausePolicy::default();
    let mut strikes = Strikes::default();
    let first = strikes.strike(&policy, Backoff::strike(), at(100));
    // Others who were turned away at the same time.
    for _ in 0..40 {
        assert_eq!(strikes.strike(&policy, Backoff::strike(), at(101)), first);
    }
    // An answer that came late.
    let late = Backoff::strike().asked_at(at(99));
    let pause = strikes.strike(&policy, late, at(170));
    assert!(!pause.holds(at(170)));
    assert_eq!(strikes.counting.len(), 1);
    // It knows more than the others did.
    let late = Backoff::retry_after(Duration::from_secs(30)).asked_at(at(99));
    let pause = strikes.strike(&policy, late, at(175));
    assert_eq!(pause.until(), at(205));
    assert_eq!(strikes.counting.len(), 1);
}

#[test]
fn a_planned_pause_is_no_strike() {
    let policy = PausePolicy::default();
    let mut strikes = Strikes::default();
    let pause = strikes.strike(&policy, Backoff::planned(5 * SECOND), at(0));
    assert_eq!((pause.until(), pause.strikes()), (at(5), 0));
    assert!(strikes.counting.is_empty());
}

#[test]
fn a_bad_policy_is_refused() {
    let cases = [
        (
            PausePolicy::default().first(Duration::ZERO),
            "the first pause is 1 ms to 366 days, not 0ns",
        ),
        (
            PausePolicy::default().cap(Duration::MAX),
            "the cap on pauses is 1 ms to 366 days, not 18446744073709551615.999999999s",
        ),
        (
            PausePolicy::default().escalate(0, MINUTE),
            "pauses become longer from 1 to 64 strikes on, not 0",
        ),
        (
            PausePolicy::default().escalate(3, Duration::ZERO),
            "the time in which strikes count is 1 ms to 366 days, not 0ns",
        ),
        (
            PausePolicy::default().slow_start(0),
            "a slow start has 1 to 100 percent, not 0",
        ),
        (
            PausePolicy::default().slow_start(101),
            "a slow start has 1 to 100 percent, not 101",
        ),
    ];
    for (policy, message) in cases {
        assert_eq!(policy.check().unwrap_err().to_string(), message);
    }
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Strike,
    RetryAfter { s: i64 },
    Planned { s: i64 },
    Late { s: i64 },
    Lift,
}

fn op() -> impl Strategy<Value = (Op, i64)> {
    let op = prop_oneof![
        4 => Just(Op::Strike),
        2 => (0_i64..2_000).prop_map(|s| Op::RetryAfter { s }),
        1 => (0_i64..2_000).prop_map(|s| Op::Planned { s }),
        1 => (0_i64..600).prop_map(|s| Op::Late { s }),
        1 => Just(Op::Lift),
    ];
    (op, prop_oneof![0_i64..10, 0_i64..400, 0_i64..2_000])
}

/// What the rules say, second by second and with lists: nothing is kept but what has happened.
#[derive(Default)]
struct Naive {
    now_s: i64,
    paused_until_s: i64,
    paused_since_s: Option<i64>,
    /// By strike: for how many seconds without a pause it still counts.
    counting: Vec<i64>,
}

impl Naive {
    fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            if self.now_s >= self.paused_until_s {
                self.counting.iter_mut().for_each(|left| *left -= 1);
            }
            self.now_s += 1;
        }
        self.counting.retain(|left| *left > 0);
    }

    fn strike(&mut self, told_s: Option<i64>, is_strike: bool, asked_s: Option<i64>) {
        let is_paused = self.now_s < self.paused_until_s;
        let is_late = asked_s
            .zip(self.paused_since_s)
            .is_some_and(|(a, s)| a <= s);
        let counts = is_strike && !is_paused && !is_late && told_s != Some(0);
        if counts {
            self.counting.push(300);
        }
        let scheduled = match self.counting.len() {
            0..=2 => 60,
            3 => 120,
            4 => 240,
            5 => 480,
            _ => 900,
        };
        let length_s = told_s.unwrap_or(if counts { scheduled } else { 0 });
        let until_s = self.now_s + length_s.min(900);
        if until_s > self.now_s && until_s > self.paused_until_s {
            if !is_paused {
                self.paused_since_s = Some(self.now_s);
            }
            self.paused_until_s = until_s;
        }
    }
}

proptest! {
    #[test]
    fn strikes_count_as_the_rules_say(ops in prop::collection::vec(op(), 1..40)) {
        let policy = PausePolicy::default();
        let (mut strikes, mut naive) = (Strikes::default(), Naive::default());
        naive.now_s = 10_000;
        for (op, rest_s) in ops {
            let now = at(naive.now_s);
            let before = strikes.pause;
            match op {
                Op::Strike => {
                    strikes.strike(&policy, Backoff::strike(), now);
                    naive.strike(None, true, None);
                }
                Op::RetryAfter { s } => {
                    let told = Duration::from_secs(s.unsigned_abs());
                    strikes.strike(&policy, Backoff::retry_after(told), now);
                    naive.strike(Some(s), true, None);
                }
                Op::Planned { s } => {
                    let told = Duration::from_secs(s.unsigned_abs());
                    strikes.strike(&policy, Backoff::planned(told), now);
                    naive.strike(Some(s), false, None);
                }
                Op::Late { s } => {
                    let asked_s = naive.now_s - s;
                    strikes.strike(&policy, Backoff::strike().asked_at(at(asked_s)), now);
                    naive.strike(None, true, Some(asked_s));
                }
                Op::Lift => {
                    let lifted = strikes.lift(now);
                    prop_assert_eq!(lifted.is_some(), naive.now_s < naive.paused_until_s);
                    naive.paused_until_s = naive.paused_until_s.min(naive.now_s);
                }
            }
            let held = before.map_or(now, |pause| pause.until()).max(now);
            let holds = strikes.pause.map_or(now, |pause| pause.until()).max(now);
            prop_assert_eq!(holds, at(naive.paused_until_s.max(naive.now_s)));
            // Nothing but who lifts it makes a pause shorter, and none is endless.
            prop_assert!(holds >= held || matches!(op, Op::Lift));
            prop_assert!(holds <= now.saturating_plus_ns(nanos(policy.cap)).max(held));
            naive.pass(rest_s);
        }
    }
}
