//! An LTX file, pushed in pieces; the first byte gives their size.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walhub_common::testutil::fuzz_ltx_verifier(data));
