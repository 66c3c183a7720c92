//! An objective without data: sums of parameters with given slopes, and scripted evaluations.

#![allow(dead_code, clippy::unwrap_used, reason = "no test program takes all of it")]

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use burn_flex::Flex;
use lowrank_adapters::Mode;
use lowrank_spec::rng::normal_values;
use lowrank_train::{
    Better, EvalOutput, Group, Groups, MicroBatch, Objective, Rate, Result, Selection, Shard, StepBatches,
    TrainError,
};

pub(crate) type B = Autodiff<Flex>;

pub(crate) const WIDTH: usize = 3;
pub(crate) const PARTS: usize = 4;

/// A matrix, a vector, a head and the second factor of a pair.
#[derive(Module, Debug)]
pub(crate) struct Parts<B: Backend> {
    matrix: Param<Tensor<B, 2>>,
    vector: Param<Tensor<B, 1>>,
    head: Param<Tensor<B, 2>>,
    second: Param<Tensor<B, 2>>,
}

pub(crate) fn start(part: usize) -> Vec<f64> {
    (0..WIDTH).map(|i| 1.0 - 0.2 * (part * WIDTH + i) as f64).collect()
}

fn values<const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

impl Parts<B> {
    pub(crate) fn new() -> Self {
        let device = Default::default();
        let data = |part| start(part).into_iter().map(|x| x as f32).collect::<Vec<f32>>();
        let matrix =
            |part| Param::from_tensor(Tensor::from_data(TensorData::new(data(part), [1, WIDTH]), &device));
        let vector = Param::from_tensor(Tensor::from_data(TensorData::new(data(1), [WIDTH]), &device));
        Self { matrix: matrix(0), vector, head: matrix(2), second: matrix(3) }
    }

    pub(crate) fn values(&self) -> [Vec<f64>; PARTS] {
        [
            values(self.matrix.val()),
            values(self.vector.val()),
            values(self.head.val()),
            values(self.second.val()),
        ]
    }
}

/// The gradient of each element of each part in a micro-batch; its size changes from step to step.
pub(crate) fn slopes(step: usize, micro: usize) -> [Vec<f64>; PARTS] {
    let size = [0.1, 5.0, 1.0][step % 3];
    [0, 1, 2, 3].map(|part| {
        let values = normal_values(5, &format!("{step} {micro} {part}"), WIDTH, size);
        values.into_iter().map(f64::from).collect()
    })
}

/// A sum of the parameters with given slopes, and scripted evaluations.
pub(crate) struct Script {
    /// Weights of the micro-batches of a step.
    pub(crate) weights: Vec<f64>,
    /// The metric at each evaluation.
    metric: Vec<f64>,
    better: Better,
    /// The step, from 0, whose loss is not a number, and the one that has no batches.
    pub(crate) diverges_at: Option<usize>,
    pub(crate) fails_at: Option<usize>,
    pub(crate) evaluations: Cell<usize>,
    pub(crate) steps: RefCell<Vec<usize>>,
}

impl Script {
    pub(crate) fn new(weights: &[f64], metric: &[f64], better: Better) -> Self {
        Self {
            weights: weights.to_vec(),
            metric: metric.to_vec(),
            better,
            diverges_at: None,
            fails_at: None,
            evaluations: Cell::new(0),
            steps: RefCell::default(),
        }
    }
}

impl Objective<B> for Script {
    type Model = Parts<B>;
    type Batch = [Vec<f64>; PARTS];

    fn batches(&self, step: usize, shard: Shard) -> Result<StepBatches<Self::Batch>> {
        self.steps.borrow_mut().push(step);
        if self.fails_at == Some(step) {
            return Err(TrainError::Batch(format!("no batches for step {step}")));
        }
        let mine = shard.of_lengths(&vec![1; self.weights.len()]);
        let micro = mine.into_iter().map(|place| MicroBatch {
            data: match self.diverges_at == Some(step) {
                true => [0, 1, 2, 3].map(|_| vec![f64::NAN; WIDTH]),
                false => slopes(step, place),
            },
            weight: self.weights[place],
            tokens: 1,
        });
        Ok(StepBatches { micro: micro.collect(), epoch: 0.0 })
    }

    fn loss(&self, model: &Parts<B>, slopes: &Self::Batch, _mode: Mode) -> Result<Tensor<B, 1>> {
        let device = Default::default();
        let row = |part: usize| {
            let data: Vec<f32> = slopes[part].iter().map(|&x| x as f32).collect();
            Tensor::<B, 2>::from_data(TensorData::new(data, [1, WIDTH]), &device)
        };
        let sum = (model.matrix.val() * row(0)).sum()
            + (model.vector.val().unsqueeze::<2>() * row(1)).sum()
            + (model.head.val() * row(2)).sum()
            + (model.second.val() * row(3)).sum();
        Ok(sum)
    }

    fn selection(&self) -> Option<Selection> {
        (!self.metric.is_empty()).then(|| Selection { metric: "score".into(), better: self.better })
    }

    fn evaluate(&self, _model: &<Parts<B> as AutodiffModule<B>>::InnerModule) -> Result<EvalOutput> {
        let index = self.evaluations.replace(self.evaluations.get() + 1);
        let values = BTreeMap::from([("score".to_string(), self.metric[index])]);
        Ok(EvalOutput { values, samples: Vec::new() })
    }

    fn groups(&self, model: &Parts<B>) -> Groups {
        let mut groups = Groups::default();
        groups.insert(model.head.id, Group { rate: Rate::Head, decays: true });
        groups.insert(model.second.id, Group { rate: Rate::SecondFactor, decays: false });
        groups
    }
}
