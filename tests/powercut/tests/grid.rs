//! A grid that a power cut ends.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::{collections::BTreeMap, process::Output};

use lowrank_powercut::{Cut, Disk, Loss};
use serde_json::Value;

use common::{program, root};

/// Cuts that are tried; each is followed by the rest of the grid.
const TRIED: usize = 12;

/// A tuning and four models that are scored, three of them compressed before.
fn grid(disk: &Disk) -> Output {
    let mut command = program("xtask");
    command.current_dir(root()).args(["experiment", "compress", "--smoke", "--methods", "dense,plain"]);
    command.args(["--max-steps", "6", "--set", "eval_every=2", "--set", "save_every=2", "-o"]);
    command.arg(disk.path().join("grid")).output().unwrap()
}

/// The evaluations of the records that say that they are done.
fn results(cut: &Cut) -> BTreeMap<&str, Value> {
    let records = cut.tree.iter().filter(|(path, _)| path.ends_with("/run.json"));
    let info = records.map(|(path, bytes)| {
        let record: Value = serde_json::from_slice(bytes.as_ref().unwrap()).unwrap();
        (path.as_str(), record["train_info"].clone())
    });
    info.filter(|(_, info)| info["status"] == "done")
        .map(|(path, info)| (path, info["evals"].clone()))
        .collect()
}

#[test]
fn a_grid_goes_on_after_a_power_cut() {
    let disk = Disk::mount().unwrap();
    let run = |cut: &Cut| {
        let output = grid(&disk);
        assert!(output.status.success(), "{}\n{cut:?}", String::from_utf8_lossy(&output.stderr));
    };
    run(&disk.cut(Loss::None));
    let (undisturbed, durable) = (disk.cut(Loss::None), disk.cut(Loss::All));
    let whole = results(&undisturbed);
    assert_eq!(whole.len(), 5, "{:?}", whole.keys());
    assert_eq!(results(&durable), whole, "results of a grid that has ended are not on the disk");
    let cuts = disk.cuts();
    eprintln!("{} states", cuts.len());
    for cut in &cuts {
        // What a cell has printed counts as its result once it has this name.
        let is_printed = |path: &str| {
            path.strip_prefix("/grid/cells/")
                .is_some_and(|name| !name.contains('/') && name.ends_with(".json"))
        };
        for (path, bytes) in cut.tree.iter().filter(|(path, _)| is_printed(path)) {
            assert!(bytes.as_ref().unwrap().ends_with(b"}\n"), "a part of {path}\n{cut:?}");
        }
    }
    let step = cuts.len().div_ceil(TRIED);
    for cut in cuts.into_iter().step_by(step) {
        disk.restore(&cut).unwrap();
        run(&cut);
        assert_eq!(results(&disk.cut(Loss::None)), whole, "{cut:?}");
    }
}
