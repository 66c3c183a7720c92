//! `tokenizer_config.json` and `special_tokens_map.json`: the parts that affect encoding.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer, TruncationDirection};

use crate::error::Result;
use crate::io::read_json;
use crate::tokenize::SpecialIds;

/// `model_max_length` above this means «no limit»: transformers writes 1e30.
const NO_LIMIT: f64 = 1e9;

/// A special token, as a bare string or as an object with flags.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenEntry {
    Text(String),
    Flags(TokenFlags),
}

/// The object form of a special token.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct TokenFlags {
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    normalized: bool,
    #[serde(default)]
    special: Option<bool>,
}

impl TokenFlags {
    fn of(content: String) -> Self {
        Self { content, single_word: false, lstrip: false, rstrip: false, normalized: false, special: None }
    }
}

impl TokenEntry {
    fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Flags(flags) => &flags.content,
        }
    }

    fn to_added(&self, special: bool) -> AddedToken {
        match self {
            Self::Text(text) => AddedToken::from(text.as_str(), special),
            Self::Flags(f) => AddedToken::from(f.content.as_str(), f.special.unwrap_or(special))
                .single_word(f.single_word)
                .lstrip(f.lstrip)
                .rstrip(f.rstrip)
                .normalized(f.normalized),
        }
    }
}

/// The roles in the order in which transformers adds their tokens.
const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    pub(crate) do_lower_case: Option<bool>,
    pub(crate) strip_accents: Option<bool>,
    pub(crate) tokenize_chinese_chars: Option<bool>,
    pub(crate) add_prefix_space: Option<bool>,
    pub(crate) split_by_punct: Option<bool>,
    pub(crate) trim_offsets: Option<bool>,
    pub(crate) legacy: Option<bool>,
    pub(crate) add_bos_token: Option<bool>,
    pub(crate) add_eos_token: Option<bool>,
    pub(crate) extra_ids: Option<usize>,
    pub(crate) word_tokenizer_type: Option<String>,
    pub(crate) subword_tokenizer_type: Option<String>,
    tokenizer_class: Option<String>,
    model_max_length: Option<f64>,
    truncation_side: Option<String>,
    bos_token: Option<TokenEntry>,
    eos_token: Option<TokenEntry>,
    unk_token: Option<TokenEntry>,
    sep_token: Option<TokenEntry>,
    pad_token: Option<TokenEntry>,
    cls_token: Option<TokenEntry>,
    mask_token: Option<TokenEntry>,
    additional_special_tokens: Option<Vec<TokenEntry>>,
    extra_special_tokens: Option<ExtraTokens>,
    #[serde(default)]
    added_tokens_decoder: BTreeMap<u32, TokenEntry>,
}

/// `extra_special_tokens`: by name, or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum ExtraTokens {
    List(Vec<TokenEntry>),
    Named(IndexedTokens),
}

/// An object of tokens, in the order of the file.
type IndexedTokens = serde_json::Map<String, Value>;

/// `config.json` may name the class if `tokenizer_config.json` does not.
#[derive(Default, Deserialize)]
struct ModelConfig {
    tokenizer_class: Option<String>,
}

impl TokenizerConfig {
    /// Reads both files of a folder; a missing one counts as empty, and the first one takes precedence.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let mut config: Self = read_json(&folder.join("tokenizer_config.json"))?.unwrap_or_default();
        let map: Self = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
        for role in ROLES {
            if config.role(role).is_none()
                && let Some(entry) = map.role(role)
            {
                let entry = entry.clone();
                *config.role_mut(role) = Some(entry);
            }
        }
        if config.additional_special_tokens.is_none() {
            config.additional_special_tokens = map.additional_special_tokens;
        }
        if config.tokenizer_class.is_none() {
            let model: ModelConfig = read_json(&folder.join("config.json"))?.unwrap_or_default();
            config.tokenizer_class = model.tokenizer_class;
        }
        if config.added_tokens_decoder.is_empty() {
            let named: BTreeMap<String, u32> =
                read_json(&folder.join("added_tokens.json"))?.unwrap_or_default();
            let special: Vec<String> =
                config.specials().into_iter().map(|entry| entry.content().into()).collect();
            let entry = |content: String| {
                let is_special = special.contains(&content);
                let flags = TokenFlags {
                    normalized: !is_special,
                    special: Some(is_special),
                    ..TokenFlags::of(content)
                };
                TokenEntry::Flags(flags)
            };
            config.added_tokens_decoder =
                named.into_iter().map(|(content, id)| (id, entry(content))).collect();
        }
        Ok(config)
    }

    fn role(&self, role: &str) -> Option<&TokenEntry> {
        match role {
            "bos_token" => self.bos_token.as_ref(),
            "eos_token" => self.eos_token.as_ref(),
            "unk_token" => self.unk_token.as_ref(),
            "sep_token" => self.sep_token.as_ref(),
            "pad_token" => self.pad_token.as_ref(),
            "cls_token" => self.cls_token.as_ref(),
            _ => self.mask_token.as_ref(),
        }
    }

    fn role_mut(&mut self, role: &str) -> &mut Option<TokenEntry> {
        match role {
            "bos_token" => &mut self.bos_token,
            "eos_token" => &mut self.eos_token,
            "unk_token" => &mut self.unk_token,
            "sep_token" => &mut self.sep_token,
            "pad_token" => &mut self.pad_token,
            "cls_token" => &mut self.cls_token,
            _ => &mut self.mask_token,
        }
    }

    /// Fills roles that the files leave unset.
    pub(crate) fn with_defaults(&self, defaults: &[(&str, &str)]) -> Self {
        let mut config = self.clone();
        for (role, token) in defaults {
            config.role_mut(role).get_or_insert_with(|| TokenEntry::Text((*token).to_owned()));
        }
        config
    }

    /// The token of a role, empty if the config names none.
    pub(crate) fn token(&self, role: &str) -> &str {
        self.role(role).map_or("", TokenEntry::content)
    }

    /// The tokenizer's class without `Tokenizer` and `Fast`; `None` if the files name none, or a generic one.
    pub(crate) fn class(&self) -> Option<&str> {
        let class = self.tokenizer_class.as_deref()?;
        let class = class.strip_suffix("Fast").unwrap_or(class);
        let class = class.strip_suffix("Tokenizer").unwrap_or(class);
        (!["PreTrained", "TokenizersBackend", ""].contains(&class)).then_some(class)
    }

    /// The tokenizer's class as named in the files.
    pub(crate) fn class_name(&self) -> &str {
        self.tokenizer_class.as_deref().unwrap_or_default()
    }

    /// The tokens of the roles, and the additional special ones, in the order in which transformers adds
    /// them.
    fn specials(&self) -> Vec<TokenEntry> {
        let roles = ROLES.iter().filter_map(|role| self.role(role)).cloned();
        let additional = self.additional_special_tokens.iter().flatten().cloned();
        let extra: Vec<TokenEntry> = match &self.extra_special_tokens {
            None => Vec::new(),
            Some(ExtraTokens::List(list)) => list.clone(),
            Some(ExtraTokens::Named(named)) => {
                named.values().filter_map(|value| serde_json::from_value(value.clone()).ok()).collect()
            }
        };
        roles.chain(additional).chain(extra).collect()
    }

    /// The tokens to add to a vocabulary: those listed with an id first, then the special ones.
    pub(crate) fn added_tokens(&self) -> Vec<AddedToken> {
        let mut added: Vec<AddedToken> =
            self.added_tokens_decoder.values().map(|entry| entry.to_added(false)).collect();
        for entry in self.specials() {
            if !added.iter().any(|token| token.content == entry.content()) {
                added.push(entry.to_added(true).special(true));
            }
        }
        added
    }

    /// The first token whose id in a tokenizer differs from that in the files, with both ids.
    pub(crate) fn misplaced(&self, tokenizer: &Tokenizer) -> Option<(String, u32, Option<u32>)> {
        self.added_tokens_decoder.iter().find_map(|(&id, entry)| {
            let found = tokenizer.token_to_id(entry.content());
            (found != Some(id)).then(|| (entry.content().to_owned(), id, found))
        })
    }

    /// The special tokens by role, as transformers' `special_tokens_map`.
    pub(crate) fn special_tokens(&self) -> Map<String, Value> {
        let mut tokens = Map::new();
        for role in ROLES {
            if let Some(entry) = self.role(role) {
                tokens.insert(role.into(), entry.content().into());
            }
        }
        if let Some(additional) = self.additional_special_tokens.as_ref().filter(|tokens| !tokens.is_empty())
        {
            tokens.insert(
                "additional_special_tokens".into(),
                additional.iter().map(TokenEntry::content).collect(),
            );
        }
        tokens
    }

    /// The side of a long text that is cut off, if the config gives one.
    ///
    /// # Errors
    /// A side other than left and right.
    pub(crate) fn truncation_side(&self) -> Result<Option<TruncationDirection>, String> {
        match self.truncation_side.as_deref() {
            None => Ok(None),
            Some("left") => Ok(Some(TruncationDirection::Left)),
            Some("right") => Ok(Some(TruncationDirection::Right)),
            Some(other) => Err(format!("truncation_side is '{other}'; expected left or right")),
        }
    }

    /// The limit, if it is a real one.
    pub(crate) fn model_max_length(&self) -> Option<usize> {
        self.model_max_length.filter(|&n| (1.0..NO_LIMIT).contains(&n)).map(|n| n as usize)
    }

    /// The roles' ids: by the files' names, or otherwise by the usual names.
    pub(crate) fn special_ids(&self, tokenizer: &Tokenizer) -> SpecialIds {
        let id = |role: &str, usual: &[&str]| match self.role(role) {
            Some(entry) => tokenizer.token_to_id(entry.content()),
            None => usual.iter().find_map(|token| tokenizer.token_to_id(token)),
        };
        SpecialIds {
            cls: id("cls_token", &["[CLS]", "<s>"]),
            sep: id("sep_token", &["[SEP]", "</s>"]),
            pad: id("pad_token", &["[PAD]", "<pad>"]),
            mask: id("mask_token", &["[MASK]", "<mask>"]),
            unk: id("unk_token", &["[UNK]", "<unk>"]),
            bos: id("bos_token", &["<s>", "<|begin_of_text|>", "<|endoftext|>"]),
            eos: id("eos_token", &["</s>", "<|end_of_text|>", "<|endoftext|>"]),
        }
    }
}
