//! `lowrank generate`: continue prompts with a language model.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::{Context, Result};
use lowrank_models::decoder::{Finish, GenerationOptions, Sampling};
use serde_json::{Value, json};

use crate::backend::device;
use crate::context::print_json;
use crate::language::LanguageArgs;

/// Options of `generate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: LanguageArgs,
    /// What to continue; may be repeated
    #[arg(long, required = true, allow_hyphen_values = true)]
    prompt: Vec<String>,
    /// Most tokens to add
    #[arg(long, default_value_t = 128)]
    max_new_tokens: usize,
    /// Divides the logits; 0 takes the most likely token
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Draw from the K most likely tokens alone
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Draw from the fewest most likely tokens of this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f64,
    /// Divides the logits of tokens that were there
    #[arg(long, value_name = "X", default_value_t = 1.0)]
    repetition_penalty: f64,
    /// Seed of the draws
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// End before this text; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Go on after an end of text
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    sampling.check().map_err(anyhow::Error::msg)?;
    let options =
        GenerationOptions { sampling, max_new_tokens: args.max_new_tokens, ignore_eos: args.ignore_eos };
    let device = device()?;
    let language = args.model.load(&device)?;
    let prompts: Vec<Vec<u32>> =
        args.prompt.iter().map(|prompt| language.prompt(prompt)).collect::<Result<_>>()?;
    let stops: Vec<&str> = args.stop.iter().map(String::as_str).filter(|stop| !stop.is_empty()).collect();

    let streams = !args.json && prompts.len() == 1 && std::io::stdout().is_terminal();
    let mut stream = Stream::default();
    if streams {
        stream.show(&args.prompt[0])?;
    }
    let mut failure = None;
    let began = Instant::now();
    let generated =
        language.model.generate(&prompts, &options, &language.adapters, &device, |number, new| {
            let mut step = || -> Result<bool> {
                if stops.is_empty() && !streams {
                    return Ok(true);
                }
                let text = language.continuation(&prompts[number], new)?;
                if streams {
                    stream.advance(&text, &stops)?;
                }
                Ok(stops.iter().all(|stop| !text.contains(stop)))
            };
            step().unwrap_or_else(|error| {
                failure = Some(error);
                false
            })
        })?;
    let seconds = began.elapsed().as_secs_f64();
    if let Some(error) = failure {
        return Err(error);
    }
    let tokens: usize = generated.iter().map(|g| g.ids.len()).sum();
    let speed = tokens as f64 / seconds.max(f64::MIN_POSITIVE);

    let rows: Vec<(String, Value)> = prompts
        .iter()
        .zip(&generated)
        .map(|(prompt, generated)| {
            let text = cut(language.continuation(prompt, &generated.ids)?, &stops);
            let finish = match generated.finish {
                Finish::Length => "length",
                Finish::EndOfText => "eos",
                Finish::Stopped => "stop",
                Finish::Full => "full",
            };
            let row = json!({"text": text, "ids": generated.ids, "finish": finish});
            Ok((text, row))
        })
        .collect::<Result<_>>()?;
    if args.json {
        let mut rows: Vec<Value> = rows.into_iter().map(|(_, row)| row).collect();
        let mut object = if rows.len() == 1 { rows.remove(0) } else { json!({ "rows": rows }) };
        object["tokens_per_second"] = json!(speed);
        return print_json(&object);
    }
    if streams {
        stream.advance(&rows[0].0, &[])?;
        println!();
    } else {
        for (prompt, (text, _)) in args.prompt.iter().zip(&rows) {
            println!("{prompt}{text}");
        }
    }
    eprintln!("{tokens} tokens, {speed:.1} a second");
    Ok(())
}

/// The text up to the first stop.
fn cut(mut text: String, stops: &[&str]) -> String {
    if let Some(end) = stops.iter().filter_map(|stop| text.find(stop)).min() {
        text.truncate(end);
    }
    text
}

/// What has been written to the terminal so far.
#[derive(Default)]
struct Stream {
    written: usize,
}

impl Stream {
    fn show(&self, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("standard output cannot be written")
    }

    /// Writes what has come since, but for a character of which bytes are missing and for what may become a stop.
    fn advance(&mut self, text: &str, stops: &[&str]) -> Result<()> {
        let text = text.trim_end_matches('\u{FFFD}');
        let held = stops.iter().filter_map(|stop| text.find(stop)).min().unwrap_or_else(|| {
            let open = |at: &usize| stops.iter().any(|stop| stop.starts_with(&text[*at..]));
            text.char_indices().map(|(at, _)| at).find(open).unwrap_or(text.len())
        });
        if let Some(new) = text.get(self.written..held).filter(|new| !new.is_empty()) {
            self.show(new)?;
            self.written = held;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_stop_cuts() {
        assert_eq!(cut("one two three".into(), &["three", "two"]), "one ");
        assert_eq!(cut("one".into(), &["two"]), "one");
    }
}
