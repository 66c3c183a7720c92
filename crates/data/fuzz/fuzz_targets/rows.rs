//! Rows of language models, and questions.
#![no_main]

use std::{fs, sync::LazyLock};

use lowrank_data::fuzz;

/// In memory where the system has such a folder.
static FILE: LazyLock<std::path::PathBuf> = LazyLock::new(|| {
    let shared = std::path::Path::new("/dev/shm");
    let folder = if shared.is_dir() { shared.to_owned() } else { std::env::temp_dir() };
    folder.join(format!("lowrank-fuzz-{}.jsonl", std::process::id()))
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fs::write(&*FILE, data).expect("a file of the fuzzer's own");
    fuzz::rows(&FILE);
});
