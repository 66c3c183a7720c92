//! Attention over packed sequences.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{HostTensor, all_f32};
use crate::composed;
use crate::cpu::attention;
use crate::kernels::{AttentionGrads, Kernels};
use crate::spec::AttentionSpec;

/// The attention of `f32` tensors, with the logarithms of its softmax denominators if asked to.
fn attend<T: HostTensor>(
    q: &T,
    k: &T,
    v: &T,
    spec: &AttentionSpec,
    with_log_sums: bool,
) -> Option<(T, Option<T>)> {
    if !all_f32([q, k, v]) {
        return None;
    }
    let shape = q.shape().to_vec();
    let [q, k, v] = [q, k, v].map(|tensor| tensor.clone().in_rows());
    let (y, log_sums) = attention::attention(q.floats(), k.floats(), v.floats(), spec, with_log_sums);
    let log_sums = log_sums.map(|log_sums| T::from_floats(log_sums, vec![shape[0], spec.n_heads]));
    Some((T::from_floats(y, shape), log_sums))
}

pub(in crate::backends) fn attention_forward<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    match attend(&q, &k, &v, spec, false) {
        Some((y, _)) => y,
        None => composed::attention_saving::<B>(q, k, v, spec).0,
    }
}

pub(in crate::backends) fn attention_saving<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
{
    match attend(&q, &k, &v, spec, true) {
        Some((y, Some(log_sums))) => (y, log_sums),
        _ => composed::attention_saving::<B>(q, k, v, spec),
    }
}

#[allow(clippy::too_many_arguments, reason = "those of the trait")]
pub(in crate::backends) fn attention_grads<B: Kernels>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    y: FloatTensor<B>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
    spec: &AttentionSpec,
    needed: [bool; 3],
) -> AttentionGrads<FloatTensor<B>>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32([&q, &k, &v, &y, &log_sums, &dy]) {
        return composed::attention_grads::<B>([q, k, v], y, log_sums, dy, spec, needed);
    }
    let (q_shape, kv_shape) = (q.shape().to_vec(), k.shape().to_vec());
    let [q, k, v, y, log_sums, dy] = [q, k, v, y, log_sums, dy].map(HostTensor::in_rows);
    let saved = attention::Saved {
        q: q.floats(),
        k: k.floats(),
        v: v.floats(),
        y: y.floats(),
        log_sums: log_sums.floats(),
        dy: dy.floats(),
    };
    let [q, k, v] = attention::attention_grads(saved, spec, needed);
    AttentionGrads {
        q: q.map(|q| HostTensor::from_floats(q, q_shape)),
        k: k.map(|k| HostTensor::from_floats(k, kv_shape.clone())),
        v: v.map(|v| HostTensor::from_floats(v, kv_shape)),
    }
}
