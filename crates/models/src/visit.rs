//! Parameters by what they are: one visit of a model serves loading, saving, counting, marking and merging.

use burn::module::Param;
use burn::prelude::*;
use lowrank_spec::names::WeightPart;

use crate::stored::Stored;

/// How a tensor is laid out in the checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// As in the model.
    Same,
    /// A linear weight: `(out, in)` in the file, `[in, out]` in the model.
    Transposed,
    /// The kernel of a convolution over patches: `(out, channels, height, width)` in the file,
    /// `[channels · height · width, out]` in the model. Holds channels, height and width.
    Kernel([usize; 3]),
}

impl Layout {
    /// Whether the file holds the transpose of the matrix in the model.
    pub const fn is_transposed(self) -> bool {
        matches!(self, Self::Transposed | Self::Kernel(_))
    }

    /// The shape in the file of what has this shape in the model.
    pub fn in_file(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (Self::Kernel(kernel), &[_, outputs]) => [outputs].into_iter().chain(kernel).collect(),
            (Self::Same, shape) => shape.to_vec(),
            (_, shape) => shape.iter().rev().copied().collect(),
        }
    }
}

/// What a parameter is to its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The weight of a linear map or the table of an embedding, or a factor or core of it.
    Weight(WeightPart),
    /// The offset of a linear map.
    Bias,
    /// The gain of a norm.
    Gain,
    /// The offset of a norm.
    Offset,
    /// A parameter that its parent module holds directly: the class token, the positions of patches.
    Bare,
    /// A stored tensor that is never trained, such as the bias on BART's logits.
    Constant,
}

/// Which part of a model a module belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Part {
    /// Tables of words, positions and token types, and the norm over them.
    Embeddings,
    /// A table of relative positions, which all layers read, and its norm.
    Relative,
    /// The transformer's layers, the final norm, and an encoder's own pooler.
    #[default]
    Body,
    /// The task head, or a language model's.
    Head,
}

/// A module of a model.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Hugging Face module path.
    pub path: &'a str,
    /// Index of the transformer layer, `None` outside the layers.
    pub layer: Option<usize>,
    /// Part of the model.
    pub part: Part,
}

impl<'a> Module<'a> {
    /// A module outside the layers.
    pub const fn new(path: &'a str, part: Part) -> Self {
        Self { path, layer: None, part }
    }

    /// A module of a layer.
    pub const fn in_layer(path: &'a str, layer: usize) -> Self {
        Self { path, layer: Some(layer), part: Part::Body }
    }

    pub(crate) const fn parameter(self, role: Role, layout: Layout, site: Option<usize>) -> Parameter<'a> {
        Parameter { module: self, role, layout, site, is_table: false }
    }
}

/// Where a visitor is.
#[derive(Clone, Copy, Debug)]
pub struct Parameter<'a> {
    /// The module that the parameter belongs to.
    pub module: Module<'a>,
    /// What it is to the module.
    pub role: Role,
    /// How it is laid out in the checkpoint.
    pub layout: Layout,
    /// Index of the module's site, where it has one.
    pub site: Option<usize>,
    /// Whether it belongs to a table, whose rows are looked up; the embeddings of a model also hold linear maps.
    pub is_table: bool,
}

impl Parameter<'_> {
    /// Its Hugging Face key.
    pub fn key(&self) -> String {
        let path = self.module.path;
        match self.role {
            Role::Weight(part) => part.key(path),
            Role::Gain => format!("{path}.weight"),
            Role::Bias | Role::Offset => format!("{path}.bias"),
            Role::Bare => path.to_owned(),
            Role::Constant => path.to_string(),
        }
    }

    /// The part of a weight that it is.
    pub fn weight(&self) -> Option<WeightPart> {
        match self.role {
            Role::Weight(part) => Some(part),
            _ => None,
        }
    }

    /// How the rows that blocks cut lie to the matrix of the forward pass; `None` for what is never in blocks.
    pub fn blocks_layout(&self) -> Option<Layout> {
        let is_transposed = self.weight()?.blocks_are_transposed(self.is_table)?;
        Some(if is_transposed { Layout::Transposed } else { Layout::Same })
    }

    /// Whether weight decay applies to it: not to biases and norms.
    pub fn decays(&self) -> bool {
        matches!(self.role, Role::Weight(_) | Role::Bare)
    }

    /// Whether it is the bias of a linear map or the offset of a norm, which BitFit trains.
    pub fn is_bias(&self) -> bool {
        matches!(self.role, Role::Bias | Role::Offset)
    }
}

/// Something that visits every parameter of a model.
pub trait ParamVisitor<B: Backend> {
    /// Visits a parameter.
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>);

    /// Visits a matrix in any storage. Unless this is overridden, floats are visited as parameters,
    /// and blocks, which are always frozen, not at all.
    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        if let Stored::Float(param) = stored {
            self.visit(at, param);
        }
    }

    /// Visits a factor that is stored under the key of the module that owns it, which is the module of `at`, and visited
    /// there too.
    ///
    /// Shared factors are loaded and saved; everything else is done at the owner's visit.
    fn visit_shared(&mut self, _at: &Parameter<'_>, _stored: &mut Stored<B>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_checkpoint() {
        let module = Module::in_layer("h.3.q", 3);
        let key = |role| module.parameter(role, Layout::Same, None).key();
        assert_eq!(key(Role::Weight(WeightPart::Dense)), "h.3.q.weight");
        assert_eq!(key(Role::Weight(WeightPart::FactorA)), "h.3.q.lowrank_a.weight");
        assert_eq!(key(Role::Weight(WeightPart::Core(2))), "h.3.q.tt_cores.2");
        assert_eq!([key(Role::Bias), key(Role::Offset)], ["h.3.q.bias"; 2]);
        assert_eq!(key(Role::Gain), "h.3.q.weight");
        assert_eq!(key(Role::Constant), "h.3.q");
    }
}
