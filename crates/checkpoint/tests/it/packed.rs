//! Weights that quantizers of the hub leave in several tensors.

use std::fs;
use std::path::Path;

use lowrank_checkpoint::{Checkpoint, CheckpointError, Dtype, FloatType, RawTensor, write_safetensors_with};
use rstest::rstest;

use crate::check_error;

pub(crate) type Part = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn words(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

pub(crate) fn open(folder: &Path, parts: &[Part], config: &str) -> Result<Checkpoint, CheckpointError> {
    let raw = parts.iter().map(|(name, dtype, shape, bytes)| RawTensor {
        name: (*name).into(),
        dtype: *dtype,
        shape: shape.clone(),
        bytes,
    });
    let file = folder.join("model.safetensors");
    write_safetensors_with(&file, vec![], FloatType::F32, raw.collect(), &Default::default()).unwrap();
    fs::write(folder.join("config.json"), config).unwrap();
    Checkpoint::open(folder)
}

/// 8 inputs in two groups, 8 outputs; input `i` of output `o` is `(i + o) mod 16`, zero points are 3, scales 1 and 2.
fn gptq() -> Vec<Part> {
    let column = |o: i32| (0..8).fold(0i32, |word, i| word | ((i + o) % 16) << (4 * i));
    let values: Vec<i32> = (0..8).map(column).collect();
    let scales = [[1.0f32; 8], [2.0; 8]].concat();
    vec![
        ("m.qweight", Dtype::I32, vec![1, 8], words(&values)),
        ("m.qzeros", Dtype::I32, vec![2, 1], words(&[0x2222_2222, 0x2222_2222])),
        ("m.scales", Dtype::F32, vec![2, 8], floats(&scales)),
    ]
}

fn expected(group: impl Fn(usize) -> usize, zero: f32) -> Vec<f32> {
    let value = |o: usize, i: usize| ((i + o) % 16) as f32 - zero;
    (0..64).map(|n| value(n / 8, n % 8) * [1.0, 2.0][group(n % 8)]).collect()
}

#[test]
fn groups_are_put_together() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = open(dir.path(), &gptq(), "{}").unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["m.weight"]);
    let info = checkpoint.info("m.weight").unwrap();
    assert_eq!((info.dtype, info.shape.as_slice()), (Dtype::F32, &[8, 8][..]));
    assert_eq!(checkpoint.read_f32("m.weight").unwrap(), expected(|i| i / 4, 3.0));
    let transposed = checkpoint.read_f32_transposed("m.weight").unwrap();
    assert_eq!(transposed[8], expected(|i| i / 4, 3.0)[1]);
    // Zero points as they are, and inputs in another order.
    let mut parts = gptq();
    parts.push(("m.g_idx", Dtype::I32, vec![8], words(&[1, 0, 1, 0, 1, 0, 1, 0])));
    let config =
        r#"{"quantization_config": {"quant_method": "gptq", "checkpoint_format": "gptq_v2", "bits": 4}}"#;
    let checkpoint = open(dir.path(), &parts, config).unwrap();
    assert_eq!(checkpoint.read_f32("m.weight").unwrap(), expected(|i| (i + 1) % 2, 2.0));
    let order: Vec<u8> = [1i64, 0, 1, 0, 1, 0, 1, 0].iter().flat_map(|x| x.to_le_bytes()).collect();
    parts[3] = ("m.g_idx", Dtype::I64, vec![8], order);
    let checkpoint = open(dir.path(), &parts, config).unwrap();
    assert_eq!(checkpoint.read_f32("m.weight").unwrap(), expected(|i| (i + 1) % 2, 2.0));
}

#[rstest]
#[case::no_scales(|parts: &mut Vec<Part>| drop(parts.pop()), "'m.scales' is missing")]
#[case::groups(|parts: &mut Vec<Part>| parts.push(("m.g_idx", Dtype::I32, vec![8], words(&[0, 1, 2, 0, 1, 0, 1, 0]))), "g_idx names group 2; expected 0 to 1")]
#[case::negative(|parts: &mut Vec<Part>| parts.push(("m.g_idx", Dtype::I32, vec![8], words(&[-1; 8]))), "g_idx names group -1")]
#[case::order(|parts: &mut Vec<Part>| parts.push(("m.g_idx", Dtype::I32, vec![7], words(&[0; 7]))), "g_idx is I32 [7]; expected I32 or I64 [8]")]
#[case::long(|parts: &mut Vec<Part>| parts.push(("m.g_idx", Dtype::I64, vec![8], [1u64 << 32; 8].iter().flat_map(|x| x.to_le_bytes()).collect())), "g_idx names group 4294967296; expected 0 to 1")]
#[case::zeros(|parts: &mut Vec<Part>| parts[1] = ("m.qzeros", Dtype::I32, vec![1, 1], words(&[0])), "qzeros is I32 [1, 1]; expected I32 or U32 [2, 1]")]
#[case::uneven(|parts: &mut Vec<Part>| {
    parts[1] = ("m.qzeros", Dtype::I32, vec![3, 1], words(&[0; 3]));
    parts[2] = ("m.scales", Dtype::F32, vec![3, 8], floats(&[1.0; 24]));
}, "8 inputs are not in 3 groups of one size")]
#[case::bits(|parts: &mut Vec<Part>| parts[1] = ("m.qzeros", Dtype::I32, vec![2, 4], words(&[0; 8])), "16 bits are not supported")]
#[case::both(|parts: &mut Vec<Part>| parts.push(("m.weight", Dtype::F32, vec![1], floats(&[0.0]))), "'m.weight' is there as well")]
fn parts_that_do_not_fit_are_named(#[case] change: fn(&mut Vec<Part>), #[case] reason: &str) {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = gptq();
    change(&mut parts);
    check_error(open(dir.path(), &parts, "{}"), &["tensor 'm.qweight'", reason]);
}

#[rstest]
#[case(r#"{"quant_method": "gptq", "format": "bitblas"}"#, "GPTQ in the format 'bitblas' is not supported")]
#[case(r#"{"quant_method": "awq", "version": "gemv"}"#, "AWQ in its layout 'gemv' is not supported; gemm is")]
#[case(
    r#"{"quant_method": "gptq", "checkpoint_format": "marlin"}"#,
    "GPTQ in the format 'marlin' is not supported"
)]
fn variants_are_refused(#[case] section: &str, #[case] reason: &str) {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(r#"{{"quantization_config": {section}}}"#);
    check_error(open(dir.path(), &gptq(), &config), &[reason]);
}

const STATE: &str = "m.weight.quant_state.bitsandbytes__nf4";

fn nf4(state: &str) -> Vec<Part> {
    let table: Vec<f32> = (0..16).map(|i| i as f32 / 15.0).collect();
    vec![
        ("m.weight", Dtype::U8, vec![2, 1], vec![0x0f, 0xf0]),
        ("m.weight.absmax", Dtype::F32, vec![2], floats(&[2.0, 3.0])),
        ("m.weight.quant_map", Dtype::F32, vec![16], floats(&table)),
        (STATE, Dtype::U8, vec![state.len()], state.as_bytes().to_vec()),
    ]
}

#[test]
fn codes_are_looked_up() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = open(dir.path(), &nf4(r#"{"blocksize": 2, "shape": [2, 2]}"#), "{}").unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["m.weight"]);
    assert_eq!(checkpoint.read_f32("m.weight").unwrap(), [0.0, 2.0, 3.0, 0.0]);
    // The same bytes kept as one element of bf16.
    let mut parts = nf4(r#"{"blocksize": 2, "shape": [2, 2]}"#);
    (parts[0].1, parts[0].2) = (Dtype::BF16, vec![1, 1]);
    let checkpoint = open(dir.path(), &parts, "{}").unwrap();
    assert_eq!(checkpoint.read_f32("m.weight").unwrap(), [0.0, 2.0, 3.0, 0.0]);
}

#[test]
fn a_weight_is_quantized_in_one_way() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = nf4(r#"{"blocksize": 256, "shape": [16, 32]}"#);
    parts.remove(0);
    parts.extend(gptq());
    check_error(open(dir.path(), &parts, "{}"), &[STATE, "'m.weight' is quantized in another way as well"]);
}

/// Quantizers make linear layers of GPT-2's `Conv1D`, and its other files have them as `(in, out)`.
#[rstest]
#[case::gpt2("gpt2", "h.0.mlp.c_fc", true)]
#[case::head("gpt2", "score", false)]
#[case::other("gpt_bigcode", "h.0.mlp.c_fc", false)]
fn conv1d_is_presented_as_in_out(#[case] model_type: &str, #[case] module: &str, #[case] turns: bool) {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(r#"{{"model_type": "{model_type}"}}"#);
    let rows: Vec<Part> = vec![
        ("m.weight", Dtype::I8, vec![2, 3], vec![127, 0, 127, 0, 127, 127]),
        ("m.SCB", Dtype::F32, vec![2], floats(&[1.0, 2.0])),
    ];
    let codes = nf4(r#"{"blocksize": 2, "shape": [1, 4]}"#);
    let all = [
        (rows, [2, 3], vec![1.0, 0.0, 1.0, 0.0, 2.0, 2.0]),
        (codes, [1, 4], vec![0.0, 2.0, 3.0, 0.0]),
        (gptq(), [8, 8], expected(|i| i / 4, 3.0)),
    ];
    for (parts, [outputs, inputs], expected) in all {
        let named: Vec<Part> = parts
            .into_iter()
            .map(|(name, dtype, shape, bytes)| {
                let name: &'static str = name.replacen('m', module, 1).leak();
                (name, dtype, shape, bytes)
            })
            .collect();
        let checkpoint = open(dir.path(), &named, &config).unwrap();
        let name = format!("{module}.weight");
        let shape = if turns { [inputs, outputs] } else { [outputs, inputs] };
        assert_eq!(checkpoint.info(&name).unwrap().shape, shape);
        let read = |is_turned: bool| match is_turned {
            true => checkpoint.read_f32_transposed(&name).unwrap(),
            false => checkpoint.read_f32(&name).unwrap(),
        };
        assert_eq!(read(turns), expected);
        assert_eq!(read(!turns), lowrank_spec::transpose(&expected, outputs, inputs));
    }
}

#[rstest]
#[case("{", "malformed JSON")]
#[case(r#"{"blocksize": 0, "shape": [2, 2]}"#, "does not fit")]
#[case(r#"{"blocksize": 2, "shape": [2, 3]}"#, "a weight [2, 3] of 4 bits does not fit its [2, 1] bytes")]
#[case(r#"{"blocksize": 2, "shape": [4611686018427387904, 8]}"#, "does not fit")]
#[case(r#"{"blocksize": 1, "shape": [2, 2]}"#, "absmax is F32 [2]; expected F32 or U8 [4]")]
fn states_are_checked(#[case] state: &str, #[case] reason: &str) {
    let dir = tempfile::tempdir().unwrap();
    check_error(open(dir.path(), &nf4(state), "{}"), &[STATE, reason]);
}

#[test]
fn rows_have_their_factors() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts: Vec<Part> = vec![
        ("m.weight", Dtype::I8, vec![2, 2], vec![127, 0x81, 64, 0]),
        ("m.SCB", Dtype::F32, vec![2], floats(&[1.0, 127.0])),
        ("m.weight_format", Dtype::U8, vec![], vec![0]),
    ];
    let checkpoint = open(dir.path(), &parts, "{}").unwrap();
    assert_eq!(checkpoint.read_f32("m.weight").unwrap(), [1.0, -1.0, 64.0, 0.0]);
    assert_eq!(checkpoint.info("m.weight").unwrap().dtype, Dtype::F16);
    parts[2].3 = vec![3];
    check_error(open(dir.path(), &parts, "{}"), &["weight_format is 3, a tiled layout"]);
    parts[2].3 = vec![0];
    parts[1] = ("m.SCB", Dtype::F32, vec![3], floats(&[1.0; 3]));
    check_error(open(dir.path(), &parts, "{}"), &["SCB is F32 [3]; expected F32 [2]"]);
}

/// The elements fit f32, but not the type of the scales, in which the tensor would be copied.
#[test]
fn elements_outside_the_type_of_the_scales_are_refused_as_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = gptq();
    let scales = [half::f16::from_f32(60_000.0); 16];
    let bytes = scales.into_iter().flat_map(half::f16::to_le_bytes).collect();
    parts[2] = ("m.scales", Dtype::F16, vec![2, 8], bytes);
    let checkpoint = open(dir.path(), &parts, "{}").unwrap();
    assert!(checkpoint.read_f32("m.weight").unwrap().iter().any(|x| *x > 65_504.0));
    check_error(checkpoint.bytes("m.weight"), &["'m.weight'", "F16"]);
    check_error(checkpoint.read_bits("m.weight"), &["'m.weight'", "F16"]);
    assert_eq!(checkpoint.content_hash().unwrap().len(), 32);
}
