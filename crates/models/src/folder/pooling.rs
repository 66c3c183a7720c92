//! Pooling of a text's hidden states into one vector by a sentence embedder: the files of
//! sentence-transformers.

use std::path::{Component, Path, PathBuf};

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_checkpoint::has_file;
use lowrank_kernels::Kernels;
use serde_json::Value;

use super::modules::{EmbeddingStep, MODULES};
use crate::config::read_json;
use crate::error::{ModelError, Result};

/// Pooling of a text's hidden states into one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolingMode {
    /// The first token's.
    First,
    /// The maximum of each dimension.
    Max,
    /// The mean.
    Mean,
    /// The sum divided by the square root of the number of tokens.
    MeanSqrtLen,
    /// The mean weighted by position, from 1.
    WeightedMean,
    /// The last token's.
    Last,
}

/// The keys of `1_Pooling/config.json` in the order in which sentence-transformers joins the vectors.
const MODES: [(&str, &str, PoolingMode); 6] = [
    ("pooling_mode_cls_token", "cls", PoolingMode::First),
    ("pooling_mode_max_tokens", "max", PoolingMode::Max),
    ("pooling_mode_mean_tokens", "mean", PoolingMode::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", PoolingMode::MeanSqrtLen),
    ("pooling_mode_weightedmean_tokens", "weightedmean", PoolingMode::WeightedMean),
    ("pooling_mode_lasttoken", "lasttoken", PoolingMode::Last),
];

/// The computation of an embedding from a text's hidden states.
#[derive(Clone, Debug, PartialEq)]
pub struct SentencePooling {
    /// The vectors to concatenate.
    pub modes: Vec<PoolingMode>,
    /// What follows, in this order.
    pub steps: Vec<EmbeddingStep>,
    /// Width to which embeddings are truncated.
    pub truncate: Option<usize>,
    /// Whether texts are lower-cased before they are tokenized.
    pub lower_case: bool,
    /// Prompts, each prepended to a text, by name.
    pub prompts: Vec<(String, String)>,
    /// The name of the prompt that is used unless another is requested.
    pub default_prompt: Option<String>,
    /// Whether the tokens of a prompt are pooled too.
    pub pools_prompt: bool,
}

impl Default for SentencePooling {
    /// The mean over tokens.
    fn default() -> Self {
        Self {
            modes: vec![PoolingMode::Mean],
            steps: Vec::new(),
            truncate: None,
            lower_case: false,
            prompts: Vec::new(),
            default_prompt: None,
            pools_prompt: true,
        }
    }
}

impl SentencePooling {
    /// Reads `modules.json` and the configs that it names, with the transformer in the folder `model`.
    pub(super) fn read(folder: &Path, model: &Path, d_model: usize) -> Result<Self> {
        let path = folder.join("modules.json");
        let transformer = transformer_config([folder, model])?;
        let mut pooling =
            Self { lower_case: transformer["do_lower_case"].as_bool().unwrap_or(false), ..Self::default() };
        pooling.read_prompts(&folder.join("config_sentence_transformers.json"))?;
        let Some(modules) = read_json(&path)? else {
            let file = folder.join("1_Pooling/config.json");
            if let Some(config) = read_json(&file)? {
                pooling.read_pooling(&file, &config)?;
            }
            return Ok(pooling);
        };
        let wrong = |reason: String| ModelError::Config { path: path.clone(), reason };
        let modules = modules.as_array().ok_or_else(|| wrong("expected a list of modules".into()))?;
        let mut width = None;
        for module in modules {
            let kind = module["type"].as_str().unwrap_or_default();
            let place = module["path"].as_str().unwrap_or_default();
            match kind.rsplit('.').next().unwrap_or_default() {
                "Transformer" if place.is_empty() || folder.join(place) == model => {}
                "Transformer" => {
                    return Err(wrong(format!(
                        "the transformer is in the folder '{place}'; give that folder as the model"
                    )));
                }
                "Pooling" => {
                    let file = folder.join(place).join("config.json");
                    let config = read_json(&file)?.ok_or_else(|| ModelError::File {
                        path: file.clone(),
                        reason: "no such file; modules.json names it".into(),
                    })?;
                    pooling.read_pooling(&file, &config)?;
                    width = Some(d_model * pooling.modes.len());
                }
                name => {
                    let Some((_, read)) = MODULES.iter().find(|(known, _)| *known == name) else {
                        let kind = if kind.is_empty() { "?" } else { kind };
                        let known = MODULES.map(|(name, _)| name).join(", ");
                        return Err(wrong(format!(
                            "module '{kind}' is not supported; expected Transformer, Pooling, {known}"
                        )));
                    };
                    let before =
                        width.ok_or_else(|| wrong(format!("module '{kind}' is not after a pooling")))?;
                    if let Some(step) = read(&folder.join(place))? {
                        let after = step.output_width(before).map_err(|expected| {
                            wrong(format!(
                                "'{place}' expects vectors of {expected} numbers; here they have {before}"
                            ))
                        })?;
                        width = Some(after);
                        pooling.steps.push(step);
                    }
                }
            }
        }
        Ok(pooling)
    }

    fn read_pooling(&mut self, path: &Path, config: &Value) -> Result<()> {
        self.modes = modes(path, config)?;
        self.pools_prompt = config["include_prompt"].as_bool().unwrap_or(true);
        Ok(())
    }

    /// The prompts, and the width to which embeddings are truncated.
    fn read_prompts(&mut self, path: &Path) -> Result<()> {
        let wrong = |reason: String| ModelError::Config { path: path.to_path_buf(), reason };
        let Some(config) = read_json(path)? else { return Ok(()) };
        for (name, text) in config["prompts"].as_object().into_iter().flatten() {
            let text = text
                .as_str()
                .ok_or_else(|| wrong(format!("the prompt '{name}' is {text}; expected a text")))?;
            self.prompts.push((name.clone(), text.into()));
        }
        match &config["default_prompt_name"] {
            Value::Null => {}
            Value::String(name) => {
                self.prompt(Some(name))
                    .map_err(|known| wrong(format!("default_prompt_name '{name}': {known}")))?;
                self.default_prompt = Some(name.clone());
            }
            other => return Err(wrong(format!("default_prompt_name is {other}; expected a name"))),
        }
        self.truncate = match &config["truncate_dim"] {
            Value::Null => None,
            value => match value.as_u64() {
                Some(n) if n > 0 => Some(n as usize),
                _ => return Err(wrong(format!("truncate_dim is {value}; expected a positive number"))),
            },
        };
        Ok(())
    }

    /// The prompt of this name, else the default one, else empty.
    ///
    /// # Errors
    /// The known names, if this is none of them.
    pub fn prompt(&self, name: Option<&str>) -> std::result::Result<&str, String> {
        let Some(name) = name.or(self.default_prompt.as_deref()) else { return Ok("") };
        let found = self.prompts.iter().find(|(known, _)| known == name);
        found.map(|(_, text)| text.as_str()).ok_or_else(|| {
            let names: Vec<&str> = self.prompts.iter().map(|(name, _)| name.as_str()).collect();
            match names.is_empty() {
                true => "the model has no prompts".into(),
                false => format!("unknown prompt; choose {}", names.join(", ")),
            }
        })
    }

    /// The embeddings of packed sequences of these lengths, without their first `skip` tokens, of which each must have more.
    ///
    /// # Shapes
    /// - hidden: `[tokens, d_model]`
    /// - output: `[sequences, width]`
    pub fn pool<B: Kernels>(&self, hidden: Tensor<B, 2>, lengths: &[usize], skip: usize) -> Tensor<B, 2> {
        let mut first = 0;
        let rows = lengths.iter().map(|&n| {
            let states = hidden.clone().narrow(0, first + skip, n - skip); // [n - skip, d_model]
            first += n;
            Tensor::cat(self.modes.iter().map(|mode| mode.pool(states.clone(), skip, n)).collect(), 1)
        });
        let pooled = Tensor::cat(rows.collect(), 0);
        let embedding = self.steps.iter().fold(pooled, |x, step| step.apply(x));
        let width = embedding.dims()[1];
        embedding.narrow(1, 0, self.truncate.map_or(width, |n| n.min(width)))
    }
}

impl PoolingMode {
    /// One vector of the states of a text of `n` tokens after its first `skip`.
    fn pool<B: Backend>(self, states: Tensor<B, 2>, skip: usize, n: usize) -> Tensor<B, 2> {
        let pooled = n - skip;
        match self {
            Self::First => states.narrow(0, 0, 1),
            Self::Last => states.narrow(0, pooled - 1, 1),
            Self::Max => states.max_dim(0),
            Self::Mean => states.mean_dim(0),
            Self::MeanSqrtLen => states.sum_dim(0) / (pooled as f64).sqrt(),
            Self::WeightedMean => {
                let total = (skip + 1..=n).sum::<usize>() as f32;
                let weights: Vec<f32> = (skip + 1..=n).map(|place| place as f32 / total).collect();
                let weights = Tensor::from_data(TensorData::new(weights, [pooled, 1]), &states.device());
                (states * weights).sum_dim(0)
            }
        }
    }
}

/// The enabled modes.
fn modes(path: &Path, config: &Value) -> Result<Vec<PoolingMode>> {
    let wrong = |reason: String| ModelError::Config { path: path.to_path_buf(), reason };
    let named = |name: &str| MODES.iter().find(|(_, short, _)| *short == name).map(|(_, _, mode)| *mode);
    let names: Option<Vec<&str>> = match &config["pooling_mode"] {
        Value::String(name) => Some(vec![name.as_str()]),
        Value::Array(names) => Some(names.iter().map(|name| name.as_str().unwrap_or("?")).collect()),
        _ => None,
    };
    let found: Vec<PoolingMode> = match names {
        Some(names) => {
            let mode = |name: &str| {
                named(name).ok_or_else(|| wrong(format!("pooling_mode '{name}' is not supported")))
            };
            names.into_iter().map(mode).collect::<Result<_>>()?
        }
        None => {
            let is_on = |key: &str| config[key].as_bool().unwrap_or(false);
            MODES.iter().filter(|(key, ..)| is_on(key)).map(|(.., mode)| *mode).collect()
        }
    };
    let is_mode = |key: &String| key.starts_with("pooling_mode");
    if config.as_object().is_some_and(|config| !config.keys().any(is_mode)) {
        return Ok(vec![PoolingMode::Mean]);
    }
    if found.is_empty() {
        return Err(wrong(
            "no pooling mode is switched on; expected pooling_mode_mean_tokens or another".into(),
        ));
    }
    Ok(found)
}

/// Names of the transformer's file in sentence-transformers, of which the first that exists is read.
pub(crate) const TRANSFORMER_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// The folder with the model of an embedder of an older layout, according to `modules.json`.
pub(super) fn transformer_folder(root: &Path) -> Result<Option<PathBuf>> {
    let modules = read_json(&root.join("modules.json"))?.unwrap_or_default();
    let of = |module: &Value| {
        let kind = module["type"].as_str()?.rsplit('.').next()?;
        let place = Path::new(module["path"].as_str().filter(|_| kind == "Transformer")?);
        let is_below = place.components().all(|part| matches!(part, Component::Normal(_)));
        let folder = root.join(place);
        (is_below && has_file(folder.join("config.json"))).then_some(folder)
    };
    Ok(modules.as_array().into_iter().flatten().find_map(of))
}

/// The transformer's file of the first folder that has one, null without one.
fn transformer_config(folders: [&Path; 2]) -> Result<Value> {
    for folder in folders {
        for name in TRANSFORMER_CONFIGS {
            if let Some(config) = read_json(&folder.join(name))? {
                return Ok(config);
            }
        }
    }
    Ok(Value::Null)
}

/// `max_seq_length` of the transformer's file.
pub(super) fn max_length(folders: [&Path; 2]) -> Result<Option<usize>> {
    let config = transformer_config(folders)?;
    Ok(config["max_seq_length"].as_u64().filter(|&n| n > 0).map(|n| n as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn read(files: &[(&str, &str)]) -> Result<SentencePooling> {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        SentencePooling::read(dir.path(), dir.path(), 2)
    }

    const MODULES: &str = r#"[{"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"},
        {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}]"#;

    #[test]
    fn the_folder_says_how() {
        assert_eq!(read(&[]).unwrap(), SentencePooling::default());
        let first = r#"{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}"#;
        let pooling = read(&[("modules.json", MODULES), ("1_Pooling/config.json", first)]).unwrap();
        assert_eq!(pooling.modes, [PoolingMode::First]);
        assert_eq!(pooling.steps, [EmbeddingStep::Normalize]);
        let last = r#"{"pooling_mode_lasttoken": true, "pooling_mode_max_tokens": true}"#;
        let pooling = read(&[("1_Pooling/config.json", last)]).unwrap();
        assert_eq!(pooling.modes, [PoolingMode::Max, PoolingMode::Last]);
        assert!(pooling.steps.is_empty());
        let newer = read(&[("1_Pooling/config.json", r#"{"pooling_mode": "weightedmean"}"#)]).unwrap();
        assert_eq!(newer.modes, [PoolingMode::WeightedMean]);
        let unsaid = read(&[("1_Pooling/config.json", r#"{"word_embedding_dimension": 2}"#)]).unwrap();
        assert_eq!(unsaid.modes, [PoolingMode::Mean]);
        let older = r#"{"do_lower_case": true}"#;
        assert!(read(&[("sentence_roberta_config.json", older)]).unwrap().lower_case);
        let both = [("sentence_bert_config.json", "{}"), ("sentence_roberta_config.json", older)];
        assert!(!read(&both).unwrap().lower_case);
    }

    #[test]
    fn each_mode_is_its_formula() {
        type B = burn_flex::Flex;
        let device = Default::default();
        // Texts of two tokens and of one.
        let hidden = Tensor::<B, 2>::from_floats([[1.0, 4.0], [3.0, -2.0], [3.0, 4.0]], &device);
        let check = |mode: PoolingMode, normalize: bool, expect: [f32; 4]| {
            let steps = if normalize { vec![EmbeddingStep::Normalize] } else { Vec::new() };
            let pooling = SentencePooling { modes: vec![mode], steps, ..SentencePooling::default() };
            let got: Vec<f32> = pooling.pool(hidden.clone(), &[2, 1], 0).into_data().iter::<f32>().collect();
            // A few roundings of f32.
            assert!(got.iter().zip(expect).all(|(a, b)| (a - b).abs() < 1e-6), "{mode:?}: {got:?}");
        };
        check(PoolingMode::First, false, [1.0, 4.0, 3.0, 4.0]);
        check(PoolingMode::Last, false, [3.0, -2.0, 3.0, 4.0]);
        check(PoolingMode::Max, false, [3.0, 4.0, 3.0, 4.0]);
        check(PoolingMode::Mean, false, [2.0, 1.0, 3.0, 4.0]);
        let root = 2f32.sqrt();
        check(PoolingMode::MeanSqrtLen, false, [4.0 / root, 2.0 / root, 3.0, 4.0]);
        check(PoolingMode::WeightedMean, false, [7.0 / 3.0, 0.0, 3.0, 4.0]);
        check(PoolingMode::Mean, true, [2.0 / 5f32.sqrt(), 1.0 / 5f32.sqrt(), 0.6, 0.8]);
        let both = SentencePooling {
            modes: vec![PoolingMode::First, PoolingMode::Last],
            ..SentencePooling::default()
        };
        assert_eq!(both.pool(hidden.clone(), &[2, 1], 0).dims(), [2, 4]);
        let short = SentencePooling { truncate: Some(1), ..both };
        assert_eq!(short.pool(hidden, &[2, 1], 0).dims(), [2, 1]);
    }

    #[test]
    fn what_is_not_supported_is_named() {
        let refused = |files: &[(&str, &str)], part: &str| {
            let error = read(files).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(&[("modules.json", MODULES)], "modules.json names it");
        refused(
            &[("modules.json", r#"[{"type": "sentence_transformers.models.CNN", "path": "2_CNN"}]"#)],
            "models.CNN' is not supported",
        );
        refused(
            &[("modules.json", r#"[{"type": "sentence_transformers.models.Dense", "path": "2_Dense"}]"#)],
            "is not after a pooling",
        );
        let prompts = |config: &'static str| [("config_sentence_transformers.json", config)];
        refused(&prompts(r#"{"prompts": {"query": 1}}"#), "'query' is 1");
        refused(&prompts(r#"{"default_prompt_name": "q"}"#), "no prompts");
        refused(&prompts(r#"{"prompts": {"a": "", "b": ""}, "default_prompt_name": "q"}"#), "choose a, b");
        refused(&prompts(r#"{"truncate_dim": 0}"#), "truncate_dim is 0");
        refused(&[("1_Pooling/config.json", r#"{"pooling_mode_mean_tokens": false}"#)], "no pooling mode");
        refused(&[("modules.json", "{")], "malformed JSON");
    }
}
