//! The product with a head and the cross-entropy of its logits, in chunks of rows.

use super::gemm::{Left, Product, Right, Weights, gemm_into};
use super::loss::{Targets, cross_entropy_in_place};
use super::norm;

/// Number of logits in memory at a time, unless fewer than [`MIN_ROWS`] rows fit.
const LOGITS: usize = 8 * 1024 * 1024;

/// Minimum number of rows that amortizes reading the head.
const MIN_ROWS: usize = 64;

/// A matrix `[k, n]` in its memory layout; `transposed` if the memory holds `[n, k]`.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) weights: Weights<'a>,
    pub(crate) transposed: bool,
}

impl<'a> Matrix<'a> {
    /// As the right factor of a product of length `k` and width `n`.
    fn right(self, shape: [usize; 2]) -> Right<'a> {
        if self.transposed {
            Right::of_transpose(self.weights, shape)
        } else {
            Right::new(self.weights, shape)
        }
    }

    fn transpose(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// `x` `[rows, depth]` and the matrix `[depth, vocab]` by which it is multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) w: Matrix<'a>,
    pub(crate) depth: usize,
    /// Whether the gradients of `x` and of `w` are needed.
    pub(crate) needed: [bool; 2],
}

/// A head whose logits are `Σ x·w + bias` over one or two terms.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) terms: &'a [Term<'a>],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) bias_needed: bool,
    pub(crate) vocab: usize,
    pub(crate) targets: Targets<'a>,
    pub(crate) soft_cap: Option<f32>,
}

/// Gradients of a term: of `x` `[rows, depth]`, and of `w`, in the layout of `w`.
pub(crate) type TermGrads = [Option<Vec<f32>>; 2];

/// The weighted sum of the cross-entropies, the gradients of each term, and that of the bias.
///
/// *Algorithm*: the logits of some rows are computed, replaced in place by their gradients, and multiplied by
/// the head again (Hsu et al. 2024, «Liger Kernel»), so that at most [`LOGITS`] of them exist at a time.
///
/// # Panics
/// If a target with nonzero weight is not below `vocab`.
pub(crate) fn head_loss(head: Head<'_>) -> (f32, Vec<TermGrads>, Option<Vec<f32>>) {
    let Head { terms, bias, bias_needed, vocab, targets, soft_cap } = head;
    targets.check(vocab);
    let rows = targets.classes.len();
    assert!(terms.iter().all(|term| term.x.len() == rows * term.depth));
    let counted: Vec<usize> = (0..rows).filter(|&row| targets.weight(row) != 0.0).collect();
    let mut d_bias = bias_needed.then(|| vec![0.0; vocab]);
    let mut grads: Vec<TermGrads> = terms
        .iter()
        .map(|&Term { depth, needed, .. }| {
            [needed[0].then(|| vec![0.0; rows * depth]), needed[1].then(|| vec![0.0; depth * vocab])]
        })
        .collect();
    let with_grad = bias_needed || terms.iter().any(|term| term.needed.contains(&true));
    let chunks = counted.len().div_ceil((LOGITS / vocab.max(1)).max(MIN_ROWS)).max(1);
    let rows_a_chunk = counted.len().div_ceil(chunks);
    let mut logits = vec![0.0; rows_a_chunk * vocab];
    let mut loss = 0.0;
    for chunk in counted.chunks(rows_a_chunk.max(1)) {
        let logits = &mut logits[..chunk.len() * vocab];
        let inputs: Vec<Vec<f32>> = terms.iter().map(|term| gather(term.x, term.depth, chunk)).collect();
        let products: Vec<Product<'_>> = terms
            .iter()
            .zip(&inputs)
            .map(|(term, x)| Product {
                a: Left::Rows(x),
                b: term.w.right([term.depth, vocab]),
                k: term.depth,
            })
            .collect();
        gemm_into([chunk.len(), vocab], &products, bias, false, logits);
        let classes: Vec<usize> = chunk.iter().map(|&row| targets.classes[row]).collect();
        let weights: Vec<f32> = chunk.iter().map(|&row| targets.weight(row)).collect();
        let targets = Targets { classes: &classes, weights: Some(&weights) };
        loss += cross_entropy_in_place(logits, targets, vocab, soft_cap, with_grad);
        if let Some(d_bias) = &mut d_bias {
            d_bias.iter_mut().zip(norm::sum_rows(logits, None, vocab)).for_each(|(sum, x)| *sum += x);
        }
        for ((term, x), [dx, dw]) in terms.iter().zip(&inputs).zip(&mut grads) {
            if let Some(dx) = dx {
                input_grad(term, logits, [chunk.len(), vocab], chunk, dx);
            }
            if let Some(dw) = dw {
                weight_grad(term, x, logits, [chunk.len(), vocab], dw);
            }
        }
    }
    (loss as f32, grads, d_bias)
}

/// Some rows of a matrix of this width.
fn gather(x: &[f32], width: usize, rows: &[usize]) -> Vec<f32> {
    let mut gathered = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        gathered.extend_from_slice(&x[row * width..(row + 1) * width]);
    }
    gathered
}

/// `dx = d_logits·wᵀ` in the given rows.
fn input_grad(term: &Term<'_>, d_logits: &[f32], [count, vocab]: [usize; 2], rows: &[usize], dx: &mut [f32]) {
    let depth = term.depth;
    let product = Product { a: Left::Rows(d_logits), b: term.w.transpose().right([vocab, depth]), k: vocab };
    match (rows.first(), rows.last()) {
        // Usually all rows count, and the result is written in place.
        (Some(&first), Some(&last)) if last - first + 1 == count => {
            gemm_into([count, depth], &[product], None, false, &mut dx[first * depth..(last + 1) * depth]);
        }
        _ => {
            let mut gathered = vec![0.0; count * depth];
            gemm_into([count, depth], &[product], None, false, &mut gathered);
            for (i, &row) in rows.iter().enumerate() {
                dx[row * depth..][..depth].copy_from_slice(&gathered[i * depth..][..depth]);
            }
        }
    }
}

/// `dw += xᵀ·d_logits`, or its transpose if `w` is transposed.
fn weight_grad(term: &Term<'_>, x: &[f32], d_logits: &[f32], [count, vocab]: [usize; 2], dw: &mut [f32]) {
    let (shape, a, b) = if term.w.transposed {
        ([vocab, term.depth], d_logits, x)
    } else {
        ([term.depth, vocab], x, d_logits)
    };
    let b = Right::new(Weights::F32(b), [count, shape[1]]);
    gemm_into(shape, &[Product { a: Left::Columns(a), b, k: count }], None, true, dw);
}
