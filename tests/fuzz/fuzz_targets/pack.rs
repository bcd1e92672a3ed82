//! A pack, or the index of one under a right checksum; the first three bytes give its files and where they end.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walhub_store::testutil::fuzz_pack(data));
