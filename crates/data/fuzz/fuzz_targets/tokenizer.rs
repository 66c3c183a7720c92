//! Tokenizers.
#![no_main]

use lowrank_data::tokenize::fuzz_tokenizer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_tokenizer(data));
