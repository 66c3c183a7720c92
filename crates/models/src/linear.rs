//! Linear maps of a model: a projection in one of several representations, a bias, and a site for an adapter.

use std::collections::BTreeSet;

use burn::module::Param;
use burn::prelude::*;
use lowrank_adapters::{BaseLinear, Site};
use lowrank_kernels::{BlockFormat, Kernels, Weight};

use crate::config::Activation;
use crate::error::summary;
use crate::params::lazy_full;
use crate::projection::{Projection, WeightOf};
use crate::run::Run;
use crate::visit::{Layout, Module as ModulePath, ParamVisitor, Role};
use lowrank_spec::names::{WeightPart, path_of_old_files};
use lowrank_spec::{LowrankSection, ModuleEntry, Representation};

/// `y = x·W + b`, at a site that an adapter may serve.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// The weight.
    pub projection: Projection<B>,
    /// Shape `[d_output]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// Index into the model's list of sites.
    pub site: usize,
    /// Whether a single matrix is stored as `(in, out)`.
    pub conv1d: bool,
    /// Channels, height and width, if a single matrix is stored as the kernel of a convolution.
    #[module(skip)]
    pub kernel: Option<[usize; 3]>,
}

/// Assigns sites and representations while a model is built.
#[derive(Debug, Default)]
pub struct SiteList {
    /// The sites so far.
    pub sites: Vec<Site>,
    section: LowrankSection,
    named: BTreeSet<String>,
    problems: Vec<String>,
}

/// Description of a linear map for [`SiteList::linear`].
#[derive(Clone, Copy, Debug)]
pub struct LinearSpec<'a> {
    /// Hugging Face module path.
    pub path: &'a str,
    /// Index of the transformer layer, if it is in one.
    pub layer: Option<usize>,
    /// `[d_input, d_output]`.
    pub shape: [usize; 2],
    /// Whether the map has a bias.
    pub bias: bool,
    /// Whether it belongs to the task head.
    pub head: bool,
    /// Whether a single matrix is stored as `(in, out)` (GPT-2's `Conv1D`).
    pub conv1d: bool,
}

impl SiteList {
    /// For a model with this section in its config.
    pub fn new(section: LowrankSection) -> Self {
        Self { section, ..Self::default() }
    }

    /// Builds a linear map with newly initialized weights and a new site, in the representation that the section
    /// names.
    pub fn linear<B: Backend>(&mut self, spec: LinearSpec<'_>, seed: u64, device: &B::Device) -> Linear<B> {
        let LinearSpec { path, layer, shape, bias, head, conv1d } = spec;
        let representation = self.representation(path, shape, false);
        let [d_input, d_output] = shape;
        self.sites.push(Site {
            path: path.into(),
            layer,
            d_input,
            d_output,
            head,
            conv1d,
            ..Site::default()
        });
        Linear {
            projection: Projection::init(path, shape, &representation, seed, device),
            bias: bias.then(|| lazy_full([d_output], 0.0, device)),
            site: self.sites.len() - 1,
            conv1d,
            kernel: None,
        }
    }

    /// A map of patches, which files hold as a convolution whose stride is its kernel of these channels, height and width.
    pub(crate) fn patches<B: Backend>(
        &mut self,
        path: &str,
        kernel: [usize; 3],
        d_output: usize,
        seed: u64,
        device: &B::Device,
    ) -> Linear<B> {
        let shape = [kernel.iter().product(), d_output];
        let spec = LinearSpec { path, layer: None, shape, bias: true, head: false, conv1d: false };
        let linear = self.linear(spec, seed, device);
        self.sites[linear.site].kernel = Some(kernel);
        Linear { kernel: Some(kernel), ..linear }
    }

    /// A site for the table of an embedding; its index.
    pub(crate) fn embedding(&mut self, path: &str, [d_input, d_output]: [usize; 2]) -> usize {
        self.sites.push(Site {
            path: path.into(),
            layer: None,
            d_input,
            d_output,
            head: false,
            embedding: true,
            ..Site::default()
        });
        self.sites.len() - 1
    }

    /// The representation of a module; dense if the section's does not fit, which is recorded as a problem.
    pub(crate) fn representation(
        &mut self,
        path: &str,
        shape: [usize; 2],
        embedding: bool,
    ) -> Representation {
        let Some((name, entry)) = self.section.find(path) else { return Representation::Dense };
        let mut representation = entry.representation.clone();
        self.named.insert(name.to_string());
        if let Err(reason) = representation.check(shape) {
            self.problems.push(format!("lowrank: module '{name}': {reason}"));
            return Representation::Dense;
        }
        if let Err(reason) = check_formats(entry, shape, embedding) {
            self.problems.push(format!("lowrank: module '{name}': {reason}"));
        }
        if let Representation::LowRank { a_of, b_of, .. } = &mut representation {
            for owner in [a_of, b_of].into_iter().flatten() {
                if !self.section.modules.contains_key(owner.as_str()) {
                    self.problems.push(format!(
                        "lowrank: module '{name}' shares a factor with unknown module '{owner}'"
                    ));
                }
                // The model's paths have their prefix even where the section's do not.
                *owner = match path.strip_suffix(name) {
                    Some(prefix) => format!("{prefix}{owner}"),
                    None => path_of_old_files(owner).unwrap_or_else(|| owner.clone()),
                };
            }
        }
        representation
    }

    /// The sites, once the whole model is built.
    ///
    /// # Errors
    /// A line of the section that does not fit its module, or names an unknown one.
    pub fn finish(mut self) -> std::result::Result<Vec<Site>, String> {
        let unknown = self.section.modules.keys().filter(|name| !self.named.contains(*name));
        self.problems.extend(unknown.map(|name| format!("lowrank: unknown module '{name}'")));
        if self.problems.is_empty() { Ok(self.sites) } else { Err(summary(&self.problems)) }
    }
}

/// Checks the block formats of a module whose weight is `[d_input, d_output]`.
fn check_formats(
    entry: &ModuleEntry,
    [d_input, d_output]: [usize; 2],
    embedding: bool,
) -> std::result::Result<(), String> {
    for (name, format) in &entry.formats {
        let parts = match &entry.representation {
            Representation::Dense => vec![(WeightPart::Dense, [d_input, d_output])],
            Representation::Sum { rank } => vec![
                (WeightPart::Dense, [d_input, d_output]),
                (WeightPart::FactorA, [d_input, *rank]),
                (WeightPart::FactorB, [*rank, d_output]),
            ],
            Representation::LowRank { ranks, .. } => vec![
                (WeightPart::FactorA, [d_input, ranks[0]]),
                (WeightPart::FactorB, [ranks[ranks.len() - 1], d_output]),
            ],
            Representation::TensorTrain { .. } => Vec::new(),
        };
        let found = parts.iter().find(|(part, _)| part.name() == name);
        let Some(&(part, [rows, columns])) = found else {
            let known: Vec<&str> = parts.iter().map(|(part, _)| part.name()).collect();
            return Err(format!(
                "has a format for '{name}'; parts of it that can be in blocks: {}",
                if known.is_empty() { "none".into() } else { known.join(", ") }
            ));
        };
        let format = block_format(format)?;
        let width = if part.blocks_are_transposed(embedding) == Some(true) { rows } else { columns };
        if !width.is_multiple_of(format.block_len()) {
            return Err(format!(
                "'{name}' in {format} has rows of {width} elements, which is not a multiple of its blocks of {}",
                format.block_len()
            ));
        }
    }
    Ok(())
}

/// A block format by its name.
pub(crate) fn block_format(name: &str) -> std::result::Result<BlockFormat, String> {
    let known = || BlockFormat::ALL.map(BlockFormat::name).join(", ");
    let found = BlockFormat::ALL.into_iter().find(|format| format.name() == name);
    found.ok_or_else(|| format!("unknown block format '{name}'; known: {}", known()))
}

impl<B: Backend> Linear<B> {
    /// Visits the weight and the bias.
    pub(crate) fn visit_params<V: ParamVisitor<B>>(&mut self, module: ModulePath<'_>, visitor: &mut V) {
        let dense = match self.kernel {
            Some(kernel) => Layout::Kernel(kernel),
            None if self.conv1d => Layout::Same,
            None => Layout::Transposed,
        };
        let at = WeightOf { module, site: self.site, is_table: false };
        self.projection.visit_params(at, dense, visitor);
        if let Some(bias) = &mut self.bias {
            visitor.visit(&module.parameter(Role::Bias, Layout::Same, Some(self.site)), bias);
        }
    }
}

impl<B: Kernels> Linear<B> {
    /// # Shapes
    /// - input: `[tokens, d_input]`
    /// - output: `[tokens, d_output]`
    pub fn forward(&self, x: Tensor<B, 2>, run: Run<'_, B>) -> Tensor<B, 2> {
        run.adapters.forward_rows(self.site, x, run.rows, self, run.mode)
    }

    /// `activation(forward(x))`, in one step where there is a kernel for it and no adapter comes between.
    pub(crate) fn forward_activated(
        &self,
        x: Tensor<B, 2>,
        activation: Activation,
        run: Run<'_, B>,
    ) -> Tensor<B, 2> {
        match (activation, &self.projection) {
            (Activation::Gelu(kind), Projection::Dense(dense)) if !run.adapters.covers(self.site) => {
                dense.weight.weight().linear_gelu(x, self.bias.as_ref().map(Param::val), kind)
            }
            _ => activation.apply(self.forward(x, run)),
        }
    }
}

impl<B: Kernels> BaseLinear<B> for Linear<B> {
    fn apply(&self, x: Tensor<B, 2>, bias: bool) -> Tensor<B, 2> {
        self.projection.forward(x, self.bias().filter(|_| bias))
    }

    fn apply_exact(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        self.projection.forward_exact(x)
    }

    fn dense(&self) -> Option<Tensor<B, 2>> {
        match self.weight()? {
            Weight::Float(tensor) => Some(tensor),
            Weight::Blocks(_) => None,
        }
    }

    fn weight(&self) -> Option<Weight<Tensor<B, 2>>> {
        match &self.projection {
            Projection::Dense(dense) => Some(dense.weight.weight()),
            Projection::LowRank(_) | Projection::Sum(_) | Projection::TensorTrain(_) => None,
        }
    }

    fn bias(&self) -> Option<Tensor<B, 1>> {
        self.bias.as_ref().map(Param::val)
    }
}
