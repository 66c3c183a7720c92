//! mini-llama: a language model with a chat template, pre-trained on text of the grammar and on half of the kinds of
//! instructions.

use std::path::Path;

use anyhow::{Context, Result};
use lowrank_adapters::AdapterSet;
use lowrank_checkpoint::FloatType;
use lowrank_data::chat::ChatTemplate;
use lowrank_data::rows::{LossOn, Row, RowEncoder, Rows};
use lowrank_data::tokenize::{TextTokenizer, train_byte_level};
use lowrank_mini::language_files;
use lowrank_models::{Decoder, DecoderConfig, Parameters};
use lowrank_train::{NextToken, SchedulerKind, TrainConfig, TunedDecoder};
use serde_json::{Value, json};

use super::{SEED, pretrain, write};
use crate::backend::{Train, device};

/// Steps of pre-training.
const STEPS: usize = 2_000;
/// Rows in a step, each of which is seen once.
const BATCH: usize = 64;
/// Longest sequence.
const MAX_TOKENS: usize = 256;
/// Tokens of the vocabulary: few, so that forms of a word share a part.
const VOCABULARY: usize = 1_024;
/// Rows that the vocabulary is learnt from.
const VOCABULARY_ROWS: usize = 20_000;
/// Special tokens, in the order of their ids: padding, beginning and end of a turn.
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/// ChatML, with marks around the answers. An input stands on the line of its instruction, as it is typed on a terminal.
const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}\
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}\
{% else %}{{ message['content'] | replace('\\n\\n', ' ') + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Pre-trains the model into `folder`.
pub(super) fn make(folder: &Path, state: &Path, steps: Option<usize>) -> Result<()> {
    let device = device()?;
    let steps = steps.unwrap_or(STEPS);
    // The training's own path reads rows from files.
    write(state, &language_files(SEED, steps * BATCH))?;
    let rows = ["train.jsonl", "dev.jsonl"].map(|name| Rows::read(&state.join(name)));
    let [train, dev] = rows;
    let (train, dev) = (train?, dev?);
    write_tokenizer(folder, &train)?;
    let tokenizer = TextTokenizer::from_folder(folder, None)?;
    let template = ChatTemplate::from_folder(folder)?;
    let encoder = RowEncoder::new(&tokenizer, template.as_ref(), LossOn::All, MAX_TOKENS)?;
    let (train, dev) = (encoder.encode(&train)?.rows, encoder.encode(&dev)?.rows);
    let config = TrainConfig {
        lr: 4e-3,
        weight_decay: 0.01,
        batch_size: BATCH,
        max_steps: steps,
        scheduler: SchedulerKind::Linear,
        seed: SEED,
        ..TrainConfig::default()
    };
    let shape = model_config(folder, tokenizer.vocab_size())?;
    let mut model = Decoder::<Train>::init(shape, SEED, &device).map_err(anyhow::Error::msg)?;
    model.choose_trained(|_, _| true);
    let objective = NextToken::new(train, dev, &config, false)?;
    let model = TunedDecoder::new(model, AdapterSet::empty());
    let trained = pretrain(&objective, model, config, state, "mini-llama")?;
    Ok(trained.model().save(folder, folder, FloatType::BF16)?)
}

/// Learns the vocabulary of the rows; writes the tokenizer, its template, and how the model ends a text.
fn write_tokenizer(folder: &Path, rows: &Rows) -> Result<()> {
    let texts = rows.iter().take(VOCABULARY_ROWS).flat_map(|row| match row {
        Row::Text(text) => vec![text.as_str()],
        Row::Instruction { instruction, input, output } => {
            vec!["user", "assistant", instruction, input, output]
        }
        _ => Vec::new(),
    });
    let texts: Vec<&str> = texts.collect();
    let tokenizer = train_byte_level(texts, VOCABULARY, &SPECIAL)?;
    let [pad, bos, eos] = SPECIAL;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "model_max_length": MAX_TOKENS,
        "clean_up_tokenization_spaces": false,
        "chat_template": TEMPLATE,
    });
    let generation = json!({ "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0 });
    let pretty = |json: &Value| serde_json::to_string_pretty(json).map(|text| text + "\n");
    write(
        folder,
        &[
            ("tokenizer.json".into(), tokenizer),
            ("tokenizer_config.json".into(), pretty(&config)?),
            ("generation_config.json".into(), pretty(&generation)?),
        ],
    )
    .context("the tokenizer of mini-llama")
}

/// The model's config.json, read back as any other.
fn model_config(folder: &Path, vocab_size: usize) -> Result<DecoderConfig> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 384,
        "hidden_act": "silu",
        "max_position_embeddings": MAX_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": true,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0
    });
    lowrank_checkpoint::write_atomic(folder.join("config.json"), serde_json::to_string_pretty(&config)?)?;
    Ok(DecoderConfig::read(folder)?)
}
