//! Weighted rounding: the importance of each column in addition to the reference quantization.
//!
//! For a block of 32 elements `x` with weights `w`, the scale (and offset) of least `Σ w·(x − (scale·q +
//! offset))²` among several initial guesses, each refined by least squares alternating with the integers `q`.
//! Super-blocks of 256 elements use the weights in the search for their groups' scales (`quantize_k`).

use half::f16;

/// Rounds of least squares after an initial guess.
const ROUNDS: usize = 3;

/// Scale and offset as stored in the file, and the weighted squared error.
#[derive(Clone, Copy)]
struct Fit {
    scale: f32,
    offset: f32,
    error: f32,
}

fn narrow(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

/// The integers of `x` for a scale and an offset.
fn round(x: &[f32; 32], scale: f32, offset: f32, [low, high]: [f32; 2]) -> [f32; 32] {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    x.map(|x| ((x - offset) * inverse).round_ties_even().clamp(low, high))
}

fn error(x: &[f32; 32], w: &[f32; 32], scale: f32, offset: f32, range: [f32; 2]) -> f32 {
    let q = round(x, scale, offset, range);
    (0..32).map(|i| w[i] * (x[i] - (scale * q[i] + offset)).powi(2)).sum()
}

/// Least squares for given integers; `None` if they do not determine the scale.
fn solve(x: &[f32; 32], w: &[f32; 32], q: &[f32; 32], has_offset: bool) -> Option<(f32, f32)> {
    let sum = |f: &dyn Fn(usize) -> f32| -> f32 { (0..32).map(|i| w[i] * f(i)).sum() };
    let (qq, qx) = (sum(&|i| q[i] * q[i]), sum(&|i| q[i] * x[i]));
    if !has_offset {
        return (qq > 0.0).then(|| (qx / qq, 0.0));
    }
    let (all, sum_q, sum_x) = (sum(&|_| 1.0), sum(&|i| q[i]), sum(&|i| x[i]));
    let determinant = all * qq - sum_q * sum_q;
    (determinant > 1e-9 * all * qq)
        .then(|| ((all * qx - sum_q * sum_x) / determinant, (qq * sum_x - sum_q * qx) / determinant))
}

/// The better of the best so far and an initial guess with its refinements.
fn improve(
    best: Fit,
    x: &[f32; 32],
    w: &[f32; 32],
    first: (f32, f32),
    range: [f32; 2],
    has_offset: bool,
) -> Fit {
    let (mut scale, mut offset) = first;
    let mut best = best;
    for round_number in 0..=ROUNDS {
        let (s, o) = (narrow(scale), narrow(offset));
        let error = error(x, w, s, o, range);
        if s.is_finite() && o.is_finite() && error < best.error {
            best = Fit { scale: s, offset: o, error };
        }
        if round_number == ROUNDS {
            break;
        }
        match solve(x, w, &round(x, scale, offset, range), has_offset) {
            Some(solved) => (scale, offset) = solved,
            None => break,
        }
    }
    best
}

/// Integers in `-half..half` without an offset (Q4_0, Q5_0): the scale, which may be negative, and the integers plus
/// `half`.
pub(super) fn signed(x: &[f32; 32], w: &[f32; 32], half: f32) -> (f32, [u8; 32]) {
    let range = [-half, half - 1.0];
    let max = x.iter().fold(0.0_f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    let mut best = Fit { scale: 0.0, offset: 0.0, error: f32::INFINITY };
    for step in -6..=6 {
        let reach = half + 0.25 * step as f32;
        for first in [max / -reach, max / reach] {
            best = improve(best, x, w, (first, 0.0), range, false);
        }
    }
    if best.error.is_infinite() {
        // No scale fits f16: the caller says so of this one.
        return (max / -half, [0; 32]);
    }
    let q = round(x, best.scale, 0.0, range);
    (best.scale, q.map(|q| (q + half) as u8))
}

/// Integers in `0..=most` with an offset (Q4_1, Q5_1): scale, offset, integers.
pub(super) fn unsigned(x: &[f32; 32], w: &[f32; 32], most: f32) -> (f32, f32, [u8; 32]) {
    let range = [0.0, most];
    let min = x.iter().copied().fold(f32::INFINITY, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut best = Fit { scale: 0.0, offset: min, error: f32::INFINITY };
    for step in 0..=8 {
        // Both ends drawn in by up to a step and a half of the grid.
        let cut = 0.1875 * step as f32 * (max - min) / most;
        best = improve(best, x, w, ((max - min - 2.0 * cut) / most, min + cut), range, true);
    }
    if best.error.is_infinite() {
        return ((max - min) / most, min, [0; 32]);
    }
    let q = round(x, best.scale, best.offset, range);
    (best.scale, best.offset, q.map(|q| q as u8))
}

/// A signed byte for each element (Q8_0): the scale and the integers.
pub(super) fn bytes(x: &[f32; 32], w: &[f32; 32]) -> (f32, [i8; 32]) {
    let range = [-127.0, 127.0];
    let max = x.iter().fold(0.0_f32, |max, x| max.max(x.abs()));
    let start = Fit { scale: 0.0, offset: 0.0, error: f32::INFINITY };
    let best = improve(start, x, w, (max / 127.0, 0.0), range, false);
    if best.error.is_infinite() {
        return (max / 127.0, [0; 32]);
    }
    (best.scale, round(x, best.scale, 0.0, range).map(|q| q as i8))
}

#[cfg(test)]
mod tests {
    use super::super::BlockFormat;
    use crate::rng::normal_values;

    fn weighted_error(format: BlockFormat, bytes: &[u8], values: &[f32], weights: &[f32]) -> f64 {
        let mut rounded = Vec::new();
        format.dequantize(bytes, &mut rounded);
        let each = values.iter().zip(&rounded).enumerate();
        each.map(|(i, (x, q))| f64::from(weights[i % weights.len()] * (x - q).powi(2))).sum()
    }

    /// In every format, weights that differ between columns lower the weighted error.
    #[test]
    fn the_weighted_error_is_lower_than_the_references() {
        let shape = [8, 512];
        let values = normal_values(3, "w", shape[0] * shape[1], 0.05);
        let weights: Vec<f32> = normal_values(4, "i", shape[1], 1.5).into_iter().map(f32::exp).collect();
        for format in BlockFormat::ALL {
            let plain = format.quantize(shape, &values).unwrap();
            let made = format.quantize_weighted(shape, &values, &weights).unwrap();
            assert_eq!(made.len(), plain.len(), "{format}");
            let [plain, made] = [plain, made].map(|b| weighted_error(format, &b, &values, &weights));
            assert!(made < plain, "{format}: {made} is not less than {plain}");
        }
    }

    /// A row on a format's own grid is unchanged; groups of zeros and of equal values nearly so.
    #[test]
    fn what_is_on_a_grid_stays_there() {
        let shape = [4, 256];
        let values = normal_values(5, "w", 1024, 0.3);
        let weights = vec![1.0; 256];
        for format in
            [BlockFormat::Q8_0, BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q5_0, BlockFormat::Q5_1]
        {
            let mut grid = Vec::new();
            format.dequantize(&format.quantize(shape, &values).unwrap(), &mut grid);
            let again = format.quantize_weighted(shape, &grid, &weights).unwrap();
            let error = weighted_error(format, &again, &grid, &weights);
            assert!(error < 1e-6, "{format}: {error}");
        }
        for value in [0.0, 0.25, -3.0] {
            for format in BlockFormat::ALL {
                let equal = vec![value; 1024];
                let bytes = format.quantize_weighted(shape, &equal, &weights).unwrap();
                let error = weighted_error(format, &bytes, &equal, &weights).sqrt() / 32.0;
                assert!(error <= 0.07 * f64::from(value.abs()), "{format} of {value}: {error}");
            }
        }
    }

    /// Scales beyond f16 are refused, whatever the format and with weights or without; those of MXFP4 reach further.
    #[test]
    fn values_beyond_a_format_are_refused() {
        let weights = vec![1.0; 256];
        for value in [1e9_f32, 1e20, 1e30, -3e38] {
            let has_it = |format: &BlockFormat| value == 1e9 && *format == BlockFormat::Mxfp4;
            for format in BlockFormat::ALL.into_iter().filter(|format| !has_it(format)) {
                let mut row = vec![0.5; 256];
                row[7] = value;
                assert!(format.quantize([1, 256], &row).is_err(), "{format} of {value}");
                assert!(format.quantize_weighted([1, 256], &row, &weights).is_err(), "{format} of {value}");
            }
        }
        for format in
            [BlockFormat::Q4_0, BlockFormat::Q4_1, BlockFormat::Q5_0, BlockFormat::Q5_1, BlockFormat::Q8_0]
        {
            let row = vec![2e7; 256];
            assert!(format.quantize_weighted([1, 256], &row, &weights).is_err(), "{format}");
        }
    }

    #[test]
    fn weights_must_be_one_for_each_column() {
        let quantize = |weights: &[f32]| BlockFormat::Q4_1.quantize_weighted([1, 32], &[1.0; 32], weights);
        assert!(quantize(&[1.0; 31]).is_err());
        assert!(quantize(&[f32::NAN; 32]).is_err() && quantize(&[-1.0; 32]).is_err());
        assert!(quantize(&[0.0; 32]).is_ok());
    }
}
