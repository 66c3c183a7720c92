//! Adapter folders in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Keys are `base_model.model.<module path>.lora_A.weight` `(r, in)` and `.lora_B.weight` `(out, r)` in
//! PyTorch's layout, `.lora_magnitude_vector` for DoRA, `.lora_embedding_A` and `_B` for embeddings; modules
//! trained in full (the task head) are saved under their own path and named in `modules_to_save`. VeRA is
//! PEFT's too, with its projections in the file. Methods unknown to PEFT use the same layout under a
//! dedicated `peft_type`, described in the method's module in [`methods`](crate::methods); `HEAD` is a
//! task head without adapters.
//!
//! With several groups of sites that share factors, those after the first are `lotr.1`, `lotr.2`, …, and
//! `groups` in the config lists the paths of each. Full-size low-rank corrections are written as LoRAs.

mod config;
mod experts;
mod folder;
mod init_tag;
mod names;
mod read;
mod saved;
mod selection;
mod sites;
mod tied;
mod vocabulary;
mod write;

#[doc(hidden)]
pub use self::config::fuzz_config;
pub use self::config::{PeftConfig, TokenIndices};
pub use self::folder::{AdapterFolder, CONFIG_FILE, LORALIB_ALPHA, TENSOR_FILE, is_adapter};
pub use self::init_tag::InitTag;
pub use self::read::{Found, Reader};
pub use self::saved::{Carried, Saved, TableRows};
pub use self::sites::OwnSite;
pub(crate) use self::sites::sort_by_layer;
pub use self::tied::TiedUse;
pub use self::write::Writer;
pub use crate::host::host_values;

/// Prefix of the keys of a group's shared factors.
pub(crate) fn group_key(name: &str, index: usize) -> String {
    if index == 0 { name.to_string() } else { format!("{name}.{index}") }
}
