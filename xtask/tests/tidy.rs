//! Checks that no compiler makes: file headers, layers, leftovers, documented commands, wording.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

/// The packages that must build without burn, so that they stay light.
const WITHOUT_BURN: [&str; 4] = ["xtask", "lowrank-report", "lowrank-checkpoint", "lowrank-mini"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The files below `folder` of the workspace whose name ends in `extension`, except builds and caches.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                folders.push(path);
            } else if name.ends_with(extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sources() -> Vec<PathBuf> {
    let found: Vec<_> = ["crates", "xtask", "tests"].iter().flat_map(|folder| files(folder, ".rs")).collect();
    assert!(found.len() > 20, "the sources were not found");
    found
}

fn packages() -> Vec<Value> {
    let args = ["metadata", "--no-deps", "--format-version", "1", "--offline"];
    let output = Command::new(env!("CARGO")).current_dir(root()).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

/// The dependencies of a package for its users, without those of its tests.
fn dependencies(package: &Value) -> impl Iterator<Item = &Value> {
    package["dependencies"].as_array().unwrap().iter().filter(|dependency| dependency["kind"] != "dev")
}

#[test]
fn every_source_says_what_it_is() {
    let silent: Vec<_> =
        sources().into_iter().filter(|path| !fs::read_to_string(path).unwrap().starts_with("//! ")).collect();
    assert!(silent.is_empty(), "without a //! line on top: {silent:#?}");
}

#[test]
fn nothing_is_left_over() {
    // Assembled here, so that this file does not match itself.
    let leftovers = ["dbg", "todo", "unimplemented"].map(|name| format!("{name}!(")).to_vec();
    let leftovers = [leftovers, vec![format!("#[{}", "ignore")]].concat();
    let mut found = Vec::new();
    for path in sources() {
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if leftovers.iter().any(|leftover| line.contains(leftover.as_str())) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// The layers of docs/ARCHITECTURE.md: rows `| L1 | `lowrank-data` | … |`, by the first name in the row.
fn layers() -> BTreeMap<String, u32> {
    let text = fs::read_to_string(root().join("docs/ARCHITECTURE.md")).unwrap();
    let row = |line: &str| {
        let (layer, rest) = line.strip_prefix("| L")?.split_once(" | `")?;
        Some((rest.split_once('`')?.0.to_owned(), layer.parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn arrows_point_down() {
    let layers = layers();
    let packages = packages();
    // The task runner and what serves tests alone are beside the layers.
    const BESIDE: [&str; 3] = ["xtask", "lowrank-tests", "lowrank-powercut"];
    let layered = || packages.iter().filter(|package| !BESIDE.contains(&package["name"].as_str().unwrap()));
    let names: BTreeSet<&str> = layered().map(|package| package["name"].as_str().unwrap()).collect();
    let documented: BTreeSet<&str> = layers.keys().map(String::as_str).collect();
    assert_eq!(names, documented, "the crates and the table of docs/ARCHITECTURE.md");
    for package in layered() {
        let name = package["name"].as_str().unwrap();
        let layer = layers[name];
        for dependency in dependencies(package).filter(|dependency| dependency["path"].is_string()) {
            let below = dependency["name"].as_str().unwrap();
            let reached = layers.get(below).unwrap_or_else(|| panic!("{name} builds on {below}"));
            assert!(*reached < layer, "{name} (layer {layer}) builds on {below} (layer {reached})");
        }
    }
}

#[test]
fn libraries_leave_the_backend_to_the_program() {
    for package in
        packages().iter().filter(|package| package["name"].as_str().unwrap().starts_with("lowrank-"))
    {
        if package["name"] == "lowrank-tests" {
            continue;
        }
        for dependency in
            dependencies(package).filter(|dependency| !dependency["optional"].as_bool().unwrap())
        {
            let features = dependency["features"].as_array().unwrap();
            let backend = features.iter().find(|feature| {
                ["flex", "ndarray", "cuda", "vulkan", "metal"].contains(&feature.as_str().unwrap())
            });
            assert!(backend.is_none(), "{} enables {backend:?} of {}", package["name"], dependency["name"]);
            let is_backend = ["burn-flex", "burn-ndarray", "burn-cuda", "burn-wgpu"]
                .contains(&dependency["name"].as_str().unwrap());
            assert!(!is_backend, "{} always builds {}", package["name"], dependency["name"]);
        }
    }
}

#[test]
fn light_packages_stay_light() {
    for package in packages() {
        if !WITHOUT_BURN.contains(&package["name"].as_str().unwrap()) {
            continue;
        }
        for dependency in dependencies(&package) {
            let name = dependency["name"].as_str().unwrap();
            assert!(!name.starts_with("burn"), "{} builds on {name}", package["name"]);
            let ours = dependency["path"].is_string();
            assert!(!(ours && package["name"] == "xtask"), "xtask builds on {name}: it only spawns");
        }
    }
}

#[test]
fn every_experiment_has_a_plan() {
    let experiments = files("xtask/experiments", ".json");
    assert!(!experiments.is_empty());
    for path in experiments {
        let kind = path.file_stem().unwrap().to_str().unwrap();
        // It has no model or data of its own.
        let given: &[&str] =
            if kind.ends_with("-lm") { &["--model", "org/llama", "--data", "texts"] } else { &[] };
        for smoke in [&[][..], &["--smoke"]] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
            command.args(["experiment", kind, "--dry-run"]).args(given).args(smoke);
            let output = command.output().unwrap();
            assert!(output.status.success(), "{kind}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

/// The word after each `command` in the code of a Markdown text, with the rest of its line.
fn documented<'a>(text: &'a str, command: &str) -> Vec<(&'a str, &'a str)> {
    let mut found = Vec::new();
    for (position, _) in text.match_indices(command) {
        let before = text[..position].chars().next_back();
        if before.is_some_and(|c| !matches!(c, '`' | '\n' | ' ' | '(' | '$')) {
            continue;
        }
        let rest = &text[position + command.len()..];
        let line = rest.split(['\n', '`', '#']).next().unwrap();
        let word = rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap();
        if !word.is_empty() {
            found.push((word, line));
        }
    }
    found
}

/// What `cargo xtask ARGS --help` prints.
fn xtask_help(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(args).arg("--help").output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

// The commands of `lowrank` are checked by another test, which has the program.
#[test]
fn documented_tasks_and_their_options_exist() {
    let help = xtask_help(&[]);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let tasks: BTreeMap<&str, String> = listed
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '))?.split_whitespace().next()
        })
        .map(|task| (task, if task == "help" { String::new() } else { xtask_help(&[task]) }))
        .collect();
    assert!(tasks.contains_key("experiment"), "{help}");
    let mut pages = vec![root().join("README.md")];
    pages.extend(files("docs", ".md"));
    pages.extend(files("crates", ".md"));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        for (task, line) in documented(&text, "cargo xtask ") {
            let help = tasks.get(task);
            let help = help.unwrap_or_else(|| panic!("{} names cargo xtask {task}", page.display()));
            for option in line.split_whitespace().filter(|word| word.starts_with("--") && word.len() > 2) {
                let name = option.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
                let is_known =
                    help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == name);
                assert!(is_known, "{} names cargo xtask {task} {name}", page.display());
            }
        }
    }
}

/// Words after «is no» that make it grammatical.
const AFTER_NO: [&str; 18] = [
    "longer",
    "more",
    "less",
    "larger",
    "smaller",
    "greater",
    "fewer",
    "better",
    "worse",
    "slower",
    "faster",
    "other",
    "different",
    "wider",
    "closer",
    "shorter",
    "deeper",
    "need",
];

/// The calques of docs/STYLE.md in a line of text; assembled here, so that this file does not match itself.
fn calque(line: &str) -> Option<String> {
    let text = line.to_lowercase().replace('’', "'");
    let parts = [
        ["what is", "there"],
        ["there is", "none"],
        ["there are", "none"],
        ["of one's", "own"],
        ["so", "many"],
        ["is", "said"],
        ["are", "said"],
        ["which is", "none"],
        ["that is", "none"],
        ["that are", "none"],
        ["as it", "stands"],
        ["of what", "was"],
        ["without a", "word"],
    ];
    let is_word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    for phrase in parts.map(|parts| parts.join(" ")) {
        for (at, _) in text.match_indices(&phrase) {
            let (before, after) = (&text[..at], &text[at + phrase.len()..]);
            if !is_word(before.chars().next_back()) && !is_word(after.chars().next()) {
                return Some(phrase);
            }
        }
    }
    for verb in ["is", "are", "was", "were"] {
        let phrase = format!("{verb} no ");
        for (at, _) in text.match_indices(&phrase) {
            let before = text[..at].trim_end();
            let next = text[at + phrase.len()..].split(|c: char| !c.is_alphabetic()).next().unwrap();
            let starts = text[..at].ends_with(' ') || at == 0;
            let existential = before.ends_with("there") || before.ends_with("here");
            if starts && !existential && !next.is_empty() && !AFTER_NO.contains(&next) {
                return Some(format!("{phrase}{next}"));
            }
        }
    }
    None
}

#[test]
fn the_wording_is_that_of_the_field() {
    let mut texts = sources();
    texts.extend(files("docs", ".md"));
    texts.extend(files("crates", ".md"));
    let mut found = Vec::new();
    for path in texts {
        // The log is history; the style guide quotes what it refuses.
        if ["docs/LOG.md", "docs/STYLE.md"].iter().any(|name| path.ends_with(name)) {
            continue;
        }
        for (number, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            if let Some(calque) = calque(line) {
                found.push(format!("{}:{}: «{calque}»", path.display(), number + 1));
            }
        }
    }
    assert!(found.is_empty(), "see docs/STYLE.md for what to write instead: {found:#?}");
}

#[test]
fn calques_are_told_from_english() {
    let is = ["is", "are"];
    for text in ["{} no error", "it {} no file", "x {} no"].map(|text| text.replace("{}", is[0])) {
        assert_eq!(calque(&text).is_some(), !text.ends_with("no"), "{text}");
    }
    for text in ["there is no file", "it is no longer", "this is no", "are no more than 3", "the basis no"] {
        assert_eq!(calque(text), None, "{text}");
    }
    assert!(calque(&format!("stacks of {} {}", "so", "many")).is_some());
    assert!(calque("so manyfold").is_none());
}
