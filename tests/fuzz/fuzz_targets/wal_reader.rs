//! A log: file header, frames, transactions.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walhub_common::testutil::fuzz_wal(data));
