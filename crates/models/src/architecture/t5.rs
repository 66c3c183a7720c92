//! T5 and mT5 (Raffel et al. 2020; Xue et al. 2021), with and without their decoders: RMS norms before the parts, a bias by
//! relative position that all layers share, no biases in maps, scores that are not scaled, heads with their own width.

use lowrank_kernels::Gelu;

use super::{bert, llama, unknown};
use crate::config::{
    Activation, CrossNames, DecoderArchitecture, DecoderConfig, DecoderDropouts, DecoderNames, Defaults,
    DistanceBuckets, DropoutKeys, EmbeddingNames, EncoderArchitecture, EncoderBiases, EncoderConfig,
    EncoderDropouts, EncoderNames, Keys, LayerKind, LayerNorms, QkvNames, RelativeKind, RelativeNames,
    RelativePositions, Seq2SeqArchitecture, lookup,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("t5", "T5"), ("mt5", "MT5")],
    config_keys: &[
        ("d_model", "hidden_size"),
        ("num_heads", "num_attention_heads"),
        ("num_layers", "num_hidden_layers"),
        ("d_ff", "intermediate_size"),
        ("layer_norm_epsilon", "layer_norm_eps"),
        ("dropout_rate", "hidden_dropout_prob"),
        ("n_positions", "max_position_embeddings"),
    ],
    defaults: || vec![("layer_norm_eps", 1e-6.into()), ("d_kv", 64.into())],
    options: alone,
    extras: &["encoder.embed_tokens."],
    words_copies: &["encoder.embed_tokens"],
    has_heads: false,
    names: EncoderNames {
        prefix: "",
        embeddings: EmbeddingNames { words: "shared", positions: None, types: None, tasks: None, norm: None },
        layers: "encoder.block",
        qkv: QkvNames::Separate([
            "layer.0.SelfAttention.q",
            "layer.0.SelfAttention.k",
            "layer.0.SelfAttention.v",
        ]),
        output: "layer.0.SelfAttention.o",
        norms_before: true,
        attention_norm: "layer.0.layer_norm",
        feed_forward: ["layer.1.DenseReluDense.wi", "layer.1.DenseReluDense.wo"],
        feed_forward_norm: "layer.1.layer_norm",
        final_norm: Some("encoder.final_layer_norm"),
        relative: Some(RelativeNames {
            table: "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
            norm: "",
            key: "",
            query: "",
        }),
        ..bert::NAMES
    },
    ..bert::ARCHITECTURE
};

/// T5 1.1, mT5 and Flan-T5: a gated feed-forward part.
static GATED: EncoderArchitecture = EncoderArchitecture {
    names: EncoderNames {
        gate: Some("layer.1.DenseReluDense.wi_0"),
        feed_forward: ["layer.1.DenseReluDense.wi_1", "layer.1.DenseReluDense.wo"],
        ..ARCHITECTURE.names
    },
    ..ARCHITECTURE
};

/// With a decoder.
pub(super) static SEQ2SEQ: Seq2SeqArchitecture = Seq2SeqArchitecture {
    model_types: &[("t5", "T5"), ("mt5", "MT5")],
    encoder: &HALF,
    decoder: &DECODER,
    logits_bias: None,
    copies: &["encoder.embed_tokens", "decoder.embed_tokens"],
    starts_with_padding: true,
    starts_with_last: false,
    // T5's files say by that key whether states are scaled.
    says_tied: false,
};

/// The encoder under a decoder.
static HALF: EncoderArchitecture = EncoderArchitecture { options, ..ARCHITECTURE };

static DECODER: DecoderArchitecture = DecoderArchitecture {
    model_type: "t5",
    class: "T5",
    config_keys: &[
        ("d_model", "hidden_size"),
        ("num_heads", "num_attention_heads"),
        // Where it is there, the other is not read.
        ("num_decoder_layers", "num_hidden_layers"),
        ("num_layers", "num_hidden_layers"),
        ("d_ff", "intermediate_size"),
        ("d_kv", "head_dim"),
    ],
    names: DecoderNames {
        prefix: "",
        embedding: "shared",
        relative: Some("decoder.block.0.layer.0.SelfAttention.relative_attention_bias"),
        layers: "decoder.block",
        norms: LayerNorms::before("layer.0.layer_norm", "layer.2.layer_norm"),
        qkv: QkvNames::Separate([
            "layer.0.SelfAttention.q",
            "layer.0.SelfAttention.k",
            "layer.0.SelfAttention.v",
        ]),
        output: "layer.0.SelfAttention.o",
        cross: Some(CrossNames {
            qkv: ["layer.1.EncDecAttention.q", "layer.1.EncDecAttention.k", "layer.1.EncDecAttention.v"],
            output: "layer.1.EncDecAttention.o",
            norm: "layer.1.layer_norm",
        }),
        gate: None,
        up: "layer.2.DenseReluDense.wi",
        down: "layer.2.DenseReluDense.wo",
        norm: "decoder.final_layer_norm",
        // The first published checkpoints hold such a table, which transformers leaves out too.
        buffers: &["EncDecAttention.relative_attention_bias.weight"],
        ..llama::NAMES
    },
    dropouts: DropoutKeys {
        embeddings: Some(("dropout_rate", 0.1)),
        attention: Some(("dropout_rate", 0.1)),
        attention_output: Some(("dropout_rate", 0.1)),
        mlp_output: Some(("dropout_rate", 0.1)),
    },
    token_head: llama::TOKEN_HEAD,
    config: decoder,
};

/// As [`GATED`].
static GATED_DECODER: DecoderArchitecture = DecoderArchitecture {
    names: DecoderNames {
        gate: Some("layer.2.DenseReluDense.wi_0"),
        up: "layer.2.DenseReluDense.wi_1",
        ..DECODER.names
    },
    ..DECODER
};

fn decoder(architecture: &'static DecoderArchitecture, keys: &Keys<'_>) -> Result<DecoderConfig, String> {
    let defaults =
        Defaults { head_dim: Some(64), norm_eps_key: "layer_norm_epsilon", tied: true, ..Defaults::DEFAULT };
    let common = DecoderConfig::with(architecture, keys, defaults)?.without_ropes();
    let (activation, is_gated) = feed_forward(keys)?;
    let (n_buckets, max_distance) = buckets(keys)?;
    // transformers ties the weights of all, and scales the states of those that say so or nothing; mT5's never.
    let scales = match keys.has("scale_decoder_outputs") {
        true => keys.flag_or("scale_decoder_outputs", true)?,
        false => keys.flag_or("tie_word_embeddings", true)?,
    };
    let is_scaled = scales && keys.text("model_type")? != Some("mt5");
    let dropout = common.dropouts.embeddings;
    Ok(DecoderConfig {
        architecture: if is_gated { &GATED_DECODER } else { architecture },
        activation,
        n_kv_heads: common.n_heads,
        relative: Some(DistanceBuckets::Causal { n_buckets, max_distance }),
        layers: common.layers.iter().map(|layer| LayerKind { scale: 1.0, ..*layer }).collect(),
        dropouts: DecoderDropouts { mlp_inner: dropout, last: dropout, ..common.dropouts },
        logit_scale: if is_scaled { (common.d_model as f64).powf(-0.5) } else { 1.0 },
        tied: true,
        ..common
    })
}

/// The encoder without a decoder.
fn alone(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let classes = keys.get("architectures").and_then(|classes| classes.as_array()).into_iter().flatten();
    let mut classes = classes.filter_map(|class| class.as_str());
    if let Some(class) = classes.find(|class| !class.ends_with("EncoderModel")) {
        return Err(format!(
            "the class '{class}' is not that of an encoder alone; {}; for embed, save the encoder with \
             T5EncoderModel.from_pretrained(FOLDER).save_pretrained(NEW) of transformers",
            unknown::SEQ2SEQ
        ));
    }
    options(config, keys)
}

/// `relative_attention_num_buckets` and `relative_attention_max_distance`.
fn buckets(keys: &Keys<'_>) -> Result<(usize, usize), String> {
    let (n_buckets, max_distance) = (
        keys.size_or("relative_attention_num_buckets", 32)?,
        keys.size_or("relative_attention_max_distance", 128)?,
    );
    if n_buckets < 4 || !n_buckets.is_multiple_of(2) || max_distance <= n_buckets / 4 {
        return Err(format!(
            "relative_attention_num_buckets = {n_buckets} for relative_attention_max_distance = {max_distance} is not supported; \
             expected an even number from 4 on, below four times the distance"
        ));
    }
    Ok((n_buckets, max_distance))
}

/// The activation of the feed-forward part, and whether it has a gate. As in transformers, `dense_act_fn` and `is_gated_act`,
/// which `save_pretrained` writes beside `feed_forward_proj`, hold over it.
fn feed_forward(keys: &Keys<'_>) -> Result<(Activation, bool), String> {
    // mT5's configuration has another default.
    let default = if keys.text("model_type")? == Some("mt5") { "gated-gelu" } else { "relu" };
    let projection = keys.text("feed_forward_proj")?.unwrap_or(default);
    let gated = projection.strip_prefix("gated-");
    let activation = match (keys.text("dense_act_fn")?, gated) {
        (Some(name), _) => lookup("dense_act_fn", name, &Activation::NAMES)?,
        // transformers reads this name as the approximation by tanh.
        (None, Some("gelu")) => Activation::Gelu(Gelu::Tanh),
        (None, name) => lookup("feed_forward_proj", name.unwrap_or(projection), &Activation::NAMES)?,
    };
    Ok((activation, keys.flag_or("is_gated_act", gated.is_some())?))
}

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let (n_buckets, max_distance) = buckets(keys)?;
    let (activation, is_gated) = feed_forward(keys)?;
    let dropout = config.dropouts.embeddings;
    let buckets = DistanceBuckets::Bidirectional { n_buckets, max_distance };
    Ok(EncoderConfig {
        architecture: if is_gated { &GATED } else { config.architecture },
        activation,
        norm_is_rms: true,
        score_scale: 1.0,
        biases: EncoderBiases { qkv: false, output: false, up: false, down: false, norms: false },
        dropouts: EncoderDropouts {
            embeddings: dropout,
            attention: dropout,
            attention_output: dropout,
            inner: dropout,
            output: dropout,
            relative: 0.0,
            last: dropout,
        },
        relative: Some(RelativePositions { buckets, kind: RelativeKind::Bias }),
        ..config
    })
}
