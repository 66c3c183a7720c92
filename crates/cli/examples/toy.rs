//! The toy study of `cargo xtask experiment toy`: a linear map is learnt in full, its target is shifted by 1 in every
//! weight, and a LoRA of rank 1 learns the shift.

#![allow(clippy::print_stdout, reason = "a program's output")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may end on the first surprise"))]

#[path = "../src/backend.rs"]
mod backend;

use anyhow::Result;
use burn::module::AutodiffModule;
use burn::optim::{AdamConfig, GradientsParams, Optimizer};
use burn::tensor::{Tensor, TensorData};
use clap::Parser;
use lowrank_adapters::{
    AdapterConfig, AdapterSet, BaseLinear, Method, Mode, NoWeights, Pattern, Site, Targets,
};
use lowrank_kernels::{Kernels, linear};
use lowrank_spec::rng::{mix, normal_values};
use serde_json::{Value, json};

use crate::backend::{Device, Inner, Train, device};

/// Sizes of the study.
#[derive(Parser)]
struct Args {
    /// Width of the input
    #[arg(long, default_value_t = 1001)]
    inputs: usize,
    /// Width of the output
    #[arg(long, default_value_t = 1000)]
    outputs: usize,
    /// Rows of the data
    #[arg(long, default_value_t = 10_000)]
    rows: usize,
    /// Steps of the LoRA
    #[arg(long, default_value_t = 600)]
    steps: usize,
    /// Rows in a step of the LoRA
    #[arg(long, default_value_t = 256)]
    batch_size: usize,
    /// Seed of data and initial values
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Passes over all rows in full-rank training; each divides the loss by three where there are ten rows per input.
const FULL_STEPS: usize = 200;
/// Loss at which full-rank training ends.
const LEARNT: f64 = 1e-4;
const LORA_LR: f64 = 0.02;

/// The learnt map, frozen.
struct Frozen<B: Kernels>(Tensor<B, 2>);

impl<B: Kernels> BaseLinear<B> for Frozen<B> {
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

fn number(tensor: Tensor<Inner, 1>) -> f64 {
    tensor.into_data().iter::<f64>().next().unwrap_or(f64::NAN)
}

/// Mean of the squares.
fn loss(difference: Tensor<Inner, 2>) -> f64 {
    number(difference.clone().mul(difference).mean())
}

fn normal(seed: u64, key: &str, [m, n]: [usize; 2], device: &Device) -> Tensor<Inner, 2> {
    Tensor::from_data(TensorData::new(normal_values(seed, key, m * n, 1.0), [m, n]), device)
}

/// `θ` by gradient descent on `‖X·θ − Y‖²`, from zero. The step length is what the data's condition asks for: it is
/// halved where the loss grows.
fn learn(x: &Tensor<Inner, 2>, y: &Tensor<Inner, 2>, outputs: usize) -> (Tensor<Inner, 2>, f64) {
    let [rows, inputs] = x.dims();
    // Extreme eigenvalues of XᵀX/n for normal data lie near (1 ± √(d/n))².
    let ratio = inputs as f64 / rows as f64;
    let mut rate = 1.0 / (1.0 + ratio);
    let mut theta: Tensor<Inner, 2> = Tensor::zeros([inputs, outputs], &x.device());
    let mut residual = linear(x.clone(), theta.clone(), None) - y.clone();
    let mut value = loss(residual.clone());
    for _ in 0..FULL_STEPS {
        if value < LEARNT {
            break;
        }
        let step = x.clone().transpose().matmul(residual.clone()) * (rate / rows as f64);
        let next = theta.clone() - step;
        let next_residual = linear(x.clone(), next.clone(), None) - y.clone();
        let next_value = loss(next_residual.clone());
        if next_value < value {
            (theta, residual, value) = (next, next_residual, next_value);
        } else {
            rate /= 2.0;
        }
    }
    (theta, value)
}

fn main() -> Result<()> {
    let args = Args::parse();
    let result = study(&args)?;
    if args.json {
        println!("{result}");
        return Ok(());
    }
    let number = |key: &str| result[key].as_f64().unwrap_or(f64::NAN);
    println!("full-rank training: loss {:.2e}", number("pretrained_loss"));
    println!("every weight shifted by 1: loss {:.1}", number("shifted_loss"));
    println!(
        "LoRA of rank 1, {} of {} numbers: loss {:.2e}",
        result["trainable"],
        result["total"],
        number("lora_loss")
    );
    println!(
        "largest |ΔW − 1| {:.2e}; merged and factored outputs differ by {:.2e} at most",
        number("delta_max_error"),
        number("merged_max_difference")
    );
    Ok(())
}

/// Runs the study; its losses and differences.
fn study(args: &Args) -> Result<Value> {
    anyhow::ensure!(
        args.inputs > 0 && args.outputs > 0 && args.rows > args.inputs && args.steps > 0,
        "the study needs more rows than inputs, and at least one of everything"
    );
    let device = device()?;
    let x = normal(args.seed, "toy.x", [args.rows, args.inputs], &device);
    let truth = normal(args.seed, "toy.theta", [args.inputs, args.outputs], &device);
    let (theta, pretrained) = learn(&x, &linear(x.clone(), truth.clone(), None), args.outputs);
    let bits = |t: &Tensor<Inner, 2>| -> Vec<u32> { t.to_data().iter::<f32>().map(f32::to_bits).collect() };
    let before = bits(&theta);

    let y = linear(x.clone(), truth + 1.0, None);
    let shifted = loss(linear(x.clone(), theta.clone(), None) - y.clone());
    let site = Site {
        path: "theta".into(),
        layer: None,
        d_input: args.inputs,
        d_output: args.outputs,
        head: false,
        ..Site::default()
    };
    let targets = Targets::new(Pattern::parse("theta"));
    let config =
        AdapterConfig { rank: 1, alpha: 1.0, seed: args.seed, ..AdapterConfig::new(Method::LORA, targets) };
    let mut set = AdapterSet::<Train>::init(&config, &[site], &NoWeights, &device)?;
    let mut optimizer = AdamConfig::new().init::<Train, AdapterSet<Train>>();
    let base = Frozen(Tensor::<Train, 2>::from_inner(theta.clone()));
    let n = args.batch_size.clamp(1, args.rows);
    for step in 0..args.steps {
        // A window of the rows, which are in no order.
        let start = (mix(args.seed, step as u64) % (args.rows - n + 1) as u64) as usize;
        let [x, y] = [&x, &y].map(|t| Tensor::<Train, 2>::from_inner(t.clone().narrow(0, start, n)));
        let difference = set.forward(0, x, &base, Mode::train(step as u64)) - y;
        let grads = difference.clone().mul(difference).mean().backward();
        let grads = GradientsParams::from_grads(grads, &set);
        // Half the steps at the full rate, then down to zero.
        let left = 2.0 * (args.steps - step) as f64 / args.steps as f64;
        set = optimizer.step(LORA_LR * left.min(1.0), set, grads);
    }
    let set = set.valid();
    let base = Frozen(theta.clone());
    let factored = set.forward(0, x.clone(), &base, Mode::EVAL);
    let trained = loss(factored.clone() - y);
    let merged = set.merged_weight(0, &theta).unwrap_or_else(|| theta.clone());
    let gap = number((factored - linear(x, merged.clone(), None)).abs().max());
    let delta = merged - theta.clone();
    let off = number((delta - 1.0).abs().max());
    Ok(json!({
        "pretrained_loss": pretrained,
        "shifted_loss": shifted,
        "lora_loss": trained,
        "delta_max_error": off,
        "merged_max_difference": gap,
        "base_unchanged": bits(&theta) == before,
        "trainable": args.inputs + args.outputs,
        "total": args.inputs * args.outputs,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_toy_study_holds() {
        let args =
            Args::parse_from(["toy", "--inputs", "61", "--outputs", "40", "--rows", "600", "--steps", "400"]);
        let result = study(&args).unwrap();
        let number = |key: &str| result[key].as_f64().unwrap();
        assert!(number("pretrained_loss") < 1e-3, "{result}");
        // The mean square of a sum of 61 normal numbers.
        assert!((number("shifted_loss") / 61.0 - 1.0).abs() < 0.2, "{result}");
        assert!(number("lora_loss") < 5e-3, "{result}");
        assert!(number("delta_max_error") < 0.05, "{result}");
        assert!(number("merged_max_difference") < 1e-3, "{result}");
        assert_eq!(result["base_unchanged"], true);
    }
}
