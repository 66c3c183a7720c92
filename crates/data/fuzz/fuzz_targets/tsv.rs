//! Tab-separated rows of classifiers.
#![no_main]

use lowrank_checkpoint::fuzz::on_file;
use lowrank_data::fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| on_file("a.tsv", data, fuzz::table));
