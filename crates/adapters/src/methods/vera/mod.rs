//! VeRA: frozen random factors shared by all sites, two trained vectors for each.
//!
//! Files are in PEFT's format, including the projections. They are those that PEFT draws: releases before 0.21 draw them again
//! instead of reading them, and a file may lack them.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_spec::{Site, transpose};
use rand_mt::Mt;
use serde_json::Value;

use super::{Adapter, FactorRole, Factors, Fresh, Method, MethodSpec, Sharing};
use crate::error::{AdapterError, Result};
use crate::peft::{AdapterFolder, OwnSite, Reader, Writer};
use crate::set::{Pair, Slot};

const INNER: &str = ".vera_lambda_d";
const OUTPUT: &str = ".vera_lambda_b";

const VERA: &MethodSpec = &MethodSpec {
    sharing: Sharing::All,
    any_rank: true,
    ignores: &["alpha", "rslora", "lora-plus"],
    keys: &[OUTPUT, INNER],
    ..MethodSpec::new("vera", "VERA", "Two vectors for each layer over frozen random factors")
};

pub(super) const METHODS: &[&MethodSpec] = &[VERA];

impl Method {
    /// Vector-based random adaptation (Kopiczko et al. 2023, arXiv:2310.11454): frozen random factors shared by all
    /// sites, two trained vectors per site.
    pub const VERA: Self = Self(VERA);
}

/// The sites of one VeRA (Kopiczko et al. 2023, arXiv:2310.11454): `ΔW = A·diag(d)·B·diag(b)`, with `A` and
/// `B` truncated to the site's widths.
#[derive(Module, Debug)]
pub struct Vera<B: Backend> {
    /// Frozen, shape `[largest d_input, rank]`.
    pub a: Tensor<B, 2>,
    /// Frozen, shape `[rank, largest d_output]`.
    pub b: Tensor<B, 2>,
    /// What the projections were drawn from.
    pub key: u64,
    /// Vectors of each site.
    pub vectors: Vec<VeraVectors<B>>,
}

/// The trained vectors of one site.
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
const D_INITIAL: f32 = 0.1;

/// PEFT's key of the projections.
const KEY: &str = "projection_prng_key";

/// Elements of a projection that is drawn for a file without them: rank 8,192 of 16,384 columns.
const MAX_DRAWN: usize = 1 << 27;

/// The projections that PEFT draws from a key: `A` `(rank, in)`, then `B` `(out, rank)`, both uniform to within `√(6/columns)`
/// by torch's Mersenne Twister and its `uniform_`.
///
/// # Shapes
/// - output: `[in, rank]` and `[rank, out]`
fn projections<B: Backend>(
    key: u64,
    rank: usize,
    [d_input, d_output]: [usize; 2],
    device: &B::Device,
) -> [Tensor<B, 2>; 2] {
    // torch takes the lower half.
    let mut generator = Mt::new(key as u32);
    let mut draw = |rows: usize, columns: usize| {
        let bound = (3f64.sqrt() * (2f64.sqrt() / (columns as f64).sqrt())) as f32;
        // torch is compiled to a fused product and sum.
        let mut value =
            || ((generator.next_u32() & 0xff_ffff) as f32 / 16_777_216.0).mul_add(2.0 * bound, -bound);
        let values: Vec<f32> = (0..rows * columns).map(|_| value()).collect();
        Tensor::from_data(TensorData::new(transpose(&values, rows, columns), [columns, rows]), device)
    };
    [draw(rank, d_input), draw(d_output, rank)]
}

impl<B: Backend> Vera<B> {
    /// Newly initialized vectors over the random factors of a seed: `d` is 0.1, `b` is zero, so that the update is zero.
    pub fn new(sites: &[&Site], rank: usize, seed: u64, device: &B::Device) -> Self {
        let widest = |width: fn(&Site) -> usize| sites.iter().map(|s| width(s)).max().unwrap_or(0);
        let (d_input, d_output) = (widest(|s| s.d_input), widest(|s| s.d_output));
        let vectors = |site: &&Site| VeraVectors {
            inner: Param::from_tensor(Tensor::full([rank], D_INITIAL, device)),
            output: Param::from_tensor(Tensor::zeros([site.d_output], device)),
            d_input: site.d_input,
        };
        let [a, b] = projections(seed, rank, [d_input, d_output], device);
        Self { a, b, key: seed, vectors: sites.iter().map(vectors).collect() }
    }

    /// The inner dimension.
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

impl<B: Backend> Factors<B> for Vera<B> {
    fn init(fresh: &Fresh<'_, B>) -> Result<Self> {
        Ok(Self::new(&fresh.sites, fresh.config.rank, fresh.config.seed, fresh.device))
    }

    fn pair(&self, slice: usize) -> Option<Pair<B>> {
        let (a, b) = self.factors(slice);
        Some(Pair { a, b, scale: 1.0 })
    }

    fn roles(&self) -> Vec<(ParamId, FactorRole)> {
        let ids = self.vectors.iter().flat_map(|v| [v.inner.id, v.output.id]);
        ids.map(|id| (id, FactorRole::Vector)).collect()
    }

    fn read(file: &mut Reader<'_, B>) -> Result<()> {
        let found = file.modules(VERA.keys);
        let rank = file.config().r;
        let widths = found.iter().map(|f| (file.site(f).d_input, file.site(f).d_output));
        let widest = widths.reduce(|a, b| (a.0.max(b.0), a.1.max(b.1)));
        let Some((d_input, d_output)) = widest else { return Ok(()) };
        // PEFT's default is 0.
        let key = file.config().other.get(KEY).and_then(Value::as_u64).unwrap_or(0);
        let mut vectors = Vec::new();
        for module in &found {
            let site = file.site(module);
            let inner = file.plain(&format!("{}{INNER}", module.path), [rank]);
            let output = file.plain(&format!("{}{OUTPUT}", module.path), [site.d_output]);
            if let (Some(inner), Some(output)) = (inner, output) {
                let [inner, output] = [inner, output].map(Param::from_tensor);
                vectors.push(VeraVectors { inner, output, d_input: site.d_input });
            }
        }
        let has_projections =
            ["vera_A", "vera_B"].iter().any(|name| file.folder().tensors.contains_key(*name));
        let (a, b) = if has_projections {
            (file.transposed("vera_A", [rank, d_input]), file.transposed("vera_B", [d_output, rank]))
        } else if rank.saturating_mul(d_input.max(d_output)) > MAX_DRAWN {
            file.problem(format!(
                "missing 'vera_A' and 'vera_B', which are too large to be drawn for r = {rank}: save the adapter with \
                 save_projection"
            ));
            return Ok(());
        } else if vectors.len() == found.len() {
            let [a, b] = projections(key, rank, [d_input, d_output], file.device());
            (Some(a), Some(b))
        } else {
            return Ok(());
        };
        if let (Some(a), Some(b), true) = (a, b, vectors.len() == found.len()) {
            file.push(Adapter::Vera(Self { a, b, key, vectors }), &found.iter().collect::<Vec<_>>());
        }
        Ok(())
    }

    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
        file.transposed("vera_A".into(), self.a.clone());
        file.transposed("vera_B".into(), self.b.clone());
        for slot in slots {
            let vectors = &self.vectors[slot.slice];
            file.plain(format!("{}{INNER}", slot.path), vectors.inner.val());
            file.plain(format!("{}{OUTPUT}", slot.path), vectors.output.val());
            file.note("VERA", slot, self.rank(), 1.0);
        }
        file.config.other.entry("d_initial").or_insert(f64::from(D_INITIAL).into());
        file.config.other.insert(KEY.into(), self.key.into());
        Ok(())
    }

    fn own_sites(_folder: &AdapterFolder) -> Result<Vec<OwnSite>> {
        Err(AdapterError::Incompatible(
            "VeRA's files do not contain the widths of the layers; give the model too (--model)".into(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;
    use crate::host::host_values;

    /// Of `_kaiming_init` with `torch.Generator().manual_seed(7)`.
    #[test]
    fn projections_are_those_of_peft() {
        let a = [
            0.076_511_46,
            -0.659_889_16,
            0.348_815_35,
            0.343_729_38,
            -0.585_490_1,
            -0.164_182_25,
            -0.641_742_4,
            0.284_238_13,
            -0.295_077_53,
            0.769_590_44,
        ];
        let b = [1.229_559_2, 0.176_444_74, -0.738_411_3, -1.017_339_5, -0.190_213_22, -0.487_447_77];
        let drawn = projections::<Flex>(7, 2, [5, 3], &Default::default()).map(host_values);
        assert_eq!(drawn, [transpose(&a, 2, 5), transpose(&b, 3, 2)]);
    }
}
