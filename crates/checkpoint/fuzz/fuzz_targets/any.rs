//! Recognition of a format and its reader on arbitrary bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lowrank_checkpoint::fuzz::any(data));
