//! Merging an adapter into a two-factor weight: concatenated, then truncated to the same rank, never dense.

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::AdapterSet;
use lowrank_adapters::peft::host_values;
use lowrank_factor::matrix::from_row_major;
use lowrank_factor::{FactorError, LowRank, SigmaPlacement, Truncation, svd};

/// The best factors of the same rank for `A·B + ΔW`.
///
/// # Shapes
/// - `a`: `[d_input, rank]`, `b`: `[rank, d_output]`, like the result
///
/// # Errors
/// Values that are not finite.
pub(crate) fn merge_factors<B: Backend>(
    adapters: &AdapterSet<B>,
    site: usize,
    a: Tensor<B, 2>,
    b: Tensor<B, 2>,
) -> Result<[Tensor<B, 2>; 2], FactorError> {
    let device = a.device();
    let rank = a.dims()[1];
    let truncation = Truncation::Rank(rank.min(a.dims()[0]).min(b.dims()[1]));
    let fit = match adapters.pair(site) {
        Some(pair) => {
            let left = host(Tensor::cat(vec![a, pair.a], 1))?;
            let right = host(Tensor::cat(vec![b, pair.b], 0))?;
            LowRank::new(left, right)?.recompress(&truncation, SigmaPlacement::Split)?
        }
        // A magnitude, or a full-size correction, is not a pair of thin factors.
        None => match adapters.merged_weight(site, &a.clone().matmul(b.clone())) {
            Some(merged) => {
                svd::exact(host(merged)?.as_ref())?.low_rank(&truncation, SigmaPlacement::Split)?
            }
            None => return Ok([a, b]),
        },
    };
    let shapes =
        [[fit.factors.left().nrows(), fit.factors.rank()], [fit.factors.rank(), fit.factors.right().ncols()]];
    let (left, right) = fit.factors.to_row_major();
    let tensor = |values: Vec<f32>, shape| Tensor::from_data(TensorData::new(values, shape), &device);
    Ok([tensor(left, shapes[0]), tensor(right, shapes[1])])
}

fn host<B: Backend>(tensor: Tensor<B, 2>) -> Result<lowrank_factor::Mat<f32>, FactorError> {
    let [rows, columns] = tensor.dims();
    Ok(from_row_major(&host_values(tensor.detach()), rows, columns)?.to_owned())
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use lowrank_adapters::{AdapterConfig, Init, Method, NoWeights, Pattern, Site, Targets};

    use super::*;

    /// An update of rank 1 over factors of rank 3 whose product has rank 2: the merged product is exact.
    #[test]
    fn what_fits_the_rank_is_kept_exactly() {
        let device = Default::default();
        let wave = |n: usize, k: f64| (0..n).map(|i| (i as f64 * k).sin() as f32).collect::<Vec<_>>();
        let tensor =
            |values, shape: [usize; 2]| Tensor::<Flex, 2>::from_data(TensorData::new(values, shape), &device);
        let mut a = wave(7 * 3, 0.7);
        // The third direction vanishes.
        a.iter_mut().skip(2).step_by(3).for_each(|x| *x = 0.0);
        let (a, b) = (tensor(a, [7, 3]), tensor(wave(3 * 5, 1.3), [3, 5]));
        let site = Site {
            path: "m.0.q".into(),
            layer: Some(0),
            d_input: 7,
            d_output: 5,
            head: false,
            ..Site::default()
        };
        let targets = Targets::new(Pattern::parse("q"));
        let config =
            AdapterConfig { rank: 1, init: Init::Normal, ..AdapterConfig::new(Method::LOTR, targets) };
        let set = AdapterSet::init(&config, &[site], &NoWeights, &device).unwrap();
        let [left, right] = merge_factors(&set, 0, a.clone(), b.clone()).unwrap();
        assert_eq!((left.dims(), right.dims()), ([7, 3], [3, 5]));
        let expected = a.clone().matmul(b.clone()) + set.delta_weight(0).unwrap();
        let difference = host_values(left.matmul(right) - expected);
        assert!(difference.iter().all(|d| d.abs() < 1e-5), "{difference:?}");
        // Disabled adapters are not merged.
        let mut off = set.clone();
        off.set_all_enabled(false);
        let [left, right] = merge_factors(&off, 0, a.clone(), b.clone()).unwrap();
        assert_eq!([host_values(left), host_values(right)], [host_values(a), host_values(b)]);
    }
}
