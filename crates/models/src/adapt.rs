//! Adapters over a model of any architecture: loading, the weights that some methods start from, merging.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::TensorData;
use lowrank_adapters::peft::{AdapterFolder, Saved, TableRows, TiedUse, host_values};
use lowrank_adapters::{AdapterError, AdapterSet, BaseWeights, Site};
use lowrank_spec::names::{WeightPart, without_prefix};
use lowrank_spec::{HostTensor, transpose};

use crate::error::{ModelError, Result, summary};
use crate::merge_factors::merge_factors;
use crate::stack::Parameters;
use crate::stored::Stored;
use crate::visit::{Layout, ParamVisitor, Parameter, Role};

/// A model that can have adapters.
pub trait Adaptable<B: Backend>: Parameters<B> {
    /// Called with the keys whose values came with an adapter.
    fn loaded(&mut self, _keys: &[String]) {}

    /// PEFT's task names for the model's head; an adapter of another task is refused. Empty if any task
    /// is accepted.
    fn tasks(&self) -> &'static [&'static str] {
        &[]
    }

    /// Paths of the input embedding and of the head, if the head is tied to the embedding.
    fn tied(&self) -> Option<[String; 2]> {
        None
    }

    /// Gives a tied head separate weights, equal to the table's, and a site; does nothing for an untied head.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a table whose form cannot be turned into a head's.
    fn untie(&mut self) -> Result<()> {
        Ok(())
    }

    /// Path of a table that transformers' model holds and does not call, and the paths of the modules that it calls in its
    /// place: an adapter of the table has no effect there. Tables that take no factors but may be saved in full are refused by
    /// [`BaseWeights::refusal`].
    fn uncalled(&self) -> Option<(String, &'static [&'static str])> {
        None
    }

    /// Takes out of a folder what adapts modules that transformers' model holds and whose outputs nothing reads.
    fn leave_out_unused(&mut self, _folder: &mut AdapterFolder) {}

    /// Path of the input embedding whose table an adapter may replace by one with another vocabulary.
    fn vocabulary(&self) -> Option<&Site> {
        None
    }

    /// Resizes the vocabulary; the new rows are undefined until they are loaded.
    ///
    /// # Errors
    /// [`ModelError::Input`] for a model whose tables cannot be replaced.
    fn resize_vocabulary(&mut self, _rows: usize) -> Result<()> {
        Err(ModelError::Input("an adapter with a resized vocabulary is not supported for this model".into()))
    }

    /// Prepares the model for an adapter and the folder's tensors for the model: a head with separate weights
    /// if the adapter changes only one use of a tied table, tables of the adapter's vocabulary.
    ///
    /// # Errors
    /// A reason: a task that is not this model's, tables that contradict each other.
    fn prepare(&mut self, folder: &mut AdapterFolder) -> Result<()> {
        let task = folder.config.task_type.as_deref();
        if let Some(task) = task.filter(|task| !self.tasks().is_empty() && !self.tasks().contains(task)) {
            return Err(ModelError::Input(format!(
                "the adapter's task_type is {task}, and this model is for {}; give a model of that task",
                self.tasks().join(" or ")
            )));
        }
        if let Some((table, called)) = self.uncalled()
            && folder.changes(&table)
        {
            // Those of a head tied to it do have an effect.
            if folder.has_token_rows(&table) {
                return Err(ModelError::Input(format!(
                    "the adapter trains rows of '{table}' (trainable_token_indices), which is not supported; train an adapter of \
                     other modules"
                )));
            }
            return Err(ModelError::Input(format!(
                "the adapter changes '{table}', which has no effect in transformers: the model calls {} in its place; train an \
                 adapter of other modules",
                called.join(" and ")
            )));
        }
        folder.rename_head(self.sites());
        self.leave_out_unused(folder);
        if let Some([embedding, head]) = self.tied()
            && folder.untie(&embedding, &head).map_err(|e| ModelError::Input(e.to_string()))?
                == TiedUse::Apart
        {
            self.untie()?;
        }
        if let Some(rows) = self.vocabulary().and_then(|site| folder.resized_rows(site)) {
            let before = self.sites().to_vec();
            self.resize_vocabulary(rows)?;
            folder.check_resized(&before, self.sites()).map_err(|e| ModelError::Input(e.to_string()))?;
        }
        // Methods that read the base's weights read those that come with the adapter.
        let device = Default::default();
        self.visit_params(&mut SiteWeights { folder, device: &device });
        Ok(())
    }

    /// The weight of a site, `[d_input, d_output]`: a matrix, a product of factors, or the sum of both; `None` if it has
    /// neither form.
    fn site_weight(&mut self, site: usize) -> Option<Tensor<B, 2>> {
        let path = self.sites().get(site)?.path.clone();
        let mut find = FindWeight::new(site, &path);
        self.visit_params(&mut find);
        let product = find.factors.into_iter().reduce(Tensor::matmul);
        let weight = match (find.dense, product) {
            (Some(dense), Some(product)) => Some(dense + product),
            (dense, product) => dense.or(product),
        };
        weight.map(Tensor::detach)
    }

    /// The weights of the sites, for methods that start from them.
    fn base_weights(&self) -> ModelWeights<Self> {
        ModelWeights(RefCell::new(self.clone()))
    }

    /// Loads an adapter folder (or loralib's tensors) over this model: its adapters, and the model weights
    /// that it contains: a head, biases, modules trained in full.
    ///
    /// # Errors
    /// Contents that do not fit this model; the model is then unchanged.
    fn load_adapter(&mut self, path: &Path, device: &B::Device) -> Result<AdapterSet<B>> {
        let folder = AdapterFolder::read(path).map_err(|e| adapter_error(path, e))?;
        self.load_adapter_folder(folder, path, device)
    }

    /// The same for a folder that has already been read.
    ///
    /// # Errors
    /// As [`Adaptable::load_adapter`].
    fn load_adapter_folder(
        &mut self,
        mut folder: AdapterFolder,
        path: &Path,
        device: &B::Device,
    ) -> Result<AdapterSet<B>> {
        let mut model = self.clone();
        model
            .prepare(&mut folder)
            .map_err(|e| ModelError::File { path: path.into(), reason: e.to_string() })?;
        let weights = model.base_weights();
        let (set, saved) =
            folder.into_set(path, model.sites(), &weights, device).map_err(|e| adapter_error(path, e))?;
        model.load_saved(saved, path, device)?;
        *self = model;
        Ok(set)
    }

    /// Replaces weights of the model by tensors saved with an adapter.
    ///
    /// # Errors
    /// A tensor that is missing, misshaped or unknown; the model is then unchanged.
    fn load_saved(&mut self, saved: Saved, source: &Path, device: &B::Device) -> Result<()> {
        let mut reader = SavedReader {
            saved,
            device: device.clone(),
            new: self.newly_initialized().to_vec(),
            loaded: Vec::new(),
            problems: Vec::new(),
        };
        let mut model = self.clone();
        model.visit_params(&mut reader);
        reader.problems.extend(reader.saved.tensors.iter().map(|t| format!("unexpected '{}'", t.name)));
        if reader.problems.is_empty() {
            *self = model;
            self.loaded(&reader.loaded);
            return Ok(());
        }
        Err(ModelError::Tensors { path: source.to_path_buf(), details: summary(&reader.problems) })
    }

    /// Folds the update of one site into its two factors, at their rank. Returns `false` if it has no pair of factors.
    ///
    /// # Errors
    /// Factors that other modules share, values that are not finite.
    fn merge_into_factors(&mut self, adapters: &AdapterSet<B>, site: usize) -> Result<bool> {
        let path = self.sites()[site].path.clone();
        let mut find = FindWeight::new(site, &path);
        self.visit_params(&mut find);
        if find.is_shared {
            return Err(ModelError::Input(format!(
                "'{path}' shares its factors with other layers, which merging would change too; keep the adapter beside the model"
            )));
        }
        let Ok([a, b]) = <[Tensor<B, 2>; 2]>::try_from(find.factors) else { return Ok(false) };
        let factors = merge_factors(adapters, site, a, b)
            .map_err(|e| ModelError::Input(format!("merging into '{path}': {e}")))?;
        self.visit_params(&mut SetFactors { site, factors });
        Ok(true)
    }

    /// The model with the updates of the enabled adapters folded into its weights, in f32, including those
    /// that were quantized. A weight of two factors stays factored, with the same rank, and is never formed;
    /// in a sum of a matrix and factors, the matrix takes the update. The result shares everything unchanged
    /// with this model, which is not modified: to unmerge, go back to it. A head that is tied to an adapted
    /// embedding keeps the original table, since the adapter changes only the embedding.
    ///
    /// # Errors
    /// A site whose weight is not a single matrix, a merged weight that is not finite, an update of a bias that the layer does
    /// not have.
    fn merged(&self, adapters: &AdapterSet<B>) -> Result<Self> {
        let mut model = self.clone();
        if let Some([embedding, _]) = self.tied()
            && adapters.slots().iter().any(|slot| slot.path == embedding)
        {
            model.untie()?;
        }
        // An untied head is an additional site.
        let n_sites = model.sites().len();
        let mut sums = FindSums { dense: vec![false; n_sites], factors: BTreeMap::new() };
        model.visit_params(&mut sums);
        let mut merge = Merge {
            adapters,
            corrections: sums.corrections(),
            done: vec![false; n_sites],
            biased: vec![false; n_sites],
            problem: None,
        };
        model.visit_params(&mut merge);
        let has_bias = |site: usize| adapters.delta_bias(site).is_some();
        if let Some(slot) = adapters.slots().iter().find(|s| has_bias(s.site) && !merge.biased[s.site]) {
            return Err(ModelError::Input(format!(
                "'{}' has no bias, and the adapter adds to it (lora_bias); keep the adapter beside the model",
                slot.path
            )));
        }
        let factored: Vec<usize> =
            adapters.slots().iter().map(|slot| slot.site).filter(|&site| !merge.done[site]).collect();
        for site in factored {
            merge.done[site] = model.merge_into_factors(adapters, site)?;
        }
        let missed = adapters.slots().iter().find(|slot| !merge.done[slot.site]);
        match (merge.problem, missed) {
            (Some(problem), _) => Err(ModelError::Input(problem)),
            (None, Some(slot)) => Err(ModelError::Input(format!(
                "'{}' has no weight of one matrix to merge into; keep the adapter beside the model",
                slot.path
            ))),
            (None, None) => Ok(model),
        }
    }
}

fn adapter_error(path: &Path, error: AdapterError) -> ModelError {
    match error {
        // These name the file themselves.
        AdapterError::Tensors { .. } => ModelError::Input(error.to_string()),
        AdapterError::Config { path, reason } => ModelError::Config { path, reason },
        AdapterError::Checkpoint(error) => error.into(),
        other => ModelError::File { path: path.to_path_buf(), reason: other.to_string() },
    }
}

/// The weights of a model's sites.
#[derive(Debug)]
pub struct ModelWeights<M>(RefCell<M>);

impl<B: Backend, M: Adaptable<B>> BaseWeights<B> for ModelWeights<M> {
    fn weight(&self, site: usize) -> Option<Tensor<B, 2>> {
        self.0.borrow_mut().site_weight(site)
    }

    fn refusal(&self, site: usize) -> Option<&'static str> {
        refusal(&self.0.borrow().sites().get(site)?.path)
    }
}

/// Why the module of a path takes no factors, if transformers uses it in a way that PEFT's factors do not follow.
fn refusal(path: &str) -> Option<&'static str> {
    match path.rsplit('.').next()? {
        // DeBERTa.
        "rel_embeddings" => {
            Some("transformers reads its weight without calling it, and PEFT's factors have no effect")
        }
        // OPT, BART and mBART: an attention mask or the words' embeddings.
        "embed_positions" => Some(
            "transformers gives it other inputs than positions, by which PEFT cannot look up its factors",
        ),
        _ => None,
    }
}

/// Finds the weight of one site: a matrix, or factors in the order of their product, or both, to be summed.
struct FindWeight<'a, B: Backend> {
    site: usize,
    path: &'a str,
    dense: Option<Tensor<B, 2>>,
    factors: Vec<Tensor<B, 2>>,
    /// Whether it borrows a factor, or lends one.
    is_shared: bool,
}

impl<'a, B: Backend> FindWeight<'a, B> {
    const fn new(site: usize, path: &'a str) -> Self {
        Self { site, path, dense: None, factors: Vec::new(), is_shared: false }
    }
}

impl<B: Backend> ParamVisitor<B> for FindWeight<'_, B> {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        if at.site == Some(self.site) {
            match at.weight() {
                Some(WeightPart::Dense) => self.dense = Some(stored.to_tensor()),
                _ => self.factors.push(stored.to_tensor()),
            }
        }
    }

    fn visit_shared(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        self.is_shared |= at.site == Some(self.site) || at.module.path == self.path;
        self.visit_stored(at, stored);
    }
}

/// Finds the sites whose weight is a sum of a matrix and factors.
struct FindSums<B: Backend> {
    dense: Vec<bool>,
    factors: BTreeMap<usize, Vec<Tensor<B, 2>>>,
}

impl<B: Backend> FindSums<B> {
    /// `A·B` of each sum.
    fn corrections(self) -> BTreeMap<usize, Tensor<B, 2>> {
        let sums = self.factors.into_iter().filter(|(site, _)| self.dense[*site]);
        sums.filter_map(|(site, factors)| Some((site, factors.into_iter().reduce(Tensor::matmul)?))).collect()
    }
}

impl<B: Backend> ParamVisitor<B> for FindSums<B> {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        match (at.site, at.weight()) {
            (Some(site), Some(WeightPart::Dense)) => self.dense[site] = true,
            // The matrix of a sum is visited before its factors.
            (Some(site), Some(_)) if self.dense[site] => {
                self.factors.entry(site).or_default().push(stored.to_tensor().detach());
            }
            _ => {}
        }
    }
}

/// Folds each site's update into the one matrix stored for it.
struct Merge<'a, B: Backend> {
    adapters: &'a AdapterSet<B>,
    /// `A·B` of the sites whose weight is a sum.
    corrections: BTreeMap<usize, Tensor<B, 2>>,
    done: Vec<bool>,
    biased: Vec<bool>,
    problem: Option<String>,
}

impl<B: Backend> Merge<'_, B> {
    /// Adds the updates' biases to a site's.
    fn bias<const D: usize>(&mut self, site: usize, param: &mut Param<Tensor<B, D>>) {
        let Some(delta) = self.adapters.delta_bias(site) else { return };
        self.biased[site] = true;
        let shape: [usize; D] = param.dims();
        let merged = param.val().detach() + delta.detach().reshape(shape);
        *param = param.clone().map(|_| merged);
    }
}

impl<B: Backend> ParamVisitor<B> for Merge<'_, B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let is_adapted = |site: &usize| self.adapters.slots().iter().any(|slot| slot.site == *site);
        let Some(site) = at.site.filter(is_adapted) else { return };
        if at.role == Role::Bias {
            self.bias(site, param);
        }
    }

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        let is_adapted = |site: &usize| self.adapters.slots().iter().any(|slot| slot.site == *site);
        let Some(site) = at.site.filter(is_adapted) else { return };
        if at.weight() != Some(WeightPart::Dense) {
            return;
        }
        self.done[site] = true;
        let mut weight = stored.to_tensor().detach();
        let correction = self.corrections.get(&site);
        if let Some(correction) = correction {
            weight = weight + correction.clone();
        }
        let Some(mut merged) = self.adapters.merged_weight(site, &weight) else { return };
        if let Some(correction) = correction {
            merged = merged - correction.clone();
        }
        // NaN and ±Inf are the only values with x·0 ≠ 0.
        let zero = (merged.clone() * 0.0).sum().into_data();
        if zero.iter::<f32>().any(|v| v != 0.0) {
            let path = at.module.path;
            self.problem = Some(format!("merging into '{path}' gives values that are not finite"));
            return;
        }
        let merged = merged.detach();
        *stored = match stored {
            Stored::Float(param) => param.clone().map(|_| merged).into(),
            Stored::Blocks(_) => Stored::of_tensor(merged),
        };
    }
}

/// Sets the two factors of one site.
struct SetFactors<B: Backend> {
    site: usize,
    factors: [Tensor<B, 2>; 2],
}

impl<B: Backend> ParamVisitor<B> for SetFactors<B> {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        let factor = match at.weight().filter(|_| at.site == Some(self.site)) {
            Some(WeightPart::FactorA) => &self.factors[0],
            Some(WeightPart::FactorB) => &self.factors[1],
            _ => return,
        };
        *stored = match stored {
            Stored::Float(param) => param.clone().map(|_| factor.clone()).into(),
            Stored::Blocks(_) => Stored::of_tensor(factor.clone()),
        };
    }
}

/// Sets the weights of sites for which a folder has a whole matrix.
struct SiteWeights<'a, B: Backend> {
    folder: &'a AdapterFolder,
    device: &'a B::Device,
}

impl<B: Backend> ParamVisitor<B> for SiteWeights<'_, B> {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        if at.site.is_none() || at.weight() != Some(WeightPart::Dense) {
            return;
        }
        let key = at.key();
        let Some(tensor) =
            [key.as_str(), without_prefix(&key)].iter().find_map(|key| self.folder.tensors.get(*key))
        else {
            return;
        };
        let shape = stored.dims();
        if tensor.shape != at.layout.in_file(&shape) {
            return;
        }
        let data = if at.layout.is_transposed() {
            transpose(&tensor.data, shape[1], shape[0])
        } else {
            tensor.data.to_vec()
        };
        let tensor = Tensor::from_data(TensorData::new(data, shape), self.device);
        *stored = match stored {
            Stored::Float(param) => Param::initialized(param.id, tensor).into(),
            Stored::Blocks(_) => Stored::of_tensor(tensor),
        };
    }
}

/// Fills parameters from tensors saved with an adapter.
struct SavedReader<B: Backend> {
    saved: Saved,
    device: B::Device,
    /// Keys that the model's checkpoint does not have.
    new: Vec<String>,
    loaded: Vec<String>,
    problems: Vec<String>,
}

impl<B: Backend> SavedReader<B> {
    /// Replaces rows of a table (columns of a head's weight) by trained ones.
    fn set_rows<const D: usize>(
        &mut self,
        key: &str,
        layout: Layout,
        param: &mut Param<Tensor<B, D>>,
        rows: TableRows,
    ) {
        let shape: [usize; D] = param.dims();
        let (vocabulary, width) =
            if layout.is_transposed() { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        if rows.values.shape[1] != width || rows.indices.iter().any(|&row| row >= vocabulary) {
            self.problems.push(format!(
                "'{}' has rows {:?} of width {}, and '{key}' is {vocabulary} rows of width {width}",
                rows.values.name, rows.indices, rows.values.shape[1]
            ));
            return;
        }
        let mut values = host_values(param.val());
        for (&row, new) in rows.indices.iter().zip(rows.values.data.chunks_exact(width)) {
            for (column, value) in new.iter().enumerate() {
                let at =
                    if layout.is_transposed() { column * vocabulary + row } else { row * width + column };
                values[at] = *value;
            }
        }
        let tensor = Tensor::from_data(TensorData::new(values, shape.to_vec()), &self.device);
        *param = Param::initialized(param.id, tensor);
        self.loaded.push(key.to_string());
    }
}

impl<B: Backend> ParamVisitor<B> for SavedReader<B> {
    fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
        let (key, layout) = (&*at.key(), at.layout);
        let Some(tensor) = self.saved.take(key) else {
            let rows =
                key.strip_suffix(".weight").filter(|_| D == 2).map(|table| self.saved.take_rows(table));
            match rows {
                Some(Ok(Some(rows))) => return self.set_rows(key, layout, param, rows),
                Some(Err(problem)) => return self.problems.push(problem.to_string()),
                Some(Ok(None)) | None => {}
            }
            if self.saved.expects(key, self.new.iter().any(|new| new == key)) {
                self.problems.push(format!("missing '{key}'"));
            }
            return;
        };
        let HostTensor { shape: got, data, .. } = tensor;
        let mut data = data.into_owned();
        let shape: Vec<usize> = param.lazy_shape().iter().copied().collect();
        let wanted = layout.in_file(&shape);
        if got != wanted {
            self.problems.push(format!("'{key}' has shape {got:?}, expected {wanted:?}"));
            return;
        }
        if layout.is_transposed() {
            data = transpose(&data, shape[1], shape[0]);
        }
        let tensor = Tensor::from_data(TensorData::new(data, shape), &self.device);
        *param = Param::initialized(param.id, tensor);
        self.loaded.push(key.to_string());
        // A resized table comes with the rows that were trained.
        match key.strip_suffix(".weight").filter(|_| D == 2).map(|table| self.saved.take_rows(table)) {
            Some(Ok(Some(rows))) => self.set_rows(key, layout, param, rows),
            Some(Err(problem)) => self.problems.push(problem.to_string()),
            Some(Ok(None)) | None => {}
        }
    }

    fn visit_stored(&mut self, at: &Parameter<'_>, stored: &mut Stored<B>) {
        let Some(matrix) = stored.blocks().cloned() else {
            if let Stored::Float(param) = stored {
                self.visit(at, param);
            }
            return;
        };
        // Floats are created only if some rows are kept.
        let dims = matrix.dims();
        let init =
            move |device: &B::Device, _| Tensor::from_data(TensorData::new(matrix.to_floats(), dims), device);
        let mut param = Param::uninitialized(ParamId::new(), init, self.device.clone(), false, dims.into());
        let before = self.loaded.len();
        self.visit(at, &mut param);
        if self.loaded.len() > before {
            *stored = param.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_folder_once() {
        let path = Path::new("adapter");
        let details = "missing 'q.lora_A.weight'".to_string();
        let error = AdapterError::Tensors { path: path.into(), details };
        let text = adapter_error(path, error).to_string();
        assert_eq!(text, "adapter: adapter tensors do not fit: missing 'q.lora_A.weight'");
        let (config, reason) = (path.join("adapter_config.json"), "r = 0".to_string());
        let error = AdapterError::Config { path: config.clone(), reason };
        assert_eq!(adapter_error(path, error).to_string(), format!("{}: r = 0", config.display()));
        let error = AdapterError::Incompatible("two adapters".into());
        assert_eq!(adapter_error(path, error).to_string(), "adapter: two adapters");
    }
}
