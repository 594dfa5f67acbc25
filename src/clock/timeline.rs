//! How a file's instants follow the clocks, across steps and boots.

use std::time::Duration;

use super::{BootId, Clock, Reading, Timestamp, clamped_ns};

/// What a file knows about time. Instants are `elapsed + offset` for the boot that it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timeline {
    pub(crate) boot: BootId,
    /// Added to the time since boot to give the instant.
    pub(crate) offset_ns: i64,
    /// An instant that has been reached for certain. It follows the present in steps of
    /// `HIGH_STEP_NS`, so that keeping it costs one row a second and not one a transaction.
    pub(crate) high: Timestamp,
    /// Added to an instant to give the wall clock's reading of it, for people who read the file.
    pub(crate) wall_minus_instant_ns: i64,
    /// The same for the boundaries of calendars, which are to stand still: it follows only when the wall clock was
    /// set by `CALENDAR_STEP_NS` or more.
    pub(crate) calendar_shift_ns: i64,
}

/// What a timeline says of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Present {
    pub(crate) now: Timestamp,
    pub(crate) timeline: Timeline,
    pub(crate) change: Change,
}

/// Whether the timeline has to be written back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Change {
    None,
    /// By any transaction that writes anyway.
    Refreshed,
    /// By this transaction: until it is stored, other processes read another time.
    Fixed,
}

/// How far the present may run ahead of `high`; also by how much a boot's clock could fall back
/// unnoticed, in which case charges up to this much ahead count as if they were booked.
pub(crate) const HIGH_STEP_NS: i64 = 1_000_000_000;

/// By how much the wall clock can be off before the boundaries of calendars follow it: far more than passes between
/// two readings of clocks, and no more than anybody's midnight is off.
const CALENDAR_STEP_NS: u64 = 1_000_000_000;

/// What a boot's clock shows at an instant, where instants are that clock's time plus `offset_ns`.
pub(crate) fn elapsed_at(at: Timestamp, offset_ns: i64) -> Duration {
    let elapsed_ns = at.as_nanos().saturating_sub(offset_ns);
    Duration::from_nanos(u64::try_from(elapsed_ns).unwrap_or(0))
}

impl Timeline {
    /// The timeline of a fresh file: the wall clock's.
    pub(crate) const fn start(reading: Reading) -> Self {
        Self {
            boot: reading.boot,
            offset_ns: reading.wall_ns - reading.elapsed_ns,
            high: Timestamp(reading.wall_ns),
            wall_minus_instant_ns: 0,
            calendar_shift_ns: 0,
        }
    }

    /// What the boot's clock shows at an instant.
    pub(crate) fn elapsed_at(&self, at: Timestamp) -> Duration {
        elapsed_at(at, self.offset_ns)
    }

    /// The present, if the boot's clock alone tells it.
    pub(crate) fn goes_on(&self, clock: &dyn Clock, elapsed: Duration) -> Option<Timestamp> {
        let now = Timestamp(clamped_ns(elapsed).saturating_add(self.offset_ns));
        (clock.boot() == self.boot && now >= self.high).then_some(now)
    }

    /// The present, by this timeline and a reading taken after the timeline was read.
    ///
    /// - In the boot that the timeline knows, the boot's clock alone decides, and steps of the wall
    ///   clock change nothing. Should that clock have fallen behind what was reached (a restored
    ///   snapshot of a machine; a wall clock in its place), time goes on from what was reached.
    /// - In a new boot the wall clock says how much time has gone by, but it is at least the time since
    ///   that boot, and never negative: a wall clock set back locks nobody out.
    pub(crate) fn present(self, reading: Reading) -> Present {
        let now_ns = if reading.boot == self.boot {
            reading
                .elapsed_ns
                .saturating_add(self.offset_ns)
                .max(self.high.0)
        } else {
            reading
                .wall_ns
                .max(self.high.0.saturating_add(reading.elapsed_ns))
        };
        let now = Timestamp(now_ns);
        let mut timeline = Self {
            boot: reading.boot,
            offset_ns: now_ns.saturating_sub(reading.elapsed_ns),
            ..self
        };
        let wall_minus_instant_ns = reading.wall_ns.saturating_sub(now_ns);
        let step_ns = wall_minus_instant_ns.abs_diff(self.calendar_shift_ns);
        let is_set = step_ns >= CALENDAR_STEP_NS;
        let change = if (timeline.boot, timeline.offset_ns) != (self.boot, self.offset_ns) {
            Change::Fixed
        } else if is_set || now_ns.saturating_sub(self.high.0) >= HIGH_STEP_NS {
            Change::Refreshed
        } else {
            Change::None
        };
        if change != Change::None {
            timeline.high = now;
            timeline.wall_minus_instant_ns = wall_minus_instant_ns;
        }
        if is_set {
            timeline.calendar_shift_ns = wall_minus_instant_ns;
        }
        Present {
            now,
            timeline,
            change,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn reading(boot: u128, elapsed_s: i64, wall_s: i64) -> Reading {
        Reading {
            boot: BootId(boot),
            elapsed_ns: elapsed_s * SECOND,
            wall_ns: wall_s * SECOND,
        }
    }

    fn seconds(present: Present) -> i64 {
        present.now.as_nanos() / SECOND
    }

    #[test]
    fn a_step_of_the_wall_clock_moves_nothing() {
        let timeline = Timeline::start(reading(1, 50, 1_000));
        for wall in [0, 940, 1_000, 1_010, 5_000_000] {
            assert_eq!(seconds(timeline.present(reading(1, 60, wall))), 1_010);
        }
    }

    #[test]
    fn a_new_boot_goes_on_by_the_wall_clock_but_at_least_by_the_uptime() {
        let timeline = Timeline::start(reading(1, 50, 1_000));
        let cases = [
            ("the wall clock went on", 1_700, 1_700),
            (
                "the wall clock stood still while the machine was off",
                1_000,
                1_020,
            ),
            ("the battery is dead", 0, 1_020),
        ];
        for (story, wall, expected) in cases {
            let present = timeline.present(reading(2, 20, wall));
            assert_eq!(seconds(present), expected, "{story}");
            assert_eq!(present.change, Change::Fixed, "{story}");
            let later = present.timeline.present(reading(2, 25, 0));
            assert_eq!(seconds(later), expected + 5, "{story}, five seconds later");
        }
    }

    #[test]
    fn a_boot_clock_that_fell_back_goes_on_from_what_was_reached() {
        let timeline = Timeline::start(reading(1, 500, 1_000));
        let present = timeline.present(reading(1, 20, 1_000));
        assert_eq!((seconds(present), present.change), (1_000, Change::Fixed));
        assert_eq!(seconds(present.timeline.present(reading(1, 27, 0))), 1_007);
    }

    #[test]
    fn what_was_reached_is_kept_in_steps_of_a_second() {
        let timeline = Timeline::start(reading(1, 0, 1_000));
        assert_eq!(timeline.present(reading(1, 0, 1_000)).change, Change::None);
        let present = timeline.present(reading(1, 1, 1_006));
        assert_eq!(present.change, Change::Refreshed);
        assert_eq!(present.timeline.high, present.now);
        assert_eq!(present.timeline.wall_minus_instant_ns, 5 * SECOND);
        assert_eq!(present.timeline.offset_ns, timeline.offset_ns);
    }

    #[test]
    fn mad_readings_do_not_overflow() {
        let ends = [0, 1 << 62];
        for stored in [i64::MIN, -1, 0, i64::MAX] {
            for elapsed_ns in ends {
                for wall_ns in ends {
                    for boot in [1, 2] {
                        let timeline = Timeline {
                            boot: BootId(1),
                            offset_ns: stored,
                            high: Timestamp(stored),
                            wall_minus_instant_ns: stored,
                            calendar_shift_ns: stored,
                        };
                        let reading = Reading {
                            boot: BootId(boot),
                            elapsed_ns,
                            wall_ns,
                        };
                        assert!(timeline.present(reading).now >= timeline.high);
                    }
                }
            }
        }
    }
}
