//! The sites of an adapter file, without a model: for algebra on adapters alone.

use std::path::Path;

use burn::tensor::backend::Backend;
use lowrank_spec::{Pattern, Site};

use super::folder::AdapterFolder;
use crate::error::{AdapterError, Result};
use crate::methods::Adapter;

/// An adapted module, as described by the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnSite {
    /// Path of the module.
    pub path: String,
    /// `[d_input, d_output]`.
    pub widths: [usize; 2],
    /// Whether it is an embedding.
    pub embedding: bool,
}

impl AdapterFolder {
    /// A site for each adapted module, its widths taken from the factors' shapes.
    ///
    /// # Errors
    /// [`AdapterError::Config`] for files that do not determine the width of a layer (VeRA), or contain no
    /// factors.
    pub fn own_sites<B: Backend>(&self, path: &Path) -> Result<Vec<Site>> {
        let bad = |reason: &str| AdapterError::Config { path: path.to_path_buf(), reason: reason.into() };
        if self.is_fused() {
            return Err(bad(
                "holds the factors of all experts of a layer in one tensor, which only the model can split; merge it into \
                 the model",
            ));
        }
        let own = Adapter::<B>::own_sites(self).map_err(|error| bad(&error.to_string()))?;
        if own.is_empty() {
            return Err(bad("holds no factors, at most a head"));
        }
        let site = |OwnSite { path, widths: [d_input, d_output], embedding }| Site {
            layer: path.split('.').find_map(|segment| segment.parse().ok()),
            path,
            d_input,
            d_output,
            head: false,
            embedding,
        };
        Ok(own.into_iter().map(site).collect())
    }

    /// Modules that share factors: the config's groups, or one group of all modules that have a separate tensor.
    pub(crate) fn own_groups(&self, key: &str) -> Vec<Vec<String>> {
        if !self.config.groups.is_empty() {
            return self.config.groups.clone();
        }
        let mut own: Vec<String> =
            self.tensors.keys().filter_map(|name| name.strip_suffix(key)).map(str::to_string).collect();
        sort_by_layer(&mut own);
        match (&self.config.target_modules, own.is_empty()) {
            (Some(Pattern::Names(names)), true) => vec![names.clone()],
            _ => vec![own],
        }
    }

    /// A side of a matrix.
    pub(crate) fn side(&self, key: &str, at: usize) -> Option<usize> {
        self.tensors.get(key).filter(|t| t.shape.len() == 2).map(|t| t.shape[at])
    }
}

/// Layer 10 comes after layer 9.
pub(crate) fn sort_by_layer(paths: &mut [String]) {
    paths.sort_by_key(|path| path.split('.').find_map(|segment| segment.parse::<usize>().ok()));
}
