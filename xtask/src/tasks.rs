//! The tasks of one or two commands: check, test, bench, datasets.

use std::{
    io::{BufRead, BufReader, Write, stdout},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};

use crate::cargo::{Backend, Build, cargo};

/// Runs a command; returns whether it succeeded.
fn succeeds(command: &mut Command) -> Result<bool> {
    let program = command.get_program().to_string_lossy().into_owned();
    Ok(command.status().with_context(|| format!("cannot run {program}"))?.success())
}

/// Formatting, then lints with warnings denied.
pub(crate) fn check() -> Result<bool> {
    let lints = ["clippy", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"];
    Ok(succeeds(cargo().args(["fmt", "--all", "--check"]))? && succeeds(cargo().args(lints))?)
}

/// `cargo test --release --workspace`, its output passed on, then the totals over all test programs.
pub(crate) fn test(backend: Backend, args: &[String]) -> Result<bool> {
    let mut command = cargo();
    // The profile of the experiments: burn is built once for both, and numeric tests are fast.
    command.args(["test", "--release"]);
    let picked = packages(args);
    if picked.is_empty() {
        command.arg("--workspace");
    }
    command.args(backend.features(&tested(backend, &picked)));
    // Without it, cargo stops at the first failing program and the totals would be partial.
    command.arg("--no-fail-fast").args(args);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cannot run cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut totals = Totals::default();
    let mut out = stdout().lock();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        out.write_all(&line)?;
        out.write_all(b"\n")?;
        totals.add(&String::from_utf8_lossy(&line));
    }
    let success = child.wait()?.success();
    writeln!(out, "\ntotal: {totals}")?;
    Ok(success)
}

/// The packages that arguments for cargo pick: `-p NAME`, `-pNAME`, `--package NAME`, `--package=NAME`.
fn packages(args: &[String]) -> Vec<&str> {
    let mut args = args.iter().map(String::as_str).take_while(|&arg| arg != "--");
    let mut names = Vec::new();
    while let Some(arg) = args.next() {
        match arg {
            "-p" | "--package" => names.extend(args.next()),
            _ => names.extend(arg.strip_prefix("--package=").or_else(|| arg.strip_prefix("-p"))),
        }
    }
    names
}

/// The packages whose tests are to run on a backend: those picked, or the command and, for GPUs, those whose tests
/// choose a backend by themselves.
fn tested<'a>(backend: Backend, picked: &[&'a str]) -> Vec<&'a str> {
    match (picked, backend.is_gpu()) {
        ([], true) => vec!["lowrank", "lowrank-kernels", "lowrank-tests"],
        ([], false) => vec!["lowrank"],
        (picked, _) => picked.to_vec(),
    }
}

/// The counts of the test programs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Totals {
    programs: u64,
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl Totals {
    /// Counts a line `test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; …`; other lines are
    /// ignored.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result: ") else { return };
        self.programs += 1;
        let words: Vec<&str> = result.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
        for pair in words.windows(2) {
            let Ok(count) = pair[0].parse::<u64>() else { continue };
            match pair[1] {
                "passed" => self.passed += count,
                "failed" => self.failed += count,
                "ignored" => self.ignored += count,
                _ => {}
            }
        }
    }
}

impl std::fmt::Display for Totals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { programs, passed, failed, ignored } = self;
        write!(f, "{passed} passed, {failed} failed, {ignored} ignored in {programs} test programs")
    }
}

/// `cargo bench`.
pub(crate) fn bench(args: &[String]) -> Result<bool> {
    let picks_packages = args.iter().any(|arg| arg == "-p" || arg.starts_with("--package"));
    let mut command = cargo();
    command.arg("bench");
    if !picks_packages {
        command.arg("--workspace");
    }
    succeeds(command.args(["--benches"]).args(args))
}

/// `lowrank datasets`.
pub(crate) fn datasets(build: &Build, output: &str) -> Result<bool> {
    succeeds(Command::new(build.lowrank()?).args(["datasets", "-o", output]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_of_the_packages_under_test() {
        let of = |backend: Backend, args: &str| {
            let args: Vec<String> = args.split_whitespace().map(String::from).collect();
            backend.features(&tested(backend, &packages(&args))).join(" ")
        };
        assert_eq!(of(Backend::Flex, "-p lowrank"), "");
        assert_eq!(of(Backend::Ndarray, "-- -p name"), "--features lowrank/ndarray");
        assert_eq!(
            of(Backend::Vulkan, "-p lowrank-kernels --package=lowrank-tests --lib"),
            "--features lowrank-kernels/vulkan --features lowrank-tests/vulkan"
        );
        let all =
            "--features lowrank/vulkan --features lowrank-kernels/vulkan --features lowrank-tests/vulkan";
        assert_eq!(of(Backend::Vulkan, "--no-run"), all);
    }

    #[test]
    fn totals_add_up_over_programs() {
        let mut totals = Totals::default();
        for line in [
            "running 3 tests",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.05s",
            "test result: FAILED. 29 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.27s",
            "4 passed",
        ] {
            totals.add(line);
        }
        assert_eq!(totals.to_string(), "32 passed, 2 failed, 1 ignored in 2 test programs");
    }
}
