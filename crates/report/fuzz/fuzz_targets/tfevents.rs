//! Event files.
#![no_main]

use lowrank_checkpoint::fuzz::on_file;
use lowrank_report::fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| on_file("a.tfevents", data, fuzz::events));
