//! `lowrank perplexity`: the perplexity of a language model on texts.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use lowrank_data::rows::{LossOn, RowEncoder, Rows, SourceTarget};
use lowrank_eval::{Perplexity, windows};
use lowrank_models::{ModelKind, Run, Seq2Seq, Tokens};
use lowrank_train::{EvalOutput, TunedDecoder, TunedSeq2Seq, evaluate_pairs, evaluate_rows};
use serde_json::{Value, json};

use crate::backend::{Device, Inner, device};
use crate::context::{check_effect, print_json, read_text};
use crate::language::{Language, LanguageArgs, encode_pairs, pair_window};
use crate::machine::peak_rss_mb;

/// Number of tokens processed together.
const BATCH_TOKENS: usize = 2048;

/// Options of `perplexity`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: LanguageArgs,
    /// A text; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    text: Vec<String>,
    /// File of texts, one per line; with --stride one long text
    #[arg(long)]
    file: Option<PathBuf>,
    /// Rows in the formats of finetune --train: the loss on their target tokens, and the fraction of exact
    /// answers
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "file"])]
    rows: Option<PathBuf>,
    /// Tokens of --rows that count: completion, assistant (every answer) or all
    #[arg(long, value_name = "TOKENS", default_value = "completion")]
    loss_on: LossOn,
    /// Read the file as one long text in sliding windows with this stride in tokens
    #[arg(long, conflicts_with = "text")]
    stride: Option<usize>,
    /// Truncate texts, or limit windows, to this many tokens [default: the model's limit]
    #[arg(long)]
    max_length: Option<usize>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// The score of one text.
struct Row {
    tokens: usize,
    sum_nll: f64,
    predicted: usize,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> Result<()> {
    check_effect(args.rows.is_some(), &["loss_on"], "requires --rows")?;
    check_effect(args.file.is_some(), &["stride"], "requires --file")?;
    if let Some(path) = &args.rows {
        return rows(&args, path);
    }
    let file = match &args.file {
        Some(path) => Some(read_text(path)?),
        None if args.text.is_empty() => bail_usage!("nothing to do: give --text, --file or --rows"),
        None => None,
    };
    if args.stride == Some(0) {
        bail_usage!("--stride 0 is out of range; expected 1 or more");
    }
    if let (Some(_), Some(path), Some(text)) = (args.stride, &args.file, &file) {
        note_line_ends(path, text);
    }
    let device = device()?;
    let language = args.model.load(&args.model.folder()?, &device)?;
    let window = language.window(args.max_length)?;
    let start = Instant::now();
    let rows = match (args.stride, &file) {
        (Some(stride), Some(text)) => vec![long_text(&language, text, window, stride, &device)?],
        _ => {
            let lines = file.as_deref().unwrap_or_default().lines();
            let texts: Vec<&str> = args.text.iter().map(String::as_str).chain(lines).collect();
            each_text(&language, &texts, window, &device)?
        }
    };
    let tokens: usize = rows.iter().map(|row| row.tokens).sum();
    let tokens_per_second = tokens as f64 / start.elapsed().as_secs_f64();
    let mut total = Perplexity::default();
    for row in &rows {
        total.add(row.sum_nll, row.predicted)?;
    }
    let perplexity = total.perplexity()?;
    if args.json {
        let row = |row: &Row| {
            let mean = (row.predicted > 0).then(|| row.sum_nll / row.predicted as f64);
            json!({"tokens": row.tokens, "mean_nll": mean})
        };
        let rows: Vec<Value> = rows.iter().map(row).collect();
        return print_json(&json!({
            "rows": rows,
            "perplexity": perplexity,
            "tokens_per_second": tokens_per_second,
        }));
    }
    println!("perplexity {perplexity:.4} over {} tokens of {} texts", total.tokens(), rows.len());
    Ok(())
}

/// Says that a long text is read byte by byte, as llama.cpp's `perplexity` does: programs that open files as text see other
/// line ends and get another value.
fn note_line_ends(path: &Path, text: &str) {
    let count = text.matches("\r\n").count();
    if count > 0 {
        eprintln!(
            "note: {}: {count} lines end with CRLF, and their carriage returns count as text; convert the file for a comparison \
             with programs that drop them",
            path.display()
        );
    }
}

/// Rows in the formats that a language model is trained on.
fn rows(args: &Args, path: &Path) -> Result<()> {
    let device = device()?;
    let rows = Rows::read(path)?;
    let folder = args.model.folder()?;
    if folder.kind() == ModelKind::Seq2Seq {
        check_effect(
            false,
            &["loss_on"],
            "does not apply to an encoder-decoder, which is scored on every target token",
        )?;
        let language: Language<Seq2Seq<Inner>> = args.model.load_as(&folder, &device)?;
        let window = pair_window(args.max_length, language.model.config(), &language.tokenizer)?;
        let rows = encode_pairs(&rows, &language.tokenizer, language.model.config(), window)?;
        let model = TunedSeq2Seq::new(language.model, language.adapters);
        let lengths: Vec<usize> = rows.iter().map(SourceTarget::n_tokens).collect();
        return score(args, &lengths, |batch| evaluate_pairs(&model, &rows, batch));
    }
    let language = args.model.load(&folder, &device)?;
    let window = language.window(args.max_length)?;
    let template = folder.chat_template()?;
    let encoder = RowEncoder::new(&language.tokenizer, template.as_ref(), args.loss_on, window)?;
    let encoded = encoder.encode(&rows)?;
    if encoded.n_cut + encoded.n_left_out > 0 {
        eprintln!(
            "{}: {} rows cut at {window} tokens, {} left out because they have no target token",
            path.display(),
            encoded.n_cut,
            encoded.n_left_out
        );
    }
    let lengths: Vec<usize> = encoded.rows.iter().map(|row| row.ids.len()).collect();
    let model = TunedDecoder::new(language.model, language.adapters);
    score(args, &lengths, |batch| evaluate_rows(&model, &encoded.rows, batch))
}

/// Prints what `evaluate` finds over rows of these lengths, given a number of rows per batch.
fn score(
    args: &Args,
    lengths: &[usize],
    evaluate: impl FnOnce(usize) -> lowrank_train::Result<EvalOutput>,
) -> Result<()> {
    let start = Instant::now();
    let (tokens, longest) = (lengths.iter().sum::<usize>(), lengths.iter().copied().max().unwrap_or(1));
    let values = evaluate((BATCH_TOKENS / longest).max(1))?.values;
    let seconds = start.elapsed().as_secs_f64();
    if args.json {
        return print_json(&json!({
            "rows": lengths.len(),
            "loss": values.get("loss"),
            "perplexity": values.get("perplexity"),
            "exact": values.get("exact"),
            "tokens_per_second": tokens as f64 / seconds,
            "wall_s": seconds,
            "peak_rss_mb": peak_rss_mb(),
        }));
    }
    for (name, value) in &values {
        println!("{name:12} {value:.4}");
    }
    Ok(())
}

/// Every text by itself, truncated to `window` tokens; many are processed together.
fn each_text(language: &Language, texts: &[&str], window: usize, device: &Device) -> Result<Vec<Row>> {
    let encoded = language.tokenizer.encode_batch(texts.iter().map(|text| (*text, None)))?;
    let ids: Vec<&[u32]> = encoded.iter().map(|e| &e.ids[..e.ids.len().min(window)]).collect();
    let mut rows = Vec::with_capacity(ids.len());
    let mut rest = &ids[..];
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = rest.iter().take_while(|ids| {
            tokens += ids.len();
            tokens <= BATCH_TOKENS
        });
        let (batch, later) = rest.split_at(fits.count().max(1));
        rest = later;
        // A text of one token or none predicts nothing.
        let read: Vec<&[u32]> = batch.iter().copied().filter(|ids| ids.len() > 1).collect();
        let mut scores = nll(language, &read, device)?.into_iter();
        for ids in batch {
            let nll = if ids.len() > 1 { scores.next().unwrap_or_default() } else { Vec::new() };
            rows.push(Row { tokens: ids.len(), sum_nll: nll.iter().sum(), predicted: nll.len() });
        }
    }
    Ok(rows)
}

/// One long text in sliding windows.
fn long_text(language: &Language, text: &str, window: usize, stride: usize, device: &Device) -> Result<Row> {
    let ids = language.tokenizer.encode(text, None)?.ids;
    let mut row = Row { tokens: ids.len(), sum_nll: 0.0, predicted: 0 };
    let cut = windows(ids.len(), window, stride);
    for batch in cut.chunks((BATCH_TOKENS / window.max(1)).max(1)) {
        let read: Vec<&[u32]> = batch.iter().map(|w| &ids[w.tokens.clone()]).collect();
        for (window, nll) in batch.iter().zip(nll(language, &read, device)?) {
            row.sum_nll += nll[nll.len() - window.scored..].iter().sum::<f64>();
            row.predicted += window.scored;
        }
    }
    Ok(row)
}

/// `−ln p` of each token but the first of these texts.
fn nll(language: &Language, texts: &[&[u32]], device: &Device) -> Result<Vec<Vec<f64>>> {
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
    let ids = texts.concat();
    Ok(language.model.token_nll(Tokens::new(&ids, &lengths), Run::eval(&language.adapters), device)?)
}
