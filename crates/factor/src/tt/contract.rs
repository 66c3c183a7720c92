//! Products of a batch with a TT-matrix, core by core, in the cheapest order.
//!
//! The state is a row-major tensor `[I_<l, r_{l-1}, J_l..c, r_c, I_>c, batch]`: cores `l ..= c` have been
//! applied, `I` are the remaining input digits, `J` the output digits computed so far. Applying the next core
//! on either side contracts neighbouring axes, so every step is a set of equal matrix products on contiguous
//! blocks, without any permutation.

use faer::{Accum, MatMut, MatRef, Par};
use rayon::prelude::*;

use super::core::Core;
use crate::matrix::{parallelism, product_into};
use crate::scalar::Scalar;

/// One step of a [`ContractionPlan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ContractionStep {
    /// Applies the core with this index first.
    Start(usize),
    /// Applies the core left of those already applied.
    Left(usize),
    /// Applies the core right of those already applied.
    Right(usize),
}

/// The order in which a product applies the cores, and its cost.
#[derive(Debug, Clone, PartialEq)]
pub struct ContractionPlan {
    steps: Vec<ContractionStep>,
    multiply_adds: usize,
}

impl ContractionPlan {
    /// The steps in order.
    pub fn steps(&self) -> &[ContractionStep] {
        &self.steps
    }

    /// Multiply-adds of the whole product; the dense product needs `batch · m · n`.
    pub fn multiply_adds(&self) -> usize {
        self.multiply_adds
    }

    /// Cheapest order, by dynamic programming over the intervals of applied cores.
    ///
    /// # Shapes
    /// `ranks` has `d + 1` entries with the outer ones 1; `input` and `output` have `d`.
    pub(crate) fn cheapest(ranks: &[usize], input: &[usize], output: &[usize], batch: usize) -> Self {
        let chain = Chain { ranks, input, output, batch };
        let d = input.len();
        // best[l][c]: cost, step and multiply-adds of the cheapest way to apply cores l ..= c.
        let mut best = vec![vec![(f64::INFINITY, ContractionStep::Start(0), 0_usize); d]; d];
        for width in 0..d {
            for l in 0..d - width {
                let c = l + width;
                let mut candidates = Vec::with_capacity(2);
                if width == 0 {
                    candidates.push((0.0, ContractionStep::Start(l), 0));
                } else {
                    let (cost, _, count) = best[l + 1][c];
                    candidates.push((cost, ContractionStep::Left(l), count));
                    let (cost, _, count) = best[l][c - 1];
                    candidates.push((cost, ContractionStep::Right(c), count));
                }
                for (cost, step, count) in candidates {
                    let block = chain.block(step, (l, c));
                    let cost = cost + block.cost();
                    if cost < best[l][c].0 {
                        best[l][c] = (cost, step, count + block.multiply_adds());
                    }
                }
            }
        }
        let multiply_adds = best[0][d - 1].2;
        let mut steps = Vec::with_capacity(d);
        let (mut l, mut c) = (0, d - 1);
        for _ in 0..d {
            let step = best[l][c].1;
            steps.push(step);
            match step {
                ContractionStep::Left(_) => l += 1,
                ContractionStep::Right(_) => c -= 1,
                ContractionStep::Start(_) => {}
            }
        }
        steps.reverse();
        Self { steps, multiply_adds }
    }
}

/// Shapes of a product.
struct Chain<'a> {
    ranks: &'a [usize],
    input: &'a [usize],
    output: &'a [usize],
    batch: usize,
}

impl Chain<'_> {
    /// The block products with which the given step reaches the interval `l ..= c`.
    fn block(&self, step: ContractionStep, (l, c): (usize, usize)) -> Block {
        let Self { ranks: r, input: i, output: o, batch } = self;
        let product = |x: &[usize]| x.iter().product::<usize>();
        let (before, after) = (product(&i[..l]), product(&i[c + 1..]) * batch);
        match step {
            ContractionStep::Start(k) => {
                Block { count: before, inner: i[k], outer: r[k] * o[k] * r[k + 1], width: after }
            }
            ContractionStep::Right(k) => Block {
                count: before * r[l] * product(&o[l..k]),
                inner: r[k] * i[k],
                outer: o[k] * r[k + 1],
                width: after,
            },
            ContractionStep::Left(k) => Block {
                count: before,
                inner: i[k] * r[k + 1],
                outer: r[k] * o[k],
                width: product(&o[k + 1..=c]) * r[c + 1] * after,
            },
        }
    }
}

/// `count` products of shape `[outer × inner]·[inner × width]` with one common left operand.
#[derive(Debug, Clone, Copy)]
struct Block {
    count: usize,
    inner: usize,
    outer: usize,
    width: usize,
}

impl Block {
    fn multiply_adds(&self) -> usize {
        self.count * self.inner * self.outer * self.width
    }

    /// Time in units of one multiply-add at full speed: in addition to the arithmetic, each element costs a
    /// pass through memory and each product a call.
    fn cost(&self) -> f64 {
        const PER_ELEMENT: f64 = 8.0;
        const PER_CALL: f64 = 10_000.0;
        let calls = if self.width == 1 { 1 } else { self.count };
        let elements = self.count * self.width * (self.inner + self.outer);
        self.multiply_adds() as f64 + PER_ELEMENT * elements as f64 + PER_CALL * calls as f64
    }

    /// Applies the left operand to all blocks of the state.
    fn run<T: Scalar>(&self, operand: MatRef<'_, T>, state: &[T]) -> Vec<T> {
        let Self { count, inner, outer, width } = *self;
        debug_assert_eq!((operand.nrows(), operand.ncols()), (outer, inner));
        debug_assert_eq!(state.len(), count * inner * width);
        let mut out = vec![T::default(); count * outer * width];
        if width == 1 {
            // One product with the blocks as rows, instead of a matrix-vector product each.
            let rows = MatRef::from_row_major_slice(state, count, inner);
            let target = MatMut::from_row_major_slice_mut(&mut out, count, outer);
            product_into(target, Accum::Replace, rows, operand.transpose(), T::of(1.0));
            return out;
        }
        let one = |(target, block): (&mut [T], &[T]), par: Par| {
            let block = MatRef::from_row_major_slice(block, inner, width);
            let target = MatMut::from_row_major_slice_mut(target, outer, width);
            T::gemm(target, Accum::Replace, operand, block, T::of(1.0), par);
        };
        let blocks = || state.chunks_exact(inner * width);
        match parallelism(self.multiply_adds()) {
            Par::Seq => {
                out.chunks_exact_mut(outer * width).zip(blocks()).for_each(|pair| one(pair, Par::Seq))
            }
            par if count < par.degree() => {
                out.chunks_exact_mut(outer * width).zip(blocks()).for_each(|pair| one(pair, par));
            }
            par => {
                let least = count.div_ceil(4 * par.degree());
                out.par_chunks_exact_mut(outer * width)
                    .with_min_len(least)
                    .zip(state.par_chunks_exact(inner * width))
                    .for_each(|pair| one(pair, Par::Seq));
            }
        }
        out
    }
}

/// A core in the layouts of the steps: row-major `[left, in, out, right]` and `[left, out, in, right]`.
pub(crate) struct Operand<'a, T: Scalar> {
    pub(crate) input_first: &'a [T],
    pub(crate) output_first: &'a [T],
}

/// Runs a plan over a state `[i_1, …, i_d, batch]`; the result is `[j_1, …, j_d, batch]`.
pub(crate) fn run<T: Scalar>(
    plan: &ContractionPlan,
    operands: &[Operand<'_, T>],
    (ranks, input, output): (&[usize], &[usize], &[usize]),
    batch: usize,
    mut state: Vec<T>,
) -> Vec<T> {
    let chain = Chain { ranks, input, output, batch };
    let (mut l, mut c) = (0, 0);
    for &step in plan.steps() {
        match step {
            ContractionStep::Start(k) => (l, c) = (k, k),
            ContractionStep::Left(k) => l = k,
            ContractionStep::Right(k) => c = k,
        }
        let block = chain.block(step, (l, c));
        let (rows, cols) = (block.inner, block.outer);
        state = match step {
            ContractionStep::Start(k) if ranks[k] == 1 => block
                .run(MatRef::from_row_major_slice(operands[k].input_first, rows, cols).transpose(), &state),
            ContractionStep::Start(k) => {
                let first = start_operand(operands[k].output_first, input[k], ranks[k + 1]);
                block.run(MatRef::from_row_major_slice(&first, cols, rows), &state)
            }
            ContractionStep::Right(k) => block
                .run(MatRef::from_row_major_slice(operands[k].input_first, rows, cols).transpose(), &state),
            ContractionStep::Left(k) => {
                block.run(MatRef::from_row_major_slice(operands[k].output_first, cols, rows), &state)
            }
        };
    }
    state
}

/// `[left·out, in, right]` to `[left·out, right, in]`.
fn start_operand<T: Scalar>(data: &[T], input: usize, right: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(data.len());
    for block in data.chunks_exact(input * right) {
        for j in 0..right {
            out.extend((0..input).map(|i| block[i * right + j]));
        }
    }
    out
}

/// Ranks of a chain of cores, including the outer ones.
pub(crate) fn all_ranks<T: Scalar>(cores: &[Core<T>]) -> Vec<usize> {
    core::iter::once(1).chain(cores.iter().map(|core| core.shape()[2])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_by_hand() {
        // Two cores 4×4 with rank 2, batch 3, left to right: 3·4·(4·2)·4 + 3·4·(2·4)·4.
        let plan = ContractionPlan::cheapest(&[1, 2, 1], &[4, 4], &[4, 4], 3);
        assert_eq!(plan.multiply_adds(), 3 * 4 * 8 * 4 + 3 * 4 * 8 * 4);
        assert_eq!(plan.steps().len(), 2);
    }

    #[test]
    fn the_wide_end_goes_first_when_it_shrinks() {
        // The last core maps 64 inputs to 1 output: applying it first makes everything after it small.
        let plan = ContractionPlan::cheapest(&[1, 2, 2, 1], &[4, 4, 64], &[4, 4, 1], 8);
        assert_eq!(plan.steps()[0], ContractionStep::Start(2));
        let mirrored = ContractionPlan::cheapest(&[1, 2, 2, 1], &[64, 4, 4], &[1, 4, 4], 8);
        assert_eq!(mirrored.steps()[0], ContractionStep::Start(0));
        let middle = ContractionPlan::cheapest(&[1, 2, 2, 1], &[4, 64, 4], &[4, 1, 4], 8);
        assert_eq!(middle.steps()[0], ContractionStep::Start(1));
    }
}
