//! Subspaces on disk between the two passes, so that one decomposition serves both.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_atomic, write_safetensors};
use lowrank_factor::matrix::{from_row_major, to_row_major};
use lowrank_factor::{Mat, MatRef, Subspace, SubspaceSide};
use serde::{Deserialize, Serialize};

use crate::error::{CompressError, Result, at};
use crate::fit::{Analysis, Kept, Rules};
use crate::unit::Unit;

/// A folder of analyses, one file per unit.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    folder: PathBuf,
}

/// The metadata of a file beside its basis.
#[derive(Serialize, Deserialize)]
struct Header {
    unit: String,
    side: String,
    /// Squared singular values; JSON keeps every digit.
    squared: Vec<f64>,
    /// Whether low rank was the only form tried.
    is_whole: bool,
    shrinkage: Option<f64>,
    /// What a loss of 1 counts.
    importance: f64,
}

impl Scratch {
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .map_err(|e| CompressError::File { path: folder.to_owned(), reason: e.to_string() })?;
        Ok(Self { folder: folder.to_owned() })
    }

    fn path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index}.safetensors"))
    }

    /// Whether a unit's analysis is stored.
    pub(crate) fn has(&self, index: usize) -> bool {
        self.path(index).is_file()
    }

    /// Stores the subspace of a unit, if there is one.
    pub(crate) fn save(&self, index: usize, unit: &Unit, analysis: &Analysis) -> Result<()> {
        let Some(Kept { subspace, inputs, outputs }) = &analysis.kept else { return Ok(()) };
        let matrix = |name: &str, values: MatRef<'_, f32>| {
            HostTensor::new(name, [values.nrows(), values.ncols()], to_row_major(values))
        };
        let mut tensors = vec![matrix("basis", subspace.basis())];
        tensors.extend(subspace.dual().map(|dual| matrix("dual", dual)));
        let diagonals = [("inputs", inputs), ("outputs", outputs)].into_iter().filter(|(_, v)| !v.is_empty());
        tensors
            .extend(diagonals.map(|(name, values)| HostTensor::new(name, [values.len()], values.as_slice())));
        let side = match subspace.side() {
            SubspaceSide::Left => "left",
            SubspaceSide::Right => "right",
        };
        let header = Header {
            unit: unit.name(),
            side: side.into(),
            squared: subspace.squared().to_vec(),
            is_whole: analysis.curves.len() == 1,
            shrinkage: analysis.shrinkage,
            importance: analysis.importance,
        };
        let path = self.path(index);
        let text = serde_json::to_string(&header)
            .map_err(|e| CompressError::File { path: path.clone(), reason: e.to_string() })?;
        let metadata = BTreeMap::from([("analysis".to_string(), text)]);
        Ok(write_safetensors(path, tensors, FloatType::F32, &metadata)?)
    }

    /// The analysis of a unit stored by an earlier attempt; one of several forms is computed again.
    pub(crate) fn load(&self, index: usize, unit: &Unit, rules: &Rules<'_>) -> Result<Option<Analysis>> {
        let Some((kept, header)) = self.read(index, unit)?.filter(|(_, header)| header.is_whole) else {
            return Ok(None);
        };
        let analysis = Analysis::low_rank(rules.method, kept.subspace.squared().to_vec(), None);
        Ok(Some(Analysis { shrinkage: header.shrinkage, importance: header.importance, ..analysis }))
    }

    /// The stored data of a unit.
    pub(crate) fn kept(&self, index: usize, unit: &Unit) -> Result<Option<Kept>> {
        Ok(self.read(index, unit)?.map(|(kept, _)| kept))
    }

    /// Records the error of a unit whose factors are written.
    pub(crate) fn save_error(&self, index: usize, error: f64) -> Result<()> {
        Ok(write_atomic(self.error_path(index), error.to_string())?)
    }

    /// The error of a unit that an earlier attempt has written.
    pub(crate) fn error(&self, index: usize) -> Option<f64> {
        std::fs::read_to_string(self.error_path(index)).ok()?.parse().ok()
    }

    fn error_path(&self, index: usize) -> PathBuf {
        self.folder.join(format!("{index}.error"))
    }

    fn read(&self, index: usize, unit: &Unit) -> Result<Option<(Kept, Header)>> {
        let path = self.path(index);
        if !path.is_file() {
            return Ok(None);
        }
        let checkpoint = Checkpoint::open(&path)?;
        let header = checkpoint.metadata().get("analysis").and_then(|text| serde_json::from_str(text).ok());
        let Some(header): Option<Header> = header else { return Ok(None) };
        let shape = checkpoint.info("basis").map(|info| info.shape.clone()).unwrap_or_default();
        let name = unit.name();
        let (&[rows, columns], true) = (shape.as_slice(), header.unit == name) else { return Ok(None) };
        let matrix = |tensor: &str| -> Result<Mat<f32>> {
            let values = checkpoint.read_f32(tensor)?;
            Ok(from_row_major(&values, rows, columns).map_err(at(&name))?.to_owned())
        };
        let side = if header.side == "left" { SubspaceSide::Left } else { SubspaceSide::Right };
        let squared = header.squared.clone();
        let subspace = if checkpoint.contains("dual") {
            Subspace::oblique(side, matrix("basis")?, matrix("dual")?, squared)
        } else {
            Subspace::new(side, matrix("basis")?, squared)
        };
        let vector = |tensor: &str| -> Result<Vec<f32>> {
            Ok(if checkpoint.contains(tensor) { checkpoint.read_f32(tensor)? } else { Vec::new() })
        };
        let subspace = subspace.map_err(at(&name))?;
        Ok(Some((Kept { subspace, inputs: vector("inputs")?, outputs: vector("outputs")? }, header)))
    }
}
