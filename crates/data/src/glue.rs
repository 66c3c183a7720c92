//! Tasks and their rows: the nine GLUE tasks in their official files, and files of the user's own.
//!
//! Wang et al., «GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding», 2018. Class
//! order and names are those of the Hugging Face data set `glue`, so that `id2label` of a model means the same.

mod custom;
mod dataset;
mod official;
mod task;

pub use custom::read_custom;
pub use dataset::{Example, GlueDataset, Label};
pub use task::{LabelSpace, Metric, Split, Task, TaskSpec};
