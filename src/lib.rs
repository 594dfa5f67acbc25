//! Exact rate limits that unrelated processes share through one SQLite file.
#![warn(unreachable_pub)]

mod calendar;
mod clock;
mod decision;
mod error;
mod limit;
mod limiter;
mod permit;
mod plan;
mod request;
mod store;
mod usage;

pub use clock::{BootId, Clock, ManualClock, SystemClock, Timestamp};
pub use decision::{Decision, Denial, Peek};
pub use error::{Error, RequestError};
pub use limit::{
    DAY, HOUR, Limit, LimitBuilder, LimitError, MAX_CAPACITY, MAX_KEY_BYTES, MAX_RATES,
    MAX_UNIT_BYTES, MAX_WINDOW, MIN_WINDOW, MINUTE, ParseRatesError, Rate, SECOND,
};
pub use limiter::{Builder, Limiter};
pub use permit::{Booking, Permit};
pub use request::{Ask, MAX_TAKES, Request};
pub use store::{Definition, Durability, OnConflict};
pub use usage::{RateUsage, Usage};
