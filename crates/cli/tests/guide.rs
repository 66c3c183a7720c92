//! The commands of the guide and of the README run on the embedded models, one after the other, with fewer steps.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn page(name: &str) -> String {
    let path = root().join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Info string and body of each fenced block.
fn blocks(text: &str) -> Vec<(&str, &str)> {
    let fenced = text.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

/// The commands of a page's shell blocks, without those that build, need MPI or a download, or name a model of the reader's.
fn script(text: &str) -> String {
    let mut script = String::from("set -euo pipefail\nmkdir -p runs\n");
    for (_, body) in blocks(text).into_iter().filter(|(info, _)| *info == "sh") {
        let mut command = String::new();
        for line in body.lines() {
            command += line;
            command.push('\n');
            if line.ends_with('\\') {
                continue;
            }
            let is_run = !["cargo ", "L=", "mpirun "].iter().any(|start| command.starts_with(start));
            if is_run && !command.contains("path/to") && !command.contains("train.tsv --dev dev.tsv") {
                script += &fewer_steps(&command);
            }
            command.clear();
        }
    }
    script
}

/// The command with a fiftieth of its steps.
fn fewer_steps(command: &str) -> String {
    let mut words = command.split(' ').map(str::to_owned).collect::<Vec<_>>();
    for at in 1..words.len() {
        if words[at - 1] == "--max-steps" {
            let steps: usize = words[at].trim().parse().unwrap();
            words[at] = words[at].replace(&steps.to_string(), &(steps / 50).max(2).to_string());
        }
    }
    words.join(" ")
}

#[track_caller]
fn runs(name: &str, least: usize) {
    let script = script(&page(name));
    assert!(script.matches("$L ").count() >= least, "{name} has fewer commands than expected:\n{script}");
    let dir = tempfile::tempdir().unwrap();
    symlink(root().join("datasets"), dir.path().join("datasets")).unwrap();
    let mut bash = Command::new("bash");
    bash.current_dir(dir.path())
        .env("L", env!("CARGO_BIN_EXE_lowrank"))
        .args(["-c", &format!("set -x\n{script}")]);
    let output = bash.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {error}");
}

#[test]
fn the_chat_page_runs() {
    runs("docs/guide/chat.md", 8);
}

#[test]
fn the_classification_page_runs() {
    runs("docs/guide/classify.md", 8);
}

#[test]
fn the_compression_page_runs() {
    runs("docs/guide/compress.md", 8);
}

#[test]
fn the_comparison_page_runs() {
    runs("docs/guide/compare.md", 3);
}

#[test]
fn the_readme_runs() {
    runs("README.md", 10);
}

#[test]
fn code_of_the_library_page_is_that_of_the_examples() {
    let text = page("docs/guide/library.md");
    let marks: Vec<&str> =
        text.lines().filter_map(|line| line.strip_prefix("<!-- ")?.strip_suffix(" -->")).collect();
    let code: Vec<&str> =
        blocks(&text).into_iter().filter(|(info, _)| *info == "rust").map(|(_, body)| body).collect();
    assert!(marks.len() == code.len() && marks.len() >= 3, "{marks:?}");
    for (mark, code) in marks.into_iter().zip(code) {
        assert!(page(mark) == code, "docs/guide/library.md and {mark} differ");
    }
}

#[test]
fn what_needs_a_download_is_marked() {
    for name in ["chat.md", "classify.md", "compress.md", "compare.md", "library.md"] {
        for (info, body) in blocks(&page(&format!("docs/guide/{name}"))) {
            let is_far = body.contains("--model HuggingFace") || body.contains("--model hf");
            assert_eq!(is_far, info == "sh download", "{name}: {body}");
        }
    }
}
