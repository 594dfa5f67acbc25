//! How long calls took, in buckets that are each three percent wide.

use std::fmt;
use std::time::Duration;

use crate::Failure;

/// Each power of two has so many buckets.
const STEPS: u64 = 32;
const BUCKETS: usize = 60 * 32;

#[derive(Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    worst_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            counts: vec![0; BUCKETS],
            worst_ns: 0,
        }
    }
}

impl Histogram {
    pub fn record(&mut self, time: Duration) {
        let time_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(time_ns)] += 1;
        self.worst_ns = self.worst_ns.max(time_ns);
    }

    pub fn add(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.worst_ns = self.worst_ns.max(other.worst_ns);
    }

    /// What so many of a thousand calls did not exceed, rounded up to the end of its bucket.
    pub fn per_mille(&self, part: u64) -> Duration {
        let all: u64 = self.counts.iter().sum();
        let rank = (all * part).div_ceil(1_000);
        let mut seen = 0;
        for (position, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank && seen > 0 {
                return Duration::from_nanos(last_of(position as u64).min(self.worst_ns));
            }
        }
        Duration::ZERO
    }

    /// The longest call, exactly.
    pub fn worst(&self) -> Duration {
        Duration::from_nanos(self.worst_ns)
    }

    /// What [`Display`](fmt::Display) has written.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        let mut histogram = Self::default();
        for entry in text.split(',') {
            let (bucket, count) = entry.split_once(':').ok_or("a bucket without a count")?;
            if bucket == "worst" {
                histogram.worst_ns = count.parse()?;
            } else {
                let bucket: usize = bucket.parse()?;
                let place = histogram.counts.get_mut(bucket).ok_or("no such bucket")?;
                *place = count.parse()?;
            }
        }
        Ok(histogram)
    }
}

impl fmt::Display for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "worst:{}", self.worst_ns)?;
        for (bucket, count) in self.counts.iter().enumerate() {
            if *count > 0 {
                write!(f, ",{bucket}:{count}")?;
            }
        }
        Ok(())
    }
}

/// The leading six bits of a number choose its bucket; numbers below 64 have one each.
fn bucket(number: u64) -> usize {
    let log = number.checked_ilog2().unwrap_or(0);
    let halvings = u64::from(log.saturating_sub(STEPS.ilog2()));
    let position = halvings * STEPS + (number >> halvings);
    usize::try_from(position).map_or(BUCKETS - 1, |at| at.min(BUCKETS - 1))
}

/// The largest number in a bucket.
fn last_of(bucket: u64) -> u64 {
    let halvings = (bucket / STEPS).saturating_sub(1);
    ((bucket - halvings * STEPS + 1) << halvings) - 1
}
