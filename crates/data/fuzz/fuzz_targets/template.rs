//! Chat templates.
#![no_main]

use lowrank_data::fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::template(data));
