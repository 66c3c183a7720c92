//! RoFormer (Su et al. 2021): BERT with rotary positions, of neighbouring elements, and ELECTRA's embeddings and head.

use super::{bert, electra, nomic};
use crate::config::{
    EmbeddingNames, EncoderArchitecture, EncoderConfig, EncoderNames, HeadOptions, Keys, RopeScaling,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("roformer", "RoFormer")],
    defaults: || vec![("max_position_embeddings", 1536.into())],
    options,
    // The table of sines and cosines.
    extras: &["encoder.embed_positions."],
    names: EncoderNames {
        prefix: "roformer.",
        embeddings: EmbeddingNames { positions: None, ..bert::EMBEDDINGS },
        ..electra::ARCHITECTURE.names
    },
    masked_lm: bert::ARCHITECTURE.masked_lm,
    ..electra::ARCHITECTURE
};

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    if keys.flag_or("rotary_value", false)? {
        return Err("rotary_value = true is not supported for roformer; expected false".into());
    }
    let embedding_size = keys.size_or("embedding_size", config.d_model)?;
    let dropout = config.dropouts.embeddings;
    let head = HeadOptions { activation: config.activation, input_dropout: dropout, ..config.head };
    let config =
        EncoderConfig { embedding_size, head, classifier_dropout: dropout, token_dropout: dropout, ..config };
    let mut config = nomic::rotary(config, keys, 10_000.0)?;
    for rope in &mut config.ropes {
        rope.interleaved = true;
        if rope.scaling != RopeScaling::None || rope.theta != 10_000.0 {
            return Err("roformer takes no rope_parameters; its base is 10000".into());
        }
    }
    Ok(config)
}
