//! The default of every step, composed of burn operations: slow, portable, and the reference of the tests.

mod activation;
mod attention;
mod cache;
mod linear;
mod loss;
mod norm;
mod optimizer;
mod rope;

pub(crate) use activation::{dropout, gated, gated_grads, gelu, gelu_saving};
pub(crate) use attention::{add_sinks, attention_grads, attention_saving, sinks_grad};
pub(crate) use cache::write_rows;
pub(crate) use linear::{
    add_lora, linear, linear_input_grad, linear_weight_grad, lora, lora_input_grad, sum_rows, weight_rows,
};
#[cfg(any(feature = "cuda", feature = "vulkan", feature = "metal"))]
pub(crate) use loss::head_loss_over_blocks;
pub(crate) use loss::{cross_entropy_grad, cross_entropy_saving, head_loss, scaled_by};
pub(crate) use norm::{norm_input_grad, norm_saving};
pub(crate) use optimizer::{adamw, adamw_all, clip_factor, square_sum};
pub(crate) use rope::rope;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorPrimitive};

fn wrap<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}
