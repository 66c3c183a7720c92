//! Relative positions: the buckets of distances, and what they do to the scores.

/// Relative positions of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct RelativePositions {
    /// The bucket of each distance.
    pub buckets: DistanceBuckets,
    /// What the table of buckets holds.
    pub kind: RelativeKind,
}

/// What the table of a model's relative positions holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelativeKind {
    /// What is added to the score of each head (T5, Raffel et al. 2020).
    Bias,
    /// A vector like the hidden states, mapped to separate keys and queries (DeBERTa, He et al. 2021): the score of a
    /// query and a key is `q·k + q·key(distance) + k·query(distance)`.
    Disentangled {
        /// Adds the term `q·key(distance)`.
        content_to_position: bool,
        /// Adds the term `k·query(distance)`.
        position_to_content: bool,
        /// Whether the maps of the layer's keys and queries serve the distances too.
        shares_maps: bool,
        /// Whether the table is normalized.
        norm: bool,
    },
}

/// Rows of a table of relative positions by distance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DistanceBuckets {
    /// Half of the rows for either direction; in each, small distances have one row each, and larger ones up to
    /// `max_distance` share rows by their logarithms (T5).
    Bidirectional {
        /// Rows of the table that are used.
        n_buckets: usize,
        /// The distance from which on all have the last row.
        max_distance: usize,
    },
    /// All rows for keys at or before the query, as either half of [`Bidirectional`](Self::Bidirectional) has them (T5's decoder).
    Causal {
        /// Rows of the table.
        n_buckets: usize,
        /// The distance from which on all have the last row.
        max_distance: usize,
    },
    /// Distance 0 in the middle of `2 · span` rows.
    Centred {
        /// Rows on either side.
        span: usize,
        /// The distance at which the last row is reached, where distances beyond half of the span share rows by their
        /// logarithms (DeBERTa v2).
        logarithmic: Option<usize>,
    },
}

impl DistanceBuckets {
    /// Rows of the table.
    pub const fn rows(&self) -> usize {
        match *self {
            Self::Bidirectional { n_buckets, .. } | Self::Causal { n_buckets, .. } => n_buckets,
            Self::Centred { span, .. } => 2 * span,
        }
    }

    /// The row of `key - query`. Logarithms are rounded as the reference implementations round them, to f32.
    pub fn row(&self, distance: isize) -> usize {
        match *self {
            Self::Bidirectional { n_buckets, max_distance } => {
                let half = n_buckets / 2;
                let start = if distance > 0 { half } else { 0 };
                start + one_sided(distance.unsigned_abs(), half, max_distance)
            }
            Self::Causal { n_buckets, max_distance } => {
                one_sided(distance.min(0).unsigned_abs(), n_buckets, max_distance)
            }
            Self::Centred { span, logarithmic } => {
                let relative = -distance;
                let bucket = match logarithmic {
                    Some(max) => log_bucket(relative, span, max),
                    None => relative,
                };
                (bucket + span as isize).clamp(0, 2 * span as isize - 1) as usize
            }
        }
    }
}

/// The row of a distance among `rows`, half of which hold one distance each.
fn one_sided(distance: usize, rows: usize, max_distance: usize) -> usize {
    let exact = rows / 2;
    if distance < exact {
        return distance;
    }
    let ratio = (distance as f32 / exact as f32).ln();
    let whole = (max_distance as f64 / exact as f64).ln() as f32;
    let row = exact + (ratio / whole * (rows - exact) as f32) as usize;
    row.min(rows - 1)
}

/// The signed bucket of a signed distance: itself up to half of the span, then by logarithm up to the span at `max`.
fn log_bucket(relative: isize, span: usize, max: usize) -> isize {
    let (mid, distance) = (span / 2, relative.unsigned_abs());
    if distance <= mid {
        return relative;
    }
    let ratio = (distance as f32 / mid as f32).ln();
    let whole = (((max as f64 - 1.0) / mid as f64) as f32).ln();
    let bucket = (ratio / whole * (mid as f32 - 1.0)).ceil() as isize + mid as isize;
    bucket * relative.signum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bidirectional_buckets_are_those_of_t5() {
        let buckets = DistanceBuckets::Bidirectional { n_buckets: 32, max_distance: 128 };
        let rows = |distances: &[isize]| distances.iter().map(|&d| buckets.row(d)).collect::<Vec<_>>();
        // Of `relative_position_bucket` in transformers 5.23.
        assert_eq!(
            rows(&[0, -1, -7, -8, -11, -12, -16, -32, -64, -127, -128, -4000]),
            [0, 1, 7, 8, 8, 9, 10, 12, 14, 15, 15, 15]
        );
        assert_eq!(rows(&[1, 7, 8, 16, 33, 500]), [17, 23, 24, 26, 28, 31]);
    }

    #[test]
    fn causal_buckets_are_those_of_t5s_decoder() {
        let buckets = DistanceBuckets::Causal { n_buckets: 32, max_distance: 128 };
        let rows = [0, -1, -15, -16, -17, -20, -32, -64, -127, -128, -4000, 1, 9].map(|d| buckets.row(d));
        // Of `relative_position_bucket(d, bidirectional=False)` in transformers 5.24.
        assert_eq!(rows, [0, 1, 15, 16, 16, 17, 21, 26, 31, 31, 31, 0, 0]);
    }

    #[test]
    fn centred_buckets_are_those_of_deberta() {
        let plain = DistanceBuckets::Centred { span: 4, logarithmic: None };
        let rows = |b: DistanceBuckets, d: &[isize]| d.iter().map(|&d| b.row(d)).collect::<Vec<_>>();
        assert_eq!(rows(plain, &[0, 1, -1, 3, 9, -3, -9]), [4, 3, 5, 1, 0, 7, 7]);
        // Of `make_log_bucket_position(d, 256, 512)` in transformers 5.23, 256 added.
        let log = DistanceBuckets::Centred { span: 256, logarithmic: Some(512) };
        assert_eq!(rows(log, &LOG.map(|(distance, _)| -distance)), LOG.map(|(_, row)| row));
    }

    const LOG: [(isize, usize); 10] = [
        (0, 256),
        (127, 383),
        (128, 384),
        (129, 385),
        (130, 386),
        (200, 425),
        (-200, 87),
        (300, 463),
        (511, 511),
        (-511, 1),
    ];
}
