//! Adapter folders in PEFT's own format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Keys are `base_model.model.<module path>.lora_A.weight` `(r, in)` and `.lora_B.weight` `(out, r)` in
//! PyTorch's layout, `.lora_magnitude_vector` for DoRA, `.lora_embedding_A` and `_B` for embeddings; modules
//! trained in full (the task head) are saved under their own path and named in `modules_to_save`. VeRA is
//! PEFT's too, with its projections in the file. What PEFT does not know uses the same layout under a
//! `peft_type` of its own:
//!
//! | `peft_type` | tensors |
//! |---|---|
//! | `LOTR` | `<path>.lotr_core.weight` `(r, r)` for each slice; the shared `lotr.left.weight` `(r, in)` and `lotr.right.weight` `(out, r)`, each the transpose of what the forward pass multiplies by |
//! | `LORETTA`, `TT_LORA` | `<path>.tt_left.<k>` and `<path>.tt_right.<k>`, cores `(rank, mode, next rank)` |
//! | `LORTA` | `lorta.a`, `lorta.b`, `lorta.heads`, `lorta.layers`, `lorta.kinds` |
//! | `HEAD` | no adapter, the task head alone |
//!
//! Of several groups, those after the first are `lotr.1`, `lotr.2`, …, and `groups` in the config lists the paths of
//! each. Full-size corrections of low rank are written as the LoRA that they are.

mod config;
mod folder;
mod names;
mod read;
mod saved;
mod sites;
mod write;

pub use crate::host::host_values;
pub use config::PeftConfig;
pub use folder::{AdapterFolder, CONFIG_FILE, LORALIB_ALPHA, TENSOR_FILE, is_adapter};
pub use saved::Saved;
