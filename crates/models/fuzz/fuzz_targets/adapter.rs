//! Configs of adapters.
#![no_main]

use lowrank_adapters::peft::fuzz_config;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_config(data));
