//! GGUF on arbitrary bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lowrank_checkpoint::fuzz::gguf(data));
