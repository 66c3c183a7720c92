//! The same bytes on any number of threads.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use rstest::rstest;

use common::{lowrank, s};

fn dataset(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets").join(name)
}

/// Large enough for every kernel to divide its work.
#[rstest]
#[case(&["finetune", "--model", "LLAMA", "--train", "INSTRUCT/train.jsonl", "--dev", "INSTRUCT/dev.jsonl", "--method",
         "lora", "--targets", "all-linear", "--max-steps", "3"], "adapter/adapter_model.safetensors")]
#[case(&["finetune", "--model", "BERT", "--task", "sst2", "--data", "GLUE", "--method", "lotr", "--max-steps", "3"],
       "adapter/adapter_model.safetensors")]
#[case(&["finetune", "--model", "BERT", "--task", "sst2", "--data", "GLUE", "--method", "full", "--max-steps", "3"],
       "model/model.safetensors")]
#[case(&["compress", "--model", "LLAMA", "--method", "svd", "--ratio", "0.3"], "model.safetensors")]
#[case(&["compress", "--model", "LLAMA", "--method", "two-sided", "--ratio", "0.3", "--calibration", "TEXTS"],
       "model.safetensors")]
#[case(&["compress", "--model", "LLAMA", "--method", "quant", "--bits", "4", "--calibration", "TEXTS"],
       "model.safetensors")]
fn threads_change_no_byte(#[case] args: &[&str], #[case] file: &str) {
    let dir = tempfile::tempdir().unwrap();
    let texts = dir.path().join("texts.txt");
    fs::write(&texts, "the cat sat on the mat .\nthe film was not good .\n".repeat(40)).unwrap();
    let places = [
        ("LLAMA", dataset("models/mini-llama")),
        ("BERT", dataset("models/mini-bert")),
        ("INSTRUCT", dataset("mini-instruct")),
        ("GLUE", dataset("mini-glue")),
        ("TEXTS", texts),
    ];
    let place = |arg: &&str| {
        let (first, rest) = arg.split_once('/').unwrap_or((arg, ""));
        let found = places.iter().find(|(name, _)| *name == first);
        found.map_or((*arg).to_owned(), |(_, path)| s(&path.join(rest)).trim_end_matches('/').to_owned())
    };
    let args: Vec<String> = args.iter().map(place).collect();
    let made: Vec<Vec<u8>> = ["1", "2", "7"]
        .iter()
        .map(|threads| {
            let out = dir.path().join(threads);
            let args: Vec<&str> = args.iter().map(String::as_str).chain(["-o", s(&out)]).collect();
            lowrank(&args).env("RAYON_NUM_THREADS", threads).assert().success();
            fs::read(out.join(file)).unwrap()
        })
        .collect();
    assert!(made.iter().all(|bytes| *bytes == made[0]), "{args:?}");
}
