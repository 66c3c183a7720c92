//! VeRA: frozen random factors shared by all sites, two trained vectors for each.

use burn::module::Param;
use burn::prelude::*;

use crate::init::kaiming;
use lowrank_spec::Site;

/// The sites of one VeRA (Kopiczko et al. 2023, arXiv:2310.11454): `ΔW = A·diag(d)·B·diag(b)`, with `A` and
/// `B` cut to the site's widths.
#[derive(Module, Debug)]
pub struct Vera<B: Backend> {
    /// Frozen, shape `[largest d_input, rank]`.
    pub a: Tensor<B, 2>,
    /// Frozen, shape `[rank, largest d_output]`.
    pub b: Tensor<B, 2>,
    /// Vectors of each site.
    pub vectors: Vec<VeraVectors<B>>,
}

/// What VeRA trains at one site.
#[derive(Module, Debug)]
pub struct VeraVectors<B: Backend> {
    /// `d`, shape `[rank]`.
    pub inner: Param<Tensor<B, 1>>,
    /// `b`, shape `[d_output]`.
    pub output: Param<Tensor<B, 1>>,
    /// Width of the site's input.
    pub d_input: usize,
}

/// Initial value of the inner vector.
pub(crate) const D_INITIAL: f32 = 0.1;

impl<B: Backend> Vera<B> {
    /// Fresh vectors over random factors, Kaiming-uniform: `d` at 0.1, `b` at zero, so that the update is zero.
    pub fn init(sites: &[&Site], rank: usize, seed: u64, device: &B::Device) -> Self {
        let widest = |width: fn(&Site) -> usize| sites.iter().map(|s| width(s)).max().unwrap_or(0);
        let (d_input, d_output) = (widest(|s| s.d_input), widest(|s| s.d_output));
        let vectors = |site: &&Site| VeraVectors {
            inner: Param::from_tensor(Tensor::full([rank], D_INITIAL, device)),
            output: Param::from_tensor(Tensor::zeros([site.d_output], device)),
            d_input: site.d_input,
        };
        Self {
            a: kaiming(seed, "vera_A", [d_input, rank], device),
            b: kaiming(seed, "vera_B", [rank, d_output], device),
            vectors: sites.iter().map(vectors).collect(),
        }
    }

    /// The inner width.
    pub fn rank(&self) -> usize {
        self.b.dims()[0]
    }

    /// The update of a site as a pair, exactly: `[d_input, rank]` and `[rank, d_output]`.
    pub fn factors(&self, slice: usize) -> (Tensor<B, 2>, Tensor<B, 2>) {
        let VeraVectors { inner, output, d_input } = &self.vectors[slice];
        let [d_output] = output.dims();
        let a = self.a.clone().narrow(0, 0, *d_input) * inner.val().unsqueeze();
        let b = self.b.clone().narrow(1, 0, d_output) * output.val().unsqueeze();
        (a, b)
    }
}
