//! `RateLimit-Policy`, with names and without.
#![no_main]

const NAMES: &[&str] = &["ratelimit-policy"];

libfuzzer_sys::fuzz_target!(|value: &[u8]| quotalite_fuzz::read_each(NAMES, value));
