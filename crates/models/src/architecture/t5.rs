//! The encoder of T5 and mT5 (Raffel et al. 2020; Xue et al. 2021): RMS norms before the parts, a bias by relative position
//! that all layers share, no biases in maps, scores that are not scaled, heads with their own width.

use lowrank_kernels::Gelu;

use super::bert;
use crate::config::{
    Activation, DistanceBuckets, EmbeddingNames, EncoderArchitecture, EncoderBiases, EncoderConfig,
    EncoderDropouts, EncoderNames, Keys, QkvNames, RelativeKind, RelativeNames, RelativePositions, lookup,
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
    options,
    extras: &["encoder.embed_tokens."],
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

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let classes = keys.get("architectures").and_then(|classes| classes.as_array()).into_iter().flatten();
    if let Some(class) =
        classes.filter_map(|class| class.as_str()).find(|class| !class.ends_with("EncoderModel"))
    {
        return Err(format!(
            "the class '{class}' is more than an encoder; only T5EncoderModel and MT5EncoderModel are supported: save the encoder \
             with T5EncoderModel.from_pretrained(FOLDER).save_pretrained(NEW) of transformers"
        ));
    }
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
    // mT5's configuration has another default.
    let default = if keys.text("model_type")? == Some("mt5") { "gated-gelu" } else { "relu" };
    let projection = keys.text("feed_forward_proj")?.unwrap_or(default);
    let (architecture, activation) = match projection.strip_prefix("gated-") {
        // transformers reads this name as the approximation by tanh.
        Some("gelu") => (&GATED, Activation::Gelu(Gelu::Tanh)),
        Some(name) => (&GATED, lookup("feed_forward_proj", name, &Activation::NAMES)?),
        None => (config.architecture, lookup("feed_forward_proj", projection, &Activation::NAMES)?),
    };
    let dropout = config.dropouts.embeddings;
    let buckets = DistanceBuckets::Halves { n_buckets, max_distance };
    Ok(EncoderConfig {
        architecture,
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
        },
        relative: Some(RelativePositions { buckets, kind: RelativeKind::Bias }),
        ..config
    })
}
