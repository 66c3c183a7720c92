//! `lowrank predict`: classify texts, the words of texts, or pictures; answer questions.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, ensure};
use lowrank_data::glue::LabelSpace;
use lowrank_data::pack::EncodedDataset;
use lowrank_data::questions::Asked;
use lowrank_data::tokenize::WordSpan;
use lowrank_eval::{answers, argmax, entities, predicted_set};
use lowrank_models::{HeadLevel, Problem};
use serde_json::{Value, json};

use crate::backend::{Inner, device};
use crate::context::{
    Loaded, ModelArgs, Pictures, SpanArgs, TaskName, TextArgs, Texts, check_kind, check_question, open_model,
    print_json, refuse_pictures,
};
use crate::terminal::one_line;

/// Options of `predict`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    texts: TextArgs,
    /// Pictures (PNG or JPEG) for a model of pictures
    #[arg(long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,
    #[command(flatten)]
    spans: SpanArgs,
    /// Question answering: allow no answer [default: if the model was trained on questions without one]
    #[arg(long)]
    handle_impossible_answer: bool,
    /// Sequences per batch
    #[arg(long, default_value_t = 32)]
    batch_size: usize,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    if !args.image.is_empty() {
        ensure_usage!(
            args.texts.is_empty(),
            "--image and texts cannot be given together; the model reads one of them"
        );
        check_kind(&open_model(&args.model.model)?, Some(TaskName::Images))?;
        let loaded = args.model.load::<Inner>(&device()?)?;
        loaded.require_head()?;
        args.spans.check(loaded.level())?;
        return pictures(&args, &loaded);
    }
    refuse_pictures(&open_model(&args.model.model)?, "give --image FILE")?;
    let texts = args.texts.texts()?;
    let loaded = args.model.load::<Inner>(&device()?)?;
    loaded.require_head()?;
    args.spans.check(loaded.level())?;
    match loaded.level() {
        HeadLevel::Sequence => sequences(&args, &texts, &loaded),
        HeadLevel::Token => words(&args, &texts, &loaded),
        HeadLevel::Span => questions(&args, &texts, &loaded),
    }
}

fn sequences(args: &Args, texts: &Texts, loaded: &Loaded<Inner>) -> Result<()> {
    let shown = texts.rows.iter().map(|(text, pair)| match pair {
        Some(pair) => format!("{text} | {pair}"),
        None => text.clone(),
    });
    classes(args, loaded, &texts.encode(loaded.tokenizer()?)?, shown)
}

fn pictures(args: &Args, loaded: &Loaded<Inner>) -> Result<()> {
    let pictures = Pictures::open(&loaded.folder, loaded.model.model().config())?;
    let data = pictures.read(args.image.clone(), vec![None; args.image.len()])?;
    classes(args, loaded, &Arc::new(data), args.image.iter().map(|path| path.display().to_string()))
}

/// Classifies rows, which are `shown` in the table.
fn classes(
    args: &Args,
    loaded: &Loaded<Inner>,
    data: &Arc<EncodedDataset>,
    shown: impl Iterator<Item = String>,
) -> Result<()> {
    let (rows, _) = lowrank_train::predict(&loaded.model, data, args.batch_size)?;
    let config = loaded.model.model().config();
    let described = rows
        .iter()
        .enumerate()
        .map(|(i, logits)| {
            let class = argmax(i, logits)? as usize;
            let (label, score) = match config.problem {
                // Of several numbers the largest, as in transformers' pipeline.
                Problem::Regression => (config.labels[class].clone(), f64::from(logits[class])),
                Problem::SingleLabel => (config.labels[class].clone(), probability(logits, class)),
                Problem::MultiLabel => return multi_label(i, &config.labels, logits, class),
            };
            Ok(json!({"logits": logits, "label": label, "score": score}))
        })
        .collect::<Result<Vec<Value>>>()?;
    if args.json {
        return print_json(&json!({ "rows": described }));
    }
    for (shown, row) in shown.zip(&described) {
        let several = row["labels"]
            .as_array()
            .map(|labels| labels.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","));
        let several = several.map(|labels| if labels.is_empty() { "-".to_owned() } else { labels });
        let label = several.unwrap_or_else(|| row["label"].as_str().unwrap_or_default().to_owned());
        let (label, score) = (one_line(&label), row["score"].as_f64());
        println!("{label}\t{:.4}\t{shown}", score.unwrap_or(f64::NAN));
    }
    Ok(())
}

/// Labels the words of texts, each by its first token, and collects the entities that they mark.
fn words(args: &Args, texts: &Texts, loaded: &Loaded<Inner>) -> Result<()> {
    let (mut encoded, mut spans) = (Vec::new(), Vec::new());
    for (row, (text, pair)) in texts.rows.iter().enumerate() {
        let place = || texts.place(row);
        ensure!(pair.is_none(), "{}: a token classifier labels single texts, not pairs", place());
        let (tokens, words) = loaded.tokenizer()?.encode_with_words(text).with_context(place)?;
        let end = words.last().map_or(0, |word| word.characters.end);
        if text.chars().skip(end).any(|c| !c.is_whitespace()) {
            eprintln!("warning: {}: cut at {} tokens; the rest is not labelled", place(), tokens.ids.len());
        }
        encoded.push(tokens);
        spans.push(words);
    }
    let data = Arc::new(EncodedDataset::unlabelled(encoded));
    let (rows, _) = lowrank_train::predict(&loaded.model, &data, args.batch_size)?;
    let labels = &loaded.model.model().config().labels;
    let described = rows.iter().zip(&spans).zip(&texts.rows).enumerate();
    let described = described
        .map(|(row, ((logits, words), (text, _)))| tagged(row, labels, logits, words, text))
        .collect::<Result<Vec<Value>>>()?;
    if args.json {
        return print_json(&json!({ "rows": described }));
    }
    for (place, row) in described.iter().enumerate() {
        if place > 0 {
            println!();
        }
        for word in row["words"].as_array().into_iter().flatten() {
            let text = |key: &str| word[key].as_str().unwrap_or_default();
            println!(
                "{}\t{}\t{:.4}",
                text("word"),
                one_line(text("label")),
                word["score"].as_f64().unwrap_or(f64::NAN)
            );
        }
    }
    Ok(())
}

/// Answers questions, the first texts, from their contexts, the second ones.
fn questions(args: &Args, texts: &Texts, loaded: &Loaded<Inner>) -> Result<()> {
    let pairs: Vec<(&str, &str)> = texts
        .rows
        .iter()
        .enumerate()
        .map(|(row, (question, context))| {
            let context = check_question(&texts.place(row), question, context.as_deref())?;
            Ok((question.as_str(), context))
        })
        .collect::<Result<_>>()?;
    let windows = args.spans.windows(args.model.max_length, loaded.tokenizer()?);
    let (asked, data) = Asked::encode_pairs(&pairs, loaded.tokenizer()?, windows)
        .map_err(|(row, error)| anyhow!("{}: {error}", texts.place(row)))?;
    let (logits, _) = lowrank_train::predict(&loaded.model, &Arc::new(data), args.batch_size)?;
    let may_be_none = args.handle_impossible_answer || loaded.model.model().config().may_not_answer();
    let found = answers(&asked, &logits, args.spans.answers(may_be_none))?;
    if args.json {
        let rows = found.iter().enumerate().map(|(row, answer)| {
            let of_row = asked.windows.iter().zip(&logits).filter(|(window, _)| window.question == row);
            let side = |logits: &[f32], side: usize| -> Value {
                logits.iter().skip(side).step_by(2).copied().collect::<Vec<f32>>().into()
            };
            let windows: Vec<Value> = of_row
                .map(|(_, logits)| json!({"start_logits": side(logits, 0), "end_logits": side(logits, 1)}))
                .collect();
            let mut object = json!({
                "answer": answer.text, "start": answer.start, "end": answer.end, "score": answer.score, "windows": windows,
            });
            if may_be_none {
                object["null_score"] = json!(answer.none_score);
            }
            object
        });
        return print_json(&json!({ "rows": rows.collect::<Vec<Value>>() }));
    }
    for (answer, (question, _)) in found.iter().zip(&pairs) {
        let text = if answer.text.is_empty() { "-".to_owned() } else { one_line(&answer.text).to_string() };
        println!("{text}\t{:.4}\t{}-{}\t{question}", answer.score, answer.start, answer.end);
    }
    Ok(())
}

/// One text with its words and entities. `logits` are those of all tokens, `start` and `end` count
/// characters.
fn tagged(row: usize, labels: &[String], logits: &[f32], words: &[WordSpan], text: &str) -> Result<Value> {
    let tokens: Vec<&[f32]> = logits.chunks(labels.len()).collect();
    let characters: Vec<char> = text.chars().collect();
    let slice = |start: usize, end: usize| characters[start..end].iter().collect::<String>();
    let (mut tags, mut scores, mut described) = (Vec::new(), Vec::new(), Vec::new());
    for WordSpan { characters, token } in words {
        let class = argmax(row, tokens[*token])? as usize;
        let score = probability(tokens[*token], class);
        tags.push(labels[class].as_str());
        scores.push(score);
        described.push(json!({
            "word": slice(characters.start, characters.end), "label": labels[class], "score": score,
            "start": characters.start, "end": characters.end,
        }));
    }
    let mut object = json!({"logits": tokens, "words": described});
    if LabelSpace::Tags(labels.to_vec()).marks_entities() {
        let found = entities(&tags).into_iter().map(|(kind, first, last)| {
            let (start, end) = (words[first].characters.start, words[last].characters.end);
            let mean = scores[first..=last].iter().sum::<f64>() / (last - first + 1) as f64;
            json!({"kind": kind, "text": slice(start, end), "start": start, "end": end, "score": mean})
        });
        object["entities"] = found.collect();
    }
    Ok(object)
}

/// A row of independent labels: the most likely one, and under `labels` every one above 0.5.
fn multi_label(row: usize, names: &[String], logits: &[f32], top: usize) -> Result<Value> {
    let scores: Vec<f64> = logits.iter().map(|&logit| 1.0 / (1.0 + (-f64::from(logit)).exp())).collect();
    let set = predicted_set(row, logits)?;
    let labels: Vec<&String> = set.iter().map(|&label| &names[label as usize]).collect();
    Ok(
        json!({"logits": logits, "label": names[top], "score": scores[top], "labels": labels, "scores": scores}),
    )
}

/// Softmax probability of one class.
fn probability(logits: &[f32], class: usize) -> f64 {
    let top = f64::from(logits[class]);
    1.0 / logits.iter().map(|&v| (f64::from(v) - top).exp()).sum::<f64>()
}
