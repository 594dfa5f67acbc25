//! `RateLimit`, as a list and as a dictionary.
#![no_main]

const NAMES: &[&str] = &["ratelimit"];

libfuzzer_sys::fuzz_target!(|value: &[u8]| quotalite_fuzz::read_each(NAMES, value));
