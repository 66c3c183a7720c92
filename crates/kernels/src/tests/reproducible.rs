//! Identical bits from every instruction set, and from one thread or several.

use std::sync::Mutex;

use burn_autodiff::Autodiff;
use burn_flex::Flex;

use super::{random, values};
use crate::cpu::simd::Level;
use crate::cpu::team;
use crate::ops::{attention, cross_entropy, layer_norm, linear, linear_gelu};
use crate::spec::{AttentionSpec, Dropout, Gelu};

/// The bits of a small encoder's loss and gradients.
fn step() -> Vec<u64> {
    type B = Autodiff<Flex>;
    let lengths = [30, 5, 61];
    let spec = AttentionSpec {
        dropout: Some(Dropout { p: 0.1, seed: 2 }),
        ..AttentionSpec::encoder(lengths, 3, 24)
    };
    let x = random::<B, 2>([96, 72], 1).require_grad();
    let [q, k, v] = [2, 3, 4].map(|seed| random::<B, 2>([72, 72], seed).require_grad());
    let up = random::<B, 2>([72, 300], 5).require_grad();
    let down = random::<B, 2>([300, 72], 6).require_grad();
    let gamma = random::<B, 1>([72], 7).require_grad();
    let bias = random::<B, 1>([300], 8).require_grad();
    let attended = attention(
        linear(x.clone(), q.clone(), None),
        linear(x.clone(), k.clone(), None),
        linear(x.clone(), v.clone(), None),
        &spec,
    );
    let dropout = Some(Dropout { p: 0.2, seed: 5 });
    let hidden = layer_norm(attended, Some(x.clone()), gamma.clone(), None, 1e-12, dropout);
    let inner = linear_gelu(hidden, up.clone(), Some(bias.clone()), Gelu::Erf);
    let logits = linear(inner, down.clone(), None);
    let targets: Vec<i32> = (0..96).map(|i| i * 5 % 72).collect();
    let targets = burn::tensor::Tensor::from_data(targets.as_slice(), &Default::default());
    let loss = cross_entropy(logits, targets);
    let grads = loss.backward();
    let mut bits: Vec<u64> = values(loss).into_iter().map(f64::to_bits).collect();
    for tensor in [x, q, k, v, up, down] {
        bits.extend(values(tensor.grad(&grads).unwrap()).into_iter().map(f64::to_bits));
    }
    for tensor in [gamma, bias] {
        bits.extend(values(tensor.grad(&grads).unwrap()).into_iter().map(f64::to_bits));
    }
    bits
}

#[test]
fn a_step_gives_the_same_bits_everywhere() {
    let expected = step();
    for level in Level::available() {
        level.set();
        assert_eq!(step(), expected, "{level:?}");
    }
    // Work inside a unit is not distributed further.
    let alone = Mutex::new(Vec::new());
    team::for_each(2, true, |unit| {
        if unit == 0 {
            *alone.lock().unwrap() = step();
        }
    });
    assert_eq!(alone.into_inner().unwrap(), expected);
}
