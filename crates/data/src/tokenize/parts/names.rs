//! Names of the classes, and of their special tokens.

use super::{Parts, Vocabulary};

/// The languages of mBART (the first 25) and mBART-50.
const LANGUAGES: [&str; 52] = [
    "ar_AR", "cs_CZ", "de_DE", "en_XX", "es_XX", "et_EE", "fi_FI", "fr_XX", "gu_IN", "hi_IN", "it_IT",
    "ja_XX", "kk_KZ", "ko_KR", "lt_LT", "lv_LV", "my_MM", "ne_NP", "nl_XX", "ro_RO", "ru_RU", "si_LK",
    "tr_TR", "vi_VN", "zh_CN", "af_ZA", "az_AZ", "bn_IN", "fa_IR", "he_IL", "hr_HR", "id_ID", "ka_GE",
    "km_KH", "mk_MK", "ml_IN", "mn_MN", "mr_IN", "pl_PL", "ps_AF", "pt_XX", "sv_SE", "sw_KE", "ta_IN",
    "te_IN", "th_TH", "tl_XX", "uk_UA", "ur_PK", "xh_ZA", "gl_ES", "sl_SI",
];

impl Parts {
    /// The class of a name without `Tokenizer`; `None` for the classes that take a file as it is.
    pub(in crate::tokenize) fn of(class: &str) -> Option<Self> {
        Some(match class {
            "Albert" => Self::Albert,
            "Bert" | "DistilBert" | "Electra" | "LayoutLM" | "Lxmert" | "MobileBert" | "SqueezeBert"
            | "DPRContextEncoder" | "DPRQuestionEncoder" | "DPRReader" => Self::Bert,
            "Blenderbot" => Self::Blenderbot,
            "Camembert" => Self::Camembert,
            "CLIP" => Self::Clip,
            "CodeLlama" => Self::CodeLlama,
            "Cohere" => Self::Cohere,
            "Deberta" => Self::Deberta,
            "DebertaV2" => Self::DebertaV2,
            "Gemma" => Self::Gemma,
            "GPT2" | "CodeGen" => Self::Gpt2,
            "GPTNeoX" => Self::GptNeoX,
            "Llama" => Self::Llama,
            "MBart" => Self::MBart,
            "MBart50" => Self::MBart50,
            "MPNet" => Self::MpNet,
            "Qwen2" => Self::Qwen2,
            "Qwen3_5" => Self::Qwen35,
            "Roberta" | "Bart" | "Longformer" | "LED" | "Mvp" => Self::Roberta,
            "T5" => Self::T5,
            "XLMRoberta" => Self::XlmRoberta,
            _ => return None,
        })
    }

    /// The kind of the class's vocabulary.
    pub(in crate::tokenize) fn vocabulary(self) -> Vocabulary {
        match self {
            Self::Bert | Self::MpNet => Vocabulary::Words,
            Self::Albert
            | Self::Camembert
            | Self::DebertaV2
            | Self::MBart
            | Self::MBart50
            | Self::T5
            | Self::XlmRoberta => Vocabulary::Pieces,
            Self::Blenderbot
            | Self::Clip
            | Self::Cohere
            | Self::Deberta
            | Self::Gpt2
            | Self::GptNeoX
            | Self::Qwen2
            | Self::Qwen35
            | Self::Roberta => Vocabulary::Bytes,
            Self::CodeLlama | Self::Gemma | Self::Llama => Vocabulary::Characters,
        }
    }

    /// The class's default special tokens.
    pub(in crate::tokenize) fn defaults(self) -> &'static [(&'static str, &'static str)] {
        const SENTENCE: &[(&str, &str)] = &[
            ("bos_token", "<s>"),
            ("eos_token", "</s>"),
            ("unk_token", "<unk>"),
            ("sep_token", "</s>"),
            ("pad_token", "<pad>"),
            ("cls_token", "<s>"),
            ("mask_token", "<mask>"),
        ];
        match self {
            Self::Albert => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("unk_token", "<unk>"),
                ("sep_token", "[SEP]"),
                ("pad_token", "<pad>"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Bert => &[
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Blenderbot | Self::Camembert | Self::MBart | Self::Roberta | Self::XlmRoberta => SENTENCE,
            Self::MBart50 => &SENTENCE[1..],
            Self::Clip => &[
                ("bos_token", "<|startoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
                ("pad_token", "<|endoftext|>"),
            ],
            Self::CodeLlama => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "<unk>"),
                ("prefix_token", "▁<PRE>"),
                ("middle_token", "▁<MID>"),
                ("suffix_token", "▁<SUF>"),
                ("eot_token", "▁<EOT>"),
                ("fill_token", "<FILL_ME>"),
            ],
            Self::Cohere => &[
                ("bos_token", "<BOS_TOKEN>"),
                ("eos_token", "<|END_OF_TURN_TOKEN|>"),
                ("unk_token", "<UNK>"),
                ("sep_token", "<SEP>"),
                ("pad_token", "<PAD>"),
                ("cls_token", "<CLS>"),
                ("mask_token", "<MASK_TOKEN>"),
            ],
            Self::Deberta | Self::DebertaV2 => &[
                ("bos_token", "[CLS]"),
                ("eos_token", "[SEP]"),
                ("unk_token", "[UNK]"),
                ("sep_token", "[SEP]"),
                ("pad_token", "[PAD]"),
                ("cls_token", "[CLS]"),
                ("mask_token", "[MASK]"),
            ],
            Self::Gemma => &[
                ("bos_token", "<bos>"),
                ("eos_token", "<eos>"),
                ("unk_token", "<unk>"),
                ("pad_token", "<pad>"),
                ("mask_token", "<mask>"),
            ],
            Self::Gpt2 => &[
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
            ],
            Self::GptNeoX => &[
                ("bos_token", "<|endoftext|>"),
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
                ("pad_token", "<|padding|>"),
            ],
            Self::Llama => &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")],
            Self::MpNet => &[
                ("bos_token", "<s>"),
                ("eos_token", "</s>"),
                ("unk_token", "[UNK]"),
                ("sep_token", "</s>"),
                ("pad_token", "<pad>"),
                ("cls_token", "<s>"),
                ("mask_token", "<mask>"),
            ],
            Self::Qwen2 | Self::Qwen35 => &[
                ("eos_token", "<|endoftext|>"),
                ("unk_token", "<|endoftext|>"),
                ("pad_token", "<|endoftext|>"),
            ],
            Self::T5 => &[("eos_token", "</s>"), ("unk_token", "<unk>"), ("pad_token", "<pad>")],
        }
    }

    /// The class's additional special tokens, unless the files list others.
    pub(in crate::tokenize) fn additional(self) -> &'static [&'static str] {
        match self {
            Self::Camembert => &["<s>NOTUSED", "</s>NOTUSED", "<unk>NOTUSED"],
            Self::MBart => &LANGUAGES[..25],
            Self::MBart50 => &LANGUAGES,
            _ => &[],
        }
    }
}
