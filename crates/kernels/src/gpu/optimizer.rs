//! AdamW over many parameters in few launches, and the factor that clips the joint norm of their gradients.
//!
//! The arrays of a launch are the kernel's arguments. Each cube has a part of one of them: `starts` has the first cube of
//! each array and the end of the last.

use burn::tensor::{DType, TensorMetadata};
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl;
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

use super::launch::{by_row, elements, empty, fit, owned, packed};
use super::math::{UNITS, cube_sum};
use crate::kernels::{AdamWState, AdamWStep};
use crate::spec::AdamW;

/// Elements of a parameter that a cube updates.
const UPDATED: usize = 8 * UNITS;

/// Elements of a gradient that a cube sums up.
const SUMMED: usize = 32 * UNITS;

/// Parameters of a launch, gradients of one, and different options of one, at most: with the lengths of the arrays, the
/// arguments have less than 4 KiB, the limit of CUDA before 12.1.
const PARAMETERS: usize = 48;
const GRADIENTS: usize = 160;
const OPTIONS: usize = 8;

/// Numbers of an [`AdamW`] as a kernel takes it.
const FACTORS: usize = 9;

#[cube]
fn update(
    grad: &Array<f32>,
    param: &mut Array<f32>,
    mean: &mut Array<f32>,
    square: &mut Array<f32>,
    part: usize,
    grad_scale: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    keep: f32,
    rate: f32,
    inverse_root: f32,
    eps: f32,
) {
    let mut at = part * UPDATED + UNIT_POS as usize;
    let end = (part + 1) * UPDATED;
    while at < end && at < param.len() {
        let g = grad[at] * grad_scale;
        let m = mean[at] * beta1 + g * rest1;
        let s = square[at] * beta2 + g * g * rest2;
        mean[at] = m;
        square[at] = s;
        param[at] = param[at] * keep - m / (s.sqrt() * inverse_root + eps) * rate;
        at += UNITS;
    }
}

#[cube(launch_unchecked)]
fn adamw_kernel(
    grads: &Sequence<Array<f32>>,
    clip: &Array<f32>,
    params: &mut Sequence<Array<f32>>,
    means: &mut Sequence<Array<f32>>,
    squares: &mut Sequence<Array<f32>>,
    starts: Sequence<usize>,
    factors: Sequence<f32>,
    #[comptime] options: Vec<usize>,
    #[comptime] clipped: bool,
) {
    let cube = CUBE_POS as usize;
    let mut scale = 1.0f32;
    if comptime!(clipped) {
        scale = clip[0];
    }
    let count = comptime!(options.len());
    #[unroll]
    for i in 0..count {
        let first = *starts.index(comptime!(i));
        let end = *starts.index(comptime!(i + 1));
        if cube >= first && cube < end {
            let from = comptime!(options[i] * FACTORS);
            update(
                grads.index(comptime!(i)),
                params.index_mut(comptime!(i)),
                means.index_mut(comptime!(i)),
                squares.index_mut(comptime!(i)),
                cube - first,
                *factors.index(comptime!(from)) * scale,
                *factors.index(comptime!(from + 1)),
                *factors.index(comptime!(from + 2)),
                *factors.index(comptime!(from + 3)),
                *factors.index(comptime!(from + 4)),
                *factors.index(comptime!(from + 5)),
                *factors.index(comptime!(from + 6)),
                *factors.index(comptime!(from + 7)),
                *factors.index(comptime!(from + 8)),
            );
        }
    }
}

#[cube(launch_unchecked)]
fn square_sums_kernel(
    grads: &Sequence<Array<f32>>,
    sums: &mut Array<f32>,
    starts: Sequence<usize>,
    offset: usize,
    #[comptime] count: usize,
) {
    let cube = CUBE_POS as usize;
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut sum = 0.0f32;
    #[unroll]
    for i in 0..count {
        let first = *starts.index(comptime!(i));
        let end = *starts.index(comptime!(i + 1));
        if cube >= first && cube < end {
            let grad = grads.index(comptime!(i));
            let mut at = (cube - first) * SUMMED + UNIT_POS as usize;
            let end = (cube - first + 1) * SUMMED;
            while at < end && at < grad.len() {
                sum += grad[at] * grad[at];
                at += UNITS;
            }
        }
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 && cube < *starts.index(comptime!(count)) {
        sums[offset + cube] = sum;
    }
}

#[cube(launch_unchecked)]
fn clip_factor_kernel(sums: &Array<f32>, factor: &mut Array<f32>, count: usize, max_norm: f32) {
    let mut shared = SharedMemory::<f32>::new(UNITS);
    let mut sum = 0.0f32;
    let mut at = UNIT_POS as usize;
    while at < count {
        sum += sums[at];
        at += UNITS;
    }
    let sum = cube_sum(sum, &mut shared);
    if UNIT_POS == 0 {
        let ratio = max_norm / (sum.sqrt() + 1e-6);
        // Not a number is not below 1.
        factor[0] = select(ratio < 1.0, ratio, 1.0);
    }
}

/// Whether the kernels take these steps.
pub(super) fn fits<R: CubeRuntime>(steps: &[AdamWStep<CubeTensor<R>>], clip: Option<&CubeTensor<R>>) -> bool {
    let fit_each = |step: &AdamWStep<CubeTensor<R>>| {
        let AdamWStep { param, grad, state, .. } = step;
        all_fit([param, grad.as_ref().unwrap_or(param), &state.mean, &state.square])
    };
    steps.iter().all(fit_each) && fit(clip) && clip.is_none_or(|clip| elements(clip) == 1)
}

/// Whether the kernels take a parameter, its gradient and its moments.
pub(super) fn all_fit<R: CubeRuntime>(tensors: [&CubeTensor<R>; 4]) -> bool {
    fit(tensors) && tensors.iter().all(|tensor| tensor.shape() == tensors[0].shape())
}

/// Parameters and states after their steps; that they fit is the caller's to check.
pub(super) fn adamw_update_all<R: CubeRuntime>(
    steps: Vec<AdamWStep<CubeTensor<R>>>,
    clip: Option<CubeTensor<R>>,
) -> Vec<(CubeTensor<R>, AdamWState<CubeTensor<R>>)> {
    let without = steps.iter().filter(|step| step.grad.is_none()).map(|step| &step.param);
    let zeros = without.max_by_key(|param| elements(param)).map(|param| {
        let (client, device) = (param.client.clone(), param.device.clone());
        zeros_client(client, device, [elements(param)].into(), DType::F32)
    });
    let mut launch = Launch::default();
    let updated = steps.into_iter().map(|step| launch.add(step, zeros.as_ref(), clip.as_ref())).collect();
    launch.run(clip.as_ref());
    updated
}

/// [`adamw_update_all`] of one parameter.
pub(super) fn adamw_update<R: CubeRuntime>(
    param: CubeTensor<R>,
    grad: CubeTensor<R>,
    state: AdamWState<CubeTensor<R>>,
    options: &AdamW,
) -> (CubeTensor<R>, AdamWState<CubeTensor<R>>) {
    let mut launch = Launch::default();
    let step = AdamWStep { param, grad: Some(grad), state, options: *options };
    let updated = launch.add(step, None, None);
    launch.run(None);
    updated
}

/// The parameters of a launch.
struct Launch<R: CubeRuntime> {
    /// Gradients, parameters and the two moments.
    arrays: [Vec<CubeTensor<R>>; 4],
    starts: Starts,
    /// The different options, and which of them each parameter has.
    factors: Vec<[f32; FACTORS]>,
    options: Vec<usize>,
}

impl<R: CubeRuntime> Default for Launch<R> {
    fn default() -> Self {
        let (arrays, starts) = (Default::default(), Starts::default());
        Self { arrays, starts, factors: Vec::new(), options: Vec::new() }
    }
}

impl<R: CubeRuntime> Launch<R> {
    /// Adds a parameter to the launch; a full launch runs first. The returned tensors hold the results of the step once the
    /// launch has run.
    fn add(
        &mut self,
        step: AdamWStep<CubeTensor<R>>,
        zeros: Option<&CubeTensor<R>>,
        clip: Option<&CubeTensor<R>>,
    ) -> (CubeTensor<R>, AdamWState<CubeTensor<R>>) {
        let AdamWStep { param, grad, state, options } = step;
        let [param, mean, square] = [param, state.mean, state.square].map(owned);
        // Zeros in place of a gradient may be more than the parameter has.
        let grad = grad.map(packed).or_else(|| zeros.cloned());
        if let Some(grad) = grad.filter(|_| elements(&param) > 0) {
            let factors = factors(&options);
            let has_room = self.options.len() < most(&param, 4).min(PARAMETERS)
                && (self.factors.len() < OPTIONS || self.factors.contains(&factors));
            if !has_room {
                std::mem::take(self).run(clip);
            }
            self.push([grad, param.clone(), mean.clone(), square.clone()], factors);
        }
        (param, AdamWState { mean, square })
    }

    fn push(&mut self, arrays: [CubeTensor<R>; 4], factors: [f32; FACTORS]) {
        self.starts.push(elements(&arrays[1]).div_ceil(UPDATED));
        let place = self.factors.iter().position(|held| *held == factors).unwrap_or_else(|| {
            self.factors.push(factors);
            self.factors.len() - 1
        });
        self.options.push(place);
        self.arrays.iter_mut().zip(arrays).for_each(|(all, array)| all.push(array));
    }

    fn run(self, clip: Option<&CubeTensor<R>>) {
        let [grads, params, means, squares] = self.arrays;
        let Some(like) = grads.first().cloned() else { return };
        let (count, dim) = by_row(self.starts.end());
        let is_clipped = clip.is_some();
        let clip = clip.unwrap_or(&like).clone();
        // SAFETY: gradients are as long as their parameters or longer, the others as long; a unit stays within the
        // parameter of its cube; and nothing else has the three that are written.
        unsafe {
            adamw_kernel::launch_unchecked(
                &like.client,
                count,
                dim,
                arrays(grads),
                clip.into_array_arg(),
                arrays(params),
                arrays(means),
                arrays(squares),
                self.starts.arg(),
                self.factors.into_iter().flatten().collect(),
                self.options,
                is_clipped,
            );
        }
    }
}

/// `min(1, max_norm / (norm + 1e-6))`, shape `[1]`, with the joint norm of tensors that fit; `None` if they have no elements.
pub(super) fn clip_factor<R: CubeRuntime>(grads: Vec<CubeTensor<R>>, max_norm: f64) -> Option<CubeTensor<R>> {
    let grads: Vec<_> = grads.into_iter().filter(|grad| elements(grad) > 0).map(packed).collect();
    let like = grads.first()?.clone();
    let n_sums = grads.iter().map(|grad| elements(grad).div_ceil(SUMMED)).sum();
    let (sums, factor) = (empty(&like, [n_sums]), empty(&like, [1]));
    let mut offset = 0;
    for grads in grads.chunks(most(&like, 1).min(GRADIENTS)) {
        let mut starts = Starts::default();
        grads.iter().for_each(|grad| starts.push(elements(grad).div_ceil(SUMMED)));
        let cubes = starts.end();
        let (count, dim) = by_row(cubes);
        // SAFETY: a unit stays within the gradient of its cube, and there is a sum for each cube.
        unsafe {
            square_sums_kernel::launch_unchecked(
                &like.client,
                count,
                dim,
                arrays(grads.to_vec()),
                sums.clone().into_array_arg(),
                starts.arg(),
                offset,
                grads.len(),
            );
        }
        offset += cubes;
    }
    // SAFETY: there are as many sums, all of them written, and one factor.
    unsafe {
        clip_factor_kernel::launch_unchecked(
            &like.client,
            CubeCount::Static(1, 1, 1),
            CubeDim::new_1d(UNITS as u32),
            sums.into_array_arg(),
            factor.clone().into_array_arg(),
            n_sums,
            max_norm as f32,
        );
    }
    Some(factor)
}

/// The first cube of each array, and the end of the last.
struct Starts(Vec<usize>);

impl Default for Starts {
    fn default() -> Self {
        Self(vec![0])
    }
}

impl Starts {
    fn push(&mut self, cubes: usize) {
        self.0.push(self.end() + cubes);
    }

    fn end(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }

    fn arg<R: CubeRuntime>(&self) -> SequenceArg<R, usize> {
        self.0.iter().copied().collect()
    }
}

fn arrays<R: CubeRuntime>(tensors: Vec<CubeTensor<R>>) -> SequenceArg<R, Array<f32>> {
    tensors.into_iter().map(CubeTensor::into_array_arg).collect()
}

/// How many groups of `arrays` arrays a launch can have beside another array.
fn most<R: CubeRuntime>(like: &CubeTensor<R>, arrays: usize) -> usize {
    let bindings = like.client.properties().hardware.max_bindings as usize;
    (bindings.saturating_sub(1) / arrays).max(1)
}

/// The scale of the gradients, both decay rates with what they leave, what weight decay keeps, the rate, one over the root
/// of the second correction, and epsilon.
fn factors(options: &AdamW) -> [f32; FACTORS] {
    let AdamW { lr, beta1, beta2, eps, weight_decay, grad_scale, .. } = *options;
    let [correction1, correction2] = options.corrections();
    [
        grad_scale,
        beta1,
        1.0 - beta1,
        beta2,
        1.0 - beta2,
        1.0 - lr * weight_decay,
        lr / correction1,
        1.0 / correction2.sqrt(),
        eps,
    ]
    .map(|factor| factor as f32)
}
