//! A model's `config.json`.
#![no_main]
use lowrank_models::fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::config::<burn_flex::Flex>(data));
