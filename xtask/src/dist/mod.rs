//! `cargo xtask dist`: what a release consists of, for one target.
//!
//! ```text
//! <output>/lowrank-<version>-<target>.tar.gz     the program, README, licences, man pages, completions
//! <output>/lowrank-<version>-<target>.cdx.json   the bill of materials
//! <output>/SHA256SUMS                            of all targets of this version
//! ```
//!
//! The program is linked statically against musl on Linux, so that it runs on any distribution and in an empty
//! container. The archive's bytes depend on the program's alone.

mod archive;
mod licences;
mod packages;
mod runtime;
mod sbom;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::runtime::Runtime;
use crate::cargo::{cargo, root};

/// The list of checksums.
const SUMS: &str = "SHA256SUMS";

/// Options of `dist`.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Target triple [default: this machine's, on Linux that of musl]
    #[arg(long)]
    target: Option<String>,
    /// Output folder
    #[arg(short, long, default_value = "target/dist")]
    output: PathBuf,
    /// Pack this program instead of building one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Let this program write the man pages and completions, if the packed one does not run here
    #[arg(long, value_name = "FILE")]
    manual: Option<PathBuf>,
}

/// Builds, packs, and describes.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let host = host()?;
    let target = options.target.clone().unwrap_or_else(|| default_target(&host));
    let program = match &options.program {
        Some(path) => path.clone(),
        None => build(&target, &host)?,
    };
    let bytes = fs::read(&program).with_context(|| format!("cannot read {}", program.display()))?;
    let is_static = !has_interpreter(&bytes);
    ensure!(
        is_static || !target.ends_with("-musl"),
        "{}: needs a dynamic loader, and a program for {target} must not",
        program.display()
    );
    let packages = packages::of_build(&target)?;
    let runtime = Runtime::of_target(&target)?;
    let version = &packages.first().context("a build without packages")?.version;
    let name = format!("lowrank-{version}-{target}");
    let time = time()?;

    let work = options.output.join(format!(".{name}.partial"));
    if work.exists() {
        fs::remove_dir_all(&work).with_context(|| format!("cannot clear {}", work.display()))?;
    }
    let make = |folder: &Path| {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))
    };
    make(&work)?;
    let runs_here = is_runnable(&target, &host);
    manual(options.manual.as_deref().unwrap_or(&program), runs_here || options.manual.is_some(), &work)?;
    if runs_here {
        check_version(&program, version)?;
    }
    write(&work.join(program_name(&target)), &bytes)?;
    for file in ["README.md", "LICENSE-MIT", "LICENSE-APACHE"] {
        write(
            &work.join(file),
            &fs::read(root().join(file)).with_context(|| format!("cannot read {file}"))?,
        )?;
    }
    write(&work.join("THIRD-PARTY.txt"), licences::document(&packages, &runtime)?.as_bytes())?;

    let archive = options.output.join(format!("{name}.tar.gz"));
    write(&archive, &archive::pack(&work, &name, time)?)?;
    fs::remove_dir_all(&work).with_context(|| format!("cannot clear {}", work.display()))?;
    let bill = sbom::document(&packages, &runtime, &target, &rfc3339(time))?;
    write(&options.output.join(format!("{name}.cdx.json")), bill.as_bytes())?;
    write(
        &options.output.join(SUMS),
        archive::sums(&options.output, &format!("lowrank-{version}-"))?.as_bytes(),
    )?;
    let size = fs::metadata(&archive)?.len();
    println!(
        "{}: {:.1} MB, {}, {} packages",
        archive.display(),
        size as f64 / 1e6,
        if is_static { "static" } else { "needs the system's C library" },
        packages.len()
    );
    Ok(true)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// What a program prints that must succeed.
fn printed(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {program}"))?;
    ensure!(output.status.success(), "{program} fails: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn rustc() -> Command {
    Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
}

/// The triple of this machine.
fn host() -> Result<String> {
    let text = printed(rustc().arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("rustc does not say what its host is")?.to_owned())
}

fn default_target(host: &str) -> String {
    host.strip_suffix("-linux-gnu").map_or(host.to_owned(), |begin| format!("{begin}-linux-musl"))
}

/// Whether a program for the target runs on the host: a static one needs no C library.
fn is_runnable(target: &str, host: &str) -> bool {
    target == host || target == default_target(host)
}

/// Builds `lowrank` for a target, from the lock file.
fn build(target: &str, host: &str) -> Result<PathBuf> {
    let libraries = printed(rustc().args(["--print", "target-libdir", "--target", target]))
        .with_context(|| format!("unknown target {target}"))?;
    ensure!(
        Path::new(&libraries).is_dir(),
        "the standard library for {target} is not installed; run `rustup target add {target}`"
    );
    let mut command = cargo();
    if target != host {
        prepare(&mut command, target, host)?;
    }
    eprintln!("building lowrank for {target}");
    command.args(["rustc", "--release", "--locked", "--package", "lowrank", "--bin", "lowrank"]);
    // A flag for this crate alone: with RUSTFLAGS everything would be built again.
    command.args(["--target", target, "--", "-C", "strip=symbols"]);
    ensure!(command.status().context("cannot run cargo")?.success(), "lowrank cannot be built for {target}");
    let folder = env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), |dir| root().join(dir));
    Ok(folder.join(target).join("release").join(program_name(target)))
}

fn program_name(target: &str) -> &'static str {
    if target.contains("windows") { "lowrank.exe" } else { "lowrank" }
}

/// Chooses the C compiler and the linker for another target; a few dependencies are in C.
fn prepare(command: &mut Command, target: &str, host: &str) -> Result<()> {
    let (cc, linker) = (
        format!("CC_{}", target.replace('-', "_")),
        format!("CARGO_TARGET_{}_LINKER", target.replace('-', "_").to_uppercase()),
    );
    if env::var_os(&cc).is_some() || !target.ends_with("-linux-musl") {
        return Ok(());
    }
    let arch = target.split('-').next().unwrap_or_default();
    let is_native = is_runnable(target, host);
    let mut tried = vec![format!("{arch}-linux-musl-gcc")];
    if is_native {
        tried.push("musl-gcc".to_owned());
    }
    let found = tried.iter().find(|name| Command::new(name).arg("--version").output().is_ok());
    let Some(compiler) = found else {
        bail!(
            "no C compiler for {target}: looked for {}; install one{}, or name it in {cc} and {linker}",
            tried.join(" and "),
            if is_native { " (Debian's musl-tools)" } else { " (musl.cc or zig have them)" }
        );
    };
    command.env(cc, compiler);
    if !is_native && env::var_os(&linker).is_none() {
        // It comes with Rust, and so do musl's startup files.
        command.env(linker, "rust-lld");
    }
    Ok(())
}

/// Lets a program write its man pages and completions.
fn manual(program: &Path, runs_here: bool, folder: &Path) -> Result<()> {
    ensure!(
        runs_here,
        "the program does not run on this machine; give one that does with --manual, for the man pages"
    );
    let made = folder.join("made");
    printed(absolute(program)?.arg("manual").arg("-o").arg(&made))?;
    for part in ["man", "completions"] {
        fs::rename(made.join(part), folder.join(part)).with_context(|| format!("the manual lacks {part}"))?;
    }
    fs::remove_dir(&made).context("the manual has unknown parts")
}

/// The program, by its whole path: without a slash it would be looked for among the system's.
fn absolute(program: &Path) -> Result<Command> {
    let path = program.canonicalize().with_context(|| format!("no program {}", program.display()))?;
    Ok(Command::new(path))
}

/// The program must start without anything around it.
fn check_version(program: &Path, version: &str) -> Result<()> {
    let said = printed(absolute(program)?.arg("--version").env_clear().current_dir("/"))?;
    ensure!(said == format!("lowrank {version}"), "the program says that it is '{said}', not {version}");
    Ok(())
}

/// Whether a program is an ELF file that asks for a dynamic loader.
fn has_interpreter(program: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, len: usize| -> Option<usize> {
        let bytes = program.get(at..at.checked_add(len)?)?;
        Some(bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | usize::from(byte)))
    };
    // The targets are 64-bit and little-endian.
    let headers = || Some((number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?));
    let Some((start, size, count)) = program.starts_with(b"\x7fELF\x02\x01").then(headers).flatten() else {
        return false;
    };
    (0..count).any(|index| {
        let at = index.checked_mul(size).and_then(|offset| start.checked_add(offset));
        at.and_then(|at| number(at, 4)) == Some(PT_INTERP as usize)
    })
}

/// The time that the files bear: `SOURCE_DATE_EPOCH`, or that of the commit.
fn time() -> Result<u64> {
    if let Ok(text) = env::var("SOURCE_DATE_EPOCH") {
        return text.trim().parse().context("SOURCE_DATE_EPOCH is not a number of seconds");
    }
    let commit = printed(Command::new("git").current_dir(root()).args(["log", "-1", "--format=%ct"]));
    Ok(commit.ok().and_then(|text| text.parse().ok()).unwrap_or(0))
}

/// Seconds since 1970 as `2026-11-29T07:00:00Z`.
fn rfc3339(time: u64) -> String {
    let (days, rest) = (time / 86_400, time % 86_400);
    // Days from the civil calendar (Hinnant), with years that begin in March.
    let z = days + 719_468;
    let (era, of_era) = (z / 146_097, z % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let part = (5 * of_year + 2) / 153;
    let (day, month) = (of_year - (153 * part + 2) / 5 + 1, if part < 10 { part + 3 } else { part - 9 });
    let year = year + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_the_calendar_has_them() {
        for (time, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_767_225_599, "2025-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(time), text);
        }
    }

    #[test]
    fn linux_is_musl_by_default() {
        assert_eq!(default_target("x86_64-unknown-linux-gnu"), "x86_64-unknown-linux-musl");
        assert_eq!(default_target("aarch64-apple-darwin"), "aarch64-apple-darwin");
        assert!(is_runnable("x86_64-unknown-linux-musl", "x86_64-unknown-linux-gnu"));
        assert!(!is_runnable("x86_64-unknown-linux-gnu", "x86_64-unknown-linux-musl"));
        assert!(!is_runnable("aarch64-unknown-linux-musl", "x86_64-unknown-linux-gnu"));
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() {
        let this = fs::read(env::current_exe().unwrap()).unwrap();
        assert!(has_interpreter(&this));
        assert!(!has_interpreter(&this[..100]) && !has_interpreter(b"#!/bin/sh\n"));
    }
}
