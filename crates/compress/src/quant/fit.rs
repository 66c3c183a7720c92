//! One quantized weight, with or without a correction.

use std::borrow::Cow;

use lowrank_checkpoint::Checkpoint;
use lowrank_factor::matrix::{from_row_major, to_row_major};
use lowrank_factor::{Feedback, Mat, MatRef, Subspace, Truncation, subspace, whitened};
use lowrank_spec::blocks::BlockFormat;

use super::errors::ErrorWeights;
use crate::error::{CompressError, Result, at};
use crate::weights::{Role, Weight};

/// Storage of the matrix of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Floats.
    Floats,
    /// Blocks of a format.
    Blocks(BlockFormat),
    /// None: the factors are the weight.
    Absent,
}

/// Storage of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Its matrix.
    pub(crate) base: Base,
    /// Rank of the factors that are added to it, 0 for none.
    pub(crate) rank: usize,
    /// Their format.
    pub(crate) factors: BlockFormat,
}

impl Target {
    pub(crate) const FLOATS: Self = Self { base: Base::Floats, rank: 0, factors: FACTORS };

    /// The weight in a format, or in floats, with a correction of a rank.
    pub(crate) fn of(format: Option<BlockFormat>, rank: usize) -> Self {
        Self { base: format.map_or(Base::Floats, Base::Blocks), rank, factors: FACTORS }
    }

    /// The block format of the matrix.
    pub(crate) fn format(self) -> Option<BlockFormat> {
        match self.base {
            Base::Blocks(format) => Some(format),
            Base::Floats | Base::Absent => None,
        }
    }
}

/// Format of the factors of a correction of a given rank.
pub(crate) const FACTORS: BlockFormat = BlockFormat::Q8_0;
/// Format of factors under a budget: at half the bytes of Q8_0 its error is small beside that of the rank.
const BUDGET_FACTORS: BlockFormat = BlockFormat::Nf4;
/// Ranks of corrections that compete with more bits.
pub(crate) const CORRECTION_RANKS: &[usize] = &[16, 32, 64];
/// Ranks of factors in place of the matrix, in sixteenths of its smaller side.
const LOW_RANKS: [usize; 7] = [1, 2, 3, 4, 6, 8, 10];
/// Alternations of matrix and correction.
const TURNS: usize = 4;
/// Elements of a weight by which its formats are compared.
const SAMPLE: usize = 1 << 17;
/// Elements of a weight that are rounded at a time where its rows are independent of each other.
const PART: usize = 1 << 22;
/// Bits from which on a correction is never worth its bytes.
const ENOUGH_BITS: f64 = 6.0;

/// A weight `[rows, columns]` whose rows are cut into blocks.
pub(crate) struct Rows<'a> {
    weight: &'a Weight,
    values: Cow<'a, [f32]>,
    shape: [usize; 2],
    /// The place of the first row in the weight.
    first: usize,
}

/// A matrix in blocks.
struct Rounded {
    blocks: Vec<u8>,
    /// The matrix minus the dequantized blocks.
    residual: Vec<f32>,
    /// The weighted squared norm of the residual.
    loss: f64,
}

/// The result for a weight.
pub(crate) struct Made {
    /// The blocks, row after row; none if the factors are the weight.
    pub(crate) blocks: Vec<u8>,
    /// The factors `L·R` that are added: `L` `[rows, rank]` and `R` `[rank, columns]`, row-major, as they will be read.
    pub(crate) factors: Option<Factors>,
    /// Relative error in the norm given by the error weights.
    pub(crate) error: f64,
}

/// The two factors, quantized if their rows allow it.
pub(crate) struct Factors {
    /// `Lᵀ`, `[rank, rows]`.
    pub(crate) left: Factor,
    /// `R`, `[rank, columns]`.
    pub(crate) right: Factor,
}

/// A factor `[rank, width]`.
pub(crate) struct Factor {
    pub(crate) values: Vec<f32>,
    pub(crate) blocks: Option<Vec<u8>>,
}

impl Factor {
    fn new(values: Vec<f32>, format: BlockFormat, rank: usize, width: usize, path: &str) -> Result<Self> {
        if !width.is_multiple_of(format.block_len()) {
            return Ok(Self { values, blocks: None });
        }
        let blocks = format.quantize([rank, width], &values).map_err(named(path))?;
        let mut values = Vec::with_capacity(values.len());
        format.dequantize(&blocks, &mut values);
        Ok(Self { values, blocks: Some(blocks) })
    }
}

pub(crate) fn named(path: &str) -> impl Fn(lowrank_spec::blocks::BlockError) -> CompressError {
    let path = path.to_string();
    move |e| CompressError::Input(format!("'{path}': {e}"))
}

impl<'a> Rows<'a> {
    /// Reads a weight.
    ///
    /// # Errors
    /// A non-finite value.
    pub(crate) fn read(weight: &'a Weight, checkpoint: &Checkpoint) -> Result<Self> {
        let (values, shape) = weight.in_rows(weight.read(checkpoint)?);
        Self::new(weight, values.into(), shape, 0)
    }

    fn new(weight: &'a Weight, values: Cow<'a, [f32]>, shape: [usize; 2], first: usize) -> Result<Self> {
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let (path, [_, columns]) = (&weight.site.path, shape);
            return Err(CompressError::Input(format!(
                "'{path}': row {}, column {} is {}; a quantized weight must be finite",
                first + at / columns,
                at % columns,
                values[at]
            )));
        }
        Ok(Self { weight, values, shape, first })
    }

    fn path(&self) -> &str {
        &self.weight.site.path
    }

    /// Every `step`-th row, about [`SAMPLE`] elements in all, and the step.
    pub(crate) fn sample(&self) -> (Self, usize) {
        let [rows, columns] = self.shape;
        let step = (rows * columns).div_ceil(SAMPLE).clamp(1, rows.max(1));
        let values: Vec<f32> =
            self.values.chunks_exact(columns.max(1)).step_by(step).flatten().copied().collect();
        (Self { values: values.into(), shape: [rows.div_ceil(step), columns], ..*self }, step)
    }

    /// Whether a low-rank correction is worth trying for a matrix in this format.
    pub(crate) fn takes_correction(&self, format: Option<BlockFormat>) -> bool {
        let bits = format.map(bits_of);
        bits.is_some_and(|bits| bits < ENOUGH_BITS) && self.weight.role == Role::Block
    }

    /// The weighted squared norm of the weight: the loss of keeping nothing.
    pub(crate) fn total(&self, weights: &ErrorWeights) -> f64 {
        self.loss(&self.values, weights)
    }

    /// The weighted squared norm of an error.
    fn loss(&self, error: &[f32], weights: &ErrorWeights) -> f64 {
        let [_, columns] = self.shape;
        if let Some(gram) = &weights.gram {
            let scale = 1.0 / gram.statistics.rows.max(1) as f64;
            return gram_rows(error, self.shape, gram.narrow())
                .into_iter()
                .enumerate()
                .map(|(row, squared)| weights.row(self.first + row) * squared * scale)
                .sum();
        }
        let row = |(row, error): (usize, &[f32])| {
            let squared = |(column, &e): (usize, &f32)| weights.column(column) * f64::from(e) * f64::from(e);
            weights.row(self.first + row) * error.iter().enumerate().map(squared).sum::<f64>()
        };
        error.chunks_exact(columns).enumerate().map(row).sum()
    }

    /// A matrix of this weight's shape in blocks: with error feedback if inputs are known, unless that increases the loss.
    fn quantize(&self, values: &[f32], format: BlockFormat, weights: &ErrorWeights) -> Result<Rounded> {
        let rounded = |blocks: Vec<u8>| {
            let residual = difference(values, format, &blocks);
            let loss = self.loss(&residual, weights);
            Rounded { blocks, residual, loss }
        };
        let plain = rounded(self.round(values, format, weights)?);
        let feedback = weights.gram.as_ref().and_then(|gram| gram.feedback());
        let Some(feedback) = feedback else {
            return Ok(plain);
        };
        let moved = rounded(self.round_with_feedback(values, format, feedback)?);
        Ok(if moved.loss < plain.loss { moved } else { plain })
    }

    /// Blocks by columns of blocks, each quantized after the error feedback of the previous ones; inside a block, elements
    /// are rounded in turn with feedback where that lowers the loss.
    fn round_with_feedback(
        &self,
        values: &[f32],
        format: BlockFormat,
        feedback: &Feedback,
    ) -> Result<Vec<u8>> {
        let ([rows, columns], len, size) = (self.shape, format.block_len(), format.block_bytes());
        let mut rest = Mat::from_fn(rows, columns, |i, j| values[i * columns + j]);
        let row_bytes = format.row_bytes(columns).map_err(named(self.path()))?;
        let mut blocks = vec![0; rows * row_bytes];
        for (place, first) in (0..columns).step_by(len).enumerate() {
            let part = to_row_major(rest.subcols(first, len));
            let mut made = format
                .quantize_weighted([rows, len], &part, &feedback.weights(first, len))
                .map_err(named(self.path()))?;
            let mut error = self.error(&part, format, &made);
            let mut in_turn = made.clone();
            let factors = to_row_major(feedback.within(first, len).as_ref());
            for (block, part) in in_turn.chunks_exact_mut(size).zip(part.chunks_exact(len)) {
                format.round_in_turn(block, &mut part.to_vec(), |i, error, rest| {
                    let factors = &factors[i * len + i + 1..(i + 1) * len];
                    rest.iter_mut().zip(factors).for_each(|(rest, factor)| *rest -= error * factor);
                });
            }
            let error_in_turn = self.error(&part, format, &in_turn);
            let [losses, losses_in_turn] =
                [&error, &error_in_turn].map(|error| feedback.losses(error.as_ref(), first));
            for row in (0..rows).filter(|&row| losses_in_turn[row] < losses[row]) {
                made[row * size..][..size].copy_from_slice(&in_turn[row * size..][..size]);
                error.row_mut(row).copy_from(error_in_turn.row(row));
            }
            for (row, block) in made.chunks_exact(size).enumerate() {
                blocks[row * row_bytes + place * size..][..size].copy_from_slice(block);
            }
            feedback.spread(&mut rest, error.as_ref(), first);
        }
        Ok(blocks)
    }

    /// The error of some columns of blocks, `[rows, columns]`.
    fn error(&self, values: &[f32], format: BlockFormat, blocks: &[u8]) -> Mat<f32> {
        let (rows, error) = (self.shape[0], difference(values, format, blocks));
        let columns = error.len() / rows.max(1);
        Mat::from_fn(rows, columns, |i, j| error[i * columns + j])
    }

    /// Blocks by rounding alone.
    fn round(&self, values: &[f32], format: BlockFormat, weights: &ErrorWeights) -> Result<Vec<u8>> {
        let made = if weights.columns.len() == self.shape[1] {
            format.quantize_weighted(self.shape, values, &weights.columns)
        } else {
            format.quantize(self.shape, values)
        };
        made.map_err(named(self.path()))
    }

    /// The losses of a format alone and with corrections of these ranks.
    pub(crate) fn losses(
        &self,
        format: Option<BlockFormat>,
        ranks: &[usize],
        weights: &ErrorWeights,
    ) -> Result<Vec<(Target, f64)>> {
        let Some(format) = format else { return Ok(vec![(Target::FLOATS, 0.0)]) };
        let Rounded { residual, loss, .. } = self.quantize(&self.values, format, weights)?;
        let mut found = vec![(Target::of(Some(format), 0), loss)];
        let most = self.shape[0].min(self.shape[1]) / 2;
        let ranks: Vec<usize> = ranks.iter().copied().filter(|&rank| rank <= most).collect();
        if !ranks.is_empty() {
            found.extend(self.with_factors(Base::Blocks(format), &residual, &ranks, weights)?);
        }
        Ok(found)
    }

    /// The losses of factors alone, of several ranks.
    pub(crate) fn low_rank_losses(&self, weights: &ErrorWeights) -> Result<Vec<(Target, f64)>> {
        let side = self.shape[0].min(self.shape[1]);
        let mut ranks = LOW_RANKS.map(|part| part * side / 16).to_vec();
        ranks.retain(|&rank| rank > 0);
        ranks.dedup();
        if ranks.is_empty() || self.weight.role != Role::Block {
            return Ok(Vec::new());
        }
        self.with_factors(Base::Absent, &self.values, &ranks, weights)
    }

    /// The losses of what factors of these ranks leave of a matrix.
    fn with_factors(
        &self,
        base: Base,
        residual: &[f32],
        ranks: &[usize],
        weights: &ErrorWeights,
    ) -> Result<Vec<(Target, f64)>> {
        let subspace = self.subspace(residual, weights)?;
        let loss = |&rank: &usize| {
            let target = Target { base, rank, factors: BUDGET_FACTORS };
            let factors = self.factors(&subspace, residual, target)?;
            Ok((target, self.loss(&self.minus(residual, &factors, rank), weights)))
        };
        ranks.iter().map(loss).collect()
    }

    /// The weight as factors alone.
    fn low_rank(&self, target: Target, weights: &ErrorWeights) -> Result<Made> {
        let factors = self.factors(&self.subspace(&self.values, weights)?, &self.values, target)?;
        let loss = self.loss(&self.minus(&self.values, &factors, target.rank), weights);
        Ok(Made { blocks: Vec::new(), factors: Some(factors), error: relative(loss, self.total(weights)) })
    }

    /// The weight in a target other than floats.
    pub(crate) fn make(&self, target: Target, weights: &ErrorWeights) -> Result<Made> {
        match target.format() {
            Some(format) => self.in_blocks(format, target, weights),
            None => self.low_rank(target, weights),
        }
    }

    /// The weight in a format, with the correction of a target.
    fn in_blocks(&self, format: BlockFormat, target: Target, weights: &ErrorWeights) -> Result<Made> {
        let (total, rank) = (self.total(weights), target.rank);
        let Rounded { mut blocks, mut residual, loss } = self.quantize(&self.values, format, weights)?;
        if rank == 0 {
            return Ok(Made { blocks, factors: None, error: relative(loss, total) });
        }
        let mut best: Option<(f64, Vec<u8>, Factors)> = None;
        for turn in 0..TURNS {
            let factors = self.factors(&self.subspace(&residual, weights)?, &residual, target)?;
            let loss = self.loss(&self.minus(&residual, &factors, rank), weights);
            let corrected: Vec<f32> = self.minus(&self.values, &factors, rank);
            if best.as_ref().is_none_or(|(least, ..)| loss < *least) {
                best = Some((loss, blocks, factors));
            } else {
                break;
            }
            if turn + 1 < TURNS {
                blocks = self.quantize(&corrected, format, weights)?.blocks;
                residual = difference(&self.values, format, &blocks);
            } else {
                break;
            }
        }
        let Some((loss, blocks, factors)) = best else {
            return Err(CompressError::Input(format!("'{}': no correction was found", self.path())));
        };
        Ok(Made { blocks, factors: Some(factors), error: relative(loss, total) })
    }

    /// As [`make`](Self::make) without a correction, for a weight [in parts](is_in_parts): some rows in memory at a time.
    ///
    /// # Errors
    /// A non-finite value.
    pub(crate) fn make_in_parts(
        weight: &Weight,
        checkpoint: &Checkpoint,
        format: BlockFormat,
        weights: &ErrorWeights,
    ) -> Result<Made> {
        let [rows, columns] = weight.row_shape();
        let mut blocks =
            Vec::with_capacity(rows * format.row_bytes(columns).map_err(named(&weight.site.path))?);
        let (mut first, mut total, mut loss) = (0, 0.0, 0.0);
        checkpoint.try_each_f32(&weight.key(), (PART / columns.max(1)).max(1) * columns, |values| {
            let shape = [values.len() / columns, columns];
            let part = Rows::new(weight, values.into(), shape, first)?;
            let rounded = part.quantize(&part.values, format, weights)?;
            blocks.extend(rounded.blocks);
            total += part.total(weights);
            loss += rounded.loss;
            first += shape[0];
            Ok::<_, CompressError>(())
        })?;
        Ok(Made { blocks, factors: None, error: relative(loss, total) })
    }

    /// The leading directions of a matrix of this weight's shape in the norm of the inputs.
    fn subspace(&self, values: &[f32], weights: &ErrorWeights) -> Result<Subspace<f32>> {
        let matrix = self.view(values)?;
        let fail = |e| at(self.path())(e);
        match &weights.gram {
            Some(gram) => whitened::by_gram(matrix, gram.statistics.gram.as_ref())
                .and_then(|w| w.into_subspace())
                .map_err(fail),
            None if weights.columns.len() == self.shape[1] => {
                let roots: Vec<f32> = weights.columns.iter().map(|weight| weight.sqrt()).collect();
                whitened::by_diagonal(matrix, &roots).and_then(|w| w.into_subspace()).map_err(fail)
            }
            None => subspace::leading(matrix).map_err(fail),
        }
    }

    fn factors(&self, subspace: &Subspace<f32>, residual: &[f32], target: Target) -> Result<Factors> {
        let Target { rank, factors: format, .. } = target;
        let fit = subspace
            .low_rank(self.view(residual)?, &Truncation::Rank(rank))
            .map_err(|e| at(self.path())(e))?;
        let left = to_row_major(fit.factors.left().transpose()); // [rank, rows]
        let right = to_row_major(fit.factors.right()); // [rank, columns]
        let [rows, columns] = self.shape;
        Ok(Factors {
            left: Factor::new(left, format, rank, rows, self.path())?,
            right: Factor::new(right, format, rank, columns, self.path())?,
        })
    }

    /// `values − L·R`.
    fn minus(&self, values: &[f32], factors: &Factors, rank: usize) -> Vec<f32> {
        let [rows, columns] = self.shape;
        let left = Mat::from_fn(rows, rank, |i, k| factors.left.values[k * rows + i]);
        let right = Mat::from_fn(rank, columns, |k, j| factors.right.values[k * columns + j]);
        let product = to_row_major((&left * &right).as_ref());
        values.iter().zip(product).map(|(x, p)| x - p).collect()
    }

    fn view<'v>(&self, values: &'v [f32]) -> Result<MatRef<'v, f32>> {
        from_row_major(values, self.shape[0], self.shape[1]).map_err(|e| at(self.path())(e))
    }
}

/// Whether the rows of a weight are rounded independently of each other, and stored so.
pub(crate) fn is_in_parts(weight: &Weight, target: Target, has_gram: bool) -> bool {
    target.rank == 0 && !has_gram && weight.is_stored_in_rows()
}

/// Approximate peak memory of [`Rows::make`] or [`Rows::make_in_parts`], in bytes.
pub(crate) fn bytes(weight: &Weight, target: Target, has_gram: bool) -> u64 {
    let [rows, columns] = weight.row_shape();
    if is_in_parts(weight, target, has_gram) {
        let blocks = target.format().and_then(|format| format.row_bytes(columns).ok()).unwrap_or(0) * rows;
        return (28 * PART.max(columns).min(weight.numel()) + blocks) as u64;
    }
    let width = if has_gram { columns } else { 0 };
    // Values, rounded values, errors, and the same after error feedback; of the Gram matrix its sums, the sums in f32, and a
    // Cholesky factor and its inverse in both precisions.
    (28 * weight.numel() + 36 * width * width) as u64
}

/// Approximate peak memory of comparing the formats of a weight, in bytes.
pub(crate) fn bytes_to_compare(weight: &Weight, with_correction: bool, has_gram: bool) -> u64 {
    if with_correction {
        return bytes(weight, Target::of(None, 1), has_gram);
    }
    // All values, for their norm, and some rows in every format.
    let copies = if weight.is_stored_in_rows() { 4 } else { 8 };
    (copies * weight.numel() + 28 * SAMPLE.max(weight.row_shape()[1])) as u64
}

/// The root of a loss relative to that of keeping nothing.
fn relative(loss: f64, total: f64) -> f64 {
    if total > 0.0 { (loss / total).sqrt() } else { 0.0 }
}

/// The values minus the dequantized blocks.
fn difference(values: &[f32], format: BlockFormat, blocks: &[u8]) -> Vec<f32> {
    let mut rounded = Vec::with_capacity(values.len());
    format.dequantize(blocks, &mut rounded);
    values.iter().zip(&rounded).map(|(x, q)| x - q).collect()
}

/// Bits per element.
pub(crate) fn bits_of(format: BlockFormat) -> f64 {
    8.0 * format.block_bytes() as f64 / format.block_len() as f64
}

/// `e·G·eᵀ` of each row `e`.
fn gram_rows(error: &[f32], [rows, columns]: [usize; 2], gram: &Mat<f32>) -> Vec<f64> {
    let error = Mat::from_fn(rows, columns, |i, j| error[i * columns + j]);
    let product = &error * gram;
    let row = |i: usize| {
        (0..columns).map(|j| f64::from(error[(i, j)]) * f64::from(product[(i, j)])).sum::<f64>().max(0.0)
    };
    (0..rows).map(row).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]
mod tests {
    use std::collections::BTreeMap;

    use lowrank_checkpoint::{FloatType, write_safetensors};
    use lowrank_spec::HostTensor;
    use serde_json::Map;

    use super::*;
    use crate::weights::find;

    /// More elements than are rounded at a time.
    const SHAPE: [usize; 2] = [PART / 64 + 100, 64];

    fn in_parts_and_whole(name: &str, values: Vec<f32>, weights: &ErrorWeights) -> Result<[Made; 2]> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let tensor = HostTensor::new(name, SHAPE, values);
        write_safetensors(&path, vec![tensor], FloatType::F32, &BTreeMap::new()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let [weight] = find(&checkpoint, &Map::new()).try_into().unwrap();
        let target = Target::of(Some(BlockFormat::Q4_0), 0);
        assert!(is_in_parts(&weight, target, weights.gram.is_some()));
        let parts = Rows::make_in_parts(&weight, &checkpoint, BlockFormat::Q4_0, weights)?;
        Ok([parts, Rows::read(&weight, &checkpoint)?.make(target, weights)?])
    }

    fn values() -> Vec<f32> {
        (0..SHAPE[0] * SHAPE[1]).map(|i| ((i * 2_654_435_761) % 1_000_003) as f32 / 5e5 - 1.0).collect()
    }

    #[test]
    fn parts_are_rounded_as_the_whole() {
        let [mut of_rows, mut of_columns] = [(); 2].map(|()| ErrorWeights::default());
        of_rows.rows = (0..SHAPE[0]).map(|row| row as f32).collect();
        of_columns.columns = (0..SHAPE[1]).map(|column| 1.0 + column as f32).collect();
        for (name, weights) in [
            ("model.embed_tokens.weight", of_rows),
            ("model.layers.0.mlp.up_proj.weight", of_columns),
            ("model.layers.0.mlp.up_proj.weight", ErrorWeights::default()),
        ] {
            let [parts, whole] = in_parts_and_whole(name, values(), &weights).unwrap();
            assert!(parts.blocks == whole.blocks, "{name}");
            assert!((parts.error / whole.error - 1.0).abs() < 1e-12, "{} {}", parts.error, whole.error);
        }
    }

    #[test]
    fn the_place_of_what_is_not_finite_is_that_in_the_weight() {
        let mut values = values();
        values[SHAPE[1] * (SHAPE[0] - 1) + 7] = f32::NAN;
        let error = in_parts_and_whole("model.layers.0.mlp.up_proj.weight", values, &ErrorWeights::default());
        let error = error.err().unwrap().to_string();
        assert!(error.contains(&format!("row {}, column 7 is NaN", SHAPE[0] - 1)), "{error}");
    }
}
