//! What passes between host and device in a training, counted by a router before a backend that stands for the device.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::cell::Cell;
use std::pin::Pin;

use burn::backend::Autodiff;
use burn::optim::GradientsParams;
use burn::tensor::backend::{AutodiffBackend, DTypeUsageSet, ExecutionError};
use burn::tensor::{DType, Int, Shape, Tensor, TensorData};
use burn_flex::{Flex, FlexDevice};
use burn_ir::{HandleKind, OperationIr, TensorId, TensorIr};
use burn_router::{BackendRouter, MultiBackendBridge, RouterTensor, Runner, RunnerChannel, RunnerClient};
use lowrank_adapters::Mode;
use lowrank_data::rows::TokenRow;
use lowrank_kernels::{Kernels, cross_entropy_sum};
use lowrank_models::params::WeightType;
use lowrank_models::{Adaptable, Decoder, DecoderConfig, Parameters};
use lowrank_tests::fixture;
use lowrank_train::language::LearntTokens;
use lowrank_train::{
    Alone, Groups, NextToken, Objective, Shard, Start, StepBatches, StepReport, TrainConfig, Training,
    TunedDecoder, Watch, train,
};

thread_local! {
    static READS: Cell<usize> = const { Cell::new(0) };
    static UPLOADS: Cell<usize> = const { Cell::new(0) };
}

fn count(counter: &'static std::thread::LocalKey<Cell<usize>>) {
    counter.set(counter.get() + 1);
}

/// A client that counts the tensors that it is given and asked for.
#[derive(Clone)]
struct Client(Runner<Flex>);

impl RunnerClient for Client {
    type Device = FlexDevice;

    fn register_op(&self, op: OperationIr) {
        self.0.register_op(op);
    }

    fn read_tensor_async(
        &self,
        tensor: TensorIr,
    ) -> Pin<Box<dyn Future<Output = Result<TensorData, ExecutionError>> + Send>> {
        count(&READS);
        self.0.read_tensor_async(tensor)
    }

    fn sync(&self) -> Result<(), ExecutionError> {
        count(&READS);
        self.0.sync()
    }

    fn create_empty_handle(&self) -> TensorId {
        self.0.create_empty_handle()
    }

    fn register_tensor_data(&self, data: TensorData) -> RouterTensor<Self> {
        count(&UPLOADS);
        let TensorIr { id, shape, dtype, .. } = self.0.register_tensor_data_desc(data);
        RouterTensor::new(id, shape, dtype, self.clone())
    }

    fn device(&self) -> FlexDevice {
        self.0.device()
    }

    fn seed(&self, seed: u64) {
        self.0.seed(seed);
    }

    fn dtype_usage(&self, dtype: DType) -> DTypeUsageSet {
        self.0.dtype_usage(dtype)
    }
}

#[derive(Clone)]
struct Counted;

impl RunnerChannel for Counted {
    type Device = FlexDevice;
    type Bridge = OneDevice;
    type Client = Client;
    type FloatElem = f32;
    type IntElem = i32;
    type BoolElem = bool;

    fn name(_device: &FlexDevice) -> String {
        "counted".into()
    }

    fn init_client(device: &FlexDevice) -> Client {
        Client(Runner::new(*device))
    }

    fn get_tensor_handle(tensor: &TensorIr, client: &Client) -> HandleKind<Flex> {
        client.0.get_tensor_handle(tensor)
    }

    fn register_tensor(
        client: &Client,
        handle: HandleKind<Flex>,
        shape: Shape,
        dtype: DType,
    ) -> RouterTensor<Client> {
        client.0.register_tensor(handle, shape, dtype, client.clone())
    }
}

/// Nothing to cross.
struct OneDevice;

impl MultiBackendBridge for OneDevice {
    type TensorHandle = HandleKind<Flex>;
    type Device = FlexDevice;

    fn change_backend_float(
        tensor: HandleKind<Flex>,
        _shape: Shape,
        _target: &FlexDevice,
    ) -> HandleKind<Flex> {
        tensor
    }

    fn change_backend_int(tensor: HandleKind<Flex>, _shape: Shape, _target: &FlexDevice) -> HandleKind<Flex> {
        tensor
    }

    fn change_backend_bool(
        tensor: HandleKind<Flex>,
        _shape: Shape,
        _target: &FlexDevice,
    ) -> HandleKind<Flex> {
        tensor
    }
}

/// Next-token prediction without evaluations, which read.
struct Unevaluated(NextToken);

impl<B> Objective<B> for Unevaluated
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    type Model = TunedDecoder<B>;
    type Batch = LearntTokens;

    fn batches(&self, step: usize, shard: Shard) -> lowrank_train::Result<StepBatches<LearntTokens>> {
        Objective::<B>::batches(&self.0, step, shard)
    }

    fn loss(
        &self,
        model: &TunedDecoder<B>,
        batch: &LearntTokens,
        mode: Mode,
    ) -> lowrank_train::Result<Tensor<B, 1>> {
        self.0.loss(model, batch, mode)
    }

    fn gradients(
        &self,
        model: &TunedDecoder<B>,
        batch: &LearntTokens,
        mode: Mode,
        share: f64,
    ) -> lowrank_train::Result<(Tensor<B::InnerBackend, 1>, GradientsParams)> {
        self.0.gradients(model, batch, mode, share)
    }

    fn groups(&self, model: &TunedDecoder<B>) -> Groups {
        self.0.groups(model)
    }

    fn constrain(&self, model: TunedDecoder<B>) -> lowrank_train::Result<TunedDecoder<B>> {
        self.0.constrain(model)
    }
}

/// What had been read and given when a step was reported.
#[derive(Debug, PartialEq)]
struct Seen {
    step: usize,
    reads: usize,
    uploads: usize,
}

#[derive(Default)]
struct Notes {
    losses: Vec<f64>,
    seen: Vec<Seen>,
}

impl Watch for Notes {
    fn step(&mut self, report: &StepReport) -> lowrank_train::Result<()> {
        self.losses.push(report.loss);
        self.seen.push(Seen { step: report.step, reads: READS.get(), uploads: UPLOADS.get() });
        Ok(())
    }
}

/// Trains a LoRA on a Llama of two layers for 40 steps, with a pause for an evaluation after 20.
fn notes<B>() -> Notes
where
    B: AutodiffBackend + Kernels,
    B::InnerBackend: Kernels,
{
    let row = |row: u32| {
        let ids: Vec<u32> = (0..6 + row % 3).map(|i| (row * 7 + i * 5) % 60 + 3).collect();
        TokenRow { is_learnt: (0..ids.len()).map(|i| i > 0).collect(), ids }
    };
    let rows: Vec<TokenRow> = (0..12).map(row).collect();
    let config = TrainConfig {
        lr: 0.01,
        weight_decay: 0.1,
        max_grad_norm: 0.5,
        batch_size: 3,
        max_steps: 40,
        eval_every: 20,
        ..TrainConfig::default()
    };
    let (folder, device) = (fixture("train-llama"), Default::default());
    let model = DecoderConfig::read(&folder).unwrap();
    let mut model = Decoder::<B>::load(&folder, model, WeightType::F32, &device).unwrap();
    let adapters = model.load_adapter(&fixture("train-llama-lora"), &device).unwrap();
    model.choose_trained(|_, _| false);
    let objective = Unevaluated(NextToken::new(rows.clone(), rows, &config, false).unwrap());
    let mut watch = Notes::default();
    let training = Training {
        config: &config,
        checkpoints: None,
        start: Start::Fresh,
        keep_last: false,
        watch: &mut watch,
        team: &Alone,
    };
    READS.set(0);
    UPLOADS.set(0);
    train::<B, _>(&objective, TunedDecoder::new(model, adapters), training).unwrap();
    watch
}

/// What a step sends once: ids, targets and their weights, cosines and sines of the positions.
const OF_A_STEP: usize = 5;

/// What the composed attention sends: the rows of queries and keys, the mask and the places of its results, forward and
/// backward, and backward the places of keys. The kernels of GPUs have lists of blocks instead, one forward and two backward.
const OF_A_LAYER: usize = 9;

const LAYERS: usize = 2;

/// The losses of a window are read in one transfer; nothing else is read, and the batch alone is sent.
#[test]
fn losses_alone_are_read_and_batches_alone_are_sent() {
    assert_eq!(<BackendRouter<Counted> as Kernels>::LOSS_WINDOW, 16);
    let notes = notes::<Autodiff<BackendRouter<Counted>>>();
    // By a full window, for an evaluation, by a full window, and at the end.
    let flushes = [16, 20, 36, 40];
    let expect: Vec<Seen> = (1..=40)
        .map(|step| {
            let flush = flushes.iter().position(|&last| step <= last).unwrap();
            let uploads = flushes[flush] * (OF_A_STEP + LAYERS * OF_A_LAYER);
            Seen { step, reads: flush + 1, uploads }
        })
        .collect();
    assert_eq!(notes.seen, expect);
    assert_eq!(READS.get(), flushes.len(), "after the last step");
}

/// A device cannot refuse a target: one out of range makes the loss NaN, unless the row is ignored.
#[test]
fn a_target_out_of_range_has_no_loss() {
    type B = BackendRouter<Counted>;
    let loss = |targets: [i32; 3], weights: [f32; 3]| {
        let device = Default::default();
        let logits = Tensor::<B, 2>::from_data([[0.5, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 0.0, 0.0]], &device);
        let targets = Tensor::<B, 1, Int>::from_data(targets, &device);
        let weights = Tensor::<B, 1>::from_data(weights, &device);
        cross_entropy_sum(logits, targets, Some(weights)).into_scalar()
    };
    let expected = loss([0, 1, 0], [1.0, 1.0, 0.0]);
    assert!(expected > 0.0);
    assert_eq!(loss([0, 1, -100], [1.0, 1.0, 0.0]), expected);
    for target in [3, -1, i32::MAX] {
        assert!(loss([0, 1, target], [1.0; 3]).is_nan(), "{target}");
    }
}

/// The same without a router, on the CPU's kernels.
#[test]
fn a_routed_training_has_the_same_losses() {
    let (routed, plain) = (notes::<Autodiff<BackendRouter<Counted>>>(), notes::<Autodiff<Flex>>());
    assert_eq!(routed.losses.len(), 40);
    for (routed, plain) in routed.losses.iter().zip(&plain.losses) {
        assert!((routed - plain).abs() < 1e-4 * plain, "{routed}, without a router {plain}");
    }
}
