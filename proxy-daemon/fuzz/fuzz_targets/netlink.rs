//! Does any input make this parser panic?
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| proxy_daemon::fuzzing::netlink(bytes));
