//! Matrix products of any layout: `C = Σ A·B + bias`, with a fused activation.
//!
//! *Algorithm*: register tiles as in BLIS (Van Zee & van de Geijn 2015). B is copied in panels as wide as a
//! tile and [`BLOCK_K`] deep, just before it is used; A is read in place.
//!
//! *Reproducibility*: each element of C is one chain of fused multiply-adds in the order of k, starting from
//! zero; the bias is added at the end. Blocking stores and reloads the chain's value, which is exact. So the
//! result does not depend on the machine's vectors, the number of threads or the block sizes. An accumulating
//! product starts its chains from the values in C.

pub(super) mod pack;
pub(super) mod tile;

use super::buffer::Buffer;
use super::simd::{Kernel, LANES, Simd, dispatch};
use super::team;
use crate::spec::Gelu;

use pack::Panels;
pub(crate) use pack::Weights;
use tile::Strip;

/// Depth of the panels of B: one of them about fills the L1 cache.
const BLOCK_K: usize = 384;

/// Rows of A that all panels of B are multiplied with before the next ones: with [`BLOCK_K`] columns they fit in the L2
/// cache.
const BLOCK_ROWS: usize = 448;

/// Maximum number of rows of A per copied panel of B.
const UNIT_ROWS: usize = 2 * BLOCK_ROWS;

/// Most columns of B that are copied at once; with [`BLOCK_K`] rows they also fit in the L2 cache.
const BLOCK_COLUMNS: usize = 192;

/// Floating-point operations below which a second thread does not pay.
const ALONE: usize = 400_000;

/// The left factor, `[m, k]`.
#[derive(Clone, Copy)]
pub(crate) enum Left<'a> {
    /// Row-major: `a[i·k + p]`.
    Rows(&'a [f32]),
    /// Column-major: `a[p·m + i]`, a transposed matrix.
    Columns(&'a [f32]),
}

/// The right factor, `[k, n]`.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a> {
    /// The elements, row-major.
    pub(crate) weights: Weights<'a>,
    /// Whether the rows are those of the transpose.
    pub(crate) transposed: bool,
    /// Distance between rows.
    pub(crate) stride: usize,
}

impl<'a> Right<'a> {
    /// A `[k, n]` matrix.
    pub(crate) fn new(weights: Weights<'a>, [_, n]: [usize; 2]) -> Self {
        Self { weights, transposed: false, stride: n }
    }

    /// A `[k, n]` matrix given by its transpose.
    pub(crate) fn of_transpose(weights: Weights<'a>, [k, _]: [usize; 2]) -> Self {
        Self { weights, transposed: true, stride: k }
    }
}

/// One product `A·B` with the length of its sums.
#[derive(Clone, Copy)]
pub(crate) struct Product<'a> {
    pub(crate) a: Left<'a>,
    pub(crate) b: Right<'a>,
    pub(crate) k: usize,
}

/// Operations on a finished sum.
#[derive(Clone, Copy, Default)]
pub(crate) struct Finish<'a> {
    /// Added to each row.
    pub(crate) bias: Option<&'a [f32]>,
    /// Applied last.
    pub(crate) gelu: Option<Gelu>,
}

/// Computes `Σ A·B + bias` over the products, `[m, n]`, and writes all of `c`.
///
/// With `slope`, which needs an activation, the activation's slopes are written to it.
pub(crate) fn gemm(
    [m, n]: [usize; 2],
    products: &[Product<'_>],
    finish: Finish<'_>,
    c: &mut Buffer,
    slope: Option<&mut Buffer>,
) {
    assert!(c.len() == m * n && finish.bias.is_none_or(|bias| bias.len() == n));
    assert!(slope.as_ref().is_none_or(|slope| slope.len() == m * n && finish.gelu.is_some()));
    let slope = slope.map(Buffer::as_mut_ptr);
    start(Gemm { m, n, products, finish, accumulate: false, c: c.as_mut_ptr(), slope });
}

/// Computes `Σ A·B + bias` over the products, `[m, n]`, into `c`; with `accumulate`, `c + Σ A·B + bias`.
pub(crate) fn gemm_into(
    [m, n]: [usize; 2],
    products: &[Product<'_>],
    bias: Option<&[f32]>,
    accumulate: bool,
    c: &mut [f32],
) {
    assert!(c.len() == m * n && bias.is_none_or(|bias| bias.len() == n));
    let finish = Finish { bias, gelu: None };
    start(Gemm { m, n, products, finish, accumulate, c: c.as_mut_ptr(), slope: None });
}

fn start(gemm: Gemm<'_>) {
    let (m, n) = (gemm.m, gemm.n);
    for Product { a: Left::Rows(a) | Left::Columns(a), b, k } in gemm.products {
        assert!(
            a.len() == m * k && b.weights.len() == k * n && b.stride == if b.transposed { *k } else { n }
        );
    }
    if m > 0 && n > 0 {
        dispatch(gemm);
    }
}

/// A call of [`gemm`] or [`gemm_into`] whose results have the right lengths.
#[derive(Clone, Copy)]
struct Gemm<'a> {
    m: usize,
    n: usize,
    products: &'a [Product<'a>],
    finish: Finish<'a>,
    /// Whether the product is added to C.
    accumulate: bool,
    c: *mut f32,
    slope: Option<*mut f32>,
}

// SAFETY: units of work write disjoint parts of `c` and `slope`.
unsafe impl Sync for Gemm<'_> {}
// SAFETY: the pointers come from exclusive borrows that outlive the computation.
unsafe impl Send for Gemm<'_> {}

impl Kernel for Gemm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let k: usize = self.products.iter().map(|product| product.k).sum();
        let work = 2 * self.m * self.n * k;
        let plan =
            Plan::new([self.m, self.n], [S::TILE_ROWS, S::TILE_VECTORS * LANES], work, team::threads());
        team::for_each(plan.units(), work > ALONE, |unit| {
            let mut panels = Panels::take();
            dispatch(Unit { gemm: &self, plan, unit, panels: &mut panels });
            panels.put_back();
        });
    }
}

/// Partition of a product into units of work.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Plan {
    /// Rows and columns of C.
    shape: [usize; 2],
    /// Rows and columns of a unit, except the last ones.
    block: [usize; 2],
    /// Units in each direction.
    grid: [usize; 2],
}

impl Plan {
    fn new([m, n]: [usize; 2], [tile_rows, tile_columns]: [usize; 2], work: usize, threads: usize) -> Self {
        let panels = n.div_ceil(tile_columns);
        // Several units per thread balance the load, but a short one does not pay for a copy of B.
        let wanted = (work / (2 * ALONE)).clamp(1, 4 * threads);
        let most = BLOCK_COLUMNS / tile_columns;
        let has_many = |rows: usize| m.div_ceil(rows) * panels.div_ceil(most) >= 2 * threads;
        let mut row_blocks = m.div_ceil(if has_many(UNIT_ROWS) { UNIT_ROWS } else { BLOCK_ROWS });
        let column_groups = wanted.div_ceil(row_blocks).min(panels);
        let column_groups = column_groups.max(panels.div_ceil(most));
        let panels_a_group = panels.div_ceil(column_groups);
        let column_groups = panels.div_ceil(panels_a_group);
        if row_blocks * column_groups < threads {
            row_blocks =
                wanted.min(threads).div_ceil(column_groups).min(m.div_ceil(tile_rows)).max(row_blocks);
        }
        // Rows are distributed evenly over the blocks, in whole tiles.
        let rows = m.div_ceil(tile_rows).div_ceil(row_blocks) * tile_rows;
        let block = [rows, panels_a_group * tile_columns];
        Self { shape: [m, n], block, grid: [m.div_ceil(rows), column_groups] }
    }

    fn units(&self) -> usize {
        self.grid[0] * self.grid[1]
    }

    /// Rows and columns of a unit.
    fn ranges(&self, unit: usize) -> [std::ops::Range<usize>; 2] {
        let place = [unit / self.grid[1], unit % self.grid[1]];
        [0, 1].map(|axis| {
            let start = place[axis] * self.block[axis];
            start..(start + self.block[axis]).min(self.shape[axis])
        })
    }
}

/// One unit of work.
struct Unit<'a> {
    gemm: &'a Gemm<'a>,
    plan: Plan,
    unit: usize,
    panels: &'a mut Panels,
}

impl Kernel for Unit<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { gemm: &Gemm { m, n, products, finish, accumulate, c, slope }, plan, unit, panels } = self;
        let [rows, columns] = plan.ranges(unit);
        let width = S::TILE_VECTORS * LANES;
        let in_place = rows.len() <= S::TILE_ROWS;
        let blocks = rows.len().div_ceil(BLOCK_ROWS);
        let empty = [Product { a: Left::Rows(&[]), b: Right::new(Weights::F32(&[]), [0, n]), k: 0 }];
        let products = if products.iter().all(|product| product.k == 0) { &empty } else { products };
        let steps: usize = products.iter().map(|product| product.k.div_ceil(BLOCK_K).max(1)).sum();
        let mut step = 0;
        for product in products {
            for first_k in (0..product.k.max(1)).step_by(BLOCK_K) {
                let ks = first_k..product.k.min(first_k + BLOCK_K);
                let finish = if step + 1 == steps { finish } else { Finish::default() };
                let is_first = step == 0 && !accumulate;
                step += 1;
                let places = panels.fill(simd, &product.b, ks.clone(), columns.clone(), width, in_place);
                let first_row = |block: usize| rows.start + rows.len() * block / blocks;
                for block in 0..blocks {
                    let rows = first_row(block)..first_row(block + 1);
                    let (a, by_columns) = match product.a {
                        Left::Rows(a) => {
                            ((a.as_ptr().wrapping_add(rows.start * product.k + first_k), product.k), false)
                        }
                        Left::Columns(a) => ((a.as_ptr().wrapping_add(first_k * m + rows.start), m), true),
                    };
                    for (panel, first_column) in columns.clone().step_by(width).enumerate() {
                        let strip_columns = first_column..columns.end.min(first_column + width);
                        let at = rows.start * n + first_column;
                        let strip = Strip {
                            rows: rows.len(),
                            width: strip_columns.len(),
                            depth: ks.len(),
                            a,
                            by_columns,
                            b: places.get(panel),
                            c: (c.wrapping_add(at), n),
                            is_first,
                            bias: finish.bias.map(|bias| &bias[strip_columns]),
                            gelu: finish.gelu,
                            slope: slope.map(|slope| (slope.wrapping_add(at), n)),
                        };
                        // SAFETY: `gemm` or `gemm_into`, and `start`, checked all lengths; these rows and columns are inside of C, and
                        // with `ks` inside of A. No other unit has them.
                        unsafe { tile::multiply(simd, strip) };
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A product in the units of one thread.
    struct Alone<'a>(Gemm<'a>);

    impl Kernel for Alone<'_> {
        type Output = ();

        #[inline(always)]
        fn run<S: Simd>(self, _: S) {
            let gemm = self.0;
            let work = 2 * gemm.m * gemm.n * gemm.products[0].k;
            let plan = Plan::new([gemm.m, gemm.n], [S::TILE_ROWS, S::TILE_VECTORS * LANES], work, 1);
            let [rows, _] = plan.ranges(0);
            assert!(rows.len() > BLOCK_ROWS && plan.units() > 1, "{plan:?}");
            let mut panels = Panels::default();
            for unit in 0..plan.units() {
                dispatch(Unit { gemm: &gemm, plan, unit, panels: &mut panels });
            }
        }
    }

    /// Copies of B for several blocks of rows change no bit of the chain that each element is.
    #[test]
    fn units_of_several_blocks_are_exact() {
        const N: usize = 193;
        const K: usize = 400;
        let values = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed) % 1009) as f32 / 1009.0 - 0.5).collect()
        };
        let (b, bias) = (values(K * N, 1), values(N, 2));
        for (m, accumulate) in [(449, false), (897, true)] {
            let (a, start) = (values(m * K, 3), values(m * N, 4));
            let expected: Vec<f32> = (0..m * N)
                .map(|at| {
                    let (row, column) = (at / N, at % N);
                    let first = if accumulate { start[at] } else { 0.0 };
                    let chain = (0..K).fold(first, |sum, k| a[row * K + k].mul_add(b[k * N + column], sum));
                    chain + bias[column]
                })
                .collect();
            let columns: Vec<f32> = (0..m * K).map(|at| a[at % m * K + at / m]).collect();
            for left in [Left::Rows(&a), Left::Columns(&columns)] {
                let mut c = start.clone();
                let products = [Product { a: left, b: Right::new(Weights::F32(&b), [K, N]), k: K }];
                let finish = Finish { bias: Some(&bias), gelu: None };
                let c_start = c.as_mut_ptr();
                dispatch(Alone(Gemm {
                    m,
                    n: N,
                    products: &products,
                    finish,
                    accumulate,
                    c: c_start,
                    slope: None,
                }));
                assert!(c == expected, "{m} rows");
            }
        }
        // Activations and slopes are those of products of fewer rows.
        let (m, rows) = (449, 60);
        let (a, mut y, mut slope) = (values(m * K, 3), vec![0.0; m * N], vec![0.0; m * N]);
        let b = Right::new(Weights::F32(&b), [K, N]);
        let finish = Finish { bias: Some(&bias), gelu: Some(Gelu::Erf) };
        let (c, slopes) = (y.as_mut_ptr(), Some(slope.as_mut_ptr()));
        let products = [Product { a: Left::Rows(&a), b, k: K }];
        dispatch(Alone(Gemm { m, n: N, products: &products, finish, accumulate: false, c, slope: slopes }));
        for first in [0, 200, m - rows] {
            let part = Left::Rows(&a[first * K..(first + rows) * K]);
            let [mut y_part, mut slope_part] = [0, 1].map(|_| Buffer::new(rows * N));
            gemm([rows, N], &[Product { a: part, b, k: K }], finish, &mut y_part, Some(&mut slope_part));
            // SAFETY: `gemm` writes all of both.
            let parts = unsafe { [y_part.finish(), slope_part.finish()] };
            let range = first * N..(first + rows) * N;
            assert!(parts == [&y[range.clone()], &slope[range]], "rows from {first}");
        }
    }
}
