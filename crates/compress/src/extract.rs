//! The difference of two models as low-rank updates: a fine-tuning as an adapter.

use std::path::Path;

use lowrank_checkpoint::Checkpoint;
use lowrank_factor::matrix::from_row_major;
use lowrank_factor::{LowRank, SigmaPlacement, Truncation};
use lowrank_spec::names::{expert_of, is_buffer};
use lowrank_spec::{HostTensor, Site, transpose};
use serde_json::{Map, Value};

use crate::error::{CompressError, Result, at};
use crate::folder;
use crate::products::{Products, triplets};
use crate::weights::{LM_HEADS, is_lookup, is_shared_words, is_tied, settle_tie, token_table};

/// The update of one module.
#[derive(Clone, Debug)]
pub struct ExtractedModule {
    /// The module; `d_input` of an embedding is its vocabulary.
    pub site: Site,
    /// `[d_input, rank]` and `[rank, d_output]`.
    pub factors: LowRank<f32>,
    /// Relative error of the truncation.
    pub error: f64,
}

/// The difference between two models.
#[derive(Clone, Debug)]
pub struct Extracted {
    /// The matrices that differ.
    pub modules: Vec<ExtractedModule>,
    /// Modules that are saved in full, none inside another: new heads, changed norms, tables that take no factors.
    pub saved_modules: Vec<String>,
    /// Their tensors, and all biases if any of them differs.
    pub saved: Vec<HostTensor<'static>>,
    /// Whether any bias outside the modules that are saved in full differs.
    pub biases_differ: bool,
    /// Tensors of the tuned model that belong to a head beside the language model and are left out.
    pub ignored: Vec<String>,
    /// Content hash of the base model.
    pub base_hash: String,
}

/// The difference `tuned − base`, each matrix truncated.
///
/// A tied embedding is one table with two uses, and an adapter of the embedding does not affect the head, so
/// its difference is returned twice: for the embedding and, transposed, for the head.
///
/// # Errors
/// Folders of models that are not dense, tensors without a counterpart outside of heads, non-finite values,
/// models with identical matrices, a changed table of words that the halves of an encoder-decoder share.
pub fn extract(base: &Path, tuned: &Path, truncation: &Truncation) -> Result<Extracted> {
    extract_with(base, tuned, truncation, None)
}

/// As [`extract`], with the large products of randomized decompositions in another place than the host.
///
/// # Errors
/// As [`extract`], and those of the products.
pub fn extract_with(
    base: &Path,
    tuned: &Path,
    truncation: &Truncation,
    products: Option<&dyn Products>,
) -> Result<Extracted> {
    let pair = Pair::open(base, tuned)?;
    pair.check_whole()?;
    pair.check_words()?;
    let mut made = Extracted {
        saved_modules: pair.without_counterpart()?,
        modules: Vec::new(),
        saved: Vec::new(),
        biases_differ: false,
        ignored: pair.ignored(),
        base_hash: pair.base.content_hash()?,
    };
    let reduce = |site: Site, values: &[f32]| update(site, values, truncation, products);
    for name in pair.tuned.names() {
        let Some(before) = pair.counterpart(name).filter(|_| !made.saved_modules.contains(&module_of(name)))
        else {
            continue;
        };
        pair.compare(before, name, &reduce, &mut made)?;
    }
    made.drop_enclosed();
    if made.modules.is_empty() {
        return Err(CompressError::Input(made.without_matrices()));
    }
    let is_saved = |name: &&str| {
        is_in(&module_of(name), &made.saved_modules) || (made.biases_differ && name.ends_with(".bias"))
    };
    let saved = pair.tuned.names().filter(is_saved).map(|name| {
        let shape = pair.tuned.info(name).map(|info| info.shape.clone()).unwrap_or_default();
        Ok(HostTensor::new(name, shape, pair.tuned.read_f32(name)?))
    });
    made.saved = saved.collect::<Result<_>>()?;
    Ok(made)
}

impl Extracted {
    /// Drops whatever is inside a module that is saved in full.
    fn drop_enclosed(&mut self) {
        let saved = self.saved_modules.clone();
        self.saved_modules
            .retain(|module| !saved.iter().any(|outer| outer != module && encloses(outer, module)));
        self.modules.retain(|module| !is_in(&module.site.path, &saved));
    }

    /// Why there is nothing to extract.
    fn without_matrices(&self) -> String {
        let mut others: Vec<String> = self.saved_modules.iter().map(|name| format!("'{name}'")).collect();
        if self.biases_differ {
            others.push("biases".into());
        }
        if others.is_empty() {
            return "the two models have identical matrices: nothing to extract".into();
        }
        format!(
            "the two models differ in {} only, which are not matrices of linear maps and would be stored in full: nothing to \
             extract; use the tuned model itself",
            others.join(", ")
        )
    }
}

/// Tables that take no factors in PEFT: DeBERTa's is read without being called, those of OPT, BART and mBART are called with
/// other inputs than positions.
const IN_FULL: [&str; 2] = ["rel_embeddings", "embed_positions"];
/// Names of the tables to which a language model's head may be tied.
const TOKEN_TABLES: [&str; 4] = ["embed_tokens", "wte", "embed_in", "tok_embeddings"];
/// Substrings of the names of modules that come after the layers.
const HEADS: [&str; 7] = ["classifier", "pooler", "score", "lm_head", "qa_outputs", "cls", "vocab_"];

/// The two models.
struct Pair<'a> {
    folders: [&'a Path; 2],
    config: Map<String, Value>,
    base: Checkpoint,
    tuned: Checkpoint,
    /// Prefix of every name of the tuned model that the base does not have (`bert.`).
    prefix: Option<String>,
}

impl<'a> Pair<'a> {
    fn open(base: &'a Path, tuned: &'a Path) -> Result<Self> {
        let (mut config, mut base_config) = (folder::read_config(tuned)?, folder::read_config(base)?);
        for (folder, config) in [(base, &base_config), (tuned, &config)] {
            if config.contains_key("lowrank") {
                return Err(CompressError::Input(format!(
                    "{}: its weights are already factored; start from dense models",
                    folder.display()
                )));
            }
        }
        let folders = [base, tuned];
        let (base, tuned) = (Checkpoint::open(base)?, Checkpoint::open(tuned)?);
        let ties = [settle_tie(&base, &mut base_config)?, settle_tie(&tuned, &mut config)?];
        for (folder, (checkpoint, is_tied)) in folders.iter().zip([&base, &tuned].into_iter().zip(ties)) {
            let head = LM_HEADS.iter().find(|head| checkpoint.contains(&format!("{head}.weight")));
            if let Some(head) = head.filter(|_| is_tied && token_table(checkpoint).is_none()) {
                return Err(CompressError::Input(format!(
                    "{}: the table of its embedding is stored as '{head}.weight', to which it is tied; expected it under \
                     the embedding's name",
                    folder.display()
                )));
            }
        }
        let has_head = LM_HEADS.iter().any(|head| base.contains(&format!("{head}.weight")));
        if ties == [false, true] && has_head && !has_other_head(&config) {
            return Err(CompressError::Input(format!(
                "the head of {} is tied to its embedding and that of {} is not; give one model before and after \
                 fine-tuning",
                folders[1].display(),
                folders[0].display()
            )));
        }
        let prefix = missing_prefix(&base, &tuned);
        Ok(Self { folders, config, base, tuned, prefix })
    }

    /// Refuses a tuned model whose layers lack a tensor of the base, such as one with fewer layers.
    fn check_whole(&self) -> Result<()> {
        let has = |name: &str| {
            let prefixed =
                self.prefix.as_ref().is_some_and(|prefix| self.tuned.contains(&format!("{prefix}{name}")));
            prefixed || self.tuned.contains(name)
        };
        // Outside the layers are heads, which differ from task to task.
        let is_of_layer = |name: &str| name.split('.').any(|part| part.parse::<usize>().is_ok());
        let lost = self
            .base
            .names()
            .find(|name| is_of_layer(name) && !has(name) && !is_head(name) && !is_buffer(name));
        match lost {
            None => Ok(()),
            Some(name) => Err(CompressError::Input(format!(
                "'{name}' of {} has no counterpart in {}; give one model before and after fine-tuning",
                self.folders[0].display(),
                self.folders[1].display()
            ))),
        }
    }

    /// Refuses a changed table of words for whose change an adapter has no place.
    fn check_words(&self) -> Result<()> {
        let is_words = |name: &&str| {
            name.strip_suffix(".weight").is_some_and(|path| is_shared_words(path, &self.config))
        };
        for name in self.tuned.names().filter(is_words) {
            let Some(before) = self.counterpart(name) else { continue };
            if self.base.read_f32(before)? != self.tuned.read_f32(name)? {
                return Err(CompressError::Input(format!(
                    "'{name}' differs from the base's, and an adapter of it has no effect in transformers, which calls the tables of \
                     the encoder and decoder in its place; extract from a model that was tuned with that table frozen, or use \
                     the tuned model itself"
                )));
            }
        }
        Ok(())
    }

    fn named_alike(&self, name: &str) -> Option<&str> {
        let bare = self.prefix.as_deref().and_then(|prefix| name.strip_prefix(prefix));
        let find = |wanted: &str| self.base.names().find(|n| *n == wanted);
        bare.and_then(find).or_else(|| find(name))
    }

    /// The base's tensor of the same name and shape.
    fn counterpart(&self, name: &str) -> Option<&str> {
        let shape =
            |checkpoint: &Checkpoint, name: &str| checkpoint.info(name).map(|info| info.shape.clone());
        self.named_alike(name).filter(|before| shape(&self.base, before) == shape(&self.tuned, name))
    }

    /// The heads that the base does not have, or has for another task.
    fn without_counterpart(&self) -> Result<Vec<String>> {
        let mut modules = Vec::new();
        for name in self.tuned.names().filter(|name| self.counterpart(name).is_none() && !is_buffer(name)) {
            // A stored copy of a tied table is not a separate head.
            if self.is_tied_copy(name) || is_value_head(name) {
                continue;
            }
            if !is_head(name) {
                let shape =
                    |checkpoint: &Checkpoint, name: &str| checkpoint.info(name).map(|i| i.shape.clone());
                let before = self.named_alike(name).and_then(|n| shape(&self.base, n));
                return Err(CompressError::Input(format!(
                    "'{name}' of {} has no counterpart in {}: {:?} against {}; give one model before and after \
                     fine-tuning",
                    self.folders[1].display(),
                    self.folders[0].display(),
                    shape(&self.tuned, name).unwrap_or_default(),
                    before.map_or("nothing".into(), |s| format!("{s:?}"))
                )));
            }
            note(name, &mut modules);
        }
        Ok(modules)
    }

    /// Tensors of value heads that the base does not have.
    fn ignored(&self) -> Vec<String> {
        let is_ignored = |name: &&str| is_value_head(name) && self.counterpart(name).is_none();
        self.tuned.names().filter(is_ignored).map(str::to_string).collect()
    }

    /// Whether a tensor is the stored copy of a table to which the language model's head is tied.
    fn is_tied_copy(&self, name: &str) -> bool {
        let is_head = name.strip_suffix(".weight").is_some_and(|path| LM_HEADS.contains(&path));
        is_head && is_tied(&self.config)
    }

    /// The head tied to a table, if there is one.
    fn tied_head(&self, table: &str) -> Option<&'static str> {
        let leaf = table.rsplit('.').next().unwrap_or(table);
        // BLOOM and Falcon; an encoder keeps its table deeper, and its head is another.
        let is_outer = matches!(table, "word_embeddings" | "transformer.word_embeddings");
        let is_table = TOKEN_TABLES.contains(&leaf) || is_outer;
        if !is_table || !is_tied(&self.config) || has_other_head(&self.config) {
            return None;
        }
        let is_neox = self.config.get("model_type").and_then(Value::as_str) == Some("gpt_neox");
        Some(if is_neox { LM_HEADS[1] } else { LM_HEADS[0] })
    }

    /// Adds the change of one tensor; `reduce` is [`update`].
    fn compare(
        &self,
        before: &str,
        name: &str,
        reduce: &dyn Fn(Site, &[f32]) -> Result<ExtractedModule>,
        made: &mut Extracted,
    ) -> Result<()> {
        if self.is_tied_copy(name) {
            return Ok(());
        }
        let Some(info) = self.tuned.info(name).filter(|info| info.dtype.is_float()) else { return Ok(()) };
        let (before, after) = (self.base.read_f32(before)?, self.tuned.read_f32(name)?);
        if !after.iter().chain(&before).all(|v| v.is_finite()) {
            return Err(CompressError::Input(format!("'{name}' holds values that are not finite")));
        }
        // A norm by head is a matrix and no linear map.
        let map = name.strip_suffix(".weight").filter(|path| !path.ends_with("norm"));
        let (Some(path), &[rows, columns]) = (map, &info.shape[..]) else {
            if before != after && !is_buffer(name) {
                if expert_of(name).is_some() || name.ends_with(".sinks") {
                    return Err(CompressError::Input(format!(
                        "'{name}' differs from the base's, and an adapter has no place for it beside factors; extract from a \
                         model whose biases of experts and attention sinks are the base's"
                    )));
                }
                // PEFT saves biases individually and norms as modules.
                if name.ends_with(".bias") {
                    made.biases_differ = true;
                } else {
                    note(name, &mut made.saved_modules);
                }
            }
            return Ok(());
        };
        let difference: Vec<f32> = after.iter().zip(&before).map(|(a, b)| a - b).collect();
        if difference.iter().all(|v| *v == 0.0) {
            return Ok(());
        }
        let leaf = path.rsplit('.').next().unwrap_or(path);
        if IN_FULL.contains(&leaf) {
            note(name, &mut made.saved_modules);
            return Ok(());
        }
        let embedding = is_lookup(path);
        // GPT-2 stores its linear maps as (in, out), but not its embeddings and head.
        let is_conv1d = self.config.get("model_type").and_then(Value::as_str) == Some("gpt2");
        let site = Site {
            path: path.into(),
            layer: None,
            d_input: rows,
            d_output: columns,
            head: false,
            embedding,
            ..Site::default()
        };
        let update = if embedding || (is_conv1d && leaf.starts_with("c_")) {
            reduce(site, &difference)?
        } else {
            let site = Site { d_input: columns, d_output: rows, ..site };
            reduce(site, &transpose(&difference, rows, columns))?
        };
        if let Some(head) = self.tied_head(path) {
            let site = Site {
                path: head.into(),
                d_input: columns,
                d_output: rows,
                head: true,
                embedding: false,
                ..update.site.clone()
            };
            let factors = update.factors.transpose();
            made.modules.push(ExtractedModule { site, factors, error: update.error });
        }
        made.modules.push(update);
        Ok(())
    }
}

/// The best approximation of a difference `[d_input, d_output]`.
fn update(
    site: Site,
    values: &[f32],
    truncation: &Truncation,
    products: Option<&dyn Products>,
) -> Result<ExtractedModule> {
    let path = site.path.clone();
    let fail = |e| at(&path)(e);
    let matrix = from_row_major(values, site.d_input, site.d_output).map_err(fail)?;
    let truncation = match *truncation {
        Truncation::Rank(rank) => Truncation::Rank(rank.min(site.max_rank())),
        other => other,
    };
    let svd = triplets(matrix, &truncation, products).map_err(fail)?;
    let fit = svd.low_rank(&truncation, SigmaPlacement::Split).map_err(fail)?;
    Ok(ExtractedModule { site, factors: fit.factors, error: fit.report.relative_error })
}

/// Whether the config names a class whose head is not over the vocabulary, so that the table has a single
/// use.
fn has_other_head(config: &Map<String, Value>) -> bool {
    let classes = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
    classes
        .filter_map(Value::as_str)
        .any(|c| c.ends_with("Classification") || c.ends_with("QuestionAnswering"))
}

/// The module of a tensor that is saved in full; PEFT saves a head as one module.
fn module_of(name: &str) -> String {
    let module = name.rsplit_once('.').map_or(name, |(module, _)| module);
    if module.starts_with("classifier.") { "classifier".into() } else { module.into() }
}

/// Whether a path is a module or inside it.
fn encloses(module: &str, path: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Whether a path is one of the modules or inside one.
fn is_in(path: &str, modules: &[String]) -> bool {
    modules.iter().any(|module| encloses(module, path))
}

fn note(name: &str, modules: &mut Vec<String>) {
    let module = module_of(name);
    if !modules.contains(&module) {
        modules.push(module);
    }
}

fn missing_prefix(base: &Checkpoint, tuned: &Checkpoint) -> Option<String> {
    let shared = |prefix: &str| {
        tuned.names().filter(|n| n.strip_prefix(prefix).is_some_and(|n| base.contains(n))).count()
    };
    let prefixes = tuned.names().filter_map(|n| n.split_once('.').map(|(first, _)| format!("{first}.")));
    let best = prefixes.map(|p| (shared(&p), p)).max_by_key(|(n, _)| *n)?;
    (best.0 > tuned.names().filter(|n| base.contains(n)).count()).then_some(best.1)
}

/// Whether a tensor belongs to a head that reinforcement learning adds to a language model.
fn is_value_head(name: &str) -> bool {
    ["v_head.", "value_head.", "reward_head."].iter().any(|head| name.starts_with(head))
}

fn is_head(name: &str) -> bool {
    name.split('.')
        .any(|part| HEADS.iter().any(|head| part.starts_with(head) || part == format!("pre_{head}")))
}
