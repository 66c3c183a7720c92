//! Adapters whose tables have a different vocabulary size than the model.
//!
//! PEFT loads them only over a base that has been resized, which adds rows to the embedding and the head. If the adapter does
//! not contain the head, its new rows are random and cannot be reproduced.

use lowrank_spec::names::without_prefix;
use lowrank_spec::{HostTensor, Site};

use super::folder::AdapterFolder;
use crate::error::{AdapterError, Result};

impl AdapterFolder {
    /// Number of rows of the table that the folder contains for an embedding, if it differs from the model's.
    pub fn resized_rows(&self, embedding: &Site) -> Option<usize> {
        let shape = &self.whole_weight(embedding)?.shape;
        (shape.len() == 2 && shape[1] == embedding.d_output && shape[0] != embedding.d_input)
            .then_some(shape[0])
    }

    /// Checks that the folder contains the weight of every site whose shape depends on the vocabulary.
    ///
    /// `before` and `after` are the sites of the model before and after it is resized.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] for a resized site whose weight is not in the folder.
    pub fn check_resized(&self, before: &[Site], after: &[Site]) -> Result<()> {
        let shape = |site: &Site| [site.d_input, site.d_output];
        let mut resized = before.iter().zip(after).filter(|(before, after)| shape(before) != shape(after));
        let Some((before, after)) = resized.find(|(_, after)| self.whole_weight(after).is_none()) else {
            return Ok(());
        };
        let [from, to] =
            [before, after].map(|site| if site.embedding { site.d_input } else { site.d_output });
        Err(AdapterError::Incompatible(format!(
            "the adapter resizes the vocabulary from {from} to {to}, and has no '{}.weight' of {to} rows; save it with the \
             adapter (modules_to_save or save_embedding_layers)",
            after.path
        )))
    }

    /// The full weight of a site in the folder, with or without the model's prefix in its key.
    fn whole_weight(&self, site: &Site) -> Option<&HostTensor<'static>> {
        [site.path.as_str(), without_prefix(&site.path)]
            .iter()
            .find_map(|path| self.tensors.get(&format!("{path}.weight")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::PeftConfig;
    use rstest::rstest;

    fn site(path: &str, [d_input, d_output]: [usize; 2]) -> Site {
        let head = path == "lm_head" || path == "score";
        Site { path: path.into(), d_input, d_output, head, embedding: !head, ..Site::default() }
    }

    fn folder(names: &[&str]) -> AdapterFolder {
        let table = |name: &&str| (name.to_string(), HostTensor::new(*name, [7, 2], vec![0.5; 14]));
        let tensors = names.iter().map(table).collect();
        AdapterFolder { config: PeftConfig::default(), tensors, alpha_is_assumed: false }
    }

    const EMBED: &str = "model.embed_tokens";

    #[rstest]
    #[case(&["model.embed_tokens.weight"], 5, Some(7))]
    #[case(&["embed_tokens.weight"], 5, Some(7))]
    #[case(&["model.embed_tokens.weight"], 9, Some(7))]
    #[case(&["model.embed_tokens.weight"], 7, None)]
    #[case(&["lm_head.weight"], 5, None)]
    fn a_table_of_another_vocabulary_is_found(
        #[case] names: &[&str],
        #[case] rows: usize,
        #[case] expect: Option<usize>,
    ) {
        assert_eq!(folder(names).resized_rows(&site(EMBED, [rows, 2])), expect);
        // A table of another width does not belong to this model.
        assert_eq!(folder(names).resized_rows(&site(EMBED, [rows, 3])), None);
    }

    #[rstest]
    #[case(&["model.embed_tokens.weight"], "lm_head", Some("from 5 to 7, and has no 'lm_head.weight'"))]
    #[case(&["model.embed_tokens.weight", "lm_head.lora_A.weight"], "lm_head", Some("'lm_head.weight'"))]
    #[case(&["model.embed_tokens.weight", "lm_head.weight"], "lm_head", None)]
    // The size of a classifier's head is the number of classes.
    #[case(&["model.embed_tokens.weight"], "score", None)]
    fn a_head_of_the_old_vocabulary_is_refused(
        #[case] names: &[&str],
        #[case] head: &str,
        #[case] expect: Option<&str>,
    ) {
        let sites = |rows| [site(EMBED, [rows, 2]), site(head, [2, if head == "score" { 3 } else { rows }])];
        let error = folder(names).check_resized(&sites(5), &sites(7)).err().map(|error| error.to_string());
        assert_eq!(error.is_some(), expect.is_some());
        let error = error.unwrap_or_default();
        assert!(error.contains(expect.unwrap_or_default()) && error.lines().count() <= 1, "{error}");
    }
}
