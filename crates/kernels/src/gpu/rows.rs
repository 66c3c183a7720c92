//! Steps row by row, a cube for each row: norms and cross-entropy.

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::kernel::cast;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{by_row, dims2, elements, empty, empty_like, packed, spread};
use super::math::{LOWEST, UNITS, cube_max, cube_sum, keeps, row_key};
use crate::kernels::NormState;
use crate::spec::{Dropout, NormSpec};

#[cube(launch_unchecked)]
fn norm_kernel(
    x: &Array<f32>,
    residual: &Array<f32>,
    gamma: &Array<f32>,
    beta: &Array<f32>,
    y: &mut Array<f32>,
    x_hat: &mut Array<f32>,
    inv_std: &mut Array<f32>,
    rows: usize,
    width: usize,
    eps: f32,
    seed_low: u32,
    seed_high: u32,
    threshold: u32,
    scale: f32,
    #[comptime] with_residual: bool,
    #[comptime] with_beta: bool,
    #[comptime] with_dropout: bool,
    #[comptime] centered: bool,
    #[comptime] saving: bool,
) {
    let row = CUBE_POS as usize;
    if row < rows {
        let mut shared = SharedMemory::<f32>::new(UNITS);
        let unit = UNIT_POS as usize;
        let start = row * width;
        let count = width as f32;
        // The sum is kept in the output meanwhile; each unit reads what it wrote itself.
        let mut sum = 0.0f32;
        let mut at = unit;
        while at < width {
            let mut value = x[start + at];
            if comptime!(with_dropout) {
                value = value * select(keeps(row_key(seed_low, seed_high, row), at, threshold), scale, 0.0);
            }
            if comptime!(with_residual) {
                value += residual[start + at];
            }
            y[start + at] = value;
            sum += value;
            at += UNITS;
        }
        let mut mean = 0.0f32;
        if comptime!(centered) {
            mean = cube_sum(sum, &mut shared) / count;
        }
        let mut squares = 0.0f32;
        let mut at = unit;
        while at < width {
            let value = y[start + at] - mean;
            squares += value * value;
            at += UNITS;
        }
        let inverse = 1.0 / (cube_sum(squares, &mut shared) / count + eps).sqrt();
        let mut at = unit;
        while at < width {
            let value = (y[start + at] - mean) * inverse;
            if comptime!(saving) {
                x_hat[start + at] = value;
            }
            let mut out = value * gamma[at];
            if comptime!(with_beta) {
                out += beta[at];
            }
            y[start + at] = out;
            at += UNITS;
        }
        if comptime!(saving) {
            if unit == 0 {
                inv_std[row] = inverse;
            }
        }
    }
}

#[cube(launch_unchecked)]
fn norm_grad_kernel(
    dy: &Array<f32>,
    x_hat: &Array<f32>,
    inv_std: &Array<f32>,
    gamma: &Array<f32>,
    dx: &mut Array<f32>,
    rows: usize,
    width: usize,
    #[comptime] centered: bool,
) {
    let row = CUBE_POS as usize;
    if row < rows {
        let mut shared = SharedMemory::<f32>::new(UNITS);
        let unit = UNIT_POS as usize;
        let start = row * width;
        let count = width as f32;
        let mut along = 0.0f32;
        let mut sum = 0.0f32;
        let mut at = unit;
        while at < width {
            let g = dy[start + at] * gamma[at];
            along += g * x_hat[start + at];
            sum += g;
            at += UNITS;
        }
        let along = cube_sum(along, &mut shared) / count;
        let mut mean = 0.0f32;
        if comptime!(centered) {
            mean = cube_sum(sum, &mut shared) / count;
        }
        let inverse = inv_std[row];
        let mut at = unit;
        while at < width {
            let g = dy[start + at] * gamma[at];
            dx[start + at] = (g - x_hat[start + at] * along - mean) * inverse;
            at += UNITS;
        }
    }
}

#[cube(launch_unchecked)]
fn cross_entropy_kernel(
    logits: &Array<f32>,
    targets: &Array<i32>,
    weights: &Array<f32>,
    losses: &mut Array<f32>,
    log_sums: &mut Array<f32>,
    rows: usize,
    classes: usize,
    #[comptime] weighted: bool,
) {
    let row = CUBE_POS as usize;
    if row < rows {
        let mut shared = SharedMemory::<f32>::new(UNITS);
        let unit = UNIT_POS as usize;
        let start = row * classes;
        let mut largest = LOWEST.runtime();
        let mut at = unit;
        while at < classes {
            largest = select(logits[start + at] > largest, logits[start + at], largest);
            at += UNITS;
        }
        let largest = cube_max(largest, &mut shared);
        let mut sum = 0.0f32;
        let mut at = unit;
        while at < classes {
            sum += (logits[start + at] - largest).exp();
            at += UNITS;
        }
        let log_sum = cube_sum(sum, &mut shared).ln() + largest;
        if unit == 0 {
            log_sums[row] = log_sum;
            let mut weight = 1.0f32;
            if comptime!(weighted) {
                weight = weights[row];
            }
            // A row of weight zero counts for nothing, whatever its target and its logits are.
            let mut loss = 0.0f32;
            if weight != 0.0 {
                let target = targets[row];
                // A target past the classes gives a loss that is not a number: the device cannot refuse it.
                let is_class = target >= 0 && (target as usize) < classes;
                let class = select(is_class, target as usize, 0usize);
                let value = (log_sum - logits[start + class]) * weight;
                loss = select(is_class, value, value / 0.0 - value / 0.0);
            }
            losses[row] = loss;
        }
    }
}

#[cube(launch_unchecked)]
fn cross_entropy_grad_kernel(
    logits: &Array<f32>,
    targets: &Array<i32>,
    weights: &Array<f32>,
    log_sums: &Array<f32>,
    dy: &Array<f32>,
    grad: &mut Array<f32>,
    classes: usize,
    #[comptime] weighted: bool,
) {
    if ABSOLUTE_POS < grad.len() {
        let row = ABSOLUTE_POS / classes;
        let mut weight = 1.0f32;
        if comptime!(weighted) {
            weight = weights[row];
        }
        let mut value = 0.0f32;
        if weight != 0.0 {
            let class = (ABSOLUTE_POS % classes) as i32;
            let own = select(targets[row] == class, 1.0, 0.0);
            value = ((logits[ABSOLUTE_POS] - log_sums[row]).exp() - own) * weight * dy[0];
        }
        grad[ABSOLUTE_POS] = value;
    }
}

/// The output, and what the backward pass needs; shapes are the caller's to check.
pub(super) fn norm_saving<R: CubeRuntime>(
    x: CubeTensor<R>,
    residual: Option<CubeTensor<R>>,
    gamma: CubeTensor<R>,
    beta: Option<CubeTensor<R>>,
    dropout: Option<Dropout>,
    spec: NormSpec,
) -> (CubeTensor<R>, NormState<CubeTensor<R>>) {
    let [rows, _] = dims2(&x);
    let state = NormState { x_hat: empty_like(&x), inv_std: empty(&x, [rows, 1]) };
    (norm(x, residual, gamma, beta, dropout, spec, Some(&state)), state)
}

/// The output, and the state where there is room for it; shapes are the caller's to check.
pub(super) fn norm<R: CubeRuntime>(
    x: CubeTensor<R>,
    residual: Option<CubeTensor<R>>,
    gamma: CubeTensor<R>,
    beta: Option<CubeTensor<R>>,
    dropout: Option<Dropout>,
    spec: NormSpec,
    state: Option<&NormState<CubeTensor<R>>>,
) -> CubeTensor<R> {
    let [x, gamma] = [x, gamma].map(packed);
    let [residual, beta] = [residual, beta].map(|tensor| tensor.map(packed));
    let [rows, width] = dims2(&x);
    let y = empty_like(&x);
    if elements(&x) > 0 {
        let client = x.client.clone();
        let (count, dim) = by_row(rows);
        // What the kernel does not read or write is bound to another array.
        let (x_hat, inv_std) = match state {
            Some(state) => (state.x_hat.clone(), state.inv_std.clone()),
            None => (y.clone(), y.clone()),
        };
        let flags = (residual.is_some(), beta.is_some(), dropout.is_some());
        let mask = dropout.unwrap_or(Dropout { p: 0.0, seed: 0 });
        // SAFETY: x, the residual, y and x_hat are [rows, width], gamma and beta [width], inv_std [rows]; cubes and
        // units past them do nothing.
        unsafe {
            norm_kernel::launch_unchecked(
                &client,
                count,
                dim,
                x.clone().into_array_arg(),
                residual.unwrap_or_else(|| x.clone()).into_array_arg(),
                gamma.clone().into_array_arg(),
                beta.unwrap_or(gamma).into_array_arg(),
                y.clone().into_array_arg(),
                x_hat.into_array_arg(),
                inv_std.into_array_arg(),
                rows,
                width,
                spec.eps as f32,
                mask.seed as u32,
                (mask.seed >> 32) as u32,
                mask.threshold(),
                mask.scale(),
                flags.0,
                flags.1,
                flags.2,
                spec.centered,
                state.is_some(),
            );
        }
    }
    y
}

/// Gradient of a norm's input; shapes are the caller's to check.
pub(super) fn norm_input_grad<R: CubeRuntime>(
    dy: CubeTensor<R>,
    state: NormState<CubeTensor<R>>,
    gamma: CubeTensor<R>,
    spec: NormSpec,
) -> CubeTensor<R> {
    let [dy, x_hat, inv_std, gamma] = [dy, state.x_hat, state.inv_std, gamma].map(packed);
    let dx = empty_like(&dy);
    let [rows, width] = dims2(&dy);
    if elements(&dy) > 0 {
        let client = dy.client.clone();
        let (count, dim) = by_row(rows);
        // SAFETY: dy, x_hat and dx are [rows, width], gamma [width], inv_std [rows]; cubes and units past them do
        // nothing.
        unsafe {
            norm_grad_kernel::launch_unchecked(
                &client,
                count,
                dim,
                dy.into_array_arg(),
                x_hat.into_array_arg(),
                inv_std.into_array_arg(),
                gamma.into_array_arg(),
                dx.clone().into_array_arg(),
                rows,
                width,
                spec.centered,
            );
        }
    }
    dx
}

/// Weighted cross-entropies `[rows]` and the logarithms of the softmax denominators `[rows, 1]`, of at least one
/// logit.
pub(super) fn cross_entropies<R: CubeRuntime>(
    logits: CubeTensor<R>,
    targets: CubeTensor<R>,
    weights: Option<CubeTensor<R>>,
) -> (CubeTensor<R>, CubeTensor<R>) {
    let logits = packed(logits);
    let targets = packed(cast(targets, DType::I32));
    let weights = weights.map(packed);
    let [rows, classes] = dims2(&logits);
    let (losses, log_sums) = (empty(&logits, [rows]), empty(&logits, [rows, 1]));
    let client = logits.client.clone();
    let (count, dim) = by_row(rows);
    let weighted = weights.is_some();
    // SAFETY: logits are [rows, classes], and the others have an element for each row; the kernel reads no class past
    // the last.
    unsafe {
        cross_entropy_kernel::launch_unchecked(
            &client,
            count,
            dim,
            logits.clone().into_array_arg(),
            targets.into_array_arg(),
            weights.unwrap_or(logits).into_array_arg(),
            losses.clone().into_array_arg(),
            log_sums.clone().into_array_arg(),
            rows,
            classes,
            weighted,
        );
    }
    (losses, log_sums)
}

/// Gradient of logits, of which there is at least one.
pub(super) fn cross_entropy_grad<R: CubeRuntime>(
    logits: CubeTensor<R>,
    targets: CubeTensor<R>,
    weights: Option<CubeTensor<R>>,
    log_sums: CubeTensor<R>,
    dy: CubeTensor<R>,
) -> CubeTensor<R> {
    let [logits, log_sums, dy] = [logits, log_sums, dy].map(packed);
    let targets = packed(cast(targets, DType::I32));
    let weights = weights.map(packed);
    let grad = empty_like(&logits);
    let [_, classes] = dims2(&logits);
    let client = logits.client.clone();
    let (count, dim) = spread(&logits);
    let weighted = weights.is_some();
    // SAFETY: logits and their gradient are [rows, classes], the others have an element for each row, dy has one, and
    // no unit goes past the end.
    unsafe {
        cross_entropy_grad_kernel::launch_unchecked(
            &client,
            count,
            dim,
            logits.clone().into_array_arg(),
            targets.into_array_arg(),
            weights.unwrap_or(logits).into_array_arg(),
            log_sums.into_array_arg(),
            dy.into_array_arg(),
            grad.clone().into_array_arg(),
            classes,
            weighted,
        );
    }
    grad
}
