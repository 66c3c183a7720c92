//! The last step of a compression with pivots: factors `B` lose the rows of the identity.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use lowrank_checkpoint::{Checkpoint, Dtype, StreamOptions, StreamWriter, TensorPlan};
use lowrank_factor::matrix::{from_row_major, to_row_major};
use lowrank_factor::pivoted::{Pivoted, pivoted};
use lowrank_spec::LowrankSection;
use lowrank_spec::names::{PIVOTS, WeightPart};

use crate::error::{CompressError, Result, at};
use crate::fit::Factor;
use crate::folder;
use crate::parallel;
use crate::rounding::as_stored;

/// Modules whose factors are in memory at a time.
const AT_ONCE: usize = 8;

/// Rewrites the weights of a finished folder whose section has pivots and whose factors are still whole; returns their
/// bytes. `dtypes` are those of the factors by module, by default their own.
///
/// # Errors
/// Factors that are missing or not finite, files that cannot be written.
pub(crate) fn take_out(folder: &Path, dtypes: &BTreeMap<String, Dtype>) -> Result<u64> {
    let section = LowrankSection::of_config(&folder::read_config(folder)?)?;
    let modules: Vec<&String> = section
        .modules
        .iter()
        .filter(|(_, entry)| entry.representation.is_pivoted())
        .map(|(module, _)| module)
        .collect();
    let source = Checkpoint::open(folder)?;
    let old = folder::weight_files(&source)?;
    let to = folder.join("pivoted");
    std::fs::create_dir(&to).map_err(folder::io(&to))?;
    let mut plan = Vec::new();
    let mut replaced = BTreeSet::new();
    for module in &modules {
        let [a, b] = [WeightPart::FactorA, WeightPart::FactorB].map(|part| part.key(module));
        let (Some(of_a), Some(of_b)) = (source.info(&a), source.info(&b)) else {
            return Err(CompressError::Input(format!("'{module}': its factors are missing")));
        };
        let dtype = dtypes.get(*module).copied().unwrap_or(of_a.dtype);
        let (outputs, rank) = (of_b.shape[0], of_b.shape[1]);
        plan.push(TensorPlan::new(&a, of_a.shape.clone(), dtype));
        plan.push(TensorPlan::new(&b, [outputs - rank, rank], dtype));
        plan.push(TensorPlan::new(format!("{module}.{PIVOTS}"), [outputs.div_ceil(8)], Dtype::U8));
        replaced.extend([a, b]);
    }
    let others: Vec<&str> = source.unchanged(&replaced).collect();
    for name in &others {
        plan.extend(source.info(name).map(|info| TensorPlan::new(*name, info.shape.clone(), info.dtype)));
    }
    let options = StreamOptions { metadata: source.metadata().clone(), ..StreamOptions::default() };
    let mut writer = StreamWriter::create(&to, plan, options)?;
    for name in others {
        writer.copy(name, &source, name)?;
    }
    for part in modules.chunks(AT_ONCE) {
        let indices: Vec<usize> = (0..part.len()).collect();
        let found = parallel::map(&indices, None, |_| 0, |index| of_module(&source, part[index]))?;
        for (module, Pivoted { pivots, rest, right }) in part.iter().zip(found) {
            let mut mask = vec![0u8; (rest.nrows() + pivots.len()).div_ceil(8)];
            pivots.iter().for_each(|&pivot| mask[pivot / 8] |= 1 << (pivot % 8));
            writer.write_f32(&WeightPart::FactorA.key(module), &to_row_major(right.as_ref()))?;
            writer.write_f32(&WeightPart::FactorB.key(module), &to_row_major(rest.as_ref()))?;
            writer.write_bytes(&format!("{module}.{PIVOTS}"), &mask)?;
        }
    }
    let files = writer.finish()?;
    drop(source);
    for path in old {
        std::fs::remove_file(&path).map_err(folder::io(&path))?;
    }
    let mut bytes = 0;
    for path in files {
        bytes += folder::file_size(&path)?;
        let name = path.file_name().unwrap_or_default();
        std::fs::rename(&path, folder.join(name)).map_err(folder::io(&path))?;
    }
    std::fs::remove_dir(&to).map_err(folder::io(&to))?;
    Ok(bytes)
}

/// The values `[A, B]` of a pair as they will be read once pivots are taken out, `B` whole; `None` if storing them is exact.
///
/// # Errors
/// Factors that are not finite.
pub(crate) fn as_read(factors: &[Factor], dtype: Dtype, module: &str) -> Result<Option<Vec<Vec<f32>>>> {
    let [a, b] = factors else { return Ok(None) };
    let (rank, outputs) = (a.shape[0], b.shape[0]);
    if as_stored(&[], dtype).is_none() {
        return Ok(None);
    }
    let left = from_row_major(&b.values, outputs, rank).map_err(at(module))?;
    let right = from_row_major(&a.values, rank, a.shape[1]).map_err(at(module))?;
    let Pivoted { pivots, rest, right } = pivoted(left, right).map_err(at(module))?;
    let stored = |values: Vec<f32>| as_stored(&values, dtype).unwrap_or(values);
    let rest = stored(to_row_major(rest.as_ref()));
    let mut whole = Vec::with_capacity(outputs * rank);
    let mut others = rest.chunks_exact(rank);
    for row in 0..outputs {
        match pivots.binary_search(&row) {
            Ok(pivot) => whole.extend((0..rank).map(|j| f32::from(u8::from(j == pivot)))),
            Err(_) => whole.extend(others.next().unwrap_or_default()),
        }
    }
    Ok(Some(vec![stored(to_row_major(right.as_ref())), whole]))
}

fn of_module(source: &Checkpoint, module: &str) -> Result<Pivoted> {
    let read = |part: WeightPart| -> Result<(Vec<f32>, [usize; 2])> {
        let key = part.key(module);
        let shape = source.info(&key).map(|info| info.shape.clone()).unwrap_or_default();
        let &[rows, columns] = shape.as_slice() else {
            return Err(CompressError::Input(format!("'{key}' is not a matrix")));
        };
        Ok((source.read_f32(&key)?, [rows, columns]))
    };
    let ((right, [rank, inputs]), (left, [outputs, _])) =
        (read(WeightPart::FactorA)?, read(WeightPart::FactorB)?);
    let left = from_row_major(&left, outputs, rank).map_err(at(module))?;
    let right = from_row_major(&right, rank, inputs).map_err(at(module))?;
    pivoted(left, right).map_err(at(module))
}
