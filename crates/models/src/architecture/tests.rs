//! Reading configs of encoders and decoders.

use rstest::rstest;
use serde_json::{Map, Value};

use super::*;
use crate::config::Activation;
use lowrank_kernels::Gelu;

fn config(changes: &str) -> std::result::Result<EncoderConfig, String> {
    let mut base: Map<String, Value> = serde_json::from_str(
        r#"{"model_type":"bert","vocab_size":100,"hidden_size":32,"num_hidden_layers":2,
            "num_attention_heads":4,"intermediate_size":64}"#,
    )
    .unwrap();
    base.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
    EncoderConfig::parse(base)
}

#[test]
fn defaults_are_those_of_transformers() {
    let c = config("{}").unwrap();
    assert_eq!((c.max_tokens(), c.type_vocab_size, c.norm_eps), (512, 2, 1e-12));
    assert_eq!(c.activation, Activation::Gelu(Gelu::Erf));
    assert_eq!(c.labels, ["LABEL_0", "LABEL_1"]);
    assert!(!c.regression);
}

#[test]
fn roberta_counts_positions_from_the_padding() {
    let c = config(r#"{"model_type":"roberta","max_position_embeddings":514,"pad_token_id":1}"#).unwrap();
    assert_eq!((c.position_offset, c.max_tokens()), (2, 512));
}

#[rstest]
#[case(r#"{"model_type":"bart"}"#, "model_type 'bart' is not supported")]
#[case(r#"{"hidden_act":"mish"}"#, "hidden_act 'mish' is not supported")]
#[case(r#"{"hidden_size":30}"#, "not a multiple of the 4 attention heads")]
#[case(r#"{"num_hidden_layers":0}"#, "num_hidden_layers = 0 is out of range")]
#[case(r#"{"vocab_size":99999999999}"#, "vocab_size = 99999999999 is out of range")]
#[case(r#"{"hidden_size":"wide"}"#, "hidden_size = \"wide\"")]
#[case(r#"{"hidden_dropout_prob":1.5}"#, "hidden_dropout_prob = 1.5")]
#[case(r#"{"position_embedding_type":"relative_key"}"#, "relative_key")]
#[case(r#"{"id2label":{"0":"a","2":"b"}}"#, "id2label has the key '2'")]
#[case(r#"{"model_type":"roberta","pad_token_id":511}"#, "no position")]
fn what_cannot_be_run_is_refused(#[case] changes: &str, #[case] message: &str) {
    let error = config(changes).unwrap_err();
    assert!(error.contains(message), "{error}");
}

#[test]
fn labels_are_written_back() {
    let c = config("{}").unwrap().with_labels(vec!["no".into(), "yes".into()], false);
    let again = EncoderConfig::parse(c.raw.clone()).unwrap();
    assert_eq!(again.labels, ["no", "yes"]);
    let score = c.with_labels(vec!["score".into()], true);
    assert!(EncoderConfig::parse(score.raw).unwrap().regression);
}
