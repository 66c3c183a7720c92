//! Adapters over a model whose head is tied to its input embedding.
//!
//! PEFT adapts the two uses of the table separately: a LoRA on the embedding does not change the head, a LoRA
//! on the head does not change the embedding, and `modules_to_save` copies the table for the use that it
//! names. Only `ensure_weight_tying` keeps them together. Tables added by `save_embedding_layers` are the
//! shared table itself.

use std::borrow::Cow;

use lowrank_spec::{HostTensor, Site};

use super::config::TokenIndices;
use super::folder::AdapterFolder;
use super::init_tag::InitTag;
use super::saved::TOKEN_ROWS;
use crate::error::{AdapterError, Result};

/// State of a tied table under an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TiedUse {
    /// Embedding and head stay one table.
    Together,
    /// The head needs separate weights.
    Apart,
}

impl AdapterFolder {
    /// Determines whether the head of a tied model needs separate weights under this adapter, and rearranges the tensors
    /// accordingly: both uses get the shared table, and a tied adapter on the embedding is mirrored for the head.
    ///
    /// `embedding` and `head` are module paths.
    ///
    /// # Errors
    /// [`AdapterError::Incompatible`] if the file has two different tables for one use, or the config different rows for
    /// tables that must stay tied.
    pub fn untie(&mut self, embedding: &str, head: &str) -> Result<TiedUse> {
        let adapts = |path: &str| self.tensors.keys().any(|key| is_factor_of(key, path));
        let (adapts_head, adapts_embedding) = (adapts(head), adapts(embedding));
        let (saves_head, saves_embedding) = (self.config.saves(head), self.config.saves(embedding));
        let saves_table = saves_head || saves_embedding;
        let indices =
            |path: &str| self.config.trainable_token_indices.as_ref().and_then(|rows| rows.of(path));
        let (embedding_indices, head_indices) = (indices(embedding), indices(head));
        let differ = head_indices.is_some() && head_indices != embedding_indices;
        // PEFT saves separate rows for the head if its indices differ, or if the config does not name its full path.
        let rows = |path: &str| self.tensors.get(&format!("{path}{TOKEN_ROWS}"));
        let rows_apart = match (rows(embedding), rows(head)) {
            (Some(embedding), Some(head)) => differ || embedding.data != head.data,
            (None, Some(_)) => differ,
            (_, None) => false,
        };
        let kept_together = self.config.ensure_weight_tying;
        if kept_together && differ && embedding_indices.is_some() {
            return Err(AdapterError::Incompatible(
                "ensure_weight_tying with different trainable_token_indices for the tied tables".into(),
            ));
        }
        if kept_together && !saves_table && (adapts_head || adapts_embedding) {
            self.mirror(embedding, head);
            self.share_table(embedding, head, [false, false])?;
            return Ok(TiedUse::Apart);
        }
        // PEFT does not tie rows if only the head is named.
        let parts =
            if kept_together { rows_apart && !saves_table } else { adapts_head || saves_table || rows_apart };
        if parts {
            let has_table =
                [embedding, head].iter().any(|p| self.tensors.contains_key(&format!("{p}.weight")));
            if adapts_head && !has_table && self.config.init_tag() != InitTag::Plain {
                let init = self.config.init_lora_weights.as_str().unwrap_or_default();
                return Err(AdapterError::Incompatible(format!(
                    "init_lora_weights '{init}' of '{head}' changed the table that it shares with '{embedding}', which the \
                     adapter does not contain; save it with save_embedding_layers"
                )));
            }
            self.share_table(embedding, head, [saves_embedding, saves_head])?;
            if adapts_head && !(saves_table || differ) {
                self.share_rows(embedding, head);
            }
            return Ok(TiedUse::Apart);
        }
        self.join_table(embedding, head)?;
        Ok(TiedUse::Together)
    }

    /// Copies a shared table that is in the file only once to the other use, unless one of the two is a copy from
    /// `modules_to_save`.
    fn share_table(&mut self, embedding: &str, head: &str, is_own: [bool; 2]) -> Result<()> {
        let keys = [embedding, head].map(|path| format!("{path}.weight"));
        for (from, to) in [(0, 1), (1, 0)] {
            if is_own[from] || is_own[to] || self.tensors.contains_key(&keys[to]) {
                continue;
            }
            if let Some(table) = self.tensors.get(&keys[from]) {
                let table = HostTensor { name: keys[to].clone(), ..table.clone() };
                self.tensors.insert(keys[to].clone(), table);
            }
        }
        Ok(())
    }

    /// Copies the trained rows of the embedding to an adapted head.
    fn share_rows(&mut self, embedding: &str, head: &str) {
        let keys = [embedding, head].map(|path| format!("{path}{TOKEN_ROWS}"));
        let Some(rows) = self.tensors.get(&keys[0]).filter(|_| !self.tensors.contains_key(&keys[1])) else {
            return;
        };
        let rows = HostTensor { name: keys[1].clone(), ..rows.clone() };
        self.tensors.insert(keys[1].clone(), rows);
        if let Some(indices @ TokenIndices::Tables(tables)) = &self.config.trainable_token_indices
            && indices.of(head).is_none()
            && let Some(rows) = indices.of(embedding)
        {
            let named = tables.entries().map(|(name, rows)| (name.to_string(), rows.clone()));
            let named = named.chain([(head.to_string(), rows.to_vec())]).collect();
            self.config.trainable_token_indices = Some(TokenIndices::Tables(named));
        }
    }

    /// Keeps one table, and one set of trained rows, for both uses: the file may store them under either name, or under both
    /// with equal values.
    fn join_table(&mut self, embedding: &str, head: &str) -> Result<()> {
        self.join(embedding, head, TOKEN_ROWS)?;
        self.join(embedding, head, ".weight")
    }

    fn join(&mut self, embedding: &str, head: &str, end: &str) -> Result<()> {
        let Some(table) = self.tensors.remove(&format!("{head}{end}")) else { return Ok(()) };
        let key = format!("{embedding}{end}");
        match self.tensors.get(&key) {
            Some(other) if other.data == table.data => {}
            Some(_) => {
                return Err(AdapterError::Incompatible(format!(
                    "'{head}{end}' and '{key}' differ, and the model has one table for both"
                )));
            }
            None => {
                self.tensors.insert(key.clone(), HostTensor { name: key, ..table });
            }
        }
        Ok(())
    }

    /// Derives the adapter of the head from that of the embedding, or vice versa, if the file has only one:
    /// `(E + B·A)ᵀ = Eᵀ + Aᵀ·Bᵀ`.
    fn mirror(&mut self, embedding: &str, head: &str) {
        let names = [
            [format!("{embedding}.lora_embedding_A"), format!("{head}.lora_B.weight")],
            [format!("{embedding}.lora_embedding_B"), format!("{head}.lora_A.weight")],
        ];
        for [a, b] in names {
            for (from, to) in [(&a, &b), (&b, &a)] {
                if self.tensors.contains_key(to) {
                    continue;
                }
                if let Some(factor) = self.tensors.get(from).filter(|t| t.shape.len() == 2) {
                    let (rows, columns) = (factor.shape[0], factor.shape[1]);
                    let data = lowrank_spec::transpose(&factor.data, rows, columns);
                    let mirrored =
                        HostTensor { name: to.clone(), shape: vec![columns, rows], data: Cow::Owned(data) };
                    self.tensors.insert(to.clone(), mirrored);
                }
            }
        }
    }

    /// Clears `ensure_weight_tying` if the embedding and the head have different factors, since PEFT would load one set for
    /// both.
    pub(super) fn part_uses(&mut self, sites: &[Site]) {
        let factor = |site: &Site, name: &str| self.tensors.get(&format!("{}.{name}", site.path));
        let pairs = |embedding: &Site, head: &Site| {
            let inner = (factor(embedding, "lora_embedding_A")?, factor(head, "lora_B.weight")?);
            Some([inner, (factor(embedding, "lora_embedding_B")?, factor(head, "lora_A.weight")?)])
        };
        let heads = || sites.iter().filter(|site| site.head);
        let embeddings = sites.iter().filter(|site| site.embedding);
        let mut uses =
            embeddings.flat_map(|embedding| heads().filter_map(move |head| pairs(embedding, head)));
        if uses.any(|pairs| !pairs.iter().all(|(a, b)| are_transposes(a, b))) {
            self.config.ensure_weight_tying = false;
        }
    }
}

fn are_transposes(a: &HostTensor<'_>, b: &HostTensor<'_>) -> bool {
    let &[rows, columns] = &a.shape[..] else { return false };
    b.shape == [columns, rows] && lowrank_spec::transpose(&a.data, rows, columns)[..] == b.data[..]
}

fn is_factor_of(key: &str, path: &str) -> bool {
    key.strip_prefix(path).is_some_and(|rest| rest.starts_with(".lora_") || rest.starts_with(".vera_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peft::{PeftConfig, Saved};
    use rstest::rstest;

    fn folder(config: PeftConfig, tensors: &[(&str, [usize; 2], f32)]) -> AdapterFolder {
        let tensor = |(name, shape, value): &(&str, [usize; 2], f32)| {
            let data = vec![*value; shape[0] * shape[1]];
            (name.to_string(), HostTensor::new(*name, shape.to_vec(), data))
        };
        AdapterFolder { config, tensors: tensors.iter().map(tensor).collect(), alpha_is_assumed: false }
    }

    fn saving(names: &[&str], ensure: bool) -> PeftConfig {
        PeftConfig {
            modules_to_save: Some(names.iter().map(|n| n.to_string()).collect()),
            ensure_weight_tying: ensure,
            ..PeftConfig::default()
        }
    }

    const EMBED: (&str, [usize; 2], f32) = ("model.embed_tokens.weight", [5, 2], 1.0);
    const HEAD: (&str, [usize; 2], f32) = ("lm_head.weight", [5, 2], 2.0);

    #[rstest]
    #[case(saving(&["embed_tokens"], false), &[EMBED], TiedUse::Apart)]
    #[case(saving(&["lm_head"], false), &[HEAD], TiedUse::Apart)]
    #[case(saving(&["embed_tokens", "lm_head"], false), &[EMBED, HEAD], TiedUse::Apart)]
    #[case(saving(&["embed_tokens"], true), &[EMBED], TiedUse::Together)]
    #[case(PeftConfig::default(), &[EMBED], TiedUse::Together)]
    #[case(PeftConfig::default(), &[("lm_head.lora_A.weight", [1, 2], 1.0)], TiedUse::Apart)]
    #[case(PeftConfig::default(), &[("model.embed_tokens.lora_embedding_A", [1, 5], 1.0)], TiedUse::Together)]
    fn the_two_uses_part_where_the_adapter_moves_one(
        #[case] config: PeftConfig,
        #[case] tensors: &[(&str, [usize; 2], f32)],
        #[case] expect: TiedUse,
    ) {
        let mut folder = folder(config, tensors);
        assert_eq!(folder.untie("model.embed_tokens", "lm_head").unwrap(), expect);
        assert_eq!(folder.tensors.len(), tensors.len());
    }

    #[test]
    fn a_tied_adapter_is_mirrored_for_the_head() {
        let config = PeftConfig { ensure_weight_tying: true, ..PeftConfig::default() };
        let tensors = [
            ("model.embed_tokens.lora_embedding_A", [1, 5], 2.0),
            ("model.embed_tokens.lora_embedding_B", [2, 1], 3.0),
        ];
        let mut folder = folder(config, &tensors);
        assert_eq!(folder.untie("model.embed_tokens", "lm_head").unwrap(), TiedUse::Apart);
        assert_eq!(folder.tensors["lm_head.lora_A.weight"].shape, [1, 2]);
        assert_eq!(folder.tensors["lm_head.lora_B.weight"].shape, [5, 1]);
    }

    #[rstest]
    #[case(None, true)]
    #[case(Some(("lm_head.lora_A.weight", 4.0)), false)]
    #[case(Some(("lm_head.lora_B.weight", 4.0)), false)]
    fn adapters_that_differ_are_written_as_untied(
        #[case] trained: Option<(&str, f32)>,
        #[case] expect: bool,
    ) {
        let config = PeftConfig { ensure_weight_tying: true, ..PeftConfig::default() };
        let tensors = [
            ("model.embed_tokens.lora_embedding_A", [1, 5], 2.0),
            ("model.embed_tokens.lora_embedding_B", [2, 1], 3.0),
        ];
        let mut folder = folder(config, &tensors);
        folder.untie("model.embed_tokens", "lm_head").unwrap();
        if let Some((name, value)) = trained {
            folder.tensors.get_mut(name).unwrap().data.to_mut().fill(value);
        }
        let site = |path: &str, head| Site { path: path.into(), head, embedding: !head, ..Site::default() };
        folder.part_uses(&[site("model.embed_tokens", false), site("lm_head", true)]);
        assert_eq!(folder.config.ensure_weight_tying, expect);
        // Each use then has its own adapter.
        assert_eq!(folder.untie("model.embed_tokens", "lm_head").unwrap(), TiedUse::Apart);
        assert_eq!(folder.tensors.len(), 4);
    }

    #[test]
    fn an_initialization_that_changed_a_shared_table_needs_it() {
        let config = PeftConfig { init_lora_weights: "pissa".into(), ..PeftConfig::default() };
        let factor = ("lm_head.lora_A.weight", [1, 2], 1.0);
        let error = folder(config.clone(), &[factor]).untie("model.embed_tokens", "lm_head").unwrap_err();
        assert!(error.to_string().contains("pissa"), "{error}");
        let mut with_table = folder(config, &[factor, HEAD]);
        assert_eq!(with_table.untie("model.embed_tokens", "lm_head").unwrap(), TiedUse::Apart);
        assert_eq!(
            with_table.tensors["model.embed_tokens.weight"].data,
            with_table.tensors["lm_head.weight"].data
        );
    }

    #[test]
    fn rows_of_a_shared_table_reach_an_adapted_head() {
        let config = PeftConfig {
            trainable_token_indices: Some(TokenIndices::Input(vec![3])),
            ..PeftConfig::default()
        };
        let rows = ("model.embed_tokens.token_adapter.trainable_tokens_delta", [1, 2], 1.0);
        let mut folder = folder(config, &[rows, ("lm_head.lora_A.weight", [1, 2], 1.0)]);
        assert_eq!(folder.untie("model.embed_tokens", "lm_head").unwrap(), TiedUse::Apart);
        assert!(folder.tensors.contains_key("lm_head.token_adapter.trainable_tokens_delta"));
    }

    const EMBED_ROWS: (&str, [usize; 2], f32) =
        ("model.embed_tokens.token_adapter.trainable_tokens_delta", [2, 2], 1.0);
    const HEAD_ROWS: (&str, [usize; 2], f32) = ("lm_head.token_adapter.trainable_tokens_delta", [1, 2], 2.0);
    const HEAD_ROWS_TOO: (&str, [usize; 2], f32) =
        ("lm_head.token_adapter.trainable_tokens_delta", [2, 2], 2.0);
    const EQUAL_HEAD_ROWS: (&str, [usize; 2], f32) =
        ("lm_head.token_adapter.trainable_tokens_delta", [2, 2], 1.0);
    const ADAPTED_HEAD: (&str, [usize; 2], f32) = ("lm_head.lora_A.weight", [1, 2], 1.0);

    /// The first value of the head's rows, and their indices.
    type HeadRows = Option<(f32, Vec<usize>)>;

    /// Rows of the head after untying. PEFT too rejects different rows with `ensure_weight_tying`.
    #[rstest]
    #[case(r#"{"embed_tokens": [3, 1]}"#, &[EMBED_ROWS], false, Ok((TiedUse::Together, None)))]
    #[case(r#"{"tokens": [3, 1]}"#, &[EMBED_ROWS], true, Ok((TiedUse::Together, None)))]
    #[case(r#"{"embed_tokens": [3, 1], "lm_head": [3, 1]}"#, &[EMBED_ROWS], true, Ok((TiedUse::Together, None)))]
    #[case(
        r#"{"embed_tokens": [3, 1], "lm_head": [4]}"#,
        &[EMBED_ROWS, HEAD_ROWS],
        false,
        Ok((TiedUse::Apart, Some((2.0, vec![4]))))
    )]
    #[case(r#"{"embed_tokens": [3, 1], "lm_head": [4]}"#, &[EMBED_ROWS, HEAD_ROWS], true, Err("different"))]
    // The order matters.
    #[case(r#"{"embed_tokens": [3, 1], "lm_head": [1, 3]}"#, &[EMBED_ROWS, HEAD_ROWS], true, Err("different"))]
    #[case(r#"{"lm_head": [4]}"#, &[HEAD_ROWS], false, Ok((TiedUse::Apart, Some((2.0, vec![4])))))]
    #[case(r#"{"lm_head": [4]}"#, &[HEAD_ROWS], true, Ok((TiedUse::Apart, Some((2.0, vec![4])))))]
    // Equal indices, but names that are not full paths: PEFT trains and saves separate rows.
    #[case(
        r#"{"tokens": [3, 1], "head": [3, 1]}"#,
        &[EMBED_ROWS, HEAD_ROWS_TOO],
        false,
        Ok((TiedUse::Apart, Some((2.0, vec![3, 1]))))
    )]
    #[case(
        r#"{"tokens": [3, 1], "head": [3, 1]}"#,
        &[EMBED_ROWS, HEAD_ROWS_TOO],
        true,
        Ok((TiedUse::Apart, Some((2.0, vec![3, 1]))))
    )]
    #[case(
        r#"{"tokens": [3, 1], "head": [3, 1]}"#,
        &[EMBED_ROWS, HEAD_ROWS_TOO, ADAPTED_HEAD],
        false,
        Ok((TiedUse::Apart, Some((2.0, vec![3, 1]))))
    )]
    #[case(r#"{"tokens": [3, 1], "head": [3, 1]}"#, &[EMBED_ROWS, EQUAL_HEAD_ROWS], false, Ok((TiedUse::Together, None)))]
    #[case(
        r#"{"embed_tokens": [3, 1]}"#,
        &[EMBED_ROWS, ADAPTED_HEAD],
        false,
        Ok((TiedUse::Apart, Some((1.0, vec![3, 1]))))
    )]
    fn rows_of_named_tables(
        #[case] tables: &str,
        #[case] tensors: &[(&str, [usize; 2], f32)],
        #[case] ensure: bool,
        #[case] expect: std::result::Result<(TiedUse, HeadRows), &str>,
    ) {
        let config = PeftConfig {
            trainable_token_indices: Some(serde_json::from_str(tables).unwrap()),
            ensure_weight_tying: ensure,
            ..PeftConfig::default()
        };
        let mut folder = folder(config, tensors);
        let result = folder.untie("model.embed_tokens", "lm_head").map_err(|error| error.to_string());
        let (uses, head_rows) = match (result, expect) {
            (Ok(uses), Ok(expect)) => {
                assert_eq!(uses, expect.0);
                expect
            }
            (Err(error), Err(part)) => return assert!(error.contains(part), "{error}"),
            (result, expect) => panic!("{result:?}, expected {expect:?}"),
        };
        let has_embedding = tensors.contains(&EMBED_ROWS);
        let mut saved = Saved::new(folder.tensors.into_values().collect(), folder.config, [].into(), &[]);
        let rows = saved.take_rows("model.embed_tokens").unwrap();
        assert_eq!(rows.map(|rows| rows.indices), has_embedding.then(|| vec![3, 1]));
        if uses == TiedUse::Apart {
            let rows = saved.take_rows("lm_head").unwrap();
            assert_eq!(rows.map(|rows| (rows.values.data[0], rows.indices)), head_rows);
        }
    }

    #[test]
    fn one_table_under_two_names_must_be_one() {
        let mut same = folder(PeftConfig::default(), &[EMBED, ("lm_head.weight", [5, 2], 1.0)]);
        assert_eq!(same.untie("model.embed_tokens", "lm_head").unwrap(), TiedUse::Together);
        assert_eq!(same.tensors.len(), 1);
        assert!(
            folder(PeftConfig::default(), &[EMBED, HEAD]).untie("model.embed_tokens", "lm_head").is_err()
        );
    }
}
