//! Rows of language models, and questions.
#![no_main]

use lowrank_checkpoint::fuzz::on_file;
use lowrank_data::fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| on_file("a.jsonl", data, fuzz::rows));
