//! Fuzz bodies: arbitrary bytes cause no panic and no large allocation; errors are one line.
//!
//! Run for hours by cargo-fuzz (`fuzz/`), and for seconds on mutated files by the tests.

use std::path::Path;

use lowrank_kernels::Kernels;
use serde_json::Value;

use crate::config::{DecoderConfig, EncoderConfig};
use crate::decoder::Decoder;
use crate::params::WeightType;
use crate::{Classifier, MaskedLm};

/// Maximum number of layers of a built model: more are valid, but slow.
const LAYERS: usize = 64;

/// A `config.json`: an accepted one can be built, which allocates no weights.
pub fn config<B: Kernels>(data: &[u8]) {
    let Ok(Value::Object(raw)) = serde_json::from_slice(data) else { return };
    let device = Default::default();
    match EncoderConfig::parse(raw.clone()) {
        Ok(config) if config.n_layers <= LAYERS => {
            Classifier::<B>::init(config.clone(), 0, &device);
            check(MaskedLm::<B>::init(config, 0, &device).map(drop).map_err(|e| e.to_string()));
        }
        result => check(result.map(drop)),
    }
    match DecoderConfig::parse(raw) {
        Ok(config) if config.n_layers <= LAYERS => check(Decoder::<B>::init(config, 0, &device).map(drop)),
        result => check(result.map(drop)),
    }
}

/// A model folder: it loads, or returns an error.
pub fn folder<B: Kernels>(folder: &Path) {
    let device = Default::default();
    let decoder = DecoderConfig::read(folder).and_then(|config| {
        if config.n_layers <= LAYERS {
            Decoder::<B>::load(folder, config, WeightType::F32, &device)?;
        }
        Ok(())
    });
    check(decoder.map_err(|e| e.to_string()));
    let encoder = EncoderConfig::read(folder).and_then(|config| {
        if config.n_layers <= LAYERS {
            Classifier::<B>::load(folder, config, 0, &device)?;
        }
        Ok(())
    });
    check(encoder.map_err(|e| e.to_string()));
}

/// An error is one line.
fn check(result: Result<(), String>) {
    if let Err(message) = result {
        assert!(!message.contains('\n'), "{message:?}");
    }
}
