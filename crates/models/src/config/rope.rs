//! Rotary positions (Su et al. 2021): their config and frequencies.

use serde_json::{Map, Value};

use crate::config::keys::Keys;

/// Rotary positions of a model, or of some of its layers.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// Width of the part of a head that is rotated, from its start; even.
    pub rotary_dim: usize,
    /// Whether element `2i` is rotated with `2i + 1` instead of `i` with `i + rotary_dim / 2`.
    pub interleaved: bool,
    /// Scaling of the frequencies for longer texts than the original training length.
    pub scaling: RopeScaling,
    /// Growth of the queries with their position.
    pub query_growth: Option<QueryGrowth>,
}

/// Queries at position `p` are multiplied by `1 + beta·ln(1 + ⌊p / length⌋)` (Llama 4, Ministral 3).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryGrowth {
    /// Rate of growth.
    pub beta: f64,
    /// The original training length.
    pub length: usize,
}

impl QueryGrowth {
    /// The factor at a position.
    pub(crate) fn at(self, position: usize) -> f32 {
        (1.0 + self.beta * (1.0 + (position / self.length) as f64).ln()) as f32
    }
}

/// Scaling of the frequencies.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// None.
    None,
    /// All divided by a factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// The base grows with the text beyond the model's length (NTK-aware scaling).
    Dynamic {
        /// Compression of texts of `factor · max_positions` tokens.
        factor: f64,
        /// The model's length.
        max_positions: f64,
    },
    /// High frequencies kept, low ones divided, a ramp between by the number of turns over the first length (Peng et al.
    /// 2023).
    Yarn {
        /// Divisor of the low ones.
        factor: f64,
        /// First pair that is not fully kept, and last that is not fully divided.
        ramp: [f64; 2],
        /// Multiplier on cosines and sines.
        attention_factor: f64,
    },
    /// A divisor for each pair, one list up to the first length and another beyond (Ding et al. 2024).
    LongRope {
        /// Divisors up to the original length.
        short: Vec<f64>,
        /// Divisors beyond it.
        long: Vec<f64>,
        /// The original training length.
        original_length: usize,
        /// Multiplier on cosines and sines.
        attention_factor: f64,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        /// Divisor of the low ones.
        factor: f64,
        /// Wavelengths above the original length divided by this are low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below the original length divided by this are high frequencies.
        high_freq_factor: f64,
        /// The original training length.
        original_length: f64,
    },
}

/// Keys of the rotary parameters in a config, and their defaults.
#[derive(Clone, Copy, Debug)]
pub struct RopeKeys {
    /// The base.
    pub theta: &'static str,
    /// The default base.
    pub default_theta: f64,
    /// The key of the rotated fraction of a head; `None` if whole heads are rotated.
    pub partial: Option<&'static str>,
    /// The default of that fraction.
    pub default_partial: f64,
    /// Whether element `2i` is rotated with `2i + 1`.
    pub interleaved: bool,
    /// The default of `max_position_embeddings`.
    pub max_positions: usize,
    /// The default of `original_max_position_embeddings` beside the rotary parameters, which overrides theirs.
    pub original_length: Option<usize>,
}

impl RopeKeys {
    /// Part of each head under the usual key.
    pub(crate) const fn partial(default_partial: f64) -> Self {
        Self { partial: Some("partial_rotary_factor"), default_partial, ..Self::DEFAULT }
    }

    /// Llama's.
    pub(crate) const DEFAULT: Self = Self {
        theta: "rope_theta",
        default_theta: 10_000.0,
        partial: None,
        default_partial: 1.0,
        interleaved: false,
        max_positions: 2048,
        original_length: None,
    };
}

impl RopeConfig {
    /// From `rope_theta`, `rope_scaling` and `partial_rotary_factor`, or from `rope_parameters`, which
    /// contains them all in newer configs.
    pub(crate) fn read_with(keys: &Keys<'_>, head_dim: usize, names: RopeKeys) -> Result<Self, String> {
        let (new, old) = (keys.object("rope_parameters")?, keys.object("rope_scaling")?);
        // transformers reads `rope_scaling` if it has entries, and `rope_parameters` otherwise.
        let chosen = old.filter(|keys| !keys.is_empty()).or(new);
        Self::build(keys, chosen, head_dim, names)
    }

    /// The positions of the layers of one kind, if `rope_parameters` holds an object for each kind.
    /// The entries of an older config's `rope_scaling` replace those of `full_attention`.
    pub(crate) fn read_kind(
        keys: &Keys<'_>,
        kind: &str,
        head_dim: usize,
        names: RopeKeys,
    ) -> Result<Self, String> {
        let own = keys.object("rope_parameters")?.map_or(Ok(None), |all| all.object(kind))?;
        let old = keys.object("rope_scaling")?.filter(|old| kind == "full_attention" && !old.is_empty());
        // transformers gives the object of an older config the type `default` before it reads `type`.
        let is_unread = |old: &Keys<'_>| own.is_none() && old.get("rope_type").is_none();
        if let Some(name) = old.filter(is_unread).map_or(Ok(None), |old| old.text("type"))?
            && name != "default"
        {
            return Err(format!(
                "rope_scaling: type '{name}' without rope_type is not supported for this architecture; name it rope_type"
            ));
        }
        let entries = [own, old].into_iter().flatten().flat_map(|keys| keys.entries());
        let merged: Map<String, Value> = entries.map(|(key, value)| (key.clone(), value.clone())).collect();
        Self::build(keys, Some(Keys::new(&merged)), head_dim, names)
    }

    fn build(
        keys: &Keys<'_>,
        own: Option<Keys<'_>>,
        head_dim: usize,
        names: RopeKeys,
    ) -> Result<Self, String> {
        let own_or = |key: &str, outer: &str, default: f64| -> Result<f64, String> {
            match own.map_or(Ok(None), |own| own.number(key))? {
                Some(value) => Ok(value),
                None => keys.number_or(outer, default),
            }
        };
        let theta = own_or("rope_theta", names.theta, names.default_theta)?;
        if theta <= 0.0 {
            return Err(format!("rope_theta = {theta} is out of range; expected above 0"));
        }
        let key = names.partial.unwrap_or("partial_rotary_factor");
        // A null is not the default: transformers rotates whole heads.
        let is_null = own.is_some_and(|own| own.has("partial_rotary_factor")) || keys.has(key);
        let default = if is_null { 1.0 } else { names.default_partial };
        let part = own_or("partial_rotary_factor", key, default)?;
        if names.partial.is_none() && part != 1.0 {
            return Err(format!("{key} = {part} is not supported for this architecture; expected 1"));
        }
        if !(0.0..=1.0).contains(&part) {
            return Err(format!("{key} = {part} is out of range; expected 0..=1"));
        }
        let rotary_dim = (head_dim as f64 * part) as usize;
        let scaling = match own {
            Some(own) => RopeScaling::read(&own, keys, theta, rotary_dim, names)?,
            None => RopeScaling::None,
        };
        Ok(Self { theta, rotary_dim, interleaved: names.interleaved, scaling, query_growth: None })
    }

    /// Refuses an odd number of rotated elements; a model without rotary positions may have heads of any width.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.rotary_dim.is_multiple_of(2) {
            return Ok(());
        }
        Err(format!("rotary positions over {} elements; expected an even number", self.rotary_dim))
    }

    /// Angle of each pair of elements at position 1 in a sequence of `length` tokens; shape `[rotary_dim / 2]`.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        let dim = self.rotary_dim as f64;
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor, max_positions } if dim > 2.0 => {
                let length = (length as f64).max(max_positions);
                self.theta * (factor * length / max_positions - (factor - 1.0)).powf(dim / (dim - 2.0))
            }
            _ => self.theta,
        };
        (0..self.rotary_dim / 2)
            .map(|i| self.scaling.apply(theta.powf(-2.0 * i as f64 / dim), i, length) as f32)
            .collect()
    }

    /// Whether the frequencies depend on the length of the sequence.
    pub(crate) const fn depends_on_length(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. } | RopeScaling::LongRope { .. })
    }

    /// Multiplier on cosines and sines.
    pub const fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }
}

impl RopeScaling {
    fn read(
        own: &Keys<'_>,
        config: &Keys<'_>,
        theta: f64,
        rotary_dim: usize,
        names: RopeKeys,
    ) -> Result<Self, String> {
        let kind = match own.text("rope_type")?.or(own.text("type")?).unwrap_or("default") {
            // Phi-3's first configs use this name.
            "yarn" | "su" if own.has("long_factor") => "longrope",
            kind => kind,
        };
        let at = |reason: String| format!("rope scaling '{kind}': {reason}");
        let optional = |key: &str| -> Result<Option<f64>, String> {
            match own.number(key).map_err(at)? {
                Some(value) if value <= 0.0 => {
                    Err(at(format!("{key} = {value} is out of range; expected above 0")))
                }
                value => Ok(value),
            }
        };
        let positive = |key: &str| optional(key)?.ok_or_else(|| at(format!("{key} is missing")));
        let max_positions =
            || config.size_or("max_position_embeddings", names.max_positions).map(|n| n as f64);
        // Phi-3 stores the original length outside, and that one takes precedence.
        let original_length = || -> Result<f64, String> {
            let outer = config.number("original_max_position_embeddings")?;
            match outer.or(names.original_length.map(|n| n as f64)) {
                Some(length) if length > 1.0 => Ok(length),
                _ => Ok(match optional("original_max_position_embeddings")? {
                    Some(length) => length,
                    None => max_positions()?,
                }),
            }
        };
        match kind {
            "default" => Ok(Self::None),
            "linear" => Ok(Self::Linear { factor: positive("factor")? }),
            "dynamic" => Ok(Self::Dynamic { factor: positive("factor")?, max_positions: max_positions()? }),
            "yarn" => {
                let length = original_length()?;
                let factor = match optional("factor")? {
                    Some(factor) => factor,
                    None => max_positions()? / length,
                };
                let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
                // As in transformers, 0 stands for none in these.
                let unless_zero = |key: &str| match own.number(key) {
                    Ok(Some(0.0)) => Ok(None),
                    _ => optional(key),
                };
                let mscales = (unless_zero("mscale")?, unless_zero("mscale_all_dim")?);
                let attention_factor = match (optional("attention_factor")?, mscales) {
                    (Some(given), _) => given,
                    (None, (Some(one), Some(all))) => mscale(one) / mscale(all),
                    _ => mscale(1.0),
                };
                let turns =
                    [unless_zero("beta_fast")?.unwrap_or(32.0), unless_zero("beta_slow")?.unwrap_or(1.0)];
                let dim = rotary_dim as f64;
                // The pair that makes this number of turns over the original length.
                let pair =
                    |turns: f64| dim * (length / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
                let [mut low, mut high] = turns.map(pair);
                // To Python a null is false.
                if own.flag_or("truncate", !own.has("truncate")).map_err(at)? {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                Ok(Self::Yarn { factor, ramp: [low, high], attention_factor })
            }
            "longrope" => {
                let length = original_length()?;
                let list = |key: &str| -> Result<Vec<f64>, String> {
                    let list =
                        own.numbers(key).map_err(at)?.ok_or_else(|| at(format!("{key} is missing")))?;
                    if list.len() != rotary_dim / 2 {
                        let reason = format!("{key} has {} numbers; expected {}", list.len(), rotary_dim / 2);
                        return Err(at(reason));
                    }
                    match list.iter().find(|&&x| x <= 0.0) {
                        Some(x) => Err(at(format!("{key} holds {x}; expected numbers above 0"))),
                        None => Ok(list),
                    }
                };
                let factor = match optional("factor")? {
                    Some(factor) => factor,
                    None => max_positions()? / length,
                };
                let attention_factor = match optional("attention_factor")? {
                    Some(given) => given,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / length.ln()).sqrt(),
                };
                Ok(Self::LongRope {
                    short: list("short_factor")?,
                    long: list("long_factor")?,
                    original_length: length as usize,
                    attention_factor,
                })
            }
            "llama3" => {
                let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
                if low >= high {
                    return Err(at(format!("low_freq_factor {low} is not below high_freq_factor {high}")));
                }
                Ok(Self::Llama3 {
                    factor: positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_length: original_length()?,
                })
            }
            other => Err(format!(
                "rope scaling '{other}' is not supported; expected default, linear, dynamic, yarn, longrope or llama3"
            )),
        }
    }

    fn apply(&self, frequency: f64, pair: usize, length: usize) -> f64 {
        match self {
            Self::None | Self::Dynamic { .. } => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Yarn { factor, ramp: [low, high], .. } => {
                let divided = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency * (1.0 - divided) + frequency / factor * divided
            }
            Self::LongRope { short, long, original_length, .. } => {
                frequency / if length > *original_length { long[pair] } else { short[pair] }
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_length } => {
                // Number of turns of the pair over the original length.
                let turns = original_length * frequency / std::f64::consts::TAU;
                let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (keep + (1.0 - keep) / factor)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn read(value: Value) -> Result<RopeConfig, String> {
        RopeConfig::read_with(&Keys::new(value.as_object().unwrap()), 8, RopeKeys::partial(1.0))
    }

    #[test]
    fn old_and_new_configs_say_the_same() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        let mut new = scaling.as_object().unwrap().clone();
        new.insert("rope_theta".into(), json!(500.0));
        let old = read(json!({"rope_theta": 500.0, "rope_scaling": scaling})).unwrap();
        assert_eq!(read(json!({"rope_parameters": new})).unwrap(), old);
        assert_eq!(read(json!({"rope_scaling": null})).unwrap().theta, 10_000.0);
        assert_eq!(read(json!({"partial_rotary_factor": 0.25})).unwrap().rotary_dim, 2);
    }

    /// Nulls are not defaults where transformers does not take them as such.
    #[test]
    fn nulls_mean_what_they_mean_in_python() {
        let read = |value: Value| {
            RopeConfig::read_with(&Keys::new(value.as_object().unwrap()), 8, RopeKeys::partial(0.5)).unwrap()
        };
        assert_eq!(read(json!({})).rotary_dim, 4);
        assert_eq!(read(json!({"partial_rotary_factor": null})).rotary_dim, 8);
        assert_eq!(read(json!({"rope_parameters": {"partial_rotary_factor": null}})).rotary_dim, 8);
        let ramp = |truncate: Value| {
            let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32,
                "truncate": truncate});
            read(json!({"rope_scaling": yarn, "rope_theta": 100.0, "partial_rotary_factor": 1.0}))
        };
        assert_eq!(ramp(json!(null)), ramp(json!(false)));
        assert_ne!(ramp(json!(null)), ramp(json!(true)));
    }

    #[test]
    fn a_fraction_is_refused_where_whole_heads_are_rotated() {
        let read = |value: Value| {
            RopeConfig::read_with(&Keys::new(value.as_object().unwrap()), 8, RopeKeys::DEFAULT)
        };
        assert_eq!(read(json!({"partial_rotary_factor": 1.0})).unwrap().rotary_dim, 8);
        for value in [
            json!({"partial_rotary_factor": 0.5}),
            json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
        ] {
            assert!(read(value).unwrap_err().contains("partial_rotary_factor = 0.5 is not supported"));
        }
    }

    #[test]
    fn rope_scaling_changes_some_entries_of_the_layers_without_a_window() {
        let both = json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}});
        let of =
            |kind| RopeConfig::read_kind(&Keys::new(both.as_object().unwrap()), kind, 8, RopeKeys::DEFAULT);
        let (full, sliding) = (of("full_attention").unwrap(), of("sliding_attention").unwrap());
        assert_eq!((full.theta, full.scaling), (500.0, RopeScaling::Linear { factor: 2.0 }));
        assert_eq!((sliding.theta, sliding.scaling), (100.0, RopeScaling::None));
    }

    #[test]
    fn rope_scaling_wins_over_rope_parameters() {
        let both = json!({"rope_scaling": {"type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}});
        assert_eq!(read(both).unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
        let empty = json!({"rope_scaling": {}, "rope_parameters": {"rope_type": "linear", "factor": 4.0}});
        assert_eq!(read(empty).unwrap().scaling, RopeScaling::Linear { factor: 4.0 });
    }

    #[test]
    fn llama3_divides_low_frequencies_and_keeps_high_ones() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_length: 64.0,
        };
        let turns = |n: f64| std::f64::consts::TAU * n / 64.0;
        let apply = |n| scaling.apply(turns(n), 0, 1);
        assert_eq!(apply(5.0), turns(5.0));
        assert_eq!(apply(0.5), turns(0.5) / 8.0);
        // In the middle of the ramp: half kept, half divided.
        assert!((apply(2.5) / turns(2.5) - (0.5 + 0.5 / 8.0)).abs() < 1e-12);
    }

    #[test]
    fn long_texts_have_their_own_frequencies() {
        let dynamic = read(json!({"max_position_embeddings": 16,
            "rope_scaling": {"type": "dynamic", "factor": 2.0}}))
        .unwrap();
        assert!(dynamic.depends_on_length());
        assert_eq!(dynamic.frequencies(3), dynamic.frequencies(16));
        // The base at twice the length is 10000·3^(8/6).
        let base = 10_000.0 * 3f64.powf(8.0 / 6.0);
        assert_eq!(dynamic.frequencies(32)[1], base.powf(-0.25) as f32);
        let long = read(json!({"original_max_position_embeddings": 16, "max_position_embeddings": 64,
            "rope_scaling": {"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 4, 8]}}))
        .unwrap();
        assert_eq!(long.frequencies(17)[3], long.frequencies(16)[3] / 8.0);
        assert!((long.attention_factor() - 1.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn zeros_of_yarn_are_unset() {
        let yarn = |changes: Value| {
            let mut scaling =
                json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16});
            scaling.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            read(json!({"rope_theta": 100.0, "rope_parameters": scaling})).unwrap().scaling
        };
        let usual = yarn(json!({}));
        for zero in [
            json!({"mscale": 0, "mscale_all_dim": 1.0}),
            json!({"mscale": 1.0, "mscale_all_dim": 0.0}),
            json!({"beta_fast": 0, "beta_slow": 0}),
        ] {
            assert_eq!(yarn(zero), usual);
        }
        let RopeScaling::Yarn { attention_factor, .. } = usual else { panic!("{usual:?}") };
        assert!((attention_factor - 1.138_629_436_111_989).abs() < 1e-12);
    }

    #[rstest]
    #[case(json!({"rope_scaling": {"type": "quantum"}}), "'quantum' is not supported")]
    #[case(json!({"rope_scaling": {"type": "linear"}}), "factor is missing")]
    #[case(json!({"rope_scaling": {"type": "linear", "factor": 0}}), "out of range")]
    #[case(json!({"rope_scaling": {"type": "longrope", "short_factor": [1], "long_factor": [1, 1, 1, 1]}}), "has 1 numbers")]
    #[case(json!({"rope_theta": -1.0}), "rope_theta")]
    #[case(json!({"partial_rotary_factor": 0.4}), "even")]
    #[case(json!({"partial_rotary_factor": 2.0}), "0..=1")]
    #[case(json!({"rope_scaling": 3}), "expected an object")]
    fn what_is_not_understood_is_refused(#[case] value: Value, #[case] part: &str) {
        let error = read(value).and_then(|rope| rope.check()).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}
