//! For how long a charge counts: in windows that roll along, and in periods of calendars.

use std::time::Duration;

use quotalite::{Rate, Window};

use crate::subject::ns;

/// When what is charged at an instant does not count any more for a rate.
pub fn leaves_ns(rate: &Rate, pad: Duration, at_ns: i64, wall_shift_ns: i64) -> i64 {
    match rate.window() {
        Window::Rolling(window) => at_ns + ns(window) + ns(pad),
        window => panic!("{window:?} is no window of a history; {wall_shift_ns}"),
    }
}
