//! By how much estimates are off, as far as anybody has settled them.

/// Of how many calls the ratio is a mean: from so many on, each new one takes this part of what is known.
const REMEMBERED: u128 = 50;

/// What one call can say at most: that it used so many times what was estimated, or so many times less.
const FARTHEST: u128 = 16;

/// How much larger or smaller than the mean of those before it one call counts at most, and how many times the ratio that
/// is known it can use once [`REMEMBERED`] calls are: a call that is absurd shall not outweigh all others.
const STEP: u128 = 4;

/// What one call counts at most, in units of its limit: sums of those stay in 63 bits.
const LARGEST: u128 = 1 << 40;

/// In what parts of a unit the sums are kept, so that what fades is not lost by rounding.
const PARTS: u128 = 1_000;

/// What is known of the estimates for one limit: faded sums of what was estimated and used, in thousandths of its unit.
/// Integers, so that every store comes to the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Learned {
    calls: u64,
    estimated: u64,
    used: u64,
}

/// What is to be learned once a permit is settled: that so much had been estimated for a limit.
#[derive(Clone, Debug)]
pub(crate) struct Lesson {
    pub(crate) key: Box<str>,
    pub(crate) estimated: u64,
}

impl Learned {
    /// As it stands in a file, where anybody may have written anything.
    pub(crate) fn stored(calls: i64, estimated: i64, used: i64) -> Self {
        let number = |number: i64| u128::from(u64::try_from(number).unwrap_or(0));
        let calls = u64::try_from(calls).unwrap_or(0).max(1);
        Self::of(calls, number(estimated), number(used))
    }

    /// Within the bounds of what one call can say, which sums can leave by rounding.
    fn of(calls: u64, estimated: u128, used: u128) -> Self {
        let estimated = estimated.clamp(PARTS, REMEMBERED * LARGEST * PARTS);
        Self {
            calls,
            estimated: narrow(estimated),
            used: narrow(bounded(used, estimated)),
        }
    }

    /// The number of calls and both sums, as they stand in a file.
    pub(crate) fn to_stored(self) -> (i64, i64, i64) {
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        (
            number(self.calls),
            number(self.estimated),
            number(self.used),
        )
    }

    /// What is known once another call has used this much.
    pub(crate) fn after(known: Option<Self>, estimated: u64, used: u64) -> Self {
        let estimated = u128::from(estimated.max(1));
        let used = bounded(u128::from(used), estimated);
        let mut weight = estimated.min(LARGEST) * PARTS;
        let Some(known) = known else {
            return Self::of(1, weight, times(used, weight, estimated));
        };
        let count = u128::from(known.calls).clamp(1, REMEMBERED);
        let [mut sum, mut sum_used] = [known.estimated.max(1), known.used].map(u128::from);
        // What is much larger is made smaller, and so are those before it where they were much larger: the ratio is the
        // same, and soon the mean is that of the calls that come now.
        weight = weight.min((sum * STEP / count).max(1));
        let most = weight * STEP * count;
        if sum > most {
            (sum, sum_used) = (most, times(sum_used, most, sum));
        }
        let mut part = times(used, weight, estimated);
        if count == REMEMBERED {
            let expected = times(sum_used, weight, sum);
            part = part.clamp(expected / STEP, expected * STEP);
            let fade = |sum| times(sum, REMEMBERED - 1, REMEMBERED);
            (sum, sum_used) = (fade(sum), fade(sum_used));
        }
        Self::of(known.calls.saturating_add(1), sum + weight, sum_used + part)
    }

    pub(crate) const fn ratio(self) -> EstimateRatio {
        EstimateRatio(self)
    }
}

fn bounded(used: u128, estimated: u128) -> u128 {
    used.clamp(estimated.div_ceil(FARTHEST), estimated * FARTHEST)
}

/// A part of a number, rounded to the nearest. No number here has more than 68 bits, and none that it is multiplied with more
/// than 58.
fn times(number: u128, numerator: u128, denominator: u128) -> u128 {
    (number * numerator + denominator / 2) / denominator
}

fn narrow(sum: u128) -> u64 {
    u64::try_from(sum).unwrap_or(u64::MAX)
}

/// By how much the estimates for a limit are off, as far as all processes have
/// [learned](crate::Limiter::learn_estimate): what was used, as a ratio of what was estimated.
///
/// It is a ratio of sums, so that what is charged for many calls by estimates that are corrected with it comes to what
/// they use, though each of them is off. Once 50 calls are known, each new one lets those before it fade by a fiftieth: a
/// hundred calls later an eighth is left of them. One call can say no more than that it used 16 times the estimate or a
/// sixteenth of it, and counts as no more than 4 times the mean of those before it, nor as less than a quarter; once 50 calls
/// are known, it can also say no more than 4 times or a quarter of what they say. So a call that is absurd moves the ratio by
/// less than a quarter of it then.
///
/// ```
/// use quotalite::{Limit, Limiter};
///
/// let limiter = Limiter::in_memory()?;
/// limiter.define(Limit::new("tokens").per_minute(90_000))?;
/// assert_eq!(limiter.estimate_ratio("tokens")?, None);
/// limiter.learn_estimate("tokens", 1_000, 250)?;
/// limiter.learn_estimate("tokens", 3_000, 1_250)?;
/// let ratio = limiter.estimate_ratio("tokens")?.unwrap();
/// assert_eq!((ratio.calls(), ratio.ratio()), (2, 0.375));
/// assert_eq!(ratio.corrected(1_001), 376);
/// # Ok::<(), quotalite::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EstimateRatio(Learned);

impl EstimateRatio {
    /// How many calls it was learned from, those included that have faded.
    #[must_use]
    pub const fn calls(&self) -> u64 {
        self.0.calls
    }

    /// What was used of each unit that was estimated, between 1/16 and 16, to the millionth: for people.
    /// [`corrected`](Self::corrected) is exact.
    #[must_use]
    pub fn ratio(&self) -> f64 {
        let [used, estimated] = [self.0.used, self.0.estimated.max(1)].map(u128::from);
        let millionths = used * 1_000_000 / estimated;
        f64::from(u32::try_from(millionths).unwrap_or(u32::MAX)) / 1e6
    }

    /// What an estimate becomes by it: rounded up, at least 1, and [`u64::MAX`] at most.
    #[must_use]
    pub fn corrected(&self, estimate: u64) -> u64 {
        let [estimate, used] = [estimate, self.0.used].map(u128::from);
        let corrected = (estimate * used).div_ceil(u128::from(self.0.estimated.max(1)));
        narrow(corrected).max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn learned(calls: &[(u64, u64)]) -> Learned {
        let learn =
            |known, (estimated, used): &(u64, u64)| Some(Learned::after(known, *estimated, *used));
        calls.iter().fold(None, learn).unwrap()
    }

    #[test]
    fn one_call_says_no_more_than_sixteen_times_or_a_sixteenth() {
        for (call, ratio) in [
            ((1, 1 << 53), 16.0),
            ((0, 1 << 53), 16.0),
            ((0, 0), 1.0),
            ((1, 0), 1.0),
            ((16, 0), 0.0625),
            ((u64::MAX, 0), 0.0625),
            ((u64::MAX, u64::MAX), 1.0),
            ((1 << 50, 3 << 50), 3.0),
        ] {
            let found = learned(&[call]).ratio().ratio();
            assert!((found - ratio).abs() < 1e-6, "{call:?}: {found}");
        }
    }

    #[test]
    fn a_first_call_that_is_huge_is_outweighed_by_those_that_follow() {
        let mut calls = vec![(1 << 40, 1 << 44)];
        calls.extend([(100, 50); 250]);
        let ratio = learned(&calls).ratio().ratio();
        assert!((0.5..0.6).contains(&ratio), "{ratio}");
    }

    #[test]
    fn what_fades_is_not_lost_by_rounding() {
        for (estimated, used) in [(1, 1), (3, 1), (16, 1), (1, 16), (7, 3), (1 << 40, 5)] {
            let calls = vec![(estimated, used); 5_000];
            let found = learned(&calls).ratio().ratio();
            let ratio = learned(&calls[..1]).ratio().ratio();
            assert!((found / ratio - 1.0).abs() < 1e-3, "{found} {ratio}");
        }
    }

    /// Small ones alternate with large ones that use another part.
    #[test]
    fn large_calls_say_more_than_small_ones() {
        let calls = [(1_000, 300), (100_000, 80_000)].repeat(100);
        let ratio = learned(&calls).ratio().ratio();
        assert!((0.75..0.81).contains(&ratio), "{ratio}");
    }

    proptest! {
        #[test]
        fn sums_fit_into_a_file_and_come_back_as_they_were(
            calls in prop::collection::vec(
                prop_oneof![
                    any::<(u64, u64)>(),
                    any::<u64>().prop_map(|estimated| (estimated, u64::MAX)),
                    any::<u64>().prop_map(|estimated| (estimated, 0)),
                    (0_u64..40, 0_u64..1_000),
                ],
                1..200,
            ),
        ) {
            let learned = learned(&calls);
            let (count, estimated, used) = learned.to_stored();
            prop_assert_eq!(count, i64::try_from(calls.len()).unwrap());
            prop_assert!(used < i64::MAX && estimated > 0);
            prop_assert_eq!(Learned::stored(count, estimated, used), learned);
        }

        #[test]
        fn whatever_stands_in_a_file_can_be_used(
            stored in any::<(i64, i64, i64)>(),
            calls in prop::collection::vec(any::<(u64, u64)>(), 0..60),
            estimate in any::<u64>(),
        ) {
            let mut learned = Learned::stored(stored.0, stored.1, stored.2);
            for (estimated, used) in calls {
                learned = Learned::after(Some(learned), estimated, used);
            }
            let ratio = learned.ratio();
            prop_assert!((0.06..16.1).contains(&ratio.ratio()), "{}", ratio.ratio());
            prop_assert!(ratio.corrected(estimate) >= 1);
        }
    }
}
