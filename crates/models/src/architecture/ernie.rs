//! ERNIE (Sun et al. 2019, 2020): BERT, with a table of tasks by option.

use super::bert;
use crate::config::{EmbeddingNames, EncoderArchitecture, EncoderConfig, EncoderNames, HeadNames, Keys};

pub(super) const ARCHITECTURE: EncoderArchitecture = EncoderArchitecture {
    model_types: &[("ernie", "Ernie")],
    options,
    names: EncoderNames {
        prefix: "ernie.",
        embeddings: EmbeddingNames { tasks: Some("embeddings.task_type_embeddings"), ..bert::EMBEDDINGS },
        ..bert::NAMES
    },
    head: HeadNames { dense: "ernie.pooler.dense", ..bert::ARCHITECTURE.head },
    ..bert::ARCHITECTURE
};

fn options(config: EncoderConfig, keys: &Keys<'_>) -> Result<EncoderConfig, String> {
    let task_types = match keys.flag_or("use_task_id", false)? {
        true => keys.size_or("task_type_vocab_size", 3)?,
        false => 0,
    };
    Ok(EncoderConfig { task_types, ..config })
}
