//! Kernels over blocks: parts of a matrix as floats, its rows, and products with few rows.

use burn_cubecl::cubecl;
use cubecl::prelude::*;
use lowrank_spec::blocks::BlockFormat;

use super::decode::{CHUNK, Quad, affine, block_of, codes, decode, value};
use crate::gpu::math::UNITS;

/// Units that share a sum, or that have neighbouring columns.
pub(super) const LANES: usize = 32;
/// Groups of them in a cube.
pub(super) const GROUPS: usize = UNITS / LANES;
/// Stored rows of a group: what it reads of the input serves all of them.
pub(super) const SPAN: usize = 2;

/// Elements as floats, `quads` quads from `first` on.
#[cube(launch_unchecked)]
pub(super) fn dequantize_kernel(
    words: &Array<u32>,
    tile: &mut Array<Quad>,
    first: usize,
    quads: usize,
    #[comptime] format: BlockFormat,
) {
    if ABSOLUTE_POS < quads {
        tile[ABSOLUTE_POS] = decode(words, first + ABSOLUTE_POS, format);
    }
}

/// Stored rows by their numbers. A number past the last row gives zeros.
#[cube(launch_unchecked)]
pub(super) fn rows_kernel(
    words: &Array<u32>,
    numbers: &Array<i32>,
    y: &mut Array<Quad>,
    quads: usize,
    rows: usize,
    columns: usize,
    #[comptime] format: BlockFormat,
) {
    if ABSOLUTE_POS < quads {
        let width = columns / 4;
        let number = numbers[ABSOLUTE_POS / width];
        let is_row = number >= 0 && (number as usize) < rows;
        let row = select(is_row, number as usize, 0usize);
        let values = decode(words, row * width + ABSOLUTE_POS % width, format);
        y[ABSOLUTE_POS] = select(is_row, values, Quad::new(0.0));
    }
}

/// Stored columns by their numbers, each as a row. A number past the last column gives zeros.
#[cube(launch_unchecked)]
pub(super) fn columns_kernel(
    words: &Array<u32>,
    numbers: &Array<i32>,
    y: &mut Array<f32>,
    rows: usize,
    columns: usize,
    #[comptime] format: BlockFormat,
) {
    if ABSOLUTE_POS < y.len() {
        let number = numbers[ABSOLUTE_POS / rows];
        let is_column = number >= 0 && (number as usize) < columns;
        let column = select(is_column, number as usize, 0usize);
        let quad = ABSOLUTE_POS % rows * (columns / 4) + column / 4;
        let block = block_of(quad, format);
        let at = quad % comptime!(format.block_len() / 4);
        let affine = affine(words, block, at / 4, format);
        let code = codes(words, block, at, format) >> ((column % 4) * 8) as u32;
        y[ABSOLUTE_POS] = select(is_column, value(code, affine.scale, affine.offset, format), 0.0);
    }
}

/// `x` times the transpose of the stored matrix, for up to `batch` rows of `x`: `[m, columns]` and `[m, rows]`.
///
/// A group of lanes has [`SPAN`] stored rows, each lane every [`LANES`]th of their chunks.
#[cube(launch_unchecked)]
pub(super) fn by_rows_kernel(
    x: &Array<Quad>,
    words: &Array<u32>,
    y: &mut Array<f32>,
    m: usize,
    rows: usize,
    columns: usize,
    #[comptime] batch: usize,
    #[comptime] format: BlockFormat,
) {
    let cube_first = CUBE_POS as usize * comptime!(GROUPS * SPAN);
    if cube_first < rows {
        let unit = UNIT_POS as usize;
        let lane = unit % LANES;
        let group = unit / LANES;
        let first = cube_first + group * SPAN;
        let chunks = columns / CHUNK;
        let mut sums = Array::<f32>::new(comptime!(batch * SPAN));
        #[unroll]
        for i in 0..comptime!(batch * SPAN) {
            sums[i] = 0.0;
        }
        let mut scales = Array::<f32>::new(SPAN);
        let mut offsets = Array::<f32>::new(SPAN);
        let mut weights = Array::<f32>::new(comptime!(4 * SPAN));
        let mut chunk = lane;
        while chunk < chunks {
            // Rows past the last one repeat it and store nothing; so do those of x.
            #[unroll]
            for s in 0..SPAN {
                let quad = (min(first + s, rows - 1) * chunks + chunk) * 4;
                let at = quad % comptime!(format.block_len() / 4);
                let affine = affine(words, block_of(quad, format), at / 4, format);
                scales[s] = affine.scale;
                offsets[s] = affine.offset;
            }
            for q in 0..4usize {
                #[unroll]
                for s in 0..SPAN {
                    let quad = (min(first + s, rows - 1) * chunks + chunk) * 4 + q;
                    let at = quad % comptime!(format.block_len() / 4);
                    let codes = codes(words, block_of(quad, format), at, format);
                    #[unroll]
                    for j in 0..4usize {
                        weights[4 * s + j] =
                            value(codes >> comptime!(8 * j as u32), scales[s], offsets[s], format);
                    }
                }
                #[unroll]
                for i in 0..batch {
                    let input = x[(min(i, m - 1) * chunks + chunk) * 4 + q];
                    #[unroll]
                    for s in 0..SPAN {
                        #[unroll]
                        for j in 0..4usize {
                            sums[i * SPAN + s] = sums[i * SPAN + s] + input[j] * weights[4 * s + j];
                        }
                    }
                }
            }
            chunk += LANES;
        }

        // One unit adds up the sums of a group; a bank more between groups keeps their units apart.
        let stride = comptime!(GROUPS * (LANES + 1));
        let mut shared = SharedMemory::<f32>::new(comptime!(batch * SPAN * GROUPS * (LANES + 1)));
        #[unroll]
        for i in 0..comptime!(batch * SPAN) {
            shared[i * stride + group * comptime!(LANES + 1) + lane] = sums[i];
        }
        sync_cube();
        let own_row = cube_first + unit % comptime!(GROUPS * SPAN);
        let i = unit / comptime!(GROUPS * SPAN);
        if i < m && own_row < rows {
            let own_group = unit % comptime!(GROUPS * SPAN) / SPAN;
            let from = (i * SPAN + unit % SPAN) * stride + own_group * comptime!(LANES + 1);
            let mut sum = 0.0f32;
            for other in 0..LANES {
                sum += shared[from + other];
            }
            y[i * rows + own_row] = sum;
        }
    }
}

/// Parts of `x` times the stored matrix, for up to `batch` rows of `x`: `[m, rows]` and `[parts, m, columns]`, each over
/// `share` stored rows.
///
/// A unit has a quad of columns, and a group every [`GROUPS`]th of the rows.
#[cube(launch_unchecked)]
pub(super) fn by_columns_kernel(
    x: &Array<f32>,
    words: &Array<u32>,
    parts: &mut Array<f32>,
    m: usize,
    rows: usize,
    columns: usize,
    share: usize,
    #[comptime] batch: usize,
    #[comptime] format: BlockFormat,
) {
    let unit = UNIT_POS as usize;
    let lane = unit % LANES;
    let group = unit / LANES;
    let quads = columns / 4;
    let quad = CUBE_POS_X as usize * LANES + lane;
    // Quads past the last one repeat it and store nothing; so do rows of x.
    let own = min(quad, quads - 1);
    let begin = CUBE_POS_Y as usize * share;
    let end = min(begin + share, rows);
    let mut sums = Array::<f32>::new(comptime!(batch * 4));
    #[unroll]
    for i in 0..comptime!(batch * 4) {
        sums[i] = 0.0;
    }
    let mut row = begin + group;
    while row < end {
        let values = decode(words, row * quads + own, format);
        #[unroll]
        for i in 0..batch {
            let input = x[min(i, m - 1) * rows + row];
            #[unroll]
            for j in 0..4usize {
                sums[i * 4 + j] = sums[i * 4 + j] + input * values[j];
            }
        }
        row += GROUPS;
    }

    let mut shared = SharedMemory::<f32>::new(comptime!(batch * 4 * UNITS));
    #[unroll]
    for i in 0..comptime!(batch * 4) {
        shared[i * UNITS + unit] = sums[i];
    }
    sync_cube();
    #[unroll]
    for i in 0..batch {
        if group == comptime!(i % GROUPS) && i < m && quad < quads {
            #[unroll]
            for j in 0..4usize {
                let mut sum = 0.0f32;
                #[unroll]
                for other in 0..GROUPS {
                    sum += shared[(i * 4 + j) * UNITS + other * LANES + lane];
                }
                parts[(CUBE_POS_Y as usize * m + i) * columns + quad * 4 + j] = sum;
            }
        }
    }
}

/// The sum of parts, each of which is like `y`.
#[cube(launch_unchecked)]
pub(super) fn join_kernel(parts: &Array<f32>, y: &mut Array<f32>, count: usize) {
    if ABSOLUTE_POS < y.len() {
        let mut sum = 0.0f32;
        for part in 0..count {
            sum += parts[part * y.len() + ABSOLUTE_POS];
        }
        y[ABSOLUTE_POS] = sum;
    }
}
