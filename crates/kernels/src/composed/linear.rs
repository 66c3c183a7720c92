//! Linear steps composed of burn operations.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorData};

use super::{unwrap, wrap};
use crate::blocks::BlockMatrix;
use crate::spec::LoraSpec;
use crate::weight::Weight;

/// `a·b`, including empty sides: some backends divide by the sizes.
pub(super) fn product<B: Backend>(a: Tensor<B, 2>, b: Tensor<B, 2>) -> Tensor<B, 2> {
    let ([rows, depth], [_, columns]) = (a.dims(), b.dims());
    if rows * depth * columns == 0 {
        return Tensor::zeros([rows, columns], (&a.device(), a.dtype()));
    }
    a.matmul(b)
}

pub(crate) fn linear<B: Backend>(
    x: FloatTensor<B>,
    w: Weight<FloatTensor<B>>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let x: Tensor<B, 2> = wrap(x);
    let w = w.map(wrap::<B, 2>).to_tensor(&x.device(), x.dtype());
    let y = product(x, w);
    unwrap(match bias {
        // An empty tensor cannot be unsqueezed, and some backends take one row for none.
        Some(bias) if !y.dims().contains(&0) => y + wrap::<B, 1>(bias).unsqueeze(),
        _ => y,
    })
}

pub(crate) fn linear_input_grad<B: Backend>(dy: FloatTensor<B>, w: Weight<FloatTensor<B>>) -> FloatTensor<B> {
    let dy: Tensor<B, 2> = wrap(dy);
    let w = w.map(wrap::<B, 2>).to_tensor(&dy.device(), dy.dtype());
    unwrap(product(dy, w.transpose()))
}

pub(crate) fn linear_weight_grad<B: Backend>(x: FloatTensor<B>, dy: FloatTensor<B>) -> FloatTensor<B> {
    let x: Tensor<B, 2> = wrap(x);
    unwrap(product(x.transpose(), wrap(dy)))
}

pub(crate) fn sum_rows<B: Backend>(dy: FloatTensor<B>) -> FloatTensor<B> {
    let dy: Tensor<B, 2> = wrap(dy);
    let [rows, columns] = dy.dims();
    // Some backends refuse to sum up nothing.
    if rows == 0 {
        return unwrap(Tensor::<B, 1>::zeros([columns], (&dy.device(), dy.dtype())));
    }
    unwrap(dy.sum_dim(0).squeeze_dim::<1>(0))
}

pub(crate) fn lora<B: Backend>(
    x: FloatTensor<B>,
    w: Weight<FloatTensor<B>>,
    factors: [FloatTensor<B>; 2],
    bias: Option<FloatTensor<B>>,
    spec: LoraSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    add_lora::<B>(linear::<B>(x.clone(), w, bias), x, factors, spec)
}

pub(crate) fn add_lora<B: Backend>(
    y: FloatTensor<B>,
    x: FloatTensor<B>,
    [a, b]: [FloatTensor<B>; 2],
    spec: LoraSpec,
) -> (FloatTensor<B>, FloatTensor<B>) {
    let h = lora_down::<B>(x, a, spec);
    let delta = product(wrap::<B, 2>(h.clone()), wrap::<B, 2>(b).mul_scalar(spec.scale));
    (unwrap(wrap::<B, 2>(y) + delta), h)
}

/// `dropout(x)·a`.
fn lora_down<B: Backend>(x: FloatTensor<B>, a: FloatTensor<B>, spec: LoraSpec) -> FloatTensor<B> {
    let x = match spec.dropout {
        Some(dropout) => super::dropout::<B>(x, dropout),
        None => x,
    };
    linear::<B>(x, Weight::Float(a), None)
}

/// The gradient of the input by way of the base, plus that by way of the adapter.
pub(crate) fn lora_input_grad<B: Backend>(
    base: FloatTensor<B>,
    dh: FloatTensor<B>,
    a: FloatTensor<B>,
    spec: LoraSpec,
) -> FloatTensor<B> {
    let dx = linear_input_grad::<B>(dh, Weight::Float(a));
    let dx = match spec.dropout {
        Some(dropout) => super::dropout::<B>(dx, dropout),
        None => dx,
    };
    B::float_add(base, dx)
}

#[track_caller]
pub(crate) fn weight_rows<B: Backend>(w: Weight<FloatTensor<B>>, rows: IntTensor<B>) -> FloatTensor<B> {
    let rows = Tensor::<B, 1, Int>::from_primitive(rows);
    let w = w.map(wrap::<B, 2>);
    unwrap(match &w {
        Weight::Float(tensor) => tensor.clone().select(0, rows).cast(DType::F32),
        Weight::Blocks(blocks) if blocks.is_transposed() => {
            w.to_tensor(&rows.device(), DType::F32).select(0, rows)
        }
        Weight::Blocks(blocks) => stored_rows(blocks, rows),
    })
}

/// Stored rows, of which no others become floats.
#[track_caller]
fn stored_rows<B: Backend>(blocks: &BlockMatrix, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    let device = rows.device();
    let [count, width] = blocks.dims();
    let mut values = Vec::with_capacity(rows.dims()[0] * width);
    let indices = rows.into_data();
    for row in indices.iter::<i64>() {
        let index = usize::try_from(row).ok().filter(|&row| row < count);
        match index {
            Some(row) => blocks.extend_stored_row(row, &mut values),
            None => panic!("rows: index {row} of a matrix of {count} rows"),
        }
    }
    let shape = [indices.num_elements(), width];
    Tensor::from_data(TensorData::new(values, shape), (&device, DType::F32))
}
