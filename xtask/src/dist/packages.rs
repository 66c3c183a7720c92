//! The packages that a build of `lowrank` is made of, from `cargo metadata`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cargo::{cargo, root};

/// A package of the build.
#[derive(Clone, Debug)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression; empty if the package names none.
    pub(crate) licence: String,
    pub(crate) repository: Option<String>,
    /// Whether it is one of the workspace.
    pub(crate) is_ours: bool,
    /// Its SHA-256 in the lock file.
    pub(crate) checksum: Option<String>,
    /// Its sources.
    pub(crate) folder: PathBuf,
    /// The identities of the packages that it is built on.
    pub(crate) dependencies: BTreeSet<String>,
}

impl Package {
    /// Its package URL.
    pub(crate) fn purl(&self) -> String {
        // `+`, which separates build metadata, must be escaped there.
        format!("pkg:cargo/{}@{}", self.name, self.version.replace('+', "%2B"))
    }
}

/// `lowrank`, then everything that its program for a target is built from and with, by name and version.
pub(crate) fn of_build(target: &str) -> Result<Vec<Package>> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", target]);
    let output = command.output().context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo metadata fails: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let lock = fs::read_to_string(root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let mut packages = select(&metadata, &checksums(&lock), "lowrank")?;
    let used = tree(target)?;
    packages.retain(|package| used.contains(&(package.name.clone(), package.version.clone())));
    Ok(packages)
}

/// The names and versions of the packages that are built. The metadata also have optional ones that no feature enables.
fn tree(target: &str) -> Result<BTreeSet<(String, String)>> {
    let mut command = cargo();
    command.args(["tree", "--locked", "--package", "lowrank", "--target", target]);
    let output = command.args(["--edges", "normal,build", "--prefix", "none"]).output();
    let output = output.context("cannot run cargo")?;
    if !output.status.success() {
        bail!("cargo tree fails: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let package = |line: &str| {
        let (name, rest) = line.split_once(" v")?;
        Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
    };
    Ok(String::from_utf8_lossy(&output.stdout).lines().filter_map(package).collect())
}

fn select(
    metadata: &Value,
    checksums: &BTreeMap<(String, String), String>,
    name: &str,
) -> Result<Vec<Package>> {
    let by_id: BTreeMap<&str, &Value> =
        list(&metadata["packages"]).filter_map(|package| Some((package["id"].as_str()?, package))).collect();
    let nodes: BTreeMap<&str, &Value> =
        list(&metadata["resolve"]["nodes"]).filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let first = by_id.iter().find(|(_, package)| package["name"] == name && package["source"].is_null());
    let (&first, _) = first.with_context(|| format!("cargo metadata has no package {name}"))?;
    let (mut packages, mut seen, mut open) = (Vec::new(), BTreeSet::from([first]), VecDeque::from([first]));
    while let Some(id) = open.pop_front() {
        let package = by_id.get(id).with_context(|| format!("cargo metadata lacks {id}"))?;
        let mut dependencies = BTreeSet::new();
        for dependency in nodes.get(id).into_iter().flat_map(|node| list(&node["deps"])) {
            // Those of tests are not in the program.
            let is_built = list(&dependency["dep_kinds"]).any(|kind| kind["kind"] != "dev");
            let Some(id) = dependency["pkg"].as_str().filter(|_| is_built) else { continue };
            dependencies.insert(id.to_owned());
            if seen.insert(id) {
                open.push_back(id);
            }
        }
        let text = |key: &str| package[key].as_str().unwrap_or_default().to_owned();
        let key = (text("name"), text("version"));
        packages.push(Package {
            id: id.to_owned(),
            checksum: checksums.get(&key).cloned(),
            name: key.0,
            version: key.1,
            // The form of old manifests.
            licence: text("license").replace('/', " OR ").replace("  ", " "),
            repository: package["repository"].as_str().map(str::to_owned),
            is_ours: package["source"].is_null(),
            folder: Path::new(&text("manifest_path")).parent().unwrap_or(Path::new("")).to_owned(),
            dependencies,
        });
    }
    packages[1..].sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    Ok(packages)
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The checksums of a lock file by name and version.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]").skip(1);
    blocks
        .filter_map(|block| {
            Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tests_and_what_nothing_uses_are_not_in_the_build() {
        let package = |name: &str, source: Value| {
            json!({"id": name, "name": name, "version": "1.0.0+x", "license": "MIT/Apache-2.0", "source": source,
                   "manifest_path": format!("/src/{name}/Cargo.toml")})
        };
        let deps = |names: &[(&str, Value)]| -> Value {
            names.iter().map(|(name, kind)| json!({"pkg": name, "dep_kinds": [{"kind": kind}]})).collect()
        };
        let metadata = json!({
            "packages": [
                package("lowrank", Value::Null), package("b", json!("registry")), package("a", json!("registry")),
                package("test", json!("registry")), package("alone", json!("registry"))
            ],
            "resolve": {"nodes": [
                {"id": "lowrank", "deps": deps(&[("b", Value::Null), ("test", json!("dev"))])},
                {"id": "b", "deps": deps(&[("a", json!("build"))])},
                {"id": "a", "deps": []},
            ]},
        });
        let lock = "[[package]]\nname = \"a\"\nversion = \"1.0.0+x\"\nsource = \"r\"\nchecksum = \"0f\"\n";
        let packages = select(&metadata, &checksums(lock), "lowrank").unwrap();
        let names: Vec<&str> = packages.iter().map(|package| package.name.as_str()).collect();
        assert_eq!(names, ["lowrank", "a", "b"]);
        assert_eq!(packages[1].checksum.as_deref(), Some("0f"));
        assert_eq!(packages[1].licence, "MIT OR Apache-2.0");
        assert_eq!(packages[1].purl(), "pkg:cargo/a@1.0.0%2Bx");
        assert_eq!(packages[1].folder, Path::new("/src/a"));
        assert!(packages[0].is_ours && packages[0].dependencies.contains("b") && !packages[2].is_ours);
        assert!(select(&metadata, &BTreeMap::new(), "absent").is_err());
    }
}
