//! Quantized blocks on a device: their elements bit for bit, products in every form and order, and one upload.

use burn::tensor::{DType, Int, Tensor};
use burn_autodiff::Autodiff;
use rstest::rstest;

use super::blocks::{any_blocks, matrix};
use super::{Gpu, numbers, tensor, values};
use crate::blocks::{BlockFormat, BlockMatrix};
use crate::gpu::blocks::{Plan, dequantized, product};
use crate::ops::{Head, linear_cross_entropy};
use crate::weight::Weight;

/// Scales and offsets in f16: 0.5, 0, -2, the smallest numbers, the largest subnormal and the smallest normal one, the
/// largest, and others.
const FINITE: [u16; 11] =
    [0x3800, 0x0000, 0xc000, 0x0001, 0x8001, 0x03ff, 0x0400, 0x7bff, 0x3c01, 0xb266, 0x8000];
/// With both infinities and NaN.
const ANY: [u16; 8] = [0x3800, 0x7c00, 0x0001, 0xfc00, 0x03ff, 0x7e00, 0xb266, 0x0000];

fn on_device(values: Vec<f64>, shape: [usize; 2]) -> Tensor<Gpu, 2> {
    tensor(values, shape)
}

/// Every format, any bytes; parts of the rows as well as all of them. The number of bytes is rarely a multiple of four.
#[test]
fn elements_are_those_of_the_host_bit_for_bit() {
    let like = on_device(vec![0.0], [1, 1]).into_primitive().tensor();
    for format in BlockFormat::ALL {
        for halves in [&FINITE[..], &ANY] {
            let (rows, blocks) = (11, 3);
            let w = any_blocks(format, [rows, blocks], halves);
            let columns = w.stored_dims()[1];
            let expected = w.to_floats();
            for (start, count) in [(0, rows), (3, 1), (2, 7), (10, 1), (4, 0)] {
                let tile = dequantized(&like, &w, start, count);
                let tile: Tensor<Gpu, 2> = Tensor::from_primitive(burn::tensor::TensorPrimitive::Float(tile));
                let got: Vec<f32> = tile.into_data().into_vec().unwrap();
                let expected = &expected[start * columns..(start + count) * columns];
                assert_eq!(got.len(), expected.len());
                for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                    // The sign of a zero and the bits of a NaN are the device's.
                    let same = got == expected || got.is_nan() && expected.is_nan();
                    assert!(same, "{format}, element {i} from row {start} on is {got}, expected {expected}");
                }
            }
        }
    }
}

/// `x·w` in double precision, and the sums of the magnitudes.
fn reference(x: &[f64], w: &BlockMatrix) -> (Vec<f64>, Vec<f64>) {
    let ([depth, n], floats) = (w.dims(), w.to_floats());
    let terms = |row: &[f64], column: usize| -> Vec<f64> {
        row.iter().enumerate().map(|(i, x)| x * f64::from(floats[i * n + column])).collect()
    };
    x.chunks(depth)
        .flat_map(|row| (0..n).map(move |column| (row, column)))
        .map(|(row, column)| {
            let terms = terms(row, column);
            (terms.iter().sum::<f64>(), terms.iter().map(|term| term.abs()).sum::<f64>())
        })
        .unzip()
}

/// One kernel for few rows, one tile, several tiles with a rest, and a tile for each row; both orientations.
#[rstest]
fn products_are_sums_in_every_form(
    #[values(1, 2, 3, 8, 20)] m: usize,
    #[values(false, true)] transposed: bool,
) {
    for format in BlockFormat::ALL {
        for (rows, blocks) in [(1, 1), (37, 2), (150, 1)] {
            // Without the largest scales, beside which others would vanish.
            let w = any_blocks(format, [rows, blocks], &[0x3800, 0x0000, 0xb400, 0x2c01, 0x3266]);
            let columns = w.stored_dims()[1];
            let w = if transposed { w.transpose() } else { w };
            let x = numbers(m * w.dims()[0], 5);
            let (expected, sizes) = reference(&x, &w);
            let largest = sizes.iter().fold(1e-6_f64, |max, size| max.max(*size));
            let in_tiles = [(0, 1 << 22), (0, 17 * columns), (0, 3 * columns), (0, 1)];
            let in_tiles = if rows == 37 && m != 2 { &in_tiles[..] } else { &[] };
            for &(few, tile) in [(8, 1 << 22)].iter().chain(in_tiles) {
                let input = on_device(x.clone(), [m, w.dims()[0]]).into_primitive().tensor();
                let y = product::<Gpu, _>(input, &w, Plan { few, tile, ..Plan::DEFAULT });
                let y: Tensor<Gpu, 2> = Tensor::from_primitive(burn::tensor::TensorPrimitive::Float(y));
                for (i, (got, expected)) in values(y).iter().zip(&expected).enumerate() {
                    let name = format!("{w:?} in tiles of {tile}, {m} rows: element {i}");
                    assert!((got - expected).abs() <= 1e-5 * largest, "{name} is {got}, expected {expected}");
                }
            }
        }
    }
}

/// A view of rows, a view of columns, and a transpose.
#[test]
fn inputs_may_be_views() {
    let w = matrix(BlockFormat::Q5_1, [40, 96]).transpose();
    let whole = numbers(100 * 200, 3);
    let x = on_device(whole, [100, 200]);
    let views = [
        x.clone().narrow(0, 64, 3).narrow(1, 64, 96),
        x.clone().narrow(1, 10, 96),
        x.transpose().narrow(1, 2, 96),
    ];
    for x in views {
        let x = x.narrow(0, 1, 2);
        let (expected, _) = reference(&values(x.clone()), &w);
        super::assert_close(&values(Weight::from(w.clone()).linear(x, None)), &expected, 1e-5, "view");
    }
}

/// A head whose rows form two chunks.
#[test]
fn the_head_goes_chunk_by_chunk() {
    let (rows, vocab) = (300, 40_000);
    let w = matrix(BlockFormat::Nf2, [vocab, 32]).transpose();
    let targets: Vec<i32> = (0..rows).map(|row| (row * 131 % vocab) as i32).collect();
    let run = |w: Weight<Tensor<Autodiff<Gpu>, 2>>| {
        let x = tensor::<Autodiff<Gpu>, 2>(numbers(rows * 32, 4), [rows, 32]).require_grad();
        let targets = Tensor::<Autodiff<Gpu>, 1, Int>::from_data(targets.as_slice(), &Default::default());
        let loss = linear_cross_entropy(x.clone(), Head::new(w), targets, None);
        let grads = loss.backward();
        [values(loss), values(x.grad(&grads).unwrap())]
    };
    let floats = Weight::<Tensor<Autodiff<Gpu>, 2>>::from(w.clone());
    let floats = floats.to_tensor(&Default::default(), DType::F32);
    for (got, expected) in run(w.into()).iter().zip(&run(floats.into())) {
        super::assert_close(got, expected, 1e-5, "head");
    }
}

/// A scale that is not finite affects only the outputs of its row of the matrix.
#[rstest]
fn scales_that_are_not_finite_stay_in_their_row(#[values(1, 4, 12)] m: usize) {
    for format in [BlockFormat::Q4_0, BlockFormat::Q8_0, BlockFormat::Q6K, BlockFormat::Q5_1] {
        let w = matrix(format, [40, 64]);
        let (columns, row_bytes) = (w.stored_dims()[1], w.bytes().len() / 40);
        for half in [0x7c00_u16, 0x7e00] {
            let mut bytes = w.bytes().to_vec();
            let at = if format == BlockFormat::Q6K { 208 } else { 0 };
            bytes[7 * row_bytes + at..][..2].copy_from_slice(&half.to_le_bytes());
            let w = BlockMatrix::new(format, [40, columns], std::sync::Arc::new(bytes), 0).unwrap();
            let x = on_device(numbers(m * columns, 2), [m, columns]);
            let y = values(Weight::from(w.transpose()).linear(x, None));
            for (i, y) in y.iter().enumerate() {
                assert_eq!(y.is_finite(), i % 40 != 7, "{format}, element {i} is {y}");
            }
        }
    }
}

/// Rows and columns, in any order; numbers past the last give zeros.
#[test]
fn rows_are_gathered_on_the_device() {
    for format in BlockFormat::ALL {
        let stored = any_blocks(format, [9, 2], &FINITE);
        for w in [stored.clone(), stored.transpose()] {
            let ([count, width], floats) = (w.dims(), w.to_floats());
            let ids = [8, 0, -1, 3, 3, count as i32 - 1, count as i32, i32::MAX, i32::MIN, 5];
            let rows = Tensor::<Gpu, 1, Int>::from_data(ids.as_slice(), &Default::default());
            let got = values(Weight::<Tensor<Gpu, 2>>::from(w.clone()).rows(rows));
            for (id, got) in ids.iter().zip(got.chunks(width)) {
                let row = usize::try_from(*id).ok().and_then(|id| floats.chunks(width).nth(id));
                let expected: Vec<f64> = match row {
                    Some(row) => row.iter().map(|&x| x.into()).collect(),
                    None => vec![0.0; width],
                };
                assert_eq!(got, expected, "{w:?}, row {id}");
            }
        }
    }
}

#[test]
fn nothing_times_blocks_is_nothing() {
    let w = matrix(BlockFormat::Q8_0, [5, 32]);
    let none = Tensor::<Gpu, 1, Int>::from_data([0_i32; 0].as_slice(), &Default::default());
    assert_eq!(Weight::<Tensor<Gpu, 2>>::from(w.clone()).rows(none).dims(), [0, 32]);
    let y = Weight::from(w).linear(on_device(Vec::new(), [0, 5]), Some(tensor(vec![1.0; 32], [32])));
    assert_eq!(y.dims(), [0, 32]);
    let empty = BlockMatrix::new(BlockFormat::Q8_0, [0, 32], std::sync::Arc::new(Vec::new()), 0).unwrap();
    let y = Weight::from(empty).linear(on_device(Vec::new(), [2, 0]), Some(tensor(vec![1.0; 32], [32])));
    assert_eq!(values(y), [1.0; 64]);
}

/// More rows of the matrix than a dimension of a launch has cubes for.
#[test]
fn matrices_may_have_many_rows() {
    let rows = 8 * 33_000;
    let block = BlockFormat::Nf2.quantize([1, 32], &[1.0; 32]).unwrap();
    let w =
        BlockMatrix::new(BlockFormat::Nf2, [rows, 32], std::sync::Arc::new(block.repeat(rows)), 0).unwrap();
    let one = f64::from(w.to_floats()[0]);
    let y = values(Weight::from(w.transpose()).linear(on_device(vec![1.0; 32], [1, 32]), None));
    assert!(y.len() == rows && y.iter().all(|y| (y - 32.0 * one).abs() < 1e-4));
}

/// Clones, the transpose, products of few and many rows, gradients and lookups share one copy on the device.
#[test]
fn bytes_are_uploaded_once() {
    let w = matrix(BlockFormat::Q4_0, [64, 64]);
    assert_eq!(w.resident().count(), 0);
    let ids = Tensor::<Gpu, 1, Int>::from_data([4, 0, 4].as_slice(), &Default::default());
    for w in [w.clone(), w.clone().transpose(), w.clone().with_exact_products()] {
        let w = Weight::from(w);
        for m in [1, 20] {
            w.clone().linear(on_device(numbers(m * 64, 1), [m, 64]), None);
        }
        w.rows(ids.clone());
    }
    assert_eq!(w.resident().count(), 1);
}
