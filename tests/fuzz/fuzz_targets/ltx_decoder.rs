//! An LTX file, read whole.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| walhub_common::testutil::fuzz_ltx_decoder(data));
