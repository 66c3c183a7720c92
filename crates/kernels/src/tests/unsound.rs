//! The methods of the trait are safe: what would make their kernels read or write elsewhere is refused.

use burn::tensor::{Tensor, TensorPrimitive};
use burn_flex::Flex;

use super::random;
use crate::kernels::{AttentionTensors, Kernels};
use crate::spec::{AttentionSpec, Keys, RopeSpec};

type Primitive = burn::tensor::ops::FloatTensor<Flex>;

fn primitive(rows: usize, width: usize) -> Primitive {
    let tensor: Tensor<Flex, 2> = random([rows, width], 3);
    match tensor.into_primitive() {
        TensorPrimitive::Float(tensor) => tensor,
        TensorPrimitive::QFloat(_) => unreachable!("floats"),
    }
}

fn tensors(queries: [usize; 2], keys: [usize; 2]) -> AttentionTensors<Primitive> {
    let of = |[rows, width]: [usize; 2]| primitive(rows, width);
    AttentionTensors { q: of(queries), k: of(keys), v: of(keys), by_query: None, by_key: None }
}

#[test]
#[should_panic(expected = "3 heads over 2 key heads")]
fn heads_that_the_key_heads_do_not_divide() {
    let spec = AttentionSpec { n_kv_heads: 2, ..AttentionSpec::encoder([4], 3, 8) };
    let _ = Flex::attention_forward(tensors([4, 24], [4, 16]), &spec);
}

#[test]
#[should_panic(expected = "at least as many keys as queries")]
fn more_queries_than_keys() {
    let keys = Keys::Packed([3].into());
    let spec = AttentionSpec { keys, queries_first: true, ..AttentionSpec::decoder([5], 1, 1, 8) };
    let _ = Flex::attention_forward(tensors([5, 8], [3, 8]), &spec);
}

#[test]
#[should_panic(expected = "gradients over cached keys")]
fn gradients_over_a_cache() {
    let keys = Keys::Cached(vec![0..4; 1].into());
    let spec = AttentionSpec { keys, ..AttentionSpec::decoder([4], 1, 1, 8) };
    let (y, dy) = (primitive(4, 8), primitive(4, 8));
    let _ = Flex::attention_grads(tensors([4, 8], [4, 8]), y, primitive(4, 1), dy, &spec, [true; 5]);
}

#[test]
#[should_panic(expected = "3 heads in a width of 10")]
fn a_rotation_of_heads_that_do_not_fill_the_width() {
    let spec = RopeSpec { n_heads: 3, rotary_dim: 2, interleaved: false };
    let _ = Flex::rope_forward(primitive(2, 10), primitive(2, 1), primitive(2, 1), spec, false);
}
