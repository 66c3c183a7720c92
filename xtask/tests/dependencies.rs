//! The sources and licences of all dependencies, as deny.toml has them: `cargo deny check licenses sources` without
//! cargo-deny, which takes minutes to install.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The list `allow` of deny.toml.
fn allowed() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("deny.toml")).unwrap();
    let (_, list) = text.split_once("\nallow = [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Whether a licence expression can be met with the allowed licences: SPDX's operators, and the `/` of old manifests.
fn is_met(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let text = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = text.split_whitespace().collect();
    let mut at = 0;
    let met = any(&words, &mut at, allowed);
    met && at == words.len()
}

fn any(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = all(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        met |= all(words, at, allowed);
    }
    met
}

fn all(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        met &= one(words, at, allowed);
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &BTreeSet<String>) -> bool {
    let Some(&word) = words.get(*at) else { return false };
    *at += 1;
    if word == "(" {
        let met = any(words, at, allowed);
        let is_closed = words.get(*at) == Some(&")");
        *at += usize::from(is_closed);
        return met && is_closed;
    }
    let mut name = word.to_owned();
    if let [Some(&"WITH"), Some(exception)] = [words.get(*at), words.get(*at + 1)] {
        name = format!("{word} WITH {exception}");
        *at += 2;
    }
    allowed.contains(&name)
}

#[test]
fn expressions_are_those_of_spdx() {
    let allowed = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"].map(str::to_owned).into();
    for (expression, met) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("MIT AND (GPL-3.0 OR ISC)", true),
        ("(MIT OR GPL-3.0) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("MIT AND ISC OR GPL-3.0", true),
        ("", false),
        ("MIT ISC", false),
        ("(MIT", false),
        ("OR MIT", false),
    ] {
        assert_eq!(is_met(expression, &allowed), met, "{expression}");
    }
}

/// All features and all targets: what anyone could build.
#[test]
fn dependencies_have_allowed_sources_and_licences() {
    let metadata = |more: &[&str]| {
        let args = ["metadata", "--format-version", "1", "--all-features", "--locked"];
        Command::new(env!("CARGO")).current_dir(root()).args(args).args(more).output().unwrap()
    };
    // What other targets need may not have been fetched.
    let mut output = metadata(&["--offline"]);
    if !output.status.success() {
        output = metadata(&[]);
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let allowed = allowed();
    assert!(allowed.contains("MIT") && allowed.len() > 5, "{allowed:?}");
    // Optional dependencies that no feature of ours enables are listed too, but not in the tree.
    let args = ["tree", "--workspace", "--all-features", "--target", "all", "--locked", "--prefix", "none"];
    let tree = Command::new(env!("CARGO")).current_dir(root()).args(args).output().unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let tree = String::from_utf8(tree.stdout).unwrap();
    let used: BTreeSet<String> = tree
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(" v")?;
            Some(format!("{name} {}", rest.split_whitespace().next()?))
        })
        .collect();
    assert!(used.len() > 300, "{}", used.len());
    let mut wrong = Vec::new();
    for package in metadata["packages"].as_array().unwrap() {
        let text = |key: &str| package[key].as_str().unwrap_or_default();
        let name = format!("{} {}", text("name"), text("version"));
        if !used.contains(&name) {
            continue;
        }
        let is_ours = package["source"].is_null() && Path::new(text("manifest_path")).starts_with(root());
        if !is_ours && text("source") != "registry+https://github.com/rust-lang/crates.io-index" {
            wrong.push(format!("{name} comes from {}", package["source"]));
        }
        if !is_met(text("license"), &allowed) {
            wrong.push(format!("{name} is under {}", package["license"]));
        }
    }
    assert!(wrong.is_empty(), "deny.toml allows none of these:\n{}", wrong.join("\n"));
}
