//! Tokenizers.
#![no_main]

use lowrank_data::tokenize::fuzz_tokenizer;

// The library's panics are caught, and libFuzzer's hook would abort before that.
libfuzzer_sys::fuzz_target!(init: drop(std::panic::take_hook()), |data: &[u8]| fuzz_tokenizer(data));
