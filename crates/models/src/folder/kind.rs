//! The kind of model described by a config.

use serde_json::{Map, Value};

use crate::architecture::{DECODERS, ENCODERS, is_seq2seq};
use crate::config::EncoderArchitecture;

/// Kind of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModelKind {
    /// An encoder without a head.
    Encoder,
    /// An encoder with a sequence classification or regression head.
    SequenceClassifier,
    /// An encoder of pictures with a head for their class.
    ImageClassifier,
    /// An encoder with a head for every token.
    TokenClassifier,
    /// An encoder with a head for the span that answers a question.
    QuestionAnswering,
    /// An encoder with its masked language modelling head.
    MaskedLm,
    /// A language model.
    Decoder,
    /// A decoder with a sequence classification or regression head.
    DecoderClassifier,
    /// A decoder with a head for every token.
    DecoderTokenClassifier,
    /// A decoder with a head for the span that answers a question.
    DecoderQuestionAnswering,
    /// An encoder and a decoder that attends to its states.
    Seq2Seq,
}

impl ModelKind {
    /// The kind according to `model_type`, or to the class if that is missing, and to the head named by the
    /// class.
    pub(super) fn of(config: &Map<String, Value>) -> Self {
        if is_seq2seq(config) {
            return Self::Seq2Seq;
        }
        let classes = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
        let class = classes.filter_map(Value::as_str).next().unwrap_or_default();
        let model_type = config.get("model_type").and_then(Value::as_str);
        let is_decoder = match model_type {
            Some(name) if DECODERS.iter().any(|a| a.model_type == name) => true,
            Some(name) if ENCODERS.iter().flat_map(|a| a.model_types).any(|(known, _)| *known == name) => {
                false
            }
            // Unsupported: the config's own error reports it.
            _ => class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel"),
        };
        match class.rsplit_once("For").map(|(_, head)| head) {
            Some("SequenceClassification") if is_decoder => Self::DecoderClassifier,
            Some("TokenClassification") if is_decoder => Self::DecoderTokenClassifier,
            Some("QuestionAnswering") if is_decoder => Self::DecoderQuestionAnswering,
            _ if is_decoder => Self::Decoder,
            Some("SequenceClassification") => Self::SequenceClassifier,
            Some("ImageClassification") => Self::ImageClassifier,
            Some("TokenClassification") => Self::TokenClassifier,
            Some("QuestionAnswering") => Self::QuestionAnswering,
            // ELECTRA's pre-training head tells replaced tokens.
            Some("PreTraining") if class.starts_with("Electra") => Self::Encoder,
            Some("MaskedLM" | "PreTraining") => Self::MaskedLm,
            _ => Self::Encoder,
        }
    }

    /// Whether the config's `model_type` is supported; one without a type is read by its class. Of an architecture without
    /// heads (T5) the bare encoder is.
    pub(super) fn is_known(config: &Map<String, Value>) -> bool {
        let classes = config.get("architectures").and_then(Value::as_array).into_iter().flatten();
        let is_bare = classes.filter_map(Value::as_str).all(|class| class.ends_with("EncoderModel"));
        is_seq2seq(config)
            || config.get("model_type").and_then(Value::as_str).is_none_or(|name| {
                let is_named =
                    |a: &&EncoderArchitecture| a.model_types.iter().any(|(known, _)| *known == name);
                DECODERS.iter().any(|a| a.model_type == name)
                    || ENCODERS.iter().copied().any(|a| is_named(&a) && (a.has_heads || is_bare))
            })
    }

    /// Whether tokens attend only to those before them.
    pub const fn is_decoder(self) -> bool {
        self.is_headed_decoder() || matches!(self, Self::Decoder)
    }

    /// Whether it is a decoder under another head than that of a language model.
    pub const fn is_headed_decoder(self) -> bool {
        matches!(
            self,
            Self::DecoderClassifier | Self::DecoderTokenClassifier | Self::DecoderQuestionAnswering
        )
    }

    /// Its description, for messages.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Encoder => "an encoder without a head",
            Self::SequenceClassifier => "a sequence classifier",
            Self::ImageClassifier => "an image classifier",
            Self::TokenClassifier => "a token classifier",
            Self::QuestionAnswering => "a question answering model",
            Self::MaskedLm => "a masked language model",
            Self::Decoder => "a language model (decoder)",
            Self::DecoderClassifier => "a sequence classifier over a decoder",
            Self::DecoderTokenClassifier => "a token classifier over a decoder",
            Self::DecoderQuestionAnswering => "a question answering model over a decoder",
            Self::Seq2Seq => "an encoder-decoder model",
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case(json!({"model_type": "t5", "architectures": ["T5EncoderModel"]}), true)]
    #[case(json!({"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}), true)]
    #[case(json!({"model_type": "t5", "architectures": ["T5ForSequenceClassification"]}), false)]
    #[case(json!({"model_type": "bart", "architectures": ["BartForSequenceClassification"]}), false)]
    #[case(json!({"model_type": "bert", "architectures": ["BertModel"]}), true)]
    #[case(json!({"model_type": "newer"}), false)]
    fn known_models_are_told(#[case] config: Value, #[case] expect: bool) {
        assert_eq!(ModelKind::is_known(config.as_object().unwrap()), expect);
    }

    #[rstest]
    #[case(json!({"model_type": "bert"}), ModelKind::Encoder)]
    #[case(json!({"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}), ModelKind::MaskedLm)]
    #[case(json!({"model_type": "bert", "architectures": ["BertForPreTraining"]}), ModelKind::MaskedLm)]
    #[case(json!({"model_type": "distilbert", "architectures": ["DistilBertForSequenceClassification"]}), ModelKind::SequenceClassifier)]
    #[case(json!({"model_type": "bert", "architectures": ["BertForTokenClassification"]}), ModelKind::TokenClassifier)]
    #[case(json!({"model_type": "roformer", "architectures": ["RoFormerForSequenceClassification"]}), ModelKind::SequenceClassifier)]
    #[case(json!({"model_type": "bert", "architectures": ["BertForQuestionAnswering"]}), ModelKind::QuestionAnswering)]
    #[case(json!({"model_type": "roformer", "architectures": ["RoFormerForMaskedLM"]}), ModelKind::MaskedLm)]
    #[case(json!({"model_type": "roformer", "architectures": ["RoFormerModel"]}), ModelKind::Encoder)]
    #[case(json!({"model_type": "electra", "architectures": ["ElectraForPreTraining"]}), ModelKind::Encoder)]
    #[case(json!({"model_type": "electra", "architectures": ["ElectraForMaskedLM"]}), ModelKind::MaskedLm)]
    #[case(json!({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}), ModelKind::Decoder)]
    #[case(json!({"model_type": "llama"}), ModelKind::Decoder)]
    #[case(json!({"model_type": "qwen2", "architectures": ["Qwen2ForSequenceClassification"]}), ModelKind::DecoderClassifier)]
    #[case(json!({"model_type": "llama", "architectures": ["LlamaForTokenClassification"]}), ModelKind::DecoderTokenClassifier)]
    #[case(json!({"model_type": "qwen3", "architectures": ["Qwen3ForQuestionAnswering"]}), ModelKind::DecoderQuestionAnswering)]
    #[case(json!({"architectures": ["RobertaModel"]}), ModelKind::Encoder)]
    #[case(json!({"model_type": "vit", "architectures": ["ViTForImageClassification"]}), ModelKind::ImageClassifier)]
    #[case(json!({"model_type": "vit", "architectures": ["ViTModel"]}), ModelKind::Encoder)]
    #[case(json!({"model_type": "t5", "architectures": ["T5EncoderModel"]}), ModelKind::Encoder)]
    #[case(json!({"model_type": "t5", "architectures": ["T5WithLMHeadModel"]}), ModelKind::Seq2Seq)]
    #[case(json!({"model_type": "mt5", "architectures": ["MT5ForConditionalGeneration"]}), ModelKind::Seq2Seq)]
    #[case(json!({"model_type": "bart", "architectures": ["BartModel"]}), ModelKind::Seq2Seq)]
    #[case(json!({"model_type": "mbart", "is_encoder_decoder": true}), ModelKind::Seq2Seq)]
    #[case(json!({"model_type": "bart", "architectures": ["BartForSequenceClassification"]}), ModelKind::SequenceClassifier)]
    #[case(json!({"model_type": "newer", "architectures": ["NewerForCausalLM"]}), ModelKind::Decoder)]
    fn kinds_are_told(#[case] config: Value, #[case] kind: ModelKind) {
        assert_eq!(ModelKind::of(config.as_object().unwrap()), kind);
    }
}
