//! The crates as seen by someone outside the workspace: packaged, and one at a time.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// An example as a throw-away crate that depends on one crate.
struct Alone {
    /// The crate.
    name: &'static str,
    /// The example.
    source: &'static str,
    /// Features of the crate.
    features: &'static str,
    /// Other dependencies, of the workspace's versions.
    others: &'static [&'static str],
    /// The cargo command for it.
    command: &'static [&'static str],
}

const ALONE: [Alone; 2] = [
    Alone {
        name: "lowrank-factor",
        source: "crates/factor/examples/truncate.rs",
        features: "[]",
        others: &[],
        // Quickly built, unlike the release profile's.
        command: &["run"],
    },
    Alone {
        name: "lowrank-adapters",
        source: "crates/adapters/examples/own_layer.rs",
        features: r#"["flex"]"#,
        others: &["burn", "burn-autodiff", "burn-flex"],
        // burn takes minutes to build a second time, with other features than those of the workspace.
        command: &["check", "--release"],
    },
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Standard output of a program that must succeed.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// The same for cargo: offline if everything is fetched already, otherwise with the network.
#[track_caller]
fn cargo(folder: &Path, args: &[&str], target: &Path) -> String {
    let command = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.current_dir(folder).args(args).args(more).arg("--target-dir").arg(target);
        command
    };
    let offline = command(&["--offline"]).output().unwrap();
    if offline.status.success() { String::from_utf8(offline.stdout).unwrap() } else { run(&mut command(&[])) }
}

/// Packages every library and the program, and unpacks them into `folder`; returns their folders there.
fn package(folder: &Path) -> Vec<PathBuf> {
    let mut args = vec!["package", "--workspace", "--no-verify", "--allow-dirty"];
    args.extend(
        ["xtask", "lowrank-tests", "lowrank-powercut"].into_iter().flat_map(|name| ["--exclude", name]),
    );
    cargo(root(), &args, folder);
    let archives = fs::read_dir(folder.join("package")).unwrap().map(|entry| entry.unwrap().path());
    let archives: Vec<PathBuf> =
        archives.filter(|path| path.extension().is_some_and(|end| end == "crate")).collect();
    let unpacked = folder.join("crates");
    fs::create_dir(&unpacked).unwrap();
    for archive in &archives {
        run(Command::new("tar").arg("-xzf").arg(archive).arg("-C").arg(&unpacked));
    }
    archives.iter().map(|path| unpacked.join(path.file_stem().unwrap())).collect()
}

/// A line `name = …` of a section of a manifest.
fn line<'a>(manifest: &'a str, section: &str, name: &str) -> &'a str {
    let body = manifest.split_once(&format!("\n[{section}]\n")).map_or("", |(_, body)| body);
    let body = body.split("\n[").next().unwrap();
    let found = body.lines().find(|line| line.split([' ', '=']).next() == Some(name));
    found.unwrap_or_else(|| panic!("no {name} in [{section}]"))
}

#[test]
fn every_crate_is_packaged_and_builds_outside_the_workspace() {
    // At one place and in the workspace's artifacts, so that what was built for the workspace or in an earlier run is not
    // built again.
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("packages");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let packages = package(&dir);
    let count = fs::read_dir(root().join("crates"))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().is_dir())
        .count();
    assert_eq!(packages.len(), count, "{packages:?}");
    let mut patches = String::new();
    for folder in &packages {
        let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        for key in ["description", "license", "readme", "keywords", "categories", "rust-version"] {
            line(&manifest, "package", key);
        }
        assert!(folder.join("README.md").is_file(), "{}", folder.display());
        let name = line(&manifest, "package", "name").split('"').nth(1).unwrap();
        patches += &format!("{name} = {{ path = {folder:?} }}\n");
    }
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, profile) = workspace.split_once("\n[profile.release]\n").unwrap();
    let profile = profile.split("\n[").next().unwrap();
    for Alone { name, source, features, others, command } in ALONE {
        let crate_dir = dir.join(format!("alone-{name}"));
        fs::create_dir_all(crate_dir.join("src")).unwrap();
        fs::copy(root().join(source), crate_dir.join("src/main.rs")).unwrap();
        // The versions of the workspace, offline too.
        fs::copy(root().join("Cargo.lock"), crate_dir.join("Cargo.lock")).unwrap();
        let others: String = others
            .iter()
            .map(|other| line(&workspace, "workspace.dependencies", other).to_owned() + "\n")
            .collect();
        let manifest = format!(
            "[package]\nname = \"alone-{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
             {name} = {{ version = \"0.1.0\", features = {features} }}\n{others}\n[patch.crates-io]\n{patches}\n\
             [profile.dev]\ndebug = false\n\n[profile.release]\n{profile}"
        );
        fs::write(crate_dir.join("Cargo.toml"), manifest).unwrap();
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        let printed = cargo(&crate_dir, &[command, &["--quiet"]].concat(), target);
        assert!(command != ["run"] || printed.lines().count() > 3, "{name}: {printed}");
    }
    let adapters = fs::read_to_string(root().join(ALONE[1].source)).unwrap();
    let code = adapters.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//"));
    let count = code.count();
    assert!(count < 40, "the example takes {count} lines");
}
