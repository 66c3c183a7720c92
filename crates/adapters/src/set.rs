//! A set of adapters over one base: every trainable factor, keyed by site.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::Arc;

use burn::module::ParamId;
use burn::prelude::*;
use lowrank_spec::Pattern;

use crate::error::{AdapterError, Result};
use crate::host::host_values;
use crate::methods::{Adapter, FactorRole};
use crate::peft::Carried;
use crate::route::Route;

/// Assignment of a site to an adapter and a slice of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Index of the site in the model's list.
    pub site: usize,
    /// Module path of the site.
    pub path: String,
    /// Index into the set's adapters.
    pub adapter: usize,
    /// Slice within a shared adapter, 0 otherwise.
    pub slice: usize,
}

/// One of the adapters on a base.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Whether it takes part in forward passes.
    pub enabled: bool,
    /// Dropout on its input, in training.
    pub dropout: f64,
    /// The contents of its folder besides factors, if it was read from one.
    pub carried: Option<Arc<Carried>>,
}

/// The input of a site, where the model's backend holds it.
pub trait Activations {
    /// `[rows, d_input]`.
    fn shape(&self) -> [usize; 2];

    /// All values, row-major, read from the device.
    fn values(&self) -> Vec<f32>;

    /// A `Tensor<B, 2>` of the model's backend, for work on its device.
    fn tensor(&self) -> &dyn Any;
}

impl<B: Backend> Activations for Tensor<B, 2> {
    fn shape(&self) -> [usize; 2] {
        self.dims()
    }

    fn values(&self) -> Vec<f32> {
        host_values(self.clone())
    }

    fn tensor(&self) -> &dyn Any {
        self
    }
}

/// Observes the inputs of every site while a model runs; calibration collects its statistics with it.
pub trait Observer: Debug + Send + Sync {
    /// The input of a site.
    fn input(&self, site: usize, x: &dyn Activations);

    /// The output of a site, a `Tensor<B, 2>` of the model's backend, of shape `[rows, d_output]`, which may be changed:
    /// a zero offset that requires a gradient receives the gradient of the output.
    fn output(&self, _site: usize, _y: &mut dyn Any) {}
}

/// All adapters over one base, without the base.
///
/// Shared factors are owned once, so the optimizer updates them once. A set that was created or loaded has
/// one [`Member`]; [`AdapterSet::join`] puts several on one base. The updates of all enabled members are
/// added, unless a [`Route`] selects one member for each sequence of a batch.
#[derive(Module, Debug)]
pub struct AdapterSet<B: Backend> {
    pub(crate) adapters: Vec<Adapter<B>>,
    #[module(skip)]
    pub(crate) slots: Vec<Slot>,
    #[module(skip)]
    pub(crate) members: Vec<Member>,
    /// By adapter: the member it belongs to.
    #[module(skip)]
    pub(crate) owners: Vec<usize>,
    /// By site index: its slots.
    #[module(skip)]
    pub(crate) by_site: Vec<Vec<usize>>,
    #[module(skip)]
    pub(crate) route: Option<Route>,
    #[module(skip)]
    pub(crate) observer: Option<Arc<dyn Observer>>,
}

/// Factors of an update: `scale·A·B`.
#[derive(Clone, Debug)]
pub struct Pair<B: Backend> {
    /// Shape `[d_input, rank]`.
    pub a: Tensor<B, 2>,
    /// Shape `[rank, d_output]`.
    pub b: Tensor<B, 2>,
    /// Factor on the product.
    pub scale: f64,
}

impl<B: Backend> Pair<B> {
    /// `scale·A·B`, shape `[d_input, d_output]`.
    pub fn product(&self) -> Tensor<B, 2> {
        self.a.clone().matmul(self.b.clone()) * self.scale
    }
}

impl<B: Backend> AdapterSet<B> {
    /// No adapters: every site returns its base output.
    pub fn empty() -> Self {
        Self {
            adapters: Vec::new(),
            slots: Vec::new(),
            members: Vec::new(),
            owners: Vec::new(),
            by_site: Vec::new(),
            route: None,
            observer: None,
        }
    }

    /// Lets `observer` see the input of every site.
    pub fn observed(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// A set of given adapters, with one member; `n_sites` is the length of the model's site list.
    pub fn from_parts(adapters: Vec<Adapter<B>>, slots: Vec<Slot>, n_sites: usize, dropout: f64) -> Self {
        let owners = vec![0; adapters.len()];
        let members = vec![Member { name: "default".into(), enabled: true, dropout, carried: None }];
        Self { adapters, slots, members, owners, ..Self::empty() }.indexed(n_sites)
    }

    fn indexed(mut self, n_sites: usize) -> Self {
        let mut by_site = vec![Vec::new(); n_sites];
        for (index, slot) in self.slots.iter().enumerate() {
            by_site[slot.site].push(index);
        }
        self.by_site = by_site;
        self
    }

    /// Joins several sets over the same base, each as a member under its name; all are enabled.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] for a repeated name or sets over different models.
    pub fn join(sets: impl IntoIterator<Item = (String, Self)>) -> Result<Self> {
        let mut joined = Self::empty();
        let mut n_sites = None;
        for (name, set) in sets {
            if set.is_empty() {
                continue;
            }
            if joined.members.iter().any(|m| m.name == name) {
                return Err(AdapterError::Incompatible(format!("two adapters are called '{name}'")));
            }
            if *n_sites.get_or_insert(set.by_site.len()) != set.by_site.len() {
                return Err(AdapterError::Incompatible(format!("'{name}' belongs to another model")));
            }
            let (first, member) = (joined.adapters.len(), joined.members.len());
            let Member { dropout, carried, .. } = set.members.into_iter().next().unwrap_or_default();
            joined.members.push(Member { name, enabled: true, dropout, carried });
            joined.owners.extend(set.adapters.iter().map(|_| member));
            joined.adapters.extend(set.adapters);
            let moved = set.slots.into_iter().map(|s| Slot { adapter: s.adapter + first, ..s });
            joined.slots.extend(moved);
        }
        Ok(joined.indexed(n_sites.unwrap_or(0)))
    }

    /// Removes a member from the set: returns the remaining set, and the member as a set.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] if no member has the name.
    pub fn detach(self, name: &str) -> Result<(Self, Self)> {
        let member = self.member(name)?;
        let n_sites = self.by_site.len();
        let (mut kept, mut taken) = (Self::empty(), Self::empty());
        kept.members = self.members.clone();
        taken.members = vec![kept.members.remove(member)];
        let mut moved = Vec::new();
        for (adapter, &owner) in self.adapters.into_iter().zip(&self.owners) {
            let (set, owner) = if owner == member {
                (&mut taken, 0)
            } else {
                (&mut kept, owner - usize::from(owner > member))
            };
            moved.push(set.adapters.len());
            set.adapters.push(adapter);
            set.owners.push(owner);
        }
        for slot in self.slots {
            let adapter = moved[slot.adapter];
            let set = if self.owners[slot.adapter] == member { &mut taken } else { &mut kept };
            set.slots.push(Slot { adapter, ..slot });
        }
        Ok((kept.indexed(n_sites), taken.indexed(n_sites)))
    }

    fn member(&self, name: &str) -> Result<usize> {
        self.members.iter().position(|m| m.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.members.iter().map(|m| m.name.as_str()).collect();
            AdapterError::Incompatible(format!("no adapter is called '{name}'; known: {}", known.join(", ")))
        })
    }

    /// Enables or disables a member in forward passes.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] if no member has the name.
    pub fn set_enabled(&mut self, name: &str, enabled: bool) -> Result<()> {
        let member = self.member(name)?;
        self.members[member].enabled = enabled;
        Ok(())
    }

    /// Enables or disables all members.
    pub fn set_all_enabled(&mut self, enabled: bool) {
        self.members.iter_mut().for_each(|m| m.enabled = enabled);
    }

    /// The same set for one batch: sequence `i`, of `lengths[i]` tokens, uses only the member `rows[i]`, or
    /// none.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] if a name is unknown, or the numbers of names and lengths differ.
    pub fn routed(&self, rows: &[Option<&str>], lengths: &[usize]) -> Result<Self> {
        if rows.len() != lengths.len() {
            let text = format!("adapters for {} rows of a batch of {}", rows.len(), lengths.len());
            return Err(AdapterError::Incompatible(text));
        }
        let rows = rows.iter().map(|row| row.map(|name| self.member(name)).transpose());
        let route = Route::new(rows.collect::<Result<_>>()?, lengths);
        Ok(Self { route: Some(route), ..self.clone() })
    }

    /// A routed set for a step over some of its sequences, `lengths[i]` tokens of sequence `active[i]`; `None` for a set that
    /// is not routed, which serves any step.
    pub fn for_step(&self, active: &[usize], lengths: &[usize]) -> Option<Self> {
        let route = self.route.as_ref()?.of_step(active, lengths);
        Some(Self { route: Some(route), ..self.clone() })
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// The adapted sites, in the model's order, one member after the other.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The members on the base.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Whether [`AdapterSet::forward`] changes the base output at a site.
    pub fn covers(&self, site: usize) -> bool {
        self.observer.is_some() || self.is_adapted(site)
    }

    pub(crate) fn is_adapted(&self, site: usize) -> bool {
        self.by_site.get(site).is_some_and(|slots| !slots.is_empty())
    }

    /// The adapters to which the slots refer.
    pub fn adapters(&self) -> &[Adapter<B>] {
        &self.adapters
    }

    /// The role of every parameter of the set, by its id, for the groups of an optimizer.
    ///
    /// ```
    /// # use lowrank_adapters::{AdapterConfig, AdapterSet, Method, NoWeights, Pattern, Site, Targets};
    /// # use lowrank_adapters::methods::FactorRole;
    /// # type B = burn_flex::Flex;
    /// # let site = Site { path: "q".into(), layer: None, d_input: 4, d_output: 6, head: false, ..Site::default() };
    /// # let config = AdapterConfig { rank: 2, ..AdapterConfig::new(Method::LORA, Targets::new(Pattern::parse("q"))) };
    /// # let set = AdapterSet::<B>::init(&config, &[site], &NoWeights, &Default::default())?;
    /// let faster: Vec<_> = set.roles().into_iter().filter(|(_, role)| *role == FactorRole::Second).collect();
    /// assert_eq!(faster.len(), 1);
    /// # Ok::<(), lowrank_adapters::AdapterError>(())
    /// ```
    pub fn roles(&self) -> HashMap<ParamId, FactorRole> {
        self.adapters.iter().flat_map(Adapter::roles).collect()
    }

    /// Sets the dropout on every member's input.
    pub fn set_dropout(&mut self, dropout: f64) {
        self.members.iter_mut().for_each(|member| member.dropout = dropout);
    }

    /// The contents of the members' folders besides factors.
    pub fn carried(&self) -> impl Iterator<Item = &Carried> {
        self.members.iter().filter_map(|member| member.carried.as_deref())
    }

    /// The adapted sites as PEFT's `target_modules`: whole paths, so that no other layer matches.
    pub(crate) fn target_names(&self) -> Option<Pattern> {
        (!self.is_empty()).then(|| Pattern::Names(self.slots.iter().map(|s| s.path.clone()).collect()))
    }

    /// The enabled slots of a site, with their members; `of` restricts them to one member.
    pub(crate) fn active(&self, site: usize, of: Option<usize>) -> Vec<(&Slot, &Member)> {
        let slots = self.by_site.get(site).into_iter().flatten().map(|&index| &self.slots[index]);
        slots
            .map(|slot| (slot, self.owners[slot.adapter]))
            .filter(|(_, owner)| of.is_none_or(|m| m == *owner))
            .map(|(slot, owner)| (slot, &self.members[owner]))
            .filter(|(_, member)| member.enabled)
            .collect()
    }

    /// The sum of the enabled updates of a site without magnitudes, shape `[d_input, d_output]`, or `None` if
    /// nothing is adapted. For merging, not for forward passes.
    pub fn delta_weight(&self, site: usize) -> Option<Tensor<B, 2>> {
        let active = self.active(site, None).into_iter();
        active
            .filter_map(|(slot, _)| self.adapters[slot.adapter].delta_weight(slot.slice))
            .reduce(|a, b| a + b)
    }

    /// A site's weight with the enabled updates folded in, or `None` if nothing is adapted.
    ///
    /// # Shapes
    /// - `weight`, output: `[d_input, d_output]`
    pub fn merged_weight(&self, site: usize, weight: &Tensor<B, 2>) -> Option<Tensor<B, 2>> {
        let active = self.active(site, None);
        if active.is_empty() {
            return None;
        }
        let changes =
            active.into_iter().filter_map(|(slot, _)| self.adapters[slot.adapter].change(slot.slice, weight));
        Some(changes.fold(weight.clone(), |sum, change| sum + change))
    }

    /// The sum of the enabled members' biases at a site, shape `[d_output]`; `None` if no member has a bias.
    pub fn delta_bias(&self, site: usize) -> Option<Tensor<B, 1>> {
        let active = self.active(site, None).into_iter();
        active.filter_map(|(slot, _)| self.adapters[slot.adapter].bias(slot.slice)).reduce(|a, b| a + b)
    }

    /// The enabled updates of a site as one pair of scale 1, concatenated; `None` if nothing is adapted or an
    /// update is not a product of factors. Biases are not included.
    pub fn pair(&self, site: usize) -> Option<Pair<B>> {
        let active = self.active(site, None);
        let mut pairs = Vec::new();
        for (slot, _) in active {
            let adapter = &self.adapters[slot.adapter];
            pairs.push(adapter.pair(slot.slice).filter(|_| !adapter.depends_on_base())?);
        }
        (!pairs.is_empty()).then(|| Pair {
            a: Tensor::cat(pairs.iter().map(|p| p.a.clone() * p.scale).collect(), 1),
            b: Tensor::cat(pairs.into_iter().map(|p| p.b).collect(), 0),
            scale: 1.0,
        })
    }

    /// Paths of the sites whose update is zero (a LoRA whose `B` was never trained, or not saved).
    pub fn idle(&self) -> Vec<&str> {
        fn is_zero<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> bool {
            host_values(tensor).iter().all(|v| *v == 0.0)
        }
        let idle = self.slots.iter().filter(|slot| {
            let adapter = &self.adapters[slot.adapter];
            let weight_is_zero = match adapter.pair(slot.slice) {
                Some(pair) => !adapter.depends_on_base() && (is_zero(pair.b) || is_zero(pair.a)),
                None => adapter.delta_weight(slot.slice).is_none_or(is_zero),
            };
            weight_is_zero && adapter.bias(slot.slice).is_none_or(is_zero)
        });
        idle.map(|slot| slot.path.as_str()).collect()
    }

    /// The same set with only one of its slots.
    pub fn only(&self, slot: usize) -> Self {
        let slots = self.slots.get(slot).cloned().into_iter().collect();
        Self { slots, ..self.clone() }.indexed(self.by_site.len())
    }

    /// Projects full-size corrections onto their rank; adapters stored as factors are unchanged.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn project(mut self) -> Result<Self> {
        self.adapters = self.adapters.into_iter().map(Adapter::project).collect::<Result<_>>()?;
        Ok(self)
    }

    /// Whether any update is projected to low rank.
    pub fn needs_projection(&self) -> bool {
        self.adapters.iter().any(Adapter::needs_projection)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use burn_flex::Flex;
    use lowrank_kernels::linear;

    use super::*;
    use crate::forward::BaseLinear;
    use lowrank_spec::Mode;

    /// Site, shape and values of one input.
    type Input = (usize, [usize; 2], Vec<f32>);

    #[derive(Debug, Default)]
    struct Seen(Mutex<Vec<Input>>);

    impl Observer for Seen {
        fn input(&self, site: usize, x: &dyn Activations) {
            assert!(x.tensor().is::<Tensor<Flex, 2>>());
            self.0.lock().unwrap().push((site, x.shape(), x.values()));
        }
    }

    struct Twice;

    impl BaseLinear<Flex> for Twice {
        fn apply(&self, x: Tensor<Flex, 2>, _bias: bool) -> Tensor<Flex, 2> {
            let w = Tensor::eye(2, &x.device()) * 2.0;
            linear(x, w, None)
        }

        fn dense(&self) -> Option<Tensor<Flex, 2>> {
            None
        }

        fn bias(&self) -> Option<Tensor<Flex, 1>> {
            None
        }
    }

    #[test]
    fn an_observer_sees_inputs_and_changes_nothing() {
        let (seen, device) = (Arc::new(Seen::default()), Default::default());
        let x = Tensor::<Flex, 2>::from_floats([[1.0, 2.0], [3.0, 4.0]], &device);
        let set = AdapterSet::empty().observed(seen.clone());
        assert!(set.covers(7) && !AdapterSet::<Flex>::empty().covers(7));
        let y = set.forward(7, x, &Twice, Mode::EVAL);
        assert_eq!(crate::peft::host_values(y), [2.0, 4.0, 6.0, 8.0]);
        assert_eq!(*seen.0.lock().unwrap(), [(7, [2, 2], vec![1.0, 2.0, 3.0, 4.0])]);
    }
}
