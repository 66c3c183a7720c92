//! The licences of everything in the program: a list, and the texts that the packages carry.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::packages::Package;

/// Beginnings of the names of files with licences and the notices that they require.
const NAMES: [&str; 7] = ["license", "licence", "copying", "notice", "unlicense", "copyright", "authors"];

/// The document for the packages that are not the workspace's.
pub(crate) fn document(packages: &[Package]) -> Result<String> {
    let others: Vec<&Package> = packages.iter().filter(|package| !package.is_ours).collect();
    let mut out = format!(
        "lowrank contains these {} packages, or was built with them. Below are the texts that they come with.\n\n",
        others.len()
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut without = Vec::new();
    for package in others {
        let name = format!("{} {}", package.name, package.version);
        let licence = if package.licence.is_empty() { "see its text" } else { &package.licence };
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name}: {licence}");
        let files = files(&package.folder)?;
        if files.is_empty() {
            without.push(name.clone());
        }
        for file in files {
            let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
            let file = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            texts.entry(text.trim().to_owned()).or_default().push(format!("{name} ({file})"));
        }
    }
    if !without.is_empty() {
        let _ = writeln!(
            out,
            "\nThese packages contain no licence text; the standard text of the licence named above applies: {}",
            without.join(", ")
        );
    }
    // The texts in the order of their first package.
    let mut texts: Vec<(Vec<String>, String)> =
        texts.into_iter().map(|(text, names)| (names, text)).collect();
    texts.sort();
    for (names, text) in texts.iter().filter(|(_, text)| !text.is_empty()) {
        let _ = write!(out, "\n{}\n{}\n\n{text}\n", "=".repeat(80), names.join("\n"));
    }
    Ok(out)
}

/// The licence files of a package, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        if path.is_file() && NAMES.iter().any(|begin| name.starts_with(begin)) && !name.ends_with(".rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
