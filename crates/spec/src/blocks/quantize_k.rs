//! Rounding to blocks of 256 elements whose scales are rounded as well (llama.cpp, `quantize_row_q*_K_ref`).

use super::codes::{bits_of_256, halves_of_256, six_bits_of_256, two_bits_of_256};
use super::quantize::push;

/// The weights of a group's differences under the importance of its columns (`quantize_row_q*_K_impl`):
/// larger for large values.
fn under<const N: usize>(importance: &[f32; 256], at: usize, x: &[f32; N], values: &[f32; 256]) -> [f32; N] {
    let spread = 2.0 * values.iter().map(|x| x * x).sum::<f32>() / 256.0;
    std::array::from_fn(|i| importance[at + i] * (spread + x[i] * x[i]).sqrt())
}

/// Q4_K (`most` 15) and Q5_K (`most` 31): groups of 32 with a scale and an offset of 6 bits.
pub(super) fn groups_of_32(
    values: &[f32; 256],
    importance: Option<&[f32; 256]>,
    most: f32,
    bytes: &mut Vec<u8>,
) -> Result<(), f32> {
    let search = if most > 15.0 { (-0.5, 15) } else { (-1.0, 20) };
    let groups = values.as_chunks::<32>().0;
    let mut found = [(0.0_f32, 0.0_f32); 8];
    for (i, (found, group)) in found.iter_mut().zip(groups).enumerate() {
        let spread = (group.iter().map(|x| x * x).sum::<f32>() / 32.0).sqrt();
        let weights = match importance {
            Some(importance) => under(importance, 32 * i, group, values),
            None => group.map(|x| spread + x.abs()),
        };
        *found = scale_and_offset(group, &weights, most, search, |x| x * x);
    }
    let largest = |f: fn(&(f32, f32)) -> f32| found.iter().map(f).fold(0.0_f32, f32::max);
    let (max_scale, max_offset) = (largest(|found| found.0), largest(|found| found.1));
    let six_bits =
        |x: f32, max: f32| if max > 0.0 { (63.0 / max * x).round_ties_even().min(63.0) as u8 } else { 0 };
    let rounded = found.map(|(scale, offset)| [six_bits(scale, max_scale), six_bits(offset, max_offset)]);
    let d = push(max_scale / 63.0, bytes)?;
    let d_min = push(max_offset / 63.0, bytes)?;
    let mut packed = [0_u8; 12];
    for (group, [scale, offset]) in rounded.into_iter().enumerate() {
        if group < 4 {
            (packed[group], packed[group + 4]) = (scale, offset);
        } else {
            packed[group + 4] = scale & 15 | (offset & 15) << 4;
            packed[group - 4] |= scale >> 4 << 6;
            packed[group] |= offset >> 4 << 6;
        }
    }
    bytes.extend(packed);
    let mut q = [0_u8; 256];
    for ((q, group), [scale, offset]) in q.as_chunks_mut::<32>().0.iter_mut().zip(groups).zip(rounded) {
        let (scale, offset) = (d * f32::from(scale), d_min * f32::from(offset));
        if scale > 0.0 {
            *q = group.map(|x| ((x + offset) / scale).round_ties_even().clamp(0.0, most) as u8);
        }
    }
    if most > 15.0 {
        bytes.extend(bits_of_256(&q, 4));
    }
    bytes.extend(halves_of_256(&q));
    Ok(())
}

/// Q2_K: groups of 16 with a scale and an offset of 4 bits.
pub(super) fn two_bits(
    values: &[f32; 256],
    importance: Option<&[f32; 256]>,
    bytes: &mut Vec<u8>,
) -> Result<(), f32> {
    let groups = values.as_chunks::<16>().0;
    let mut found = [(0.0_f32, 0.0_f32); 16];
    for (i, (found, group)) in found.iter_mut().zip(groups).enumerate() {
        *found = match importance {
            Some(importance) => {
                let weights = under(importance, 16 * i, group, values);
                scale_and_offset(group, &weights, 3.0, (-0.9, 36), |x| x * x)
            }
            None => scale_and_offset(group, &group.map(f32::abs), 3.0, (-0.5, 15), f32::abs),
        };
    }
    let largest = |f: fn(&(f32, f32)) -> f32| found.iter().map(f).fold(0.0_f32, f32::max);
    let (max_scale, max_offset) = (largest(|found| found.0), largest(|found| found.1));
    let four_bits =
        |x: f32, max: f32| if max > 0.0 { (15.0 / max * x).round_ties_even().min(15.0) as u8 } else { 0 };
    let rounded = found.map(|(scale, offset)| [four_bits(scale, max_scale), four_bits(offset, max_offset)]);
    let mut factors = Vec::with_capacity(4);
    let d = push(max_scale / 15.0, &mut factors)?;
    let d_min = push(max_offset / 15.0, &mut factors)?;
    let mut q = [0_u8; 256];
    for ((q, x), [scale, offset]) in q.as_chunks_mut::<16>().0.iter_mut().zip(groups).zip(rounded) {
        let (scale, offset) = (d * f32::from(scale), d_min * f32::from(offset));
        if scale > 0.0 {
            *q = x.map(|x| ((x + offset) / scale).round_ties_even().clamp(0.0, 3.0) as u8);
        }
    }
    bytes.extend(rounded.map(|[scale, offset]| scale | offset << 4));
    bytes.extend(two_bits_of_256(&q));
    bytes.extend(factors);
    Ok(())
}

/// Q3_K: groups of 16 with a scale of 6 bits.
pub(super) fn three_bits(
    values: &[f32; 256],
    importance: Option<&[f32; 256]>,
    bytes: &mut Vec<u8>,
) -> Result<(), f32> {
    let groups = values.as_chunks::<16>().0;
    let mut found = [(0.0_f32, [0_i8; 16]); 16];
    for (i, (found, group)) in found.iter_mut().zip(groups).enumerate() {
        let weights = match importance {
            Some(importance) => under(importance, 16 * i, group, values),
            None => group.map(|x| x * x),
        };
        *found = refined_scale(group, &weights);
    }
    let max = found.iter().fold(0.0_f32, |max, &(x, _)| if x.abs() > max.abs() { x } else { max });
    let inverse = -32.0 / max;
    let rounded = found.map(|(scale, _)| {
        if max == 0.0 { 0 } else { ((inverse * scale).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8 }
    });
    let mut factor = Vec::with_capacity(2);
    let d = push(if max == 0.0 { 0.0 } else { 1.0 / inverse }, &mut factor)?;
    let mut q = [0_u8; 256];
    for (i, (q, x)) in q.as_chunks_mut::<16>().0.iter_mut().zip(groups).enumerate() {
        let scale = d * (f32::from(rounded[i]) - 32.0);
        *q = if scale == 0.0 {
            // The scale found by the search was rounded to zero.
            found[i].1.map(|q| (q + 4).cast_unsigned())
        } else {
            x.map(|x| ((x / scale).round_ties_even().clamp(-4.0, 3.0) + 4.0) as u8)
        };
    }
    bytes.extend(bits_of_256(&q, 2));
    bytes.extend(two_bits_of_256(&q));
    let mut scales = [0_u8; 12];
    for (j, scale) in rounded.into_iter().enumerate() {
        scales[j % 8] |= (scale & 15) << (4 * (j / 8));
        scales[8 + j % 4] |= (scale >> 4) << (2 * (j / 4));
    }
    bytes.extend(scales);
    bytes.extend(factor);
    Ok(())
}

/// The scale with the least error for a group and its integers: those of an initial scale, each then changed
/// if that reduces the error, with the squares as the reference's weights (`make_q3_quants`).
fn refined_scale(x: &[f32; 16], weights: &[f32; 16]) -> (f32, [i8; 16]) {
    let max = x.iter().fold(0.0_f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    if max.abs() < 1e-15 {
        return (0.0, [-4; 16]);
    }
    let round = |x: f32| x.round_ties_even().clamp(-4.0, 3.0);
    let mut q = x.map(|x| round(-4.0 / max * x));
    let (mut qx, mut qq) = (0.0_f32, 0.0_f32);
    for ((&x, &q), &w) in x.iter().zip(&q).zip(weights) {
        qx += w * x * q;
        qq += w * q * q;
    }
    for _ in 0..5 {
        let mut is_changed = false;
        for ((&x, q), &w) in x.iter().zip(&mut q).zip(weights) {
            let mut rest_qx = qx - w * x * *q;
            if rest_qx <= 0.0 {
                continue;
            }
            let mut rest_qq = qq - w * *q * *q;
            let better = round(x * rest_qq / rest_qx);
            if better != *q {
                rest_qx += w * x * better;
                rest_qq += w * better * better;
                if rest_qq > 0.0 && rest_qx * rest_qx * qq > qx * qx * rest_qq {
                    (*q, qx, qq, is_changed) = (better, rest_qx, rest_qq, true);
                }
            }
        }
        if !is_changed {
            break;
        }
    }
    (if qq > 0.0 { qx / qq } else { 0.0 }, q.map(|q| q as i8))
}

/// The scale and the negative offset with the least error for a group, with weights that grow with the
/// magnitude: the best of several initial scales, each refined by least squares (`make_qkx2_quants`).
///
/// The error is the weighted sum of `distance` over the differences.
fn scale_and_offset<const N: usize>(
    x: &[f32; N],
    weights: &[f32; N],
    most: f32,
    (first, steps): (f32, usize),
    distance: fn(f32) -> f32,
) -> (f32, f32) {
    let min = x.iter().copied().fold(0.0_f32, f32::min);
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max <= min {
        return (0.0, -min);
    }
    let round = |inverse: f32, min: f32| x.map(|x| (inverse * (x - min)).round_ties_even().clamp(0.0, most));
    let error = |q: &[f32; N], scale: f32, min: f32| -> f32 {
        (0..N).map(|i| weights[i] * distance(scale * q[i] + min - x[i])).sum()
    };
    let (mut best_scale, mut best_min) = ((max - min) / most, min);
    let mut best = error(&round(1.0 / best_scale, min), best_scale, min);
    let sum = |f: &dyn Fn(usize) -> f32| -> f32 { (0..N).map(|i| weights[i] * f(i)).sum() };
    let (sum_w, sum_x) = (sum(&|_| 1.0), sum(&|i| x[i]));
    for step in 0..=steps {
        let q = round((first + 0.1 * step as f32 + most) / (max - min), min);
        let (sum_q, sum_qq, sum_qx) = (sum(&|i| q[i]), sum(&|i| q[i] * q[i]), sum(&|i| q[i] * x[i]));
        let determinant = sum_w * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 {
            continue;
        }
        let mut scale = (sum_w * sum_qx - sum_x * sum_q) / determinant;
        let mut offset = (sum_qq * sum_x - sum_q * sum_qx) / determinant;
        if offset > 0.0 {
            (scale, offset) = (sum_qx / sum_qq, 0.0);
        }
        let error = error(&q, scale, offset);
        if error < best {
            (best, best_scale, best_min) = (error, scale, offset);
        }
    }
    (best_scale, -best_min)
}

/// Q6_K: groups of 16 with a signed byte of scale.
pub(super) fn groups_of_16(
    values: &[f32; 256],
    importance: Option<&[f32; 256]>,
    bytes: &mut Vec<u8>,
) -> Result<(), f32> {
    let groups = values.as_chunks::<16>().0;
    let mut scales = [0.0_f32; 16];
    for (i, (scale, group)) in scales.iter_mut().zip(groups).enumerate() {
        let weights = match importance {
            Some(importance) => under(importance, 16 * i, group, values),
            None => group.map(|x| x * x),
        };
        *scale = signed_scale(group, &weights);
    }
    let max = scales.iter().fold(0.0_f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    if max.abs() < 1e-15 {
        bytes.extend([0; 210]);
        return Ok(());
    }
    let rounded = scales.map(|x| (-128.0 / max * x).round_ties_even().min(127.0) as i8);
    let mut factor = Vec::with_capacity(2);
    let d = push(max / -128.0, &mut factor)?;
    let mut q = [0_u8; 256];
    for ((q, x), scale) in q.as_chunks_mut::<16>().0.iter_mut().zip(groups).zip(rounded) {
        let scale = d * f32::from(scale);
        *q = x.map(|x| {
            if scale == 0.0 { 32 } else { ((x / scale).round_ties_even().clamp(-32.0, 31.0) + 32.0) as u8 }
        });
    }
    let (low, high) = six_bits_of_256(&q);
    bytes.extend(low);
    bytes.extend(high);
    bytes.extend(rounded.map(i8::cast_unsigned));
    bytes.extend(factor);
    Ok(())
}

/// The scale with the least error for a group: the best of several initial scales, each refined by least
/// squares, with the squares as the reference's weights (`make_qx_quants`).
fn signed_scale(x: &[f32; 16], weights: &[f32; 16]) -> f32 {
    let max = x.iter().fold(0.0_f32, |max, &x| if x.abs() > max.abs() { x } else { max });
    if max.abs() < 1e-15 {
        return 0.0;
    }
    let sums = |inverse: f32| {
        x.iter().zip(weights).fold((0.0_f32, 0.0_f32), |(qx, qq), (&x, &w)| {
            let q = (inverse * x).round_ties_even().clamp(-32.0, 31.0);
            (qx + w * x * q, qq + w * q * q)
        })
    };
    let (qx, qq) = sums(-32.0 / max);
    let (mut scale, mut best) = if qq > 0.0 { (qx / qq, qx * qx / qq) } else { (0.0, 0.0) };
    for step in (-9..=9).filter(|&step| step != 0) {
        let (qx, qq) = sums(-(32.0 + 0.1 * step as f32) / max);
        if qq > 0.0 && qx * qx > best * qq {
            (scale, best) = (qx / qq, qx * qx / qq);
        }
    }
    scale
}
