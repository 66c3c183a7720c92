//! Forms over storage: every form with leaves in every block format computes what it does with the same values in
//! floats, forward and backward through an adapter; it is merged, saved and loaded again to the bit.

use std::path::Path;

use burn::backend::Autodiff;
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Distribution, Tensor};
use lowrank_adapters::{AdapterConfig, AdapterSet, Method, Pattern, Targets};
use lowrank_checkpoint::FloatType;
use lowrank_kernels::{BlockFormat, Kernels};
use lowrank_models::params::{ToBlocks, ToFloats, WeightType};
use lowrank_models::{
    Adaptable, Decoder, DecoderConfig, ParamVisitor, Parameter, Parameters, Rows, Run, Stack, Tokens,
};
use lowrank_spec::{Mode, ModuleEntry, Representation};
use lowrank_tests::{assert_close, distance, random, values};
use rstest::rstest;
use serde_json::{Value, json};

type Flex = burn_flex::Flex;

/// Sides of 64 and 256: K-quants fit the latter alone.
fn config(representation: &Representation, tied: bool) -> DecoderConfig {
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": tied,
    });
    let mut config = DecoderConfig::parse(config.as_object().unwrap().clone()).unwrap();
    for layer in 0..2 {
        for name in ["self_attn.q_proj", "mlp.down_proj"] {
            let entry = ModuleEntry::new(representation.clone());
            config.lowrank.modules.insert(format!("model.layers.{layer}.{name}"), entry);
        }
    }
    config.lowrank.modules.insert("model.embed_tokens".into(), ModuleEntry::new(representation.clone()));
    config.lowrank.write(&mut config.raw).unwrap();
    config
}

fn forms() -> [Representation; 4] {
    [
        Representation::Dense,
        Representation::low_rank(32),
        Representation::LowRank { ranks: vec![32, 8], a_of: None, b_of: None, pivots: false },
        Representation::Sum { rank: 32 },
    ]
}

/// Every leaf that can be in this format, or in the one in its place, is.
fn in_blocks<B: Backend>(mut model: Decoder<B>, format: BlockFormat) -> Decoder<B> {
    for format in [format, format.fitting(32).unwrap()] {
        let mut round = ToBlocks::new(|at: &Parameter<'_>| at.site.map(|_| format));
        model.visit_params(&mut round);
    }
    model
}

fn floats<B: Backend>(model: &Decoder<B>) -> Decoder<B> {
    let mut model = model.clone();
    model.visit_params(&mut ToFloats);
    model
}

const IDS: [u32; 9] = [3, 14, 15, 9, 2, 6, 5, 35, 8];

fn logits<B: Kernels>(model: &Decoder<B>, ids: &[u32], set: &AdapterSet<B>) -> Tensor<B, 2> {
    let batch = model.batch(Tokens::new(ids, &[ids.len()]), &Default::default()).unwrap();
    model.forward(&batch, Rows::All, Run::eval(set))
}

/// A LoRA or DoRA whose factors are random.
fn adapter<B: Backend>(model: &Decoder<B>, method: Method) -> AdapterSet<B> {
    struct Randomise(usize);
    impl<B: Backend> ModuleMapper<B> for Randomise {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            self.0 += 1;
            let (shape, grad): ([usize; D], bool) = (param.dims(), param.is_require_grad());
            param.map(|_| random(&format!("factor {}", self.0), shape, 0.2).set_require_grad(grad))
        }
    }
    let targets = Targets::new(Pattern::parse("q_proj,down_proj,o_proj"));
    let config = AdapterConfig { rank: 4, seed: 3, ..AdapterConfig::new(method, targets) };
    let set = AdapterSet::init(&config, model.sites(), &model.base_weights(), &Default::default()).unwrap();
    set.map(&mut Randomise(0))
}

/// The two do the same sums in another order.
fn tolerance(of: &[f32]) -> f32 {
    1e-4 * of.iter().fold(1.0, |most: f32, x| most.max(x.abs()))
}

fn check<B: Kernels>(representation: &Representation, format: BlockFormat, tied: bool) {
    let what = format!("{representation:?} in {format}, tied: {tied}");
    let (device, none) = (Default::default(), AdapterSet::empty());
    let model = in_blocks(Decoder::<B>::init(config(representation, tied), 5, &device).unwrap(), format);
    let n_blocks = model.blocks_where(|_| true).len();
    assert!(n_blocks >= 15, "{what}: {n_blocks} matrices in blocks");
    let plain = floats(&model);
    assert!(plain.blocks_where(|_| true).is_empty());

    let expect = values(logits(&plain, &IDS, &none));
    assert_close(&what, &values(logits(&model, &IDS, &none)), &expect, tolerance(&expect));
    // One row: the input may be rounded to 8 bits.
    let (one, expect_one) =
        (values(logits(&model, &IDS[..1], &none)), values(logits(&plain, &IDS[..1], &none)));
    assert_close(&what, &one, &expect_one, 300.0 * tolerance(&expect_one));

    // A DoRA needs the exact product of its factors with the base; only activations may be rounded.
    if representation == &Representation::Dense {
        let set = adapter(&model, Method::DORA);
        let [ours, exact] = [&model, &plain].map(|model| values(logits(model, &IDS, &set)));
        assert!(distance(&ours, &expect) > 10.0 * tolerance(&expect), "{what}: the adapter does something");
        assert_close(&what, &ours, &exact, tolerance(&exact));
    }

    let set = adapter(&model, Method::LORA);
    let adapted = values(logits(&model, &IDS, &set));
    assert!(distance(&adapted, &expect) > 10.0 * tolerance(&expect), "{what}: the adapter does something");
    assert_close(&what, &adapted, &values(logits(&plain, &IDS, &set)), tolerance(&adapted));
    // A core between two factors takes no update.
    let has_core = matches!(representation, Representation::LowRank { ranks, .. } if ranks.len() == 2);
    let merged = if has_core {
        assert!(model.merged(&set).is_err(), "{what}");
        model.clone()
    } else {
        model.merged(&set).unwrap()
    };
    if !matches!(representation, Representation::LowRank { .. }) {
        assert_close(&what, &values(logits(&merged, &IDS, &none)), &adapted, 4.0 * tolerance(&adapted));
    }
    assert_eq!(model.blocks_where(|_| true).len(), n_blocks, "{what}: merging leaves the base as it was");

    let folder = tempfile::tempdir().unwrap();
    model.save(folder.path(), folder.path(), FloatType::F32).unwrap();
    let read = DecoderConfig::read(folder.path()).unwrap();
    let again = Decoder::<B>::load(folder.path(), read, WeightType::F32, &device).unwrap();
    let bytes = |model: &Decoder<B>| -> Vec<(String, BlockFormat, Vec<u8>)> {
        let blocks = model.blocks_where(|_| true);
        blocks.iter().map(|b| (b.key(), b.matrix.format(), b.matrix.bytes().to_vec())).collect()
    };
    assert!(bytes(&again) == bytes(&model), "{what}: blocks are saved as they are");
    assert_eq!(values(logits(&again, &IDS, &none)), values(logits(&model, &IDS, &none)), "{what}");
    // What was merged is saved without the formats of what it no longer has.
    merged.save(folder.path(), folder.path(), FloatType::F32).unwrap();
    let read = DecoderConfig::read(folder.path()).unwrap();
    let again = Decoder::<B>::load(folder.path(), read, WeightType::F32, &device).unwrap();
    assert_eq!(values(logits(&again, &IDS, &none)), values(logits(&merged, &IDS, &none)), "{what}: merged");
}

#[rstest]
fn every_form_computes_on_blocks(#[values(true, false)] tied: bool) {
    for format in BlockFormat::ALL {
        for representation in &forms() {
            check::<Flex>(representation, format, tied);
        }
    }
    check::<burn_ndarray::NdArray>(&Representation::Sum { rank: 32 }, BlockFormat::Q8_0, tied);
}

struct Gather<'a, B: AutodiffBackend> {
    grads: &'a B::Gradients,
    all: Vec<f32>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Gather<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.all.extend(values(param.val().grad(self.grads).unwrap()));
    }
}

/// The gradients of an adapter's factors go through blocks as through the floats they stand for.
#[test]
fn gradients_go_through_blocks() {
    type B = Autodiff<Flex>;
    for (representation, format) in
        forms().iter().flat_map(|form| BlockFormat::ALL.map(|format| (form, format)))
    {
        let device = Default::default();
        let model = in_blocks(Decoder::<B>::init(config(representation, true), 5, &device).unwrap(), format);
        let set = adapter(&model, Method::LORA);
        let dy = Tensor::<B, 2>::random([IDS.len(), 96], Distribution::Default, &device);
        let grads = |model: &Decoder<B>| -> Vec<f32> {
            let batch = model.batch(Tokens::new(&IDS, &[9]), &device).unwrap();
            let y = model.forward(&batch, Rows::All, Run::new(&set, Mode::train(3)));
            let grads = (y * dy.clone()).sum().backward();
            let mut gather = Gather { grads: &grads, all: Vec::new() };
            set.visit(&mut gather);
            gather.all
        };
        let (got, expect) = (grads(&model), grads(&floats(&model)));
        assert!(expect.iter().any(|g| *g != 0.0));
        assert_close(&format!("{representation:?} in {format}"), &got, &expect, 10.0 * tolerance(&expect));
    }
}

/// A base that is rounded as it is read: maps inside the layers alone, in the format that fits their rows.
#[test]
fn a_base_is_rounded_as_it_is_read() {
    let device = Default::default();
    let folder = tempfile::tempdir().unwrap();
    let dense = Decoder::<Flex>::init(config(&Representation::Dense, true), 5, &device).unwrap();
    dense.save(folder.path(), folder.path(), FloatType::BF16).unwrap();
    let read = |weights| {
        let config = DecoderConfig::read(folder.path()).unwrap();
        Decoder::<Flex>::load(folder.path(), config, weights, &device).unwrap()
    };
    let model = read(WeightType::Blocks(BlockFormat::Q4K));
    let blocks = model.blocks_where(|_| true);
    assert_eq!(blocks.len(), 14, "seven maps in each of two layers");
    for block in &blocks {
        let expect = if block.module.ends_with("down_proj") { BlockFormat::Q4K } else { BlockFormat::Q5_0 };
        assert_eq!(block.matrix.format(), expect, "{}", block.module);
    }
    let mut rounded = read(WeightType::F32);
    for format in [BlockFormat::Q4K, BlockFormat::Q5_0] {
        rounded.visit_params(&mut ToBlocks::new(|at: &Parameter<'_>| at.module.layer.map(|_| format)));
    }
    let pairs = blocks.iter().zip(rounded.blocks_where(|_| true));
    assert!(pairs.into_iter().all(|(a, b)| a.matrix.bytes() == b.matrix.bytes()));
}

/// A saved model in Q8_0 with its config changed.
fn refused(change: impl FnOnce(&mut Value), part: &str) {
    let device = Default::default();
    let folder = tempfile::tempdir().unwrap();
    let model = Decoder::<Flex>::init(config(&Representation::Sum { rank: 32 }, true), 5, &device).unwrap();
    in_blocks(model, BlockFormat::Q8_0).save(folder.path(), folder.path(), FloatType::F32).unwrap();
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    change(&mut config["lowrank"]["modules"]["model.layers.1.self_attn.q_proj"]);
    std::fs::write(&path, config.to_string()).unwrap();
    let read = |folder: &Path| -> Result<_, String> {
        let config = DecoderConfig::read(folder).map_err(|e| e.to_string())?;
        Decoder::<Flex>::load(folder, config, WeightType::F32, &device).map_err(|e| e.to_string())
    };
    let error = read(folder.path()).unwrap_err();
    assert!(error.contains(part), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn formats_that_do_not_fit_are_refused() {
    refused(|entry| entry["formats"]["weight"] = json!("Q9_Z"), "unknown block format 'Q9_Z'; known: Q8_0");
    refused(|entry| entry["formats"]["weight"] = json!("Q4_0"), "expected U8 [64, 36]");
    refused(
        |entry| entry["formats"]["weight"] = json!("Q4_K"),
        "rows of 64 elements, which is not a multiple",
    );
    refused(|entry| entry["formats"]["lowrank_c"] = json!("Q4_0"), "has a format for 'lowrank_c'");
    refused(|entry| entry["formats"] = json!({}), "config.json names no block format");
    refused(|entry| entry["kind"] = json!("dense"), "has a format for 'lowrank_a'");
    refused(|entry| entry["formats"]["weight"] = json!(3), "lowrank: ");
}

/// What is in blocks is never trained.
#[test]
fn blocks_stay_frozen() {
    struct Trained(usize);
    impl<B: Backend> ParamVisitor<B> for Trained {
        fn visit<const D: usize>(&mut self, at: &Parameter<'_>, param: &mut Param<Tensor<B, D>>) {
            assert!(at.weight().is_none() || at.blocks_layout().is_none(), "{}", at.key());
            self.0 += usize::from(param.is_require_grad());
        }
    }
    let device = Default::default();
    let model = Decoder::<Autodiff<Flex>>::init(config(&Representation::Dense, true), 5, &device).unwrap();
    let mut model = in_blocks(model, BlockFormat::Q8_0);
    model.choose_trained(|_, _| true);
    let mut trained = Trained(0);
    model.visit_params(&mut trained);
    assert_eq!(trained.0, 5, "the norms");
}
