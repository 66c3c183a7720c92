//! Judges constant answers on a task's dev set: `cargo run -p lowrank-eval --example glue_metrics -- GLUE_FOLDER rte`.

use std::error::Error;
use std::path::Path;

use lowrank_data::glue::{GlueDataset, Label, Split, Task};
use lowrank_eval::score;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(root), Some(task)) = (arguments.next(), arguments.next()) else {
        return Err("usage: glue_metrics GLUE_FOLDER TASK".into());
    };
    let task: Task = task.parse()?;
    let dev = GlueDataset::read(Path::new(&root), task, Split::Dev)?;
    let labels: Vec<Label> = dev.examples().iter().filter_map(|e| e.label.clone()).collect();
    for class in 0..task.n_labels() {
        // A row of logits that answers `class`, whatever the text.
        let row: Vec<f32> = (0..task.n_labels()).map(|c| f32::from(u8::from(c == class))).collect();
        let figures: Vec<String> = score(task.metrics(), &vec![row; labels.len()], &labels, &[])?
            .iter()
            .map(|(metric, value)| format!("{metric} {value:.3}"))
            .collect();
        let name = task.label_names().get(class).copied().unwrap_or("the same score");
        eprintln!("always {name}: {}", figures.join(", "));
    }
    Ok(())
}
