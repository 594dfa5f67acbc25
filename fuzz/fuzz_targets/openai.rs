//! The headers of OpenAI and of those that follow it.
#![no_main]

const NAMES: &[&str] = &[
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
    "x-ratelimit-reset-tokens-minute",
];

libfuzzer_sys::fuzz_target!(|value: &[u8]| quotalite_fuzz::read_each(NAMES, value));
