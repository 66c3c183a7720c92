//! The reader of torch.save files on arbitrary bytes.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| lowrank_checkpoint::fuzz::torch(data));
