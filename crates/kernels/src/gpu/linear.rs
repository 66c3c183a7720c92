//! Products of floats whose factors are rounded to 16 bits, with sums and results in f32.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::ir::StorageType;
use burn_cubecl::kernel::cast;
use burn_cubecl::kernel::matmul::{MatmulStrategy, matmul};
use burn_cubecl::tensor::CubeTensor;

use super::launch::dims2;
use crate::precision::Precision;

/// Rows with which a product takes as long as rounding its right factor.
const FEW: usize = 8;

/// `a·b` in f32 from factors in this precision; `None` where the composed product is to be taken: in f32, of nothing, of
/// factors that are not floats, of few rows with an f32 factor, or on a device without the type.
pub(super) fn product<R: CubeRuntime>(
    a: &CubeTensor<R>,
    b: &CubeTensor<R>,
    precision: Precision,
) -> Option<CubeTensor<R>> {
    let is_plain = |x: &CubeTensor<R>| x.qparams.is_none() && x.dtype.is_float() && !dims2(x).contains(&0);
    if precision == Precision::F32 || a.dtype != DType::F32 || !is_plain(a) || !is_plain(b) {
        return None;
    }
    let is_short = dims2(a)[0] <= FEW && b.dtype == DType::F32;
    if is_short || !a.client.properties().supports_type(StorageType::from(precision.dtype())) {
        return None;
    }
    let [a, b] = [a, b].map(|x| cast(x.clone(), precision.dtype()));
    matmul(a, b, None, MatmulStrategy::default(), DType::F32).ok()
}

#[cfg(test)]
mod tests {
    use burn::tensor::backend::Backend;
    use burn::tensor::{Tensor, TensorPrimitive};
    use rstest::rstest;

    use super::*;
    use crate::tests::{Gpu, assert_close, random, values};

    #[rstest]
    #[case(Precision::F16, 11)]
    #[case(Precision::Bf16, 8)]
    fn factors_are_rounded_and_sums_are_not(
        #[case] precision: Precision,
        #[case] bits: i32,
        #[values([9, 64, 33], [40, 100, 24])] shape: [usize; 3],
    ) {
        if !Gpu::supports_dtype(&Default::default(), precision.dtype()) {
            return;
        }
        let [m, k, n] = shape;
        let (a, b) = (random::<Gpu, 2>([m, k], 1), random::<Gpu, 2>([k, n], 2));
        let rounded = |x: &Tensor<Gpu, 2>| x.clone().cast(precision.dtype()).cast(DType::F32);
        let primitive = |x: Tensor<Gpu, 2>| x.into_primitive().tensor();
        let product = product(&primitive(a.clone()), &primitive(b.clone()), precision).unwrap();
        assert_eq!(product.dtype, DType::F32);
        let product = values(Tensor::<Gpu, 2>::from_primitive(TensorPrimitive::Float(product)));
        let of_rounded = values(rounded(&a).matmul(rounded(&b)));
        assert_close(&product, &of_rounded, 1e-5, "the product of rounded factors");
        let exact = values(a.matmul(b));
        let worst = product.iter().zip(&exact).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
        let unit = 2.0_f64.powi(-bits);
        assert!(worst > 0.01 * unit && worst < 2.0 * unit * k as f64, "{worst}");
    }

    #[test]
    fn single_precision_and_empty_factors_are_left_to_the_composed_product() {
        let of = |shape, precision| {
            let x = random::<Gpu, 2>(shape, 1).into_primitive().tensor();
            product(&x, &x, precision).is_none()
        };
        assert!(of([40, 40], Precision::F32) && of([0, 0], Precision::Bf16) && of([8, 8], Precision::F16));
    }
}
