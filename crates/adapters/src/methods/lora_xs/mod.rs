//! LoRA-XS: `ΔW = scale·A·C·B`, where only the small core `C` `[rank, rank]` is trained, between frozen
//! factors of the weight.
//!
//! `A = U_r·Σ_r` and `B = V_rᵀ` come from the truncated SVD of `W` `[d_input, d_output]`. (The paper writes the transposes,
//! `U·Σ` on the output's side; by symmetry either factor may hold the singular values.)
//!
//! Files have the layout of the authors' code, under a `peft_type` of our own: `<path>.lora_A.weight` `(r,
//! in)`, `<path>.lora_B.weight` `(out, r)` and `<path>.default_lora_latent_mapping.weight` `(r, r)`. The
//! authors' own folders say `LORA`; the mapping identifies them. Factors that a folder leaves out are
//! recomputed from the base.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use lowrank_factor::{SigmaPlacement, Truncation, svd};

use super::{Adapter, FactorRole, Factors, Fresh, Method, MethodSpec};
use crate::error::{AdapterError, Result};
use crate::host::{from_mat, to_mat};
use crate::peft::{AdapterFolder, Found, OwnSite, Reader, Writer, sort_by_layer};
use crate::set::{Pair, Slot};

const A: &str = ".lora_A.weight";
const B: &str = ".lora_B.weight";
const CORE: &str = ".default_lora_latent_mapping.weight";

const LORA_XS: &MethodSpec = &MethodSpec {
    keys: &[CORE],
    ignores: &["lora-plus"],
    adopts: |folder| {
        folder.config.peft_type == "LORA" && folder.tensors.keys().any(|key| key.ends_with(CORE))
    },
    ..MethodSpec::new("lora-xs", "LORA_XS", "A small core between frozen singular vectors of each weight")
};

pub(super) const METHODS: &[&MethodSpec] = &[LORA_XS];

impl Method {
    /// LoRA-XS (Bałazy et al. 2024, arXiv:2405.17604): a core of `rank²` parameters per site.
    pub const LORA_XS: Self = Self(LORA_XS);
}

/// The core of one site and its frozen factors.
#[derive(Module, Debug)]
pub struct LoraXs<B: Backend> {
    /// Frozen, shape `[d_input, rank]`.
    pub a: Tensor<B, 2>,
    /// Shape `[rank, rank]`.
    pub core: Param<Tensor<B, 2>>,
    /// Frozen, shape `[rank, d_output]`.
    pub b: Tensor<B, 2>,
    /// Factor on the update.
    pub scale: f64,
}

/// `U_r·Σ_r` and `V_rᵀ` of a weight.
fn frozen<T: Backend>(weight: Tensor<T, 2>, rank: usize) -> Result<[Tensor<T, 2>; 2]> {
    let device = weight.device();
    let svd = svd::exact(to_mat(weight)?.as_ref())?;
    let fit = svd.low_rank(&Truncation::Rank(rank), SigmaPlacement::Left)?.factors;
    Ok([fit.left(), fit.right()].map(|factor| from_mat(factor, &device)))
}

impl<T: Backend> LoraXs<T> {
    /// A zero core, so that the update is zero: only the core is trained, and its gradient does not depend on
    /// it. The paper initializes it with a standard deviation of 1e-5 for the same purpose.
    ///
    /// # Shapes
    /// - `weight`: `[d_input, d_output]`
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn new(weight: Tensor<T, 2>, rank: usize, scale: f64) -> Result<Self> {
        let device = weight.device();
        let [a, b] = frozen(weight, rank)?;
        Ok(Self { a, core: Param::from_tensor(Tensor::zeros([rank, rank], &device)), b, scale })
    }

    fn read_one(file: &mut Reader<'_, T>, module: &Found) -> Result<Option<Self>> {
        let site = file.site(module);
        let (rank, scale) = (file.config().rank_of(&module.path), file.config().scale_of(&module.path));
        let [a_key, b_key, core_key] = [A, B, CORE].map(|name| format!("{}{name}", module.path));
        let core = file.transposed(&core_key, [rank, rank]);
        let is_stored = |key: &str| file.folder().tensors.contains_key(key);
        let (a, b) = if is_stored(&a_key) || is_stored(&b_key) {
            let a = file.transposed(&a_key, [rank, site.d_input]);
            (a, file.transposed(&b_key, [site.d_output, rank]))
        } else {
            let [a, b] = frozen(file.weight(module, "lora-xs")?, rank)?;
            (Some(a), Some(b))
        };
        let (Some(a), Some(core), Some(b)) = (a, core, b) else { return Ok(None) };
        Ok(Some(Self { a, core: Param::from_tensor(core), b, scale }))
    }
}

impl<T: Backend> Factors<T> for LoraXs<T> {
    fn init(fresh: &Fresh<'_, T>) -> Result<Self> {
        Self::new(fresh.weight(0, "lora-xs")?, fresh.rank(), fresh.scale())
    }

    fn pair(&self, _slice: usize) -> Option<Pair<T>> {
        Some(Pair { a: self.a.clone().matmul(self.core.val()), b: self.b.clone(), scale: self.scale })
    }

    fn roles(&self) -> Vec<(ParamId, FactorRole)> {
        vec![(self.core.id, FactorRole::Core)]
    }

    fn read(file: &mut Reader<'_, T>) -> Result<()> {
        for module in file.modules(LORA_XS.keys) {
            if let Some(one) = Self::read_one(file, &module)? {
                file.push(Adapter::LoraXs(one), &[&module]);
            }
        }
        Ok(())
    }

    fn write(&self, slots: &[&Slot], file: &mut Writer<'_>) -> Result<()> {
        let (slot, rank) = (slots[0], self.core.dims()[0]);
        file.transposed(format!("{}{A}", slot.path), self.a.clone());
        file.transposed(format!("{}{B}", slot.path), self.b.clone());
        file.transposed(format!("{}{CORE}", slot.path), self.core.val());
        file.note(LORA_XS.peft_type, slot, rank, self.scale);
        Ok(())
    }

    fn own_sites(folder: &AdapterFolder) -> Result<Vec<OwnSite>> {
        let mut paths: Vec<String> =
            folder.tensors.keys().filter_map(|key| key.strip_suffix(CORE)).map(str::to_string).collect();
        sort_by_layer(&mut paths);
        let site = |path: String| {
            let widths = (folder.side(&format!("{path}{A}"), 1), folder.side(&format!("{path}{B}"), 0));
            let (Some(d_input), Some(d_output)) = widths else {
                return Err(AdapterError::Incompatible(
                    "the file does not contain the frozen factors of LoRA-XS; give the model too (--model)"
                        .into(),
                ));
            };
            Ok(OwnSite { path, widths: [d_input, d_output], embedding: false })
        };
        paths.into_iter().map(site).collect()
    }
}

#[cfg(test)]
mod tests {
    use burn_flex::Flex;

    use super::*;
    use crate::host::host_values;
    use crate::init::normal;

    /// With the core at the identity and scale 1, the update is the best approximation of the weight, and
    /// exact for a weight of that rank.
    #[test]
    fn the_identity_gives_the_weight_back() {
        let device = Default::default();
        let outer = |key: &str, shape| normal::<Flex, 2>(3, key, shape, 1.0, &device);
        let weight = outer("left", [7, 2]).matmul(outer("right", [2, 5]));
        let mut xs = LoraXs::new(weight.clone(), 2, 1.0).unwrap();
        assert!(host_values(xs.delta_weight(0).unwrap()).iter().all(|v| *v == 0.0));
        xs.core = Param::from_tensor(Tensor::eye(2, &device));
        let gap = host_values(xs.delta_weight(0).unwrap() - weight);
        assert!(gap.iter().all(|v| v.abs() < 1e-5), "{gap:?}");
    }
}
