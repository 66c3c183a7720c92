//! Matrices in blocks: what the bytes mean, and every step beside the same one over dequantized floats.

use std::sync::Arc;

use burn::tensor::{DType, Int, Tensor};
use burn_autodiff::Autodiff;
use burn_flex::Flex;
use rstest::rstest;

use super::{Exact, assert_close, on_backends, random, tolerance, values};
use lowrank_spec::blocks::BlockError;
use lowrank_spec::blocks::format::IQ4_NL_VALUES;

use crate::blocks::{BlockFormat, BlockMatrix};
use crate::cpu::simd::Level;
use crate::error::KernelError;
use crate::kernels::Kernels;
use crate::ops::{Head, linear_cross_entropy};
use crate::spec::{Gelu, LoraSpec};
use crate::weight::Weight;

/// Whole blocks, the given elements at least.
fn wide(format: BlockFormat, columns: usize) -> usize {
    columns.next_multiple_of(format.block_len())
}

/// A matrix with rows of different sizes; the columns are filled up to whole blocks.
pub(super) fn matrix(format: BlockFormat, [rows, columns]: [usize; 2]) -> BlockMatrix {
    let columns = wide(format, columns);
    let numbers = values(random::<Exact, 2>([rows, columns], 7));
    let numbers: Vec<f32> =
        numbers.iter().enumerate().map(|(i, x)| (x * (1.0 + (i / columns % 3) as f64)) as f32).collect();
    BlockMatrix::quantize(format, [rows, columns], &numbers).unwrap()
}

/// Half of the distance between neighbouring values of a block whose elements are at most 3: what rounding may do,
/// and a little for scales in f16.
fn step(format: BlockFormat) -> f32 {
    let levels = match format {
        BlockFormat::Q8_0 => 127.0,
        BlockFormat::Q4_0 => 8.0,
        BlockFormat::Q4_1 => 7.5,
        BlockFormat::Q5_0 => 16.0,
        BlockFormat::Q5_1 => 15.5,
        // Scales and offsets of 6 bits, and an offset that fits all elements best and not the outermost.
        BlockFormat::Q2K => 1.5 / 1.6,
        BlockFormat::Q4K => 7.5 / 1.6,
        BlockFormat::Q5K => 15.5 / 1.6,
        // A scale that fits the large elements best.
        BlockFormat::Q3K => 4.0 / 2.5,
        BlockFormat::Q6K => 32.0 / 2.5,
        // The widest gap of the table.
        BlockFormat::Iq4Nl | BlockFormat::Iq4Xs => 127.0 / 24.0 / 2.5,
        // From 2/3 of the largest value to it, and from there to what is cut.
        BlockFormat::Mxfp4 => 3.0,
        BlockFormat::Nf4 => 127.0 / 39.0 / 2.5,
        BlockFormat::Nf3 => 127.0 / 51.0 / 2.5,
        BlockFormat::Nf2 => 127.0 / 91.0 / 2.5,
    };
    // The signed formats reach one step less far to one side, and cut what is beyond.
    3.0 / levels * if matches!(format, BlockFormat::Q4_0 | BlockFormat::Q5_0) { 1.0 } else { 0.5 } + 3e-3
}

#[test]
fn rounding_stays_within_half_a_step() {
    for format in BlockFormat::ALL {
        let shape = [6, wide(format, 96)];
        let numbers: Vec<f32> =
            values(random::<Exact, 2>(shape, 1)).iter().map(|x| 3.0 * *x as f32).collect();
        let matrix = BlockMatrix::quantize(format, shape, &numbers).unwrap();
        assert_eq!(matrix.bytes().len(), numbers.len() / format.block_len() * format.block_bytes());
        for (x, y) in numbers.iter().zip(matrix.to_floats()) {
            assert!((x - y).abs() <= step(format), "{format}: {x} became {y}");
        }
        // What is on the grid stays near it.
        let has_byte_scale = matches!(format, BlockFormat::Nf4 | BlockFormat::Nf3 | BlockFormat::Nf2);
        let is_searched = format.block_len() > 32 || format == BlockFormat::Iq4Nl || has_byte_scale;
        let again = BlockMatrix::quantize(format, shape, &matrix.to_floats()).unwrap().to_floats();
        let off = again.iter().zip(matrix.to_floats()).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(off <= 2e-3 + if is_searched { step(format) } else { 0.0 }, "{format}: {off}");
        let n = format.block_len();
        let flat = BlockMatrix::quantize(format, [2, n], &[vec![0.0; n], vec![-1.5; n]].concat()).unwrap();
        assert_eq!(flat.to_floats()[..n], vec![0.0; n], "{format}");
        let off = flat.to_floats()[n..].iter().map(|x| (x + 1.5).abs()).fold(0.0, f32::max);
        let most = match format {
            BlockFormat::Q6K => 1.5 / 127.0,
            // Three bits of mantissa.
            _ if has_byte_scale => 1.5 / 16.0,
            _ => 2e-3,
        };
        assert!(off < most, "{format}: {off}");
    }
}

/// The blocks of 256 element by element, as llama.cpp's `dequantize_row_q*_K` goes through them.
#[test]
fn large_blocks_mean_what_they_mean_in_llama_cpp() {
    let six_bits = |q: &[u8], j: usize| {
        if j < 4 {
            (q[j] & 63, q[j + 4] & 63)
        } else {
            ((q[j + 4] & 0xf) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4))
        }
    };
    for format in BlockFormat::ALL.into_iter().filter(|format| format.block_len() == 256) {
        // Any bytes are a block; the factors are 0.5 and 2.
        let mut bytes: Vec<u8> = (0..format.block_bytes()).map(|i| (i * 37 + i / 7 * 11) as u8).collect();
        let (at, factors): (usize, &[u8]) = match format {
            BlockFormat::Q2K => (80, &[0x00, 0x38, 0x00, 0x40]),
            BlockFormat::Q3K => (108, &[0x00, 0x38]),
            BlockFormat::Iq4Xs => (0, &[0x00, 0x38]),
            BlockFormat::Q6K => (208, &[0x00, 0x38]),
            _ => (0, &[0x00, 0x38, 0x00, 0x40]),
        };
        bytes[at..at + factors.len()].copy_from_slice(factors);
        let mut expected = Vec::new();
        match format {
            BlockFormat::Q2K => {
                for i in 0..256 {
                    let q = bytes[16 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                    let scales = bytes[i / 16];
                    expected.push(0.5 * f32::from(scales & 15) * f32::from(q) - 2.0 * f32::from(scales >> 4));
                }
            }
            BlockFormat::Q3K => {
                // The four words of `dequantize_row_q3_K`.
                let word = |i: usize| u32::from_le_bytes(bytes[96 + 4 * i..100 + 4 * i].try_into().unwrap());
                let [a, b, high] = [word(0), word(1), word(2)];
                let joined =
                    |low: u32, shift: u32| (low & 0x0f0f_0f0f) | ((high >> shift & 0x0303_0303) << 4);
                let words = [joined(a, 0), joined(b, 2), joined(a >> 4, 4), joined(b >> 4, 6)];
                let scales: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
                for i in 0..256 {
                    let low = bytes[32 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
                    let third = if bytes[i % 32] >> (i / 32) & 1 == 1 { 0.0 } else { 4.0 };
                    expected.push(0.5 * (f32::from(scales[i / 16]) - 32.0) * (f32::from(low) - third));
                }
            }
            BlockFormat::Iq4Xs => {
                let high = u16::from_le_bytes([bytes[2], bytes[3]]);
                for group in 0..8 {
                    let low = bytes[4 + group / 2] >> (4 * (group % 2)) & 0xf;
                    let scale = f32::from(low | ((high >> (2 * group) & 3) as u8) << 4) - 32.0;
                    for half in 0..2 {
                        let codes = bytes[8 + 16 * group..][..16].iter().map(|byte| byte >> (4 * half) & 0xf);
                        expected.extend(
                            codes.map(|code| 0.5 * scale * f32::from(IQ4_NL_VALUES[usize::from(code)])),
                        );
                    }
                }
            }
            BlockFormat::Q6K => {
                let (ql, qh, scales) = (&bytes[..128], &bytes[128..192], &bytes[192..208]);
                for n in 0..2 {
                    let mut y = [0.0_f32; 128];
                    for l in 0..32 {
                        let (low, low2) = (ql[64 * n + l], ql[64 * n + l + 32]);
                        let high = qh[32 * n + l];
                        let q = [
                            (low & 0xf) | ((high & 3) << 4),
                            (low2 & 0xf) | (((high >> 2) & 3) << 4),
                            (low >> 4) | (((high >> 4) & 3) << 4),
                            (low2 >> 4) | (((high >> 6) & 3) << 4),
                        ];
                        for (quarter, q) in q.into_iter().enumerate() {
                            let scale = f32::from(scales[8 * n + l / 16 + 2 * quarter].cast_signed());
                            y[l + 32 * quarter] = 0.5 * scale * (f32::from(q) - 32.0);
                        }
                    }
                    expected.extend(y);
                }
            }
            _ => {
                let q_at = if format == BlockFormat::Q4K { 16 } else { 48 };
                for group in 0..8 {
                    let (scale, min) = six_bits(&bytes[4..16], group);
                    for l in 0..32 {
                        let byte = bytes[q_at + 32 * (group / 2) + l];
                        let mut q = if group % 2 == 0 { byte & 0xf } else { byte >> 4 };
                        if format == BlockFormat::Q5K && bytes[16 + l] >> group & 1 == 1 {
                            q += 16;
                        }
                        expected.push(0.5 * f32::from(scale) * f32::from(q) - 2.0 * f32::from(min));
                    }
                }
            }
        }
        let floats = BlockMatrix::new(format, [1, 256], Arc::new(bytes), 0).unwrap().to_floats();
        assert_eq!(floats, expected, "{format}");
    }
}

/// Bytes by hand, after llama.cpp's `ggml-common.h`. 0x3800 is 0.5 and 0x4000 is 2 in f16.
#[test]
fn bytes_mean_what_they_mean_in_llama_cpp() {
    let read = |format, bytes: &[u8]| {
        BlockMatrix::new(format, [1, 32], Arc::new(bytes.to_vec()), 0).unwrap().to_floats()
    };
    let counted: Vec<u8> = (0..32).map(|i| (i as i8 - 16) as u8).collect();
    let expected: Vec<f32> = (0..32).map(|i| 0.5 * (i as f32 - 16.0)).collect();
    assert_eq!(read(BlockFormat::Q8_0, &[&[0x00, 0x38], &counted[..]].concat()), expected);
    // Element i in the low half of byte i, element i + 16 in the high one: i and 15 - i.
    let halves: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let of = |f: &dyn Fn(f32) -> f32| -> Vec<f32> {
        (0..32).map(|i| f(if i < 16 { i as f32 } else { 31.0 - i as f32 })).collect()
    };
    assert_eq!(read(BlockFormat::Q4_0, &[&[0x00, 0x38], &halves[..]].concat()), of(&|q| 0.5 * (q - 8.0)));
    assert_eq!(
        read(BlockFormat::Q4_1, &[&[0x00, 0x38, 0x00, 0x40], &halves[..]].concat()),
        of(&|q| 0.5 * q + 2.0)
    );
    // The fifth bit of elements 1 and 31.
    let fifth = (1_u32 << 1 | 1 << 31).to_le_bytes();
    let with_fifth = |offset: f32, zero: f32| {
        let mut expected = of(&|q| 0.5 * (q - zero) + offset);
        (expected[1], expected[31]) = (expected[1] + 8.0, expected[31] + 8.0);
        expected
    };
    assert_eq!(
        read(BlockFormat::Q5_0, &[&[0x00, 0x38], &fifth[..], &halves].concat()),
        with_fifth(0.0, 16.0)
    );
    let bytes = [&[0x00, 0x38, 0x00, 0x40], &fifth[..], &halves].concat();
    assert_eq!(read(BlockFormat::Q5_1, &bytes), with_fifth(2.0, 0.0));
    assert_eq!(
        read(BlockFormat::Iq4Nl, &[&[0x00, 0x38], &halves[..]].concat()),
        of(&|q| 0.5 * f32::from(IQ4_NL_VALUES[q as usize]))
    );
    let e2m1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    assert_eq!(read(BlockFormat::Mxfp4, &[&[130], &halves[..]].concat()), of(&|q| 8.0 * e2m1[q as usize]));
}

/// Bytes of our own formats by hand. 0x70 is 0.5 with a sign and seven more bits of mantissa in f16.
#[test]
fn bytes_of_our_formats() {
    use lowrank_spec::blocks::format::{NF2_VALUES, NF3_VALUES, NF4_VALUES};
    let read = |format, bytes: &[u8]| {
        BlockMatrix::new(format, [1, 32], Arc::new(bytes.to_vec()), 0).unwrap().to_floats()
    };
    let of = |table: &[i8; 16], index: &dyn Fn(usize) -> usize| -> Vec<f32> {
        (0..32).map(|i| 0.5 * f32::from(table[index(i)])).collect()
    };
    let halves: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let nf4 = of(&NF4_VALUES, &|i| if i < 16 { i } else { 31 - i });
    assert_eq!(read(BlockFormat::Nf4, &[&[0x70], &halves[..]].concat()), nf4);
    // In each byte, the elements of the four groups of eight have the indices 1, 2, 0 and 3.
    let pairs = [0b11_10_00_01; 8];
    let index = |i: usize| [1, 2, 0, 3][i / 8];
    assert_eq!(read(BlockFormat::Nf2, &[&[0x70], &pairs[..]].concat()), of(&NF2_VALUES, &index));
    // The third bit of elements 1 and 31.
    let third = (1_u32 << 1 | 1 << 31).to_le_bytes();
    let index = |i: usize| index(i) + if [1, 31].contains(&i) { 4 } else { 0 };
    assert_eq!(read(BlockFormat::Nf3, &[&[0x70], &third[..], &pairs].concat()), of(&NF3_VALUES, &index));
}

#[rstest]
fn products_are_those_of_the_floats(
    #[values(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)] format: usize,
    #[values(1, 3, 5, 40)] m: usize,
    #[values(false, true)] transposed: bool,
) {
    fn check<B: Kernels>(w: BlockMatrix, m: usize) {
        let [k, n] = w.dims();
        let (x, bias) = (random::<B, 2>([m, k], 1), random::<B, 1>([n], 2));
        let floats = Weight::from(Weight::from(w.clone()).to_tensor(&x.device(), DType::F32));
        let name = format!("{w:?} of {m} rows");
        let expected = values(floats.clone().linear(x.clone(), Some(bias.clone())));
        let exact = Weight::from(w.clone().with_exact_products());
        let y = values(exact.clone().linear(x.clone(), Some(bias.clone())));
        assert_close(&y, &expected, tolerance(k), &name);
        // Rounding to 8 bits twice: 1/254 of 1/254 of the largest of 32 elements at most, in both directions.
        let rounded = values(Weight::from(w.clone()).linear(x.clone(), Some(bias.clone())));
        let rows = values(x.clone());
        let weights = values(floats.clone().float().unwrap().clone());
        for (i, (y, expected)) in rounded.iter().zip(&expected).enumerate() {
            let (row, column) = (i / n, i % n);
            let worst: f64 = (0..k).map(|p| (weights[p * n + column] / (254.0 * 254.0)).abs()).sum();
            let largest = rows[row * k..(row + 1) * k].iter().fold(0.0_f64, |max, x| max.max(x.abs()));
            assert!((y - expected).abs() <= largest * worst + 1e-4, "{name}: {y}, expected {expected}");
        }
        // Other steps over them.
        for kind in [Gelu::Erf, Gelu::Tanh] {
            let y = values(exact.clone().linear_gelu(x.clone(), Some(bias.clone()), kind));
            let expected = values(floats.clone().linear_gelu(x.clone(), Some(bias.clone()), kind));
            assert_close(&y, &expected, 2.0 * tolerance(k), &name);
        }
        let factors = || [random::<B, 2>([k, 4], 3), random::<B, 2>([4, n], 4)];
        let spec = LoraSpec { scale: 1.5, dropout: None };
        let y = values(exact.linear_lora(x.clone(), factors(), Some(bias.clone()), spec));
        let expected = values(floats.linear_lora(x.clone(), factors(), Some(bias.clone()), spec));
        assert_close(&y, &expected, 2.0 * tolerance(k), &name);
        let base = Weight::from(w.clone()).linear(x.clone(), Some(bias.clone()));
        let y = Weight::from(w).linear_lora(x.clone(), factors(), Some(bias), spec);
        assert_close(
            &values(y),
            &values(crate::ops::add_lora(base, x, factors(), spec)),
            tolerance(4),
            &name,
        );
    }
    let w = matrix(BlockFormat::ALL[format], [70, 96]);
    let w = if transposed { w.transpose() } else { w };
    on_backends!(check(w.clone(), m));
}

/// 8-bit products are integers but for one order of float operations: all instruction sets agree.
#[test]
fn rounded_products_give_the_same_bits_everywhere() {
    for format in BlockFormat::ALL {
        let mut w = matrix(format, [33, 160]);
        if format == BlockFormat::Q8_0 {
            // The only byte whose magnitude is not a positive value of the type.
            let mut bytes = w.bytes().to_vec();
            bytes[2..20].fill(0x80);
            w = BlockMatrix::new(format, [33, 160], Arc::new(bytes), 0).unwrap();
        }
        let k = w.stored_dims()[1];
        let w = Weight::from(w.transpose());
        for m in 1..=4 {
            let run = || values(w.clone().linear(random::<Flex, 2>([m, k], 5), None));
            let expected = run();
            for level in Level::available() {
                level.set();
                assert_eq!(run(), expected, "{format} on {level:?}");
            }
        }
    }
}

/// Blocks of any bytes whose scales and offsets in f16 are these in turn.
pub(super) fn any_blocks(format: BlockFormat, [rows, blocks]: [usize; 2], halves: &[u16]) -> BlockMatrix {
    let at: &[usize] = match format {
        BlockFormat::Q8_0
        | BlockFormat::Q4_0
        | BlockFormat::Q5_0
        | BlockFormat::Iq4Nl
        | BlockFormat::Iq4Xs => &[0],
        BlockFormat::Mxfp4 | BlockFormat::Nf4 | BlockFormat::Nf3 | BlockFormat::Nf2 => &[],
        BlockFormat::Q4_1 | BlockFormat::Q5_1 | BlockFormat::Q4K | BlockFormat::Q5K => &[0, 2],
        BlockFormat::Q2K => &[80, 82],
        BlockFormat::Q3K => &[108],
        BlockFormat::Q6K => &[208],
    };
    let count = rows * blocks * format.block_bytes();
    let mut bytes: Vec<u8> = super::numbers(count, 3).iter().map(|x| (x * 1e4) as i64 as u8).collect();
    for (i, block) in bytes.chunks_exact_mut(format.block_bytes()).enumerate() {
        for (j, &at) in at.iter().enumerate() {
            block[at..at + 2].copy_from_slice(&halves[(3 * i + j) % halves.len()].to_le_bytes());
        }
        if at.is_empty() {
            let half = halves[i % halves.len()];
            block[0] = match format {
                // The same power of two.
                BlockFormat::Mxfp4 => (half >> 10 & 31) as u8 + 112,
                // The upper bits alone, without the sign.
                _ => (half >> 7) as u8,
            };
        }
    }
    BlockMatrix::new(format, [rows, blocks * format.block_len()], Arc::new(bytes), 0).unwrap()
}

/// A row rounded to 8 bits, and what that takes away rounded once more: 32 elements share a scale.
fn rounded(x: &[f64]) -> Vec<f64> {
    let group = |x: &[f32]| -> (Vec<f32>, f32) {
        let max = x.iter().fold(0.0_f32, |max, &x| max.max(x.abs()));
        let inverse = if max > 0.0 { 127.0 / max } else { 0.0 };
        (x.iter().map(|&x| (x * inverse).round_ties_even()).collect(), max / 127.0)
    };
    let twice = |x: &[f64]| -> Vec<f64> {
        let x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
        let (q, scale) = group(&x);
        let rest: Vec<f32> = x.iter().zip(&q).map(|(x, q)| x - q * scale).collect();
        let (fine, step) = group(&rest);
        let value =
            |(q, fine): (&f32, &f32)| f64::from(*q) * f64::from(scale) + f64::from(*fine) * f64::from(step);
        q.iter().zip(&fine).map(value).collect()
    };
    x.chunks(32).flat_map(twice).collect()
}

/// Beside sums in double precision, for any bytes, every instruction set, parts of steps and rests of rows.
#[test]
fn rounded_products_are_sums_over_rounded_inputs() {
    // 0, 0.5, -2, the smallest and the largest number.
    let halves = [0x3800, 0x0000, 0xc000, 0x0001, 0x7bff, 0x3c01, 0xb266];
    for format in BlockFormat::ALL {
        for (n, blocks, m) in [(1, 1, 1), (2, 3, 2), (3, 2, 3), (4, 4, 4), (5, 5, 1), (9, 7, 1), (70, 9, 2)] {
            let w = any_blocks(format, [n, blocks], &halves);
            let k = w.stored_dims()[1];
            for size in [1.0, 1e-30, 1e25] {
                let mut x: Vec<f64> = values(random::<Exact, 2>([m, k], 5))
                    .iter()
                    .map(|x| f64::from((x * size) as f32))
                    .collect();
                x[..32.min(k)].fill(0.0);
                let floats = w.to_floats();
                let mut expected = Vec::new();
                for (x, w) in x.chunks(k).flat_map(|x| floats.chunks(k).map(move |w| (x, w))) {
                    let x = rounded(x);
                    let products = x.iter().zip(w).map(|(x, &w)| x * f64::from(w));
                    // Some formats add up larger numbers that cancel out.
                    let largest = w.iter().fold(0.0_f32, |max, w| max.max(w.abs()));
                    let sizes: f64 = x.iter().map(|x| x.abs() * f64::from(largest)).sum();
                    expected.push((products.sum::<f64>(), sizes));
                }
                let w = Weight::from(w.clone().transpose());
                for level in Level::available() {
                    level.set();
                    let y = values(w.clone().linear(super::tensor::<Flex, 2>(x.clone(), [m, k]), None));
                    for (i, (y, (expected, sizes))) in y.iter().zip(&expected).enumerate() {
                        let name = format!("{format} on {level:?}, {m} x {k} x {n}, {size}: element {i}");
                        assert!((y - expected).abs() <= 1e-7 * sizes, "{name} is {y}, expected {expected}");
                    }
                }
            }
        }
    }
}

/// The gradients over a frozen base in blocks are those over its floats, also where a step without gradients rounds.
#[rstest]
fn gradients_are_those_of_the_floats(#[values(2, 30)] m: usize, #[values(false, true)] transposed: bool) {
    fn check<B: Kernels>(format: BlockFormat, m: usize, transposed: bool) {
        let d = wide(format, 64);
        let w = matrix(format, [d, d]);
        let w = if transposed { w.transpose() } else { w };
        let x = random::<Autodiff<B>, 2>([m, d], 1).require_grad();
        let [a, b] = [[d, 4], [4, d]].map(|shape| random::<Autodiff<B>, 2>(shape, 2).require_grad());
        let targets = Tensor::<Autodiff<B>, 1, Int>::zeros([m], &Default::default());
        let run = |w: Weight<Tensor<Autodiff<B>, 2>>| {
            let spec = LoraSpec { scale: 1.5, dropout: None };
            // Kept at a size of about one.
            let y = w.clone().linear_lora(x.clone(), [a.clone(), b.clone()], None, spec) / (d as f64).sqrt();
            let y = w.clone().linear_gelu(y, None, Gelu::Erf) / (d as f64).sqrt();
            let y = w.clone().linear(y, None) / d as f64;
            let loss = linear_cross_entropy(y, Head::new(w), targets.clone(), None);
            let grads = loss.backward();
            let mut all = vec![values(loss)];
            all.extend([&x, &a, &b].map(|tensor| values(tensor.grad(&grads).unwrap())));
            all
        };
        let floats =
            Weight::<Tensor<Autodiff<B>, 2>>::from(w.clone()).to_tensor(&Default::default(), DType::F32);
        for (got, expected) in run(w.into()).iter().zip(&run(floats.into())) {
            assert_close(got, expected, 64.0 * tolerance(d), &format!("{format}, {m} rows"));
        }
    }
    for format in BlockFormat::ALL {
        on_backends!(check(format, m, transposed));
    }
}

#[test]
fn rows_are_looked_up() {
    fn check<B: Kernels>() {
        let ids = Tensor::<B, 1, Int>::from_data([4, 0, 4].as_slice(), &Default::default());
        for format in BlockFormat::ALL {
            for w in [matrix(format, [5, 64]), matrix(format, [32, 32]).transpose()] {
                let w = Weight::<Tensor<B, 2>>::from(w);
                let all = w.to_tensor(&Default::default(), DType::F32);
                assert_eq!(values(w.rows(ids.clone())), values(all.select(0, ids.clone())));
            }
        }
    }
    on_backends!(check());
}

#[test]
#[should_panic(expected = "index 5 of a matrix of 5 rows")]
fn a_row_that_is_not_there_is_named() {
    let ids = Tensor::<Flex, 1, Int>::from_data([5].as_slice(), &Default::default());
    Weight::<Tensor<Flex, 2>>::from(matrix(BlockFormat::Q8_0, [5, 32])).rows(ids);
}

#[test]
fn inputs_that_are_not_finite_reach_the_output() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        let mut x = values(random::<Exact, 2>([2, 96], 1));
        x[40] = bad;
        let x = super::tensor::<Flex, 2>(x, [2, 96]);
        let y = values(Weight::from(matrix(BlockFormat::Q4_0, [40, 96]).transpose()).linear(x, None));
        assert!(y[..40].iter().all(|y| !y.is_finite()) && y[40..].iter().all(|y| y.is_finite()), "{bad}");
    }
}

#[test]
fn bad_input_is_named() {
    let format = BlockFormat::Q4_0;
    let error = BlockMatrix::quantize(format, [2, 40], &[0.0; 80]).unwrap_err();
    assert_eq!(error.to_string(), "rows of 40 elements do not fit Q4_0, whose blocks have 32");
    let error = BlockMatrix::quantize(format, [2, 32], &[0.0; 63]).unwrap_err();
    assert_eq!(error, BlockError::Elements { rows: 2, columns: 32, elements: 63 }.into());
    let mut numbers = [0.0; 64];
    numbers[33] = f32::NEG_INFINITY;
    let error = BlockMatrix::quantize(format, [2, 32], &numbers).unwrap_err();
    assert_eq!(error.to_string(), "row 1, column 1 is -inf; a matrix to quantize must be finite");
    numbers[33] = 1e7;
    assert!(matches!(
        BlockMatrix::quantize(format, [2, 32], &numbers),
        Err(KernelError::Block(BlockError::Scale { .. }))
    ));
    let bytes: crate::SharedBytes = Arc::new(vec![0_u8; 40]);
    assert!(BlockMatrix::new(format, [2, 32], bytes.clone(), 4).is_ok());
    let error = BlockMatrix::new(format, [2, 32], bytes.clone(), 5).unwrap_err();
    assert_eq!(error.to_string(), "35 bytes are too few for a 2 x 32 matrix in Q4_0");
    assert!(BlockMatrix::new(format, [usize::MAX, 64], bytes.clone(), 0).is_err());
    assert!(BlockMatrix::new(format, [1, 32], bytes, usize::MAX).is_err());
}
