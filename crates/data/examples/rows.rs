//! Shows what of each row a language model learns:
//! `cargo run -p lowrank-data --example rows -- MODEL_FOLDER ROWS.jsonl [completion|assistant|all]`.

#![allow(clippy::print_stdout, reason = "an example prints")]

use std::error::Error;
use std::path::Path;

use lowrank_data::chat::ChatTemplate;
use lowrank_data::rows::{LossOn, RowEncoder, Rows};
use lowrank_data::tokenize::TextTokenizer;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [folder, file, more @ ..] = args.as_slice() else {
        return Err("give a model folder and a file of rows".into());
    };
    let loss_on = more.first().map_or(Ok(LossOn::default()), |name| name.parse())?;
    let tokenizer = TextTokenizer::from_folder(Path::new(folder), None)?;
    let template = ChatTemplate::from_folder(Path::new(folder))?;
    let rows = Rows::read(Path::new(file))?;
    let encoded = RowEncoder::new(&tokenizer, template.as_ref(), loss_on, 1024)?.encode(&rows)?;
    for (row, &source) in encoded.rows.iter().zip(&encoded.sources).take(3) {
        println!("{}: {} of {} tokens are learnt", rows.place(source), row.n_learnt(), row.ids.len());
        println!("{}", row.show(&tokenizer)?);
    }
    println!("{} rows, {} cut, {} left out", encoded.rows.len(), encoded.n_cut, encoded.n_left_out);
    Ok(())
}
