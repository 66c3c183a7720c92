//! Attention over packed sequences.

use burn::tensor::TensorMetadata;
use burn::tensor::ops::FloatTensor;

use super::{HostTensor, all_f32, dims2};
use crate::composed;
use crate::cpu::attention;
use crate::kernels::{AttentionGrads, AttentionTensors, Kernels};
use crate::spec::{AttentionSpec, Keys};

/// The attention of `f32` tensors, with the logarithms of its softmax denominators if asked to.
fn attend<T: HostTensor>(
    tensors: &AttentionTensors<T>,
    spec: &AttentionSpec,
    with_log_sums: bool,
) -> Option<(T, Option<T>)> {
    if !all_f32(tensors.all().into_iter().flatten()) {
        return None;
    }
    check(tensors, spec);
    let shape = tensors.q.shape().to_vec();
    let AttentionTensors { q, k, v, by_query, by_key } = tensors.clone();
    let (matrices, terms) =
        ([q, k, v].map(HostTensor::by_rows), [by_query, by_key].map(|terms| terms.map(HostTensor::in_rows)));
    let rows = matrices.each_ref().map(HostTensor::rows);
    let terms = terms.each_ref().map(|terms| terms.as_ref().map(HostTensor::floats));
    let (y, log_sums) = attention::attention(rows, terms, spec, with_log_sums);
    let log_sums = log_sums.map(|log_sums| T::from_floats(log_sums, vec![shape[0], spec.n_heads]));
    Some((T::from_floats(y, shape), log_sums))
}

/// Checks the shapes, on which the unchecked reads and writes of the kernels rely.
#[track_caller]
fn check<T: HostTensor>(tensors: &AttentionTensors<T>, spec: &AttentionSpec) {
    let [q, k, v] = [&tensors.q, &tensors.k, &tensors.v].map(dims2);
    spec.check(q, k, v);
    let terms = [&tensors.by_query, &tensors.by_key].map(|terms| {
        terms.as_ref().map(|terms| {
            let shape = terms.shape();
            assert!(
                shape.num_dims() == 3,
                "attention: terms by distance have {} dimensions",
                shape.num_dims()
            );
            [shape[0], shape[1], shape[2]]
        })
    });
    spec.check_terms(terms, k[0]);
}

fn floats<T: HostTensor>(tensors: &AttentionTensors<T>) -> AttentionTensors<&[f32]> {
    let AttentionTensors { q, k, v, by_query, by_key } = tensors;
    AttentionTensors { q, k, v, by_query: by_query.as_ref(), by_key: by_key.as_ref() }.map(HostTensor::floats)
}

pub(in crate::backends) fn attention_forward<B: Kernels>(
    tensors: AttentionTensors<FloatTensor<B>>,
    spec: &AttentionSpec,
) -> FloatTensor<B>
where
    FloatTensor<B>: HostTensor,
{
    match attend(&tensors, spec, false) {
        Some((y, _)) => y,
        None => composed::attention_saving::<B>(tensors, spec).0,
    }
}

pub(in crate::backends) fn attention_saving<B: Kernels>(
    tensors: AttentionTensors<FloatTensor<B>>,
    spec: &AttentionSpec,
) -> (FloatTensor<B>, FloatTensor<B>)
where
    FloatTensor<B>: HostTensor,
{
    match attend(&tensors, spec, true) {
        Some((y, Some(log_sums))) => (y, log_sums),
        _ => composed::attention_saving::<B>(tensors, spec),
    }
}

pub(in crate::backends) fn attention_grads<B: Kernels>(
    tensors: AttentionTensors<FloatTensor<B>>,
    y: FloatTensor<B>,
    log_sums: FloatTensor<B>,
    dy: FloatTensor<B>,
    spec: &AttentionSpec,
    needed: [bool; 5],
) -> AttentionGrads<FloatTensor<B>>
where
    FloatTensor<B>: HostTensor,
{
    if !all_f32(tensors.all().into_iter().flatten().chain([&y, &log_sums, &dy])) {
        return composed::attention_grads::<B>(tensors, y, log_sums, dy, spec, needed);
    }
    check(&tensors, spec);
    assert!(matches!(spec.keys, Keys::Packed(_)), "attention: gradients over cached keys");
    let shapes = tensors.all().map(|tensor| tensor.map(|tensor| tensor.shape().to_vec()));
    let tensors = tensors.map(HostTensor::in_rows);
    let [y, log_sums, dy] = [y, log_sums, dy].map(HostTensor::in_rows);
    let saved = attention::Saved {
        tensors: floats(&tensors),
        y: y.floats(),
        log_sums: log_sums.floats(),
        dy: dy.floats(),
    };
    let mut shapes = shapes.into_iter();
    attention::attention_grads(saved, spec, needed).map(|grad| {
        let shape = shapes.next().flatten();
        grad.zip(shape).map(|(grad, shape)| HostTensor::from_floats(grad, shape))
    })
}
