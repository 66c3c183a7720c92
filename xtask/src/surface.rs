//! `cargo xtask surface`: public items of the crates that nothing outside their own sources names.
//!
//! It compares words, not types: an item counts as used if its name occurs, so that the list may be too short
//! but is too long only by items used in macros.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// A public item.
#[derive(Debug, PartialEq, Eq)]
struct Item {
    /// `fn`, `struct`, …
    kind: String,
    name: String,
}

/// Prints, for each library, the public items that no other crate, test, example, bench or README uses; with `tests`
/// also those that only the crate's own tests, examples and benches use.
pub(crate) fn run(root: &Path, tests: bool) -> Result<bool> {
    let crates: Vec<PathBuf> = folders(&root.join("crates"))?;
    let mut words: BTreeMap<&Path, HashSet<String>> = BTreeMap::new();
    for folder in &crates {
        words.insert(folder, words_below(folder)?);
    }
    let shared = words_below(&root.join("tests"))?;
    let mut total = 0;
    for folder in crates.iter().filter(|folder| folder.join("src/lib.rs").is_file()) {
        let mut own = HashSet::new();
        for part in ["tests", "examples", "benches", "fuzz"] {
            own.extend(words_below(&folder.join(part))?);
        }
        add_words(&folder.join("README.md"), &mut own)?;
        let others = || words.iter().filter(|(other, _)| *other != folder).map(|(_, words)| words);
        let mut unused: Vec<String> = Vec::new();
        for path in sources(&folder.join("src"))? {
            let text = code(&read(&path)?);
            for Item { kind, name } in items(&text) {
                let outside = shared.contains(&name) || others().any(|words| words.contains(&name));
                let within =
                    (!tests && own.contains(&name)) || (kind != "fn" && is_in_signature(folder, &name)?);
                if !outside && !within {
                    let file = path.strip_prefix(folder).unwrap_or(&path).display();
                    unused.push(format!("  {file}: {kind} {name}"));
                }
            }
        }
        if !unused.is_empty() {
            println!(
                "{}: {}\n{}",
                folder.file_name().unwrap_or_default().display(),
                unused.len(),
                unused.join("\n")
            );
        }
        total += unused.len();
    }
    println!("{total} public items that nothing outside uses");
    Ok(true)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut found: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    Ok(found)
}

/// The `.rs` files below a folder, which may be missing.
fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

fn words_below(folder: &Path) -> Result<HashSet<String>> {
    let mut words = HashSet::new();
    for path in sources(folder)? {
        add_words(&path, &mut words)?;
    }
    Ok(words)
}

fn add_words(path: &Path, words: &mut HashSet<String>) -> Result<()> {
    if path.is_file() {
        let text = read(path)?;
        let parts = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.extend(parts.filter(|word| !word.is_empty()).map(str::to_owned));
    }
    Ok(())
}

/// The text of a source without its unit tests, which are at the end.
fn code(text: &str) -> String {
    text.split("\n#[cfg(test)]\nmod ").next().unwrap_or(text).to_owned()
}

/// The `pub` items of a source: not `pub(crate)`, not fields, not re-exports.
fn items(text: &str) -> Vec<Item> {
    const KINDS: [&str; 9] = ["fn", "struct", "enum", "trait", "type", "static", "mod", "union", "const"];
    let item = |line: &str| {
        let mut words = line.trim_start().strip_prefix("pub ")?.split_whitespace().peekable();
        while words.next_if(|word| ["unsafe", "async", "extern", "\"C\""].contains(word)).is_some() {}
        let mut kind = words.next().filter(|word| KINDS.contains(word))?;
        let mut rest = words.next()?;
        if kind == "const" && rest == "fn" {
            (kind, rest) = ("fn", words.next()?);
        }
        let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
        (!name.is_empty()).then(|| Item { kind: kind.to_owned(), name: name.to_owned() })
    };
    text.lines().filter_map(item).collect()
}

/// Whether a public signature, a field or an implementation of the crate names a type: others then use it unnamed.
fn is_in_signature(folder: &Path, name: &str) -> Result<bool> {
    for path in sources(&folder.join("src"))? {
        for line in code(&read(&path)?).lines() {
            let is_signature = ["pub fn", "pub const fn", "->", " for ", ": ", "type Item"]
                .iter()
                .any(|part| line.contains(part));
            let is_own = items(line).iter().any(|item| item.name == name);
            let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
            if is_signature
                && !is_own
                && !line.trim_start().starts_with("//")
                && words.any(|word| word == name)
            {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_are_what_others_can_name() {
        let text = "pub fn a<T>() {}\n    pub const fn b(&self) {}\npub(crate) fn c() {}\npub struct D<T>;\n\
                    pub use e::F;\n    pub field: u8,\npub const G: u8 = 1;\nfn h() {}\n";
        let found: Vec<(String, String)> =
            items(text).into_iter().map(|item| (item.kind, item.name)).collect();
        let expect = [("fn", "a"), ("fn", "b"), ("struct", "D"), ("const", "G")];
        assert_eq!(found, expect.map(|(kind, name)| (kind.to_owned(), name.to_owned())));
    }

    #[test]
    fn unit_tests_are_left_out() {
        assert_eq!(code("a\n#[cfg(test)]\nmod tests {\n    pub fn b() {}\n}\n"), "a");
    }
}
