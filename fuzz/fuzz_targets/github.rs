//! The headers of GitHub and of those that follow it.
#![no_main]

const NAMES: &[&str] = &[
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-used",
    "x-ratelimit-reset",
    "x-ratelimit-reset-after",
    "x-ratelimit-resource",
    "x-ratelimit-bucket",
    "x-rate-limit-reset",
];

libfuzzer_sys::fuzz_target!(|value: &[u8]| quotalite_fuzz::read_each(NAMES, value));
