//! The weights to quantize and their formats.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lowrank_checkpoint::{Checkpoint, TensorInfo};
use lowrank_spec::blocks::BlockFormat;
use serde_json::{Map, Value};

use super::fit::{Base, Target, named as named_fault};
use crate::amount::{Amount, Sizes};
use crate::error::{CompressError, Result};
use crate::folder;
use crate::method::Method;
use crate::options::Options;
use crate::statistics::Unreached;
use crate::weights::{LM_HEADS, Role, Weight, find, named, select, settle_tie, token_table, word_copies};

/// The target of the formats.
pub(crate) enum Goal {
    /// One target for each weight.
    Given(Vec<Target>),
    /// A byte budget of the weight files.
    Bytes { bytes: u64, with_correction: bool },
}

/// A quantization whose only open decisions are those of a budget.
pub(crate) struct QuantPlan<'a> {
    pub(crate) model: &'a Path,
    pub(crate) config: Map<String, Value>,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) source: String,
    pub(crate) options: &'a Options,
    pub(crate) weights: Vec<Weight>,
    pub(crate) sizes: Sizes,
    pub(crate) goal: Goal,
    /// Whether the head of the language model is its embedding table; the config says the same.
    pub(crate) is_tied: bool,
    /// Whether the file holds such a table and may hold a copy of it as a head; some hold the table under the head's name alone.
    has_copy: bool,
    /// Copies of the table of words of an encoder-decoder.
    word_copies: BTreeSet<String>,
    /// Maps of experts that no token of the calibration text reached.
    pub(crate) unreached: Unreached,
}

/// Default rank of a correction.
const RANK: usize = 32;

impl<'a> QuantPlan<'a> {
    /// Reads the folder's config and the headers of its weights.
    ///
    /// # Errors
    /// Options that cannot be combined with the methods or match nothing, a model that is already compressed.
    pub(crate) fn new(model: &'a Path, options: &'a Options) -> Result<Self> {
        options.amount.validate()?;
        let mut config = folder::read_dense_config(model)?;
        if options.resume {
            let method = options.method.name();
            return Err(CompressError::Input(format!(
                "--resume applies to methods that factor weights; start {method} again without it"
            )));
        }
        let checkpoint = Checkpoint::open(model)?;
        let is_tied = settle_tie(&checkpoint, &mut config)?;
        let has_copy = is_tied && token_table(&checkpoint).is_some();
        let word_copies = word_copies(&checkpoint, &config);
        let all: Vec<Weight> =
            find(&checkpoint, &config).into_iter().filter(|weight| is_read(weight, is_tied)).collect();
        let weights = match &options.targets {
            Some(targets) => select(&all, Some(targets))?,
            None => {
                select(&all, None)?;
                all.iter().filter(|weight| is_taken(weight)).cloned().collect()
            }
        };
        let sizes = folder::sizes(&checkpoint, &weights, options.dtype)?;
        let goal = goal(options, &all, &weights)?;
        let source = checkpoint.content_hash()?;
        Ok(Self {
            model,
            config,
            checkpoint,
            source,
            options,
            weights,
            sizes,
            goal,
            is_tied,
            has_copy,
            word_copies,
            unreached: Unreached::default(),
        })
    }

    /// Formats that a weight may have under a budget, including floats. MXFP4 has the bytes of NF4, and larger errors.
    pub(crate) fn formats(&self, index: usize) -> Vec<Option<BlockFormat>> {
        let columns = self.weights[index].row_shape()[1];
        let fits = BlockFormat::ALL.into_iter().filter(|format| columns.is_multiple_of(format.block_len()));
        let fits = fits.filter(|format| *format != BlockFormat::Mxfp4);
        fits.map(Some).chain([None]).collect()
    }

    /// Whether factors in place of a matrix compete under a budget: under `auto`, which chooses the form too.
    pub(crate) fn allows_low_rank(&self) -> bool {
        self.options.method == Method::Auto
    }

    /// Whether a tensor is left out: a copy of the table, which the model never reads, as a tied head or under another name.
    pub(crate) fn is_left_out(&self, name: &str) -> bool {
        if self.word_copies.contains(name) {
            return true;
        }
        self.has_copy && name.strip_suffix(".weight").is_some_and(|path| LM_HEADS.contains(&path))
    }

    /// Bytes of a weight in a target.
    ///
    /// # Errors
    /// Rows that the target's format cannot hold.
    pub(crate) fn bytes(&self, index: usize, target: Target) -> Result<u64> {
        let weight = &self.weights[index];
        let [rows, columns] = weight.row_shape();
        let float = folder::output_dtype(weight.dtype, self.options.dtype, target.rank > 0).size();
        let matrix = match target.base {
            Base::Absent => 0,
            Base::Floats | Base::Blocks(_) => rows,
        };
        let of = |format: Option<BlockFormat>, rows: usize, columns: usize| match format {
            Some(format) => Ok(rows * format.row_bytes(columns).map_err(named_fault(&weight.site.path))?),
            None => Ok::<_, CompressError>(rows * columns * float),
        };
        let factor = |width: usize| {
            let format = Some(target.factors).filter(|f| width.is_multiple_of(f.block_len()));
            of(format, target.rank, width).map(|bytes| bytes + ENTRY)
        };
        let correction = if target.rank > 0 { factor(rows)? + factor(columns)? } else { 0 };
        Ok((of(target.format(), matrix, columns)? + correction) as u64)
    }

    /// Bytes of the file other than the selected weights.
    pub(crate) fn other_bytes(&self) -> u64 {
        let left_out = self.checkpoint.names().filter(|name| self.is_left_out(name));
        let size = |info: &TensorInfo| {
            info.numel() * folder::output_dtype(info.dtype, self.options.dtype, false).size()
        };
        let left_out: usize = left_out.filter_map(|name| self.checkpoint.info(name)).map(size).sum();
        // Metadata and the padding of the header.
        (self.sizes.other_bytes + 512).saturating_sub(left_out as u64)
    }
}

/// Header bytes of a tensor.
const ENTRY: usize = 160;

/// Whether the model reads a weight; it does not read the copy of a tied table.
fn is_read(weight: &Weight, is_tied: bool) -> bool {
    !(is_tied && weight.role == Role::Head && LM_HEADS.contains(&weight.site.path.as_str()))
}

/// Weights that are quantized by default: linear maps inside layers, token tables, language-model heads.
fn is_taken(weight: &Weight) -> bool {
    match weight.role {
        Role::Block | Role::Embedding => true,
        Role::Head => LM_HEADS.contains(&weight.site.path.as_str()),
        Role::Outer | Role::Router => false,
    }
}

fn goal(options: &Options, all: &[Weight], weights: &[Weight]) -> Result<Goal> {
    let method = options.method.name();
    let fail = |reason: String| Err(CompressError::Input(reason));
    let with_correction = options.method != Method::Quant;
    match (&options.amount, options.format) {
        (Amount::Bytes(bytes), None) => Ok(Goal::Bytes { bytes: *bytes, with_correction }),
        (Amount::Bytes(_), Some(format)) => {
            fail(format!("--bytes chooses the formats; leave out the one given ({format})"))
        }
        (Amount::Ranks(_), _) if options.method == Method::Quant => {
            fail("quant takes no ranks; choose quant+lowrank".into())
        }
        (Amount::Stored | Amount::Ranks(_), Some(format)) => {
            let mut ranks: BTreeMap<&str, usize> = BTreeMap::new();
            if let Amount::Ranks(given) = &options.amount {
                for (name, rank) in given {
                    for weight in named(all, name)? {
                        let most = weight.shape()[0].min(weight.shape()[1]);
                        if *rank > most {
                            return fail(format!(
                                "'{}': correction rank {rank} exceeds {most}, the largest that its shape allows",
                                weight.site.path
                            ));
                        }
                        let path = weights.iter().find(|w| w.site.path == weight.site.path);
                        ranks.extend(path.map(|w| (w.site.path.as_str(), *rank)));
                    }
                }
            } else if with_correction {
                let blocks = weights.iter().filter(|w| w.role == Role::Block);
                // At half the side of a square matrix, the factors have as many elements as the matrix.
                let rank = |w: &Weight| RANK.min(w.shape()[0].min(w.shape()[1]) / 2);
                ranks.extend(blocks.map(|w| (w.site.path.as_str(), rank(w))));
            }
            if let Some(table) =
                weights.iter().find(|w| w.site.embedding && ranks.contains_key(&*w.site.path))
            {
                return fail(format!(
                    "'{}' is an embedding, and corrections apply to linear maps only; leave it out of --ranks",
                    table.site.path
                ));
            }
            let target = |weight: &Weight| -> Target {
                let format = given_format(weight, format);
                let rank = ranks.get(weight.site.path.as_str()).copied().unwrap_or(0);
                Target::of(format, if format.is_some() { rank } else { 0 })
            };
            Ok(Goal::Given(weights.iter().map(target).collect()))
        }
        (Amount::Stored | Amount::Ranks(_), None) => {
            fail(format!("{method} needs a number of bits or bytes; give --bits, --type or --bytes"))
        }
        (amount, _) => fail(format!(
            "{method} takes --bits, --type or --bytes, not {}",
            match amount {
                Amount::Ratio { .. } => "--ratio",
                Amount::Energy(_) => "--energy",
                _ => "--error",
            }
        )),
    }
}

/// The format of a weight if one is given for all: tables and heads keep at least 6 bits, as in llama.cpp's
/// mixes, and rows that do not fit take llama.cpp's fallback format.
fn given_format(weight: &Weight, format: BlockFormat) -> Option<BlockFormat> {
    let is_outside = weight.role != Role::Block;
    let least = if is_outside && format.block_bytes() * 256 < 210 * format.block_len() {
        BlockFormat::Q6K
    } else {
        format
    };
    least.fitting(weight.row_shape()[1])
}
