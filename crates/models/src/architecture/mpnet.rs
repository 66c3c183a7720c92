//! MPNet (Song et al. 2020): BERT with T5's relative position bias, which all layers share, and RoBERTa's heads.

use super::{bert, roberta};
use crate::config::{
    DistanceBuckets, EmbeddingNames, EncoderArchitecture, EncoderConfig, EncoderNames, HeadOptions, Keys,
    QkvNames, RelativeKind, RelativeNames, RelativePositions,
};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("mpnet", "MPNet")],
    options,
    names: EncoderNames {
        prefix: "mpnet.",
        embeddings: EmbeddingNames { types: None, ..bert::EMBEDDINGS },
        qkv: QkvNames::Separate(["attention.attn.q", "attention.attn.k", "attention.attn.v"]),
        output: "attention.attn.o",
        attention_norm: "attention.LayerNorm",
        relative: Some(RelativeNames {
            table: "encoder.relative_attention_bias",
            norm: "",
            key: "",
            query: "",
        }),
        ..bert::NAMES
    },
    ..roberta::ARCHITECTURE
};

/// Buckets that transformers looks up, however many rows the table has.
const N_BUCKETS: usize = 32;

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let rows = keys.size_or("relative_attention_num_buckets", N_BUCKETS)?;
    if rows != N_BUCKETS {
        return Err(format!(
            "relative_attention_num_buckets = {rows} is not supported; expected {N_BUCKETS}"
        ));
    }
    // The row of padding is 1 in the table of positions, whatever the tokenizer's id is.
    let position_offset = 2;
    if config.max_positions <= position_offset {
        return Err(format!(
            "max_position_embeddings = {} leaves no position for a token; expected above {position_offset}",
            config.max_positions
        ));
    }
    let buckets = DistanceBuckets::Bidirectional { n_buckets: N_BUCKETS, max_distance: 128 };
    Ok(EncoderConfig {
        position_offset,
        // Its heads drop as the layers do.
        classifier_dropout: config.dropouts.embeddings,
        token_dropout: config.dropouts.embeddings,
        head: HeadOptions { input_dropout: config.dropouts.embeddings, ..config.head },
        relative: Some(RelativePositions { buckets, kind: RelativeKind::Bias }),
        ..config
    })
}
