//! `cargo xtask dist`: what is in a release, and that its bytes depend on nothing else.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

/// A stand-in for `lowrank`, which says its version and writes a manual.
const PROGRAM: &str = r#"#!/bin/sh
case $1 in
  --version) echo "lowrank VERSION" ;;
  manual) mkdir -p "$3/man" "$3/completions" && echo x > "$3/man/lowrank.1" && echo y > "$3/completions/_lowrank" ;;
  *) exit 1 ;;
esac
"#;

fn dist(folder: &Path, program: &str, more: &[&str]) -> Output {
    let path = folder.join("program");
    fs::write(&path, program).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("dist").arg("-o").arg(folder.join("out")).arg("--program").arg(&path).args(more);
    // Each test writes to a separate folder, since tests run at the same time.
    command.env("SOURCE_DATE_EPOCH", "1700000000").output().unwrap()
}

fn unpacked(bytes: &[u8]) -> BTreeMap<String, (u32, u64, String)> {
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes));
    let mut found = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
        let (mode, time) = (header.mode().unwrap(), header.mtime().unwrap());
        let (path, mut text) = (entry.path().unwrap().display().to_string(), String::new());
        entry.read_to_string(&mut text).unwrap();
        found.insert(path, (mode, time, text));
    }
    found
}

#[test]
fn a_release_is_complete_and_the_same_twice() {
    let version = env!("CARGO_PKG_VERSION");
    let program = PROGRAM.replace("VERSION", version);
    let target = "x86_64-unknown-linux-musl";
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let manual = one.path().join("program");
    for folder in [&one, &other] {
        let output =
            dist(folder.path(), &program, &["--target", target, "--manual", manual.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let name = format!("lowrank-{version}-{target}");
    let files = [format!("{name}.tar.gz"), format!("{name}.cdx.json"), "SHA256SUMS".to_owned()];
    for file in &files {
        let [a, b] = [&one, &other].map(|folder| fs::read(folder.path().join("out").join(file)).unwrap());
        assert!(a == b, "{file} differs");
    }
    let out = one.path().join("out");
    let sums = fs::read_to_string(out.join("SHA256SUMS")).unwrap();
    assert_eq!(sums.lines().count(), 2, "{sums}");
    let checked =
        Command::new("sha256sum").args(["--strict", "-c", "SHA256SUMS"]).current_dir(&out).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));

    let archive = unpacked(&fs::read(out.join(&files[0])).unwrap());
    let names: Vec<&str> = archive.keys().filter_map(|path| path.strip_prefix(&name)).collect();
    assert_eq!(
        names,
        [
            "/",
            "/LICENSE-APACHE",
            "/LICENSE-MIT",
            "/README.md",
            "/THIRD-PARTY.txt",
            "/completions/",
            "/completions/_lowrank",
            "/lowrank",
            "/man/",
            "/man/lowrank.1"
        ]
    );
    for (path, (mode, time, _)) in &archive {
        assert_eq!(*time, 1_700_000_000, "{path}");
        let is_run = path.ends_with('/') || path.ends_with("/lowrank");
        assert_eq!(*mode, if is_run { 0o755 } else { 0o644 }, "{path}");
    }
    let third = &archive[&format!("{name}/THIRD-PARTY.txt")].2;
    assert!(third.contains("\nclap 4.") && third.contains("Permission is hereby granted, free of charge"));
    // The compiler's libraries, and what packages have taken over from others.
    assert!(
        third.contains("\nrust-std 1.") && third.contains("\nmusl: MIT") && third.contains("Rich Felker")
    );
    assert!(third.contains("Copyright notices for The Rust Standard Library") && !third.contains("<html"));
    assert!(third.contains("(third_party/fiat/LICENSE)"));
    check_bill(&fs::read_to_string(out.join(&files[1])).unwrap(), third);
}

/// The fields that CycloneDX 1.5 requires, and the references among them.
#[track_caller]
fn check_bill(text: &str, licences: &str) {
    let bill: Value = serde_json::from_str(text).unwrap();
    assert_eq!((&bill["bomFormat"], &bill["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    assert_eq!(
        (&bill["version"], &bill["metadata"]["timestamp"]),
        (&1.into(), &"2023-11-14T22:13:20Z".into())
    );
    let serial = bill["serialNumber"].as_str().unwrap().strip_prefix("urn:uuid:").unwrap();
    let lengths: Vec<usize> = serial.split('-').map(str::len).collect();
    assert!(lengths == [8, 4, 4, 4, 12] && serial.chars().all(|c| c == '-' || c.is_ascii_hexdigit()));
    let main = &bill["metadata"]["component"];
    assert_eq!((&main["type"], &main["name"]), (&"application".into(), &"lowrank".into()));
    let components = bill["components"].as_array().unwrap();
    assert!(components.len() > 100, "{}", components.len());
    let (mut refs, mut runtime) = (BTreeSet::new(), Vec::new());
    for component in components.iter().chain([main]) {
        let text = |key: &str| component[key].as_str().unwrap_or_else(|| panic!("{component}: no {key}"));
        assert!(refs.insert(text("bom-ref")), "{component} twice");
        assert!(component["licenses"][0]["expression"].is_string(), "{component}: no licence");
        if text("purl").starts_with("pkg:generic/") {
            runtime.push(text("name"));
            continue;
        }
        assert_eq!(
            text("purl"),
            format!("pkg:cargo/{}@{}", text("name"), text("version").replace('+', "%2B"))
        );
        let is_ours = text("name").starts_with("lowrank");
        if !is_ours {
            assert_eq!(component["hashes"][0]["content"].as_str().unwrap().len(), 64, "{component}");
            let line = format!("\n{} {}: ", text("name"), text("version"));
            assert!(licences.contains(&line), "{line} has no licence");
        }
    }
    assert_eq!(runtime, ["rust-std", "musl"]);
    let names = |name: &str| components.iter().any(|component| component["name"] == name);
    assert!(names("lowrank-kernels") && names("burn") && names("mimalloc"));
    // Of tests only.
    assert!(!names("assert_cmd") && !names("proptest") && !names("xtask"));
    let dependencies = bill["dependencies"].as_array().unwrap();
    let of: BTreeSet<&str> = dependencies.iter().map(|entry| entry["ref"].as_str().unwrap()).collect();
    assert_eq!(of, refs);
    for entry in dependencies {
        for on in entry["dependsOn"].as_array().unwrap() {
            assert!(refs.contains(on.as_str().unwrap()), "{on} is missing");
        }
    }
}

#[test]
fn what_cannot_be_released_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let program = PROGRAM.replace("VERSION", "9.9.9");
    for (program, more, part) in [
        (program.as_str(), &[][..], "9.9.9"),
        ("#!/bin/sh\nexit 1\n", &[], "fails"),
        (&program, &["--target", "riscv64gc-unknown-linux-gnu"], "--manual"),
    ] {
        let output = dist(folder.path(), program, more);
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(part), "{part}: {error}");
        assert!(!folder.path().join("out").join("SHA256SUMS").exists());
    }
    let program = fs::read(env!("CARGO_BIN_EXE_xtask")).unwrap();
    if cfg!(all(target_env = "gnu", target_os = "linux")) {
        let path = folder.path().join("dynamic");
        fs::write(&path, program).unwrap();
        let args = ["dist", "--target", "x86_64-unknown-linux-musl", "--program"];
        let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(args).arg(&path).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains("needs a dynamic loader"), "{error}");
    }
}
