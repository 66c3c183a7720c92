//! Products over quantized blocks, whose bytes stay on the device as they are.
//!
//! Few rows are multiplied by the blocks in one kernel. For many, the blocks become floats tile by tile, which burn
//! multiplies: no more than a tile of a matrix exists in floats. Nothing rounds the input.

mod decode;
mod kernels;

use burn::tensor::backend::Backend;
use burn::tensor::{Bytes, DType, Slice};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::kernel::cast;
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{by_row, dims2, elements, empty, fit, packed, spread, spread_over};
use super::linear;
use crate::blocks::BlockMatrix;
use crate::composed;
use crate::kernels::Kernels;
use crate::precision::Precision;
use crate::weight::Weight;
use kernels::{
    GROUPS, LANES, SPAN, by_columns_kernel, by_rows_kernel, columns_kernel, dequantize_kernel, join_kernel,
    rows_kernel,
};

/// How a product is done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// Rows of the input that one kernel takes, at most 8.
    pub(crate) few: usize,
    /// Elements of a tile.
    pub(crate) tile: usize,
    /// Of the products with tiles.
    pub(crate) precision: Precision,
}

impl Plan {
    /// Eight rows; tiles of 16 MiB.
    pub(crate) const DEFAULT: Self = Self { few: 8, tile: 4 * 1024 * 1024, precision: Precision::F32 };
}

/// Cubes that occupy a device.
const CUBES: usize = 512;

/// Whether the kernels take a matrix: its bytes are one buffer, with indices of 32 bits.
fn takes<R: CubeRuntime>(like: &CubeTensor<R>, w: &BlockMatrix) -> bool {
    let bytes = w.bytes().len() + 8;
    let [rows, columns] = w.stored_dims();
    bytes < i32::MAX as usize
        && bytes as u64 <= like.client.properties().memory.max_page_size
        && rows < i32::MAX as usize
        && columns <= 65_535 * 4 * LANES
}

/// Whether the kernels take a product of `x` and a matrix.
pub(super) fn fits<R: CubeRuntime>(x: &CubeTensor<R>, w: &BlockMatrix) -> bool {
    let ([m, _], [_, n]) = (dims2(x), w.dims());
    fit([x]) && m.saturating_mul(n) < i32::MAX as usize && takes(x, w)
}

/// Whether the kernels take products of parts of `x` and a matrix.
pub(super) fn parts_fit<R: CubeRuntime>(x: &CubeTensor<R>, w: &BlockMatrix) -> bool {
    fit([x]) && takes(x, w)
}

/// Whether the kernels take the rows of a matrix by these numbers.
pub(super) fn rows_fit<R: CubeRuntime>(w: &BlockMatrix, numbers: &CubeTensor<R>) -> bool {
    elements(numbers).saturating_mul(w.dims()[1]) < i32::MAX as usize && takes(numbers, w)
}

/// The blocks of a matrix as words on the device of a tensor, uploaded the first time.
fn resident<R: CubeRuntime>(like: &CubeTensor<R>, w: &BlockMatrix) -> CubeTensor<R> {
    w.resident().get_or_insert(
        |copy: &CubeTensor<R>| copy.device == like.device,
        || {
            // Unaligned words are read in halves, the last of which is past the end.
            let count = w.bytes().len() / 4 + 2;
            let mut bytes = Vec::with_capacity(4 * count);
            bytes.extend_from_slice(w.bytes());
            bytes.resize(4 * count, 0);
            let client = like.client.clone();
            let handle = client
                .memory_persistent_allocation(Bytes::from_bytes_vec(bytes), |bytes| client.create(bytes))
                .unwrap_or_else(|error| panic!("blocks: cannot be uploaded: {error:?}"));
            CubeTensor::new_contiguous(
                like.client.clone(),
                like.device.clone(),
                [count].into(),
                handle,
                DType::U32,
            )
        },
    )
}

/// `x·w`, of matrices that [`fits`] takes.
pub(crate) fn product<B, R>(x: CubeTensor<R>, w: &BlockMatrix, plan: Plan) -> CubeTensor<R>
where
    B: Kernels + Backend<FloatTensorPrimitive = CubeTensor<R>>,
    R: CubeRuntime,
{
    let ([m, depth], [_, n]) = (dims2(&x), w.dims());
    if m * depth * n == 0 {
        return zeros_client(x.client.clone(), x.device.clone(), [m, n].into(), DType::F32);
    }
    if m <= plan.few.min(8) {
        let x = packed(x);
        return if w.is_transposed() { by_rows(x, w) } else { by_columns(x, w) };
    }
    let [rows, columns] = w.stored_dims();
    // Of multiples of 16 rows, which suit burn's kernels.
    let most = plan.tile / columns;
    let most = if most >= 16 { most / 16 * 16 } else { most.max(1) };
    let of_tile = |x: CubeTensor<R>, start: usize| {
        let tile = dequantized(&x, w, start, most.min(rows - start));
        let tile = if w.is_transposed() { B::float_transpose(tile) } else { tile };
        linear::product(&x, &tile, plan.precision)
            .unwrap_or_else(|| composed::linear::<B>(x, Weight::Float(tile), None))
    };
    if rows <= most {
        return of_tile(x, 0);
    }
    let mut y = w.is_transposed().then(|| empty(&x, [m, n]));
    for start in (0..rows).step_by(most) {
        let range = [Slice::from(0..m), Slice::from(start..rows.min(start + most))];
        y = Some(match y {
            Some(y) if w.is_transposed() => B::float_slice_assign(y, &range, of_tile(x.clone(), start)),
            Some(y) => B::float_add(y, of_tile(B::float_slice(x.clone(), &range), start)),
            None => of_tile(B::float_slice(x.clone(), &range), start),
        });
    }
    y.unwrap_or_else(|| empty(&x, [m, n]))
}

/// `count` stored rows from `start` on as floats: `[count, columns]`.
pub(crate) fn dequantized<R: CubeRuntime>(
    like: &CubeTensor<R>,
    w: &BlockMatrix,
    start: usize,
    count: usize,
) -> CubeTensor<R> {
    let [rows, columns] = w.stored_dims();
    assert!(start + count <= rows, "blocks: rows {start} to {} of {rows}", start + count);
    let tile = empty(like, [count, columns]);
    let quads = count * columns / 4;
    if quads > 0 {
        let (cubes, dim) = spread_over(like, quads);
        // SAFETY: the words hold the blocks of all rows, and the tile has the elements of `count` of them; no unit goes
        // past its end.
        unsafe {
            dequantize_kernel::launch_unchecked(
                &like.client,
                cubes,
                dim,
                resident(like, w).into_array_arg(),
                tile.clone().into_array_arg(),
                start * columns / 4,
                quads,
                w.format(),
            );
        }
    }
    tile
}

/// `x` times the transpose of the stored matrix; x has up to eight rows.
fn by_rows<R: CubeRuntime>(x: CubeTensor<R>, w: &BlockMatrix) -> CubeTensor<R> {
    let ([m, _], [rows, columns]) = (dims2(&x), w.stored_dims());
    let y = empty(&x, [m, rows]);
    let (count, dim) = by_row(rows.div_ceil(GROUPS * SPAN));
    // SAFETY: x is [m, columns], y [m, rows], the words hold the blocks of [rows, columns], whose columns are a multiple
    // of a chunk; cubes past the last row do nothing, and rows are at most the last one.
    unsafe {
        by_rows_kernel::launch_unchecked(
            &x.client,
            count,
            dim,
            x.clone().into_array_arg(),
            resident(&x, w).into_array_arg(),
            y.clone().into_array_arg(),
            m,
            rows,
            columns,
            m.next_power_of_two(),
            w.format(),
        );
    }
    y
}

/// `x` times the stored matrix; x has up to eight rows.
fn by_columns<R: CubeRuntime>(x: CubeTensor<R>, w: &BlockMatrix) -> CubeTensor<R> {
    let ([m, _], [rows, columns]) = (dims2(&x), w.stored_dims());
    let across = (columns / 4).div_ceil(LANES);
    // Enough cubes for a device, of several rows for each group.
    let share = rows.div_ceil(CUBES.div_ceil(across)).max(8 * GROUPS);
    let count = rows.div_ceil(share);
    let parts = empty(&x, [count, m * columns]);
    // SAFETY: x is [m, rows], the parts are [count, m, columns], the words hold the blocks of [rows, columns]; rows and
    // quads of columns are at most the last ones.
    unsafe {
        by_columns_kernel::launch_unchecked(
            &x.client,
            CubeCount::Static(across as u32, count as u32, 1),
            by_row(1).1,
            x.clone().into_array_arg(),
            resident(&x, w).into_array_arg(),
            parts.clone().into_array_arg(),
            m,
            rows,
            columns,
            share,
            m.next_power_of_two(),
            w.format(),
        );
    }
    let y = empty(&x, [m, columns]);
    let (cubes, dim) = spread(&y);
    // SAFETY: there are `count` parts of as many elements as y, and no unit goes past the end.
    unsafe {
        join_kernel::launch_unchecked(
            &x.client,
            cubes,
            dim,
            parts.into_array_arg(),
            y.clone().into_array_arg(),
            count,
        );
    }
    y
}

/// Rows of a matrix that [`rows_fit`] takes, by index; an index out of range gives a row of zeros.
pub(super) fn rows<R: CubeRuntime>(w: &BlockMatrix, numbers: CubeTensor<R>) -> CubeTensor<R> {
    let numbers = packed(cast(numbers, DType::I32));
    let [rows, columns] = w.stored_dims();
    let [d_input, d_output] = w.dims();
    let y = empty(&numbers, [elements(&numbers), d_output]);
    if elements(&y) == 0 {
        return y;
    }
    if d_input == 0 {
        return zeros_client(y.client.clone(), y.device.clone(), y.meta.shape().clone(), DType::F32);
    }
    let words = resident(&numbers, w);
    let client = y.client.clone();
    // SAFETY: y has a row for each number, the words hold the blocks of [rows, columns], numbers of other rows or columns
    // read none, and no unit goes past the end of y.
    unsafe {
        if w.is_transposed() {
            let (cubes, dim) = spread(&y);
            columns_kernel::launch_unchecked(
                &client,
                cubes,
                dim,
                words.into_array_arg(),
                numbers.into_array_arg(),
                y.clone().into_array_arg(),
                rows,
                columns,
                w.format(),
            );
        } else {
            let quads = elements(&y) / 4;
            let (cubes, dim) = spread_over(&y, quads);
            rows_kernel::launch_unchecked(
                &client,
                cubes,
                dim,
                words.into_array_arg(),
                numbers.into_array_arg(),
                y.clone().into_array_arg(),
                quads,
                rows,
                columns,
                w.format(),
            );
        }
    }
    y
}
