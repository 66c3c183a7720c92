//! Tasks and their rows: the nine GLUE tasks in their official files, and the user's own files of texts or
//! words.
//!
//! Wang et al., «GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding»,
//! 2018. Class order and names are those of the Hugging Face data set `glue`, so that a model's `id2label`
//! has the same meaning.

mod custom;
mod dataset;
mod labels;
mod official;
mod tagged;
mod task;

pub use custom::{read_custom, read_labelled};
pub use dataset::{Example, GlueDataset, Label};
pub use labels::{class_number, class_places, generic_places};
pub use tagged::{TaggedDataset, TaggedRow, is_tagged, read_tagged, read_tagged_file};
pub use task::{LabelSpace, Metric, Split, Task, TaskSpec};
