//! `lowrank compress`: from a model folder to a smaller model folder.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use lowrank_checkpoint::FloatType;
use lowrank_compress::{
    Allocation, Amount, Calibrator, DistillOptions, LayerRecovery, Measure, Method, Of, Options, Report,
    Sides, Tokens, Trained, distill, mean_nll, parse_ranks,
};
use lowrank_models::ModelKind;
use lowrank_spec::targets::ALL_LINEAR;
use lowrank_spec::{BlockFormat, Pattern, Targets};
use serde_json::Value;

use crate::backend::{Inner, Train, device};
use crate::bars::Bars;
use crate::calibration::CalibrationArgs;
use crate::context::{check_effect, model_folder, open_model, print_json, refuse_pictures, warn_unused};
use crate::machine::peak_rss_mb;
use crate::method::parse_layers;
use crate::products::products;
use crate::usage::usage;

/// Options of `compress`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Model folder (config.json, weights, tokenizer)
    #[arg(long)]
    model: PathBuf,
    /// svd, whitened, two-sided, asvd, fwsvd, shared, tt, auto, quant or quant+lowrank [default: whitened with calibration text, svd without; quant with --bits alone; auto with --bytes]
    #[arg(long)]
    method: Option<Method>,
    #[command(flatten)]
    amount: AmountArgs,
    /// Quantize to this many bits (8, 6, 5, 4, 3 or 2): the weights under quant and quant+lowrank, the
    /// factors under low-rank methods
    #[arg(long, conflicts_with = "type")]
    bits: Option<u8>,
    /// The same by name: llama.cpp's Q8_0, Q6_K, Q5_K, Q5_1, Q5_0, Q4_K, Q4_1, Q4_0, IQ4_NL, IQ4_XS, MXFP4, Q3_K, Q2_K, or NF4, NF3, NF2
    /// (for rows of any multiple of 32; not for GGUF files)
    #[arg(long, value_name = "FORMAT", value_parser = block_format)]
    r#type: Option<BlockFormat>,
    /// Reference of --ratio: layers (parameters of the selected weights), model (all parameters), file
    /// (bytes)
    #[arg(long, default_value = "layers")]
    of: Of,
    /// Ranks under a ratio: budget (least error, weighted with calibration text by its effect on the layer's
    /// output or the loss) or uniform (the same ratio for every weight)
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
    /// Layers to compress, e.g. 0,1,4-7 [default: all]
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
    /// Sides shared by the layers of a kind under --method shared: best, one or both
    #[arg(long, default_value = "best")]
    sides: Sides,
    /// Number of cores of a tensor train
    #[arg(long, default_value_t = 2)]
    tt_order: usize,
    /// Factor weights even if that does not make them smaller
    #[arg(long)]
    always_factor: bool,
    /// Store a pair of factors of rank r in r² numbers less, without the identity at its pivots; the same size
    /// then has higher ranks
    #[arg(long)]
    pivots: bool,
    /// Output folder
    #[arg(short, long)]
    output: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Minimum number of tokens on which the loss of a whole model is measured.
const MEASURED_TOKENS: usize = 4096;

/// Method of recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Recover {
    /// The layers themselves
    Distill,
    /// A LoRA over the factors, merged back at their rank
    Lora,
}

/// The amount: one of these, or --bits alone.
#[derive(clap::Args)]
#[group(multiple = false)]
struct AmountArgs {
    /// Fraction to remove, between 0 and 1
    #[arg(
        long,
        allow_hyphen_values = true,
        required_unless_present_any = ["ranks", "energy", "error", "bytes", "bits", "type"]
    )]
    ratio: Option<f64>,
    /// Ranks by name, e.g. q_proj=384,o_proj=384
    #[arg(long)]
    ranks: Option<String>,
    /// Fraction of the squared Frobenius norm that each weight keeps
    #[arg(long, allow_hyphen_values = true)]
    energy: Option<f64>,
    /// Maximum relative error per weight
    #[arg(long, allow_hyphen_values = true)]
    error: Option<f64>,
    /// Byte budget of the weight files, e.g. 60MB: formats (and ranks of corrections) are chosen for every
    /// weight
    #[arg(long)]
    bytes: Option<Bytes>,
}

impl AmountArgs {
    fn is_given(&self) -> bool {
        let Self { ratio, ranks, energy, error, bytes } = self;
        ratio.is_some() || ranks.is_some() || energy.is_some() || error.is_some() || bytes.is_some()
    }
}

/// A block format by its name, in either case.
fn block_format(name: &str) -> Result<BlockFormat, String> {
    let known = || BlockFormat::ALL.map(BlockFormat::name).join(", ");
    let found = BlockFormat::ALL.into_iter().find(|format| format.name().eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("unknown block format '{name}'; choose {}", known()))
}

/// The format for a number of bits.
fn format_of_bits(bits: u8) -> Result<BlockFormat> {
    Ok(match bits {
        8 => BlockFormat::Q8_0,
        6 => BlockFormat::Q6K,
        5 => BlockFormat::Q5K,
        4 => BlockFormat::Q4K,
        3 => BlockFormat::Q3K,
        2 => BlockFormat::Q2K,
        _ => bail_usage!("--bits {bits} is not supported; choose 8, 6, 5, 4, 3 or 2"),
    })
}

/// A number of bytes: `800M`, `1.5G`, `1000000`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bytes(pub(crate) u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        // Decimals that the number may have, which are those of its unit.
        let (unit, decimals): (u64, usize) =
            match text[number.len()..].to_ascii_uppercase().trim_end_matches('B') {
                "" => (1, 0),
                "K" => (1_000, 3),
                "M" => (1_000_000, 6),
                "G" => (1_000_000_000, 9),
                other => return Err(format!("unknown unit '{other}'; choose K, M or G")),
            };
        let wrong = || format!("'{text}' is not a number of bytes");
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |part: &str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.trim_end_matches('0').len() > decimals {
            return Err(wrong());
        }
        let part = format!("{:0<decimals$}", part.trim_end_matches('0'));
        let part: u64 = if part.is_empty() { 0 } else { part.parse().map_err(|_| wrong())? };
        let bytes = whole.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)?.checked_add(part));
        bytes.map(Self).ok_or_else(|| format!("'{text}' is too large"))
    }
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let start = Instant::now();
    let model = model_folder(&args.model)?;
    let given = args.calibration.is_given();
    let opened = open_model(&model)?;
    if args.calibration.has_task() {
        refuse_pictures(&opened, "its calibration takes pictures; give --calibration with a folder of them")?;
    }
    let has_format = args.bits.is_some() || args.r#type.is_some();
    let method = args.method.unwrap_or(match given {
        _ if args.amount.bytes.is_some() => Method::Auto,
        _ if has_format && !args.amount.is_given() => Method::Quant,
        true => Method::Whitened,
        false => Method::Svd,
    });
    let options = args.options(method)?;
    options.amount.validate().map_err(usage)?;
    args.check(method, given)?;
    let target = args.recover.map_or(args.output.clone(), |_| beside(&args.output));
    if args.recover.is_some() && args.output.read_dir().is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{}: already exists and is not empty; choose another output", args.output.display());
    }
    let is_quant = method.is_quant() || args.amount.bytes.is_some();
    ensure!(
        args.recover.is_none() || opened.kind() != ModelKind::Seq2Seq,
        "{}: is {}, whose layers are not recovered one by one; leave out --recover, and fine-tune the result",
        model.display(),
        opened.kind().describe()
    );
    let mut calibrator = args.calibrator(method, &model)?;
    let samples = args.recover.map(|_| args.calibration.batches(&model)).transpose()?;
    if !given && !opened.is_supported() {
        eprintln!(
            "warning: {}: unsupported architecture: its weights can be compressed, but lowrank cannot \
             run the result",
            model.display()
        );
    }
    let progress = Bars::new();
    let calibrator = calibrator.as_mut().map(|calibrator| &mut **calibrator as &mut dyn Calibrator);
    let report = if is_quant {
        let mut measure = args.measure(&model)?;
        let measure = measure.as_mut().map(|measure| &mut **measure as &mut Measure<'_>);
        lowrank_compress::quantize(&model, &target, &options, calibrator, measure, &progress)?
    } else {
        lowrank_compress::compress(&model, &target, &options, calibrator, &progress)?
    };
    if let Some(first) = report.unreached.first() {
        eprintln!(
            "warning: {} expert layers received no calibration token and are compressed unweighted, the first is \
             '{first}'; more text or --samples may reach them",
            report.unreached.len()
        );
    }
    if report.file.after > report.file.before {
        eprintln!(
            "warning: the output has {} bytes of weights, the model {}: it became larger; remove more, or give fewer bits",
            report.file.after, report.file.before
        );
    }
    let recovery = samples.map(|samples| args.recover_from(&model, &target, &samples, &progress));
    if args.recover.is_some() {
        std::fs::remove_dir_all(&target).with_context(|| target.display().to_string())?;
    }
    let recovery = recovery.transpose()?;
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
        println!("layer {layer}: output error {before:.4} → {after:.4}");
    }
    Ok(())
}

/// Whether a folder holds a model that is calibrated on the tokens that it predicts.
fn is_language_model(model: &Path) -> Result<bool> {
    Ok(matches!(open_model(model)?.kind(), ModelKind::Decoder | ModelKind::Seq2Seq))
}

/// A hidden folder beside the output, for the result before recovery.
fn beside(output: &Path) -> PathBuf {
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    output.with_file_name(format!(".{name}.compressed"))
}

impl Args {
    /// Refuses options that cannot be combined.
    fn check(&self, method: Method, has_text: bool) -> Result<()> {
        let name = method.name();
        check_effect(self.amount.ratio.is_some(), &["of", "allocation"], "requires --ratio")?;
        check_effect(self.recover.is_some(), &["recover_steps", "recover_lr"], "requires --recover")?;
        check_effect(self.recover == Some(Recover::Lora), &["recover_rank"], "requires --recover lora")?;
        warn_unused(self.calibration.has_task(), &["data"], "requires --task");
        let selection = ["samples", "seed", "max_length", "sequential"];
        warn_unused(has_text, &selection, "requires calibration data (--calibration, or --task and --data)");
        warn_unused(method != Method::Fwsvd, &["sequential"], "does not apply to fwsvd");
        if method.needs_gradients() && !has_text {
            bail_usage!(
                "{name} needs the gradients of a task; give --task and --data, or --calibration for a language model"
            );
        }
        if method.needs_inputs() && !has_text {
            bail_usage!("{name} needs activations; give --calibration, or --task and --data");
        }
        let is_used = method.uses_inputs() || method.needs_gradients() || self.recover.is_some();
        if has_text && !is_used {
            bail_usage!("{name} does not use calibration text; leave it out or choose whitened");
        }
        let is_quant = method.is_quant() || self.amount.bytes.is_some();
        check_effect(method == Method::Shared, &["sides"], "requires --method shared")?;
        check_effect(
            matches!(method, Method::Tt | Method::Auto),
            &["tt_order"],
            "requires --method tt or auto",
        )?;
        check_effect(!is_quant, &["always_factor", "pivots"], "applies to methods that factor")?;
        if self.recover.is_some() && (is_quant || self.bits.is_some() || self.r#type.is_some()) {
            bail_usage!(
                "--recover trains factors in floats; compress without --bits and --bytes, or tune an adapter over the \
                 result with finetune"
            );
        }
        if is_quant && self.calibration.is_sequential() {
            bail_usage!(
                "quantization by {name} uses the inputs of the original model; leave out --sequential"
            );
        }
        if self.amount.bytes.is_some() && !(is_quant && (method.is_quant() || method == Method::Auto)) {
            bail_usage!(
                "--bytes requires quant, quant+lowrank or auto; with {name} use --ratio with --of file"
            );
        }
        if self.recover.is_some() && !has_text {
            bail_usage!("--recover needs calibration text; give --calibration, or --task and --data");
        }
        self.distill_options().validate().map_err(usage)
    }

    /// The error weighting. Formats are allocated by their effect on the loss if its gradients are available.
    fn calibrator(&self, method: Method, model: &Path) -> Result<Option<Box<dyn Calibrator>>> {
        let by_loss = self.calibration.has_task() || is_language_model(model)?;
        let method = match self.amount.bytes {
            Some(_) if self.calibration.is_given() && by_loss => Method::TwoSided,
            _ => method,
        };
        self.calibration.calibrator(method, model, &self.output)
    }

    /// The mean loss of a language model on a part of the calibration text.
    fn measure(&self, model: &Path) -> Result<Option<Box<Measure<'static>>>> {
        if self.amount.bytes.is_none() || !is_language_model(model)? || !self.calibration.is_text() {
            return Ok(None);
        }
        let mut left = MEASURED_TOKENS;
        let mut batches = self.calibration.batches(model)?;
        batches.retain(|batch| {
            let is_taken = left > 0;
            left = left.saturating_sub(batch.n_tokens());
            is_taken
        });
        let device = device()?;
        Ok(Some(Box::new(move |folder: &Path| mean_nll::<Inner>(folder, &batches, &device))))
    }

    /// Trains the compressed model into the output.
    fn recover_from(
        &self,
        model: &Path,
        compressed: &Path,
        samples: &[Tokens],
        progress: &Bars,
    ) -> Result<Vec<LayerRecovery>> {
        let (options, device) = (self.distill_options(), device()?);
        Ok(distill::<Train>(model, compressed, &self.output, samples, &options, &device, progress)?)
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
            AmountArgs { ranks: Some(ranks), .. } => Amount::Ranks(parse_ranks(ranks).map_err(usage)?),
            AmountArgs { energy: Some(energy), .. } => Amount::Energy(*energy),
            AmountArgs { error: Some(error), .. } => Amount::Error(*error),
            AmountArgs { bytes: Some(bytes), .. } => Amount::Bytes(bytes.0),
            _ if method.is_quant() => Amount::Stored,
            _ => bail_usage!(
                "give --ratio, --ranks, --energy, --error or --bytes; --bits alone requires quant"
            ),
        };
        let format = match self.bits {
            Some(bits) => Some(format_of_bits(bits)?),
            None => self.r#type,
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
            pivots: self.pivots,
            format,
            products: products(),
            ..Options::new(method, amount)
        })
    }
}

fn print_report(report: &Report, output: &Path, wall_s: f64) {
    for module in &report.modules {
        let ranks: Vec<String> = module.ranks.iter().map(usize::to_string).collect();
        let format = module.format.map(|format| format!(" {format}")).unwrap_or_default();
        let kind = if ranks.is_empty() {
            format!("dense{format}")
        } else {
            format!("{} {}{format}", module.kind, ranks.join("x"))
        };
        println!("{:56} {kind:20} error {:.4}", module.module, module.error);
    }
    for line in &report.instead {
        println!("{line}");
    }
    if report.dense > 0 {
        println!("{} weights stay dense floats", report.dense);
    }
    let line = |name: &str, change: &lowrank_compress::Change, what: &str| {
        println!(
            "{name:7} {:>6.2} % removed: {} → {} {what}",
            100.0 * change.ratio,
            change.before,
            change.after
        );
    };
    line("layers", &report.layers, "parameters of the selected weights");
    line("model", &report.model, "parameters in total");
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
        assert_eq!("1.5MB".parse(), Ok(Bytes(1_500_000)));
        assert_eq!("0.25K".parse(), Ok(Bytes(250)));
        assert_eq!("2.0".parse(), Ok(Bytes(2)));
        for bad in ["", "M", "1T", "-1", "99999999999999G", "1.5", "1.2345K", ".5M", "1.M", "1e3", "1.2.3K"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }
}
