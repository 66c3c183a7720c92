//! The dense kernels of faer, compiled only here.
//!
//! They are methods of a sealed trait with one body for each element type, so that faer's generic code
//! becomes part of this crate instead of every crate that calls it, which saves build time.

use faer::dyn_stack::{MemBuffer, MemStack};
use faer::linalg::cholesky::llt::factor::{cholesky_in_place, cholesky_in_place_scratch};
use faer::linalg::evd::{ComputeEigenvectors, self_adjoint_evd, self_adjoint_evd_scratch};
use faer::linalg::matmul::matmul;
use faer::linalg::matmul::triangular::{self, BlockStructure};
use faer::linalg::triangular_solve::solve_lower_triangular_in_place;
use faer::traits::RealField;
use faer::{Accum, Mat, MatMut, MatRef, Par};
use pulp::Arch;

use crate::pass::Pass;

/// Dense kernels of one element type. `None` means that a pivot was not positive.
pub trait Dense: RealField + Copy {
    /// `C ← α·A·B` or `C ← C + α·A·B`.
    fn gemm(
        out: MatMut<'_, Self>,
        accumulate: Accum,
        a: MatRef<'_, Self>,
        b: MatRef<'_, Self>,
        alpha: Self,
        par: Par,
    );

    /// Lower triangle of `AᵀA`; the strict upper triangle is zero.
    fn gram(a: MatRef<'_, Self>, par: Par) -> Mat<Self>;

    /// Product of two upper triangular matrices.
    fn upper_product(a: MatRef<'_, Self>, b: MatRef<'_, Self>, par: Par) -> Mat<Self>;

    /// Lower Cholesky factor, in place.
    fn cholesky(a: MatMut<'_, Self>, par: Par) -> Option<()>;

    /// `X ← L⁻¹·X` for a lower triangular `L`.
    fn solve_lower(lower: MatRef<'_, Self>, x: MatMut<'_, Self>, par: Par);

    /// One pass of a bidiagonal reduction.
    #[doc(hidden)]
    fn sweep(pass: Pass<'_, Self>);
}

macro_rules! implement {
    ($($scalar:ty),*) => {$(
        impl Dense for $scalar {
            fn gemm(
                out: MatMut<'_, Self>,
                accumulate: Accum,
                a: MatRef<'_, Self>,
                b: MatRef<'_, Self>,
                alpha: Self,
                par: Par,
            ) {
                matmul(out, accumulate, a, b, alpha, par);
            }

            fn gram(a: MatRef<'_, Self>, par: Par) -> Mat<Self> {
                let structures = (BlockStructure::TriangularLower, BlockStructure::Rectangular);
                triangular_product(structures, a.transpose(), a, 1.0, par)
            }

            fn upper_product(a: MatRef<'_, Self>, b: MatRef<'_, Self>, par: Par) -> Mat<Self> {
                let structures = (BlockStructure::TriangularUpper, BlockStructure::TriangularUpper);
                triangular_product(structures, a, b, 1.0, par)
            }

            fn cholesky(a: MatMut<'_, Self>, par: Par) -> Option<()> {
                let scratch = cholesky_in_place_scratch::<Self>(a.nrows(), par, Default::default());
                let mut memory = MemBuffer::new(scratch);
                let stack = MemStack::new(&mut memory);
                cholesky_in_place(a, Default::default(), par, stack, Default::default()).ok().map(drop)
            }

            fn solve_lower(lower: MatRef<'_, Self>, x: MatMut<'_, Self>, par: Par) {
                solve_lower_triangular_in_place(lower, x, par);
            }

            fn sweep(pass: Pass<'_, Self>) {
                Arch::new().dispatch(pass);
            }
        }
    )*};
}

implement!(f32, f64);

/// `A·B` if only a triangle of the result is needed, or both operands are triangular.
fn triangular_product<T: RealField>(
    (result, operands): (BlockStructure, BlockStructure),
    a: MatRef<'_, T>,
    b: MatRef<'_, T>,
    one: T,
    par: Par,
) -> Mat<T> {
    let mut out = Mat::zeros(a.nrows(), b.ncols());
    triangular::matmul(out.as_mut(), result, Accum::Replace, a, operands, b, operands, one, par);
    out
}

/// Eigenvalues in nondecreasing order and eigenvectors of the symmetric matrix in the lower triangle; `None`
/// if the iteration does not converge.
pub(crate) fn symmetric_eigen(a: MatRef<'_, f64>, par: Par) -> Option<(Vec<f64>, Mat<f64>)> {
    let n = a.nrows();
    let mut values = faer::diag::Diag::<f64>::zeros(n);
    let mut vectors = Mat::zeros(n, n);
    let scratch = self_adjoint_evd_scratch::<f64>(n, ComputeEigenvectors::Yes, par, Default::default());
    let mut memory = MemBuffer::new(scratch);
    let stack = MemStack::new(&mut memory);
    self_adjoint_evd(a, values.as_mut(), Some(vectors.as_mut()), par, stack, Default::default()).ok()?;
    Some((values.column_vector().iter().copied().collect(), vectors))
}
