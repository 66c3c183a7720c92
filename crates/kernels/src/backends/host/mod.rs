//! What the CPU backends share: their tensors as slices, and the kernels on those.
//!
//! Tensors of another element type than `f32` take the composed default.

mod attention;
mod linear;
mod rows;
mod training;

use burn::tensor::{DType, TensorMetadata};

use crate::cpu::gemm::Weights;
use crate::cpu::rows::Rows;
use crate::weight::Weight;

pub(super) use attention::{attention_forward, attention_grads, attention_saving};
pub(super) use linear::{
    add_lora_forward, linear_forward, linear_gelu_forward, linear_gelu_saving, linear_input_grad,
    linear_weight_grad, lora_forward, lora_input_grad,
};
pub(super) use rows::{
    add, dropout_forward, gated_forward, gated_grads, gelu_forward, gelu_saving, norm_forward,
    norm_gamma_grad, norm_input_grad, norm_saving, product, rope_forward, sum_rows, write_rows,
};
pub(super) use training::{
    adamw_update, adamw_update_all, clip_factor, cross_entropy_forward, cross_entropy_grad,
    cross_entropy_saving, head_loss_saving, scaled_by,
};

/// A tensor in the machine's memory.
pub(super) trait HostTensor: TensorMetadata + Clone {
    /// The same with its elements in the order of rows.
    fn in_rows(self) -> Self;

    /// The same, as it is if it is a matrix with adjacent elements in each row; the rows may be apart.
    fn by_rows(self) -> Self {
        self.in_rows()
    }

    /// A matrix of type `f32` that is [`by_rows`](HostTensor::by_rows).
    fn rows(&self) -> Rows<'_> {
        let shape = dims2(self);
        Rows::new(self.floats(), shape, shape[1])
    }

    /// The elements of a tensor that is [`in_rows`](HostTensor::in_rows) and of type `f32`.
    fn floats(&self) -> &[f32];

    /// The elements of a tensor of type `f32` for writing, in the order of rows; a copy if others have them.
    fn floats_mut(&mut self) -> &mut [f32];

    /// The elements of a matrix that lies in the order of rows, or of columns (then `true`).
    fn weights(&self) -> Option<(Weights<'_>, bool)>;

    /// The elements of an integer tensor; negative ones are as large as can be.
    fn indices(&self) -> Vec<usize>;

    /// A tensor of these elements, in the order of rows.
    fn from_floats(floats: Vec<f32>, shape: Vec<usize>) -> Self;
}

/// The methods of `Kernels`, by the functions of this module.
macro_rules! host_kernels {
    () => {
        fn linear_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            w: $crate::Weight<::burn::tensor::ops::FloatTensor<Self>>,
            bias: Option<::burn::tensor::ops::FloatTensor<Self>>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear_forward::<Self>(x, w, bias)
        }

        fn linear_input_grad(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            w: $crate::Weight<::burn::tensor::ops::FloatTensor<Self>>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear_input_grad::<Self>(dy, w)
        }

        fn linear_weight_grad(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            dy: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear_weight_grad::<Self>(x, dy)
        }

        fn sum_rows(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::sum_rows::<Self>(dy)
        }

        fn product(
            a: ::burn::tensor::ops::FloatTensor<Self>,
            b: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::product::<Self>(a, b)
        }

        fn linear_gelu_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            w: $crate::Weight<::burn::tensor::ops::FloatTensor<Self>>,
            bias: Option<::burn::tensor::ops::FloatTensor<Self>>,
            kind: $crate::Gelu,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::linear_gelu_forward::<Self>(x, w, bias, kind)
        }

        fn linear_gelu_saving(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            w: $crate::Weight<::burn::tensor::ops::FloatTensor<Self>>,
            bias: Option<::burn::tensor::ops::FloatTensor<Self>>,
            kind: $crate::Gelu,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::linear_gelu_saving::<Self>(x, w, bias, kind)
        }

        fn gelu_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            kind: $crate::Gelu,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::gelu_forward::<Self>(x, kind)
        }

        fn gelu_saving(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            kind: $crate::Gelu,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::gelu_saving::<Self>(x, kind)
        }

        fn norm_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            residual: Option<::burn::tensor::ops::FloatTensor<Self>>,
            gamma: ::burn::tensor::ops::FloatTensor<Self>,
            beta: Option<::burn::tensor::ops::FloatTensor<Self>>,
            dropout: Option<$crate::Dropout>,
            spec: $crate::NormSpec,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::norm_forward::<Self>(x, residual, gamma, beta, dropout, spec)
        }

        fn norm_saving(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            residual: Option<::burn::tensor::ops::FloatTensor<Self>>,
            gamma: ::burn::tensor::ops::FloatTensor<Self>,
            beta: Option<::burn::tensor::ops::FloatTensor<Self>>,
            dropout: Option<$crate::Dropout>,
            spec: $crate::NormSpec,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, $crate::NormState<::burn::tensor::ops::FloatTensor<Self>>) {
            $crate::backends::host::norm_saving::<Self>(x, residual, gamma, beta, dropout, spec)
        }

        fn norm_input_grad(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            state: $crate::NormState<::burn::tensor::ops::FloatTensor<Self>>,
            gamma: ::burn::tensor::ops::FloatTensor<Self>,
            spec: $crate::NormSpec,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::norm_input_grad::<Self>(dy, state, gamma, spec)
        }

        fn norm_gamma_grad(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            x_hat: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::norm_gamma_grad::<Self>(dy, x_hat)
        }

        fn dropout_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            dropout: $crate::Dropout,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::dropout_forward::<Self>(x, dropout)
        }

        fn attention_forward(
            tensors: $crate::AttentionTensors<::burn::tensor::ops::FloatTensor<Self>>,
            spec: &$crate::AttentionSpec,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::attention_forward::<Self>(tensors, spec)
        }

        fn attention_saving(
            tensors: $crate::AttentionTensors<::burn::tensor::ops::FloatTensor<Self>>,
            spec: &$crate::AttentionSpec,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::attention_saving::<Self>(tensors, spec)
        }

        fn attention_grads(
            tensors: $crate::AttentionTensors<::burn::tensor::ops::FloatTensor<Self>>,
            y: ::burn::tensor::ops::FloatTensor<Self>,
            log_sums: ::burn::tensor::ops::FloatTensor<Self>,
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            spec: &$crate::AttentionSpec,
            needed: [bool; 5],
        ) -> $crate::AttentionGrads<::burn::tensor::ops::FloatTensor<Self>> {
            $crate::backends::host::attention_grads::<Self>(tensors, y, log_sums, dy, spec, needed)
        }

        fn cross_entropy_forward(
            logits: ::burn::tensor::ops::FloatTensor<Self>,
            targets: ::burn::tensor::ops::IntTensor<Self>,
            weights: Option<::burn::tensor::ops::FloatTensor<Self>>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::cross_entropy_forward::<Self>(logits, targets, weights)
        }

        fn cross_entropy_saving(
            logits: ::burn::tensor::ops::FloatTensor<Self>,
            targets: ::burn::tensor::ops::IntTensor<Self>,
            weights: Option<::burn::tensor::ops::FloatTensor<Self>>,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::cross_entropy_saving::<Self>(logits, targets, weights)
        }

        fn cross_entropy_grad(
            logits: ::burn::tensor::ops::FloatTensor<Self>,
            targets: ::burn::tensor::ops::IntTensor<Self>,
            weights: Option<::burn::tensor::ops::FloatTensor<Self>>,
            log_sums: ::burn::tensor::ops::FloatTensor<Self>,
            dy: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::cross_entropy_grad::<Self>(logits, targets, weights, log_sums, dy)
        }

        fn head_loss_saving(
            head: $crate::HeadTensors<::burn::tensor::ops::FloatTensor<Self>>,
            targets: ::burn::tensor::ops::IntTensor<Self>,
            weights: Option<::burn::tensor::ops::FloatTensor<Self>>,
            soft_cap: Option<f32>,
            needed: [bool; 5],
        ) -> (::burn::tensor::ops::FloatTensor<Self>, [Option<::burn::tensor::ops::FloatTensor<Self>>; 5]) {
            $crate::backends::host::head_loss_saving::<Self>(head, targets, weights, soft_cap, needed)
        }

        fn scaled_by(x: ::burn::tensor::ops::FloatTensor<Self>, factor: ::burn::tensor::ops::FloatTensor<Self>) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::scaled_by::<Self>(x, factor)
        }

        fn add(
            a: ::burn::tensor::ops::FloatTensor<Self>,
            b: ::burn::tensor::ops::FloatTensor<Self>,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::add::<Self>(a, b)
        }

        fn gated_forward(
            gate: ::burn::tensor::ops::FloatTensor<Self>,
            up: ::burn::tensor::ops::FloatTensor<Self>,
            kind: $crate::Gate,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::gated_forward::<Self>(gate, up, kind)
        }

        fn gated_grads(
            gate: ::burn::tensor::ops::FloatTensor<Self>,
            up: ::burn::tensor::ops::FloatTensor<Self>,
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            kind: $crate::Gate,
        ) -> [::burn::tensor::ops::FloatTensor<Self>; 2] {
            $crate::backends::host::gated_grads::<Self>(gate, up, dy, kind)
        }

        fn rope_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            cos: ::burn::tensor::ops::FloatTensor<Self>,
            sin: ::burn::tensor::ops::FloatTensor<Self>,
            spec: $crate::RopeSpec,
            inverse: bool,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::rope_forward::<Self>(x, cos, sin, spec, inverse)
        }

        fn write_rows(
            table: ::burn::tensor::ops::FloatTensor<Self>,
            rows: ::burn::tensor::ops::FloatTensor<Self>,
            spans: &[[usize; 3]],
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::write_rows::<Self>(table, rows, spans)
        }

        fn adamw_update(
            param: ::burn::tensor::ops::FloatTensor<Self>,
            grad: ::burn::tensor::ops::FloatTensor<Self>,
            state: $crate::AdamWState<::burn::tensor::ops::FloatTensor<Self>>,
            options: &$crate::AdamW,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, $crate::AdamWState<::burn::tensor::ops::FloatTensor<Self>>) {
            $crate::backends::host::adamw_update::<Self>(param, grad, state, options)
        }

        fn adamw_update_all(
            steps: Vec<$crate::AdamWStep<::burn::tensor::ops::FloatTensor<Self>>>,
            clip: Option<::burn::tensor::ops::FloatTensor<Self>>,
        ) -> Vec<(::burn::tensor::ops::FloatTensor<Self>, $crate::AdamWState<::burn::tensor::ops::FloatTensor<Self>>)>
        {
            $crate::backends::host::adamw_update_all::<Self>(steps, clip)
        }

        fn clip_factor(
            grads: Vec<::burn::tensor::ops::FloatTensor<Self>>,
            max_norm: f64,
        ) -> Option<::burn::tensor::ops::FloatTensor<Self>> {
            $crate::backends::host::clip_factor::<Self>(grads, max_norm)
        }

        fn lora_forward(
            x: ::burn::tensor::ops::FloatTensor<Self>,
            w: $crate::Weight<::burn::tensor::ops::FloatTensor<Self>>,
            factors: [::burn::tensor::ops::FloatTensor<Self>; 2],
            bias: Option<::burn::tensor::ops::FloatTensor<Self>>,
            spec: $crate::LoraSpec,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::lora_forward::<Self>(x, w, factors, bias, spec)
        }

        fn add_lora_forward(
            y: ::burn::tensor::ops::FloatTensor<Self>,
            x: ::burn::tensor::ops::FloatTensor<Self>,
            factors: [::burn::tensor::ops::FloatTensor<Self>; 2],
            spec: $crate::LoraSpec,
        ) -> (::burn::tensor::ops::FloatTensor<Self>, ::burn::tensor::ops::FloatTensor<Self>) {
            $crate::backends::host::add_lora_forward::<Self>(y, x, factors, spec)
        }

        fn lora_input_grad(
            dy: ::burn::tensor::ops::FloatTensor<Self>,
            w: $crate::Weight<::burn::tensor::ops::FloatTensor<Self>>,
            dh: ::burn::tensor::ops::FloatTensor<Self>,
            a: ::burn::tensor::ops::FloatTensor<Self>,
            spec: $crate::LoraSpec,
        ) -> ::burn::tensor::ops::FloatTensor<Self> {
            $crate::backends::host::lora_input_grad::<Self>(dy, w, dh, a, spec)
        }
    };
}
pub(super) use host_kernels;

/// Whether all these tensors are of type `f32`.
fn all_f32<'a, T: TensorMetadata + 'a>(tensors: impl IntoIterator<Item = &'a T>) -> bool {
    tensors.into_iter().all(|tensor| tensor.dtype() == DType::F32)
}

/// `[d_input, d_output]`.
fn weight_dims(w: &Weight<impl TensorMetadata>) -> [usize; 2] {
    match w {
        Weight::Float(tensor) => dims2(tensor),
        Weight::Blocks(blocks) => blocks.dims(),
    }
}

fn dims2(tensor: &impl TensorMetadata) -> [usize; 2] {
    tensor.shape().dims()
}
