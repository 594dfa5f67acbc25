//! All headers of a response, in any order and any number.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| quotalite_fuzz::read_all(bytes));
