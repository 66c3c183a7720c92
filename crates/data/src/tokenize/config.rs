//! `tokenizer_config.json` and `special_tokens_map.json`: the parts that affect encoding.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer, TruncationDirection};

use lowrank_checkpoint::gguf::is_gguf;

use crate::error::{DataError, Result};
use crate::io::read_json;
use crate::tokenize::build::{is_generic, unknown_class};
use crate::tokenize::class::{chosen, passes_types, stem};
use crate::tokenize::json::TokenizerJson;
use crate::tokenize::parts::{Parts, Vocabulary};
use crate::tokenize::{Languages, SpecialIds, sentencepiece};

/// `model_max_length` above this means «no limit»: transformers writes 1e30.
const NO_LIMIT: f64 = 1e9;

/// A special token, as a bare string or as an object with flags.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(crate) enum TokenEntry {
    Text(String),
    Flags(TokenFlags),
}

/// The object form of a special token; what it leaves out is what `AddedToken` of transformers takes.
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
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl TokenEntry {
    /// A string, or an object with a `content`.
    fn of(value: &Value) -> Option<Self> {
        serde_json::from_value(value.clone()).ok()
    }

    fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Flags(flags) => &flags.content,
        }
    }

    /// The token; special also if `is_special`.
    fn to_added(&self, is_special: bool) -> AddedToken {
        match self {
            Self::Text(text) => AddedToken::from(text.as_str(), true),
            Self::Flags(f) => {
                let is_special = f.special || is_special;
                AddedToken::from(f.content.as_str(), is_special)
                    .single_word(f.single_word)
                    .lstrip(f.lstrip)
                    .rstrip(f.rstrip)
                    .normalized(f.normalized.unwrap_or(!is_special))
            }
        }
    }

    fn into_special(mut self) -> Self {
        if let Self::Flags(flags) = &mut self {
            flags.special = true;
        }
        self
    }
}

/// The roles in the order in which transformers adds their tokens.
pub(super) const ROLES: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct TokenizerConfig {
    pub(crate) do_lower_case: Option<bool>,
    pub(crate) strip_accents: Option<bool>,
    pub(crate) tokenize_chinese_chars: Option<bool>,
    pub(crate) add_prefix_space: Option<bool>,
    pub(crate) keep_accents: Option<bool>,
    pub(crate) split_by_punct: Option<bool>,
    pub(crate) trim_offsets: Option<bool>,
    pub(crate) legacy: Option<bool>,
    pub(crate) add_bos_token: Option<bool>,
    pub(crate) add_eos_token: Option<bool>,
    pub(crate) clean_up_tokenization_spaces: Option<bool>,
    pub(crate) split_special_tokens: Option<bool>,
    pub(crate) extra_ids: Option<usize>,
    pub(crate) word_tokenizer_type: Option<String>,
    pub(crate) subword_tokenizer_type: Option<String>,
    pub(crate) unk_id: Option<usize>,
    src_lang: Option<String>,
    tgt_lang: Option<String>,
    tokenizer_class: Option<String>,
    auto_map: Option<Value>,
    model_max_length: Option<f64>,
    model_input_names: Option<Vec<String>>,
    truncation_side: Option<String>,
    additional_special_tokens: Option<Vec<TokenEntry>>,
    extra_special_tokens: Option<ExtraTokens>,
    model_specific_special_tokens: Option<IndexedTokens>,
    added_tokens_decoder: Option<BTreeMap<u32, TokenEntry>>,
    #[serde(flatten)]
    rest: Map<String, Value>,
    /// The tokens of roles and names (`image_token`); `None` where the files say null.
    #[serde(skip)]
    roles: Vec<(String, Option<TokenEntry>)>,
    /// Special tokens without a role, if a list of them is given.
    #[serde(skip)]
    extra: Option<Vec<TokenEntry>>,
    /// Whether the files give such a list; the class may give another.
    #[serde(skip)]
    has_extra: bool,
    /// The tokens of `added_tokens.json`, where it counts.
    #[serde(skip)]
    listed: BTreeMap<u32, TokenEntry>,
    /// The class whose rules take the place of those of `tokenizer.json`.
    #[serde(skip)]
    parts: Option<Parts>,
    /// Whether the model is given token types, where the files decide it.
    #[serde(skip)]
    type_ids: Option<bool>,
}

/// `extra_special_tokens`: by name, or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum ExtraTokens {
    List(Vec<TokenEntry>),
    Named(IndexedTokens),
}

impl ExtraTokens {
    fn is_empty(&self) -> bool {
        match self {
            Self::List(list) => list.is_empty(),
            Self::Named(named) => named.is_empty(),
        }
    }
}

/// An object of tokens, in the order of the file.
type IndexedTokens = Map<String, Value>;

/// `config.json` may name the class if `tokenizer_config.json` does not.
#[derive(Default, Deserialize)]
struct ModelConfig {
    tokenizer_class: Option<String>,
    model_type: Option<String>,
}

impl TokenizerConfig {
    /// Reads the files of a folder beside its vocabulary; a missing one counts as empty. `json` is the folder's
    /// `tokenizer.json`.
    ///
    /// As transformers: `special_tokens_map.json` and `added_tokens.json` count if `tokenizer_config.json` has
    /// no `added_tokens_decoder`, and the map then takes precedence over it.
    pub(super) fn read(folder: &Path, json: &TokenizerJson) -> Result<Self> {
        let read: Option<Self> = read_json(&folder.join("tokenizer_config.json"))?;
        let is_present = read.is_some();
        let mut config = read.unwrap_or_default();
        let model: ModelConfig = read_json(&folder.join("config.json"))?.unwrap_or_default();
        let is_wrong = |(role, value): (&str, &Value)| {
            (ROLES.contains(&role) && !value.is_null() && TokenEntry::of(value).is_none())
                .then(|| role.to_owned())
        };
        if let Some(role) = config.rest.iter().find_map(|(role, value)| is_wrong((role, value))) {
            let path = folder.join("tokenizer_config.json");
            return Err(DataError::tokenizer(&path, format!("{role} is neither a token nor null")));
        }
        config.take_roles();
        if config.added_tokens_decoder.is_none() {
            let map: IndexedTokens = read_json(&folder.join("special_tokens_map.json"))?.unwrap_or_default();
            config.take_map(map);
            if sentencepiece::only_file(folder).is_some() {
                // The model's own added tokens take their place in transformers.
                config.additional_special_tokens = None;
            }
        }
        config.has_extra = config.extra.is_some();
        // A GGUF file's tokenizer.json is generated, so no class applies.
        let is_generated = is_gguf(folder);
        if !is_generated {
            let named = config.tokenizer_class.as_deref().or(model.tokenizer_class.as_deref());
            let model_type = model.model_type.as_deref().unwrap_or_default();
            let model_type = if config.has_own_code() && named.is_some() { "" } else { model_type };
            config.parts = chosen(named, model_type, || json.has_bytes())?;
            let is_known = is_present || config.parts.is_some();
            config.type_ids = is_known.then(|| passes_types(named, config.parts));
        }
        if let Some(names) = &config.model_input_names {
            config.type_ids = Some(names.iter().any(|name| name == "token_type_ids"));
        }
        if let Some(parts) = config.parts {
            config = config.with_defaults(parts.defaults());
            config.take_flags(parts);
        }
        if let Some(additional) = config.additional_special_tokens.take() {
            config.extra.get_or_insert(additional);
        }
        // GPT2Tokenizer sets pad_token to None, and the tokenizer.json generated from a GGUF file has no padding.
        let is_unpadded = is_generated || config.parts == Some(Parts::Gpt2);
        if config.slot("pad_token").is_none() && !is_unpadded {
            let pad = json.pad_token()?.map(|token| Some(TokenEntry::Text(token.to_owned())));
            config.roles.extend(pad.map(|entry| ("pad_token".to_owned(), entry)));
        }
        config.tokenizer_class = config.tokenizer_class.or(model.tokenizer_class);
        if config.added_tokens_decoder.is_none() {
            let named: BTreeMap<String, u32> =
                read_json(&folder.join("added_tokens.json"))?.unwrap_or_default();
            let special: Vec<String> =
                config.specials().into_iter().map(|entry| entry.content().into()).collect();
            let entry = |content: String| {
                let special = special.contains(&content);
                TokenEntry::Flags(TokenFlags {
                    content,
                    single_word: false,
                    lstrip: false,
                    rstrip: false,
                    normalized: Some(!special),
                    special,
                })
            };
            config.listed = named.into_iter().map(|(content, id)| (id, entry(content))).collect();
        }
        Ok(config)
    }

    /// Whether the class is code beside the files, which transformers does not run unasked.
    fn has_own_code(&self) -> bool {
        match &self.auto_map {
            Some(Value::Array(_)) => true,
            Some(map) => map.get("AutoTokenizer").is_some_and(|code| !code.is_null()),
            None => false,
        }
    }

    /// Sorts the tokens of `tokenizer_config.json` into roles, named ones and others.
    fn take_roles(&mut self) {
        let rest = std::mem::take(&mut self.rest);
        let is_role = |key: &str| ROLES.contains(&key);
        for role in ROLES {
            if let Some(value) = rest.get(role) {
                self.roles.push((role.to_owned(), TokenEntry::of(value)));
            }
        }
        let mut named: Vec<(String, Option<TokenEntry>)> = rest
            .iter()
            .filter(|(key, _)| key.ends_with("_token") && !is_role(key))
            .filter_map(|(key, value)| Some((key.clone(), Some(TokenEntry::of(value)?))))
            .collect();
        let given = self.extra_special_tokens.take();
        let is_list = matches!(given, Some(ExtraTokens::List(_)));
        let extra = given.filter(|extra| !extra.is_empty());
        let additional = self.additional_special_tokens.take().map(ExtraTokens::List);
        match extra.or(additional).or_else(|| is_list.then(|| ExtraTokens::List(Vec::new()))) {
            Some(ExtraTokens::List(list)) => self.extra = Some(list),
            Some(ExtraTokens::Named(tokens)) => put_all(&mut named, &tokens),
            None => {}
        }
        if let Some(tokens) = self.model_specific_special_tokens.take().filter(|_| named.is_empty()) {
            put_all(&mut named, &tokens);
        }
        self.roles.append(&mut named);
    }

    /// Takes the tokens of a `special_tokens_map.json` before those of `tokenizer_config.json`.
    fn take_map(&mut self, map: IndexedTokens) {
        let mut additional = None;
        for (key, value) in map {
            let entry = TokenEntry::of(&value).map(TokenEntry::into_special);
            match (key.as_str(), value) {
                ("extra_special_tokens", Value::Array(list)) => {
                    let extra = self.extra.get_or_insert_default();
                    for entry in list.iter().filter_map(TokenEntry::of) {
                        if !extra.iter().any(|own| own.content() == entry.content()) {
                            extra.push(entry.into_special());
                        }
                    }
                }
                ("additional_special_tokens", Value::Array(list)) => {
                    additional = Some(list.iter().filter_map(TokenEntry::of).collect());
                }
                ("extra_special_tokens", Value::Object(named)) => put_all(&mut self.roles, &named),
                (role, _) if ROLES.contains(&role) => put(&mut self.roles, role, entry),
                (name, _) if name.ends_with("_token") && entry.is_some() && self.slot(name).is_none() => {
                    self.roles.push((key, entry));
                }
                _ => {}
            }
        }
        self.additional_special_tokens = additional;
    }

    /// The flags and additional tokens that a class gives where the files do not.
    fn take_flags(&mut self, parts: Parts) {
        if self.extra.is_none() {
            let mut extra = self.additional_special_tokens.take();
            let is_sentinel = |entry: &TokenEntry| entry.content().contains("<extra_id_");
            if parts == Parts::T5 && !extra.iter().flatten().any(is_sentinel) {
                let sentinels = (0..self.extra_ids.unwrap_or(100)).map(|i| format!("<extra_id_{i}>"));
                extra.get_or_insert_default().extend(sentinels.map(TokenEntry::Text));
            }
            if extra.is_none() && !parts.additional().is_empty() {
                extra =
                    Some(parts.additional().iter().map(|text| TokenEntry::Text((*text).into())).collect());
            }
            self.extra = extra;
        }
        for (role, entry) in &mut self.roles {
            let is_mask = role == "mask_token";
            let is_flagged = match parts {
                Parts::Blenderbot | Parts::Camembert | Parts::MBart | Parts::MBart50 => is_mask,
                Parts::MpNet => ROLES.contains(&role.as_str()),
                _ => false,
            };
            if let Some(TokenEntry::Text(content)) = entry
                && is_flagged
            {
                // The mask takes the space before it.
                *entry = Some(TokenEntry::Flags(TokenFlags {
                    content: std::mem::take(content),
                    single_word: false,
                    lstrip: is_mask,
                    rstrip: false,
                    normalized: (parts == Parts::Blenderbot).then_some(false),
                    special: false,
                }));
            }
        }
    }

    /// Whether the files list the special tokens without a role.
    pub(super) fn has_extra(&self) -> bool {
        self.has_extra
    }

    /// What the files say of a role: nothing, null, or a token.
    fn slot(&self, role: &str) -> Option<&Option<TokenEntry>> {
        self.roles.iter().find(|(own, _)| own == role).map(|(_, entry)| entry)
    }

    fn role(&self, role: &str) -> Option<&TokenEntry> {
        self.slot(role)?.as_ref()
    }

    /// Fills roles that the files do not mention; one that is null stays without a token.
    pub(crate) fn with_defaults(&self, defaults: &[(&str, &str)]) -> Self {
        let mut config = self.clone();
        for (role, token) in defaults {
            if config.slot(role).is_none() {
                config.roles.push(((*role).to_owned(), Some(TokenEntry::Text((*token).to_owned()))));
            }
        }
        config
    }

    /// The class whose rules take the place of those of `tokenizer.json`, if any.
    pub(crate) fn parts(&self) -> Option<Parts> {
        self.parts
    }

    /// The token of a role, empty if the config names none.
    pub(crate) fn token(&self, role: &str) -> &str {
        self.role(role).map_or("", TokenEntry::content)
    }

    /// The tokenizer's class without `Tokenizer` and `Fast`; `None` if the files name none, or a generic one.
    pub(crate) fn class(&self) -> Option<&str> {
        let class = self.tokenizer_class.as_deref()?;
        Some(stem(class)).filter(|class| !is_generic(class))
    }

    /// The class for a vocabulary of a kind, if the files give one by name or model type.
    ///
    /// # Errors
    /// A named class that has no such vocabulary.
    pub(super) fn named_parts(&self, kind: Vocabulary) -> Result<Option<Parts>, String> {
        let is_of_kind = |parts: &Parts| parts.vocabulary() == kind;
        if let Some(parts) = self.parts.filter(is_of_kind) {
            return Ok(Some(parts));
        }
        let Some(class) = self.class() else { return Ok(None) };
        // transformers takes ConvBERT's tokenizer.json as it is, and builds BERT's tokenizer from its vocab.txt.
        let parts = Parts::of(if class == "ConvBert" { "Bert" } else { class }).filter(is_of_kind);
        parts.map(Some).ok_or_else(|| unknown_class(self.class_name(), class))
    }

    /// The tokenizer's class as named in the files.
    pub(crate) fn class_name(&self) -> &str {
        self.tokenizer_class.as_deref().unwrap_or_default()
    }

    /// The tokens with a role, those with another name, and the others, in the order in which transformers
    /// adds them.
    fn specials(&self) -> Vec<TokenEntry> {
        self.named().into_iter().map(|(_, entry)| entry).chain(self.extra.iter().flatten()).cloned().collect()
    }

    fn named(&self) -> Vec<(&str, &TokenEntry)> {
        let roles = ROLES.iter().filter_map(|role| Some((*role, self.role(role)?)));
        let others = self.roles.iter().filter(|(name, _)| !ROLES.contains(&name.as_str()));
        roles.chain(others.filter_map(|(name, entry)| Some((name.as_str(), entry.as_ref()?)))).collect()
    }

    /// The tokens to add to a tokenizer beside those that it has with the same flags: those listed with an id
    /// first, then the special ones.
    ///
    /// `own` are the added tokens of the `tokenizer.json`, which count unless `tokenizer_config.json` lists its own.
    pub(crate) fn added_tokens(&self, tokenizer: &Tokenizer, own: &Tokens) -> Vec<AddedToken> {
        let present = tokenizer.get_added_tokens_decoder();
        let named = self.named();
        let has_name = |content: &str| named.iter().any(|(_, entry)| entry.content() == content);
        let to_added = |entry: &TokenEntry| entry.to_added(has_name(entry.content()));
        let mut listed: Tokens = self.listed().iter().map(|(id, entry)| (*id, to_added(entry))).collect();
        if self.added_tokens_decoder.is_none() {
            listed.extend(own.iter().map(|(id, token)| (*id, token.clone())));
        }
        let mut added: Vec<AddedToken> =
            listed.into_values().filter(|token| !present.values().any(|own| own == token)).collect();
        for entry in self.specials() {
            let is_known = |token: &AddedToken| token.content == entry.content();
            if !present.values().any(is_known) && !added.iter().any(is_known) {
                added.push(to_added(&entry));
            }
        }
        for token in &mut added {
            token.special |= has_name(&token.content);
        }
        added
    }

    /// The special tokens as Qwen2 and Cohere add them a second time, marked special: with the flags of the config, or
    /// without any if `bare`.
    pub(crate) fn special_added(&self, bare: bool) -> Vec<AddedToken> {
        let entries = self.specials().into_iter();
        let bared =
            |entry: TokenEntry| if bare { TokenEntry::Text(entry.content().to_owned()) } else { entry };
        entries.map(|entry| bared(entry).to_added(false).special(true)).collect()
    }

    /// The tokens that a file beside the vocabulary lists with their ids.
    fn listed(&self) -> &BTreeMap<u32, TokenEntry> {
        self.added_tokens_decoder.as_ref().unwrap_or(&self.listed)
    }

    /// The first token whose id in a tokenizer differs from that in the files, with both ids.
    pub(crate) fn misplaced(&self, tokenizer: &Tokenizer) -> Option<(String, u32, Option<u32>)> {
        self.listed().iter().find_map(|(&id, entry)| {
            let found = tokenizer.token_to_id(entry.content());
            (found != Some(id)).then(|| (entry.content().to_owned(), id, found))
        })
    }

    /// The special tokens by role or name, as transformers' `special_tokens_map`.
    pub(crate) fn special_tokens(&self) -> Map<String, Value> {
        self.named().into_iter().map(|(name, entry)| (name.to_owned(), entry.content().into())).collect()
    }

    /// The language of texts to read, in the classes that mark it.
    pub(super) fn source_language(&self) -> &str {
        self.src_lang.as_deref().unwrap_or("en_XX")
    }

    /// The id of a language of the vocabulary, named by a key of `tokenizer_config.json`.
    pub(super) fn language_id(&self, tokenizer: &Tokenizer, key: &str, name: &str) -> Result<u32, String> {
        let id = tokenizer.token_to_id(name);
        id.ok_or_else(|| {
            format!("{key} in tokenizer_config.json is '{name}', which is not in the vocabulary")
        })
    }

    /// The languages of a class that marks them.
    ///
    /// # Errors
    /// One that is not in the vocabulary.
    pub(super) fn languages(&self, tokenizer: &Tokenizer) -> Result<Option<Languages>, String> {
        if !matches!(self.parts, Some(Parts::MBart | Parts::MBart50)) {
            return Ok(None);
        }
        let id = |key: &str, name: &str| self.language_id(tokenizer, key, name);
        let source = id("src_lang", self.source_language())?;
        let target = self.tgt_lang.as_deref().map(|name| id("tgt_lang", name)).transpose()?;
        Ok(Some(Languages { source, target }))
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

    /// Whether the model is given token types; without a configuration those of the template.
    pub(super) fn passes_types(&self) -> bool {
        self.type_ids.unwrap_or(true)
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

/// Added tokens by id.
pub(super) type Tokens = BTreeMap<u32, AddedToken>;

/// Sets a role's token.
fn put(roles: &mut Vec<(String, Option<TokenEntry>)>, role: &str, entry: Option<TokenEntry>) {
    match roles.iter_mut().find(|(own, _)| own == role) {
        Some((_, own)) => *own = entry,
        None => roles.push((role.to_owned(), entry)),
    }
}

/// Sets the tokens of an object by their names.
fn put_all(roles: &mut Vec<(String, Option<TokenEntry>)>, named: &IndexedTokens) {
    for (name, value) in named {
        if let Some(entry) = TokenEntry::of(value) {
            put(roles, name, Some(entry));
        }
    }
}
