//! Subspaces on disk between the two passes, so that one decomposition serves both.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lowrank_checkpoint::{Checkpoint, FloatType, HostTensor, write_atomic, write_safetensors};
use lowrank_factor::matrix::{from_row_major, to_row_major};
use lowrank_factor::{Subspace, SubspaceSide};
use serde::{Deserialize, Serialize};

use crate::error::{CompressError, Result, at};
use crate::fit::{Analysis, Curve};
use crate::unit::{Form, Unit};

/// A folder of analyses, one file for each unit.
#[derive(Clone, Debug)]
pub(crate) struct Scratch {
    folder: PathBuf,
}

/// What a file says beside its basis.
#[derive(Serialize, Deserialize)]
struct Header {
    unit: String,
    side: String,
    /// Squared singular values; JSON keeps every digit.
    squared: Vec<f64>,
    /// Whether low rank was the only form tried.
    is_whole: bool,
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

    /// Keeps the subspace of a unit, where there is one.
    pub(crate) fn save(&self, index: usize, unit: &Unit, analysis: &Analysis) -> Result<()> {
        let Some(subspace) = &analysis.subspace else { return Ok(()) };
        let basis = subspace.basis();
        let tensor = HostTensor {
            name: "basis".into(),
            shape: vec![basis.nrows(), basis.ncols()],
            data: Cow::Owned(to_row_major(basis)),
        };
        let side = match subspace.side() {
            SubspaceSide::Left => "left",
            SubspaceSide::Right => "right",
        };
        let header = Header {
            unit: unit.name(),
            side: side.into(),
            squared: subspace.squared().to_vec(),
            is_whole: analysis.curves.len() == 1,
        };
        let path = self.path(index);
        let text = serde_json::to_string(&header)
            .map_err(|e| CompressError::File { path: path.clone(), reason: e.to_string() })?;
        let metadata = BTreeMap::from([("analysis".to_string(), text)]);
        Ok(write_safetensors(path, vec![tensor], FloatType::F32, &metadata)?)
    }

    /// The analysis of a unit that an earlier attempt kept; one of several forms is made again.
    pub(crate) fn load(&self, index: usize, unit: &Unit) -> Result<Option<Analysis>> {
        let Some((subspace, true)) = self.read(index, unit)? else { return Ok(None) };
        let squared = subspace.squared().to_vec();
        let total = squared.iter().sum();
        let curves = vec![Curve::PerRank { form: Form::LowRank, squared, weight: 1.0 }];
        Ok(Some(Analysis::new(curves, total, None)))
    }

    /// The subspace of a unit.
    pub(crate) fn subspace(&self, index: usize, unit: &Unit) -> Result<Option<Subspace<f32>>> {
        Ok(self.read(index, unit)?.map(|(subspace, _)| subspace))
    }

    /// Notes the error of a unit whose factors are written.
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

    fn read(&self, index: usize, unit: &Unit) -> Result<Option<(Subspace<f32>, bool)>> {
        let path = self.path(index);
        if !path.is_file() {
            return Ok(None);
        }
        let checkpoint = Checkpoint::open(&path)?;
        let header = checkpoint.metadata().get("analysis").and_then(|text| serde_json::from_str(text).ok());
        let Some(Header { unit: name, side, squared, is_whole }) = header else { return Ok(None) };
        let shape = checkpoint.info("basis").map(|info| info.shape.clone()).unwrap_or_default();
        let (&[rows, columns], true) = (shape.as_slice(), name == unit.name()) else { return Ok(None) };
        let values = checkpoint.read_f32("basis")?;
        let basis = from_row_major(&values, rows, columns).map_err(at(&name))?.to_owned();
        let side = if side == "left" { SubspaceSide::Left } else { SubspaceSide::Right };
        let subspace = Subspace::new(side, basis, squared).map_err(at(&name))?;
        Ok(Some((subspace, is_whole)))
    }
}
