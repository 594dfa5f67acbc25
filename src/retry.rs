//! Calls that are tried again.

mod policy;

pub use self::policy::{Jitter, MAX_RETRIES, RetryPolicy, RetryPolicyError};
