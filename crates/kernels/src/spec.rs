//! Options of the fused operations: dropout, the form of GELU, norms, and the layout of a packed attention.

use std::ops::Range;
use std::sync::Arc;

pub use lowrank_spec::Dropout;
use lowrank_spec::PackedTokens;

/// Which GELU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// `x·Φ(x)` with the exact normal distribution function (BERT).
    Erf,
    /// `x/2·(1 + tanh(√(2/π)(x + 0.044715 x³)))` (GPT-2, `gelu_new`).
    Tanh,
}

/// Activation of the gate in a gated feed-forward part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x·σ(x)` (SwiGLU).
    Silu,
    /// GEGLU.
    Gelu(Gelu),
}

/// How the two factors of a low-rank adapter (LoRA, Hu et al. 2021) are applied: `scale·dropout(x)·a·b`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoraSpec {
    /// Factor on the product.
    pub scale: f32,
    /// Dropout on the input of the adapter alone.
    pub dropout: Option<Dropout>,
}

/// Options of a norm over the last dimension.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    /// Whether the mean is subtracted: a layer norm if so, an RMS norm otherwise.
    pub centered: bool,
    /// Added to the variance (or the mean square) before its root is taken.
    pub eps: f64,
}

/// Layout of a rotary position embedding (Su et al. 2021).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RopeSpec {
    /// Heads of a row.
    pub n_heads: usize,
    /// Width of the part of a head that is rotated, from its start: even, and at most the head's.
    pub rotary_dim: usize,
    /// Whether element `2i` is rotated with `2i + 1` (GPT-J), and not `i` with `i + rotary_dim / 2` (GPT-NeoX,
    /// Llama in Hugging Face format).
    pub interleaved: bool,
}

/// Hyper-parameters of a step of AdamW (Loshchilov & Hutter 2019).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of the gradients.
    pub beta1: f64,
    /// Decay of the mean of their squares.
    pub beta2: f64,
    /// Added to the root of that mean.
    pub eps: f64,
    /// Decoupled weight decay: each step shrinks a parameter by `lr·weight_decay` of itself.
    pub weight_decay: f64,
    /// Factor on the gradient: below 1 where its norm is clipped.
    pub grad_scale: f64,
    /// The number of this step, from 1 on.
    pub step: usize,
}

impl AdamW {
    /// `1 - beta1^step` and `1 - beta2^step`, by which the means are divided.
    pub(crate) fn corrections(&self) -> [f64; 2] {
        let step = self.step.min(i32::MAX as usize) as i32;
        [self.beta1, self.beta2].map(|beta| 1.0 - beta.powi(step))
    }
}

/// How the token after each row of logits is chosen.
///
/// The tokens are those with finite logits, the most likely first, ties in order of id. `top_k`, `top_p` and `min_p` leave a
/// part of them in this order, each of what the one before it has left. The one drawn is the first whose probability among
/// those left, together with that of the tokens before it, is above the row's `draw`.
#[derive(Clone, Debug, PartialEq)]
pub struct SampleSpec {
    /// Divides the logits; 0 for the first of the largest.
    pub temperature: f64,
    /// Only this number of tokens, at least 1.
    pub top_k: Option<usize>,
    /// The fewest tokens with at least this probability, one at least; 1 for all.
    pub top_p: f64,
    /// Those at least this times as likely as the first; 0 for all.
    pub min_p: f64,
    /// Logits of a row's `penalised` tokens are divided by it where they are positive, and multiplied otherwise.
    pub repetition_penalty: f32,
    /// What the rows do not share.
    pub rows: Vec<SampleRow>,
}

/// What the choice of one row's token depends on beside its logits. Tokens past the vocabulary count for nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SampleRow {
    /// A uniform number in `[0, 1)`.
    pub draw: f64,
    /// Tokens with the repetition penalty, however often they are listed.
    pub penalised: Vec<u32>,
    /// Tokens that may not be chosen.
    pub excluded: Vec<u32>,
}

impl SampleSpec {
    /// Checks the number of rows and the ranges; the penalty is neither subnormal nor infinite.
    #[track_caller]
    pub(crate) fn check(&self, rows: usize) {
        let Self { temperature, top_k, top_p, min_p, repetition_penalty: penalty, .. } = self;
        assert!(self.rows.len() == rows, "sample: {rows} rows of logits, {} of the spec", self.rows.len());
        let is_part = |part: f64| (0.0..=1.0).contains(&part);
        assert!(temperature.is_finite() && *temperature >= 0.0, "sample: a temperature of {temperature}");
        assert!(*top_k != Some(0), "sample: of no tokens");
        assert!(is_part(*top_p) && is_part(*min_p), "sample: top_p {top_p}, min_p {min_p}; expected 0 to 1");
        assert!(penalty.is_normal() && *penalty > 0.0, "sample: a repetition penalty of {penalty}");
    }
}

/// Where the keys and values of each sequence lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// One sequence after the other.
    Packed(PackedTokens),
    /// The rows of each sequence in a cache, which has room behind each. Such an attention has no gradient.
    Cached(Arc<[Range<usize>]>),
}

impl Keys {
    /// Number of sequences.
    pub fn n_sequences(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.n_sequences(),
            Self::Cached(rows) => rows.len(),
        }
    }

    /// The rows of one sequence.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn rows(&self, sequence: usize) -> Range<usize> {
        match self {
            Self::Packed(packed) => packed.rows(sequence),
            Self::Cached(rows) => rows[sequence].clone(),
        }
    }

    /// Number of keys of the longest sequence.
    pub fn longest(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.longest(),
            Self::Cached(rows) => rows.iter().map(Range::len).max().unwrap_or(0),
        }
    }

    /// Rows that the keys must at least have.
    pub(crate) fn end(&self) -> usize {
        match self {
            Self::Packed(packed) => packed.n_tokens(),
            Self::Cached(rows) => rows.iter().map(|rows| rows.end).max().unwrap_or(0),
        }
    }
}

impl<T: Into<PackedTokens>> From<T> for Keys {
    fn from(packed: T) -> Self {
        Self::Packed(packed.into())
    }
}

/// Biases of scores that are linear in the position of the key (ALiBi, Press et al. 2022).
///
/// Head `h` adds `slope_h·(key - query)`: by what it adds at the query's own position the softmax does not change.
#[derive(Clone, Debug, PartialEq)]
pub struct Alibi {
    /// Slope of each head; shape `[n_heads]`.
    pub slopes: Arc<[f32]>,
    /// The factor on the biases where slopes, positions and their products are rounded to bfloat16, as Falcon's are.
    pub rounded: Option<f32>,
}

impl Alibi {
    /// What head `head` adds to the score of two positions.
    #[inline]
    pub(crate) fn bias(&self, head: usize, key: usize, query: usize) -> f32 {
        let slope = self.slopes[head];
        match self.rounded {
            None => slope * (key as f32 - query as f32),
            Some(factor) => {
                let rounded = |position: usize| to_bf16(to_bf16(slope) * to_bf16(position as f32));
                (rounded(key) - rounded(query)) * factor
            }
        }
    }
}

/// The nearest bfloat16 of a finite number, ties to even.
#[inline]
fn to_bf16(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits((bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000)
}

/// Buckets of the distances between queries and keys: terms of the scores that depend on the relative position (T5's bias,
/// DeBERTa's disentangled attention) have one value for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Distances {
    /// The bucket of each `key - query` from `1 - longest` on; shape `[2 · longest - 1]`.
    buckets: Arc<[u32]>,
    n_buckets: usize,
}

impl Distances {
    /// Those of sequences of at most `longest` tokens, by a function from `key - query` to a bucket.
    pub fn new(longest: usize, bucket: impl Fn(isize) -> u32) -> Self {
        let longest = longest.max(1) as isize;
        let buckets: Arc<[u32]> = (1 - longest..longest).map(bucket).collect();
        let n_buckets = buckets.iter().max().map_or(0, |&last| last as usize + 1);
        Self { buckets, n_buckets }
    }

    /// Number of buckets.
    pub const fn n_buckets(&self) -> usize {
        self.n_buckets
    }

    /// Length of the longest sequence that they are for.
    pub fn longest(&self) -> usize {
        self.buckets.len().div_ceil(2)
    }

    /// The buckets of the keys from position `first_key` on, as position `query` sees them.
    pub(crate) fn seen_from(&self, query: usize, first_key: usize) -> &[u32] {
        &self.buckets[self.longest() - 1 + first_key - query..]
    }
}

/// Layout and options of an attention over packed sequences.
///
/// Queries are `[queries, n_heads * head_dim]`, keys and values `[keys, n_kv_heads * head_dim]`. The queries of a
/// sequence are at its last positions, so that a step with a cache of keys and values has fewer queries than keys, or
/// where `queries_first` says so at its first ones. Queries that see all keys may be of another sequence
/// ([`cross`](AttentionSpec::cross)).
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// The queries of each sequence.
    pub queries: PackedTokens,
    /// The keys of each sequence, at least as many as its queries where positions matter.
    pub keys: Keys,
    /// Heads of the queries, a multiple of `n_kv_heads`.
    pub n_heads: usize,
    /// Heads of the keys and values; each serves `n_heads / n_kv_heads` consecutive query heads.
    pub n_kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor on the scores before the softmax, usually `1/√head_dim`.
    pub scale: f32,
    /// Whether the queries of a sequence are at its first positions, and not at its last.
    pub queries_first: bool,
    /// Whether a query sees only its own and earlier positions.
    pub causal: bool,
    /// A query at position `i` sees position `j` only if `|i - j| < window`.
    pub window: Option<usize>,
    /// Bound `c` of the scaled scores: they become `c·tanh(score / c)` (Gemma 2).
    pub softcap: Option<f32>,
    /// What is added to the scaled and bounded scores by position.
    pub alibi: Option<Alibi>,
    /// Which of the terms by distance belongs to a query and a key, where there are such terms.
    pub distances: Option<Distances>,
    /// Dropout on the attention probabilities.
    pub dropout: Option<Dropout>,
}

impl AttentionSpec {
    /// Attention of an encoder: every token sees all tokens of its sequence; scale `1/√head_dim`.
    pub fn encoder(sequences: impl Into<PackedTokens>, n_heads: usize, head_dim: usize) -> Self {
        let sequences = sequences.into();
        Self {
            queries: sequences.clone(),
            keys: Keys::Packed(sequences),
            n_heads,
            n_kv_heads: n_heads,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            queries_first: false,
            causal: false,
            window: None,
            softcap: None,
            alibi: None,
            distances: None,
            dropout: None,
        }
    }

    /// Attention of a decoder over whole sequences: a token sees itself and those before it.
    pub fn decoder(
        sequences: impl Into<PackedTokens>,
        n_heads: usize,
        n_kv_heads: usize,
        head_dim: usize,
    ) -> Self {
        Self { n_kv_heads, causal: true, ..Self::encoder(sequences, n_heads, head_dim) }
    }

    /// Attention of a decoder over the states of an encoder: every query sees all keys of its sequence, however many
    /// there are of each.
    pub fn cross(
        queries: impl Into<PackedTokens>,
        keys: impl Into<Keys>,
        n_heads: usize,
        head_dim: usize,
    ) -> Self {
        Self { keys: keys.into(), queries_first: true, ..Self::encoder(queries, n_heads, head_dim) }
    }

    /// Whether a query sees all keys of its sequence, wherever it is.
    fn sees_all(&self) -> bool {
        self.queries_first
            && !self.causal
            && self.window.is_none()
            && self.alibi.is_none()
            && self.distances.is_none()
    }

    /// The rows of the queries and of the keys of each sequence.
    pub(crate) fn sequences(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        self.queries.all_rows().enumerate().map(|(i, queries)| (queries, self.keys.rows(i)))
    }

    /// The position of query `query` of a sequence with these lengths.
    pub const fn position(&self, query: usize, q_length: usize, kv_length: usize) -> usize {
        if self.queries_first { query } else { kv_length - q_length + query }
    }

    /// The keys that query `query` of a sequence with these lengths sees, as a range of positions.
    pub fn visible(&self, query: usize, q_length: usize, kv_length: usize) -> Range<usize> {
        let position = self.position(query, q_length, kv_length);
        let window = self.window.unwrap_or(usize::MAX);
        let first = (position + 1).saturating_sub(window);
        let last = if self.causal { position + 1 } else { position.saturating_add(window).min(kv_length) };
        first..last
    }

    /// Checks the shapes of terms by distance: of the queries' and of the keys'.
    #[track_caller]
    pub(crate) fn check_terms(&self, terms: [Option<[usize; 3]>; 2], key_rows: usize) {
        let Some(distances) = &self.distances else {
            assert!(terms == [None, None], "attention: terms by distance without buckets of distances");
            return;
        };
        assert!(self.softcap.is_none(), "attention: terms by distance under a soft cap are not supported");
        let longest = self.keys.longest();
        assert!(
            distances.longest() >= longest,
            "attention: buckets of distances in sequences of {}, keys of {longest}",
            distances.longest()
        );
        for (got, rows) in terms.into_iter().zip([self.queries.n_tokens(), key_rows]) {
            let expected = [self.n_heads, rows, distances.n_buckets];
            assert!(
                got.is_none_or(|got| got == expected),
                "attention: terms by distance are {got:?}, expected {expected:?}"
            );
        }
    }

    /// Checks the layout against itself and the tensors' shapes.
    #[track_caller]
    pub(crate) fn check(&self, q: [usize; 2], k: [usize; 2], v: [usize; 2]) {
        assert!(
            self.n_kv_heads > 0 && self.n_heads.is_multiple_of(self.n_kv_heads) && self.head_dim > 0,
            "attention: {} heads over {} key heads of width {}",
            self.n_heads,
            self.n_kv_heads,
            self.head_dim
        );
        assert!(self.window != Some(0), "attention: a window of 0 sees nothing");
        if let Some(Alibi { slopes, .. }) = &self.alibi {
            assert!(
                slopes.len() == self.n_heads,
                "attention: {} slopes for {} heads",
                slopes.len(),
                self.n_heads
            );
        }
        assert!(
            self.queries.n_sequences() == self.keys.n_sequences()
                && self.sequences().all(|(queries, keys)| {
                    queries.len() <= keys.len() || self.sees_all() && !keys.is_empty()
                }),
            "attention: each sequence needs at least as many keys as queries, or some that each of them sees"
        );
        let queries = [self.queries.n_tokens(), self.n_heads * self.head_dim];
        assert!(q == queries, "attention: queries are {q:?}, expected {queries:?}");
        let mut keys = [self.keys.end(), self.n_kv_heads * self.head_dim];
        if let Keys::Cached(_) = self.keys {
            assert!(k[0] >= keys[0], "attention: {} rows of keys, expected at least {}", k[0], keys[0]);
            keys[0] = k[0];
        }
        assert!(k == keys, "attention: keys are {k:?}, expected {keys:?}");
        assert!(v == keys, "attention: values are {v:?}, expected {keys:?}");
    }
}
