//! The tokenizer metadata of a GGUF file, from a `tokenizer.json`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value as Json;

use super::pre::{ALL, DIGIT, GPT2, Pre};
use super::sentence_piece::merges_by_score;
use super::tokenizer::TokenType;
use super::write::Meta;

type Result<T> = std::result::Result<T, String>;

/// A tokenizer that goes into a file.
#[derive(Clone, Copy, Debug)]
pub struct TokenizerParts<'a> {
    /// `tokenizer.json`.
    pub json: &'a Json,
    /// Ids of tokens with a role: `bos`, `eos`, `unknown`, `seperator` (as llama.cpp spells it), `padding`, `mask`, `eot`.
    pub roles: &'a [(&'static str, u32)],
    /// Chat templates by name; the one called `default` is used unless another is asked for.
    pub templates: &'a [(String, String)],
}

/// The metadata of a tokenizer with a token for each of `rows` rows of an embedding.
pub(crate) fn describe(parts: &TokenizerParts<'_>, rows: usize) -> Result<Vec<(String, Meta)>> {
    let json = parts.json;
    let model = &json["model"];
    let mut out: Vec<(String, Meta)> = Vec::new();
    let mut put = |key: &str, value: Meta| out.push((format!("tokenizer.ggml.{key}"), value));
    let vocab = Vocab::read(json, rows)?;
    let roles = || parts.roles.iter().filter(|(_, id)| (*id as usize) < rows);
    let kind =
        model["type"].as_str().unwrap_or(if model["merges"].is_array() { "BPE" } else { "of no type" });
    let byte_level = has_type(&json["pre_tokenizer"], "ByteLevel") || has_type(&json["decoder"], "ByteLevel");
    let (types, begins) = match kind {
        "BPE" if byte_level => {
            let pre = pre_of(json)?;
            put("model", Meta::text("gpt2"));
            put("pre", Meta::text(pre.names[0]));
            put("merges", Meta::Texts(merges(model)?.into_iter().map(|(a, b)| format!("{a} {b}")).collect()));
            (vocab.types(false, None), pre.add_bos)
        }
        "BPE" => {
            put("model", Meta::text("llama"));
            put("pre", Meta::text("default"));
            put("scores", Meta::F32s(scores(&vocab, model)?));
            put("add_space_prefix", Meta::Bool(space_prefix(json)?));
            // Llama's class leaves the unknown token to its role.
            let of_role = roles().find(|(role, _)| *role == "unknown");
            let of_role = of_role.and_then(|(_, id)| vocab.tokens.get(*id as usize)).map(String::as_str);
            (vocab.types(true, model["unk_token"].as_str().or(of_role)), true)
        }
        other => {
            return Err(format!(
                "a tokenizer of the kind {other} cannot be written; llama.cpp's decoders take byte-level BPE, or \
                 SentencePiece's BPE"
            ));
        }
    };
    put("tokens", Meta::Texts(vocab.tokens.clone()));
    put("token_type", Meta::I32s(types.iter().map(|kind| *kind as i32).collect()));
    for (role, id) in roles() {
        put(&format!("{role}_token_id"), Meta::U32(*id));
    }
    let role = |name: &str| roles().find(|(role, _)| *role == name).map(|(_, id)| *id);
    let [first, last] = frame(&json["post_processor"], [role("bos"), role("eos")])?;
    if first || begins {
        put("add_bos_token", Meta::Bool(first));
    }
    put("add_eos_token", Meta::Bool(last));
    let mut named = Vec::new();
    for (name, template) in parts.templates {
        match name.as_str() {
            "default" => out.push(("tokenizer.chat_template".into(), Meta::text(template.clone()))),
            name => {
                out.push((format!("tokenizer.chat_template.{name}"), Meta::text(template.clone())));
                named.push(name.to_owned());
            }
        }
    }
    if !named.is_empty() {
        out.push(("tokenizer.chat_templates".into(), Meta::Texts(named)));
    }
    Ok(out)
}

/// Tokens by id.
struct Vocab {
    tokens: Vec<String>,
    /// Ids that stand for a token; the others fill up.
    used: BTreeSet<usize>,
    /// Whether an added token is special, by id.
    added: BTreeMap<usize, bool>,
}

impl Vocab {
    fn read(json: &Json, rows: usize) -> Result<Self> {
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let (mut used, mut added) = (BTreeSet::new(), BTreeMap::new());
        let mut set = |token: &str, id: Option<u64>| -> Result<usize> {
            let id = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < rows);
            let id = id.ok_or_else(|| {
                format!("token '{token}' has an id beyond the {rows} rows of the embedding")
            })?;
            tokens[id] = token.to_owned();
            used.insert(id);
            Ok(id)
        };
        let vocab = json["model"]["vocab"].as_object().ok_or("model.vocab is not an object")?;
        for (token, id) in vocab {
            set(token, id.as_u64())?;
        }
        for token in json["added_tokens"].as_array().into_iter().flatten() {
            let content = token["content"].as_str().ok_or("an added token has no content")?;
            // A class may add tokens that the model has no row for, as CodeLlama's does.
            if token["id"].as_u64().is_some_and(|id| id >= rows as u64) {
                continue;
            }
            let id = set(content, token["id"].as_u64())?;
            added.insert(id, token["special"].as_bool().unwrap_or(false));
        }
        Ok(Self { tokens, used, added })
    }

    fn types(&self, has_bytes: bool, unknown: Option<&str>) -> Vec<TokenType> {
        let of = |(id, token): (usize, &String)| match self.added.get(&id) {
            _ if unknown == Some(token.as_str()) => TokenType::Unknown,
            Some(true) => TokenType::Control,
            Some(false) => TokenType::UserDefined,
            None if !self.used.contains(&id) => TokenType::Unused,
            None if has_bytes && is_byte(token) => TokenType::Byte,
            None => TokenType::Normal,
        };
        self.tokens.iter().enumerate().map(of).collect()
    }
}

/// Whether a piece is `<0x0A>` or another byte.
fn is_byte(token: &str) -> bool {
    let digits = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.chars().all(|c| c.is_ascii_hexdigit()))
}

/// Merges in either of their two forms.
fn merges(model: &Json) -> Result<Vec<(String, String)>> {
    let pair = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Json::Array(pair) => Some((pair.first()?.as_str()?.to_owned(), pair.get(1)?.as_str()?.to_owned())),
        _ => None,
    };
    let all = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter()
        .map(pair)
        .collect::<Option<_>>()
        .ok_or_else(|| "model.merges holds something else than pairs".into())
}

/// Whether a part of a tokenizer, or one of its parts, has a type.
fn has_type(part: &Json, kind: &str) -> bool {
    part["type"] == kind || inner(part).any(|part| has_type(part, kind))
}

fn inner(part: &Json) -> impl Iterator<Item = &Json> {
    let lists = ["pretokenizers", "normalizers", "decoders", "processors"];
    lists.into_iter().filter_map(|list| part[list].as_array()).flatten()
}

/// How text is cut, by llama.cpp's name.
fn pre_of(json: &Json) -> Result<&'static Pre> {
    let mut patterns = Vec::new();
    collect(&json["pre_tokenizer"], &mut patterns)?;
    let mut composed = false;
    check_normalizer(&json["normalizer"], &mut composed)?;
    let ignores = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    // A final alternative that matches the remainder can be dropped: unmatched text forms a piece anyway.
    let bare = |pattern: &str| pattern.strip_suffix(r"|\s+").unwrap_or(pattern).to_owned();
    let given: Vec<String> = patterns.iter().map(|pattern| bare(pattern)).collect();
    let is_it = |pre: &&Pre| pre.patterns.iter().map(|pattern| bare(pattern)).eq(given.iter().cloned());
    let of_pattern = || ALL.iter().filter(is_it);
    let exact = of_pattern().find(|pre| pre.ignore_merges == ignores && pre.composed == composed);
    exact.or_else(|| of_pattern().find(|pre| pre.ignore_merges == ignores)).ok_or_else(|| {
        let all = patterns.join("' and '");
        format!("llama.cpp has no pre-tokenizer that cuts by '{all}' with ignore_merges = {ignores}")
    })
}

/// The patterns of a pre-tokenizer, in their order.
fn collect(part: &Json, patterns: &mut Vec<String>) -> Result<()> {
    let unknown = || Err(format!("the pre-tokenizer {part} has no counterpart in llama.cpp"));
    match part["type"].as_str() {
        None if part.is_null() => Ok(()),
        Some("Sequence") => inner(part).try_for_each(|part| collect(part, patterns)),
        Some("ByteLevel") if part["add_prefix_space"] == true => unknown(),
        Some("ByteLevel") => {
            if part["use_regex"].as_bool().unwrap_or(true) {
                patterns.push(GPT2.to_owned());
            }
            Ok(())
        }
        Some("Digits") => {
            let alone = part["individual_digits"].as_bool().unwrap_or(false);
            patterns.push(if alone { DIGIT.to_owned() } else { r"\p{N}+".to_owned() });
            Ok(())
        }
        Some("Split") => {
            let behavior = (part["behavior"].as_str(), part["invert"].as_bool().unwrap_or(false));
            let regex = part["pattern"]["Regex"].as_str();
            match (behavior, regex) {
                ((Some("Isolated"), false) | (Some("Removed"), true), Some(regex)) => {
                    patterns.push(regex.to_owned());
                    Ok(())
                }
                _ => unknown(),
            }
        }
        _ => unknown(),
    }
}

/// Refuses a normalizer that llama.cpp does not have.
fn check_normalizer(part: &Json, composed: &mut bool) -> Result<()> {
    match part["type"].as_str() {
        None if part.is_null() => Ok(()),
        Some("Sequence") => inner(part).try_for_each(|part| check_normalizer(part, composed)),
        // llama.cpp takes text as it is; most is composed already.
        Some("NFC") => {
            *composed = true;
            Ok(())
        }
        _ => Err(format!("the normalizer {part} has no counterpart in llama.cpp")),
    }
}

/// Whether a space is put before a text.
fn space_prefix(json: &Json) -> Result<bool> {
    let mut prefix = false;
    spaces(&json["normalizer"], &mut prefix)?;
    spaces(&json["pre_tokenizer"], &mut prefix)?;
    Ok(prefix)
}

fn spaces(part: &Json, prefix: &mut bool) -> Result<()> {
    let is_space = |value: &Json| value == "\u{2581}";
    match part["type"].as_str() {
        None if part.is_null() => Ok(()),
        Some("Sequence") => inner(part).try_for_each(|part| spaces(part, prefix)),
        Some("Prepend") if is_space(&part["prepend"]) => {
            *prefix = true;
            Ok(())
        }
        Some("Replace") if part["pattern"]["String"] == " " && is_space(&part["content"]) => Ok(()),
        Some("Metaspace") => {
            *prefix = part["prepend_scheme"].as_str().unwrap_or("always") != "never";
            match part["split"].as_bool() {
                // Pieces of several words could not be found.
                Some(false) => Ok(()),
                _ => Err("a Metaspace pre-tokenizer that splits has no counterpart in llama.cpp".into()),
            }
        }
        // After the spaces have been replaced there is nothing to cut at.
        Some("Split") if part["pattern"]["String"] == " " => Ok(()),
        _ => Err(format!("{part} has no counterpart in llama.cpp's SentencePiece")),
    }
}

/// Scores by which llama.cpp merges as the merges say.
fn scores(vocab: &Vocab, model: &Json) -> Result<Vec<f32>> {
    let merges = merges(model)?;
    // The first merge that makes a piece gives it its score.
    let mut rank: HashMap<String, usize> = HashMap::new();
    for (i, (left, right)) in merges.iter().enumerate() {
        rank.entry(format!("{left}{right}")).or_insert(i);
    }
    let score = |token: &String| rank.get(token).map_or(-1e6, |&rank| -(rank as f32) - 1.0);
    let scores: Vec<f32> = vocab.tokens.iter().map(score).collect();
    if merges.len() >= 1 << 24 {
        return Err("more merges than scores in f32 can order".into());
    }
    let ids: BTreeMap<&str, u32> =
        vocab.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id as u32)).collect();
    let pieces =
        vocab.tokens.iter().enumerate().filter(|(id, token)| {
            vocab.used.contains(id) && !vocab.added.contains_key(id) && !is_byte(token)
        });
    let pieces = pieces.map(|(id, token)| (token.as_str(), f64::from(scores[id])));
    let derived: BTreeSet<(String, String)> = merges_by_score(pieces, &ids).into_iter().collect();
    let given: BTreeSet<(String, String)> = merges.into_iter().collect();
    match derived.iter().find(|pair| !given.contains(*pair)) {
        None => Ok(scores),
        Some((left, right)) => Err(format!(
            "llama.cpp merges whatever makes a token, and this tokenizer does not merge '{left}' and '{right}'"
        )),
    }
}

/// The same for a processor without a template: BERT's and RoBERTa's name their tokens, a byte-level one adds none.
fn frame_of_parts(processor: &Json, ends: [Option<u32>; 2]) -> Result<[bool; 2]> {
    let parts: Vec<&Json> = match processor["type"].as_str() {
        Some("Sequence") => inner(processor).collect(),
        _ => vec![processor],
    };
    let mut framed = [false; 2];
    for part in parts.into_iter().filter(|part| !part.is_null()) {
        match part["type"].as_str() {
            Some("ByteLevel") => {}
            Some("BertProcessing" | "RobertaProcessing") => {
                for ((key, id), framed) in ["cls", "sep"].into_iter().zip(ends).zip(&mut framed) {
                    let token = part[key][1].as_u64();
                    if token.is_none() || token != id.map(u64::from) {
                        return Err(format!(
                            "the tokenizer frames a text with {token:?}, which is not its bos or eos"
                        ));
                    }
                    *framed = true;
                }
            }
            kind => return Err(format!("post-processor {kind:?} is not supported by llama.cpp")),
        }
    }
    Ok(framed)
}

/// Whether a text begins with the first token and ends with the last.
fn frame(processor: &Json, [bos, eos]: [Option<u32>; 2]) -> Result<[bool; 2]> {
    let template = if processor["type"] == "TemplateProcessing" {
        Some(processor)
    } else {
        inner(processor).find(|part| part["type"] == "TemplateProcessing")
    };
    let Some(template) = template else { return frame_of_parts(processor, [bos, eos]) };
    let single = template["single"].as_array().map(Vec::as_slice).unwrap_or_default();
    let at = single.iter().position(|piece| piece["Sequence"].is_object());
    let at = at.ok_or("a template without the text")?;
    let is = |pieces: &[Json], id: Option<u32>, what: &str| -> Result<bool> {
        let ids: Vec<u64> = pieces
            .iter()
            .filter_map(|piece| piece["SpecialToken"]["id"].as_str())
            .flat_map(|token| template["special_tokens"][token]["ids"].as_array().into_iter().flatten())
            .filter_map(Json::as_u64)
            .collect();
        match ids.as_slice() {
            [] => Ok(false),
            [one] if Some(*one) == id.map(u64::from) => Ok(true),
            _ => Err(format!("the tokenizer puts {ids:?} {what} a text, which llama.cpp cannot")),
        }
    };
    Ok([is(&single[..at], bos, "before")?, is(&single[at + 1..], eos, "after")?])
}
