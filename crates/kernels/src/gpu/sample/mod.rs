//! Choosing a token for each row of logits, a cube for each row.
//!
//! Nothing is sorted: each cutoff, and the draw itself, is a place in the order of the tokens, which is found digit by digit
//! of the logits' bits from the mass (or the number) of the tokens above it. Sums have one order, so that a seed repeats
//! itself.
mod kernels;
mod places;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::calculate_cube_count_elemwise;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;

use super::launch::{by_row, dims2, elements, fit, owned, packed};
use super::math::UNITS;
use super::upload::upload;
use crate::spec::SampleSpec;
use kernels::{EXCLUDED, KEPT, Options, edit_kernel, sample_kernel};

/// The most classes whose number a float holds.
const MAX_WIDTH: usize = 1 << 24;

/// Whether the kernels take these logits.
pub(super) fn fits<R: CubeRuntime>(logits: &CubeTensor<R>) -> bool {
    fit([logits]) && elements(logits) > 0 && dims2(logits)[1] <= MAX_WIDTH
}

/// The token of each row, -1 where no logit is finite; a row of the spec for each is the caller's to check.
pub(super) fn sample<R: CubeRuntime>(logits: CubeTensor<R>, spec: &SampleSpec) -> CubeTensor<R> {
    let [rows, width] = dims2(&logits);
    let (client, device) = (logits.client.clone(), logits.device.clone());
    // The draws, and behind them the edits.
    let mut words: Vec<u32> = spec.rows.iter().map(|row| (row.draw as f32).to_bits()).collect();
    words.extend(edits(spec, width));
    let table = upload(&words, &logits);
    let n_edits = words.len() - rows;
    let logits = if n_edits > 0 { owned(logits) } else { packed(logits) };
    if n_edits > 0 {
        let dim = CubeDim::new_1d(UNITS as u32);
        let count = calculate_cube_count_elemwise(&client, n_edits, dim);
        // SAFETY: the edits lie behind the draws, each names another logit within its row, and nothing else has the logits.
        unsafe {
            edit_kernel::launch_unchecked(
                &client,
                count,
                dim,
                logits.clone().into_array_arg(),
                ArrayArg::from_raw_parts(table.clone(), words.len()),
                rows,
                words.len(),
                spec.repetition_penalty,
            );
        }
    }
    let ids = empty_device_contiguous_dtype(client.clone(), device, [rows].into(), DType::I32);
    let top_k = spec.top_k.filter(|&k| k < width);
    let options = Options {
        greedy: spec.temperature == 0.0,
        top_k: top_k.is_some(),
        few: top_k.is_some_and(|k| k <= KEPT),
        top_p: spec.top_p < 1.0,
        min_p: spec.min_p > 0.0,
    };
    let (count, dim) = by_row(rows);
    // SAFETY: logits are [rows, width], and there is a draw and an id for each row; cubes and units past them do nothing.
    unsafe {
        sample_kernel::launch_unchecked(
            &client,
            count,
            dim,
            logits.into_array_arg(),
            ArrayArg::from_raw_parts(table, words.len()),
            ids.clone().into_array_arg(),
            rows,
            width,
            // Neither zero nor infinite, whose products with differences may be no number.
            ((1.0 / spec.temperature) as f32).clamp(f32::MIN_POSITIVE, f32::MAX),
            top_k.unwrap_or(width) as f32,
            spec.top_p as f32,
            (spec.temperature * spec.min_p.ln()) as f32,
            options,
        );
    }
    ids
}

/// The logits that change, each once; those that are excluded are not penalised.
fn edits(spec: &SampleSpec, width: usize) -> Vec<u32> {
    let mut edits = Vec::new();
    for (row, choice) in spec.rows.iter().enumerate() {
        let excluded = choice.excluded.iter().map(|id| (*id, false));
        let penalised = choice.penalised.iter().map(|id| (*id, true));
        let mut ids: Vec<(u32, bool)> =
            excluded.chain(penalised).filter(|(id, _)| (*id as usize) < width).collect();
        ids.sort_unstable();
        ids.dedup_by_key(|(id, _)| *id);
        let word = |(id, is_penalised): (u32, bool)| {
            (row * width) as u32 + id + if is_penalised { 0 } else { EXCLUDED }
        };
        edits.extend(ids.into_iter().map(word));
    }
    edits
}
