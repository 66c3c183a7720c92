//! Power cuts at every change of names and every sync of a command: what was there before stays readable, what is
//! reported as done is on the disk, and the next run ends with the same bytes.
//!

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::{collections::BTreeMap, fs};

use lowrank_powercut::{Cut, Disk, Loss, Tree};
use rstest::rstest;

use common::{program, root};

fn run(disk: &Disk, args: &[&str]) -> (bool, String) {
    let output = program("lowrank")
        .args(args)
        .current_dir(disk.path())
        .env("HF_HUB_OFFLINE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// The files of a tree at or below a path, without those that `is_kept` refuses.
fn below(tree: &Tree, path: &str, is_kept: fn(&str) -> bool) -> BTreeMap<String, Arc<Vec<u8>>> {
    let inside = format!("{path}/");
    tree.iter()
        .filter(|(name, _)| *name == path || name.starts_with(&inside))
        .filter(|(name, _)| is_kept(name))
        .filter_map(|(name, bytes)| Some((name.clone(), Arc::clone(bytes.as_ref()?))))
        .collect()
}

fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

fn s(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every n-th of the cuts, so that some `count` are tried; the last one always.
fn some(cuts: Vec<Cut>, count: usize) -> Vec<Cut> {
    let (step, last) = (cuts.len().div_ceil(count), cuts.len() - 1);
    let kept = cuts.into_iter().enumerate().filter(|(index, _)| index % step == 0 || *index == last);
    kept.map(|(_, cut)| cut).collect()
}

fn everything(_: &str) -> bool {
    true
}

/// Times, which differ from run to run, are in the record, the log and the events.
fn is_weights(name: &str) -> bool {
    name.ends_with(".safetensors")
}

/// Cuts of one command that are tried; each is followed by the command itself.
const TRIED: usize = 40;

#[track_caller]
fn assert_success(result: (bool, String), what: &dyn std::fmt::Debug) {
    assert!(result.0, "{}\n{what:?}", result.1);
}

/// What a command writes is whole or as it was before after every cut, and there once the command has ended; the next run
/// succeeds and writes the same.
fn check_output(disk: &Disk, args: &[&str], output: &str) {
    let output = format!("/{output}");
    let present = || below(&disk.cut(Loss::None).tree, &output, everything);
    disk.settle();
    let before = present();
    assert_success(run(disk, args), &args);
    let whole = present();
    assert!(!whole.is_empty(), "{args:?} wrote nothing");
    let durable = below(&disk.cut(Loss::All).tree, &output, everything);
    assert!(durable == whole, "{args:?} has ended, and only {:?} is on the disk", durable.keys());
    let cuts = disk.cuts();
    eprintln!("{}: {} states", args.join(" "), cuts.len());
    for cut in &cuts {
        let left = below(&cut.tree, &output, everything);
        assert!(left == before || left == whole, "{args:?}: a part of the output\n{cut:?}");
    }
    for cut in some(cuts, TRIED) {
        disk.restore(&cut).unwrap();
        let again = run(disk, args);
        // Most commands refuse to replace an output.
        assert!(again.0 || below(&cut.tree, &output, everything) == whole, "{}\n{cut:?}", again.1);
        assert!(present() == whole, "{args:?}: another output after\n{cut:?}");
    }
}

#[rstest]
#[case::svd("compress --model {llama} --method svd --ratio 0.5 -o out")]
#[case::svd_to_resume("compress --model {llama} --method svd --ratio 0.5 --resume -o out")]
#[case::whitened(
    "compress --model {llama} --method whitened --ratio 0.5 --calibration texts.txt --resume -o out"
)]
#[case::two_sided(
    "compress --model {llama} --method two-sided --ratio 0.5 --calibration texts.txt --resume -o out"
)]
#[case::quant("compress --model {llama} --method quant --bits 4 -o out")]
#[case::nested("compress --model {llama} --method svd --ratio 0.5 -o out/deep/er")]
#[case::merge("merge --model {llama} --adapter {adapter} -o out")]
#[case::resize("resize --adapter {adapter} --rank 1 -o out")]
#[case::convert("convert --adapter {adapter} --to lora --rank 1 -o out")]
#[case::gguf("convert --model {llama} --to gguf -o out")]
fn an_output_is_whole_or_absent(#[case] command: &str) {
    let (llama, adapter) = (fixture("small-llama"), fixture("peft-small-llama-lora-head"));
    let args: Vec<&str> = command
        .split(' ')
        .map(|arg| match arg {
            "{llama}" => s(&llama),
            "{adapter}" => s(&adapter),
            arg => arg,
        })
        .collect();
    let disk = Disk::mount().unwrap();
    fs::write(disk.path().join("texts.txt"), "the cat sat on the mat\n".repeat(20)).unwrap();
    check_output(&disk, &args, args.last().unwrap());
}

/// Folders and files that exist already are replaced.
#[rstest]
#[case::folders("datasets --texts-only -o out", "out/mini-glue")]
#[case::table("logs out table.csv --names", "table.csv")]
#[case::parquet("logs out table.parquet --names", "table.parquet")]
fn an_output_is_replaced_at_once(#[case] command: &str, #[case] output: &str) {
    let args: Vec<&str> = command.split(' ').collect();
    let (disk, model) = (disk_with_rows(), fixture("small-llama"));
    let first = if args[0] == "logs" { finetune(s(&model), "4", &[]) } else { args.clone() };
    assert_success(run(&disk, &first), &first);
    if args[0] == "logs" {
        fs::write(disk.path().join(output), "an older table").unwrap();
    }
    check_output(&disk, &args, output);
}

/// A fine-tuning in eight steps with a checkpoint after every second one.
fn finetune<'a>(model: &'a str, steps: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = "finetune --train r.jsonl --dev r.jsonl --method lora --rank 2 --batch-size 2 --eval-every 2 --save-every 2";
    let scheduled = ["--scheduler", "constant", "--model", model, "--max-steps", steps, "-o", "out"];
    args.split(' ').chain(scheduled).chain(more.iter().copied()).collect()
}

fn disk_with_rows() -> Disk {
    let disk = Disk::mount().unwrap();
    let row = "{\"prompt\":\"hi\",\"completion\":\"x y z\"}\n";
    fs::write(disk.path().join("r.jsonl"), row.repeat(16)).unwrap();
    disk
}

/// A run that is resumed after a cut ends with the weights of one that was not cut off.
#[test]
fn a_fine_tuning_goes_on() {
    let (disk, model) = (disk_with_rows(), fixture("small-llama"));
    let (first, again) = (finetune(s(&model), "8", &[]), finetune(s(&model), "8", &["--resume"]));
    disk.settle();
    assert_success(run(&disk, &first), &first);
    let whole = below(&disk.cut(Loss::None).tree, "/out/adapter", is_weights);
    let durable = disk.cut(Loss::All);
    assert!(below(&durable.tree, "/out/adapter", is_weights) == whole, "the adapter is not on the disk");
    let done = |cut: &Cut| {
        let record = below(&cut.tree, "/out/run.json", everything);
        record.values().any(|bytes| String::from_utf8_lossy(bytes).contains(r#""status": "done""#))
    };
    assert!(done(&durable), "the run's record is not on the disk\n{durable:?}");
    let cuts = disk.cuts();
    eprintln!("{} states", cuts.len());
    for cut in some(cuts, 2 * TRIED) {
        disk.restore(&cut).unwrap();
        let left = below(&cut.tree, "/out/adapter", is_weights);
        assert!(left.is_empty() || left == whole, "a part of the adapter\n{cut:?}");
        if done(&cut) {
            assert!(left == whole, "a run that is done has no adapter\n{cut:?}");
            continue;
        }
        let resumed = cut.tree.contains_key("/out");
        assert_success(run(&disk, if resumed { &again } else { &first }), &cut);
        let ended = disk.cut(Loss::None);
        assert!(below(&ended.tree, "/out/adapter", is_weights) == whole, "another adapter after\n{cut:?}");
    }
}

/// A finished run that is being extended has its old adapter or the new one.
#[test]
fn an_extended_fine_tuning_keeps_what_it_had() {
    let (disk, model) = (disk_with_rows(), fixture("small-llama"));
    let (first, more) = (finetune(s(&model), "4", &[]), finetune(s(&model), "8", &["--extend"]));
    assert_success(run(&disk, &first), &first);
    disk.settle();
    let adapter = |cut: &Cut| below(&cut.tree, "/out/adapter", is_weights);
    let old = adapter(&disk.cut(Loss::None));
    assert_success(run(&disk, &more), &more);
    let new = adapter(&disk.cut(Loss::None));
    assert!(old != new);
    assert!(adapter(&disk.cut(Loss::All)) == new, "the adapter is not on the disk");
    let cuts = disk.cuts();
    eprintln!("{} states", cuts.len());
    for cut in &cuts {
        let left = adapter(cut);
        assert!(left == old || left == new, "neither adapter\n{cut:?}");
    }
    for cut in some(cuts, 2 * TRIED) {
        disk.restore(&cut).unwrap();
        let (succeeded, error) = run(&disk, &more);
        assert!(succeeded || error.contains("give a larger --max-steps"), "{error}\n{cut:?}");
        assert!(adapter(&disk.cut(Loss::None)) == new, "another adapter after\n{cut:?}");
    }
}
