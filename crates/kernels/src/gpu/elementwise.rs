//! Steps element by element: activations, dropout, rotary positions.

use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{dims2, elements, empty_like, packed, spread};
use super::math::{ERF, SILU, TANH, gate, gate_slope, gelu, gelu_slope, keeps, row_key};
use crate::spec::{Dropout, Gate, Gelu, RopeSpec};

#[cube(launch_unchecked)]
fn gelu_kernel(x: &Array<f32>, y: &mut Array<f32>, #[comptime] tanh: bool) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = gelu(x[ABSOLUTE_POS], tanh);
    }
}

#[cube(launch_unchecked)]
fn gelu_saving_kernel(x: &Array<f32>, y: &mut Array<f32>, slope: &mut Array<f32>, #[comptime] tanh: bool) {
    if ABSOLUTE_POS < y.len() {
        let value = x[ABSOLUTE_POS];
        y[ABSOLUTE_POS] = gelu(value, tanh);
        slope[ABSOLUTE_POS] = gelu_slope(value, tanh);
    }
}

#[cube(launch_unchecked)]
fn gated_kernel(gates: &Array<f32>, up: &Array<f32>, y: &mut Array<f32>, #[comptime] kind: u8) {
    if ABSOLUTE_POS < y.len() {
        y[ABSOLUTE_POS] = gate(gates[ABSOLUTE_POS], kind) * up[ABSOLUTE_POS];
    }
}

#[cube(launch_unchecked)]
fn gated_grads_kernel(
    gates: &Array<f32>,
    up: &Array<f32>,
    dy: &Array<f32>,
    d_gate: &mut Array<f32>,
    d_up: &mut Array<f32>,
    #[comptime] kind: u8,
) {
    if ABSOLUTE_POS < d_gate.len() {
        let x = gates[ABSOLUTE_POS];
        d_gate[ABSOLUTE_POS] = dy[ABSOLUTE_POS] * up[ABSOLUTE_POS] * gate_slope(x, kind);
        d_up[ABSOLUTE_POS] = dy[ABSOLUTE_POS] * gate(x, kind);
    }
}

#[cube(launch_unchecked)]
fn dropout_kernel(
    x: &Array<f32>,
    y: &mut Array<f32>,
    width: usize,
    seed_low: u32,
    seed_high: u32,
    threshold: u32,
    scale: f32,
) {
    if ABSOLUTE_POS < y.len() {
        let key = row_key(seed_low, seed_high, ABSOLUTE_POS / width);
        let factor = select(keeps(key, ABSOLUTE_POS % width, threshold), scale, 0.0);
        y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * factor;
    }
}

#[cube(launch_unchecked)]
fn rope_kernel(
    x: &Array<f32>,
    cos: &Array<f32>,
    sin: &Array<f32>,
    y: &mut Array<f32>,
    width: usize,
    head_dim: usize,
    half: usize,
    distance: usize,
    direction: f32,
    #[comptime] interleaved: bool,
) {
    if ABSOLUTE_POS < y.len() {
        let at = (ABSOLUTE_POS % width) % head_dim;
        if at < half * 2 {
            // The first of a pair gets a·cos - b·sin, the second b·cos + a·sin.
            let pair = if comptime!(interleaved) { at / 2 } else { at % half };
            let is_first = if comptime!(interleaved) { at % 2 == 0 } else { at < half };
            let angle = ABSOLUTE_POS / width * half + pair;
            let other = select(is_first, ABSOLUTE_POS + distance, ABSOLUTE_POS - distance);
            let sine = select(is_first, 0.0 - direction, direction) * sin[angle];
            y[ABSOLUTE_POS] = x[ABSOLUTE_POS] * cos[angle] + x[other] * sine;
        } else {
            y[ABSOLUTE_POS] = x[ABSOLUTE_POS];
        }
    }
}

pub(super) fn gelu_forward<R: CubeRuntime>(x: CubeTensor<R>, kind: Gelu) -> CubeTensor<R> {
    let x = packed(x);
    let y = empty_like(&x);
    let (client, (count, dim)) = (x.client.clone(), spread(&x));
    if elements(&x) > 0 {
        // SAFETY: both arrays have as many elements, and no unit goes past the end.
        unsafe {
            gelu_kernel::launch_unchecked(
                &client,
                count,
                dim,
                x.into_array_arg(),
                y.clone().into_array_arg(),
                kind == Gelu::Tanh,
            );
        }
    }
    y
}

pub(super) fn gelu_saving<R: CubeRuntime>(x: CubeTensor<R>, kind: Gelu) -> (CubeTensor<R>, CubeTensor<R>) {
    let x = packed(x);
    let (y, slope) = (empty_like(&x), empty_like(&x));
    let (client, (count, dim)) = (x.client.clone(), spread(&x));
    if elements(&x) > 0 {
        // SAFETY: all arrays have as many elements, and no unit goes past the end.
        unsafe {
            gelu_saving_kernel::launch_unchecked(
                &client,
                count,
                dim,
                x.into_array_arg(),
                y.clone().into_array_arg(),
                slope.clone().into_array_arg(),
                kind == Gelu::Tanh,
            );
        }
    }
    (y, slope)
}

/// Gate and up are of one shape, which the caller has checked.
pub(super) fn gated_forward<R: CubeRuntime>(
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
    kind: Gate,
) -> CubeTensor<R> {
    let (gate, up) = (packed(gate), packed(up));
    let y = empty_like(&gate);
    let (client, (count, dim)) = (gate.client.clone(), spread(&gate));
    if elements(&gate) > 0 {
        // SAFETY: the arrays have as many elements, and no unit goes past the end.
        unsafe {
            gated_kernel::launch_unchecked(
                &client,
                count,
                dim,
                gate.into_array_arg(),
                up.into_array_arg(),
                y.clone().into_array_arg(),
                comptime_kind(kind),
            );
        }
    }
    y
}

/// All tensors are of one shape, which the caller has checked.
pub(super) fn gated_grads<R: CubeRuntime>(
    gate: CubeTensor<R>,
    up: CubeTensor<R>,
    dy: CubeTensor<R>,
    kind: Gate,
) -> [CubeTensor<R>; 2] {
    let [gate, up, dy] = [gate, up, dy].map(packed);
    let (d_gate, d_up) = (empty_like(&gate), empty_like(&gate));
    let (client, (count, dim)) = (gate.client.clone(), spread(&gate));
    if elements(&gate) > 0 {
        // SAFETY: the arrays have as many elements, and no unit goes past the end.
        unsafe {
            gated_grads_kernel::launch_unchecked(
                &client,
                count,
                dim,
                gate.into_array_arg(),
                up.into_array_arg(),
                dy.into_array_arg(),
                d_gate.clone().into_array_arg(),
                d_up.clone().into_array_arg(),
                comptime_kind(kind),
            );
        }
    }
    [d_gate, d_up]
}

const fn comptime_kind(kind: Gate) -> u8 {
    match kind {
        Gate::Silu => SILU,
        Gate::Gelu(Gelu::Erf) => ERF,
        Gate::Gelu(Gelu::Tanh) => TANH,
    }
}

pub(super) fn dropout_forward<R: CubeRuntime>(x: CubeTensor<R>, dropout: Dropout) -> CubeTensor<R> {
    let x = packed(x);
    let y = empty_like(&x);
    let [_, width] = dims2(&x);
    let (client, (count, dim)) = (x.client.clone(), spread(&x));
    if elements(&x) > 0 {
        // SAFETY: both arrays have as many elements, and no unit goes past the end.
        unsafe {
            dropout_kernel::launch_unchecked(
                &client,
                count,
                dim,
                x.into_array_arg(),
                y.clone().into_array_arg(),
                width,
                dropout.seed as u32,
                (dropout.seed >> 32) as u32,
                dropout.threshold(),
                dropout.scale(),
            );
        }
    }
    y
}

/// Heads fill the width, and cosines and sines are `[tokens, rotary_dim / 2]`: the caller has checked.
pub(super) fn rope_forward<R: CubeRuntime>(
    x: CubeTensor<R>,
    cos: CubeTensor<R>,
    sin: CubeTensor<R>,
    spec: RopeSpec,
    inverse: bool,
) -> CubeTensor<R> {
    let [x, cos, sin] = [x, cos, sin].map(packed);
    let y = empty_like(&x);
    let [_, width] = dims2(&x);
    let (client, (count, dim)) = (x.client.clone(), spread(&x));
    if elements(&x) > 0 {
        // SAFETY: x and y have as many elements, no unit goes past the end, pairs lie within a head, and there is an
        // angle for each pair of each token.
        unsafe {
            rope_kernel::launch_unchecked(
                &client,
                count,
                dim,
                x.into_array_arg(),
                cos.into_array_arg(),
                sin.into_array_arg(),
                y.clone().into_array_arg(),
                width,
                width / spec.n_heads,
                spec.rotary_dim / 2,
                if spec.interleaved { 1 } else { spec.rotary_dim / 2 },
                if inverse { -1.0 } else { 1.0 },
                spec.interleaved,
            );
        }
    }
    y
}
