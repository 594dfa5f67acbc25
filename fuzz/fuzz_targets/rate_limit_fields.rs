//! `RateLimit-Limit` and its kin, of the older drafts.
#![no_main]

const NAMES: &[&str] = &[
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "ratelimit-observed",
    "ratelimit-used",
];

libfuzzer_sys::fuzz_target!(|value: &[u8]| quotalite_fuzz::read_each(NAMES, value));
