//! What may differ from one layer of a decoder to the next.

use crate::config::names::LayerNorms;

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NormKind {
    /// Layer norm with gain and offset (Ba et al. 2016).
    Layer,
    /// Layer norm with a gain only (Cohere, MPT).
    LayerGain,
    /// Layer norm with gain and offset whose stored gain is the difference from 1 (Nemotron).
    LayerPlusOne,
    /// Layer norm without parameters (OLMo 1).
    LayerPlain,
    /// RMS norm with gain (Zhang & Sennrich 2019).
    Rms,
    /// RMS norm whose stored gain is the difference from 1 (Gemma).
    RmsPlusOne,
}

impl NormKind {
    /// Whether the mean is subtracted.
    pub(crate) const fn is_centered(self) -> bool {
        !matches!(self, Self::Rms | Self::RmsPlusOne)
    }

    /// Whether the norm has a gain.
    pub(crate) const fn has_gain(self) -> bool {
        !matches!(self, Self::LayerPlain)
    }

    /// Whether the norm has an offset.
    pub(crate) const fn has_offset(self) -> bool {
        matches!(self, Self::Layer | Self::LayerPlusOne)
    }

    /// Whether the gain is stored as its difference from 1.
    pub(crate) const fn is_plus_one(self) -> bool {
        matches!(self, Self::LayerPlusOne | Self::RmsPlusOne)
    }
}

/// One layer of a decoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerKind {
    /// Keys that a query sees: the last `window`, itself included; `None` for all.
    pub window: Option<usize>,
    /// Index of its rotary positions in the config's list; `None` for a layer without.
    pub rope: Option<usize>,
    /// Multiplier on the attention scores before the softmax.
    pub scale: f32,
    /// The norms around its two parts.
    pub norms: LayerNorms,
    /// Whether its feed-forward part is a mixture of experts.
    pub experts: bool,
}
