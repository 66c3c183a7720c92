//! Rows written into a table in one launch.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{dims2, fit, owned, packed};
use super::math::UNITS;
use super::upload::table;

/// Cubes that share the rows of a span, at most.
const MAX_CUBES: usize = 4096;

/// Spans that a launch has room for.
const MAX_SPANS: usize = 65_535;

#[cube(launch_unchecked)]
fn write_kernel(rows: &Array<f32>, spans: &Array<u32>, table: &mut Array<f32>, width: usize) {
    let span = CUBE_POS_Y as usize * 3;
    let to = spans[span] as usize * width;
    let from = spans[span + 1] as usize * width;
    let end = spans[span + 2] as usize * width;
    let mut at = CUBE_POS_X as usize * UNITS + UNIT_POS as usize;
    while at < end {
        table[to + at] = rows[from + at];
        at += CUBE_COUNT_X as usize * UNITS;
    }
}

/// Whether the kernel can write all spans at once: they lie within both, and none goes where another does.
pub(super) fn fits<R: CubeRuntime>(
    table: &CubeTensor<R>,
    rows: &CubeTensor<R>,
    spans: &[[usize; 3]],
) -> bool {
    let ([n, width], [m, row_width]) = (dims2(table), dims2(rows));
    let is_within = |first: usize, count: usize, end: usize| first <= end && count <= end - first;
    let mut places = Vec::with_capacity(spans.len());
    for &[to, from, count] in spans.iter().filter(|[.., count]| *count > 0) {
        if !(is_within(to, count, n) && is_within(from, count, m)) {
            return false;
        }
        places.push([to, to + count]);
    }
    places.sort_unstable();
    let are_apart = places.windows(2).all(|pair| pair[0][1] <= pair[1][0]);
    fit([table, rows]) && width == row_width && spans.len() <= MAX_SPANS && are_apart
}

/// The table with the rows of the spans, in place where nothing else has it; spans are the caller's to check.
pub(super) fn write_rows<R: CubeRuntime>(
    target: CubeTensor<R>,
    rows: CubeTensor<R>,
    spans: &[[usize; 3]],
) -> CubeTensor<R> {
    let [_, width] = dims2(&target);
    let spans: Vec<[usize; 3]> = spans.iter().copied().filter(|[.., count]| *count > 0).collect();
    let longest = spans.iter().map(|[.., count]| count * width).max().unwrap_or(0);
    if longest == 0 {
        return target;
    }
    let (target, rows) = (owned(target), packed(rows));
    let client = target.client.clone();
    let count = CubeCount::Static(longest.div_ceil(UNITS).min(MAX_CUBES) as u32, spans.len() as u32, 1);
    let words: Vec<u32> = spans.iter().flatten().map(|&word| word as u32).collect();
    let n_words = words.len();
    let handle = table(words, &target);
    // SAFETY: there is a row of cubes for each span, spans lie within rows and the table, and nothing else has the table.
    unsafe {
        write_kernel::launch_unchecked(
            &client,
            count,
            CubeDim::new_1d(UNITS as u32),
            rows.into_array_arg(),
            ArrayArg::from_raw_parts(handle, n_words),
            target.clone().into_array_arg(),
            width,
        );
    }
    target
}
