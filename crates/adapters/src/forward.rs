//! Forward passes: a frozen map and the adapters of its site, on the factors.

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_kernels::{Dropout, Kernels, LoraSpec, Weight, add_lora, dropout, linear};
use lowrank_spec::{Mode, Stream};

use crate::route::{PickedRows, order};
use crate::set::{AdapterSet, Member, Pair, Slot};

/// The frozen linear map under an adapter, in any form of its weight.
pub trait BaseLinear<B: Kernels> {
    /// `x·W`, and the bias if requested and present.
    ///
    /// # Shapes
    /// - `x`: `[rows, d_input]`
    /// - output: `[rows, d_output]`
    fn apply(&self, x: Tensor<B, 2>, bias: bool) -> Tensor<B, 2>;

    /// `x·W` where the rows of `x` are parameters: a base that rounds activations does not round them.
    ///
    /// # Shapes
    /// As [`apply`](Self::apply).
    fn apply_exact(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.apply(x, false)
    }

    /// `W` `[d_input, d_output]`, if it is one tensor.
    fn dense(&self) -> Option<Tensor<B, 2>>;

    /// `W`, if it is one matrix in any storage, quantized or not: base and adapter are then one fused
    /// operation.
    fn weight(&self) -> Option<Weight<Tensor<B, 2>>> {
        self.dense().map(Weight::Float)
    }

    /// Shape `[d_output]`.
    fn bias(&self) -> Option<Tensor<B, 1>> {
        None
    }
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
        base: &dyn BaseLinear<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        self.forward_rows(site, x, None, base, mode)
    }

    /// Like [`forward`](Self::forward), if `x` has only some rows of the step: a routed set then knows their
    /// sequences.
    ///
    /// # Shapes
    /// - `x`: `[picked rows, d_input]`
    /// - output: `[picked rows, d_output]`
    pub fn forward_rows(
        &self,
        site: usize,
        x: Tensor<B, 2>,
        rows: Option<PickedRows<'_>>,
        base: &dyn BaseLinear<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let Some(observer) = &self.observer else { return self.unobserved(site, x, rows, base, mode) };
        observer.input(site, &x);
        let mut y = self.unobserved(site, x, rows, base, mode);
        observer.output(site, &mut y);
        y
    }

    fn unobserved(
        &self,
        site: usize,
        x: Tensor<B, 2>,
        rows: Option<PickedRows<'_>>,
        base: &dyn BaseLinear<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let Some(route) = self.route.as_ref().filter(|_| self.is_adapted(site)) else {
            return self.sum(site, &self.active(site, None), x, base, mode);
        };
        let (groups, device) = (route.groups_of(x.dims()[0], rows), x.device());
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
        base: &dyn BaseLinear<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let active = member.map_or_else(Vec::new, |m| self.active(site, Some(m)));
        self.sum(site, &active, x, base, mode)
    }

    /// Base output and the updates of `active`: the first of them fused with the base.
    fn sum(
        &self,
        site: usize,
        active: &[(&Slot, &Member)],
        x: Tensor<B, 2>,
        base: &dyn BaseLinear<B>,
        mode: Mode,
    ) -> Tensor<B, 2> {
        let Some(((first, member), rest)) = active.split_first() else { return base.apply(x, true) };
        let adapter = |slot: &Slot| &self.adapters[slot.adapter];
        let drop = drop_of(site, 0, member, mode);
        if rest.is_empty() {
            return adapter(first).forward(first.slice, x, base, drop);
        }
        let mut y = adapter(first).forward(first.slice, x.clone(), base, drop);
        for (place, (slot, member)) in rest.iter().enumerate() {
            let drop = drop_of(site, place + 1, member, mode);
            let adapter = adapter(slot);
            if adapter.depends_on_base() {
                let alone = adapter.forward(slot.slice, x.clone(), base, drop);
                y = y + (alone - base.apply(x.clone(), true));
            } else if let Some(update) = adapter.update(slot.slice, dropped(x.clone(), drop)) {
                y = y + update;
            }
        }
        y
    }

    /// Rows of an embedding, and the enabled updates of their ids. `through_base` multiplies rows by
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
            if let Some(added) = adapter.embed(slot.slice, ids.clone(), &rows, &through_base) {
                sum = sum + added;
            }
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

/// `x·W + bias + scale·(dropout(x)·A)·B`.
pub(crate) fn low_rank<B: Kernels>(
    pair: Pair<B>,
    x: Tensor<B, 2>,
    base: &dyn BaseLinear<B>,
    bias: bool,
    drop: Option<Dropout>,
) -> Tensor<B, 2> {
    let spec = LoraSpec { scale: pair.scale as f32, dropout: drop };
    let factors = [pair.a, pair.b];
    match base.weight() {
        Some(w) => w.linear_lora(x, factors, base.bias().filter(|_| bias), spec),
        None => add_lora(base.apply(x.clone(), bias), x, factors, spec),
    }
}

pub(crate) fn dropped<B: Kernels>(x: Tensor<B, 2>, drop: Option<Dropout>) -> Tensor<B, 2> {
    match drop {
        Some(d) => dropout(x, d),
        None => x,
    }
}

/// The dropout of a site's input; `place` counts the members that are summed there.
fn drop_of(site: usize, place: usize, member: &Member, mode: Mode) -> Option<Dropout> {
    mode.dropout(member.dropout, Stream::Adapter { site, member: place })
}

fn indices<B: Backend>(rows: Vec<i32>, device: &B::Device) -> Tensor<B, 1, Int> {
    let n = rows.len();
    Tensor::from_data(TensorData::new(rows, [n]), device)
}
