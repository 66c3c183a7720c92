//! `lowrank compress`: a model folder in, a smaller model folder out.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use lowrank_checkpoint::FloatType;
use lowrank_compress::{
    Allocation, Amount, Answers, Calibrator, DistillOptions, LayerRecovery, Method, ModelCalibrator, Of,
    Options, Report, Sides, Tokens, Trained, Weightings, distill, fisher, parse_ranks, token_limit,
};
use lowrank_data::glue::{GlueDataset, Split, Task};
use lowrank_data::pack::{EncodedDataset, Labels};
use lowrank_data::tokenize::{Encoded, TextTokenizer};
use lowrank_models::EncoderConfig;
use lowrank_spec::rng::SplitMix64;
use lowrank_spec::targets::ALL_LINEAR;
use lowrank_spec::{Pattern, Targets};
use serde_json::Value;

use crate::backend::{Inner, Train, device};
use crate::bars::Bars;
use crate::context::{model_folder, print_json, read_text};
use crate::machine::peak_rss_mb;
use crate::method::parse_layers;

/// Tokens of calibration text that are run together.
const BATCH_TOKENS: usize = 2048;

/// Options of `compress`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder (config.json, weights, tokenizer)
    #[arg(long)]
    model: PathBuf,
    /// svd, whitened, asvd, fwsvd, shared, tt or auto [default: whitened with calibration text, svd without]
    #[arg(long)]
    method: Option<Method>,
    #[command(flatten)]
    amount: AmountArgs,
    /// Reference of --ratio: layers (parameters of the weights touched), model (all parameters), file (bytes)
    #[arg(long, default_value = "layers")]
    of: Of,
    /// Rank allocation under --ratio: budget (least error, by what it does to the layer's output where there is calibration text) or uniform (the same ratio for every weight)
    #[arg(long, default_value = "budget")]
    allocation: Allocation,
    #[command(flatten)]
    calibration: CalibrationArgs,
    /// Weights to factor: names, all-linear, or a regular expression [default: linear maps inside the layers]
    #[arg(long)]
    targets: Option<String>,
    /// Weights to exclude
    #[arg(long, requires = "targets")]
    exclude: Option<String>,
    /// Layers to compress, as 0,1,4-7 [default: all]
    #[arg(long)]
    layers: Option<String>,
    /// Distil each compressed layer from its dense original on the calibration text
    #[arg(long)]
    recover: Option<Recover>,
    /// Steps of --recover per layer
    #[arg(long, default_value_t = 300)]
    recover_steps: usize,
    /// Rank of the adapters of --recover lora
    #[arg(long, default_value_t = 8)]
    recover_rank: usize,
    /// Learning rate of --recover
    #[arg(long, default_value_t = 1e-3, allow_hyphen_values = true)]
    recover_lr: f64,
    /// Element type of the output: f32, f16 or bf16 [default: that of each tensor]
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Memory limit for layers factored in parallel, e.g. 800M
    #[arg(long)]
    memory: Option<Bytes>,
    /// Resume an interrupted job with the same options
    #[arg(long)]
    resume: bool,
    /// What the layers of a kind share under --method shared: best, one or both
    #[arg(long, default_value = "best")]
    sides: Sides,
    /// Number of cores of a tensor train
    #[arg(long, default_value_t = 2)]
    tt_order: usize,
    /// Factor weights even if that does not make them smaller
    #[arg(long)]
    always_factor: bool,
    /// Output folder
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How to recover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Recover {
    /// The layers themselves
    Distill,
    /// A LoRA over the factors, merged back at their rank
    Lora,
}

/// How much: one of these.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct AmountArgs {
    /// Fraction to remove, between 0 and 1
    #[arg(long, allow_hyphen_values = true)]
    ratio: Option<f64>,
    /// Ranks by name, as q_proj=384,o_proj=384
    #[arg(long)]
    ranks: Option<String>,
    /// Fraction of the squared Frobenius norm that each weight keeps
    #[arg(long, allow_hyphen_values = true)]
    energy: Option<f64>,
    /// Maximum relative error per weight
    #[arg(long, allow_hyphen_values = true)]
    error: Option<f64>,
}

/// What the activations come from.
#[derive(clap::Args)]
struct CalibrationArgs {
    /// Calibration text, one sample per line
    #[arg(long)]
    calibration: Option<PathBuf>,
    /// Task whose training rows are the calibration text
    #[arg(long, requires = "data", conflicts_with = "calibration")]
    task: Option<Task>,
    /// GLUE root with the official folders
    #[arg(long)]
    data: Option<PathBuf>,
    /// Number of calibration samples
    #[arg(long, default_value_t = 256)]
    samples: usize,
    /// Seed of the sample selection
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Truncate samples to this many tokens [default: the model's limit]
    #[arg(long)]
    max_length: Option<usize>,
    /// Calibrate each layer on the outputs of the compressed earlier layers
    #[arg(long)]
    sequential: bool,
}

/// A number of bytes: `800M`, `2G`, `1000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bytes(u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit: u64 = match text[digits.len()..].to_ascii_uppercase().trim_end_matches('B') {
            "" => 1,
            "K" => 1_000,
            "M" => 1_000_000,
            "G" => 1_000_000_000,
            other => return Err(format!("unknown unit '{other}'; choose K, M or G")),
        };
        let number: u64 = digits.parse().map_err(|_| format!("'{text}' is not a number of bytes"))?;
        number.checked_mul(unit).map(Self).ok_or_else(|| format!("'{text}' is too large"))
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    let model = model_folder(&args.model)?;
    let given = args.calibration.is_given();
    let method = args.method.unwrap_or(if given { Method::Whitened } else { Method::Svd });
    let options = args.options(method)?;
    options.amount.validate()?;
    if method == Method::Fwsvd && !given {
        bail!(
            "fwsvd weighs by the gradients of a task; give --task and --data, or a language model's --calibration"
        );
    }
    if method.needs_inputs() && !given {
        bail!("{} weighs by activations; give --calibration, or --task and --data", method.name());
    }
    if given && !method.uses_inputs() && method != Method::Fwsvd && args.recover.is_none() {
        bail!("{} takes no notice of calibration text; leave it out or choose whitened", method.name());
    }
    if args.recover.is_some() && !given {
        bail!("--recover trains on activations; give --calibration, or --task and --data");
    }
    args.distill_options().validate()?;
    let target = args.recover.map_or(args.output.clone(), |_| beside(&args.output));
    if args.recover.is_some() && args.output.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{}: is there already and not empty; choose another output", args.output.display());
    }
    let mut calibrator = if method == Method::Fwsvd {
        let weightings = args.calibration.fisher(&model)?;
        Some(args.calibration.calibrator(&model)?.weighted_by(weightings))
    } else if given && method.uses_inputs() {
        Some(args.calibration.calibrator(&model)?)
    } else {
        None
    };
    let progress = Bars::new();
    let calibrator = calibrator.as_mut().map(|calibrator| calibrator as &mut dyn Calibrator);
    let report = lowrank_compress::compress(&model, &target, &options, calibrator, &progress)?;
    let recovery =
        if args.recover.is_some() { args.recover_from(&model, &target, &progress) } else { Ok(None) };
    if args.recover.is_some() {
        std::fs::remove_dir_all(&target).with_context(|| target.display().to_string())?;
    }
    let recovery = recovery?;
    progress.finish();
    let wall_s = start.elapsed().as_secs_f64();
    if args.json {
        let mut value = serde_json::to_value(&report)?;
        value["output"] = args.output.display().to_string().into();
        if let Some(layers) = &recovery {
            value["recovery"] = serde_json::to_value(layers)?;
        }
        value["wall_s"] = wall_s.into();
        value["peak_rss_mb"] = peak_rss_mb().map_or(Value::Null, Value::from);
        return print_json(&value);
    }
    print_report(&report, &args.output, wall_s);
    for LayerRecovery { layer, before, after } in recovery.iter().flatten() {
        println!("layer {layer}: error of the output {before:.4} → {after:.4}");
    }
    Ok(())
}

/// A hidden folder beside the output, for what is not recovered yet.
fn beside(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    output.with_file_name(format!(".{name}.compressed"))
}

impl Args {
    /// Trains what was compressed into the output.
    fn recover_from(
        &self,
        model: &Path,
        compressed: &Path,
        progress: &Bars,
    ) -> Result<Option<Vec<LayerRecovery>>> {
        let batches = self.calibration.batches(model)?;
        let options = self.distill_options();
        let device = device()?;
        Ok(Some(distill::<Train>(model, compressed, &self.output, &batches, &options, &device, progress)?))
    }

    fn distill_options(&self) -> DistillOptions {
        let trained = match self.recover {
            Some(Recover::Lora) => Trained::Lora(self.recover_rank),
            _ => Trained::All,
        };
        DistillOptions { trained, steps: self.recover_steps, lr: self.recover_lr }
    }

    fn options(&self, method: Method) -> Result<Options> {
        let amount = match &self.amount {
            AmountArgs { ratio: Some(ratio), .. } => Amount::Ratio { ratio: *ratio, of: self.of },
            AmountArgs { ranks: Some(ranks), .. } => {
                Amount::Ranks(parse_ranks(ranks).map_err(anyhow::Error::msg)?)
            }
            AmountArgs { energy: Some(energy), .. } => Amount::Energy(*energy),
            AmountArgs { error: Some(error), .. } => Amount::Error(*error),
            _ => bail!("give --ratio, --ranks, --energy or --error"),
        };
        let layers = self.layers.as_deref().map(parse_layers).transpose()?;
        let is_chosen = self.targets.is_some() || layers.is_some();
        let targets = is_chosen.then(|| Targets {
            include: Pattern::parse(self.targets.as_deref().unwrap_or(ALL_LINEAR)),
            exclude: self.exclude.as_deref().map(Pattern::parse),
            layers,
        });
        Ok(Options {
            allocation: self.allocation,
            targets,
            dtype: self.dtype,
            memory: self.memory.map(|bytes| bytes.0),
            resume: self.resume,
            sides: self.sides,
            tt_order: self.tt_order,
            always_factor: self.always_factor,
            ..Options::new(method, amount)
        })
    }
}

impl CalibrationArgs {
    fn is_given(&self) -> bool {
        self.calibration.is_some() || self.task.is_some()
    }

    fn tokenizer(&self, model: &Path) -> Result<TextTokenizer> {
        let limit = token_limit(model)?;
        if let Some(n) = self.max_length.filter(|n| *n > limit) {
            bail!("--max-length {n} is more than the {limit} tokens that the model takes");
        }
        Ok(TextTokenizer::from_folder(model, Some(self.max_length.unwrap_or(limit)))?)
    }

    /// The samples, encoded and packed.
    fn batches(&self, model: &Path) -> Result<Vec<Tokens>> {
        let tokenizer = self.tokenizer(model)?;
        let mut samples: Vec<(String, Option<String>)> = match (&self.calibration, self.task, &self.data) {
            (Some(path), ..) => {
                let text = read_text(path)?;
                let lines = text.lines().filter(|line| !line.trim().is_empty());
                lines.map(|line| (line.to_string(), None)).collect()
            }
            (None, Some(task), Some(data)) => {
                let rows = GlueDataset::read(data, task, Split::Train)?;
                rows.examples().iter().map(|e| (e.text.clone(), e.pair.clone())).collect()
            }
            _ => bail!("give --calibration, or --task and --data"),
        };
        if self.samples == 0 {
            bail!("--samples 0 is out of range; expected 1 or more");
        }
        if samples.is_empty() {
            let name = self.calibration.as_deref().map_or("the task".into(), |p| p.display().to_string());
            bail!("{name}: the calibration text is empty; give some lines of text");
        }
        if samples.len() > self.samples {
            SplitMix64::new(self.seed).shuffle(&mut samples);
            samples.truncate(self.samples);
        }
        let rows = tokenizer.encode_batch(samples.iter().map(|(a, b)| (a.as_str(), b.as_deref())))?;
        Ok(pack(rows))
    }

    /// Gradients of the task, or of the text's next tokens, sample by sample.
    fn fisher(&self, model: &Path) -> Result<Weightings> {
        let device = device()?;
        let (Some(task), Some(data)) = (self.task, &self.data) else {
            let one = |tokens: Tokens| (tokens, Answers::NextTokens);
            let batches: Vec<_> = self.batches(model)?.into_iter().map(one).collect();
            return Ok(fisher::<Train>(model, &batches, &device)?);
        };
        let tokenizer = self.tokenizer(model)?;
        if let Ok(config) = EncoderConfig::read(model) {
            let (has, wants) = (config.labels.len(), task.spec().labels.width());
            if has != wants {
                bail!(
                    "the model has {has} labels and {task} {wants}; give the model that was tuned on the task"
                );
            }
        }
        let rows = EncodedDataset::encode(&GlueDataset::read(data, task, Split::Train)?, &tokenizer)?;
        let mut order: Vec<usize> = (0..rows.len()).collect();
        SplitMix64::new(self.seed).shuffle(&mut order);
        order.truncate(self.samples);
        let batches = order.iter().map(|&row| {
            let batch = rows.batch(&[row])?;
            let answers = match batch.labels {
                Labels::Classes(classes) => Answers::Classes(classes),
                Labels::Scores(scores) => Answers::Scores(scores),
                Labels::None => bail!("{task} has no labels to take gradients of"),
            };
            Ok((Tokens { ids: batch.ids, type_ids: batch.type_ids, lengths: batch.lengths }, answers))
        });
        let batches: Vec<_> = batches.collect::<Result<_>>()?;
        Ok(fisher::<Train>(model, &batches, &device)?)
    }

    fn calibrator(&self, model: &Path) -> Result<ModelCalibrator<Inner>> {
        let calibrator = ModelCalibrator::new(model, self.batches(model)?, self.sequential, device()?)?;
        let (tokens, width) = (calibrator.n_tokens(), calibrator.width());
        if tokens < width {
            eprintln!(
                "warning: {tokens} tokens of calibration text for inputs of {width} numbers and more: the errors \
                 shown are those on that text alone; give more lines or --samples"
            );
        }
        Ok(calibrator)
    }
}

/// Batches of about [`BATCH_TOKENS`].
fn pack(rows: Vec<Encoded>) -> Vec<Tokens> {
    let mut batches: Vec<Tokens> = Vec::new();
    for row in rows.into_iter().filter(|row| !row.ids.is_empty()) {
        match batches.last_mut() {
            Some(batch) if batch.ids.len() + row.ids.len() <= BATCH_TOKENS => {
                batch.lengths.push(row.ids.len());
                batch.ids.extend(row.ids);
                batch.type_ids.extend(row.type_ids);
            }
            _ => batches.push(Tokens { lengths: vec![row.ids.len()], ids: row.ids, type_ids: row.type_ids }),
        }
    }
    batches
}

fn print_report(report: &Report, output: &Path, wall_s: f64) {
    for module in &report.modules {
        let ranks: Vec<String> = module.ranks.iter().map(usize::to_string).collect();
        let kind =
            if ranks.is_empty() { "dense".into() } else { format!("{} {}", module.kind, ranks.join("x")) };
        println!("{:56} {kind:20} error {:.4}", module.module, module.error);
    }
    if report.dense > 0 {
        println!("{} weights stay dense: factors would be no smaller", report.dense);
    }
    let line = |name: &str, change: &lowrank_compress::Change, what: &str| {
        println!(
            "{name:7} {:>6.2} % removed: {} → {} {what}",
            100.0 * change.ratio,
            change.before,
            change.after
        );
    };
    line("layers", &report.layers, "parameters of the weights touched");
    line("model", &report.model, "parameters in all");
    line("file", &report.file, "bytes of the weight files");
    println!("{} in {wall_s:.1} s, written to {}", report.method, output.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_with_its_unit() {
        assert_eq!("800M".parse(), Ok(Bytes(800_000_000)));
        assert_eq!("2gb".parse(), Ok(Bytes(2_000_000_000)));
        assert_eq!("17".parse(), Ok(Bytes(17)));
        for bad in ["", "M", "1T", "-1", "99999999999999G"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }
}
