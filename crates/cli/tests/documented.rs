//! Every command and option that the documents name exists.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use assert_cmd::Command;

/// Options of other programs that the documents name: cargo, xtask (whose own test checks them), sbatch, git.
const OTHERS: [&str; 24] = [
    "all-targets",
    "allow-dirty",
    "backend",
    "bench",
    "bin",
    "config",
    "deny",
    "dry-run",
    "example",
    "features",
    "jobs",
    "launcher",
    "lowrank",
    "methods",
    "no-default-features",
    "no-verify",
    "package",
    "ranks",
    "release",
    "sbatch-option",
    "seeds",
    "set",
    "smoke",
    "tasks",
];

fn help(args: &[&str]) -> String {
    let output = Command::cargo_bin("lowrank")
        .unwrap()
        .args(args)
        .arg("--help")
        .assert()
        .success()
        .get_output()
        .clone();
    String::from_utf8(output.stdout).unwrap()
}

/// The names behind `--` in a text.
fn options(text: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("--") {
        let before = text[..at].chars().next_back();
        let rest = &text[at + 2..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-').unwrap_or(rest.len());
        if before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
            && rest.starts_with(|c: char| c.is_ascii_lowercase())
        {
            found.insert(&rest[..end]);
        }
    }
    found
}

/// The subcommands of `lowrank`, each with its options.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    let help_text = help(&[]);
    let listed = help_text.lines().skip_while(|line| *line != "Commands:").skip(1);
    let names = listed.take_while(|line| !line.is_empty()).filter_map(|line| {
        // A long description goes on in the next line, further in.
        line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?.split_whitespace().next()
    });
    let names = names.filter(|name| *name != "help");
    names
        .map(|name| (name.to_owned(), options(&help(&[name])).into_iter().map(str::to_owned).collect()))
        .collect()
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let markdown = |folder: PathBuf| {
        let entries = fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")).collect::<Vec<_>>()
    };
    let crates = fs::read_dir(root.join("crates")).unwrap().map(|entry| entry.unwrap().path());
    let pages = [root.clone(), root.join("docs"), root.join("docs/guide")]
        .into_iter()
        .chain(crates)
        .flat_map(markdown);
    // The two logs describe past versions.
    pages.filter(|path| !["LOG.md", "CHANGELOG.md"].iter().any(|name| path.ends_with(name))).collect()
}

/// The pieces of a Markdown text that are code: lines of blocks, joined where one goes on in the next, and inline code.
fn code(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (index, part) in text.split("```").enumerate() {
        if index % 2 == 1 {
            found.extend(
                part.replace("\\\n", " ").lines().map(|line| line.split(" #").next().unwrap().to_owned()),
            );
        } else {
            found.extend(part.split('`').skip(1).step_by(2).map(|code| code.replace('\n', " ")));
        }
    }
    found
}

#[test]
fn documented_commands_and_options_exist() {
    let commands = commands();
    assert!(commands.len() > 10 && commands["finetune"].contains("lr"), "{commands:?}");
    let every: BTreeSet<&str> = commands.values().flatten().map(String::as_str).chain(OTHERS).collect();
    let mut unknown = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        let mut check = |is_known: bool, what: &str| {
            if !is_known {
                unknown.push(format!("{}: {what}", page.display()));
            }
        };
        for code in code(&text) {
            let mut words = code.split_whitespace();
            let program = words.next().unwrap_or_default();
            let is_ours = program == "$L" || program.rsplit('/').next() == Some("lowrank");
            let command =
                words.next().filter(|word| is_ours && word.starts_with(|c: char| c.is_ascii_lowercase()));
            match command {
                Some(command) => match commands.get(command) {
                    Some(known) => {
                        for option in options(&code) {
                            check(known.contains(option), &format!("lowrank {command} --{option}"));
                        }
                    }
                    None => check(false, &format!("lowrank {command}")),
                },
                None => {
                    for option in options(&code) {
                        check(
                            every.contains(option) || is_of_another_program(program),
                            &format!("--{option}"),
                        );
                    }
                }
            }
        }
    }
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// Programs whose options are not ours to know.
fn is_of_another_program(name: &str) -> bool {
    ["cargo", "git", "python3", "pip", "sbatch", "rustup", "curl", "mpirun", "srun"].contains(&name)
}
