//! One pass over a matrix for both products that a step of the bidiagonal reduction needs.

use rayon::prelude::*;

use crate::pass::{Pass, Step, TOGETHER};
use crate::scalar::Scalar;

/// From this number of elements on a pass runs on several threads.
const PARALLEL: usize = 1 << 20;

/// Alignment of the rows of a pass in elements: one cache line for both types.
pub(super) const ALIGNED: usize = 16;

/// `y ← τ·(Aᵀu − y)`, `row ← a_head − row − y`, and `A·row` in the first of `sums`.
///
/// Both products read the matrix once, whereas LAPACK's `labrd` reads it twice (Howell, Demmel, Fulton,
/// Hammarling, Marmol 2008).
pub(super) fn sweep<T: Scalar>(step: Step<'_, T>, y: &mut [T], row: &mut [T], sums: &mut Vec<Vec<T>>) {
    let (rows, cols) = (step.u.len(), y.len());
    let threads = if rows * cols < PARALLEL { 1 } else { rayon::current_num_threads() };
    let width = cols.div_ceil(threads).next_multiple_of(TOGETHER);
    sums.resize_with(cols.div_ceil(width), Vec::new);
    let part = |skipped: usize, y: &mut [T], row: &mut [T], sum: &mut Vec<T>| {
        sum.clear();
        sum.resize(rows, T::default());
        T::sweep(Pass { step: Step { left: step.left + skipped, ..step }, y, row, sum });
    };
    if sums.len() == 1 {
        return part(0, y, row, &mut sums[0]);
    }
    let parts = y.par_chunks_mut(width).zip(row.par_chunks_mut(width)).zip(sums.par_iter_mut());
    parts.enumerate().for_each(|(i, ((y, row), sum))| part(i * width, y, row, sum));
    let (first, others) = sums.split_at_mut(1);
    for other in others {
        first[0].iter_mut().zip(other).for_each(|(x, &mut y)| *x += y);
    }
}

#[cfg(test)]
mod tests {
    use faer::Mat;
    use rstest::rstest;

    use super::*;
    use crate::matrix::product;
    use crate::random::NormalSource;

    /// Sizes of one thread and of several, with and without columns and rows left over.
    #[rstest]
    #[case(40, 30, 1)]
    #[case(33, 29, 3)]
    #[case(1100, 1003, 3)]
    fn both_products_of_a_pass(#[case] rows: usize, #[case] cols: usize, #[case] threads: usize) {
        let mut source = NormalSource::new(1);
        let (a, top, left, head) = (source.matrix::<f64>(rows + 20, cols + 5), 16, 5, 20);
        let mut u = source.matrix::<f64>(rows + 4, 1);
        u.as_mut().subrows_mut(0, head - top).fill(0.0);
        let known = source.matrix::<f64>(cols, 2);
        let mut y = known.col_as_slice(0).to_vec();
        let mut row = known.col_as_slice(1).to_vec();
        let mut sums = Vec::new();
        let step = Step { a: &a, top, left, head, u: u.col_as_slice(0), tau: 1.5 };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| sweep(step, &mut y, &mut row, &mut sums));

        let part = a.as_ref().submatrix(top, left, rows + 4, cols);
        let dots = product(part.transpose(), u.as_ref());
        for j in 0..cols {
            let expected = 1.5 * (dots[(j, 0)] - known[(j, 0)]);
            assert!((y[j] - expected).abs() < 1e-11 * rows as f64, "y {j}");
            assert!((row[j] - (a[(head, left + j)] - known[(j, 1)] - y[j])).abs() < 1e-12, "row {j}");
        }
        let weights = Mat::from_fn(cols, 1, |j, _| row[j]);
        let products = product(part, weights.as_ref());
        let worst = (0..rows + 4).map(|i| (sums[0][i] - products[(i, 0)]).abs()).fold(0.0, f64::max);
        assert!(worst < 1e-9 * cols as f64, "{worst:e}");
        assert_eq!(sums.len() > 1, rows * cols >= PARALLEL && threads > 1);
    }
}
