//! A stack under a head, of either kind.

use burn::module::Module;
use burn::prelude::*;
use lowrank_kernels::Kernels;

use crate::batch::{Rows, TokenBatch, Tokens};
use crate::config::BodyConfig;
use crate::decoder::body::DecoderBody;
use crate::encoder::Encoder;
use crate::error::Result;
use crate::linear::SiteList;
use crate::run::Run;
use crate::visit::ParamVisitor;

/// An encoder or a decoder without a head.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "one in each model; burn's modules cannot be boxed")]
pub(crate) enum Body<B: Backend> {
    Encoder(Encoder<B>),
    Decoder(DecoderBody<B>),
}

impl<B: Backend> Body<B> {
    pub(crate) fn init(config: &BodyConfig, sites: &mut SiteList, seed: u64, device: &B::Device) -> Self {
        match config {
            BodyConfig::Encoder(config) => Self::Encoder(Encoder::init(config, sites, seed, device)),
            BodyConfig::Decoder(config) => Self::Decoder(DecoderBody::init(config, sites, seed, device)),
        }
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, visitor: &mut V) {
        match self {
            Self::Encoder(body) => body.visit_params(visitor),
            Self::Decoder(body) => body.visit_params(visitor),
        }
    }

    /// Site of the word embedding, in models that have one.
    pub(crate) fn word_site(&self) -> Option<usize> {
        match self {
            Self::Encoder(body) => body.word_embedding().map(|words| words.site),
            Self::Decoder(body) => Some(body.embedding.site),
        }
    }

    /// Resizes the vocabulary.
    pub(crate) fn resize_vocabulary(&mut self, rows: usize) -> Result<()> {
        match self {
            Self::Encoder(body) => body.resize_vocabulary(rows),
            Self::Decoder(body) => body.resize_vocabulary(rows),
        }
    }

    pub(crate) fn n_layers(&self) -> usize {
        match self {
            Self::Encoder(body) => body.n_layers(),
            Self::Decoder(body) => body.n_layers(),
        }
    }

    pub(crate) fn max_tokens(&self) -> Option<usize> {
        match self {
            Self::Encoder(body) => body.max_tokens(),
            Self::Decoder(body) => body.max_tokens(),
        }
    }

    pub(crate) fn batch(&self, tokens: Tokens<'_>, device: &B::Device) -> Result<TokenBatch<B>> {
        match self {
            Self::Encoder(body) => body.batch(tokens, device),
            Self::Decoder(body) => body.batch(tokens, device),
        }
    }
}

impl<B: Kernels> Body<B> {
    pub(crate) fn embed(&self, batch: &TokenBatch<B>, run: Run<'_, B>) -> Tensor<B, 2> {
        match self {
            Self::Encoder(body) => body.embed(batch, run),
            Self::Decoder(body) => body.embed(batch, run),
        }
    }

    pub(crate) fn layer(
        &self,
        index: usize,
        x: Tensor<B, 2>,
        batch: &TokenBatch<B>,
        rows: Rows,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        match self {
            Self::Encoder(body) => body.layer(index, x, batch, rows, run),
            Self::Decoder(body) => body.layer(index, x, batch, rows, run),
        }
    }

    pub(crate) fn finish(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        match self {
            Self::Encoder(body) => body.finish(x, run),
            Self::Decoder(body) => body.finish(x, run),
        }
    }
}
