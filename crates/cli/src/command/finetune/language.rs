//! Language models: next-token prediction on texts, completions and conversations, and preferences.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use burn::module::AutodiffModule;
use lowrank_checkpoint::Checkpoint;
use lowrank_compress::Tokens;
use lowrank_data::rows::{LossOn, RowEncoder, Rows, TokenPair, TokenRow};
use lowrank_data::tokenize::{self, TextTokenizer};
use lowrank_models::{Decoder, DecoderConfig, ModelFolder};
use lowrank_train::{DpoConfig, NextToken, Preference, Samples, TrainConfig, TunedDecoder};
use serde_json::{Value, json};

use super::base::{recomputes, report};
use super::generator::{Weights, build, save};
use super::job::{self, Identity, Process};
use super::model::opened;
use super::record::{fnv, hash_starts, settings};
use super::{Args, check_output};
use crate::backend::{Device, Inner, Train};
use crate::calibration::first_texts;
use crate::command::compress::Bytes;
use crate::method::Method;
use crate::usage::usage;

/// Options of language models.
#[derive(clap::Args)]
pub(crate) struct LanguageArgs {
    /// Tokens that count in the loss: completion, assistant (every answer) or all [default: completion]
    #[arg(long, value_name = "TOKENS")]
    loss_on: Option<LossOn>,
    /// Keep only the input of each layer and recompute the rest in the backward pass
    #[arg(long)]
    recompute: bool,
    /// Memory limit of the training, e.g. 8G: layers are recomputed if it would not fit otherwise
    #[arg(long, value_name = "BYTES")]
    memory: Option<Bytes>,
    /// Number of first rows to show, with their target tokens in brackets [default: 1]
    #[arg(long, value_name = "N")]
    show_samples: Option<usize>,
    /// Number of dev prompts answered at each evaluation, for the log and the report [default: 1]
    #[arg(long, value_name = "N")]
    write_samples: Option<usize>,
    /// Preferences: beta, the strength of the KL penalty towards the reference [default: 0.1]
    #[arg(long)]
    beta: Option<f64>,
    /// Preferences: label smoothing, the probability that a pair is mislabelled [default: 0]
    #[arg(long)]
    label_smoothing: Option<f64>,
}

impl LanguageArgs {
    /// Refuses the options if no language model is trained.
    pub(super) fn check_unused(&self) -> Result<()> {
        let given = [
            ("--show-samples", self.show_samples.is_some()),
            ("--write-samples", self.write_samples.is_some()),
            ("--recompute", self.recompute),
        ];
        match self.of_decoders().into_iter().chain(given).find(|(_, given)| *given) {
            Some((option, _)) => {
                bail!(
                    "{option} applies to language models only; these rows train a classifier or a masked language model"
                )
            }
            None => Ok(()),
        }
    }

    /// Refuses the options of decoders if an encoder-decoder is trained.
    pub(super) fn check_for_pairs(&self) -> Result<()> {
        match self.of_decoders().into_iter().find(|(_, given)| *given) {
            Some((option, _)) => bail!(
                "{option} applies to decoders only; an encoder-decoder learns every token of the completion"
            ),
            None => Ok(()),
        }
    }

    /// The options of decoders, and whether they are given.
    fn of_decoders(&self) -> [(&'static str, bool); 4] {
        [
            ("--loss-on", self.loss_on.is_some()),
            ("--memory", self.memory.is_some()),
            ("--beta", self.beta.is_some()),
            ("--label-smoothing", self.label_smoothing.is_some()),
        ]
    }

    /// Whether layers are recomputed in the backward pass.
    pub(super) fn recomputes(&self) -> bool {
        self.recompute
    }

    /// Number of training rows to show.
    pub(super) fn n_shown(&self) -> usize {
        self.show_samples.unwrap_or(1)
    }

    /// Number of texts to write at each evaluation.
    pub(super) fn n_samples(&self) -> usize {
        self.write_samples.unwrap_or(1)
    }
}

/// The default learning rate.
pub(super) fn default_rate(method: Method) -> f64 {
    if method == Method::Full { 2e-5 } else { 2e-4 }
}

/// Default maximum length of training rows.
pub(super) const LENGTH: usize = 1024;
/// Maximum length of a generated sample at an evaluation, in tokens.
pub(super) const SAMPLE_TOKENS: usize = 64;

pub(super) fn run(args: &Args, folder: &Path, device: &Device, process: Process<'_>) -> Result<()> {
    let mut config = args.train_config(default_rate(args.method), 8)?;
    check_output(args)?;
    let loss = DpoConfig {
        beta: args.language.beta.unwrap_or(DpoConfig::default().beta),
        label_smoothing: args.language.label_smoothing.unwrap_or_default(),
    };
    loss.validate().map_err(usage)?;
    let (Some(train), Some(dev)) = (&args.train, &args.dev) else {
        bail!("{}: is a language model; give rows with --train and --dev", folder.display())
    };
    let opened = opened(args, folder)?;
    let base = opened.decoder_config()?;
    check_balance(folder, &base)?;
    let tokenizer = opened.tokenizer(None)?;
    let rows = encode(args, &opened, &base, &tokenizer, [train, dev])?;
    let first = || Ok(rows.first());
    let built = build(args, folder, &first, device, |weights| match weights {
        Weights::Random => Decoder::<Train>::init(base, args.seed, device).map_err(anyhow::Error::msg),
        Weights::Stored(path, kept) => Ok(Decoder::load(path, base, kept, device)?),
    })?;
    let recompute = match args.language.memory {
        Some(limit) if !args.language.recomputes() => {
            let (checkpoint, init) = (Checkpoint::open(folder)?, args.adapter.init());
            recomputes(&built.model, &checkpoint, init, &config, &rows.lengths(), limit.0)?
        }
        _ => args.language.recomputes(),
    };
    if args.base.is_dry() {
        return report(args, &built.model, &Checkpoint::open(folder)?, &config, &rows.lengths(), recompute);
    }
    let task = task_name(train);
    let identity = |config: &TrainConfig, data_hash| {
        let mut settings = settings(args, config, &task, built.start.as_ref(), &built.default_targets);
        settings.insert("loss_on".into(), json!(args.language.loss_on.unwrap_or_default().name()));
        if matches!(rows, Encoded::Pairs(..)) {
            settings.insert("beta".into(), json!(loss.beta));
            settings.insert("label_smoothing".into(), json!(loss.label_smoothing));
        }
        Identity {
            task: task.clone(),
            metric: "loss".into(),
            settings,
            data_hash,
            model_hash: built.hash.clone(),
            starts: hash_starts(built.model.adapters()),
            count: built.model.count(),
            warnings: Vec::new(),
        }
    };
    let save = |model: &TunedDecoder<Inner>| save(args, folder, model);
    let data_hash = rows.hash();
    match rows.clone() {
        Encoded::Rows(train, dev) => {
            let samples = Samples::new(&dev, args.language.n_samples(), SAMPLE_TOKENS, tokenizer);
            let objective = NextToken::new(train, dev, &config, recompute)?.with_samples(samples);
            if let Some(epochs) = args.epochs {
                config.max_steps = objective.plan().steps_for(epochs);
            }
            let identity = identity(&config, data_hash);
            job::run(args, &config, identity, &objective, built.model.clone(), save, process)
        }
        Encoded::Pairs(train, dev) => {
            let reference = built.model.valid();
            let objective = Preference::<Train>::new(train, dev, reference, &config, loss, recompute)?;
            if let Some(epochs) = args.epochs {
                config.max_steps = objective.plan().steps_for(epochs);
            }
            let identity = identity(&config, data_hash);
            job::run(args, &config, identity, &objective, built.model.clone(), save, process)
        }
    }
}

/// The name of a task whose rows are in files.
pub(super) fn task_name(train: &Path) -> String {
    train.file_stem().map_or_else(|| "own".into(), |stem| stem.to_string_lossy().into_owned())
}

/// Rows to train on and rows to evaluate with.
#[derive(Clone)]
enum Encoded {
    Rows(Vec<TokenRow>, Vec<TokenRow>),
    Pairs(Vec<TokenPair>, Vec<TokenPair>),
}

impl Encoded {
    /// Number of tokens of each training row; for a pair, of both sides together.
    fn lengths(&self) -> Vec<usize> {
        match self {
            Self::Rows(train, _) => train.iter().map(|row| row.ids.len()).collect(),
            Self::Pairs(train, _) => {
                train.iter().map(|pair| pair.chosen.ids.len() + pair.rejected.ids.len()).collect()
            }
        }
    }

    /// The first training rows as calibration text; of pairs, the chosen sides.
    fn first(&self) -> Vec<Tokens> {
        let encoded =
            |row: &TokenRow| tokenize::Encoded { ids: row.ids.clone(), type_ids: vec![0; row.ids.len()] };
        match self {
            Self::Rows(train, _) => first_texts(train.iter().map(encoded)),
            Self::Pairs(train, _) => first_texts(train.iter().map(|pair| encoded(&pair.chosen))),
        }
    }

    /// Hash of tokens, row boundaries and target flags.
    fn hash(&self) -> String {
        let rows: Vec<&TokenRow> = match self {
            Self::Rows(train, dev) => train.iter().chain(dev).collect(),
            Self::Pairs(train, dev) => {
                train.iter().chain(dev).flat_map(|pair| [&pair.chosen, &pair.rejected]).collect()
            }
        };
        let bytes = rows.iter().flat_map(|row| {
            let tokens = row.ids.iter().zip(&row.is_learnt);
            let length = (row.ids.len() as u32).to_le_bytes();
            length.into_iter().chain(tokens.flat_map(|(id, learnt)| {
                let [a, b, c, d] = id.to_le_bytes();
                [a, b, c, d, u8::from(*learnt)]
            }))
        });
        format!("{:016x}", fnv(bytes))
    }
}

fn encode(
    args: &Args,
    folder: &ModelFolder,
    config: &DecoderConfig,
    tokenizer: &TextTokenizer,
    paths: [&PathBuf; 2],
) -> Result<Encoded> {
    let limit = if config.is_bounded() { config.max_positions } else { usize::MAX };
    if let Some(n) = args.max_length.filter(|n| *n > limit) {
        bail!("--max-length {n} exceeds the model's limit of {limit} tokens");
    }
    let max_length = args.max_length.unwrap_or(config.max_positions.min(LENGTH));
    let template = folder.chat_template()?;
    let loss_on = args.language.loss_on.unwrap_or_default();
    let encoder = RowEncoder::new(tokenizer, template.as_ref(), loss_on, max_length)?;
    let [train, dev] = [Rows::read(paths[0])?, Rows::read(paths[1])?];
    ensure!(
        train.are_preferences() == dev.are_preferences(),
        "{}: preferences and other rows cannot be mixed with {}; give both files in the same format",
        dev.path().display(),
        train.path().display()
    );
    job::warn_repeated(&dev, &train);
    let counted = |rows: &Rows, n_cut: usize, n_left_out: usize| {
        if n_cut + n_left_out > 0 {
            eprintln!(
                "{}: {n_cut} rows cut at {max_length} tokens, {n_left_out} left out because they have no target token",
                rows.path().display()
            );
        }
    };
    if train.are_preferences() {
        ensure!(
            args.language.write_samples.is_none(),
            "--write-samples does not apply to preferences; leave it out"
        );
        ensure!(
            args.language.loss_on.is_none(),
            "--loss-on does not apply to preferences, whose loss is on the completions"
        );
        let [train, dev] = [(&train, encoder.encode_pairs(&train)?), (&dev, encoder.encode_pairs(&dev)?)];
        counted(train.0, train.1.n_cut, train.1.n_left_out);
        counted(dev.0, dev.1.n_cut, dev.1.n_left_out);
        let sides = train.1.pairs.iter().flat_map(|pair| [&pair.chosen, &pair.rejected]);
        show(sides, 2 * args.language.n_shown(), tokenizer)?;
        return Ok(Encoded::Pairs(train.1.pairs, dev.1.pairs));
    }
    ensure!(
        args.language.beta.is_none() && args.language.label_smoothing.is_none(),
        "--beta and --label-smoothing require preferences (prompt, chosen, rejected)"
    );
    let [train, dev] = [(&train, encoder.encode(&train)?), (&dev, encoder.encode(&dev)?)];
    counted(train.0, train.1.n_cut, train.1.n_left_out);
    counted(dev.0, dev.1.n_cut, dev.1.n_left_out);
    show(train.1.rows.iter(), args.language.n_shown(), tokenizer)?;
    Ok(Encoded::Rows(train.1.rows, dev.1.rows))
}

/// Shows rows with their target tokens in brackets.
fn show<'a>(rows: impl Iterator<Item = &'a TokenRow>, n: usize, tokenizer: &TextTokenizer) -> Result<()> {
    for row in rows.take(n) {
        eprintln!(
            "sample: {} tokens, {} of them targets\n{}",
            row.ids.len(),
            row.n_learnt(),
            row.show(tokenizer)?
        );
    }
    Ok(())
}

/// Refuses a config that asks for a loss beside that of the next token.
fn check_balance(folder: &Path, config: &DecoderConfig) -> Result<()> {
    let asks = config.raw.get("output_router_logits").and_then(Value::as_bool).unwrap_or(false);
    ensure!(
        config.experts.is_none() || !asks,
        "{}: config.json asks for the load-balancing loss of experts (output_router_logits = true), which is not supported; \
         set it to false to train on the next token alone",
        folder.display()
    );
    Ok(())
}
