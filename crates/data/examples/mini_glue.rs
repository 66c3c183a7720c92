//! Writes mini-GLUE, text to pre-train on and a tokenizer:
//! `cargo run -p lowrank-data --example mini_glue -- OUT_FOLDER [CORPUS_LINES]`.

use std::error::Error;
use std::path::Path;

use lowrank_data::glue::{GlueDataset, Split};
use lowrank_data::mini::{self, DEFAULT_SEED};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(out) = arguments.next() else {
        return Err("usage: mini_glue OUT_FOLDER [CORPUS_LINES]".into());
    };
    let out = Path::new(&out);
    mini::write(out, DEFAULT_SEED)?;
    for task in mini::TASKS {
        for split in [Split::Train, Split::Dev] {
            let set = GlueDataset::read(out, task, split)?;
            let first = &set.examples()[0];
            let pair = first.pair.as_deref().unwrap_or("");
            eprintln!("{task} {split}: {} rows, the first: {} {pair}", set.examples().len(), first.text);
        }
    }
    if let Some(lines) = arguments.next() {
        let mut text = String::new();
        for line in mini::corpus(DEFAULT_SEED, lines.parse()?) {
            text.push_str(&line.text);
            if let Some(pair) = line.pair {
                text.push('\t');
                text.push_str(&pair);
            }
            text.push('\n');
        }
        std::fs::write(out.join("corpus.txt"), text)?;
        mini::write_tokenizer(&out.join("tokenizer"), 128)?;
    }
    Ok(())
}
