//! SVD through a bidiagonal matrix.

mod divide;
mod reduce;
mod secular;
mod sweep;

use faer::Mat;

use crate::scalar::Scalar;

/// `(U, s, V)` of a finite, balanced matrix with `m ≥ n ≥ 1`: shapes `m × n`, `n`, `n × n`, signs unspecified.
pub(super) fn svd<T: Scalar>(a: Mat<T>) -> (Mat<T>, Vec<T>, Mat<T>) {
    let (m, n) = a.shape();
    let reduced = reduce::reduce(a);
    // The transpose is lower bidiagonal, so left and right are exchanged.
    let (mut v, s, small) = divide::svd(&reduced.diagonal, &reduced.off);
    reduced.right.apply(v.as_mut());
    drop(reduced.right);
    let mut u = Mat::zeros(m, n);
    u.as_mut().subrows_mut(0, n).copy_from(&small);
    drop(small);
    reduced.left.apply(u.as_mut());
    (u, s.into_iter().map(T::of).collect(), v)
}

/// `(s, V)` of a finite, balanced matrix with `m ≥ n ≥ 1`.
pub(super) fn right<T: Scalar>(a: Mat<T>) -> (Vec<T>, Mat<T>) {
    let reduce::Reduced { diagonal, off, right, .. } = reduce::reduce(a);
    let (mut v, s) = divide::left(&diagonal, &off);
    right.apply(v.as_mut());
    (s.into_iter().map(T::of).collect(), v)
}

/// Singular values of a finite, balanced matrix with `m ≥ n ≥ 1`.
pub(super) fn values<T: Scalar>(a: Mat<T>) -> Vec<T> {
    let reduced = reduce::reduce(a);
    divide::values::<T>(&reduced.diagonal, &reduced.off).into_iter().map(T::of).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;
    use crate::matrix::product;
    use crate::random::NormalSource;

    /// Orthonormality, order and backward error, relative to ε.
    #[track_caller]
    fn check<T: Scalar>(a: &Mat<T>, (u, s, v): &(Mat<T>, Vec<T>, Mat<T>)) {
        let n = a.ncols();
        let tolerance = 16.0 * T::EPSILON * (a.nrows() as f64).sqrt();
        for vectors in [u, v] {
            let gram = product(vectors.transpose(), vectors.as_ref());
            let off = gram - Mat::<T>::identity(n, n);
            assert!(off.norm_max().widen() <= tolerance, "{:e} > {tolerance:e}", off.norm_max());
        }
        assert!(s.windows(2).all(|pair| pair[0] >= pair[1]) && s[n - 1] >= T::default());
        let us = Mat::from_fn(a.nrows(), n, |i, j| u[(i, j)] * s[j]);
        let off = product(us.as_ref(), v.transpose()) - a;
        let allowed = tolerance * s[0].widen();
        assert!(off.norm_max().widen() <= allowed, "{:e} > {allowed:e}", off.norm_max());
        let (with_right, right) = right(a.clone());
        for alone in [values(a.clone()), with_right] {
            let off = s.iter().zip(&alone).map(|(x, y)| (x.widen() - y.widen()).abs()).fold(0.0, f64::max);
            assert!(off <= allowed, "values alone: {off:e} > {allowed:e}");
        }
        assert!((right - v).norm_max().widen() <= tolerance, "right vectors alone");
    }

    fn check_both(a: &Mat<f64>) {
        check(a, &svd(a.clone()));
        let a = Mat::from_fn(a.nrows(), a.ncols(), |i, j| a[(i, j)] as f32);
        check(&a, &svd(a.clone()));
    }

    fn bidiagonal(diagonal: &[f64], off: &[f64]) -> Mat<f64> {
        Mat::from_fn(diagonal.len(), diagonal.len(), |i, j| match j.wrapping_sub(i) {
            0 => diagonal[i],
            1 => off[i],
            _ => 0.0,
        })
    }

    #[rstest]
    fn any_shape(
        #[values((1, 1), (2, 1), (2, 2), (3, 2), (5, 5), (17, 16), (33, 33), (150, 130), (260, 257))] shape: (
            usize,
            usize,
        ),
    ) {
        check_both(&NormalSource::new(1).matrix(shape.0, shape.1));
    }

    #[rstest]
    #[case::equal_values(Mat::from_fn(120, 120, |i, j| if (i * 7) % 120 == j { 3.0 } else { 0.0 }))]
    #[case::ones(Mat::ones(90, 70))]
    #[case::zeros(Mat::zeros(30, 20))]
    #[case::one_entry(Mat::from_fn(40, 40, |i, j| f64::from(u8::from((i, j) == (17, 31)))))]
    #[case::low_rank(Mat::from_fn(100, 80, |i, j| ((i * (j / 9)) % 5) as f64))]
    #[case::jordan_block(bidiagonal(&[1.0; 200], &[1.0; 199]))]
    #[case::nilpotent(bidiagonal(&[0.0; 130], &[1.0; 129]))]
    #[case::split_in_two(bidiagonal(&[1.0; 64], &core::array::from_fn::<_, 63, _>(|i| f64::from(u8::from(i != 31)))))]
    #[case::graded(bidiagonal(
        &core::array::from_fn::<_, 100, _>(|i| 0.7_f64.powi(i as i32)),
        &core::array::from_fn::<_, 99, _>(|i| 0.69_f64.powi(i as i32)),
    ))]
    #[case::growing(bidiagonal(
        &core::array::from_fn::<_, 100, _>(|i| 1.5_f64.powi(i as i32 - 99)),
        &core::array::from_fn::<_, 99, _>(|i| 1.4_f64.powi(i as i32 - 99)),
    ))]
    // Pairs of eigenvalues that agree to many digits (Wilkinson 1965).
    #[case::wilkinson(bidiagonal(
        &core::array::from_fn::<_, 101, _>(|i| (50.0 - i as f64).abs()),
        &[1.0; 100],
    ))]
    #[case::nearly_equal(bidiagonal(
        &core::array::from_fn::<_, 96, _>(|i| 1.0 + 1e-13 * i as f64),
        &[1e-9; 95],
    ))]
    fn hard_cases(#[case] a: Mat<f64>) {
        check_both(&a);
    }

    #[test]
    fn values_are_known() {
        // Singular values of the n × n Jordan block with ones: 2·cos(k·π / (2n + 1)), k = 1 to n.
        let n = 300;
        let a = bidiagonal(&vec![1.0; n], &vec![1.0; n - 1]);
        let (_, s, _) = svd(a);
        for (k, s) in (1..).zip(&s) {
            let known = 2.0 * (k as f64 * core::f64::consts::PI / (2 * n + 1) as f64).cos();
            assert!((s - known).abs() < 1e-14, "{k}: {s} is not {known}");
        }
    }

    #[test]
    fn threads_change_nothing_but_time() {
        let a = NormalSource::new(4).matrix::<f32>(200, 180);
        let alone = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let (u, s, v) = alone.install(|| svd(a.clone()));
        let (p, t, q) = three.install(|| svd(a.clone()));
        assert!(s.iter().zip(&t).all(|(x, y)| (x - y).abs() <= 1e-5 * s[0]));
        check(&a, &(u, s, v));
        check(&a, &(p, t, q));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        /// Two diagonals of zero, tiny, equal or arbitrary numbers.
        #[test]
        fn any_two_diagonals(entries in prop::collection::vec(
            prop_oneof![
                2 => Just(0.0),
                3 => Just(1.0),
                1 => Just(-1.0),
                2 => (-18..18).prop_map(|e: i32| 10_f64.powi(e)),
                4 => -1.0..1.0,
            ],
            1..120,
        )) {
            let (diagonal, off) = entries.split_at(entries.len().div_ceil(2));
            check_both(&bidiagonal(diagonal, &off[..diagonal.len() - 1]));
        }
    }
}
