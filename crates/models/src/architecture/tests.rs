//! Reading configs of encoders, of encoder-decoders, and what all configs share.

mod decoders;

use rstest::rstest;
use serde_json::{Map, Value, json};

use super::*;
use crate::config::{Activation, DistanceBuckets, Problem, RopeScaling};
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

/// The least that a decoder's config must say, under Llama's names, and changes.
fn decoder_config(model_type: &str, changes: &str) -> std::result::Result<DecoderConfig, String> {
    let mut base: Map<String, Value> = serde_json::from_str(
        r#"{"vocab_size":9,"hidden_size":32,"num_hidden_layers":4,"num_attention_heads":4,"intermediate_size":16}"#,
    )
    .unwrap();
    base.insert("model_type".into(), model_type.into());
    base.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
    DecoderConfig::parse(base)
}

#[test]
fn defaults_are_those_of_transformers() {
    let c = config("{}").unwrap();
    assert_eq!((c.max_tokens(), c.type_vocab_size, c.norm_eps), (512, 2, 1e-12));
    assert_eq!(c.activation, Activation::Gelu(Gelu::Erf));
    assert_eq!(c.labels, ["LABEL_0", "LABEL_1"]);
    assert_eq!(c.problem, Problem::SingleLabel);
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
#[case(r#"{"model_type":"gte","position_embedding_type":"alibi"}"#, "'alibi' is not supported")]
#[case(r#"{"per_layer_config":{"1":{"layer_norm_eps":0.1}}}"#, "per_layer_config is not supported")]
#[case(r#"{"id2label":{"0":"a","2":"b"}}"#, "id2label has the key '2'")]
#[case(r#"{"num_labels":16777216}"#, "num_labels = 16777216 is out of range")]
#[case(r#"{"id2label":{"0":"a","00":"b"}}"#, "id2label has the key '00'")]
#[case(r#"{"model_type":"roberta","pad_token_id":511}"#, "no position")]
#[case(r#"{"model_type":"modernbert","classifier_pooling":"max"}"#, "classifier_pooling 'max'")]
#[case(r#"{"model_type":"modernbert","norm_eps":-1}"#, "norm_eps = -1")]
#[case(r#"{"model_type":"mpnet","relative_attention_num_buckets":16}"#, "expected 32")]
#[case(r#"{"model_type":"mpnet","max_position_embeddings":2}"#, "no position")]
#[case(r#"{"model_type":"deberta-v2","pos_att_type":["c2c"]}"#, "pos_att_type: 'c2c'")]
#[case(r#"{"model_type":"deberta-v2","conv_kernel_size":3,"conv_groups":2}"#, "conv_groups = 2")]
#[case(r#"{"model_type":"deberta-v2","conv_kernel_size":4}"#, "conv_kernel_size = 4")]
#[case(r#"{"model_type":"deberta-v2","embedding_size":16}"#, "embedding_size = 16")]
#[case(
    r#"{"model_type":"deberta-v2","relative_attention":true,"position_buckets":1}"#,
    "position_buckets = 1"
)]
#[case(r#"{"model_type":"deberta-v2","relative_attention":true,"norm_rel_ebd":"rms"}"#, "norm_rel_ebd 'rms'")]
#[case(r#"{"model_type":"nomic_bert","prenorm":true}"#, "prenorm = true")]
#[case(r#"{"model_type":"nomic_bert","rotary_scaling_factor":2}"#, "rotary_scaling_factor = 2")]
#[case(r#"{"model_type":"roformer","rotary_value":true}"#, "rotary_value")]
#[case(
    r#"{"model_type":"t5","architectures":["T5ForConditionalGeneration"]}"#,
    "is not that of an encoder alone; encoder-decoder models are supported by generate"
)]
#[case(r#"{"model_type":"mt5","relative_attention_num_buckets":7}"#, "relative_attention_num_buckets = 7")]
#[case(r#"{"model_type":"t5","feed_forward_proj":"gated-no"}"#, "feed_forward_proj 'no'")]
#[case(r#"{"model_type":"nomic_bert","partial_rotary_factor":0.5}"#, "partial_rotary_factor = 0.5")]
#[case(
    r#"{"model_type":"albert","num_hidden_layers":4096,"num_hidden_groups":4096,"inner_group_num":4096}"#,
    "at most 4096 layers in all"
)]
fn what_cannot_be_run_is_refused(#[case] changes: &str, #[case] message: &str) {
    let error = config(changes).unwrap_err();
    assert!(error.contains(message), "{error}");
}

fn seq2seq(changes: &str) -> std::result::Result<Seq2SeqConfig, String> {
    let mut base: Map<String, Value> = serde_json::from_str(
        r#"{"model_type":"t5","vocab_size":100,"d_model":32,"num_layers":3,"num_heads":4,"d_kv":6,"d_ff":64,
            "encoder_layers":2,"decoder_layers":5,"encoder_attention_heads":4,"decoder_attention_heads":2,
            "encoder_ffn_dim":40,"decoder_ffn_dim":48}"#,
    )
    .unwrap();
    base.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
    Seq2SeqConfig::parse(base)
}

#[test]
fn both_halves_are_read() {
    let c = seq2seq(r#"{"num_decoder_layers":null,"pad_token_id":7}"#).unwrap();
    assert_eq!((c.decoder.n_layers, c.decoder.first_layer, c.decoder.head_dim, c.start), (3, 3, 6, Some(7)));
    assert_eq!(c.decoder.logit_scale, 32f64.powf(-0.5));
    assert_eq!(seq2seq(r#"{"num_decoder_layers":1}"#).unwrap().decoder.n_layers, 1);
    assert_eq!(seq2seq(r#"{"tie_word_embeddings":false}"#).unwrap().decoder.logit_scale, 1.0);
    let saved = seq2seq(r#"{"tie_word_embeddings":true,"scale_decoder_outputs":false}"#).unwrap();
    assert_eq!(saved.decoder.logit_scale, 1.0);
    assert_eq!(seq2seq(r#"{"model_type":"mt5"}"#).unwrap().decoder.logit_scale, 1.0);
    let c = seq2seq(r#"{"model_type":"bart","scale_embedding":true,"max_position_embeddings":9}"#).unwrap();
    assert_eq!((c.encoder.n_layers, c.decoder.n_layers, c.limits()), (2, 5, [Some(9); 2]));
    assert_eq!((c.encoder.n_heads, c.decoder.n_heads, c.start), (4, 2, None));
    assert_eq!(c.encoder.embedding_scale, c.decoder.embedding_scale);
    assert_eq!(seq2seq(r#"{"model_type":"mbart"}"#).unwrap().start, None);
}

/// Options of the first published models at the values that all have.
#[test]
fn old_keys_of_bart_are_accepted() {
    let keys = r#""extra_pos_embeddings":2,"normalize_embedding":true,"static_position_embeddings":false"#;
    seq2seq(&format!(r#"{{"model_type":"bart","normalize_before":false,{keys}}}"#)).unwrap();
    seq2seq(&format!(
        r#"{{"model_type":"mbart","normalize_before":true,"add_final_layer_norm":true,{keys}}}"#
    ))
    .unwrap();
}

/// Of `T5Config` and `MT5Config` in transformers 5.23: the two keys that it derives hold where a file has them.
#[rstest]
#[case("{}", Activation::Relu, false)]
#[case(r#"{"model_type":"mt5"}"#, Activation::Gelu(Gelu::Tanh), true)]
#[case(r#"{"feed_forward_proj":"gated-silu"}"#, Activation::Silu, true)]
#[case(r#"{"feed_forward_proj":"gated-gelu","dense_act_fn":"silu"}"#, Activation::Silu, true)]
#[case(r#"{"feed_forward_proj":"gated-gelu","is_gated_act":false}"#, Activation::Gelu(Gelu::Tanh), false)]
#[case(r#"{"dense_act_fn":"gelu_new","is_gated_act":true}"#, Activation::Gelu(Gelu::Tanh), true)]
#[case(r#"{"feed_forward_proj":"relu","dense_act_fn":"gelu"}"#, Activation::Gelu(Gelu::Erf), false)]
fn the_feed_forward_part_of_t5(#[case] keys: &str, #[case] activation: Activation, #[case] is_gated: bool) {
    let c = seq2seq(keys).unwrap();
    assert_eq!([c.encoder.activation, c.decoder.activation], [activation; 2]);
    let gates = [c.encoder.architecture.names.gate, c.decoder.architecture.names.gate];
    assert_eq!(gates.map(|gate| gate.is_some()), [is_gated; 2]);
}

#[rstest]
#[case(r#"{"model_type":"pegasus"}"#, "model_type 'pegasus' is not supported for encoder-decoder models")]
#[case(r#"{"num_decoder_layers":0}"#, "num_decoder_layers = 0 is out of range")]
#[case(r#"{"feed_forward_proj":"gated-no"}"#, "feed_forward_proj 'no'")]
#[case(r#"{"is_encoder_decoder":false}"#, "is_encoder_decoder = false")]
#[case(r#"{"model_type":"bart","d_kv":null,"decoder_attention_heads":3}"#, "not a multiple of")]
#[case(r#"{"model_type":"bart","normalize_before":true}"#, "normalize_before = true")]
#[case(r#"{"model_type":"bart","dropout":2}"#, "dropout = 2")]
#[case(
    r#"{"model_type":"bart","extra_pos_embeddings":1}"#,
    "extra_pos_embeddings = 1 is not supported; expected 2"
)]
#[case(
    r#"{"model_type":"bart","extra_pos_embeddings":true}"#,
    "extra_pos_embeddings = true; expected a finite number"
)]
#[case(r#"{"model_type":"mbart","normalize_embedding":false}"#, "normalize_embedding = false")]
#[case(r#"{"model_type":"mbart","static_position_embeddings":true}"#, "static_position_embeddings = true")]
#[case(r#"{"decoder_start_token_id":[1,2]}"#, "decoder_start_token_id = [1, 2]")]
#[case(r#"{"dense_act_fn":"no"}"#, "dense_act_fn 'no'")]
fn halves_that_cannot_be_run_are_refused(#[case] changes: &str, #[case] message: &str) {
    let error = seq2seq(changes).unwrap_err();
    assert!(error.contains(message), "{error}");
}

#[test]
fn the_table_of_architectures_has_every_encoder() {
    // A second table, of what is tested, follows a comment.
    let table = include_str!("../../../../docs/architectures.md").split("<!--").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| `")).collect();
    for (model_type, _) in ENCODERS.iter().flat_map(|architecture| architecture.model_types) {
        let names =
            |row: &&&str| row.split('|').nth(1).is_some_and(|cell| cell.contains(&format!("`{model_type}`")));
        assert_eq!(rows.iter().filter(names).count(), 1, "{model_type}");
    }
}

/// Older configs write the terms as one string, and numbers below 1 for none.
#[test]
fn terms_of_deberta_are_read_in_both_ways() {
    let v3 = |terms: &str| {
        config(&format!(
            r#"{{"model_type":"deberta-v2","relative_attention":true,"pos_att_type":{terms},"position_buckets":256,
                "max_relative_positions":-1,"share_att_key":true,"norm_rel_ebd":"layer_norm"}}"#
        ))
        .unwrap()
    };
    let (listed, written) = (v3(r#"["p2c","c2p"]"#), v3(r#""p2c|c2p""#));
    assert_eq!(listed.relative, written.relative);
    assert_eq!(
        listed.relative.unwrap().buckets,
        DistanceBuckets::Centred { span: 256, logarithmic: Some(512) }
    );
    assert_eq!((listed.score_scale, listed.norm_eps, listed.type_vocab_size), (1.0 / 24f32.sqrt(), 1e-7, 0));
}

#[test]
fn labels_are_written_back() {
    let c = ClassifierConfig::from(config("{}").unwrap());
    let c = c.with_labels(vec!["no".into(), "yes".into()], false);
    let again = ClassifierConfig::parse(c.raw().clone()).unwrap();
    assert_eq!(again.labels, ["no", "yes"]);
    let score = c.with_labels(vec!["score".into()], true);
    assert!(ClassifierConfig::parse(score.raw().clone()).unwrap().is_regression());
}

#[test]
fn labels_may_be_numbers_and_problems_are_three() {
    let c = config(r#"{"id2label":{"0":0,"1":1.5}}"#).unwrap();
    assert_eq!(c.labels, ["0", "1.5"]);
    let c = config(r#"{"problem_type":"multi_label_classification"}"#).unwrap();
    assert_eq!(c.problem, Problem::MultiLabel);
}

#[test]
fn no_token_is_padding() {
    let c = config(r#"{"model_type":"roberta","pad_token_id":-1,"max_position_embeddings":12}"#).unwrap();
    assert_eq!((c.position_offset, c.max_tokens()), (0, 12));
    assert!(config(r#"{"pad_token_id":-1}"#).is_ok());
}

#[test]
fn a_config_without_a_type_is_what_its_class_says() {
    let of = |class: &str| {
        let mut raw = config("{}").unwrap().raw;
        raw.remove("model_type");
        raw.insert("architectures".into(), vec![class].into());
        EncoderConfig::parse(raw).map(|c| c.architecture.model_types[0].0)
    };
    assert_eq!(of("RobertaModel").unwrap(), "roberta");
    assert_eq!(of("BertForMaskedLM").unwrap(), "bert");
    assert!(of("ElephantModel").unwrap_err().contains("'ElephantModel'"));
}

#[rstest]
#[case(json!({"quant_method": "hqq"}), "hqq")]
#[case(json!({"quant_method": "fp8"}), "FP8")]
fn quantized_checkpoints_are_called_so(#[case] section: Value, #[case] name: &str) {
    let mut raw = config("{}").unwrap().raw;
    raw.insert("quantization_config".into(), section);
    let error = EncoderConfig::parse(raw).unwrap_err();
    assert!(error.contains(name) && error.contains("quantization_config"), "{error}");
}

/// Dropouts of the heads over sequences and over tokens, and that on the input of the former; by the sources of transformers.
#[rstest]
#[case("bert", r#"{"hidden_dropout_prob":0.2}"#, [0.2, 0.2, 0.0])]
#[case("bert", r#"{"hidden_dropout_prob":0.2,"classifier_dropout":0.3}"#, [0.3, 0.3, 0.0])]
#[case("roberta", r#"{"hidden_dropout_prob":0.2,"classifier_dropout":0.3}"#, [0.3, 0.3, 0.3])]
#[case("deberta-v2", r#"{"hidden_dropout_prob":0.2,"cls_dropout":0.3,"classifier_dropout":0.4}"#, [0.3, 0.2, 0.0])]
#[case("deberta-v2", r#"{"hidden_dropout_prob":0.2,"classifier_dropout":0.4}"#, [0.2, 0.2, 0.0])]
#[case("distilbert", r#"{"dropout":0.3,"classifier_dropout":0.4}"#, [0.2, 0.3, 0.0])]
#[case("distilbert", r#"{"dropout":0.3,"seq_classif_dropout":0.4}"#, [0.4, 0.3, 0.0])]
#[case("roformer", r#"{"hidden_dropout_prob":0.2,"classifier_dropout":0.4}"#, [0.2, 0.2, 0.2])]
#[case("mpnet", r#"{"hidden_dropout_prob":0.2,"classifier_dropout":0.4}"#, [0.2, 0.2, 0.2])]
#[case("albert", r#"{"classifier_dropout":0.4}"#, [0.1, 0.1, 0.0])]
#[case("albert", r#"{"classifier_dropout_prob":0.3}"#, [0.3, 0.3, 0.0])]
#[case("modernbert", r#"{"classifier_dropout":0.3}"#, [0.3, 0.3, 0.0])]
fn heads_have_their_dropouts(#[case] model_type: &str, #[case] changes: &str, #[case] expected: [f64; 3]) {
    let mut changes: Map<String, Value> = serde_json::from_str(changes).unwrap();
    changes.insert("model_type".into(), model_type.into());
    let c = config(&Value::from(changes).to_string()).unwrap();
    assert_eq!([c.classifier_dropout, c.token_dropout, c.head.input_dropout], expected);
}

/// As transformers 4 reads it.
#[test]
fn modernbert_without_a_local_theta_rotates_all_layers_alike() {
    let thetas = |changes: Value| {
        let mut all = json!({"model_type": "modernbert", "global_rope_theta": 5000.0});
        all.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let config = config(&all.to_string()).unwrap();
        [0, 1].map(|kind| config.ropes[kind].theta)
    };
    assert_eq!(thetas(json!({})), [5000.0, 10_000.0]);
    assert_eq!(thetas(json!({"local_rope_theta": null})), [5000.0, 5000.0]);
    let own = json!({"sliding_attention": {"rope_type": "default", "rope_theta": 30.0}});
    assert_eq!(thetas(json!({"local_rope_theta": null, "rope_parameters": own})), [5000.0, 30.0]);
}

#[test]
fn masked_lm_heads_have_their_activations() {
    let head = |model_type: &str| {
        let changes = json!({"model_type": model_type, "hidden_act": "relu", "activation": "relu"});
        config(&changes.to_string()).unwrap().masked_lm.activation
    };
    let fixed = ["roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "mpnet", "gte", "electra"];
    for model_type in fixed.into_iter().chain(["jina_embeddings_v3"]) {
        assert_eq!(head(model_type), Activation::Gelu(Gelu::Erf), "{model_type}");
    }
    for model_type in ["bert", "albert", "deberta-v2", "distilbert", "roformer", "nomic_bert", "ernie"] {
        assert_eq!(head(model_type), Activation::Relu, "{model_type}");
    }
}

#[test]
fn albert_and_distilbert_have_defaults_of_their_own() {
    let albert = config(r#"{"model_type":"albert"}"#).unwrap();
    assert_eq!(albert.activation, Activation::Gelu(Gelu::Tanh));
    assert_eq!((albert.dropouts.embeddings, albert.dropouts.attention), (0.0, 0.0));
    let distilbert = config(r#"{"model_type":"distilbert","layer_norm_eps":0.1}"#).unwrap();
    assert_eq!(distilbert.norm_eps, 1e-12);
}

#[rstest]
#[case(json!({"model_type": "llava", "text_config": {"model_type": "llama"}}), "(text_config.model_type = 'llama') as a separate folder")]
#[case(json!({"model_type": "mistral3", "text_config": {"model_type": "newer"}}), "'newer') is not supported either")]
#[case(json!({"model_type": "qwen2_vl", "vision_config": {}}), "the model reads more than text")]
fn models_of_several_parts_are_called_so(#[case] raw: Value, #[case] part: &str) {
    let raw = raw.as_object().unwrap();
    for error in
        [DecoderConfig::parse(raw.clone()).unwrap_err(), EncoderConfig::parse(raw.clone()).unwrap_err()]
    {
        assert!(error.contains(part) && error.contains("reads more than text"), "{error}");
    }
}

/// `from_pretrained` of transformers 5.23 gives the same ends.
#[rstest]
#[case(None, &[7])]
#[case(Some("{}"), &[])]
#[case(Some(r#"{"eos_token_id":null}"#), &[])]
#[case(Some(r#"{"eos_token_id":[3,4]}"#), &[3, 4])]
fn ends_are_those_of_the_generation_config_where_there_is_one(
    #[case] generation: Option<&str>,
    #[case] expected: &[u32],
) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    if let Some(text) = generation {
        write("generation_config.json", text);
    }
    let raw = decoder_config("llama", r#"{"eos_token_id":7}"#).unwrap().raw;
    write("config.json", &Value::from(raw).to_string());
    assert_eq!(DecoderConfig::read(folder.path()).unwrap().eos, expected);
    let raw = seq2seq(r#"{"eos_token_id":7,"pad_token_id":0}"#).unwrap().raw;
    write("config.json", &Value::from(raw).to_string());
    assert_eq!(Seq2SeqConfig::read(folder.path()).unwrap().decoder.eos, expected);
}
