//! A grid of the stand-in in a folder of the test.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A grid's folder and the inputs needed to run it.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.dir.path().join("data")).unwrap();
        let config = r#"{
            "about": "A test.",
            "models": ["org/tiny"],
            "data": "data",
            "tasks": ["cola", "rte"],
            "methods": ["full", "lora"],
            "seeds": [0],
            "jobs": 2,
            "defaults": { "max_steps": 5, "eval_every": null, "scheduler": null, "warmup_ratio": null },
            "method": {
                "full": { "lr": 5e-5 },
                "lora": { "lr": 1e-3, "rank": 8, "alpha": null, "targets": "query,value", "rslora": true }
            }
        }"#;
        fs::write(bench.dir.path().join("mine.json"), config).unwrap();
        bench
    }

    pub(crate) fn grid(&self) -> PathBuf {
        self.dir.path().join("grid")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_in("grid", args)
    }

    pub(crate) fn command_in(&self, grid: &str, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.current_dir(self.dir.path());
        command.args(["experiment", "glue", "--config", "mine.json", "-o", grid]);
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake-lowrank.sh");
        command.arg("--lowrank").arg(fake).args(args).env("FAKE_LOG", self.dir.path().join("fake.log"));
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// The lines of the stand-in that begin with `word`, without it.
    pub(crate) fn logged(&self, word: &str) -> Vec<String> {
        let text = fs::read_to_string(self.dir.path().join("fake.log")).unwrap_or_default();
        text.lines().filter_map(|line| line.strip_prefix(word)).map(|line| line.trim().to_owned()).collect()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Cells' ids depend on the location of the test's data.
pub(crate) fn without_hashes(text: &str) -> String {
    let word = |word: &str| match word.rsplit_once("-") {
        Some((name, hash)) if hash.len() == 10 && hash.chars().all(|c| c.is_ascii_hexdigit()) => {
            format!("{name}-HASH")
        }
        _ => word.to_owned(),
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

#[track_caller]
pub(crate) fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}
