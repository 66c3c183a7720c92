//! Algebra of adapters without a base: an adapter's updates as low-rank matrices, resized, combined and
//! converted on their factors.

use std::collections::BTreeMap;

use burn::module::Param;
use burn::prelude::*;
use burn::tensor::TensorData;
/// Criterion for a rank.
pub use lowrank_factor::Truncation;
use lowrank_factor::qr::thin_qr;
use lowrank_factor::tucker::{Tucker2Options, tucker2_with_ranks};
use lowrank_factor::{LowRank, Mat, MatRef, SigmaPlacement, svd};
use lowrank_spec::Site;

use crate::config::Grouping;
use crate::error::{AdapterError, Result};
use crate::host::{from_mat, host_values, to_mat};
use crate::init::uniform_values;
use crate::methods::Adapter;
use crate::methods::lora::Lora;
use crate::methods::lotr::Lotr;
use crate::set::{AdapterSet, Pair, Slot};

/// The update of one site: `scale·L·R`.
#[derive(Clone, Debug)]
pub struct Update {
    /// The site.
    pub site: Site,
    /// `L` `[d_input, rank]` and `R` `[rank, d_output]`.
    pub factors: LowRank<f32>,
    /// Factor on the product.
    pub scale: f64,
    /// Offset of the site's bias (PEFT's `lora_bias`, scaled), shape `[d_output]`.
    pub bias: Option<Vec<f32>>,
}

/// Method of combining several adapters into one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Combination {
    /// The weighted sum of the updates, at their combined rank.
    Linear,
    /// The weighted sum with concatenated factors: the rank is the sum of the ranks.
    Concatenation,
    /// The weighted sum, truncated.
    Svd(Truncation),
    /// TIES (Yadav et al. 2023, arXiv:2306.01708): keeps the largest entries of each update and averages
    /// those that have the elected sign; then truncated.
    Ties {
        /// Fraction of the entries to keep.
        density: f64,
        /// Truncation of the result.
        truncation: Truncation,
    },
    /// DARE (Yu et al. 2023, arXiv:2311.03099): drops entries at random and rescales the others; then
    /// truncated.
    Dare {
        /// Fraction of the entries to keep.
        density: f64,
        /// Seed of the dropped entries.
        seed: u64,
        /// Truncation of the result.
        truncation: Truncation,
    },
}

/// Relative remainder of a sum beyond its numerical rank: the rounding of f32 factors.
const NUMERICAL: f64 = 1e-6;

impl Update {
    /// The nearest update under a rank or error, and its relative error; the product is never formed.
    ///
    /// # Algorithm
    /// QR of both factors, SVD of the small product of their triangular factors.
    ///
    /// # Errors
    /// A truncation out of range, values that are not finite.
    pub fn resized(&self, truncation: &Truncation) -> Result<(Self, f64)> {
        // At most as many singular values as the factors have.
        let truncation = match *truncation {
            Truncation::Rank(rank) => Truncation::Rank(rank.min(self.max_rank())),
            other => other,
        };
        let fit = self.factors.svd()?.low_rank(&truncation, SigmaPlacement::Split)?;
        Ok((Self { factors: fit.factors, ..self.clone() }, fit.report.relative_error))
    }

    /// The same update of the transposed map, `ΔWᵀ`: the update of a head tied to an embedding.
    ///
    /// # Errors
    /// Values that are not finite.
    pub fn transposed(&self, site: Site) -> Result<Self> {
        let (left, right) = (self.factors.right().transpose(), self.factors.left().transpose());
        let factors = LowRank::new(left.to_owned(), right.to_owned())?;
        Ok(Self { site, factors, scale: self.scale, bias: None })
    }

    fn max_rank(&self) -> usize {
        self.factors.rank().min(self.site.max_rank())
    }

    /// `scale·L·R` with the scale in `L`.
    fn unscaled(&self, weight: f64) -> Result<LowRank<f32>> {
        Ok(self.factors.scale((self.scale * weight) as f32)?)
    }

    fn dense(&self) -> Mat<f32> {
        let product = self.factors.reconstruct();
        Mat::from_fn(product.nrows(), product.ncols(), |i, j| product[(i, j)] * self.scale as f32)
    }

    /// The best approximation of a matrix, of scale 1, and its relative error.
    ///
    /// # Errors
    /// A truncation out of range, values that are not finite.
    pub(crate) fn of_matrix(
        site: Site,
        matrix: MatRef<'_, f32>,
        truncation: &Truncation,
    ) -> Result<(Self, f64)> {
        let truncation = match *truncation {
            Truncation::Rank(rank) => Truncation::Rank(rank.min(site.max_rank())),
            other => other,
        };
        let svd = svd::auto(matrix, &truncation, 0)?.svd;
        let fit = svd.low_rank(&truncation, SigmaPlacement::Split)?;
        Ok((Self { site, factors: fit.factors, scale: 1.0, bias: None }, fit.report.relative_error))
    }
}

impl<B: Backend> AdapterSet<B> {
    /// The updates of all enabled adapters, by site. If `weight` provides the weights, magnitudes
    /// (DoRA) become part of the update, exactly, at the rank that it then has.
    ///
    /// # Errors
    /// [`AdapterError::NoWeight`] for magnitudes without weights; values that are not finite.
    pub fn updates(
        &self,
        sites: &[Site],
        weight: impl Fn(usize) -> Option<Tensor<B, 2>>,
    ) -> Result<Vec<Update>> {
        let mut updates = Vec::new();
        for slot in self.slots() {
            let site = sites[slot.site].clone();
            let adapter = &self.adapters()[slot.adapter];
            let bias = adapter.bias(slot.slice).map(host_values);
            if adapter.depends_on_base() {
                let missing = || AdapterError::NoWeight { site: site.path.clone(), method: "dora".into() };
                let weight = weight(slot.site).ok_or_else(missing)?;
                let Some(change) = adapter.change(slot.slice, &weight) else { continue };
                let all = Truncation::Rank(site.max_rank());
                let (update, _) = Update::of_matrix(site, to_mat(change)?.as_ref(), &all)?;
                updates.push(Update { bias, ..update });
                continue;
            }
            let Some(Pair { a, b, scale }) = adapter.to_pair(slot.slice)? else { continue };
            updates.push(Update { site, factors: LowRank::new(to_mat(a)?, to_mat(b)?)?, scale, bias });
        }
        Ok(updates)
    }

    /// Updates as LoRA pairs. Sites are numbered by their position in `sites`.
    pub fn from_updates(updates: Vec<Update>, sites: &[Site], device: &B::Device) -> Self {
        let mut adapters = Vec::new();
        let mut slots = Vec::new();
        for update in updates {
            let Some(site) = sites.iter().position(|s| s.path == update.site.path) else { continue };
            slots.push(Slot { site, path: update.site.path, adapter: adapters.len(), slice: 0 });
            let [a, b] = [update.factors.left(), update.factors.right()].map(|m| from_mat::<B>(m, device));
            // A bias is scaled with the update; with a scale of zero it vanishes.
            let bias = update.bias.filter(|_| update.scale != 0.0).map(|bias| {
                let n = bias.len();
                let bias = Tensor::from_data(TensorData::new(bias, [n]), device);
                Param::from_tensor(bias / update.scale)
            });
            adapters.push(Adapter::Lora(Lora { bias, ..Lora::from_factors(a, b, update.scale) }));
        }
        Self::from_parts(adapters, slots, sites.len(), 0.0)
    }

    /// Updates as LoTR groups of a rank, by Tucker2 of their stacks, with the relative error of each group.
    ///
    /// # Algorithm
    /// QR gives bases of all left and all right factors of a group; Tucker2 is applied to the remaining small
    /// cores. The stack itself is never formed.
    ///
    /// # Errors
    /// Values that are not finite; a rank of 0; an embedding, which LoTR does not support.
    pub fn lotr_from_updates(
        updates: &[Update],
        sites: &[Site],
        rank: usize,
        grouping: Grouping,
        device: &B::Device,
    ) -> Result<(Self, Vec<f64>)> {
        let mut groups: Vec<Vec<&Update>> = Vec::new();
        let key = |u: &Update| {
            (u.site.d_input, u.site.d_output, (grouping == Grouping::Kind).then(|| u.site.kind()))
        };
        for update in updates {
            if update.bias.is_some() {
                let text = format!("'{}' has a bias (lora_bias), which lotr cannot store", update.site.path);
                return Err(AdapterError::Incompatible(text));
            }
            if update.site.embedding {
                let text = format!("'{}' is an embedding; lotr adapts linear layers only", update.site.path);
                return Err(AdapterError::Incompatible(text));
            }
            match groups.iter_mut().find(|group| key(group[0]) == key(update)) {
                Some(group) => group.push(update),
                None => groups.push(vec![update]),
            }
        }
        let (mut adapters, mut slots, mut errors) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            let (lotr, error) = shared(&group, rank, device)?;
            for (slice, update) in group.iter().enumerate() {
                let Some(site) = sites.iter().position(|s| s.path == update.site.path) else { continue };
                slots.push(Slot { site, path: update.site.path.clone(), adapter: adapters.len(), slice });
            }
            adapters.push(Adapter::Lotr(lotr));
            errors.push(error);
        }
        slots.sort_by_key(|slot| slot.site);
        Ok((Self::from_parts(adapters, slots, sites.len(), 0.0), errors))
    }
}

/// Tucker2 of the stack of a group's updates, on their factors.
fn shared<B: Backend>(group: &[&Update], rank: usize, device: &B::Device) -> Result<(Lotr<B>, f64)> {
    let (d_input, d_output) = (group[0].site.d_input, group[0].site.d_output);
    let side = |matrices: Vec<MatRef<'_, f32>>, rows: usize| -> Result<Mat<f32>> {
        let width: usize = matrices.iter().map(|m| m.ncols()).sum();
        let mut all = Mat::zeros(rows, width);
        let mut at = 0;
        for matrix in matrices {
            all.as_mut().subcols_mut(at, matrix.ncols()).copy_from(matrix);
            at += matrix.ncols();
        }
        // More columns than rows span the whole space.
        if width >= rows {
            return Ok(Mat::from_fn(rows, rows, |i, j| f32::from(u8::from(i == j))));
        }
        Ok(thin_qr(all.as_ref())?.0)
    };
    let left = side(group.iter().map(|u| u.factors.left()).collect(), d_input)?;
    let right = side(group.iter().map(|u| u.factors.right().transpose()).collect(), d_output)?;
    let cores: Vec<Mat<f32>> = group
        .iter()
        .map(|u| {
            let core = (left.transpose() * u.factors.left()) * (u.factors.right() * &right);
            Mat::from_fn(core.nrows(), core.ncols(), |i, j| core[(i, j)] * u.scale as f32)
        })
        .collect();
    let views: Vec<_> = cores.iter().map(Mat::as_ref).collect();
    let (p, q) = (left.ncols(), right.ncols());
    let ranks = (rank.min(p).min(q * cores.len()), rank.min(q).min(p * cores.len()));
    let fit = tucker2_with_ranks(&views, ranks, &Tucker2Options::default())?;
    let error = fit.report.relative_error;
    let (l, cores, r) = fit.factors.into_parts();
    let (l, r) = (left * l, r * right.transpose());
    // A group narrower than the rank is padded with zeros: the file has a single rank.
    let padded = |m: MatRef<'_, f32>, rows: usize, columns: usize| {
        let at = |i: usize, j: usize| if i < m.nrows() && j < m.ncols() { m[(i, j)] } else { 0.0 };
        from_mat::<B>(Mat::from_fn(rows, columns, at).as_ref(), device)
    };
    let cores = cores.iter().map(|core| padded(core.as_ref(), rank, rank)).collect();
    let lotr =
        Lotr::from_factors(padded(l.as_ref(), d_input, rank), padded(r.as_ref(), rank, d_output), cores, 1.0);
    Ok((lotr, error))
}

/// Several adapters as one, each with its weight, with the relative error of each site's update against the
/// exact sum (or the result of TIES or DARE).
///
/// # Errors
/// Different shapes at one path; a density outside `(0, 1]`; errors of the decompositions.
pub fn combine(adapters: &[(Vec<Update>, f64)], how: &Combination) -> Result<Vec<(Update, f64)>> {
    if let Combination::Ties { density, .. } | Combination::Dare { density, .. } = how
        && !(*density > 0.0 && *density <= 1.0)
    {
        let value = density.to_string();
        return Err(AdapterError::BadValue { name: "density", value, expected: "0 < density <= 1" });
    }
    let mut by_path: BTreeMap<&str, Vec<(usize, &Update, f64)>> = BTreeMap::new();
    for (index, (updates, weight)) in adapters.iter().enumerate() {
        for update in updates {
            by_path.entry(&update.site.path).or_default().push((index, update, *weight));
        }
    }
    let mut combined = Vec::new();
    for parts in by_path.values() {
        let site = &parts[0].1.site;
        if let Some((_, other, _)) =
            parts.iter().find(|(_, u, _)| (u.site.d_input, u.site.d_output) != (site.d_input, site.d_output))
        {
            return Err(AdapterError::Incompatible(format!(
                "'{}' is {}x{} in one adapter and {}x{} in another",
                site.path, site.d_input, site.d_output, other.site.d_input, other.site.d_output
            )));
        }
        let bias = sum_of_biases(parts);
        let (update, error) = match how {
            Combination::Ties { density, truncation } => {
                let matrix = ties(parts, *density);
                Update::of_matrix(site.clone(), matrix.as_ref(), truncation)?
            }
            Combination::Dare { density, seed, truncation } => {
                let matrix = dare(parts, *density, *seed);
                Update::of_matrix(site.clone(), matrix.as_ref(), truncation)?
            }
            _ => {
                let mut sum: Option<LowRank<f32>> = None;
                for (_, update, weight) in parts {
                    let next = update.unscaled(*weight)?;
                    sum = Some(match sum {
                        Some(sum) => sum.add(&next)?,
                        None => next,
                    });
                }
                let Some(factors) = sum else { continue };
                let sum = Update { site: site.clone(), factors, scale: 1.0, bias: None };
                match how {
                    Combination::Svd(truncation) => sum.resized(truncation)?,
                    Combination::Linear => sum.resized(&Truncation::RelativeError(NUMERICAL))?,
                    _ => (sum, 0.0),
                }
            }
        };
        combined.push((Update { bias, ..update }, error));
    }
    Ok(combined)
}

/// The weighted sum of the updates' biases.
fn sum_of_biases(parts: &[(usize, &Update, f64)]) -> Option<Vec<f32>> {
    let weighted = parts.iter().filter_map(|(_, update, weight)| {
        Some(update.bias.as_ref()?.iter().map(|b| b * *weight as f32).collect::<Vec<f32>>())
    });
    weighted.reduce(|a, b| a.iter().zip(&b).map(|(x, y)| x + y).collect())
}

/// TIES as in PEFT's `ties_svd`: the `⌊density·n⌋` largest entries of each update are kept, the sign of each
/// entry is elected by the sum of the kept values, and the weighted values of that sign are averaged over
/// those that agree.
fn ties(parts: &[(usize, &Update, f64)], density: f64) -> Mat<f32> {
    let trimmed: Vec<(Mat<f32>, f32)> =
        parts.iter().map(|(_, update, weight)| (trim(update.dense(), density), *weight as f32)).collect();
    let (rows, columns) = trimmed[0].0.shape();
    Mat::from_fn(rows, columns, |i, j| {
        let sum: f32 = trimmed.iter().map(|(m, _)| m[(i, j)]).sum();
        let agrees = |value: f32| if sum >= 0.0 { value > 0.0 } else { value < 0.0 };
        let agreeing = trimmed.iter().filter(|(m, _)| agrees(m[(i, j)]));
        let (total, n) =
            agreeing.fold((0.0, 0), |(total, n), (m, weight)| (total + m[(i, j)] * weight, n + 1));
        total / n.max(1) as f32
    })
}

/// The `⌊density·n⌋` entries of largest magnitude; among equal ones, the first in row order.
fn trim(matrix: Mat<f32>, density: f64) -> Mat<f32> {
    let (rows, columns) = matrix.shape();
    let kept = (density * (rows * columns) as f64) as usize;
    if kept == 0 {
        return Mat::zeros(rows, columns);
    }
    if kept >= rows * columns {
        return matrix;
    }
    let mut order: Vec<(usize, usize)> = (0..rows).flat_map(|i| (0..columns).map(move |j| (i, j))).collect();
    let by_size = |a: &(usize, usize), b: &(usize, usize)| {
        matrix[*b].abs().total_cmp(&matrix[*a].abs()).then_with(|| a.cmp(b))
    };
    order.select_nth_unstable_by(kept - 1, by_size);
    let mut trimmed = Mat::zeros(rows, columns);
    for &at in &order[..kept] {
        trimmed[at] = matrix[at];
    }
    trimmed
}

fn dare(parts: &[(usize, &Update, f64)], density: f64, seed: u64) -> Mat<f32> {
    let (rows, columns) = parts[0].1.factors.shape();
    let mut sum: Mat<f32> = Mat::zeros(rows, columns);
    for (index, update, weight) in parts {
        let dense = update.dense();
        let key = format!("dare.{index}.{}", update.site.path);
        let draws = uniform_values(seed, &key, rows * columns, 1.0);
        let factor = (*weight / density) as f32;
        sum = Mat::from_fn(rows, columns, |i, j| {
            // Uniform in [−1, 1].
            let kept = f64::from(draws[i * columns + j]) < 2.0 * density - 1.0 || density == 1.0;
            sum[(i, j)] + if kept { dense[(i, j)] * factor } else { 0.0 }
        });
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(values: [f32; 4]) -> Update {
        let site =
            Site { path: "q".into(), layer: None, d_input: 2, d_output: 2, head: false, ..Site::default() };
        let matrix = Mat::from_fn(2, 2, |i, j| values[2 * i + j]);
        Update::of_matrix(site, matrix.as_ref(), &Truncation::Rank(2)).unwrap().0
    }

    /// PEFT's `ties` of these tensors with density 0.75 and weights 2 and 1: the sums of what is kept, 3, −4, 1 and 0,
    /// elect the signs.
    #[test]
    fn ties_averages_the_weighted_values_that_agree() {
        let (a, b) = (update([1.0, -5.0, 3.0, 0.5]), update([2.0, 1.0, -2.0, -0.9]));
        let parts = [(0, &a, 2.0), (1, &b, 1.0)];
        let merged = ties(&parts, 0.75);
        let expect = [(1.0 * 2.0 + 2.0) / 2.0, -10.0, 6.0, 0.0];
        for (at, expect) in expect.into_iter().enumerate() {
            let got = merged[(at / 2, at % 2)];
            assert!((got - expect).abs() < 1e-5, "entry {at}: {got}, expected {expect}");
        }
    }

    #[test]
    fn nothing_is_kept_of_a_density_below_one_entry() {
        assert_eq!(trim(Mat::from_fn(2, 2, |_, _| 1.0f32), 0.2), Mat::<f32>::zeros(2, 2));
        let kept = trim(Mat::from_fn(2, 2, |_, _| 1.0f32), 0.5);
        assert_eq!((kept[(0, 0)], kept[(0, 1)], kept[(1, 0)]), (1.0, 1.0, 0.0));
    }
}
