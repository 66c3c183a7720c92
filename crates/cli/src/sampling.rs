//! The sampling options of `generate` and `chat`, which override `generation_config.json`.

use anyhow::Result;
use clap::Args;
use lowrank_models::GenerationConfig;
use lowrank_models::decoder::{Beams, Cutoffs, EarlyStopping, GenerationOptions, Sampling};

use crate::context::warn_unused;
use crate::usage::usage;

/// Sampling options. Those not given are taken from the model's generation_config.json.
#[derive(Args)]
pub(crate) struct SamplingArgs {
    /// Maximum number of new tokens [default: generation_config.json's, or 128]
    #[arg(long)]
    max_new_tokens: Option<usize>,
    /// Softmax temperature; 0 for greedy decoding [default: generation_config.json's, or 0]
    #[arg(long)]
    temperature: Option<f64>,
    /// Sample from the K most likely tokens
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the smallest set of tokens with at least this total probability
    #[arg(long, value_name = "P")]
    top_p: Option<f64>,
    /// Leave out tokens less than P times as likely as the most likely
    #[arg(long, value_name = "P")]
    min_p: Option<f64>,
    /// Penalty on tokens already in the sequence; 1 disables it
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Do not repeat any sequence of this many tokens
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<usize>,
    /// Sampling seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Stop before this text; may be repeated
    #[arg(long, allow_hyphen_values = true)]
    stop: Vec<String>,
    /// Ignore the model's generation_config.json
    #[arg(long)]
    no_generation_config: bool,
}

/// Default number of new tokens.
const MAX_NEW_TOKENS: usize = 128;

impl SamplingArgs {
    /// Refuses values out of range before anything is loaded.
    pub(crate) fn check(&self) -> Result<()> {
        // In a model's file 0 leaves one token; here it is a mistake for greedy decoding.
        ensure_usage!(self.top_p != Some(0.0), "--top-p 0 is out of range; expected 0 < p <= 1");
        self.sampling(&GenerationConfig::default()).check().map_err(usage)
    }

    fn sampling(&self, config: &GenerationConfig) -> Sampling {
        let own = &config.sampling;
        Sampling {
            temperature: self.temperature.unwrap_or(own.temperature),
            top_k: self.top_k.or(own.top_k),
            top_p: self.top_p.unwrap_or(own.top_p),
            cutoffs: Cutoffs { min_p: self.min_p.unwrap_or(own.cutoffs.min_p), ..own.cutoffs },
            repetition_penalty: self.repetition_penalty.unwrap_or(own.repetition_penalty),
            seed: self.seed,
        }
    }

    /// The options merged over the model's file, and the stop texts; beams are those of the file, for [`BeamArgs::add_to`].
    /// Keys of the file that are not supported are named on standard error.
    pub(crate) fn resolve(&self, config: GenerationConfig) -> Result<(GenerationOptions, Vec<String>)> {
        let config = if self.no_generation_config { GenerationConfig::default() } else { config };
        if !config.ignored.is_empty() {
            let (file, ignored) = (config.source.file(), config.ignored.join(", "));
            eprintln!("warning: {file}: not supported and ignored: {ignored}");
        }
        let sampling = self.sampling(&config);
        sampling.check().map_err(anyhow::Error::msg)?;
        warn_unused(
            sampling.temperature > 0.0,
            &["top_k", "top_p", "min_p", "seed"],
            "requires a temperature above 0",
        );
        // The number of new tokens takes precedence over the total length, as in transformers.
        let new = self.max_new_tokens.or(config.max_new_tokens);
        let max_length = config.max_length.filter(|_| new.is_none());
        let default = if max_length.is_some() { usize::MAX } else { MAX_NEW_TOKENS };
        let mut constraints = config.constraints;
        if let Some(n) = self.no_repeat_ngram_size {
            constraints.no_repeat_ngram_size = n;
        }
        let options = GenerationOptions {
            sampling,
            constraints,
            max_new_tokens: new.unwrap_or(default),
            max_length,
            ignore_eos: false,
            beams: Some(config.beams),
        };
        let stops = self.stop.iter().chain(&config.stop_strings).filter(|stop| !stop.is_empty()).cloned();
        Ok((options, stops.collect()))
    }
}

/// Options of beam search. Those not given are taken from the model's generation_config.json.
#[derive(Args)]
pub(crate) struct BeamArgs {
    /// Beam search with N beams, which are sampled above temperature 0; 1 turns it off [default: generation_config.json's, or
    /// 1]
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// Beam search: divide scores by the number of new tokens to this power [default: generation_config.json's, or 1]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Beam search: end at N complete continuations (true), when better ones are unlikely (false) or impossible
    /// (never) [default: generation_config.json's, or false]
    #[arg(long, value_name = "WHEN", value_parser = early_stopping)]
    early_stopping: Option<EarlyStopping>,
}

fn early_stopping(text: &str) -> std::result::Result<EarlyStopping, String> {
    match text {
        "true" => Ok(EarlyStopping::Complete),
        "false" => Ok(EarlyStopping::Heuristic),
        "never" => Ok(EarlyStopping::Never),
        _ => Err("expected true, false or never".into()),
    }
}

impl BeamArgs {
    /// Merges the options over those of the model's file.
    pub(crate) fn add_to(&self, options: &mut GenerationOptions) -> Result<()> {
        let own = options.beams.unwrap_or_default();
        let count = self.num_beams.unwrap_or(own.count);
        ensure_usage!(count > 0, "--num-beams 0 is out of range; expected 1 or more");
        options.beams = (count > 1).then_some(Beams {
            count,
            length_penalty: self.length_penalty.unwrap_or(own.length_penalty),
            early_stopping: self.early_stopping.unwrap_or(own.early_stopping),
            ..own
        });
        warn_unused(count > 1, &["length_penalty", "early_stopping"], "requires --num-beams");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        sampling: SamplingArgs,
        #[command(flatten)]
        beams: BeamArgs,
    }

    #[test]
    fn beams_of_the_command_line_hold_over_the_file() {
        let beams = |line: &[&str], own: Option<Beams>| {
            let line = Line::parse_from(["x"].iter().chain(line));
            let mut options = GenerationOptions { beams: own, ..GenerationOptions::default() };
            line.beams.add_to(&mut options).map(|()| options.beams).map_err(|error| error.to_string())
        };
        let given = ["--num-beams", "4", "--length-penalty", "-0.5", "--early-stopping", "never"];
        let early_stopping = EarlyStopping::Never;
        let all = Beams { length_penalty: -0.5, early_stopping, ..Beams::new(4) };
        assert_eq!(beams(&given, None), Ok(Some(all)));
        let own = Beams { early_stopping: EarlyStopping::Complete, renormalize: true, ..Beams::new(3) };
        assert_eq!(beams(&[], Some(own)), Ok(Some(own)));
        assert_eq!(beams(&["--num-beams", "2"], Some(own)), Ok(Some(Beams { count: 2, ..own })));
        let penalty = Beams { length_penalty: 2.0, ..own };
        assert_eq!(beams(&["--length-penalty", "2"], Some(own)), Ok(Some(penalty)));
        assert_eq!(beams(&["--num-beams", "1"], Some(own)), Ok(None));
        let single = Beams { count: 1, ..own };
        assert_eq!(beams(&[], Some(single)), Ok(None));
        assert_eq!(beams(&["--num-beams", "3"], Some(single)), Ok(Some(own)));
        assert!(beams(&["--num-beams", "0"], None).is_err_and(|error| error.contains("expected 1 or more")));
    }

    fn resolve(line: &[&str], config: &GenerationConfig) -> (GenerationOptions, Vec<String>) {
        let line = Line::parse_from(["x"].iter().chain(line));
        line.sampling.resolve(config.clone()).unwrap_or_else(|e| panic!("{e}"))
    }

    #[test]
    fn the_command_line_holds_over_the_file() {
        let config = GenerationConfig {
            sampling: Sampling { temperature: 0.6, top_k: Some(50), ..Sampling::default() },
            max_length: Some(20),
            stop_strings: vec!["\n".into()],
            ..GenerationConfig::default()
        };
        let (options, stops) = resolve(&[], &config);
        assert_eq!((options.sampling.temperature, options.sampling.top_k), (0.6, Some(50)));
        assert_eq!((options.max_new_tokens, options.max_length), (usize::MAX, Some(20)));
        assert_eq!(stops, ["\n"]);
        let (options, _) = resolve(&["--temperature", "0", "--max-new-tokens", "5"], &config);
        assert_eq!((options.sampling.temperature, options.sampling.top_k), (0.0, Some(50)));
        assert_eq!((options.max_new_tokens, options.max_length), (5, None));
        let (options, stops) = resolve(&["--no-generation-config", "--stop", "x"], &config);
        assert_eq!((options.sampling, options.max_new_tokens), (Sampling::default(), 128));
        assert_eq!(stops, ["x"]);
    }
}
