//! The licences of everything in the program: a list, and the texts that the packages carry.

use std::{
    collections::BTreeMap,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{packages::Package, runtime::Runtime};

/// Beginnings of the names of files with licences and the notices that they require.
const NAMES: [&str; 7] = ["license", "licence", "copying", "notice", "unlicense", "copyright", "authors"];

/// Endings of files of code, whatever their names.
const CODE: [&str; 6] = ["rs", "c", "h", "py", "sh", "toml"];

/// The document for the packages that are not the workspace's, and what comes with the compiler.
pub(crate) fn document(packages: &[Package], runtime: &[Runtime]) -> Result<String> {
    let others: Vec<&Package> = packages.iter().filter(|package| !package.is_ours).collect();
    let mut out = format!(
        "lowrank contains these {} packages, or was built with them. Below are the texts that they come with.\n\n",
        others.len() + runtime.len()
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for library in runtime {
        let name = [library.name, library.version.as_deref().unwrap_or_default()].join(" ");
        let name = name.trim_end();
        // Writing to a string cannot fail.
        let _ = writeln!(out, "{name}: {}", library.licence);
        texts.entry(library.notices.clone()).or_default().push(name.to_owned());
    }
    let mut without = Vec::new();
    for package in others {
        let name = format!("{} {}", package.name, package.version);
        let licence = if package.licence.is_empty() { "see its text" } else { &package.licence };
        let _ = writeln!(out, "{name}: {licence}");
        let files = files(&package.folder)?;
        if files.is_empty() {
            without.push(name.clone());
        }
        for file in files {
            let bytes = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let text = String::from_utf8_lossy(&bytes).replace("\r\n", "\n");
            let file = file.strip_prefix(&package.folder)?.display();
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

/// The licence files of a package, sorted: also those of code that it has taken over, in its folders.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let (mut found, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = open.pop() {
        let is_of_licences = is_licence(&folder);
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for path in entries.map(|entry| entry.map(|entry| entry.path())) {
            let path = path?;
            let is_text = path.extension().is_none_or(|end| !CODE.iter().any(|code| end == *code));
            if path.is_dir() {
                open.push(path);
            } else if is_text && (is_of_licences || is_licence(&path)) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn is_licence(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    NAMES.iter().any(|begin| name.starts_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licences_are_found_at_every_depth() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["LICENSE", "src/license.rs", "c/lib/COPYING.txt", "LICENSES/MIT.txt", "src/lib.rs", "README.md"]
        {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let found = files(folder.path()).unwrap();
        let names: Vec<_> = found.iter().map(|path| path.strip_prefix(folder.path()).unwrap()).collect();
        assert_eq!(names, ["LICENSE", "LICENSES/MIT.txt", "c/lib/COPYING.txt"].map(Path::new));
    }
}
