//! Decoders beside the outputs that transformers gave.

use burn::module::Param;
use burn::tensor::{Tensor, backend::Backend};
use lowrank_adapters::AdapterSet;
use lowrank_kernels::Kernels;
use lowrank_models::{Decoder, ParamVisitor, Parameter, Rows, Run, Stack, Stored, Tokens};
use lowrank_tests::{assert_close, fixture, values};
use serde::Deserialize;

/// What the issue asks for; f32 rounding alone is about a tenth of it on these models.
pub(crate) const TOLERANCE: f32 = 1e-4;

/// A text and what transformers makes of it.
#[derive(Deserialize)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) input_ids: Vec<u32>,
    pub(crate) mean_nll: f64,
    pub(crate) last_logits: Vec<f32>,
    pub(crate) logits: Option<Vec<Vec<f32>>>,
    #[serde(default)]
    pub(crate) greedy: Vec<u32>,
}

#[derive(Deserialize)]
pub(crate) struct Golden {
    pub(crate) base: Option<String>,
    pub(crate) perplexity: Option<f64>,
    pub(crate) cases: Vec<Case>,
}

/// Every folder of a language model with what transformers made of it.
pub(crate) fn decoders() -> Vec<String> {
    let is_decoder = |name: &String| {
        let read = |file: &str| std::fs::read_to_string(fixture(name).join(file)).ok();
        let Some(expected) = read("config.json").and_then(|_| read("expected.json")) else { return false };
        let value: serde_json::Value = serde_json::from_str(&expected).unwrap();
        value["cases"][0]["greedy"].is_array()
    };
    let names = fixture("").read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(is_decoder).collect();
    names.sort();
    assert!(names.len() >= 20, "{names:?}");
    names
}

pub(crate) fn golden(name: &str) -> Golden {
    serde_json::from_str(&std::fs::read_to_string(fixture(name).join("expected.json")).unwrap()).unwrap()
}

pub(crate) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Exact products: those of few rows round their input otherwise.
pub(crate) struct Exact;

impl<B: Backend> ParamVisitor<B> for Exact {
    fn visit<const D: usize>(&mut self, _at: &Parameter<'_>, _param: &mut Param<Tensor<B, D>>) {}

    fn visit_stored(&mut self, _at: &Parameter<'_>, stored: &mut Stored<B>) {
        if let Some(matrix) = stored.blocks().cloned() {
            *stored = matrix.with_exact_products().into();
        }
    }
}

pub(crate) fn forward<B: Kernels>(
    model: &Decoder<B>,
    ids: &[u32],
    lengths: &[usize],
    rows: Rows,
    adapters: &AdapterSet<B>,
) -> Vec<f32> {
    let batch = model.batch(Tokens::new(ids, lengths), &Default::default()).unwrap();
    values(model.forward(&batch, rows, Run::eval(adapters)))
}

pub(crate) fn check_logits<B: Kernels>(
    name: &str,
    model: &Decoder<B>,
    adapters: &AdapterSet<B>,
    golden: &Golden,
) {
    let device = Default::default();
    let logits = |ids: &[u32], lengths: &[usize], rows| forward(model, ids, lengths, rows, adapters);
    for case in &golden.cases {
        let n = [case.input_ids.len()];
        let last = logits(&case.input_ids, &n, Rows::Last);
        assert_close(&format!("{name}/{}", case.name), &last, &case.last_logits, TOLERANCE);
        if let Some(expect) = &case.logits {
            let all = logits(&case.input_ids, &n, Rows::All);
            assert_close(&format!("{name}/{}", case.name), &all, &expect.concat(), TOLERANCE);
        }
    }
    // All texts packed into one batch.
    let ids: Vec<u32> = golden.cases.iter().flat_map(|c| c.input_ids.clone()).collect();
    let lengths: Vec<usize> = golden.cases.iter().map(|c| c.input_ids.len()).collect();
    let expect: Vec<f32> = golden.cases.iter().flat_map(|c| c.last_logits.clone()).collect();
    assert_close(&format!("{name} packed"), &logits(&ids, &lengths, Rows::Last), &expect, TOLERANCE);
    let nll = model.token_nll(Tokens::new(&ids, &lengths), Run::eval(adapters), &device).unwrap();
    for (case, nll) in golden.cases.iter().zip(&nll) {
        assert_eq!(nll.len(), case.input_ids.len() - 1);
        assert!(
            (mean(nll) - case.mean_nll).abs() < f64::from(TOLERANCE),
            "{name}/{}: {}",
            case.name,
            mean(nll)
        );
    }
    if let Some(perplexity) = golden.perplexity {
        let got = mean(&nll.concat()).exp();
        assert!((got / perplexity - 1.0).abs() < f64::from(TOLERANCE), "{name}: {got} for {perplexity}");
    }
}
