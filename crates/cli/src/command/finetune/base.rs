//! The frozen base of a run: its number of bits, the methods that it allows, and the memory that the run will
//! need.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use lowrank_adapters::Init;
use lowrank_checkpoint::{Checkpoint, Dtype};
use lowrank_models::params::WeightType;
use lowrank_models::{Adaptable, Decoder, Parameter, Parameters};
use lowrank_spec::names::expert_of;
use lowrank_spec::{BlockFormat, LowrankSection, Site};
use lowrank_train::{TrainConfig, TunedDecoder};
use serde_json::{Map, Value, json};

use super::Args;
use crate::backend::Train;
use crate::calibration::FIRST_TOKENS;
use crate::context::{open_model, print_json};
use crate::method::Method;

/// Options of the base.
#[derive(clap::Args)]
pub(crate) struct BaseArgs {
    /// Keep the frozen base in blocks of 4 bits (NF4, as in QLoRA) or 8 (Q8_0): linear maps inside the layers, quantized
    /// while reading
    #[arg(long, value_name = "4|8")]
    base_bits: Option<u8>,
    /// Print how much memory a language model's run will need, and exit
    #[arg(long)]
    dry_run: bool,
}

impl BaseArgs {
    /// Whether the run is only estimated.
    pub(super) fn is_dry(&self) -> bool {
        self.dry_run
    }

    /// Whether the base is quantized while it is read.
    pub(super) fn is_quantized(&self) -> bool {
        self.base_bits.is_some()
    }

    /// The settings that identify a run.
    pub(super) fn settings(&self, map: &mut Map<String, Value>) {
        if let Some(bits) = self.base_bits {
            map.insert("base_bits".into(), json!(bits));
        }
    }

    /// The type in which matrices are kept: the requested one, or `otherwise`.
    pub(super) fn weights(&self, args: &Args, otherwise: WeightType) -> Result<WeightType> {
        let format = match self.base_bits {
            None => return Ok(otherwise),
            Some(4) => BlockFormat::Nf4,
            Some(8) => BlockFormat::Q8_0,
            Some(bits) => bail_usage!("--base-bits {bits} is not supported; choose 4 or 8"),
        };
        ensure_usage!(
            !args.random_init,
            "--base-bits quantizes the weights of a checkpoint; leave it out with --random-init"
        );
        ensure_usage!(
            args.method != Method::Full,
            "--base-bits freezes the base, and --method full trains it; choose an adapter method, e.g. lora"
        );
        Ok(WeightType::Blocks(format))
    }
}

impl BaseArgs {
    /// Warns of matrices that the files hold in blocks already.
    pub(super) fn warn_blocks(&self, weights: &Path) -> Result<()> {
        let Some(bits) = self.base_bits else { return Ok(()) };
        let checkpoint = Checkpoint::open(weights)?;
        let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
        let in_file = infos.filter(|info| matches!(info.dtype, Dtype::Block(_))).count();
        let section = LowrankSection::of_config(open_model(weights)?.config())?;
        let stored = in_file + section.modules.values().filter(|entry| !entry.formats.is_empty()).count();
        if stored > 0 {
            eprintln!(
                "warning: {}: {stored} matrices are quantized already and keep their formats; --base-bits {bits} applies to the others",
                weights.display()
            );
        }
        Ok(())
    }

    /// Says how many of a model's maps `--base-bits` leaves in floats because their rows do not fit.
    pub(super) fn note_floats<M: Parameters<Train> + Adaptable<Train>>(&self, model: &M) {
        let Some(bits) = self.base_bits else { return };
        let blocks: BTreeSet<String> =
            model.blocks_where(|_| true).iter().map(|block| block.module.clone()).collect();
        let fits = |site: &Site| site.d_input.is_multiple_of(BlockFormat::Nf4.block_len());
        let is_float = |site: &&Site| {
            site.layer.is_some() && !site.embedding && !fits(site) && !blocks.contains(&site.path)
        };
        let floats: Vec<&Site> = model.sites().iter().filter(is_float).collect();
        if let Some(first) = floats.first() {
            eprintln!(
                "note: --base-bits {bits} leaves {} of the maps in floats, whose rows do not fill blocks of 32; the first is '{}' with \
                 rows of {}",
                floats.len(),
                first.path,
                first.d_input
            );
        }
    }
}

/// Refuses a method that would train a quantized matrix.
pub(super) fn check_frozen<B: burn::prelude::Backend>(
    method: Method,
    model: &impl Parameters<B>,
    trains: impl Fn(&Parameter<'_>) -> bool,
) -> Result<()> {
    if let Some(block) = model.blocks_where(|at| trains(at)).first() {
        bail!(
            "--method {} trains '{}', which is quantized ({}) and frozen; choose an adapter method, e.g. lora, or give the \
             model in floats",
            method.name(),
            block.key(),
            block.matrix.format()
        );
    }
    Ok(())
}

/// Bytes of a run by purpose.
struct Memory {
    base: usize,
    trained: usize,
    activations: usize,
    head: usize,
    /// Before training: what the initial factors are computed from.
    start: usize,
}

/// Program, tokenizer and rows.
const PROGRAM: usize = 60 << 20;
/// Logits that are in memory at once, and their gradients.
const LOGITS: usize = 2 * (32 << 20);

impl Memory {
    /// Estimate for next-token training: `tokens` per batch, parameters stored as in `model`.
    fn of(
        model: &TunedDecoder<Train>,
        checkpoint: &Checkpoint,
        init: Option<Init>,
        tokens: usize,
        recompute: bool,
    ) -> Self {
        let decoder: &Decoder<Train> = model.model();
        let config = decoder.config();
        let trained = model.count().0;
        // Inputs of the backward pass per token: the outputs of a layer's linear maps (of which attention and
        // the activation save theirs, and the maps after them their inputs), the widest input, two normalized
        // states.
        let sites = decoder.sites().iter().filter(|site| site.layer.is_some());
        let widest = sites.clone().map(|site| site.d_input).max().unwrap_or(0);
        let (experts, shared): (Vec<&Site>, Vec<&Site>) =
            sites.partition(|site| expert_of(&site.path).is_some());
        let width = |sites: &[&Site]| sites.iter().map(|site| site.d_output).sum::<usize>();
        // A token is processed by some experts of each layer, and is copied for each of them.
        let routed = config.experts.as_ref().map_or(0, |of| {
            let layers = config.layers.iter().filter(|layer| layer.experts).count();
            width(&experts) * of.top_k / of.count + 2 * layers * of.top_k * config.d_model
        });
        let saved = width(&shared) + routed + config.n_layers * (widest + 2 * config.d_model);
        let per_layer = saved / config.n_layers.max(1);
        let activations = if recompute { config.n_layers * config.d_model + 2 * per_layer } else { saved };
        // A tensor of a large vocabulary is read twice while it is loaded.
        let largest =
            checkpoint.names().filter_map(|name| checkpoint.info(name)).map(|i| 4 * i.numel()).max();
        Self {
            base: decoder.kept_bytes(),
            // Value, gradient, two moments.
            trained: 16 * trained,
            activations: 4 * tokens * activations,
            head: LOGITS.max(largest.unwrap_or(0)),
            start: match init {
                Some(Init::Loftq) => layer_bytes(decoder.sites()),
                // Hidden states before and after a layer.
                Some(Init::Qera) => {
                    8 * FIRST_TOKENS * config.d_model
                        + layer_bytes(decoder.sites())
                        + gram_bytes(decoder.sites())
                }
                _ => 0,
            },
        }
    }

    fn total(&self) -> usize {
        self.base + PROGRAM + (self.trained + self.activations + self.head).max(self.start)
    }
}

/// Bytes of the largest layer in f32.
fn layer_bytes(sites: &[Site]) -> usize {
    by_layer(sites, |site| 4 * site.d_input * site.d_output)
}

/// Bytes of the second moments of the inputs of a layer in f64, and of a copy. Maps of one width have at most three different
/// inputs: that of the attention, that of its output, and that of the MLP; those of an expert have one.
fn gram_bytes(sites: &[Site]) -> usize {
    let mut seen: BTreeMap<_, usize> = BTreeMap::new();
    by_layer(sites, |site| {
        let expert = expert_of(&site.path).map(str::to_owned);
        let most = if expert.is_some() { 1 } else { 3 };
        let before = seen.entry((site.layer, expert, site.d_input)).or_default();
        *before += 1;
        if *before <= most { 16 * site.d_input * site.d_input } else { 0 }
    })
}

/// The largest sum over the sites of a layer.
fn by_layer(sites: &[Site], mut bytes: impl FnMut(&Site) -> usize) -> usize {
    let mut sums: BTreeMap<usize, usize> = BTreeMap::new();
    for site in sites {
        if let Some(layer) = site.layer {
            *sums.entry(layer).or_default() += bytes(site);
        }
    }
    sums.into_values().max().unwrap_or(0)
}

/// Number of tokens of the largest batch that rows of these lengths can form.
fn most_tokens(config: &TrainConfig, lengths: &[usize]) -> usize {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    match config.batch_tokens {
        Some(tokens) => tokens.max(sorted.first().copied().unwrap_or(0)),
        None => sorted.iter().take(config.batch_size).sum(),
    }
}

/// Whether layers must be recomputed for a run to fit into `limit` bytes.
///
/// # Errors
/// The run does not fit either way.
pub(super) fn recomputes(
    model: &TunedDecoder<Train>,
    checkpoint: &Checkpoint,
    init: Option<Init>,
    config: &TrainConfig,
    lengths: &[usize],
    limit: u64,
) -> Result<bool> {
    let tokens = most_tokens(config, lengths);
    let total = |recompute| Memory::of(model, checkpoint, init, tokens, recompute).total() as u64;
    let totals = [false, true].map(total);
    choose_recomputation(totals, tokens, limit)
}

/// The choice between the memory of a run without and with recomputed layers.
fn choose_recomputation([without, with]: [u64; 2], tokens: usize, limit: u64) -> Result<bool> {
    let mb = |bytes: u64| bytes.div_ceil(1_000_000);
    if without <= limit {
        return Ok(false);
    }
    ensure!(
        with <= limit,
        "--memory {} MB: batches of {tokens} tokens need about {} MB, with recomputed layers {} MB; lower --batch-size, \
         --batch-tokens or --max-length",
        limit / 1_000_000,
        mb(without),
        mb(with)
    );
    eprintln!(
        "layers are recomputed: batches of {tokens} tokens need about {} MB, otherwise {} MB",
        mb(with),
        mb(without)
    );
    Ok(true)
}

/// Prints the estimated memory of a run.
pub(super) fn report(
    args: &Args,
    model: &TunedDecoder<Train>,
    checkpoint: &Checkpoint,
    config: &TrainConfig,
    lengths: &[usize],
    recompute: bool,
) -> Result<()> {
    let tokens = most_tokens(config, lengths);
    let memory = Memory::of(model, checkpoint, args.adapter.init(), tokens, recompute);
    let mb = |bytes: usize| bytes.div_ceil(1_000_000);
    let (trained, total) = model.count();
    if args.json {
        return print_json(&json!({
            "dry_run": true,
            "base_mb": mb(memory.base),
            "trained_mb": mb(memory.trained),
            "activations_mb": mb(memory.activations),
            "head_mb": mb(memory.head),
            "start_mb": mb(memory.start),
            "total_mb": mb(memory.total()),
            "batch_tokens": tokens,
            "trainable": trained,
            "total": total,
        }));
    }
    println!(
        "about {} MB: {} for the base, {} for {trained} trained parameters, {} for the activations of {tokens} tokens, {} \
         for logits and loading, {} for the program",
        mb(memory.total()),
        mb(memory.base),
        mb(memory.trained),
        mb(memory.activations),
        mb(memory.head),
        mb(PROGRAM)
    );
    if memory.start > 0 {
        println!(
            "before training, computing the initial factors takes about {} MB beside the base and the program",
            mb(memory.start)
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recomputation_is_chosen_between_the_two_peaks() -> Result<()> {
        assert!(!choose_recomputation([900, 500], 5, 900)?);
        assert!(choose_recomputation([900, 500], 5, 899)?);
        assert!(choose_recomputation([900, 500], 5, 500)?);
        let error = choose_recomputation([900, 500], 5, 499).map_err(|error| error.to_string());
        assert!(error.is_err_and(|error| error.contains("5 tokens") && error.contains("--batch-size")));
        Ok(())
    }
}
