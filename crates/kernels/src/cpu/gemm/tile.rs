//! Tiles of C in registers.

use super::super::buffer;
use super::super::math;
use super::super::simd::{Kernel, LANES, Simd};
use crate::spec::Gelu;

/// Most rows and columns of a tile.
const MAX_ROWS: usize = 14;
const MAX_WIDTH: usize = 32;

/// A part of C that is one panel of B wide, with its operands. All pointers come with the distance
/// between rows.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Strip<'a> {
    pub(in crate::cpu) rows: usize,
    /// Columns, at most those of a tile.
    pub(in crate::cpu) width: usize,
    /// Length of the sums.
    pub(in crate::cpu) depth: usize,
    pub(in crate::cpu) a: (*const f32, usize),
    /// Whether A is column-major.
    pub(in crate::cpu) by_columns: bool,
    /// The panel.
    pub(in crate::cpu) b: (*const f32, usize),
    pub(in crate::cpu) c: (*mut f32, usize),
    /// Whether the sums start here; otherwise they continue those in C.
    pub(in crate::cpu) is_first: bool,
    /// Added to the sums.
    pub(in crate::cpu) bias: Option<&'a [f32]>,
    /// Applied last.
    pub(in crate::cpu) gelu: Option<Gelu>,
    /// Destination of the activation's slopes.
    pub(in crate::cpu) slope: Option<(*mut f32, usize)>,
}

/// Computes `A·B` for a strip.
///
/// # Safety
/// A must have `rows` rows of `depth` floats (or `depth` columns of `rows`), B `depth` rows of `width` floats
/// rounded up to whole vectors, and C and the slopes, which no one else uses, `rows` rows of `width`.
#[inline(always)]
pub(in crate::cpu) unsafe fn multiply<S: Simd>(simd: S, strip: Strip<'_>) {
    simd.call(TrustedStrip(strip));
}

/// A strip whose pointers are valid.
struct TrustedStrip<'a>(Strip<'a>);

impl Kernel for TrustedStrip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // SAFETY: only `multiply` creates one.
        unsafe { multiply_inline(simd, self.0) };
    }
}

/// # Safety
/// As for [`multiply`].
#[inline(always)]
unsafe fn multiply_inline<S: Simd>(simd: S, strip: Strip<'_>) {
    let Strip { rows, width, depth, a, by_columns, b, c, is_first, bias, gelu, slope } = strip;
    let vectors = width.div_ceil(LANES);
    let mut bias_lanes = [0.0; MAX_WIDTH];
    if let Some(bias) = bias {
        bias_lanes[..width].copy_from_slice(bias);
    }
    let bias = bias.is_some().then_some(bias_lanes.as_ptr());
    let tiles = rows.div_ceil(S::TILE_ROWS);
    for tile in 0..tiles {
        // Tiles differ by at most one row.
        let first = rows * tile / tiles;
        let count = rows * (tile + 1) / tiles - first;
        let a = (a.0.wrapping_add(if by_columns { first } else { first * a.1 }), a.1);
        let c = (c.0.wrapping_add(first * c.1), c.1);
        let slope = slope.map(|slope| (slope.0.wrapping_add(first * slope.1), slope.1));
        if tile + 1 < tiles {
            // What the next tile loads or stores first.
            let next = c.0.wrapping_add(count * c.1);
            for row in 0..count {
                for v in 0..vectors {
                    buffer::prefetch(next.wrapping_add(row * c.1 + v * LANES));
                }
            }
        }
        let one = TileArgs { depth, a, b, c, is_first, bias };
        if width == vectors * LANES {
            // SAFETY: the tile is a part of the strip.
            unsafe {
                sized(simd, count, vectors, by_columns, one);
                if let Some(gelu) = gelu {
                    activate(simd, gelu, count, vectors, c, slope);
                }
            }
        } else {
            let (mut part, mut part_slope) = ([0.0; MAX_ROWS * MAX_WIDTH], [0.0; MAX_ROWS * MAX_WIDTH]);
            let part = (part.as_mut_ptr(), MAX_WIDTH);
            let part_slope = (part_slope.as_mut_ptr(), MAX_WIDTH);
            // SAFETY: as above; a tile of whole vectors is computed separately and only its columns are
            // copied.
            unsafe {
                if !is_first {
                    copy(count, width, c, part);
                }
                sized(simd, count, vectors, by_columns, TileArgs { c: part, ..one });
                if let Some(gelu) = gelu {
                    activate(simd, gelu, count, vectors, part, slope.map(|_| part_slope));
                    if let Some(slope) = slope {
                        copy(count, width, part_slope, slope);
                    }
                }
                copy(count, width, part, c);
            }
        }
    }
}

/// # Safety
/// Both must have `rows` rows of `width` floats, at the distances given with them.
#[inline(always)]
unsafe fn copy(rows: usize, width: usize, from: (*mut f32, usize), to: (*mut f32, usize)) {
    for row in 0..rows {
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from.0.add(row * from.1), to.0.add(row * to.1), width) };
    }
}

/// Arguments of one tile; as in [`Strip`].
#[derive(Clone, Copy)]
struct TileArgs {
    depth: usize,
    a: (*const f32, usize),
    b: (*const f32, usize),
    c: (*mut f32, usize),
    is_first: bool,
    bias: Option<*const f32>,
}

/// Selects the tile of this size.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn sized<S: Simd>(simd: S, rows: usize, vectors: usize, by_columns: bool, one: TileArgs) {
    macro_rules! pick {
        ($($rows:literal)*) => {
            match rows {
                $($rows if $rows <= S::TILE_ROWS => {
                    // SAFETY: the caller's.
                    unsafe {
                        match (vectors, by_columns) {
                            (1, false) => tile::<S, $rows, 1, false>(simd, one),
                            (1, true) => tile::<S, $rows, 1, true>(simd, one),
                            (_, false) => if S::TILE_VECTORS == 2 { tile::<S, $rows, 2, false>(simd, one) },
                            (_, true) => if S::TILE_VECTORS == 2 { tile::<S, $rows, 2, true>(simd, one) },
                        }
                    }
                })*
                _ => {},
            }
        };
    }
    pick!(1 2 3 4 5 6 7 8 9 10 11 12 13 14);
}

/// Adds `A·B` to one tile, and the bias if there is one.
///
/// # Safety
/// A must have `R` rows (or columns) of `depth` floats, B `depth` rows and C `R` rows of `V` vectors, and the
/// bias `V` vectors.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "counted loops unroll into registers")]
unsafe fn tile<S: Simd, const R: usize, const V: usize, const BY_COLUMNS: bool>(simd: S, one: TileArgs) {
    let TileArgs { depth, a: (mut a, a_stride), b: (mut b, b_stride), c: (c, c_stride), is_first, bias } =
        one;
    let mut sums = [[simd.splat(0.0); V]; R];
    // Counted loops throughout: in a function of this size some calls of iterator adaptors are not inlined.
    // SAFETY: all offsets are inside the matrices that the caller vouches for.
    unsafe {
        if !is_first {
            for row in 0..R {
                for v in 0..V {
                    sums[row][v] = simd.load_ptr(c.add(row * c_stride + v * LANES));
                }
            }
        }
        for _ in 0..depth {
            let mut b_row = [simd.splat(0.0); V];
            for v in 0..V {
                b_row[v] = simd.load_ptr(b.add(v * LANES));
            }
            for row in 0..R {
                let x = simd.splat(*a.add(if BY_COLUMNS { row } else { row * a_stride }));
                for v in 0..V {
                    sums[row][v] = simd.fma(x, b_row[v], sums[row][v]);
                }
            }
            a = a.wrapping_add(if BY_COLUMNS { a_stride } else { 1 });
            b = b.wrapping_add(b_stride);
        }
        if let Some(bias) = bias {
            for v in 0..V {
                let bias = simd.load_ptr(bias.add(v * LANES));
                for row in 0..R {
                    sums[row][v] = simd.add(sums[row][v], bias);
                }
            }
        }
        for row in 0..R {
            for v in 0..V {
                simd.store_ptr(sums[row][v], c.add(row * c_stride + v * LANES));
            }
        }
    }
}

/// Applies an activation to a tile, and writes its slopes if requested.
///
/// # Safety
/// C and the slopes must have `rows` rows of `vectors` vectors.
#[inline(always)]
unsafe fn activate<S: Simd>(
    simd: S,
    gelu: Gelu,
    rows: usize,
    vectors: usize,
    c: (*mut f32, usize),
    slope: Option<(*mut f32, usize)>,
) {
    for row in 0..rows {
        for v in 0..vectors {
            // SAFETY: the caller's.
            unsafe {
                let at = c.0.add(row * c.1 + v * LANES);
                let x = simd.load_ptr(at);
                match slope {
                    None => simd.store_ptr(math::gelu(simd, x, gelu), at),
                    Some(slope) => {
                        let (y, dy) = math::gelu_slope(simd, x, gelu);
                        simd.store_ptr(y, at);
                        simd.store_ptr(dy, slope.0.add(row * slope.1 + v * LANES));
                    }
                }
            }
        }
    }
}
