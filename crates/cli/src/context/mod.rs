//! Shared by the commands: finding models and adapters, reading texts, printing JSON.

mod answers;
mod given;
mod images;
mod labels;
mod model;
mod output;
mod texts;

pub(crate) use answers::{SpanArgs, check_question};
pub(crate) use given::{check_effect, record_given, warn_unused};
pub(crate) use images::{Pictures, TaskName, check_kind, check_task, dev_folder, refuse_pictures};
pub(crate) use labels::{LABELS_FILE, adapter_level, classifier_config, write_labels};
pub(crate) use model::{Loaded, ModelArgs, adapter_folder, model_folder, open_model, open_with, tokenizer};
pub(crate) use output::{new_folder, print_json, write_folder};
pub(crate) use texts::{TextArgs, Texts, read_text};
