//! Writing targets token by token over a cache.

use burn::prelude::*;
use lowrank_adapters::AdapterSet;
use lowrank_kernels::Kernels;

use crate::batch::Tokens;
use crate::cache::KvCache;
use crate::decoder::generate::continued;
use crate::decoder::{Generated, GenerationOptions};
use crate::error::Result;
use crate::run::Run;
use crate::seq2seq::Seq2Seq;

impl<B: Kernels> Seq2Seq<B> {
    /// The targets of all sources at once; the result for one source does not depend on the others. A routed set
    /// of adapters assigns one to each source.
    ///
    /// The sources are encoded in one pass. The decoder begins with the config's `start`, which counts in
    /// `max_length` and `min_length` and is not in the result. `on_tokens` is as in
    /// [`Decoder::generate`](crate::Decoder::generate).
    ///
    /// # Errors
    /// [`ModelError::Input`] for options out of range, sources that the model does not accept, a model without a start
    /// token, logits that are not finite.
    pub fn generate(
        &self,
        sources: &[Vec<u32>],
        options: &GenerationOptions,
        adapters: &AdapterSet<B>,
        device: &B::Device,
        on_tokens: impl FnMut(usize, &[u32]) -> bool,
    ) -> Result<Vec<Generated>> {
        let start = self.start()?;
        if sources.is_empty() {
            return Ok(Vec::new());
        }
        let lengths: Vec<usize> = sources.iter().map(Vec::len).collect();
        let source = self.source(Tokens::new(&sources.concat(), &lengths), device)?;
        let all: Vec<usize> = (0..sources.len()).collect();
        let routed = adapters.for_step(&all, &lengths);
        let states = self.encode(&source, Run::eval(routed.as_ref().unwrap_or(adapters)));
        let step = |tokens: Tokens<'_>, active: &[usize], cache: &mut KvCache<B>| -> Result<Tensor<B, 2>> {
            self.advance(&states, tokens, active, cache, Run::eval(adapters), device)
        };
        let starts = vec![vec![start]; sources.len()];
        continued(&self.config().decoder, &starts, options, device, step, on_tokens)
    }
}
