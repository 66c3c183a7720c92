//! Parameter groups: learning rate and weight decay of each parameter.

use std::collections::HashMap;

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_adapters::{AdapterSet, FactorRole};
use lowrank_models::{ParamVisitor, Parameter, Parameters, Part};

/// Learning rate of a parameter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rate {
    /// The base rate.
    #[default]
    Base,
    /// The rate of the task head.
    Head,
    /// The rate of the second factor of a LoRA, which is higher in LoRA+.
    SecondFactor,
}

/// The group of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its learning rate.
    pub rate: Rate,
    /// Whether weight decay applies to it.
    pub decays: bool,
}

/// Groups by parameter.
#[derive(Clone, Debug, Default)]
pub struct Groups(HashMap<ParamId, Group>);

impl Groups {
    /// Assigns a parameter to a group.
    pub fn insert(&mut self, id: ParamId, group: Group) {
        self.0.insert(id, group);
    }

    /// The group of a parameter of `dims` dimensions. An unassigned parameter has the base rate, and decays
    /// unless it is a vector: biases, and the weights and biases of norms.
    pub fn get(&self, id: ParamId, dims: usize) -> Group {
        self.0.get(&id).copied().unwrap_or(Group { rate: Rate::Base, decays: dims >= 2 })
    }

    /// Adds the second factors of a set of adapters.
    pub(crate) fn with_adapters<B: Backend>(mut self, set: &AdapterSet<B>) -> Self {
        for (id, role) in set.roles() {
            if role == FactorRole::Second {
                self.insert(id, Group { rate: Rate::SecondFactor, decays: true });
            }
        }
        self
    }

    /// Adds the parameters of a model: its task head gets the head's rate; biases and norms do not decay.
    pub fn with_model<B: Backend>(mut self, model: &impl Parameters<B>) -> Self {
        model.clone().visit_params(&mut ByPart(&mut self));
        self
    }
}

struct ByPart<'a>(&'a mut Groups);

impl<B: Backend> ParamVisitor<B> for ByPart<'_> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let rate = if at.module.part == Part::Head { Rate::Head } else { Rate::Base };
        self.0.insert(param.id, Group { rate, decays: at.decays() });
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;
    use lowrank_adapters::{Adapter, AdapterConfig, Method, NoWeights, Pattern, Site, Targets};

    use super::*;

    #[test]
    fn the_second_factor_of_a_lora_is_a_group() {
        let site = Site {
            path: "query".into(),
            layer: None,
            d_input: 4,
            d_output: 6,
            head: false,
            ..Site::default()
        };
        let targets = Targets::new(Pattern::parse("query"));
        let config = AdapterConfig { rank: 2, ..AdapterConfig::new(Method::LORA, targets) };
        let set = AdapterSet::<Flex>::init(&config, &[site], &NoWeights, &Default::default()).unwrap();
        let Adapter::Lora(lora) = &set.adapters()[0] else { panic!("a LoRA was asked for") };
        let groups = Groups::default().with_adapters(&set);
        assert_eq!(groups.get(lora.b.id, 2).rate, Rate::SecondFactor);
        assert_eq!(groups.get(lora.a.id, 2), Group { rate: Rate::Base, decays: true });
        assert!(!groups.get(ParamId::new(), 1).decays);
    }
}
