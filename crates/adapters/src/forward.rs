//! Forward passes: a frozen map and the adapters of its site, on the factors.

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_kernels::{Adapted, Dropout, Kernels, LoraSpec, dropout, linear, linear_lora};

use crate::host::host_values;
use crate::lora::{Lora, Magnitude};
use crate::route::order;
use crate::set::{Adapter, AdapterSet, Member, Pair, Slot};
use lowrank_spec::{Mode, Stream};

/// The frozen map under an adapter, in whatever form its weight is.
pub trait FrozenMap<B: Kernels> {
    /// `x·W`, and the bias where it is asked for and there is one.
    ///
    /// # Shapes
    /// - `x`: `[rows, d_input]`
    /// - output: `[rows, d_output]`
    fn apply(&self, x: Tensor<B, 2>, bias: bool) -> Tensor<B, 2>;

    /// `W` `[d_input, d_output]`, where it is one matrix: base and adapter are then one step.
    fn dense(&self) -> Option<Tensor<B, 2>>;

    /// Shape `[d_output]`.
    fn bias(&self) -> Option<Tensor<B, 1>>;
}

impl<B: Kernels> AdapterSet<B> {
    /// A site's output: the base's, and the updates of the enabled members.
    ///
    /// # Shapes
    /// - `x`: `[rows, d_input]`
    /// - output: `[rows, d_output]`
    pub fn forward(
        &self,
        site: usize,
        x: Tensor<B, 2>,
        base: &impl FrozenMap<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        if let Some(observer) = &self.observer {
            observer.input(site, x.dims(), &|| host_values(x.clone()));
        }
        let Some(route) = self.route.as_ref().filter(|_| self.is_adapted(site)) else {
            return self.sum(site, &self.active(site, None), x, base, mode);
        };
        let (groups, device) = (route.groups(x.dims()[0]), x.device());
        if let [group] = &groups[..] {
            return self.of_member(site, group.member, x, base, mode);
        }
        let parts = groups.iter().map(|group| {
            let rows = x.clone().select(0, indices(group.rows.clone(), &device));
            self.of_member(site, group.member, rows, base, mode)
        });
        Tensor::cat(parts.collect(), 0).select(0, indices(order(&groups), &device))
    }

    fn of_member(
        &self,
        site: usize,
        member: Option<usize>,
        x: Tensor<B, 2>,
        base: &impl FrozenMap<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let active = member.map_or_else(Vec::new, |m| self.active(site, Some(m)));
        self.sum(site, &active, x, base, mode)
    }

    /// Base output and the updates of `active`: the first of them in one step with the base.
    fn sum(
        &self,
        site: usize,
        active: &[(&Slot, &Member)],
        x: Tensor<B, 2>,
        base: &impl FrozenMap<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let Some(((first, member), rest)) = active.split_first() else { return base.apply(x, true) };
        let mut y = self.adapted(first, x.clone(), base, drop_of(site, 0, member, mode));
        for (place, (slot, member)) in rest.iter().enumerate() {
            let drop = drop_of(site, place + 1, member, mode);
            let adapter = &self.adapters[slot.adapter];
            y = match adapter.pair(slot.slice).filter(|_| !adapter.is_dora()) {
                Some(pair) => y + pair.apply(dropped(x.clone(), drop)),
                None => {
                    let alone = self.adapted(slot, x.clone(), base, drop);
                    y + (alone - base.apply(x.clone(), true))
                }
            };
        }
        y
    }

    fn adapted(
        &self,
        slot: &Slot,
        x: Tensor<B, 2>,
        base: &impl FrozenMap<B>,
        drop: Option<Dropout>,
    ) -> Tensor<B, 2> {
        match &self.adapters[slot.adapter] {
            Adapter::Lora(lora @ Lora { magnitude: Some(magnitude), .. }) => {
                dora(lora, magnitude, x, base, drop)
            }
            Adapter::Correction(correction) => {
                let y = base.apply(x.clone(), true);
                y + linear(dropped(x, drop), correction.deltas[slot.slice].val(), None)
            }
            adapter => match adapter.pair(slot.slice) {
                Some(pair) => low_rank(pair, x, base, true, drop),
                None => base.apply(x, true),
            },
        }
    }

    /// Rows of an embedding, and the enabled updates of the ids that they stand for. `through_base` multiplies rows by
    /// the table.
    ///
    /// # Shapes
    /// - `ids`: `[tokens]`
    /// - `rows`: `[tokens, d_output]`, the base's rows of these ids
    /// - output: as `rows`
    pub fn embed(
        &self,
        site: usize,
        ids: &Tensor<B, 1, Int>,
        rows: Tensor<B, 2>,
        through_base: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        if !self.is_adapted(site) {
            return rows;
        }
        let Some(route) = &self.route else {
            return self.embedded(&self.active(site, None), ids.clone(), rows, &through_base);
        };
        let (groups, device) = (route.groups(rows.dims()[0]), rows.device());
        let parts = groups.iter().map(|group| {
            let active = group.member.map_or_else(Vec::new, |m| self.active(site, Some(m)));
            let at = indices(group.rows.clone(), &device);
            self.embedded(
                &active,
                ids.clone().select(0, at.clone()),
                rows.clone().select(0, at),
                &through_base,
            )
        });
        Tensor::cat(parts.collect(), 0).select(0, indices(order(&groups), &device))
    }

    fn embedded(
        &self,
        active: &[(&Slot, &Member)],
        ids: Tensor<B, 1, Int>,
        rows: Tensor<B, 2>,
        through_base: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Tensor<B, 2> {
        let mut sum = rows.clone();
        for (slot, _) in active {
            let adapter = &self.adapters[slot.adapter];
            let Some(pair) = adapter.pair(slot.slice) else { continue };
            let a = pair.a.clone().select(0, ids.clone()); // [tokens, rank]
            let delta = linear(a, pair.b.clone(), None) * pair.scale;
            sum = match adapter {
                Adapter::Lora(Lora { magnitude: Some(magnitude), .. }) => {
                    let ratio = magnitude.ratio(&pair, &through_base);
                    sum + (rows.clone() + delta) * ratio.unsqueeze() - rows.clone()
                }
                _ => sum + delta,
            };
        }
        sum
    }
}

impl<B: Kernels> Pair<B> {
    /// `scale·(x·A)·B`, on the factors.
    ///
    /// # Shapes
    /// - `x`: `[rows, d_input]`
    /// - output: `[rows, d_output]`
    pub fn apply(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let inner = linear(x, self.a.clone(), None) * self.scale; // [rows, rank]
        linear(inner, self.b.clone(), None)
    }
}

impl<B: Kernels> Magnitude<B> {
    /// `m / ‖W + ΔW‖` of each column; the norm is a constant to the gradient, as the paper has it.
    ///
    /// `through_base` multiplies rows by `W`: the norms come from `AᵀW` and `AᵀA`, never from `W + A·B`.
    fn ratio(&self, pair: &Pair<B>, through_base: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 2>) -> Tensor<B, 1> {
        let [d_output] = self.value.dims();
        let a = (pair.a.clone() * pair.scale).detach();
        let b = pair.b.clone().detach();
        let at = a.clone().transpose(); // [rank, d_input]
        let cross = through_base(at.clone()) * b.clone() * 2.0; // [rank, d_output]
        let square = at.matmul(a).matmul(b.clone()) * b; // [rank, d_output]
        let update = (cross + square).sum_dim(0).reshape([d_output]);
        let norms = (self.base_norms.clone() + update).detach().clamp_min(f32::MIN_POSITIVE).sqrt();
        self.value.val() / norms
    }
}

/// `m/‖W + ΔW‖ ∘ (x·W + scale·(x·A)·B) + bias`. In training, dropout is on the input of all but the base's own
/// output, as in PEFT.
fn dora<B: Kernels>(
    lora: &Lora<B>,
    magnitude: &Magnitude<B>,
    x: Tensor<B, 2>,
    base: &impl FrozenMap<B>,
    drop: Option<Dropout>,
) -> Tensor<B, 2> {
    let (a, b) = lora.factors();
    let pair = Pair { a, b, scale: lora.scale };
    let ratio = magnitude.ratio(&pair, |at| base.apply(at, false)).unsqueeze(); // [1, d_output]
    let Some(drop) = drop else {
        let y = low_rank(pair, x, base, false, None) * ratio;
        return match base.bias() {
            Some(bias) => y + bias.unsqueeze(),
            None => y,
        };
    };
    let through = dropout(x.clone(), drop);
    let directed = low_rank(pair, through.clone(), base, false, None) * ratio;
    base.apply(x, true) + directed - base.apply(through, false)
}

/// `x·W + bias + scale·(dropout(x)·A)·B`.
fn low_rank<B: Kernels>(
    pair: Pair<B>,
    x: Tensor<B, 2>,
    base: &impl FrozenMap<B>,
    bias: bool,
    drop: Option<Dropout>,
) -> Tensor<B, 2> {
    match base.dense() {
        Some(w) => {
            let spec = LoraSpec { scale: pair.scale as f32, dropout: drop };
            let bias = base.bias().filter(|_| bias);
            linear_lora(x, Adapted { w, a: pair.a, b: pair.b }, bias, spec)
        }
        None => base.apply(x.clone(), bias) + pair.apply(dropped(x, drop)),
    }
}

fn dropped<B: Kernels>(x: Tensor<B, 2>, drop: Option<Dropout>) -> Tensor<B, 2> {
    match drop {
        Some(d) => dropout(x, d),
        None => x,
    }
}

/// The dropout of a site's input; `place` counts the members that are added up there.
fn drop_of(site: usize, place: usize, member: &Member, mode: Mode) -> Option<Dropout> {
    mode.dropout(member.dropout, Stream::Adapter { site, member: place })
}

fn indices<B: Backend>(rows: Vec<i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let n = rows.len();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}
