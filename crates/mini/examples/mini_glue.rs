//! Writes mini-GLUE, instructions and text to pre-train on:
//! `cargo run -p lowrank-mini --example mini_glue -- OUT_FOLDER [CORPUS_LINES]`.

use std::error::Error;
use std::fs;
use std::path::Path;

use lowrank_mini::{DEFAULT_SEED, corpus, files, instruct, language_files, tokenizer_files};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let Some(out) = arguments.next() else {
        return Err("usage: mini_glue OUT_FOLDER [CORPUS_LINES]".into());
    };
    let out = Path::new(&out);
    for (name, content) in
        files(DEFAULT_SEED).into_iter().chain(instruct::files(DEFAULT_SEED)).chain(tokenizer_files(128))
    {
        let path = out.join(&name);
        fs::create_dir_all(path.parent().unwrap_or(out))?;
        eprintln!(
            "{name}: {} lines, the last: {}",
            content.lines().count(),
            content.lines().last().unwrap_or("")
        );
        fs::write(path, content)?;
    }
    for (name, content) in language_files(DEFAULT_SEED, 20_000) {
        fs::create_dir_all(out.join("language"))?;
        fs::write(out.join("language").join(name), content)?;
    }
    let mut text = String::new();
    for line in corpus(DEFAULT_SEED, arguments.next().map_or(Ok(1_000), |n| n.parse())?) {
        text += &line.text;
        text += &line.pair.map_or("\n".to_owned(), |pair| format!("\t{pair}\n"));
    }
    fs::write(out.join("corpus.txt"), text)?;
    Ok(())
}
