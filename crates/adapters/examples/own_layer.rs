//! A LoRA on a linear layer defined outside the lowrank crates: `cargo run -p lowrank-adapters --example own_layer`.

#![allow(clippy::print_stdout, reason = "an example prints")]

use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::tensor::{Distribution, Tensor};
use burn_autodiff::Autodiff;
use lowrank_adapters::{AdapterConfig, AdapterSet, BaseLinear, Method, Mode};
use lowrank_adapters::{NoWeights, Pattern, Site, Targets};

type B = Autodiff<burn_flex::Flex>;

/// The frozen layer: `y = x·W`.
struct MyLinear(Tensor<B, 2>);

impl BaseLinear<B> for MyLinear {
    fn apply(&self, x: Tensor<B, 2>, _bias: bool) -> Tensor<B, 2> {
        x.matmul(self.0.clone())
    }
    fn dense(&self) -> Option<Tensor<B, 2>> {
        Some(self.0.clone())
    }
}

fn main() -> Result<(), lowrank_adapters::AdapterError> {
    let device = Default::default();
    let path = "fc".to_owned();
    let site = Site { path, layer: None, d_input: 16, d_output: 8, head: false, ..Site::default() };
    let targets = Targets::new(Pattern::parse("fc"));
    let config = AdapterConfig { rank: 2, ..AdapterConfig::new(Method::LORA, targets) };
    let mut set = AdapterSet::<B>::init(&config, &[site], &NoWeights, &device)?;
    let random = |shape: [usize; 2]| Tensor::<B, 2>::random(shape, Distribution::Normal(0.0, 0.5), &device);
    let (base, x) = (MyLinear(random([16, 8])), random([64, 16]));
    let target = x.clone().matmul(base.0.clone() + random([16, 2]).matmul(random([2, 8])));
    let mut adam = AdamConfig::new().init();
    for step in 0..40 {
        let error = set.forward(0, x.clone(), &base, Mode::train(step)) - target.clone();
        let loss = error.powi_scalar(2).mean();
        println!("step {step}: loss {:.5}", loss.clone().into_scalar());
        let grads = GradientsParams::from_grads(loss.backward(), &set);
        set = adam.step(0.05, set, grads);
    }
    Ok(())
}
