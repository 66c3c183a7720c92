//! Dropout: its statistics, and the same mask in all passes and backends.

use burn::tensor::Tensor;
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_ndarray::NdArray;
use rstest::rstest;

use super::{Exact, on_backends, tensor, values};
use crate::kernels::Kernels;
use crate::ops::dropout;
use crate::spec::Dropout;

fn ones<B: Kernels>(rows: usize, columns: usize) -> Tensor<B, 2> {
    tensor(vec![1.0; rows * columns], [rows, columns])
}

#[rstest]
fn each_backend_keeps_what_the_mask_says(#[values(0.0, 0.1, 0.5, 0.95)] p: f32) {
    fn check<B: Kernels>(d: Dropout) {
        let kept = values(dropout(ones::<B>(19, 37), d));
        for (row, kept) in kept.chunks(37).enumerate() {
            let keep = d.row_mask(row as u64);
            for (column, &got) in kept.iter().enumerate() {
                let expected = if keep(column as u32) { f64::from(d.scale()) } else { 0.0 };
                assert_eq!(got as f32, expected as f32, "row {row}, column {column}");
            }
        }
    }
    let d = Dropout { p, seed: 3 };
    on_backends!(check(d));
    check::<Exact>(d);
}

#[test]
fn the_gradient_is_dropped_like_the_value() {
    fn check<B: Kernels>() {
        let d = Dropout { p: 0.4, seed: 9 };
        let x = ones::<Autodiff<B>>(30, 50).require_grad();
        let y = dropout(x.clone(), d);
        let grad = x.grad(&y.clone().sum().backward()).unwrap();
        assert_eq!(values(grad), values(y));
    }
    on_backends!(check());
    check::<Exact>();
}

/// Counts are within five standard deviations, for rows, columns, neighbours and other seeds.
#[test]
fn masks_look_random() {
    let (rows, columns, p) = (256, 1024, 0.3);
    let mask = |seed| -> Vec<bool> {
        let d = Dropout { p: p as f32, seed };
        (0..rows)
            .flat_map(|row| {
                let keep = d.row_mask(row as u64);
                (0..columns).map(move |column| keep(column as u32))
            })
            .collect()
    };
    let masks: Vec<Vec<bool>> = (0..4).map(mask).collect();
    let check = |count: usize, total: usize, probability: f64, what: &str| {
        let total = total as f64;
        let deviation = (total * probability * (1.0 - probability)).sqrt();
        let off = (count as f64 - total * probability).abs() / deviation;
        assert!(off < 5.0, "{what}: {count} of {total}, {off} standard deviations off");
    };
    let keep = 1.0 - p;
    for (seed, kept) in masks.iter().enumerate() {
        check(kept.iter().filter(|&&kept| kept).count(), kept.len(), keep, "all");
        for row in 0..rows {
            let count = kept[row * columns..][..columns].iter().filter(|&&kept| kept).count();
            check(count, columns, keep, "row");
        }
        for column in 0..columns {
            let count = (0..rows).filter(|row| kept[row * columns + column]).count();
            check(count, rows, keep, "column");
        }
        for lag in [1, 2, 3, 16, columns] {
            let pairs = kept.iter().zip(&kept[lag..]);
            check(pairs.filter(|(a, b)| **a && **b).count(), kept.len() - lag, keep * keep, "neighbours");
        }
        for other in &masks[seed + 1..] {
            let pairs = kept.iter().zip(other);
            check(pairs.filter(|(a, b)| **a && **b).count(), kept.len(), keep * keep, "other seed");
        }
    }
}

#[test]
fn nothing_is_dropped_at_probability_zero() {
    let d = Dropout { p: 0.0, seed: 1 };
    assert!(values(dropout(ones::<Flex>(40, 40), d)).iter().all(|&x| x == 1.0));
    assert!(values(dropout(ones::<NdArray>(40, 40), d)).iter().all(|&x| x == 1.0));
}
