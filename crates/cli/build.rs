//! Passes the version of burn in the lock file to the program, for its run records.

use std::{env, fs, path::Path};

fn main() {
    let folder = env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    // That of the workspace, or of the package.
    let lock =
        Path::new(&folder).ancestors().map(|folder| folder.join("Cargo.lock")).find(|path| path.is_file());
    let version = lock.and_then(|lock| {
        println!("cargo::rerun-if-changed={}", lock.display());
        let text = fs::read_to_string(lock).ok()?;
        let (_, rest) = text.split_once("\nname = \"burn\"\nversion = \"")?;
        Some(rest.split_once('"')?.0.to_owned())
    });
    println!("cargo::rustc-env=LOWRANK_BURN_VERSION={}", version.as_deref().unwrap_or("unknown"));
}
