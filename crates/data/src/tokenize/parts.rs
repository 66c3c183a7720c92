//! What the tokenizer classes of transformers 5 set around a vocabulary: normalization, splits, decoding and
//! the template. Such a class takes vocabulary, merges and, unless it has its own, the template of a
//! `tokenizer.json`, and nothing else.

mod names;

use tokenizers::decoders::byte_fallback::ByteFallback;
use tokenizers::decoders::byte_level::ByteLevel as ByteLevelDecoder;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::decoders::sequence::Sequence as Decoders;
use tokenizers::decoders::strip::Strip;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::{
    BertNormalizer, Lowercase, NFC, NFKD, NormalizerWrapper, Precompiled, Sequence as Normalizers,
    Strip as StripSpaces, StripAccents,
};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::punctuation::Punctuation;
use tokenizers::pre_tokenizers::sequence::Sequence as Splitters;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;
use tokenizers::processors::roberta::RobertaProcessing;
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Model, ModelWrapper, SplitDelimiterBehavior, Tokenizer};

use super::build::{frame_as_bert, id_of};
use super::config::{TokenizerConfig, Tokens};

/// The character that stands for a space.
const SPACE: char = '▁';
/// Splitting rule of Qwen2: single digits, line ends with the punctuation before them.
const QWEN2_PATTERN: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\
                             \\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/// That of Qwen3.5, with combining marks in words.
const QWEN3_5_PATTERN: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}|\
                               \u{20}?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
/// The characters that CLIP keeps; spaces are removed.
const CLIP_PATTERN: &str = "'s|'t|'re|'ve|'m|'ll|'d|[\\p{L}]+|[\\p{N}]|[^\\s\\p{L}\\p{N}]+";

/// End-of-word suffix of CLIP's vocabulary.
const CLIP_END: &str = "</w>";

/// The kinds of vocabularies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Vocabulary {
    /// WordPiece.
    Words,
    /// Unigram.
    Pieces,
    /// BPE over bytes.
    Bytes,
    /// BPE over characters, with byte fallback.
    Characters,
}

/// The classes of transformers that build their own tokenizer around a vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    Albert,
    Bert,
    Blenderbot,
    Camembert,
    Clip,
    CodeLlama,
    Cohere,
    Deberta,
    DebertaV2,
    Gemma,
    Gpt2,
    GptNeoX,
    Llama,
    MBart,
    MBart50,
    MpNet,
    Qwen2,
    Qwen35,
    Roberta,
    T5,
    XlmRoberta,
}

impl Parts {
    /// The class's tokenizer for a folder without tokenizer.json. `rules`: SentencePiece's compiled normalization rules;
    /// `own`: tokens that the vocabulary file itself adds.
    pub(super) fn assemble(
        self,
        vocabulary: impl Into<ModelWrapper>,
        rules: Option<Precompiled>,
        own: Vec<AddedToken>,
        config: &TokenizerConfig,
    ) -> tokenizers::Result<Tokenizer> {
        let mut tokenizer = Tokenizer::new(vocabulary);
        self.dress(&mut tokenizer, config, rules)?;
        tokenizer.add_tokens(own)?;
        let added = config.added_tokens(&tokenizer, &Tokens::new());
        tokenizer.add_tokens(added)?;
        self.frame(&mut tokenizer, config, None)?;
        Ok(tokenizer)
    }

    /// The class's tokenizer over the vocabulary of a `tokenizer.json`.
    pub(super) fn rebuild(self, file: &Tokenizer, config: &TokenizerConfig) -> tokenizers::Result<Tokenizer> {
        let mut tokenizer = Tokenizer::new(self.model(file.get_model(), config)?);
        self.dress(&mut tokenizer, config, rules(file))?;
        let own: Tokens = file.get_added_tokens_decoder().into_iter().collect();
        let added = config.added_tokens(&tokenizer, &own);
        tokenizer.add_tokens(added)?;
        if self == Self::Qwen2 || self == Self::Cohere {
            tokenizer.add_tokens(config.special_added(self == Self::Qwen2))?;
        }
        tokenizer.with_truncation(file.get_truncation().cloned())?;
        self.frame(&mut tokenizer, config, Some(file))?;
        Ok(tokenizer)
    }

    /// The class's model with the vocabulary of another.
    fn model(self, file: &ModelWrapper, config: &TokenizerConfig) -> tokenizers::Result<ModelWrapper> {
        Ok(match self.vocabulary() {
            Vocabulary::Words => WordPiece::builder()
                .vocab(vocabulary(file))
                .unk_token(config.token("unk_token").to_owned())
                .build()?
                .into(),
            Vocabulary::Pieces => {
                let ModelWrapper::Unigram(unigram) = file else {
                    let cause = match config.class_name() {
                        "" => "the model_type in config.json".to_owned(),
                        class => format!("the tokenizer_class '{class}'"),
                    };
                    return Err(format!(
                        "{cause} needs a Unigram model, and this file has another kind; name PreTrainedTokenizerFast as \
                         tokenizer_class to take the file as it is"
                    )
                    .into());
                };
                let vocab: Vec<(String, f64)> = unigram.iter().cloned().collect();
                let unk_id = self.unknown(&vocab, config);
                Unigram::from(vocab, Some(unk_id), false)?.into()
            }
            Vocabulary::Bytes | Vocabulary::Characters => self.of_pairs(pairs(file)?, config).into(),
        })
    }

    /// The id of the unknown token in a Unigram vocabulary.
    pub(super) fn unknown(self, vocab: &[(String, f64)], config: &TokenizerConfig) -> usize {
        match self {
            Self::T5 => 2,
            Self::MBart | Self::MBart50 | Self::XlmRoberta => 3,
            Self::Camembert => {
                let unk = config.token("unk_token");
                vocab.iter().position(|(text, _)| text == unk).unwrap_or(0)
            }
            // A later default where the vocabulary has no such token of score 0.
            Self::DebertaV2 => {
                let unk = config.token("unk_token");
                let found = vocab.iter().position(|(text, score)| text == unk && *score == 0.0);
                found.or(config.unk_id).unwrap_or(1)
            }
            _ => 1,
        }
    }

    /// The class's settings of a BPE.
    pub(super) fn of_pairs(self, mut model: BPE, config: &TokenizerConfig) -> BPE {
        let has_fallback = self.vocabulary() == Vocabulary::Characters;
        let has_unk = matches!(self, Self::Clip | Self::CodeLlama | Self::Gemma);
        model.dropout = None;
        model.unk_token = has_unk.then(|| config.token("unk_token").to_owned());
        model.end_of_word_suffix = (self == Self::Clip).then(|| CLIP_END.to_owned());
        model.fuse_unk = has_fallback;
        model.byte_fallback = has_fallback;
        model.ignore_merges = false;
        model
    }

    /// Sets normalizer, splits and decoder; `rules` are compiled normalization rules of SentencePiece.
    pub(super) fn dress(
        self,
        tokenizer: &mut Tokenizer,
        config: &TokenizerConfig,
        rules: Option<Precompiled>,
    ) -> tokenizers::Result<()> {
        let is_spaced = |default: bool| config.add_prefix_space.unwrap_or(default);
        let regex = |pattern: &str| SplitPattern::Regex(pattern.to_owned());
        let bytes = ByteLevel::default().add_prefix_space(is_spaced(self == Self::Blenderbot));
        match self {
            Self::Bert | Self::MpNet => {
                tokenizer.with_normalizer(Some(BertNormalizer::new(
                    true,
                    config.tokenize_chinese_chars.unwrap_or(true),
                    config.strip_accents,
                    config.do_lower_case.unwrap_or(true),
                )))?;
                tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
                tokenizer.with_decoder(Some(WordPieceDecoder::default()));
            }
            Self::Blenderbot | Self::Deberta | Self::Gpt2 | Self::Roberta => {
                tokenizer.with_pre_tokenizer(Some(bytes));
                tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
            }
            Self::GptNeoX => {
                tokenizer.with_normalizer(Some(NFC))?;
                tokenizer.with_pre_tokenizer(Some(bytes.trim_offsets(config.trim_offsets.unwrap_or(true))));
                tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
            }
            Self::Cohere => {
                tokenizer.with_normalizer(Some(NFC))?;
                let parts = vec![Digits::new(true).into(), bytes.into()];
                tokenizer.with_pre_tokenizer(Some(Splitters::new(parts)));
                tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
            }
            Self::Qwen2 | Self::Qwen35 => {
                tokenizer.with_normalizer(Some(NFC))?;
                let pattern = if self == Self::Qwen2 { QWEN2_PATTERN } else { QWEN3_5_PATTERN };
                let split = Split::new(regex(pattern), SplitDelimiterBehavior::Isolated, false)?;
                let parts = vec![split.into(), bytes.use_regex(false).into()];
                tokenizer.with_pre_tokenizer(Some(Splitters::new(parts)));
                tokenizer.with_decoder(Some(ByteLevelDecoder::default()));
            }
            Self::Clip => {
                let spaces = Replace::new(ReplacePattern::Regex("\\s+".into()), " ")?;
                let parts = vec![NFC.into(), spaces.into(), Lowercase.into()];
                tokenizer.with_normalizer(Some(Normalizers::new(parts)))?;
                let split = Split::new(regex(CLIP_PATTERN), SplitDelimiterBehavior::Removed, true)?;
                let parts = vec![split.into(), bytes.add_prefix_space(false).into()];
                tokenizer.with_pre_tokenizer(Some(Splitters::new(parts)));
                let ends = Replace::new(CLIP_END, " ")?;
                let outer = Replace::new(ReplacePattern::Regex(r"\A\s+|\s+\z".into()), "")?;
                let parts = vec![ByteLevelDecoder::default().into(), ends.into(), outer.into()];
                tokenizer.with_decoder(Some(Decoders::new(parts)));
            }
            Self::CodeLlama | Self::Llama => {
                let scheme = match (is_spaced(true), config.legacy.unwrap_or(false) && self == Self::Llama) {
                    (false, _) => PrependScheme::Never,
                    (true, true) => PrependScheme::Always,
                    (true, false) => PrependScheme::First,
                };
                tokenizer.with_pre_tokenizer(Some(Metaspace::new(SPACE, scheme, false)));
                tokenizer.with_decoder(Some(byte_decoder(is_spaced(true) || self == Self::CodeLlama)?));
            }
            Self::Gemma => {
                tokenizer.with_normalizer(Some(Replace::new(" ", SPACE.to_string())?))?;
                let space = SplitPattern::String(" ".to_owned());
                let split = Split::new(space, SplitDelimiterBehavior::MergedWithPrevious, false)?;
                tokenizer.with_pre_tokenizer(Some(split));
                tokenizer.with_decoder(Some(byte_decoder(false)?));
            }
            Self::Albert | Self::Camembert | Self::T5 | Self::XlmRoberta => {
                let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
                if self == Self::Albert {
                    normalizers.extend([Replace::new("``", "\"")?.into(), Replace::new("''", "\"")?.into()]);
                    if !config.keep_accents.unwrap_or(false) {
                        normalizers.extend([NFKD.into(), StripAccents.into()]);
                    }
                    if config.do_lower_case.unwrap_or(true) {
                        normalizers.push(Lowercase.into());
                    }
                }
                normalizers.extend(rules.map(NormalizerWrapper::from));
                if !normalizers.is_empty() {
                    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
                }
                let is_spaced = is_spaced(true) || self == Self::T5;
                let scheme = if is_spaced { PrependScheme::Always } else { PrependScheme::Never };
                let spaces = || Metaspace::new(SPACE, scheme, true);
                let parts = vec![WhitespaceSplit.into(), spaces().into()];
                tokenizer.with_pre_tokenizer(Some(Splitters::new(parts)));
                tokenizer.with_decoder(Some(spaces()));
            }
            Self::MBart | Self::MBart50 => {
                let spaces = || Metaspace::new(SPACE, PrependScheme::Always, true);
                if self == Self::MBart {
                    let parts = vec![WhitespaceSplit.into(), spaces().into()];
                    tokenizer.with_pre_tokenizer(Some(Splitters::new(parts)));
                } else {
                    let mut normalizers: Vec<NormalizerWrapper> = rules.into_iter().map(Into::into).collect();
                    normalizers.push(Replace::new(ReplacePattern::Regex(" {2,}".into()), " ")?.into());
                    tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
                    tokenizer.with_pre_tokenizer(Some(spaces()));
                }
                tokenizer.with_decoder(Some(spaces()));
            }
            // transformers 5 takes the pieces of the model and none of its rules.
            Self::DebertaV2 => {
                let mut normalizers: Vec<NormalizerWrapper> = Vec::new();
                if config.do_lower_case.unwrap_or(false) {
                    normalizers.push(Lowercase.into());
                }
                let spaces = ReplacePattern::Regex(r"\s{2,}|[\n\r\t]".to_owned());
                normalizers.extend([
                    Replace::new(spaces, " ")?.into(),
                    NFC.into(),
                    StripSpaces::new(false, true).into(),
                ]);
                tokenizer.with_normalizer(Some(Normalizers::new(normalizers)))?;
                let scheme = if is_spaced(true) { PrependScheme::Always } else { PrependScheme::First };
                let spaces = || Metaspace::new(SPACE, scheme, true);
                let mut splitters: Vec<PreTokenizerWrapper> = Vec::new();
                if config.split_by_punct.unwrap_or(false) {
                    splitters.push(Punctuation::new(SplitDelimiterBehavior::Isolated).into());
                }
                splitters.push(spaces().into());
                tokenizer.with_pre_tokenizer(Some(Splitters::new(splitters)));
                tokenizer.with_decoder(Some(spaces()));
            }
        }
        Ok(())
    }

    /// Sets the post-processor: the class's, else the one in tokenizer.json. `add_bos_token` and `add_eos_token` apply to
    /// folders without a tokenizer.json.
    pub(super) fn frame(
        self,
        tokenizer: &mut Tokenizer,
        config: &TokenizerConfig,
        file: Option<&Tokenizer>,
    ) -> tokenizers::Result<()> {
        let around = |tokenizer: &Tokenizer, [first, last]: [&str; 2]| -> tokenizers::Result<_> {
            let [first, last] = [first, last].map(|role| config.token(role).to_owned());
            let ids = (id_of(tokenizer, &first)?, id_of(tokenizer, &last)?);
            Ok([(first, ids.0), (last, ids.1)])
        };
        match self {
            Self::Bert | Self::DebertaV2 => frame_as_bert(tokenizer, config),
            Self::Clip | Self::MpNet | Self::Roberta => {
                let roles =
                    if self == Self::Clip { ["bos_token", "eos_token"] } else { ["cls_token", "sep_token"] };
                let [first, last] = around(tokenizer, roles)?;
                let (trims, spaced) = match self {
                    Self::Roberta => {
                        (config.trim_offsets.unwrap_or(true), config.add_prefix_space.unwrap_or(false))
                    }
                    _ => (self == Self::MpNet, false),
                };
                let processing =
                    RobertaProcessing::new(last, first).trim_offsets(trims).add_prefix_space(spaced);
                tokenizer.with_post_processor(Some(processing));
                Ok(())
            }
            Self::Camembert | Self::Deberta | Self::XlmRoberta => {
                let roles = if self == Self::Deberta {
                    ["cls_token", "sep_token"]
                } else {
                    ["bos_token", "eos_token"]
                };
                let [first, last] = around(tokenizer, roles)?;
                let (f, l) = (&first.0, &last.0);
                let template = TemplateProcessing::builder()
                    .try_single(format!("{f} $A {l}"))?
                    .try_pair(format!("{f} $A {l} {l} $B {l}"))?
                    .special_tokens(vec![first.clone(), last.clone()])
                    .build()?;
                tokenizer.with_post_processor(Some(template));
                Ok(())
            }
            Self::T5 => {
                let eos = config.token("eos_token").to_owned();
                let template = TemplateProcessing::builder()
                    .try_single(format!("$A {eos}"))?
                    .try_pair(format!("$A {eos} $B {eos}"))?
                    .special_tokens(vec![(eos.clone(), id_of(tokenizer, &eos)?)])
                    .build()?;
                tokenizer.with_post_processor(Some(template));
                Ok(())
            }
            Self::MBart | Self::MBart50 => {
                let eos = config.token("eos_token").to_owned();
                let language = config.source_language().to_owned();
                let around = |texts: &str| match self {
                    Self::MBart => format!("{texts} {eos} {language}"),
                    _ => format!("{language} {texts} {eos}"),
                };
                let ids = (id_of(tokenizer, &eos)?, config.language_id(tokenizer, "src_lang", &language)?);
                let template = TemplateProcessing::builder()
                    .try_single(around("$A"))?
                    .try_pair(around("$A $B"))?
                    .special_tokens(vec![(eos.clone(), ids.0), (language.clone(), ids.1)])
                    .build()?;
                tokenizer.with_post_processor(Some(template));
                Ok(())
            }
            Self::Albert if file.is_none_or(|file| file.get_post_processor().is_none()) => {
                frame_as_bert(tokenizer, config)
            }
            _ => {
                let default = [self == Self::CodeLlama, false];
                let stated =
                    [config.add_bos_token, config.add_eos_token].map(|it| it.filter(|_| file.is_none()));
                let is_stated = default[0] || stated.iter().any(Option::is_some);
                match file.and_then(|file| file.get_post_processor()) {
                    Some(stored) if !is_stated && self != Self::GptNeoX => {
                        tokenizer.with_post_processor(Some(stored.clone()));
                        Ok(())
                    }
                    _ => {
                        let [bos, eos] = [0, 1].map(|side| stated[side].unwrap_or(default[side]));
                        frame_by_roles(tokenizer, config, bos, eos)
                    }
                }
            }
        }
    }
}

/// `BOS A EOS`, and the same around the second text; without the token that is not wanted or not named.
fn frame_by_roles(
    tokenizer: &mut Tokenizer,
    config: &TokenizerConfig,
    bos: bool,
    eos: bool,
) -> tokenizers::Result<()> {
    let token = |wanted: bool, role: &str| {
        Some(config.token(role)).filter(|token| wanted && !token.is_empty()).map(str::to_owned)
    };
    let (bos, eos) = (token(bos, "bos_token"), token(eos, "eos_token"));
    let part = |text: &str, segment: usize| -> String {
        let token = |token: &Option<String>| token.as_ref().map(|token| format!("{token}:{segment} "));
        let (bos, eos) = (token(&bos).unwrap_or_default(), token(&eos).unwrap_or_default());
        format!("{bos}{text}:{segment} {eos}").trim().to_owned()
    };
    let special = [&bos, &eos].into_iter().flatten();
    let special = special.map(|token| Ok((token.clone(), id_of(tokenizer, token)?)));
    let template = TemplateProcessing::builder()
        .try_single(part("$A", 0))?
        .try_pair(format!("{} {}", part("$A", 0), part("$B", 1)))?
        .special_tokens(special.collect::<tokenizers::Result<Vec<_>>>()?)
        .build()?;
    tokenizer.with_post_processor(Some(template));
    Ok(())
}

/// From pieces with byte fallback to text; without the first space if `strips`.
fn byte_decoder(strips: bool) -> tokenizers::Result<Decoders> {
    let mut decoders =
        vec![Replace::new(SPACE.to_string(), " ")?.into(), ByteFallback::new().into(), Fuse::new().into()];
    if strips {
        decoders.push(Strip::new(' ', 1, 0).into());
    }
    Ok(Decoders::new(decoders))
}

/// The ids of a model's tokens.
fn vocabulary(model: &ModelWrapper) -> Vocab {
    model.get_vocab().into_iter().collect()
}

/// The byte pairs of a model, none if it is of another kind.
fn pairs(file: &ModelWrapper) -> tokenizers::Result<BPE> {
    let ModelWrapper::BPE(model) = file else {
        return BPE::builder().vocab_and_merges(vocabulary(file), Merges::new()).build();
    };
    if model.continuing_subword_prefix.as_deref().unwrap_or_default().is_empty() {
        return Ok(model.clone());
    }
    // The prefix takes part in the merges, and no class has one.
    let value = serde_json::to_value(model)?;
    let merges: Merges = serde_json::from_value(value["merges"].clone())?;
    BPE::builder().vocab_and_merges(vocabulary(file), merges).build()
}

/// The compiled rules in a file's normalizer.
fn rules(file: &Tokenizer) -> Option<Precompiled> {
    let parts = match file.get_normalizer()? {
        NormalizerWrapper::Sequence(parts) => parts.as_ref(),
        other => std::slice::from_ref(other),
    };
    parts.iter().find_map(|part| match part {
        NormalizerWrapper::Precompiled(rules) => Some(rules.clone()),
        _ => None,
    })
}
