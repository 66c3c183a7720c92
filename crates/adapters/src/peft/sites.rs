//! The sites of an adapter file, without a model: for algebra on adapters alone.

use std::path::Path;

use burn::tensor::backend::Backend;
use lowrank_spec::names::{PATCHES, path_in_files};
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
                "holds the factors of all experts of a layer in one tensor, which only the model can split; give the model \
                 as --model",
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
            ..Site::default()
        };
        let kernel = |path: &str| match self.tensors.get(&format!("{path}.lora_A.weight"))?.shape[..] {
            [_, channels, height, width] => Some([channels, height, width]),
            _ => None,
        };
        let sites: Vec<Site> =
            own.into_iter().map(site).map(|site| Site { kernel: kernel(&site.path), ..site }).collect();
        // A LoRA of it has the shape of the kernel.
        match sites.iter().find(|site| site.path.ends_with(PATCHES) && site.kernel.is_none()) {
            Some(site) => Err(bad(&format!(
                "adapts the convolution '{}', whose kernel only the model knows; give it with --model",
                site.path
            ))),
            None => Ok(sites),
        }
    }

    /// Modules that share factors: the config's groups, or one group of all modules that have a separate tensor.
    pub(crate) fn own_groups(&self, key: &str) -> Vec<Vec<String>> {
        // The paths of sites are those in the files of models.
        let in_files = |paths: &Vec<String>| -> Vec<String> {
            paths.iter().map(|path| path_in_files(path).unwrap_or_else(|| path.clone())).collect()
        };
        if !self.config.groups.is_empty() {
            return self.config.groups.iter().map(in_files).collect();
        }
        let mut own: Vec<String> =
            self.tensors.keys().filter_map(|name| name.strip_suffix(key)).map(str::to_string).collect();
        sort_by_layer(&mut own);
        match (&self.config.target_modules, own.is_empty()) {
            (Some(Pattern::Names(names)), true) => vec![in_files(names)],
            _ => vec![own],
        }
    }

    /// A side of a matrix, or of a kernel as a matrix of one row per output.
    pub(crate) fn side(&self, key: &str, at: usize) -> Option<usize> {
        let shape = &self.tensors.get(key).filter(|t| matches!(t.shape.len(), 2 | 4))?.shape;
        if at == 0 { Some(shape[0]) } else { shape[1..].iter().try_fold(1, |n: usize, d| n.checked_mul(*d)) }
    }
}

/// Layer 10 comes after layer 9.
pub(crate) fn sort_by_layer(paths: &mut [String]) {
    paths.sort_by_key(|path| path.split('.').find_map(|segment| segment.parse::<usize>().ok()));
}
