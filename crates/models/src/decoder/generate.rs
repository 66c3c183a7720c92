//! Continuing prompts token by token over a cache.

use burn::prelude::*;
use lowrank_adapters::peft::host_values;
use lowrank_kernels::{Kernels, SampleSpec, sample};

use crate::batch::Tokens;
use crate::cache::KvCache;
use crate::config::DecoderConfig;
use crate::decoder::beams::{Beams, searched};
use crate::decoder::constraints::Constraints;
use crate::decoder::sample::{Sampler, Sampling};
use crate::error::{ModelError, Result};

/// The least temperature at which beams are sampled: their scores are divided by it.
const LEAST_TEMPERATURE: f64 = 1e-3;

/// Options of generation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GenerationOptions {
    /// Sampling options.
    pub sampling: Sampling,
    /// Constraints on tokens.
    pub constraints: Constraints,
    /// Maximum number of new tokens per prompt.
    pub max_new_tokens: usize,
    /// Maximum number of tokens of a prompt and its continuation.
    pub max_length: Option<usize>,
    /// Continue past the end-of-text token.
    pub ignore_eos: bool,
    /// Beam search, sampled above temperature 0; `None` for one sequence per prompt.
    pub beams: Option<Beams>,
}

impl GenerationOptions {
    /// Whether a sequence of `length` tokens, `new` of them generated, is complete.
    pub(crate) fn is_full(&self, length: usize, new: usize) -> bool {
        new >= self.max_new_tokens || self.max_length.is_some_and(|most| length >= most)
    }

    /// The reason for which a continuation ends with the last of `ids`, the first `prompt` of which were given; `goes_on` is
    /// the caller's decision.
    pub(crate) fn finish(
        &self,
        config: &DecoderConfig,
        ids: &[u32],
        prompt: usize,
        goes_on: bool,
    ) -> Option<Finish> {
        if !goes_on {
            Some(Finish::Stopped)
        } else if !self.ignore_eos && ids.last().is_some_and(|id| config.eos.contains(id)) {
            Some(Finish::EndOfText)
        } else if self.is_full(ids.len(), ids.len() - prompt) {
            Some(Finish::Length)
        } else if config.is_bounded() && ids.len() > config.max_positions {
            // The last position is used up: the token just chosen cannot be processed.
            Some(Finish::Full)
        } else {
            None
        }
    }

    /// Cache capacity for the expected length of a prompt and its continuation, in positions.
    pub(crate) fn capacity(&self, prompt: &[u32]) -> usize {
        prompt.len() + self.max_new_tokens.min(256)
    }

    /// Applies the constraints and the repetition penalty to the logits of the token after `ids`.
    pub(crate) fn constrain(
        &self,
        logits: &mut [f32],
        ids: &[u32],
        prompt: usize,
        eos: &[u32],
        penalties: &Sampler,
    ) {
        self.constraints.bias(logits, ids);
        penalties.penalise(logits, ids);
        let is_last = !self.ignore_eos && self.is_full(ids.len() + 1, ids.len() + 1 - prompt);
        self.constraints.apply(logits, ids, prompt, eos, is_last);
    }

    /// Whether a backend can choose the tokens where the logits are.
    fn fits_spec(&self) -> bool {
        self.sampling.fits_spec() && self.constraints.only_exclude()
    }

    fn check(&self) -> std::result::Result<(), String> {
        self.sampling.check()?;
        let Some(beams) = &self.beams else { return Ok(()) };
        beams.check()?;
        let temperature = self.sampling.temperature;
        if temperature > 0.0 && temperature < LEAST_TEMPERATURE {
            return Err(format!(
                "temperature {temperature} is out of range for beams; expected 0, or {LEAST_TEMPERATURE} or more"
            ));
        }
        Ok(())
    }
}

/// Reason for the end of a continuation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The maximum number of tokens.
    Length,
    /// An end of text, which is the last token.
    EndOfText,
    /// Stopped by the caller.
    Stopped,
    /// The end of the position table.
    Full,
}

/// One continuation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens.
    pub ids: Vec<u32>,
    /// Reason for its end.
    pub finish: Finish,
}

/// A continuation in progress.
struct Continuation {
    sampler: Sampler,
    /// Prompt and new tokens.
    ids: Vec<u32>,
    prompt: usize,
    finish: Option<Finish>,
}

impl Continuation {
    /// The next token from its logits on the host.
    fn next(&mut self, logits: &mut [f32], options: &GenerationOptions, eos: &[u32]) -> Option<u32> {
        // Before a token is forced, which hides what the logits were.
        if logits.iter().all(|x| !x.is_finite()) {
            return None;
        }
        options.constrain(logits, &self.ids, self.prompt, eos, &self.sampler);
        self.sampler.next(logits)
    }
}

/// What a step gives of its sequences.
enum Step {
    /// The next tokens, chosen where the logits are; negative where no logit is finite.
    Tokens(Vec<i64>),
    /// Logits of all of them.
    Logits(Vec<f32>),
}

impl Step {
    /// Reads the tokens of the `active` continuations if the backend chooses them, and the logits otherwise.
    fn read<B: Kernels>(
        logits: Tensor<B, 2>,
        runs: &mut [Continuation],
        active: &[usize],
        options: &GenerationOptions,
        eos: &[u32],
    ) -> Self {
        let spec = || {
            let row = |&i: &usize| {
                let Continuation { sampler, ids, prompt, .. } = &mut runs[i];
                sampler.row(ids, options.constraints.excluded(ids, *prompt, eos))
            };
            SampleSpec { rows: active.iter().map(row).collect(), ..options.sampling.spec() }
        };
        let ids = if options.fits_spec() { sample(&logits, spec) } else { None };
        match ids {
            Some(ids) => Self::Tokens(ids.into_data().iter::<i64>().collect()),
            None => Self::Logits(host_values(logits)),
        }
    }
}

/// The continuations of prompts by a decoder with this config, of which `step` gives the logits of the last of the next
/// tokens of the active sequences, `[active, vocab_size]`.
///
/// # Errors
/// As [`LanguageModel::generate`](crate::LanguageModel::generate).
pub(crate) fn continued<B: Kernels>(
    config: &DecoderConfig,
    prompts: &[Vec<u32>],
    options: &GenerationOptions,
    device: &B::Device,
    step: impl Fn(Tokens<'_>, &[usize], &mut KvCache<B>) -> Result<Tensor<B, 2>>,
    mut on_tokens: impl FnMut(usize, &[u32]) -> bool,
) -> Result<Vec<Generated>> {
    options.check().map_err(ModelError::Input)?;
    if let Some((setting, id)) = options.constraints.unknown(config.vocab_size) {
        let size = config.vocab_size;
        return Err(ModelError::Input(format!("{setting} has token {id}; expected ids below {size}")));
    }
    let forced = |prompt: &Vec<u32>| {
        let prompt = prompt.len();
        let is_last = |length: usize| options.is_full(length + 1, length + 1 - prompt);
        options.constraints.contradiction(prompt, !options.ignore_eos, is_last)
    };
    if let Some(reason) = prompts.iter().filter(|prompt| !options.is_full(prompt.len(), 0)).find_map(forced) {
        return Err(ModelError::Input(reason));
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    if let Some(most) = options.max_length.filter(|most| *most <= longest) {
        return Err(ModelError::Input(format!(
            "max_length = {most} leaves no room after a prompt of {longest} tokens; set the number of new tokens \
             (max_new_tokens)"
        )));
    }
    if let Some(beams) = options.beams {
        return searched(config, prompts, (options, beams), device, step, on_tokens);
    }
    let rooms: Vec<usize> = prompts.iter().map(|prompt| options.capacity(prompt)).collect();
    let mut cache = KvCache::of(config, &rooms, device);
    let mut runs: Vec<Continuation> = (0u64..)
        .zip(prompts)
        .map(|(number, prompt)| Continuation {
            sampler: Sampler::new(options.sampling.clone(), number),
            ids: prompt.clone(),
            prompt: prompt.len(),
            finish: options.is_full(prompt.len(), 0).then_some(Finish::Length),
        })
        .collect();
    let mut read = vec![0; runs.len()];
    loop {
        let active: Vec<usize> = (0..runs.len()).filter(|&i| runs[i].finish.is_none()).collect();
        if active.is_empty() {
            break;
        }
        for &i in &active {
            if config.restarts(read[i], runs[i].ids.len()) {
                cache.clear(i);
                read[i] = 0;
            }
        }
        let ids: Vec<u32> = active.iter().flat_map(|&i| runs[i].ids[read[i]..].iter().copied()).collect();
        let lengths: Vec<usize> = active.iter().map(|&i| runs[i].ids.len() - read[i]).collect();
        let logits = step(Tokens::new(&ids, &lengths), &active, &mut cache)?;
        let mut next = Step::read(logits, &mut runs, &active, options, &config.eos);
        for (row, &i) in active.iter().enumerate() {
            let run = &mut runs[i];
            read[i] = run.ids.len();
            let id = match &mut next {
                Step::Tokens(ids) => u32::try_from(ids[row]).ok(),
                Step::Logits(logits) => {
                    let own = &mut logits[row * config.vocab_size..(row + 1) * config.vocab_size];
                    run.next(own, options, &config.eos)
                }
            };
            run.ids.push(id.ok_or_else(not_finite)?);
            let goes_on = on_tokens(i, &run.ids[run.prompt..]);
            run.finish = options.finish(config, &run.ids, run.prompt, goes_on);
        }
    }
    let generated = |run: Continuation| Generated {
        ids: run.ids[run.prompt..].to_vec(),
        finish: run.finish.unwrap_or(Finish::Length),
    };
    Ok(runs.into_iter().map(generated).collect())
}

pub(crate) fn not_finite() -> ModelError {
    ModelError::Input("non-finite logits; check the checkpoint for NaN or Inf".into())
}
