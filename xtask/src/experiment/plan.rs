//! From an experiment to its cells.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::config::{Config, Settings, method_and_ranks};
use crate::cargo::root;

/// Commands without an output folder, whose result is their standard output.
const WITHOUT_FOLDER: [&str; 6] = ["evaluate", "predict", "perplexity", "generate", "inspect", "embed"];

/// One process of a grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    /// A readable name with a hash of everything that defines the cell; the name of its folder.
    pub(crate) id: String,
    /// The method's name in the experiment.
    pub(crate) method: String,
    /// The task; empty for a command without one.
    pub(crate) task: String,
    /// `lowrank`'s arguments, without the output.
    pub(crate) args: Vec<String>,
    /// The cells whose folders it needs.
    pub(crate) needs: Vec<String>,
}

impl Cell {
    pub(crate) fn is_finetuning(&self) -> bool {
        self.args[0] == "finetune"
    }

    pub(crate) fn has_folder(&self) -> bool {
        !WITHOUT_FOLDER.contains(&self.args[0].as_str())
    }
}

/// Changes of a config by flags.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// Settings of every fine-tuning.
    pub(crate) all: Settings,
    /// Settings of one method.
    pub(crate) method: BTreeMap<String, Settings>,
    /// Ranks of every method that has one.
    pub(crate) ranks: Vec<u64>,
}

/// The cells of an experiment in starting order; those needed by others come first.
///
/// # Errors
/// An unknown method, a reference to one, a circle of references.
pub(crate) fn cells(config: &Config, over: &Overrides, backend: &str, grid: &Path) -> Result<Vec<Cell>> {
    let mut planner = Planner { config, over, backend, grid, cells: Vec::new(), known: BTreeSet::new() };
    for seed in &config.seeds {
        for model in &config.models {
            for task in &config.tasks {
                for entry in &config.methods {
                    let (name, ranks) = method_and_ranks(entry)?;
                    config.method(name)?;
                    if !ranks.is_empty() && !config.has_rank(name) {
                        bail!("{entry:?}: the method {name} has no rank");
                    }
                    planner.expand(&Point { model, task, seed: *seed }, name, &ranks, &mut Vec::new())?;
                }
            }
        }
    }
    Ok(planner.cells)
}

/// The position of a cell in the grid, apart from its method.
struct Point<'a> {
    model: &'a str,
    task: &'a str,
    seed: u64,
}

/// An argument: the value passed, and its value in the hash.
#[derive(Clone)]
struct Arg {
    passed: String,
    hashed: String,
}

impl Arg {
    fn plain(text: impl Into<String>) -> Self {
        let passed = text.into();
        Self { hashed: passed.clone(), passed }
    }

    /// A folder of the project or of the user: a name relative to the working directory is the same
    /// folder as its full name.
    fn path(text: &str) -> Self {
        let path = from_root(text);
        let full = path.canonicalize().unwrap_or_else(|_| path.clone());
        let hashed = full.strip_prefix(root()).unwrap_or(&full).to_string_lossy().into_owned();
        Self { passed: path.to_string_lossy().into_owned(), hashed }
    }
}

/// `text`, or the project's file of that name if it does not exist relative to the working directory.
pub(crate) fn from_root(text: &str) -> PathBuf {
    let here = env::current_dir().is_ok_and(|current| current == root());
    let path = PathBuf::from(text);
    if here || path.exists() || !root().join(text).exists() { path } else { root().join(text) }
}

struct Planner<'a> {
    config: &'a Config,
    over: &'a Overrides,
    backend: &'a str,
    grid: &'a Path,
    cells: Vec<Cell>,
    known: BTreeSet<String>,
}

impl Planner<'_> {
    /// Adds the cells of a method at a point, and those that they need; returns their ids.
    fn expand(
        &mut self,
        point: &Point,
        name: &str,
        ranks: &[u64],
        path: &mut Vec<String>,
    ) -> Result<Vec<String>> {
        if path.iter().any(|above| above == name) {
            bail!("methods refer to each other in a circle: {} → {name}", path.join(" → "));
        }
        path.push(name.to_owned());
        let mut ids = Vec::new();
        let settings = self.settings(point, name, ranks)?;
        if let Some((key, _)) = settings.iter().find(|(_, value)| value.as_array().is_some_and(Vec::is_empty))
        {
            bail!("{key} of the method {name} is an empty list");
        }
        for settings in axes(settings) {
            for (settings, needs) in self.with_references(point, settings, path)? {
                ids.push(self.add(point, name, &settings, needs));
            }
        }
        path.pop();
        Ok(ids)
    }

    /// The settings of a method's cells: defaults, task, method, flags, each overriding the previous;
    /// model-specific settings follow immediately after the part that they override.
    fn settings(&self, point: &Point, name: &str, ranks: &[u64]) -> Result<Settings> {
        let own = self.config.method(name)?;
        let of_model = self.config.of_model(point.model);
        let mut settings = Settings::new();
        let trains = own.get("command").is_none_or(|command| command == "finetune");
        if trains {
            settings.extend(self.config.defaults.clone());
            settings.extend(of_model.map(|model| model.defaults.clone()).unwrap_or_default());
            settings.extend(self.config.task.get(point.task).cloned().unwrap_or_default());
        }
        settings.extend(own.clone());
        settings.extend(of_model.and_then(|model| model.method.get(name)).cloned().unwrap_or_default());
        if trains {
            settings.extend(self.over.all.clone());
        }
        let ranks = if ranks.is_empty() { &self.over.ranks } else { ranks };
        if self.config.has_rank(name) && !ranks.is_empty() {
            settings.insert("rank".into(), ranks.into());
        }
        settings.extend(self.over.method.get(name).cloned().unwrap_or_default());
        Ok(settings)
    }

    /// Replaces every `"@other"` by the folder of the other method's cell; if that method has several cells,
    /// so does this one.
    fn with_references(
        &mut self,
        point: &Point,
        settings: Settings,
        path: &mut Vec<String>,
    ) -> Result<Vec<(Settings, Vec<String>)>> {
        let mut found = vec![(settings.clone(), Vec::new())];
        for (key, value) in &settings {
            let Some(reference) = value.as_str().and_then(|text| text.strip_prefix('@')) else { continue };
            let (other, inside) = reference.split_once('/').unwrap_or((reference, ""));
            let ids =
                self.expand(point, other, &[], path).with_context(|| format!("in {key} of {path:?}"))?;
            found = found
                .iter()
                .flat_map(|(settings, needs)| {
                    ids.iter().map(move |id| {
                        let mut settings = settings.clone();
                        let mut needs: Vec<String> = needs.clone();
                        settings.insert(key.clone(), format!("@{id}/{inside}").into());
                        needs.push(id.clone());
                        (settings, needs)
                    })
                })
                .collect();
        }
        Ok(found)
    }

    /// Adds a cell unless it exists; returns its id.
    fn add(&mut self, point: &Point, name: &str, settings: &Settings, needs: Vec<String>) -> String {
        let mut settings = settings.clone();
        let command = match settings.remove("command") {
            Some(Value::String(command)) => command,
            _ => "finetune".to_owned(),
        };
        let trains = command == "finetune";
        let mut args = vec![Arg::plain(&command)];
        let own = settings.remove("model");
        if own.is_some() && trains {
            // A model made from this one by another cell has the same name for a reader.
            let name = Path::new(point.model).file_name().unwrap_or_default().to_string_lossy();
            settings.entry("model_name").or_insert_with(|| name.into_owned().into());
        }
        let model = own.unwrap_or_else(|| point.model.into());
        args.extend([Arg::plain("--model"), self.value("model", &model, point)]);
        if trains {
            let method = settings.remove("method").unwrap_or_else(|| name.into());
            // Rows of a language model are in files named by the settings.
            if !settings.contains_key("train") {
                args.extend([Arg::plain("--task"), Arg::plain(point.task)]);
                args.extend([Arg::plain("--data"), Arg::path(&self.config.data)]);
            }
            args.extend([Arg::plain("--method"), self.value("method", &method, point)]);
            if method.as_str() != Some(name) {
                args.extend([Arg::plain("--label"), Arg::plain(name)]);
            }
            args.extend([Arg::plain("--seed"), Arg::plain(point.seed.to_string())]);
        }
        // In a fixed order: moving a line of a file must not make another cell.
        for (key, value) in settings.iter().collect::<BTreeMap<_, _>>() {
            let flag = Arg::plain(format!("--{}", key.replace('_', "-")));
            match value {
                Value::Null | Value::Bool(false) => {}
                Value::Bool(true) => args.push(flag),
                value => args.extend([flag, self.value(key, value, point)]),
            }
        }

        let id = self.id(point, name, trains, &args);
        if self.known.insert(id.clone()) {
            self.cells.push(Cell {
                id: id.clone(),
                method: name.to_owned(),
                task: if trains { point.task.to_owned() } else { String::new() },
                args: args.into_iter().map(|arg| arg.passed).collect(),
                needs,
            });
        }
        id
    }

    /// A setting's value as an argument.
    fn value(&self, key: &str, value: &Value, point: &Point) -> Arg {
        let Some(text) = value.as_str() else { return Arg::plain(number(value)) };
        if let Some(cell) = text.strip_prefix('@') {
            let folder = self.grid.join("cells").join(cell.trim_end_matches('/'));
            return Arg { passed: folder.to_string_lossy().into_owned(), hashed: text.to_owned() };
        }
        let text = text
            .replace("{task}", point.task)
            .replace("{data}", &self.config.data)
            .replace("{model}", point.model)
            .replace("{seed}", &point.seed.to_string());
        let is_path =
            matches!(key, "model" | "data" | "calibration" | "file" | "init_from" | "train" | "dev" | "rows");
        if is_path { Arg::path(&text) } else { Arg::plain(text) }
    }

    /// `mini-bert-lora-sst2-r8-lr5e-4-s0-0123456789`.
    fn id(&self, point: &Point, name: &str, trains: bool, args: &[Arg]) -> String {
        let model = Path::new(point.model).file_name().unwrap_or_default().to_string_lossy();
        let mut parts = vec![model.into_owned(), name.to_owned()];
        if trains {
            parts.push(point.task.to_owned());
        }
        let after = |flag: &str| {
            args.windows(2).find(|pair| pair[0].passed == flag).map(|pair| pair[1].passed.as_str())
        };
        parts.extend(after("--rank").map(|rank| format!("r{rank}")));
        parts.extend(after("--lr").map(|lr| format!("lr{lr}")));
        if trains {
            parts.push(format!("s{}", point.seed));
        }
        let hashed = std::iter::once(self.backend).chain(args.iter().map(|arg| arg.hashed.as_str()));
        let readable =
            parts.join("-").replace(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c), "_");
        format!("{readable}-{:010x}", hash(hashed) >> 24)
    }
}

/// A learning rate in scientific notation, other numbers unchanged.
fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(float) if value.is_f64() && float != 0.0 && float.abs() < 1e-2 => format!("{float:e}"),
        _ => value.to_string(),
    }
}

/// The settings for every combination of values from its lists.
fn axes(settings: Settings) -> Vec<Settings> {
    let mut found = vec![settings.clone()];
    for (key, value) in &settings {
        let Value::Array(values) = value else { continue };
        found = found
            .iter()
            .flat_map(|settings| {
                values.iter().map(|value| {
                    let mut settings = settings.clone();
                    settings.insert(key.clone(), value.clone());
                    settings
                })
            })
            .collect();
    }
    found
}

/// FNV-1a over the texts, each ended by a zero: the standard library's hash may change with its version.
fn hash<'a>(texts: impl Iterator<Item = &'a str>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in texts.flat_map(|text| text.bytes().chain([0])) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The cells of a config with these methods' settings.
    fn plan(methods: &[&str], settings: Value, over: &Overrides) -> Result<Vec<Cell>> {
        let config = json!({
            "about": "", "models": ["tiny"], "data": "data", "tasks": ["rte"], "methods": methods, "seeds": [0],
            "defaults": { "max_steps": 5 }, "method": settings,
        });
        cells(&serde_json::from_value(config)?, over, "flex", Path::new("grid"))
    }

    #[track_caller]
    fn check(settings: Value, over: &Overrides, expect: &[&str]) {
        let cells = plan(&["m"], json!({ "m": settings }), over).unwrap();
        let begin = "finetune --model tiny --task rte --data data --method m --seed 0 ";
        let args: Vec<String> = cells.iter().map(|cell| cell.args.join(" ")).collect();
        let rest: Vec<&str> = args.iter().map(|args| args.strip_prefix(begin).unwrap_or(args)).collect();
        assert_eq!(rest, expect);
    }

    #[test]
    fn settings_become_arguments() {
        let over = Overrides::default();
        check(
            json!({ "lr": 5e-4, "warmup_ratio": 0.06 }),
            &over,
            &["--lr 5e-4 --max-steps 5 --warmup-ratio 0.06"],
        );
        check(json!({ "rslora": true, "resume": false }), &over, &["--max-steps 5 --rslora"]);
        check(json!({ "max_steps": null, "targets": "a,b" }), &over, &["--targets a,b"]);
        check(
            json!({ "rank": [1, 2], "alpha": [8, 16], "max_steps": null }),
            &over,
            &["--alpha 8 --rank 1", "--alpha 16 --rank 1", "--alpha 8 --rank 2", "--alpha 16 --rank 2"],
        );
    }

    #[test]
    fn rows_in_files_take_the_place_of_a_task() {
        let settings = json!({ "m": { "train": "{data}/train.jsonl", "dev": "{data}/dev.jsonl" } });
        let cells = plan(&["m"], settings, &Overrides::default()).unwrap();
        let expect = "finetune --model tiny --method m --seed 0 --dev data/dev.jsonl --max-steps 5 --train data/train.jsonl";
        assert_eq!(cells[0].args.join(" "), expect);
    }

    #[test]
    fn a_setting_has_a_value() {
        let error = plan(&["m"], json!({ "m": { "alpha": [] } }), &Overrides::default()).unwrap_err();
        assert_eq!(error.to_string(), "alpha of the method m is an empty list");
    }

    #[test]
    fn flags_win_over_files() {
        let settings = |value: Value| value.as_object().cloned().unwrap();
        let over = Overrides {
            all: settings(json!({ "max_steps": 9, "lr": 1e-3 })),
            method: BTreeMap::from([("m".to_owned(), settings(json!({ "lr": 2e-3 })))]),
            ranks: vec![4],
        };
        check(json!({ "lr": 5e-4, "rank": 1 }), &over, &["--lr 2e-3 --max-steps 9 --rank 4"]);
        check(json!({ "lr": 5e-4 }), &over, &["--lr 2e-3 --max-steps 9"]);
    }

    #[test]
    fn what_is_said_of_a_model_holds_for_it_alone() {
        let config = json!({
            "about": "", "models": ["a/tiny", "big"], "data": "data", "tasks": ["rte"], "methods": ["m", "n"],
            "seeds": [0], "defaults": { "max_steps": 5 }, "method": { "m": { "lr": 1 }, "n": { "lr": 1 } },
            "model": { "tiny": { "defaults": { "max_steps": 7 }, "method": { "m": { "lr": 2 } } } },
        });
        let over = Overrides::default();
        let cells = cells(&serde_json::from_value(config).unwrap(), &over, "flex", Path::new("g")).unwrap();
        let told = |cell: &Cell, flag: &str| {
            cell.args[1 + cell.args.iter().position(|a| a == flag).unwrap()].clone()
        };
        let got: Vec<_> = cells.iter().map(|cell| (told(cell, "--lr"), told(cell, "--max-steps"))).collect();
        let expected = [("2", "7"), ("1", "7"), ("1", "5"), ("1", "5")];
        assert_eq!(got, expected.map(|(lr, steps)| (lr.to_owned(), steps.to_owned())));
    }

    #[test]
    fn a_cell_is_its_settings_whatever_their_order() {
        let id = |settings: &str| {
            let settings: Value = serde_json::from_str(settings).unwrap();
            plan(&["m"], json!({ "m": settings }), &Overrides::default()).unwrap()[0].id.clone()
        };
        assert_eq!(id(r#"{"lr": 5e-4, "alpha": 1}"#), id(r#"{"alpha": 1, "lr": 0.0005}"#));
        assert_ne!(id(r#"{"lr": 5e-4, "alpha": 1}"#), id(r#"{"lr": 5e-4, "alpha": 2}"#));
    }

    #[test]
    fn another_backend_is_another_cell() {
        let config = json!({
            "about": "", "models": ["tiny"], "data": "data", "tasks": ["rte"], "methods": ["m"], "seeds": [0],
            "method": { "m": {} },
        });
        let config: Config = serde_json::from_value(config).unwrap();
        let id =
            |backend| cells(&config, &Overrides::default(), backend, Path::new("g")).unwrap()[0].id.clone();
        assert_ne!(id("flex"), id("ndarray"));
    }

    #[test]
    fn a_method_asked_for_twice_is_one_cell() {
        let settings = json!({ "m": { "rank": 8 } });
        let cells = plan(&["m:8", "m", "m:4:8"], settings, &Overrides::default()).unwrap();
        assert_eq!(
            cells.iter().map(|cell| cell.args.last().unwrap().as_str()).collect::<Vec<_>>(),
            ["8", "4"]
        );
    }

    #[test]
    fn references_multiply_the_cells_and_come_first() {
        let settings = json!({
            "m": { "model": "@small", "method": "head" },
            "small": { "command": "compress", "ratio": [0.1, 0.2] },
        });
        let cells = plan(&["m"], settings, &Overrides::default()).unwrap();
        let commands: Vec<&str> = cells.iter().map(|cell| cell.args[0].as_str()).collect();
        assert_eq!(commands, ["compress", "compress", "finetune", "finetune"]);
        for (cell, need) in cells[2..].iter().zip(&cells[..2]) {
            assert_eq!(cell.needs, [need.id.as_str()]);
            assert_eq!(cell.args[2], format!("grid/cells/{}", need.id));
        }
        assert_ne!(cells[2].id, cells[3].id);
    }
}
