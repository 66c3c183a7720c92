//! mini-bert: an encoder pre-trained by masked language modelling on text of the grammar.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use lowrank_adapters::AdapterSet;
use lowrank_checkpoint::FloatType;
use lowrank_data::mlm::Masker;
use lowrank_data::pack::EncodedDataset;
use lowrank_data::tokenize::{Encoded, TextTokenizer};
use lowrank_mini::{corpus, tokenizer_files};
use lowrank_models::{EncoderConfig, MaskedLm, Parameters};
use lowrank_train::{Masked, SchedulerKind, TrainConfig, TunedMaskedLm};
use serde_json::json;

use super::{SEED, pretrain, write};
use crate::backend::{Train, device};

/// Lines of text.
const LINES: usize = 120_000;
/// Longest sequence.
const MAX_TOKENS: usize = 128;

/// Pre-trains the model into `folder`.
pub(super) fn make(folder: &Path, state: &Path, steps: Option<usize>) -> Result<()> {
    let device = device()?;
    write(folder, &tokenizer_files(MAX_TOKENS))?;
    let tokenizer = TextTokenizer::from_folder(folder, Some(MAX_TOKENS))?;
    let rows: Vec<Encoded> = corpus(SEED, LINES)
        .iter()
        .map(|line| tokenizer.encode(&line.text, line.pair.as_deref()))
        .collect::<lowrank_data::Result<_>>()?;
    let config = TrainConfig {
        lr: 1e-3,
        weight_decay: 0.01,
        batch_size: 64,
        max_steps: steps.unwrap_or(12_000),
        scheduler: SchedulerKind::Linear,
        seed: SEED,
        ..TrainConfig::default()
    };
    let shape = model_config(folder, tokenizer.vocab_size())?;
    let mut model = MaskedLm::<Train>::init(shape, SEED, &device)?;
    model.choose_trained(|_, _| true);
    let rows = Arc::new(EncodedDataset::unlabelled(rows));
    let objective = Masked::new(rows, None, Masker::new(&tokenizer)?, &config)?;
    let model = TunedMaskedLm::new(model, AdapterSet::empty());
    let trained = pretrain(&objective, model, config, state, "mini-bert")?;
    Ok(trained.model().save(folder, folder, FloatType::F32)?)
}

/// The model's config.json, read back as any other.
fn model_config(folder: &Path, vocab_size: usize) -> Result<EncoderConfig> {
    let config = json!({
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "max_position_embeddings": MAX_TOKENS,
        "type_vocab_size": 2,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-12,
        "pad_token_id": 0
    });
    lowrank_checkpoint::write_atomic(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    Ok(EncoderConfig::read(folder)?)
}
