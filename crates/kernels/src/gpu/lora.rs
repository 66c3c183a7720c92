//! The second product of a low-rank adapter, added where its base's output is.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{dims2, elements, owned, packed, spread};
use super::math::{keeps, row_key};
use crate::spec::Dropout;

/// `y += scale·mask(h·b)`, a unit for each element of y: neighbouring units read neighbouring elements of b and the same
/// of h. The rank is small beside the width, so that y is what costs time.
#[cube(launch_unchecked)]
fn add_product_kernel(
    h: &Array<f32>,
    b: &Array<f32>,
    y: &mut Array<f32>,
    width: usize,
    rank: usize,
    scale: f32,
    seed_low: u32,
    seed_high: u32,
    threshold: u32,
    #[comptime] dropped: bool,
    #[comptime] transposed: bool,
) {
    if ABSOLUTE_POS < y.len() {
        let row = ABSOLUTE_POS / width;
        let column = ABSOLUTE_POS % width;
        let mut sum = 0.0f32;
        for i in 0..rank {
            let at = if comptime!(transposed) { column * rank + i } else { i * width + column };
            sum += h[row * rank + i] * b[at];
        }
        let mut factor = scale;
        if comptime!(dropped) {
            let key = row_key(seed_low, seed_high, row);
            factor = select(keeps(key, column, threshold), scale, 0.0);
        }
        y[ABSOLUTE_POS] = y[ABSOLUTE_POS] + sum * factor;
    }
}

/// Ranks above which a product of matrices and a sum are faster.
const MAX_RANK: usize = 64;

/// Whether the rank of a second factor is too large for the kernel.
pub(super) fn is_wide<R: CubeRuntime>(b: &CubeTensor<R>) -> bool {
    dims2(b)[0] > MAX_RANK
}

/// `y + scale·dropout(h·b)`, in place where nothing else has y.
///
/// # Shapes
/// - y: `[rows, width]`, h: `[rows, rank]`, b: `[rank, width]`, which the caller has checked
pub(super) fn add_product<R: CubeRuntime>(
    y: CubeTensor<R>,
    h: CubeTensor<R>,
    b: CubeTensor<R>,
    scale: f32,
    dropout: Option<Dropout>,
) -> CubeTensor<R> {
    let (y, h) = (owned(y), packed(h));
    let ([_, width], [_, rank]) = (dims2(&y), dims2(&h));
    // The transpose of a matrix in the order of rows is read as it is.
    let transposed = rank > 1 && b.meta.strides().to_vec() == [1, rank];
    let b = if transposed { b } else { packed(b) };
    let seed = dropout.map_or(0, |dropout| dropout.seed);
    let (client, (count, dim)) = (y.client.clone(), spread(&y));
    if elements(&y) > 0 && rank > 0 {
        // SAFETY: no unit goes past the end of y; h has its rows, b its columns, and both the rank. Nothing else has y.
        unsafe {
            add_product_kernel::launch_unchecked(
                &client,
                count,
                dim,
                h.into_array_arg(),
                b.into_array_arg(),
                y.clone().into_array_arg(),
                width,
                rank,
                scale * dropout.map_or(1.0, |dropout| dropout.scale()),
                seed as u32,
                (seed >> 32) as u32,
                dropout.map_or(0, |dropout| dropout.threshold()),
                dropout.is_some(),
                transposed,
            );
        }
    }
    y
}
