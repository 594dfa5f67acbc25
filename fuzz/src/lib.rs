//! What has to hold of every response, whichever headers it has.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use quotalite::Feedback;

/// A `Date` that is valid, so that instants are also compared with something.
const DATE: (&str, &[u8]) = ("date", b"Tue, 14 Nov 2023 22:13:20 GMT");

/// Reads the bytes as the value of each of the headers, by itself and of all of them at once.
pub fn read_each(names: &[&str], value: &[u8]) {
    for name in names {
        check([(*name, value)]);
        check([DATE, (*name, value)]);
        check([(*name, value), (*name, value)]);
    }
    check(names.iter().map(|name| (*name, value)));
}

/// One header of every family, and what is nearly one.
const NAMES: [&str; 16] = [
    "date",
    "retry-after",
    "retry-after-ms",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-limit",
    "x-ratelimit-used",
    "x-ratelimit-reset",
    "x-ratelimit-resource",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens-minute",
    "anthropic-ratelimit-input-tokens-reset",
    "anthropic-priority-",
];

/// Reads the bytes as the headers of a response, one a line: its first byte says which header it is, as no fuzzer
/// would find their names by itself.
pub fn read_all(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n');
    let headers = lines.filter_map(|line| {
        let (first, value) = line.split_first()?;
        let name = NAMES.get(usize::from(*first) % NAMES.len())?;
        Some((*name, value))
    });
    check(headers);
}

fn check<'h>(headers: impl IntoIterator<Item = (&'h str, &'h [u8])>) {
    let headers: Vec<(&str, &[u8])> = headers.into_iter().collect();
    for now in [
        UNIX_EPOCH,
        SystemTime::now(),
        UNIX_EPOCH + Duration::from_secs(1 << 50),
    ] {
        for status in [200, 403, 429, 503] {
            let feedback = Feedback::read(status, headers.iter().copied(), now);
            let waits = feedback.retry_after().into_iter().chain(feedback.wait());
            let limits = feedback.advertised().iter();
            let times = limits.flat_map(|limit| limit.reset().into_iter().chain(limit.window()));
            assert!(waits.chain(times).all(|time| time <= Feedback::MAX_TIME));
            assert!(feedback.advertised().len() <= Feedback::MAX_ADVERTISED);
        }
    }
}
