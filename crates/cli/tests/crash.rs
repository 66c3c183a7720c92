//! `kill -9` at many moments: what a command writes is whole or absent, and the next run succeeds.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Instant;

use common::{fixture, s};

const MOMENTS: u32 = 10;

fn start(folder: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(args)
        .current_dir(folder)
        .env("HF_HUB_OFFLINE", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// The files below a path by their names.
fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.insert(path.display().to_string(), fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_killed_command_leaves_its_output_whole_or_absent() {
    let (llama, adapter) = (fixture("small-llama"), fixture("peft-small-llama-lora-head"));
    let (llama, adapter) = (s(&llama), s(&adapter));
    let whitened = [
        &["compress", "--model", llama, "--method", "whitened", "--ratio", "0.5", "--resume"][..],
        &["--calibration", "texts.txt", "-o", "out"],
    ]
    .concat();
    for args in [
        &["compress", "--model", llama, "--method", "svd", "--ratio", "0.5", "-o", "out"][..],
        &["compress", "--model", llama, "--method", "svd", "--ratio", "0.5", "--resume", "-o", "out"],
        &whitened,
        &["compress", "--model", llama, "--method", "quant", "--bits", "4", "-o", "out"],
        &["merge", "--model", llama, "--adapter", adapter, "-o", "out"],
        &["resize", "--adapter", adapter, "--rank", "1", "-o", "out"],
        &["convert", "--adapter", adapter, "--to", "lora", "--rank", "1", "-o", "out"],
        &["convert", "--model", llama, "--to", "gguf", "-o", "out"],
        &["datasets", "--texts-only", "-o", "out"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("texts.txt"), "the cat sat on the mat\n".repeat(20)).unwrap();
        let out = dir.path().join("out");
        let begun = Instant::now();
        assert!(start(dir.path(), args).wait().unwrap().success(), "{args:?}");
        let (lasted, whole) = (begun.elapsed(), files(&out));
        for moment in 0..MOMENTS {
            fs::remove_dir_all(&out).or_else(|_| fs::remove_file(&out)).unwrap();
            let mut child = start(dir.path(), args);
            sleep(lasted * moment / MOMENTS);
            child.kill().unwrap();
            child.wait().unwrap();
            if args[0] == "datasets" {
                // The folders of the data sets appear one by one, each whole.
                for folder in fs::read_dir(&out).into_iter().flatten().map(|entry| entry.unwrap().path()) {
                    if !folder.file_name().unwrap().to_str().unwrap().starts_with('.') {
                        let mut expected = whole.clone();
                        expected.retain(|file, _| Path::new(file).starts_with(&folder));
                        assert!(files(&folder) == expected, "{} after {moment} tenths", folder.display());
                    }
                }
            } else if out.exists() {
                assert!(files(&out) == whole, "{args:?}: a part of the output, killed after {moment} tenths");
                fs::remove_dir_all(&out).or_else(|_| fs::remove_file(&out)).unwrap();
            }
            assert!(start(dir.path(), args).wait().unwrap().success(), "{args:?} after a kill");
            assert!(files(&out) == whole, "{args:?}: another output after a kill");
        }
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let is_known = |name: &std::ffi::OsString| name == "out" || name == "texts.txt";
        // A file that is written under a temporary name has nobody to remove it.
        assert!(args[0] == "convert" || left.iter().all(is_known), "{args:?}: {left:?}");
    }
}

#[test]
fn a_fine_tuning_killed_again_and_again_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("r.jsonl"), "{\"prompt\":\"hi\",\"completion\":\"x y z\"}\n".repeat(16))
        .unwrap();
    let model = fixture("small-llama");
    let args = [
        "finetune",
        "--model",
        s(&model),
        "--train",
        "r.jsonl",
        "--dev",
        "r.jsonl",
        "--method",
        "lora",
        "--rank",
        "2",
        "--batch-size",
        "2",
        "--max-steps",
        "60",
        "--eval-every",
        "2",
        "--save-every",
        "2",
        "-o",
    ];
    let begun = Instant::now();
    assert!(start(dir.path(), &[&args[..], &["whole"]].concat()).wait().unwrap().success());
    let lasted = begun.elapsed();
    let resumed = [&args[..], &["killed", "--resume"]].concat();
    let killed = dir.path().join("killed");
    for moment in 1..MOMENTS {
        let mut child = start(dir.path(), &resumed);
        // Each gets a little further than its start.
        sleep(lasted / 4 + lasted * moment / 60);
        child.kill().unwrap();
        if child.wait().unwrap().success() {
            break;
        }
    }
    let is_done = killed.join("adapter/adapter_model.safetensors").exists();
    let ended = start(dir.path(), &resumed).wait().unwrap().success();
    assert!(ended || is_done);
    let weights =
        |run: &str| fs::read(dir.path().join(run).join("adapter/adapter_model.safetensors")).unwrap();
    assert!(weights("whole") == weights("killed"), "the resumed run differs");
}
