//! A weight as a tensor train, multiplied core by core.
//!
//! | dimension | meaning |
//! |---|---|
//! | m_k, n_k | digits of the input and output index, most significant first |
//! | r_k | ranks between the cores, 1 at both ends |

use burn::module::Param;
use burn::prelude::*;
use lowrank_kernels::{Kernels, linear};
use lowrank_spec::names::WeightPart;

use crate::params::lazy_normal;
use crate::projection::{INIT_STD, WeightOf};
use crate::visit::{Layout, ParamVisitor};

/// `W[(i_1 … i_d), (j_1 … j_d)] = G_1[i_1, j_1]·…·G_d[i_d, j_d]` (Oseledets 2011; Novikov et al. 2015).
#[derive(Module, Debug)]
pub struct TensorTrain<B: Backend> {
    /// Shapes `[r_{k-1}, m_k, n_k, r_k]`.
    pub cores: Vec<Param<Tensor<B, 4>>>,
    d_input: usize,
    d_output: usize,
}

impl<B: Backend> TensorTrain<B> {
    /// Newly initialized cores whose product has entries with standard deviation [`INIT_STD`].
    pub(crate) fn init(
        path: &str,
        [d_input, d_output]: [usize; 2],
        shapes: &[[usize; 4]],
        seed: u64,
        device: &B::Device,
    ) -> Self {
        // An entry of W is a sum over all inner ranks of a product of one entry of each core.
        let terms: f64 = shapes.iter().map(|shape| shape[3] as f64).product();
        let std = (INIT_STD / terms.sqrt()).powf(1.0 / shapes.len() as f64);
        let core = |(k, &shape): (usize, &[usize; 4])| {
            lazy_normal(seed, &WeightPart::Core(k).key(path), shape, std, device)
        };
        Self { cores: shapes.iter().enumerate().map(core).collect(), d_input, d_output }
    }

    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, at: WeightOf<'_>, visitor: &mut V) {
        for (k, core) in self.cores.iter_mut().enumerate() {
            visitor.visit(&at.part(WeightPart::Core(k), Layout::Same), core);
        }
    }

    pub(crate) const fn dims(&self) -> [usize; 2] {
        [self.d_input, self.d_output]
    }
}

impl<B: Kernels> TensorTrain<B> {
    /// `x·W + bias`; shapes as in [`Projection::forward`](crate::projection::Projection::forward).
    pub(crate) fn forward(&self, x: Tensor<B, 2>, bias: Option<Tensor<B, 1>>) -> Tensor<B, 2> {
        let y = contract(x, self.cores.iter().map(Param::val).collect(), self.d_output);
        match bias {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        }
    }

    /// `x·Wᵀ`.
    pub(crate) fn forward_transposed(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        contract(x, self.cores.iter().map(|core| core.val().swap_dims(1, 2)).collect(), self.d_input)
    }

    /// Rows of `W`, each the product of the slices selected by its digits.
    pub(crate) fn rows(&self, rows: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        let [tokens] = rows.dims();
        let mut stride: usize = self.cores.iter().map(|core| shape(core)[1]).product();
        let mut state: Option<Tensor<B, 3>> = None;
        for core in &self.cores {
            let [left, m, n, right] = shape(core);
            stride /= m;
            let digits = rows.clone().div_scalar(stride as i64).remainder_scalar(m as i64); // [tokens]
            let slices = core.val().swap_dims(0, 1).reshape([m, left * n * right]).select(0, digits);
            let slices = slices.cast(burn::tensor::DType::F32).reshape([tokens, left, n * right]);
            state = Some(match state {
                None => slices.reshape([tokens, n, right]), // the first left rank is 1
                Some(state) => {
                    let columns = state.dims()[1];
                    state.matmul(slices).reshape([tokens, columns * n, right])
                }
            });
        }
        let y = state
            .map(|state| state.flatten(1, 2))
            .unwrap_or_else(|| Tensor::zeros([tokens, 0], &rows.device()));
        y.narrow(1, 0, self.d_output)
    }
}

fn shape<B: Backend>(core: &Param<Tensor<B, 4>>) -> [usize; 4] {
    core.lazy_shape().dims()
}

/// Cost of applying the cores in one direction, for one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cost {
    multiply_adds: usize,
    /// Number of entries of the largest state between two cores.
    widest: usize,
}

/// From the first core to the last, and in reverse.
fn costs(shapes: &[[usize; 4]]) -> [Cost; 2] {
    let cost = |forward: bool| {
        let mut outputs = 1;
        let mut inputs: usize = shapes.iter().map(|s| s[1]).product();
        let mut cost = Cost { multiply_adds: 0, widest: inputs };
        let mut step = |&[left, m, n, right]: &[usize; 4]| {
            inputs /= m;
            cost.multiply_adds += outputs * inputs * left * m * n * right;
            outputs *= n;
            cost.widest = cost.widest.max(outputs * inputs * if forward { right } else { left });
        };
        if forward {
            shapes.iter().for_each(&mut step)
        } else {
            shapes.iter().rev().for_each(&mut step)
        }
        cost
    };
    [cost(true), cost(false)]
}

/// Number of entries of a state for which rows are processed together: more cost memory and gain nothing.
const STATE: usize = 1 << 22;

/// `x·W` for `x` `[tokens, ≤ Π m_k]`, truncated to `columns`, in the cheaper of the two directions.
fn contract<B: Kernels>(x: Tensor<B, 2>, cores: Vec<Tensor<B, 4>>, columns: usize) -> Tensor<B, 2> {
    let shapes: Vec<[usize; 4]> = cores.iter().map(Tensor::dims).collect();
    let [first, last] = costs(&shapes);
    let from_left = first.multiply_adds <= last.multiply_adds;
    let rows = (STATE / if from_left { first.widest } else { last.widest }).max(1);
    if x.dims()[0] <= rows {
        return contract_rows(x, cores, &shapes, columns, from_left);
    }
    let parts = x.split(rows, 0).into_iter();
    let parts = parts.map(|x| contract_rows(x, cores.clone(), &shapes, columns, from_left));
    Tensor::cat(parts.collect(), 0)
}

/// [`contract`] of few enough rows that their states fit.
fn contract_rows<B: Kernels>(
    x: Tensor<B, 2>,
    cores: Vec<Tensor<B, 4>>,
    shapes: &[[usize; 4]],
    columns: usize,
    from_left: bool,
) -> Tensor<B, 2> {
    let [tokens, d_input] = x.dims();
    let side = |axis: usize| shapes.iter().map(|s| s[axis]).product::<usize>();
    let (padded_input, padded_output) = (side(1), side(2));
    let x = if padded_input > d_input {
        let padding = Tensor::zeros([tokens, padded_input - d_input], (&x.device(), x.dtype()));
        Tensor::cat(vec![x, padding], 1)
    } else {
        x
    };
    let product = |state: Tensor<B, 3>, core: Tensor<B, 2>| {
        // [batch, inner, rest] · [inner, outer] -> [batch, outer, rest]
        let [batch, inner, rest] = state.dims();
        let outer = core.dims()[1];
        let state = state.swap_dims(1, 2).reshape([batch * rest, inner]);
        linear(state, core, None).reshape([batch, rest, outer]).swap_dims(1, 2)
    };
    let y = if from_left {
        // [tokens · outputs so far, r_{k-1} · m_k, inputs to come]
        let (mut state, mut batch, mut rest) = (x.reshape([tokens, 1, padded_input]), tokens, padded_input);
        for (core, &[left, m, n, right]) in cores.into_iter().zip(shapes) {
            rest /= m;
            state = product(state.reshape([batch, left * m, rest]), core.reshape([left * m, n * right]));
            batch *= n;
        }
        state
    } else {
        // [tokens · inputs to come, m_k · r_k, outputs so far]
        let (mut state, mut before, mut outputs) = (x.reshape([tokens, padded_input, 1]), padded_input, 1);
        for (core, &[left, m, n, right]) in cores.into_iter().zip(shapes).rev() {
            before /= m;
            let core = core.permute([1, 3, 0, 2]).reshape([m * right, left * n]);
            state = product(state.reshape([tokens * before, m * right, outputs]), core);
            outputs *= n;
        }
        state
    };
    y.reshape([tokens, padded_output]).narrow(1, 0, columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Tolerance;
    use burn_flex::Flex;
    use rstest::rstest;

    /// Cores growing to the right and to the left, so that both directions are taken; both sides padded.
    #[rstest]
    #[case(&[[1, 2, 3, 4], [4, 3, 2, 2], [2, 2, 5, 1]], [11, 27])]
    #[case(&[[1, 2, 6, 2], [2, 3, 2, 4], [4, 4, 2, 1]], [23, 24])]
    #[case(&[[1, 7, 3, 1]], [7, 3])]
    fn products_and_rows_are_those_of_the_dense_matrix(
        #[case] shapes: &[[usize; 4]],
        #[case] dims: [usize; 2],
    ) {
        let device = Default::default();
        let train = TensorTrain::<Flex>::init("w", dims, shapes, 3, &device);
        // The definition, entry by entry.
        let cores: Vec<Vec<f32>> =
            train.cores.iter().map(|core| core.val().into_data().iter::<f32>().collect()).collect();
        let entry = |mut i: usize, mut j: usize| {
            let mut right = vec![1.0f32];
            for (core, &[left, m, n, r]) in cores.iter().zip(shapes).rev() {
                let (a, b) = (i % m, j % n);
                (i, j) = (i / m, j / n);
                right = (0..left)
                    .map(|p| (0..r).map(|q| core[((p * m + a) * n + b) * r + q] * right[q]).sum())
                    .collect();
            }
            right[0]
        };
        let dense: Vec<f32> =
            (0..dims[0]).flat_map(|i| (0..dims[1]).map(move |j| (i, j))).map(|(i, j)| entry(i, j)).collect();
        let dense = Tensor::<Flex, 2>::from_data(burn::tensor::TensorData::new(dense, dims), &device);
        let random = |rows, width| {
            let key = lazy_normal::<Flex, 2>(5, "x", [rows, width], 1.0, &device);
            key.val()
        };
        let close = |a: Tensor<Flex, 2>, b: Tensor<Flex, 2>| {
            a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::rel_abs(1e-4, 1e-5));
        };
        let x = random(4, dims[0]);
        close(train.forward(x.clone(), None), x.matmul(dense.clone()));
        let y = random(3, dims[1]);
        close(train.forward_transposed(y.clone()), y.matmul(dense.clone().transpose()));
        let rows = Tensor::<Flex, 1, Int>::from_data([dims[0] as i32 - 1, 0, 3], &device);
        close(train.rows(rows.clone()), dense.select(0, rows));
    }

    #[test]
    fn the_cheaper_direction_is_taken() {
        let [left, right] = costs(&[[1, 2, 3, 4], [4, 3, 2, 2], [2, 2, 5, 1]]);
        // By hand: 1·6·24 + 3·2·48 + 6·1·20 and 1·6·20 + 5·2·48 + 10·1·24.
        assert_eq!([left.multiply_adds, right.multiply_adds], [552, 840]);
        // States of 12, 3·6·4, 6·2·2 and 30 numbers, and of 12, 5·6·2, 10·2·4 and 30.
        assert_eq!([left.widest, right.widest], [72, 80]);
    }

    #[test]
    fn rows_in_parts_are_rows_together() {
        let device = Default::default();
        let train = TensorTrain::<Flex>::init("w", [4096, 64], &[[1, 64, 8, 32], [32, 64, 8, 1]], 3, &device);
        let rows = 2 * STATE / (8 * 64 * 32) + 3;
        let x = lazy_normal::<Flex, 2>(5, "x", [rows, 4096], 1.0, &device).val();
        let all = train.forward(x.clone(), None);
        let last = train.forward(x.narrow(0, rows - 5, 5), None);
        all.narrow(0, rows - 5, 5)
            .into_data()
            .assert_approx_eq::<f32>(&last.into_data(), Tolerance::default());
    }
}
