//! `lowrank merge`: fold an adapter into its model's weights.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, bail, ensure};
use burn::module::Param;
use burn::tensor::{Tensor, TensorData, bf16, f16};
use lowrank_adapters::AdapterSet;
use lowrank_adapters::peft::host_values;
use lowrank_checkpoint::{Checkpoint, Dtype, FloatType};
use lowrank_models::batch::int_tensor;
use lowrank_models::params::ToBlocks;
use lowrank_models::{
    Adaptable, Classifier, Decoder, LanguageModel, MaskedLm, ModelKind, ParamVisitor, Parameter, Rows, Run,
    Seq2Seq, Stack, Stored, Tokens, copy_companions,
};
use lowrank_spec::{BlockFormat, HostTensor, LowrankSection, Representation};

use crate::adapter::{load_adapter, warn_ignored};
use crate::backend::{Device, Inner, device};
use crate::context::{
    ModelArgs, adapter_folder, adapter_level, check_effect, new_folder, open_model, print_json, write_folder,
};
use crate::usage::usage;

/// Options of `merge`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// Type of the written weights [default: that of the model]
    #[arg(long, value_name = "f32|f16|bf16")]
    dtype: Option<FloatType>,
    /// Quantize merged weights again in their block formats [default: they become floats]
    #[arg(long)]
    requantize: bool,
    /// Output folder
    #[arg(short, long)]
    output: std::path::PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Number of probe tokens: enough for every layer to see several positions.
const PROBE: usize = 16;

/// Largest relative difference of the outputs that rounding explains: f32 sums over some thousand terms in
/// some dozen layers.
const ROUNDING: f32 = 1e-3;

/// A model that can be run on the probe, with and without an adapter.
trait Probed: Adaptable<Inner> {
    /// Outputs for the probe's tokens, on the host.
    fn probe(&self, adapters: &AdapterSet<Inner>, device: &Device) -> Result<Vec<f32>>;

    /// The weights that are factored.
    fn factored(&self) -> &LowrankSection;
}

impl Probed for Classifier<Inner> {
    fn probe(&self, adapters: &AdapterSet<Inner>, device: &Device) -> Result<Vec<f32>> {
        let config = self.config();
        if let Some(patches) = config.patches() {
            let n = patches.n_patches() * patches.width();
            let pixels: Vec<f32> = (0..n).map(|i| ((i * 7919 + 1) % 255) as f32 / 127.5 - 1.0).collect();
            let batch = self.batch(Tokens::pictures(&pixels, &[1 + patches.n_patches()]), device)?;
            return Ok(host_values(self.forward(&batch, Run::eval(adapters))));
        }
        let ids = probe_ids(config.vocab_size(), config.max_tokens());
        let batch = self.batch(Tokens::new(&ids, &[ids.len()]), device)?;
        Ok(host_values(self.forward(&batch, Run::eval(adapters))))
    }

    fn factored(&self) -> &LowrankSection {
        self.config().lowrank()
    }
}

impl Probed for MaskedLm<Inner> {
    fn probe(&self, adapters: &AdapterSet<Inner>, device: &Device) -> Result<Vec<f32>> {
        let config = self.config();
        let ids = probe_ids(config.vocab_size, config.max_tokens());
        let batch = self.batch(Tokens::new(&ids, &[ids.len()]), device)?;
        let all = int_tensor((0..ids.len() as i32).collect(), device);
        Ok(host_values(self.forward(&batch, all, Run::eval(adapters))))
    }

    fn factored(&self) -> &LowrankSection {
        &self.config().lowrank
    }
}

impl Probed for Decoder<Inner> {
    fn probe(&self, adapters: &AdapterSet<Inner>, device: &Device) -> Result<Vec<f32>> {
        let config = self.config();
        let ids = probe_ids(config.vocab_size, config.max_positions);
        let batch = self.batch(Tokens::new(&ids, &[ids.len()]), device)?;
        Ok(host_values(self.forward(&batch, Rows::All, Run::eval(adapters))))
    }

    fn factored(&self) -> &LowrankSection {
        &self.config().lowrank
    }
}

impl Probed for Seq2Seq<Inner> {
    fn probe(&self, adapters: &AdapterSet<Inner>, device: &Device) -> Result<Vec<f32>> {
        let config = self.config();
        let [source, target] =
            config.limits().map(|limit| probe_ids(config.decoder.vocab_size, limit.unwrap_or(PROBE)));
        let run = Run::eval(adapters);
        let states = self.encode(&self.source(Tokens::new(&source, &[source.len()]), device)?, run);
        let target = self.target(Tokens::new(&target, &[target.len()]), device)?;
        Ok(host_values(self.logits(self.hidden_states(&states, &target, Rows::All, run), run)))
    }

    fn factored(&self) -> &LowrankSection {
        &self.config().lowrank
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    check_effect(false, &["max_length"], "applies to texts, and merging reads none")?;
    let adapter = args.model.adapter.as_deref().ok_or_else(|| usage("nothing to merge: give --adapter"))?;
    let folder = open_model(&args.model.model)?;
    let source = folder.path().to_path_buf();
    new_folder(&args.output, &[&source, &args.model.model, adapter])?;
    let device = device()?;
    if folder.kind() == ModelKind::Seq2Seq {
        let mut model =
            Seq2Seq::<Inner>::load(&source, folder.seq2seq_config()?, Default::default(), &device)?;
        warn_ignored(&model, &source);
        let adapters = load_adapter(&mut model, &adapter_folder(adapter)?, None, &device)?;
        return merge(&args, &model, &adapters, &source, &device);
    }
    let level = adapter_level(&adapter_folder(adapter)?)?;
    if folder.kind() == ModelKind::MaskedLm && level.is_none() {
        let config = folder.encoder_config()?;
        let head = config.architecture.masked_lm.transform;
        if Checkpoint::open(&source)?.names().any(|name| name.starts_with(head)) {
            let mut model = MaskedLm::<Inner>::load(&source, config, &device)?;
            let adapters = load_adapter(&mut model, &adapter_folder(adapter)?, None, &device)?;
            return merge(&args, &model, &adapters, &source, &device);
        }
    }
    if folder.kind() != ModelKind::Decoder || level.is_some() {
        let (model, adapters) = args.model.load::<Inner>(&device)?.model.into_parts();
        return merge(&args, &model, &adapters, &source, &device);
    }
    let mut model = Decoder::<Inner>::load(&source, folder.decoder_config()?, Default::default(), &device)?;
    warn_ignored(&model, &source);
    let adapters = load_adapter(&mut model, &adapter_folder(adapter)?, None, &device)?;
    merge(&args, &model, &adapters, &source, &device)
}

fn merge<M: Probed>(
    args: &Args,
    model: &M,
    adapters: &AdapterSet<Inner>,
    source: &Path,
    device: &Device,
) -> Result<()> {
    let merged = model.merged(adapters)?;
    let outputs = model.probe(adapters, device)?;
    let exact = largest_difference(&outputs, &merged.probe(&AdapterSet::empty(), device)?)?;
    let size = outputs.iter().fold(1.0f32, |size, v| size.max(v.abs()));
    let cut: Vec<&str> = adapters
        .slots()
        .iter()
        .map(|slot| slot.path.as_str())
        .filter(|path| {
            let entry = model.factored().find(path).map(|(_, entry)| &entry.representation);
            matches!(entry, Some(Representation::LowRank { .. }))
        })
        .collect();
    if exact > ROUNDING * size && cut.is_empty() {
        let (layer, difference) = worst_layer(model, adapters, device)?;
        bail!(
            "the merged model's outputs differ by {exact:.3e} from those of model and adapter on a probe; most of the difference \
             comes from '{layer}' ({difference:.3e} alone). Nothing was written; keep the adapter beside the model"
        );
    }
    let dtype = match args.dtype {
        Some(dtype) => dtype,
        None => stored_dtype(&Checkpoint::open(source)?),
    };
    let blocks = model.blocks_where(|_| true);
    let in_blocks: BTreeMap<String, BlockFormat> =
        blocks.iter().map(|block| (block.key(), block.matrix.format())).collect();
    ensure!(
        !args.requantize || !in_blocks.is_empty(),
        "--requantize: the model has no quantized weights; compress the merged model with --method quant"
    );
    let mut merged = merged;
    // Weights that lost a quantized part in `model`.
    let in_floats = |model: &M| -> usize {
        let kept: BTreeSet<String> = model.blocks_where(|_| true).iter().map(|block| block.key()).collect();
        let lost = blocks.iter().filter(|block| !kept.contains(&block.key()));
        lost.map(|block| &block.module).collect::<BTreeSet<_>>().len()
    };
    let changed = in_floats(&merged);
    if args.requantize {
        let mut round = ToBlocks::new(|at: &Parameter<'_>| in_blocks.get(&at.key()).copied());
        merged.visit_params(&mut round);
        if let Some(problem) = round.problems.first() {
            bail!("{problem}; leave out --requantize");
        }
    }
    let to_floats = in_floats(&merged);
    let mut rounded = merged.clone();
    let mut round = Round { dtype, overflow: None };
    rounded.visit_params(&mut round);
    if let Some(key) = round.overflow {
        bail!("'{key}' holds values that {} cannot; give --dtype f32 or bf16", dtype.name());
    }
    let difference = largest_difference(&outputs, &rounded.probe(&AdapterSet::empty(), device)?)?;
    let adapter = adapter_folder(args.model.adapter.as_deref().unwrap_or(source))?;
    let others = match adapter_level(&adapter)? {
        Some(_) => Vec::new(),
        None => other_heads(&merged, &Checkpoint::open(source)?)?,
    };
    write_folder(&args.output, |dir| {
        merged.save_beside(dir, source, dtype, others)?;
        // The tokenizer that the adapter was trained with, if its folder has one.
        Ok(copy_companions(&adapter, dir)?)
    })?;
    let layers = adapters.slots().len();
    if args.json {
        return print_json(&serde_json::json!({
            "merged": layers,
            "max_difference": difference,
            "max_difference_f32": exact,
            "dtype": dtype.name(),
            "cut_to_rank": cut,
            "from_blocks_to_floats": to_floats,
            "requantized": changed - to_floats,
            "output": args.output,
        }));
    }
    if !cut.is_empty() {
        println!("{} factored layers were truncated to their rank, the first is '{}'", cut.len(), cut[0]);
    }
    if !in_blocks.is_empty() {
        println!(
            "{to_floats} of {} quantized weights became {}; {} were quantized again",
            blocks.iter().map(|block| &block.module).collect::<BTreeSet<_>>().len(),
            dtype.name(),
            changed - to_floats
        );
    }
    println!(
        "{layers} layers merged into {} in {}; largest difference of the outputs on a probe {difference:.3e} \
         ({exact:.3e} before rounding to {})",
        args.output.display(),
        dtype.name(),
        dtype.name()
    );
    Ok(())
}

/// The layer whose merging alone changes the outputs most, and the change.
fn worst_layer<M: Probed>(model: &M, adapters: &AdapterSet<Inner>, device: &Device) -> Result<(String, f32)> {
    let mut worst = (String::new(), 0.0);
    for (index, slot) in adapters.slots().iter().enumerate() {
        let only = adapters.only(index);
        let merged = model.merged(&only)?.probe(&AdapterSet::empty(), device)?;
        let difference = largest_difference(&model.probe(&only, device)?, &merged)?;
        if worst.0.is_empty() || difference > worst.1 {
            worst = (slot.path.clone(), difference);
        }
    }
    Ok(worst)
}

/// Tensors of a checkpoint's heads of pre-training that the merged model does not have.
fn other_heads<M: Probed>(merged: &M, checkpoint: &Checkpoint) -> Result<Vec<HostTensor<'static>>> {
    let heads = ["pooler.", "cls.seq_relationship.", "sop_classifier.", "discriminator_predictions."];
    let is_head = |name: &str| heads.iter().any(|head| name.starts_with(head));
    let bare = |name: &str| name.split_once('.').is_some_and(|(_, rest)| is_head(rest));
    let is_other = |name: &str| is_head(name) || bare(name);
    let written = merged.tensors_where(|at| is_other(&at.key()));
    let is_written = |name: &str| written.iter().any(|t| t.name.ends_with(name) || name.ends_with(&t.name));
    let names = checkpoint.names().filter(|name| is_other(name) && !is_written(name));
    names
        .map(|name| {
            let shape = checkpoint.info(name).map(|info| info.shape.clone()).unwrap_or_default();
            Ok(HostTensor::new(name, shape, checkpoint.read_f32(name)?))
        })
        .collect()
}

/// The type of most of a checkpoint's elements; f32 if it cannot be written.
pub(super) fn stored_dtype(checkpoint: &Checkpoint) -> FloatType {
    let count = |dtype: Dtype| -> usize {
        let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
        infos.filter(|info| info.dtype == dtype).map(|info| info.numel()).sum()
    };
    let types = [
        (Dtype::F64, FloatType::F32),
        (Dtype::F32, FloatType::F32),
        (Dtype::F16, FloatType::F16),
        (Dtype::BF16, FloatType::BF16),
    ];
    let most = types.into_iter().max_by_key(|(dtype, _)| count(*dtype));
    most.filter(|(dtype, _)| count(*dtype) > 0).map_or(FloatType::F32, |(_, float)| float)
}

/// Rounds every parameter to its value in the written file.
struct Round {
    dtype: FloatType,
    /// A parameter with finite values that the type cannot hold.
    overflow: Option<String>,
}

impl ParamVisitor<Inner> for Round {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<Inner, D>>) {
        let round: fn(f32) -> f32 = match self.dtype {
            FloatType::F32 => return,
            FloatType::F16 => |v| f16::from_f32(v).to_f32(),
            FloatType::BF16 => |v| bf16::from_f32(v).to_f32(),
        };
        let (shape, device): ([usize; D], _) = (param.dims(), param.lazy_device());
        let values: Vec<f32> = host_values(param.val()).into_iter().map(round).collect();
        if values.iter().any(|v| !v.is_finite()) {
            self.overflow.get_or_insert_with(|| at.key());
        }
        let tensor = Tensor::from_data(TensorData::new(values, shape), &device);
        *param = Param::initialized(param.id, tensor);
    }

    fn visit_shared(&mut self, at: &Parameter<'_>, stored: &mut Stored<Inner>) {
        self.visit_stored(at, stored);
    }
}

/// Token ids spread over the vocabulary.
fn probe_ids(vocab_size: usize, max_tokens: usize) -> Vec<u32> {
    let n = PROBE.min(max_tokens);
    (0..n).map(|i| ((i * 7919 + 1) % vocab_size) as u32).collect()
}

fn largest_difference(factored: &[f32], merged: &[f32]) -> Result<f32> {
    let difference = factored
        .iter()
        .zip(merged)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |most: f32, d| if d.is_nan() { f32::NAN } else { most.max(d) });
    ensure!(difference.is_finite(), "the merged model's outputs are not finite; nothing was written");
    Ok(difference)
}
