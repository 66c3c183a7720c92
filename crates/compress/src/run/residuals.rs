//! Low-rank approximations of quantization residuals: the start of adapters over a quantized base.
//!
//! # Algorithm
//! The leading singular triplets of `E = W − Q` (LoftQ, Li et al. 2023, arXiv:2310.08659, with one iteration, which does not
//! change `Q`), or of `R^½·E` with the second moments `R` of the inputs (QERA-exact, Zhang et al. 2024, arXiv:2410.06040).
//! One layer is in memory at a time.

use std::path::{Path, PathBuf};

use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::Site;
use lowrank_adapters::peft::host_values;
use lowrank_checkpoint::Checkpoint;
use lowrank_factor::matrix::{from_row_major, to_row_major};
use lowrank_factor::{LowRank, MatRef, SigmaPlacement, Truncation, svd, whitened};
use lowrank_kernels::Kernels;
use lowrank_models::visit::Module;
use lowrank_spec::names::without_prefix;

use super::calibrate::ModelCalibrator;
use super::network::{Config, Network, Part, Tokens};
use crate::error::{CompressError, Result, at};
use crate::folder::read_dense_config;
use crate::options::Calibrator;
use crate::statistics::{Weighting, Weightings};

/// Quantization residuals of a model in memory, whose unquantized weights are in a folder.
pub struct Residuals<B: Kernels> {
    folder: PathBuf,
    config: Config,
    checkpoint: Checkpoint,
    inputs: Option<ModelCalibrator<B>>,
    layer: Option<Layer<B>>,
    device: B::Device,
}

/// The layer in memory.
struct Layer<B: Kernels> {
    index: usize,
    network: Network<B>,
    weightings: Weightings,
}

impl<B: Kernels> Residuals<B> {
    /// Residuals against the weights of a model folder; with texts, approximated in the norm of their inputs.
    ///
    /// # Errors
    /// A model that is compressed already, and as [`ModelCalibrator::new`].
    pub fn new(folder: &Path, texts: Option<Vec<Tokens>>, device: &B::Device) -> Result<Self> {
        read_dense_config(folder)?;
        let config = Config::read(folder)?;
        if let (Config::Classifier(encoder, _), Some(_)) = (&config, &texts)
            && encoder.shares_layers()
        {
            return Err(CompressError::Input(format!(
                "{}: its layers share their weights, whose inputs are not collected layer by layer; start as LoftQ (--init loftq)",
                folder.display()
            )));
        }
        let calibrator = |texts| ModelCalibrator::new(folder, texts, false, device.clone());
        Ok(Self {
            folder: folder.to_path_buf(),
            config,
            checkpoint: Checkpoint::open(folder)?,
            inputs: texts.map(calibrator).transpose()?,
            layer: None,
            device: device.clone(),
        })
    }

    /// Factors `[d_input, rank]` and `[rank, d_output]`, of equal norms, of a site's residual; `None` outside the layers, which
    /// are not quantized, or if the residual is zero.
    ///
    /// # Errors
    /// A site that the model does not have, a weight of another shape, values that are not finite.
    pub fn factors(
        &mut self,
        site: &Site,
        quantized: Tensor<B, 2>,
        rank: usize,
    ) -> Result<Option<[Tensor<B, 2>; 2]>> {
        let of_site = site.layer.map(|layer| Module::in_layer(&site.path, layer));
        let Some(index) = of_site.and_then(|module| self.config.layer_of(&module)) else { return Ok(None) };
        let mut layer = self.take_layer(index)?;
        let shape = [site.d_input, site.d_output];
        // A head for another task may give the model another prefix.
        let sites = layer.network.sites();
        let place = sites.iter().position(|other| other.path == site.path).or_else(|| {
            let bare = without_prefix(&site.path);
            sites.iter().position(|other| without_prefix(&other.path) == bare)
        });
        let path = place.map_or_else(|| site.path.clone(), |place| sites[place].path.clone());
        let weight = place.and_then(|place| layer.network.weight(place));
        let weight = weight.filter(|weight| weight.dims() == shape && quantized.dims() == shape);
        let Some(weight) = weight else {
            return Err(CompressError::Input(format!(
                "{}: has no matrix {shape:?} for '{path}'; leave that module out, or start from another --init",
                self.folder.display()
            )));
        };
        let weighting = layer.weightings.get(&path).cloned();
        self.layer = Some(layer);
        let residual = host_values(weight - quantized);
        if residual.iter().all(|value| *value == 0.0) {
            return Ok(None);
        }
        let residual = from_row_major(&residual, site.d_input, site.d_output).map_err(at(&path))?;
        let fit = fit(residual.transpose(), weighting.as_ref(), rank).map_err(at(&path))?;
        let factor = |m: MatRef<'_, f32>| {
            Tensor::from_data(TensorData::new(to_row_major(m), [m.nrows(), m.ncols()]), &self.device)
        };
        Ok(Some([factor(fit.right().transpose()), factor(fit.left().transpose())]))
    }

    /// Takes a layer out: the one in memory, or another one, read and, if texts are given, run on them.
    fn take_layer(&mut self, index: usize) -> Result<Layer<B>> {
        if let Some(layer) = self.layer.take().filter(|layer| layer.index == index) {
            return Ok(layer);
        }
        let weightings = self.inputs.as_mut().map(|inputs| inputs.weightings(index)).transpose()?;
        let network = Network::load(&self.config, &self.checkpoint, Part::Layer(index), &[], &self.device)?;
        Ok(Layer { index, network, weightings: weightings.unwrap_or_default() })
    }
}

/// The best approximation of a matrix `[d_output, d_input]` of a rank, in the norm of its inputs where they are known.
fn fit(
    residual: MatRef<'_, f32>,
    weighting: Option<&Weighting>,
    rank: usize,
) -> std::result::Result<LowRank<f32>, lowrank_factor::FactorError> {
    let truncation = Truncation::Rank(rank);
    let Some(Weighting::Inputs(inputs)) = weighting else {
        return Ok(svd::auto(residual, &truncation, 0)?
            .svd
            .low_rank(&truncation, SigmaPlacement::Split)?
            .factors);
    };
    let fit = whitened::by_gram(residual, inputs.gram.as_ref())?.low_rank(&truncation)?.factors;
    let of_right = svd::exact(fit.right())?.low_rank(&truncation, SigmaPlacement::Split)?.factors;
    LowRank::new(fit.left() * of_right.left(), of_right.right().to_owned())
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use std::sync::Arc;

    use lowrank_factor::Mat;

    use super::*;
    use crate::statistics::InputStatistics;

    fn matrix(rows: usize, columns: usize, seed: usize) -> Mat<f32> {
        Mat::from_fn(rows, columns, |i, j| (((i * 31 + j * 17 + seed * 7) % 23) as f32 - 11.0) / 50.0)
    }

    /// The factors have equal norms, and their error is least in their norm.
    #[test]
    fn factors_are_best_in_the_norm_of_the_inputs() {
        let (residual, x) = (matrix(12, 8, 1), matrix(40, 8, 2));
        let x = Mat::from_fn(40, 8, |i, j| x[(i, j)] * if j < 2 { 20.0 } else { 1.0 });
        let gram = Mat::from_fn(8, 8, |i, j| {
            (0..40).map(|t| f64::from(x[(t, i)]) * f64::from(x[(t, j)])).sum::<f64>()
        });
        let inputs = Weighting::Inputs(Arc::new(InputStatistics { gram, magnitude: vec![1.0; 8], rows: 40 }));
        let [plain, weighted] =
            [None, Some(&inputs)].map(|weighting| fit(residual.as_ref(), weighting, 3).unwrap());
        let error = |fit: &LowRank<f32>| &residual - fit.reconstruct();
        let weighted_norm = |fit: &LowRank<f32>| (error(fit) * x.transpose()).norm_l2();
        assert!(weighted_norm(&weighted) < 0.9 * weighted_norm(&plain));
        assert!(error(&plain).norm_l2() < 0.9 * error(&weighted).norm_l2());
        for fit in [&plain, &weighted] {
            let ratio = fit.left().norm_l2() / fit.right().norm_l2();
            assert!((ratio - 1.0).abs() < 1e-4, "{ratio}");
        }
    }
}
