//! The contents of an adapter folder besides its factors: heads and other modules saved in full, biases,
//! embedding tables, single rows of them.

use std::collections::BTreeSet;

use lowrank_spec::names::{expert_of, path_in_module, without_prefix};
use lowrank_spec::targets::has_suffix;
use lowrank_spec::{HostTensor, Site};

use super::config::{PeftConfig, TokenIndices, is_name_of};
use crate::error::{AdapterError, Result};

/// Suffix after a table's path in the key of its trained rows.
pub(super) const TOKEN_ROWS: &str = ".token_adapter.trainable_tokens_delta";

/// Names of input embeddings and heads of language models.
const TABLES: [&str; 6] = ["embed_tokens", "lm_head", "wte", "word_embeddings", "embed_in", "embed_out"];

/// Weights of the model that were trained and saved with an adapter, by the model's own keys.
#[derive(Clone, Debug, Default)]
pub struct Saved {
    /// In PyTorch's layout.
    pub tensors: Vec<HostTensor<'static>>,
    config: PeftConfig,
    /// Paths of the adapted modules.
    adapted: BTreeSet<String>,
    /// Paths of the model's embeddings and heads.
    tables: Vec<String>,
}

/// Trained rows of a table.
#[derive(Clone, Debug, PartialEq)]
pub struct TableRows {
    /// Path of the table.
    pub table: String,
    /// Indices of the rows.
    pub indices: Vec<usize>,
    /// Their values, shape `(rows, d_model)`.
    pub values: HostTensor<'static>,
}

/// The config of a folder, and the names of its tensors other than factors.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Carried {
    /// The folder's config.
    pub config: PeftConfig,
    /// Names of the tensors, as the folder has them.
    pub names: BTreeSet<String>,
}

impl Carried {
    /// Whether the folder contained the parameter of a key; a folder made over a bare model lacks the model's
    /// prefix.
    pub fn holds(&self, key: &str) -> bool {
        self.names.contains(key) || self.names.contains(without_prefix(key))
    }

    /// Whether a parameter of the folder was trained with it: tables added by `save_embedding_layers` were
    /// not.
    pub fn trains(&self, key: &str) -> bool {
        let (module, name) = key.rsplit_once('.').unwrap_or(("", key));
        self.holds(key) && (self.config.saves(module) || (name == "bias" && self.config.bias != "none"))
    }

    /// Whether the folder contains rows of a table: they are read and written, and not trained further.
    pub fn has_token_rows(&self) -> bool {
        self.names.iter().any(|name| name.ends_with(TOKEN_ROWS))
    }
}

impl Saved {
    pub(super) fn new(
        tensors: Vec<HostTensor<'static>>,
        config: PeftConfig,
        adapted: BTreeSet<String>,
        sites: &[Site],
    ) -> Self {
        let tables = sites.iter().filter(|site| site.embedding || site.head).map(|site| site.path.clone());
        Self { tensors, config, adapted, tables: tables.collect() }
    }

    /// Whether nothing was saved.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The folder's config and the names of the tensors.
    pub fn carried(&self) -> Carried {
        Carried {
            config: self.config.clone(),
            names: self.tensors.iter().map(|tensor| tensor.name.clone()).collect(),
        }
    }

    /// Whether a parameter of the model must be among the tensors: its module is saved in full, or it is a bias of the
    /// trained kind, other than an expert's, which PEFT does not see as a bias. `is_new`: the checkpoint does not have it, so
    /// that the adapter's model may not have it either.
    pub fn expects(&self, key: &str, is_new: bool) -> bool {
        let (module, name) = key.rsplit_once('.').unwrap_or(("", key));
        let is_bias = name == "bias" && expert_of(module).is_none();
        (is_bias && !is_new && self.config.carries_bias(self.adapted.contains(module)))
            || self.config.saves(module)
    }

    /// Takes the tensor of a parameter: under its key, or without the model's prefix.
    pub fn take(&mut self, key: &str) -> Option<HostTensor<'static>> {
        // An adapter made over the bare encoder has no prefix before its modules.
        let bare = without_prefix(key);
        let exact = self.tensors.iter().position(|t| t.name == key);
        let index = exact.or_else(|| self.tensors.iter().position(|t| t.name == bare))?;
        Some(self.tensors.swap_remove(index))
    }

    /// The tables that `trainable_token_indices` names and whose rows the file lacks.
    pub(super) fn missing_rows(&self) -> Vec<&str> {
        let in_file: Vec<&str> =
            self.tensors.iter().filter_map(|t| t.name.strip_suffix(TOKEN_ROWS)).collect();
        let named = match &self.config.trainable_token_indices {
            Some(TokenIndices::Tables(named)) => named,
            Some(TokenIndices::Input(rows)) if in_file.is_empty() && !rows.is_empty() => {
                return vec!["the input embedding"];
            }
            Some(TokenIndices::Input(_)) | None => return Vec::new(),
        };
        let is_named = |table: &&str| named.entries().any(|(name, _)| is_name_of(name, table));
        let lacks_rows = |table: &&str| !in_file.iter().any(|path| has_suffix(table, path));
        let tables = self.tables.iter().map(String::as_str).filter(is_named).filter(lacks_rows);
        // A name without a site belongs to another model, or to a tied head, whose rows PEFT saves only for the embedding.
        let has_rows = |name: &str| in_file.iter().any(|path| is_name_of(name, path));
        let is_site = |name: &str| self.tables.iter().any(|table| is_name_of(name, table));
        let is_tied =
            |rows: &Vec<usize>| named.entries().any(|(name, other)| other == rows && has_rows(name));
        let others =
            named.entries().filter(|(name, rows)| !is_site(name) && !has_rows(name) && !is_tied(rows));
        tables.chain(others.map(|(name, _)| name)).collect()
    }

    /// Takes the trained rows of a table.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] for rows whose number is not that of the config's indices.
    pub fn take_rows(&mut self, table: &str) -> Result<Option<TableRows>> {
        let is_it = |name: &str| name.strip_suffix(TOKEN_ROWS).is_some_and(|path| has_suffix(table, path));
        let Some(at) = self.tensors.iter().position(|t| is_it(&t.name)) else { return Ok(None) };
        let values = self.tensors.swap_remove(at);
        let indices = self.config.trainable_token_indices.as_ref().and_then(|indices| indices.of(table));
        let indices = indices.ok_or_else(|| {
            AdapterError::Incompatible(format!(
                "'{}' has no entry in trainable_token_indices of the config",
                values.name
            ))
        })?;
        if values.shape.len() != 2 || values.shape[0] != indices.len() {
            return Err(AdapterError::Incompatible(format!(
                "'{}' has shape {:?} for {} trainable_token_indices",
                values.name,
                values.shape,
                indices.len()
            )));
        }
        Ok(Some(TableRows { table: table.to_string(), indices: indices.to_vec(), values }))
    }

    /// Whether a tensor of the file is allowed. PEFT selects a module that has a saved one's name anywhere in
    /// its own, as in model files or in transformers 5.
    pub(super) fn allows(&self, name: &str) -> bool {
        let module = path_in_module(name);
        let has = |saved: &String| {
            name.contains(saved.as_str()) || module.as_ref().is_some_and(|name| name.contains(saved.as_str()))
        };
        let by_name = self.config.modules_to_save.iter().flatten().any(has);
        let is_bias = name.ends_with(".bias") && self.config.bias != "none";
        let is_rows = name.ends_with(TOKEN_ROWS) && self.config.trainable_token_indices.is_some();
        by_name || is_bias || is_rows || self.is_table(name) || self.is_base_layer(name)
    }

    /// Whether a tensor is the table of an embedding or of a head, or a head's bias, added by PEFT's
    /// `save_embedding_layers`.
    fn is_table(&self, name: &str) -> bool {
        let Some((path, part @ ("weight" | "bias"))) = name.rsplit_once('.') else { return false };
        (part == "weight" && TABLES.iter().any(|name| has_suffix(path, name)))
            || self.tables.iter().any(|table| has_suffix(table, path))
    }

    /// Whether a tensor is the own weight or bias of an adapted module, PEFT's `base_layer`, whose weight is in the file: a
    /// module that the checkpoint lacks.
    fn is_base_layer(&self, name: &str) -> bool {
        let Some((path, "weight" | "bias")) = name.rsplit_once('.') else { return false };
        let is_weight = |tensor: &HostTensor<'_>| tensor.name.strip_suffix(".weight") == Some(path);
        self.adapted.iter().any(|module| has_suffix(module, path)) && self.tensors.iter().any(is_weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const EMBEDDING: &str = "model.embed_tokens";

    #[rstest]
    // A table of `save_embedding_layers`, with the bias that some heads have.
    #[case(&["lm_head.weight", "lm_head.bias"], &[])]
    #[case(&["model.embed_tokens.weight", "embed_tokens.weight"], &[])]
    #[case(&["model.norm.bias"], &["model.norm.bias"])]
    // An adapted module that the checkpoint lacks.
    #[case(&["bert.pooler.dense.weight", "bert.pooler.dense.bias"], &[])]
    #[case(&["pooler.dense.weight", "pooler.dense.bias"], &[])]
    #[case(&["bert.pooler.dense.bias"], &["bert.pooler.dense.bias"])]
    #[case(&["bert.pooler.dense.scale"], &["bert.pooler.dense.scale"])]
    #[case(&["bert.other.dense.weight"], &["bert.other.dense.weight"])]
    fn own_weights_are_those_of_tables_and_adapted_modules(
        #[case] in_file: &[&str],
        #[case] unexpected: &[&str],
    ) {
        let tensors = in_file.iter().map(|name| HostTensor::new(*name, [1], vec![0.0])).collect();
        let table = |path: &str, head| Site { path: path.into(), head, embedding: !head, ..Site::default() };
        let sites = [table(EMBEDDING, false), table("lm_head", true)];
        let adapted = ["bert.pooler.dense".to_string()].into();
        let saved = Saved::new(tensors, PeftConfig::default(), adapted, &sites);
        let names = saved.tensors.iter().map(|tensor| tensor.name.as_str());
        assert_eq!(names.filter(|name| !saved.allows(name)).collect::<Vec<_>>(), unexpected);
    }

    /// ViT's modules have other names in transformers 5 than in its files.
    #[rstest]
    #[case("mlp", "intermediate.dense.weight")]
    #[case("layers.0.mlp.fc1", "intermediate.dense.bias")]
    #[case("vit.layers.0.layernorm_before", "layernorm_before.weight")]
    #[case("layernorm_before", "layernorm_before.weight")]
    #[case("intermediate", "intermediate.dense.weight")]
    fn a_saved_module_may_be_named_as_in_transformers(#[case] saved: &str, #[case] name: &str) {
        let config = PeftConfig { modules_to_save: Some(vec![saved.into()]), ..PeftConfig::default() };
        let saved = Saved::new(Vec::new(), config, [].into(), &[]);
        assert!(saved.allows(&format!("vit.encoder.layer.0.{name}")));
        assert!(!saved.allows("vit.encoder.layer.0.attention.output.dense.weight"));
        assert!(!saved.allows("vit.encoder.layer.0.layernorm_after.weight"));
    }

    #[rstest]
    #[case("[3, 1]", &[EMBEDDING], &[EMBEDDING], &[])]
    #[case("[3, 1]", &[EMBEDDING], &[], &["the input embedding"])]
    #[case("[]", &[EMBEDDING], &[], &[])]
    #[case("{}", &[EMBEDDING], &[], &[])]
    #[case(r#"{"tokens": [3]}"#, &[EMBEDDING], &[], &[EMBEDDING])]
    // An adapter of the bare decoder.
    #[case(r#"{"tokens": [3]}"#, &[EMBEDDING], &["embed_tokens"], &[])]
    #[case(r#"{"embed_tokens": [3], "lm_head": [3]}"#, &[EMBEDDING, "lm_head"], &[EMBEDDING], &["lm_head"])]
    // A tied head has no site.
    #[case(r#"{"embed_tokens": [3], "lm_head": [3]}"#, &[EMBEDDING], &[EMBEDDING], &[])]
    #[case(r#"{"embed_tokens": [3], "lm_head": [4]}"#, &[EMBEDDING], &[EMBEDDING], &["lm_head"])]
    #[case(r#"{"lm_head": [4]}"#, &[EMBEDDING], &[], &["lm_head"])]
    #[case(r#"{"lm_head": [4]}"#, &["embed_out"], &["embed_out"], &[])]
    #[case(r#"{"lm_head": [4]}"#, &["embed_out"], &[], &["embed_out"])]
    fn rows_that_the_config_names_must_be_in_the_file(
        #[case] indices: &str,
        #[case] tables: &[&str],
        #[case] in_file: &[&str],
        #[case] missing: &[&str],
    ) {
        let config = PeftConfig {
            trainable_token_indices: Some(serde_json::from_str(indices).unwrap()),
            ..PeftConfig::default()
        };
        let rows = |path: &&str| HostTensor::new(format!("{path}{TOKEN_ROWS}"), [1, 1], vec![0.0]);
        let site = |path: &&str| Site { path: (*path).into(), embedding: true, ..Site::default() };
        let sites: Vec<Site> = tables.iter().map(site).collect();
        let saved = Saved::new(in_file.iter().map(rows).collect(), config, [].into(), &sites);
        assert_eq!(saved.missing_rows(), missing);
    }
}
