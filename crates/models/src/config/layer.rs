//! What may differ from one layer of a decoder to the next.

use crate::config::names::LayerNorms;

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// Layer norm with gain and offset (Ba et al. 2016).
    Layer,
    /// RMS norm with gain (Zhang & Sennrich 2019).
    Rms,
    /// RMS norm whose stored gain is the difference from 1 (Gemma).
    RmsPlusOne,
}

/// One layer of a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerKind {
    /// Keys that a query sees: the last `window`, itself included; `None` for all.
    pub window: Option<usize>,
    /// Index of its rotary positions in the config's list; `None` for a layer without.
    pub rope: Option<usize>,
    /// Factor on the attention scores before the softmax.
    pub scale: f32,
    /// The norms around its two parts.
    pub norms: LayerNorms,
    /// Whether its feed-forward part is a mixture of experts.
    pub experts: bool,
}
