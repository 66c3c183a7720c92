//! A LoRA on a linear layer of one's own: `cargo run -p lowrank-adapters --example own_layer`.

#![allow(clippy::print_stdout, reason = "an example prints")]

use burn::module::AutodiffModule;
use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::tensor::{Distribution, Tensor};
use burn_autodiff::Autodiff;
use lowrank_adapters::kernels::{Kernels, linear};
use lowrank_adapters::{
    AdapterConfig, AdapterSet, BaseLinear, Method, Mode, NoWeights, Pattern, Site, Targets,
};

type B = Autodiff<burn_flex::Flex>;

/// The frozen layer: `y = x·W`.
struct MyLinear<B: Kernels>(Tensor<B, 2>);

impl<B: Kernels> BaseLinear<B> for MyLinear<B> {
    fn apply(&self, x: Tensor<B, 2>, _bias: bool) -> Tensor<B, 2> {
        linear(x, self.0.clone(), None)
    }
    fn dense(&self) -> Option<Tensor<B, 2>> {
        Some(self.0.clone())
    }
    fn bias(&self) -> Option<Tensor<B, 1>> {
        None
    }
}

fn main() -> Result<(), lowrank_adapters::AdapterError> {
    let device = Default::default();
    let site =
        Site { path: "fc".into(), layer: None, d_input: 16, d_output: 8, head: false, embedding: false };
    let config =
        AdapterConfig { rank: 2, ..AdapterConfig::new(Method::LORA, Targets::new(Pattern::parse("fc"))) };
    let mut set = AdapterSet::<B>::init(&config, &[site], &NoWeights, &device)?;
    let random = |shape: [usize; 2]| Tensor::<B, 2>::random(shape, Distribution::Normal(0.0, 0.5), &device);
    let base = MyLinear(random([16, 8]));
    let target = base.0.clone() + random([16, 2]).matmul(random([2, 8]));
    let mut adam = AdamConfig::new().init();
    for step in 0..400 {
        let x = random([64, 16]);
        let y = set.forward(0, x.clone(), &base, Mode::train(step));
        let loss = (y - x.matmul(target.clone())).powi_scalar(2).mean();
        if step % 100 == 0 {
            println!("step {step}: loss {:.5}", loss.clone().into_scalar());
        }
        let grads = GradientsParams::from_grads(loss.backward(), &set);
        set = adam.step(0.05, set, grads);
    }
    let gap = base.0.clone().inner() + set.valid().delta_weight(0).unwrap_or_else(|| base.0.clone().inner());
    println!("largest gap to the target: {:.5}", (gap - target.inner()).abs().max().into_scalar());
    Ok(())
}
