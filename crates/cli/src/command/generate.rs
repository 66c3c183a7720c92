//! `lowrank generate`: continue prompts, or answer a conversation, with a language model; generate the targets of sources
//! with an encoder-decoder model.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lowrank_data::chat::Message;
use lowrank_models::decoder::Finish;
use lowrank_models::{Decoder, LanguageModel, ModelFolder, ModelKind, Seq2Seq};
use serde_json::{Value, json};

use crate::backend::{Inner, device};
use crate::context::{check_effect, print_json, read_text};
use crate::language::{Generator, Language, LanguageArgs, render};
use crate::sampling::{BeamArgs, SamplingArgs};
use crate::stream::{Stream, cut};
use crate::terminal::print_text;

/// Options of `generate`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: LanguageArgs,
    /// Prompt to continue, or the source of an encoder-decoder model; may be repeated
    #[arg(long, required_unless_present = "messages", allow_hyphen_values = true)]
    prompt: Vec<String>,
    /// A conversation to answer: a JSON list of objects with role and content
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    messages: Option<PathBuf>,
    /// Print the conversation as rendered by the chat template, and exit
    #[arg(long, requires = "messages")]
    render: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    beams: BeamArgs,
    /// Continue past the end-of-text token
    #[arg(long)]
    ignore_eos: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    args.sampling.check()?;
    // clap drops the requirement of an option that conflicts with a given one.
    check_effect(args.messages.is_some(), &["render"], "requires --messages")?;
    let folder = args.model.folder()?;
    if folder.kind() == ModelKind::Seq2Seq {
        ensure!(
            args.messages.is_none(),
            "{}: is an encoder-decoder model, which does not hold conversations; give its source with --prompt",
            folder.path().display()
        );
        return generate::<Seq2Seq<Inner>>(&args, &folder, None);
    }
    let rendered = args.messages.as_deref().map(|path| conversation(&folder, path)).transpose()?;
    if let (Some(prompt), true) = (&rendered, args.render) {
        if args.json {
            return print_json(&json!({ "prompt": prompt }));
        }
        return print_text(&(prompt.clone() + "\n"));
    }
    generate::<Decoder<Inner>>(&args, &folder, rendered)
}

/// Generates and prints the texts of the prompts, or of one rendered conversation.
fn generate<M: Generator>(args: &Args, folder: &ModelFolder, rendered: Option<String>) -> Result<()> {
    let (mut options, mut stops) = args.sampling.resolve(folder.generation()?)?;
    options.ignore_eos = args.ignore_eos;
    args.beams.add_to(&mut options)?;
    let device = device()?;
    let language: Language<M> = args.model.load_as(folder, &device)?;
    let (prompts, turn_end): (Vec<Vec<u32>>, Option<u32>) = match &rendered {
        Some(prompt) => (vec![language.rendered_prompt(prompt)?], language.turn_end(folder)?),
        None => (args.prompt.iter().map(|prompt| language.prompt(prompt)).collect::<Result<_>>()?, None),
    };
    let turn_end = turn_end.filter(|_| !args.ignore_eos);
    let shown: Vec<&str> = match &rendered {
        Some(_) => vec![""],
        None if !M::CONTINUES => vec![""; prompts.len()],
        None => args.prompt.iter().map(String::as_str).collect(),
    };
    stops.dedup();
    let stop_tokens = language.take_stop_tokens(&mut stops)?;

    let streams =
        !args.json && prompts.len() == 1 && options.beams.is_none() && std::io::stdout().is_terminal();
    let unsettled = language.tokenizer.unsettled();
    let mut stream = Stream::default();
    if streams {
        stream.show(shown[0])?;
    }
    let mut failure = None;
    let began = Instant::now();
    let generated = LanguageModel::generate(
        &language.model,
        &prompts,
        &options,
        &language.adapters,
        &device,
        |number, new| {
            let mut step = || -> Result<bool> {
                let is_end = |id: &u32| turn_end == Some(*id) || stop_tokens.contains(id);
                if new.last().is_some_and(is_end) {
                    return Ok(false);
                }
                if stops.is_empty() && !streams {
                    return Ok(true);
                }
                let text = language.continuation(&prompts[number], new)?;
                if streams {
                    stream.advance(&text, &stops, unsettled)?;
                }
                Ok(stops.iter().all(|stop| !text.contains(stop)))
            };
            step().unwrap_or_else(|error| {
                failure = Some(error);
                false
            })
        },
    )?;
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
            // Beams are not stopped.
            let end = generated.ids.iter().position(|id| stop_tokens.contains(id));
            let kept = &generated.ids[..end.unwrap_or(generated.ids.len())];
            let text = cut(language.continuation(prompt, kept)?, &stops);
            let has_turn_end = turn_end.is_some() && generated.ids.last().copied() == turn_end;
            let finish = match generated.finish {
                Finish::Length => "length",
                Finish::EndOfText => "eos",
                Finish::Stopped if has_turn_end => "eos",
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
        stream.advance(&rows[0].0, &[], 0)?;
        println!();
    } else {
        for (prompt, (text, _)) in shown.iter().zip(&rows) {
            print_text(&format!("{prompt}{text}\n"))?;
        }
    }
    eprintln!("{tokens} tokens, {speed:.1} tokens/s");
    Ok(())
}

/// The conversation of a file as rendered by the model's chat template, up to the beginning of the answer.
fn conversation(folder: &ModelFolder, path: &Path) -> Result<String> {
    let text = read_text(path)?;
    let value: Value =
        serde_json::from_str(&text).with_context(|| format!("{}: malformed JSON", path.display()))?;
    let items = value.as_array().filter(|items| !items.is_empty());
    let items = items.with_context(|| {
        format!("{}: expected a JSON list of messages, each with role and content", path.display())
    })?;
    let message = |(index, item): (usize, &Value)| {
        let message = Message::from_json(item).map_err(anyhow::Error::msg);
        message.with_context(|| format!("{}: message {}", path.display(), index + 1))
    };
    let messages: Vec<Message> = items.iter().enumerate().map(message).collect::<Result<_>>()?;
    render(folder, &messages)
}
