//! The additional error of rounding factors to the output's element type.

use half::{bf16, f16};
use lowrank_checkpoint::Dtype;
use lowrank_factor::{MatRef, SubspaceSide};

use crate::fit::{Factor, Kept};

/// A value as the type stores it.
fn rounded(dtype: Dtype) -> Option<fn(f32) -> f32> {
    match dtype {
        Dtype::BF16 => Some(|value| bf16::from_f32(value).to_f32()),
        Dtype::F16 => Some(|value| f16::from_f32(value).to_f32()),
        _ => None,
    }
}

/// The values as a type stores them; `None` if that is exact.
pub(crate) fn as_stored(values: &[f32], dtype: Dtype) -> Option<Vec<f32>> {
    let round = rounded(dtype)?;
    Some(values.iter().map(|&value| round(value)).collect())
}

/// Sums of squares of the rounding errors and of the values.
fn sums(values: &[f32], stored: &[f32]) -> [f64; 2] {
    values.iter().zip(stored).fold([0.0, 0.0], |[missed, all], (&value, &stored)| {
        let difference = f64::from(value) - f64::from(stored);
        [missed + difference * difference, all + f64::from(value).powi(2)]
    })
}

/// Relative error of storing these values in a type.
pub(crate) fn relative(values: &[f32], dtype: Dtype) -> f64 {
    let Some(stored) = as_stored(values, dtype) else { return 0.0 };
    let [missed, all] = sums(values, &stored);
    if all > 0.0 { (missed / all).sqrt() } else { 0.0 }
}

/// Relative error of factors including their rounding. Rounding errors are independent of each other and of
/// the truncation, so squares add up.
///
/// For `L·R` of a known subspace the norm of each column's and row's error is the method's own (weighted by
/// the diagonals of its weightings); for other forms it is the plain norm of each factor relative to the
/// factor.
///
/// `stored` are the factors as they will be read.
pub(crate) fn with_rounding(
    error: f64,
    factors: &[Vec<Factor>],
    stored: &[Vec<Vec<f32>>],
    kept: Option<&Kept>,
) -> f64 {
    let added = match (factors, kept) {
        ([factors], Some(kept)) if factors.len() == 2 => {
            of_pair([&factors[0], &factors[1]], [&stored[0][0], &stored[0][1]], kept)
        }
        _ => {
            let each = factors.iter().zip(stored).map(|(factors, stored)| {
                let relative = |(factor, stored): (&Factor, &Vec<f32>)| {
                    let [missed, all] = sums(&factor.values, stored);
                    if all > 0.0 { missed / all } else { 0.0 }
                };
                factors.iter().zip(stored).map(relative).sum::<f64>()
            });
            each.sum::<f64>() / factors.len().max(1) as f64
        }
    };
    (error * error + added).sqrt()
}

/// Squared relative error of storing another pair of the same product as `A` `[r, in]` and `B` `[out, r]`, rounded.
pub(crate) fn of_product(factors: &[Factor], stored: &[Vec<f32>], kept: &Kept) -> f64 {
    let ([a, b], [stored_a, stored_b]) = (factors, stored) else { return 0.0 };
    let (rank, d_input, d_output) = (a.shape[0], a.shape[1], b.shape[0]);
    let product = |a: &[f32], b: &[f32]| {
        let matrix = MatRef::from_row_major_slice;
        matrix(b, d_output, rank) * matrix(a, rank, d_input)
    };
    let missed = product(stored_a, stored_b) - product(&a.values, &b.values);
    let weight = |weights: &[f32], i: usize| weights.get(i).map_or(1.0, |&w| f64::from(w));
    let column = |j: usize| {
        let squared = |(i, &x): (usize, &f32)| f64::from(x).powi(2) * weight(&kept.outputs, i);
        missed.col(j).iter().enumerate().map(squared).sum::<f64>() * weight(&kept.inputs, j)
    };
    let (missed, total) =
        ((0..d_input).map(column).sum::<f64>(), kept.subspace.squared().iter().sum::<f64>());
    if total > 0.0 { missed / total } else { 0.0 }
}

/// Squared relative error of rounding `A` `[r, in]` and `B` `[out, r]`.
fn of_pair([a, b]: [&Factor; 2], [stored_a, stored_b]: [&[f32]; 2], kept: &Kept) -> f64 {
    let (squared, total) = (kept.subspace.squared(), kept.subspace.squared().iter().sum::<f64>());
    let (rank, d_input) = (a.shape[0], a.shape[1]);
    let weight = |weights: &[f32], i: usize| weights.get(i).map_or(1.0, |&w| f64::from(w));
    let (mut missed_b, mut norm_b) = (vec![0.0; rank], vec![0.0; rank]);
    let rows_b = b.values.chunks_exact(rank).zip(stored_b.chunks_exact(rank));
    for (i, (row, stored)) in rows_b.enumerate() {
        for (j, (&value, &stored)) in row.iter().zip(stored).enumerate() {
            let difference = f64::from(value) - f64::from(stored);
            missed_b[j] += difference * difference * weight(&kept.outputs, i);
            norm_b[j] += f64::from(value) * f64::from(value);
        }
    }
    let column = |basis: lowrank_factor::MatRef<'_, f32>, j: usize| -> f64 {
        basis.col(j).iter().map(|&x| f64::from(x) * f64::from(x)).sum()
    };
    let rows = a.values.chunks_exact(d_input).zip(stored_a.chunks_exact(d_input)).enumerate();
    let added = rows.map(|(j, (row, stored))| {
        let (mut missed_a, mut norm_a) = (0.0, 0.0);
        for (i, (&value, &stored)) in row.iter().zip(stored).enumerate() {
            let difference = f64::from(value) - f64::from(stored);
            missed_a += difference * difference * weight(&kept.inputs, i);
            norm_a += f64::from(value) * f64::from(value);
        }
        // The method's norm of column j of B; multiplied by that of row j of A it is the singular value.
        let of_b = match (kept.subspace.side(), kept.subspace.dual()) {
            (_, None) => norm_b[j],
            (SubspaceSide::Left, Some(_)) => norm_b[j] / column(kept.subspace.basis(), j),
            (SubspaceSide::Right, Some(dual)) => squared[j] * column(dual, j) / norm_a,
        };
        if of_b > 0.0 && of_b.is_finite() { missed_b[j] * squared[j] / of_b + of_b * missed_a } else { 0.0 }
    });
    let added: f64 = added.sum();
    if total > 0.0 { added / total } else { 0.0 }
}
