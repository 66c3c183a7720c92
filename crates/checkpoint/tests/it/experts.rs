//! Experts of gpt-oss, fused in files and presented one by one.

use std::{collections::BTreeSet, fs, path::Path};

use lowrank_checkpoint::{
    Checkpoint, Dtype, FloatType, HostTensor, RawTensor, StreamOptions, StreamWriter, TensorPlan,
    fuse_experts, write_safetensors, write_safetensors_with,
};
use rstest::rstest;

use crate::{
    check_error,
    packed::{Part, open},
};

/// What transformers makes of a layer in MXFP4: `tests/fixtures/mxfp4.py`.
const GOLDEN: &[u8] = include_bytes!("../fixtures/mxfp4.safetensors");
const FUSED: [&str; 4] = ["gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias"];
const MAPS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

/// 2 experts of width 3 with 2 inner features; every element tells its place as `expert·100 + input·10 + output`, and biases are
/// without inputs.
fn fused() -> Vec<HostTensor<'static>> {
    let value = |e: usize, i: usize, o: usize| (100 * e + 10 * i + o) as f32;
    let tensor = |name: &str, inputs: Option<usize>, outputs: usize| {
        let shape = [2].into_iter().chain(inputs).chain([outputs]).collect::<Vec<_>>();
        let of_expert =
            |e: usize| (0..inputs.unwrap_or(1)).flat_map(move |i| (0..outputs).map(move |o| value(e, i, o)));
        HostTensor::new(
            format!("l.mlp.experts.{name}"),
            shape,
            (0..2).flat_map(of_expert).collect::<Vec<_>>(),
        )
    };
    let inputs = [Some(3), None, Some(2), None];
    FUSED
        .into_iter()
        .zip(inputs)
        .zip([4, 4, 3, 3])
        .map(|((name, inputs), outputs)| tensor(name, inputs, outputs))
        .collect()
}

/// The same by expert, as [`Checkpoint`] presents them.
fn separate() -> Vec<HostTensor<'static>> {
    let matrix = |name: &str, rows: &[[f32; 3]]| HostTensor::new(name, [rows.len(), 3], rows.concat());
    let tensor = |name: &str, shape: &[usize], data: &[f32]| HostTensor::new(name, shape, data.to_vec());
    vec![
        tensor("l.mlp.experts.0.down_proj.bias", &[3], &[0.0, 1.0, 2.0]),
        tensor("l.mlp.experts.0.down_proj.weight", &[3, 2], &[0.0, 10.0, 1.0, 11.0, 2.0, 12.0]),
        tensor("l.mlp.experts.0.gate_proj.bias", &[2], &[0.0, 2.0]),
        matrix("l.mlp.experts.0.gate_proj.weight", &[[0.0, 10.0, 20.0], [2.0, 12.0, 22.0]]),
        tensor("l.mlp.experts.0.up_proj.bias", &[2], &[1.0, 3.0]),
        matrix("l.mlp.experts.0.up_proj.weight", &[[1.0, 11.0, 21.0], [3.0, 13.0, 23.0]]),
        tensor("l.mlp.experts.1.down_proj.bias", &[3], &[100.0, 101.0, 102.0]),
        tensor("l.mlp.experts.1.down_proj.weight", &[3, 2], &[100.0, 110.0, 101.0, 111.0, 102.0, 112.0]),
        tensor("l.mlp.experts.1.gate_proj.bias", &[2], &[100.0, 102.0]),
        matrix("l.mlp.experts.1.gate_proj.weight", &[[100.0, 110.0, 120.0], [102.0, 112.0, 122.0]]),
        tensor("l.mlp.experts.1.up_proj.bias", &[2], &[101.0, 103.0]),
        matrix("l.mlp.experts.1.up_proj.weight", &[[101.0, 111.0, 121.0], [103.0, 113.0, 123.0]]),
    ]
}

fn written(folder: &Path, tensors: Vec<HostTensor<'_>>, dtype: FloatType) -> Checkpoint {
    let file = folder.join("model.safetensors");
    write_safetensors(&file, tensors, dtype, &Default::default()).unwrap();
    Checkpoint::open(file).unwrap()
}

fn read_all(checkpoint: &Checkpoint) -> Vec<HostTensor<'static>> {
    let read = |name: &str| {
        let shape = checkpoint.info(name).unwrap().shape.clone();
        HostTensor::new(name, shape, checkpoint.read_f32(name).unwrap())
    };
    checkpoint.names().map(read).collect()
}

#[rstest]
fn fused_floats_are_presented_by_expert(
    #[values(FloatType::F32, FloatType::F16, FloatType::BF16)] dtype: FloatType,
) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = written(dir.path(), fused(), dtype);
    assert_eq!(read_all(&checkpoint), separate());
    // Every way of reading gives what it gives of a file that stores them separately.
    let other = tempfile::tempdir().unwrap();
    let stored = written(other.path(), separate(), dtype);
    assert_eq!(checkpoint.content_hash().unwrap(), stored.content_hash().unwrap());
    for name in stored.names() {
        assert_eq!(checkpoint.info(name), stored.info(name));
        assert_eq!(checkpoint.bytes(name).unwrap(), stored.bytes(name).unwrap());
        assert_eq!(checkpoint.read_bytes(name).unwrap(), stored.read_bytes(name).unwrap());
        assert_eq!(checkpoint.read_f64(name).unwrap(), stored.read_f64(name).unwrap());
        if name.ends_with("weight") {
            let transposed = checkpoint.read_f32_transposed(name).unwrap();
            assert_eq!(transposed, stored.read_f32_transposed(name).unwrap());
        }
        if dtype != FloatType::F32 {
            assert_eq!(checkpoint.read_bits(name).unwrap(), stored.read_bits(name).unwrap());
        }
    }
}

#[test]
fn mxfp4_is_what_transformers_dequantizes() {
    let checkpoint = Checkpoint::from_bytes("golden", GOLDEN.to_vec()).unwrap();
    assert_eq!(checkpoint.len(), 2 * 2 * 6);
    for (expert, map) in (0..2).flat_map(|expert| MAPS.map(|map| (expert, map))) {
        let name = |form: &str, part: &str| format!("{form}.mlp.experts.{expert}.{map}.{part}");
        for part in ["weight", "bias"] {
            let (packed, floats) = (name("packed", part), name("floats", part));
            assert_eq!(checkpoint.info(&packed), checkpoint.info(&floats));
            assert_eq!(checkpoint.read_bits(&packed).unwrap(), checkpoint.read_bits(&floats).unwrap());
            assert_eq!(checkpoint.read_f32(&packed).unwrap(), checkpoint.read_f32(&floats).unwrap());
            assert_eq!(checkpoint.bytes(&packed).unwrap(), checkpoint.bytes(&floats).unwrap());
        }
        let (packed, floats) = (name("packed", "weight"), name("floats", "weight"));
        let shape = if map == "down_proj" { [64, 32] } else { [32, 64] };
        assert_eq!(checkpoint.info(&packed).unwrap().shape, shape);
        assert_eq!(
            checkpoint.read_f32_transposed(&packed).unwrap(),
            checkpoint.read_f32_transposed(&floats).unwrap()
        );
        assert_eq!(
            checkpoint.read_bits_transposed(&packed).unwrap(),
            checkpoint.read_bits_transposed(&floats).unwrap()
        );
        // Copied, span by span.
        let dir = tempfile::tempdir().unwrap();
        let plan = vec![TensorPlan::new("w", shape, Dtype::BF16)];
        let mut writer = StreamWriter::create(dir.path(), plan, StreamOptions::default()).unwrap();
        writer.copy("w", &checkpoint, &packed).unwrap();
        writer.finish().unwrap();
        let copy = Checkpoint::open(dir.path()).unwrap();
        assert_eq!(copy.read_bits("w").unwrap(), checkpoint.read_bits(&floats).unwrap());
    }
}

/// One expert of width 32 with 32 inner features in MXFP4, all codes and scales alike.
fn mxfp4(code: u8, scale: u8) -> Vec<Part> {
    let bytes = |name, shape: &[usize], byte: u8| {
        (name, Dtype::U8, shape.to_vec(), vec![byte; shape.iter().product()])
    };
    let zeros = |name, n: usize| (name, Dtype::BF16, vec![1, n], vec![0; 2 * n]);
    vec![
        bytes("experts.gate_up_proj_blocks", &[1, 64, 1, 16], code | code << 4),
        bytes("experts.gate_up_proj_scales", &[1, 64, 1], scale),
        zeros("experts.gate_up_proj_bias", 64),
        bytes("experts.down_proj_blocks", &[1, 32, 1, 16], code | code << 4),
        bytes("experts.down_proj_scales", &[1, 32, 1], scale),
        zeros("experts.down_proj_bias", 32),
    ]
}

fn floats(name: &'static str, shape: &[usize]) -> Part {
    (name, Dtype::BF16, shape.to_vec(), vec![0; 2 * shape.iter().product::<usize>()])
}

#[test]
fn scales_at_the_ends_of_the_range() {
    let dir = tempfile::tempdir().unwrap();
    let weight = "experts.0.up_proj.weight";
    // 0.5·2⁻¹²⁷ is subnormal in both types, and exact.
    let checkpoint = open(dir.path(), &mxfp4(1, 0), "{}").unwrap();
    assert_eq!(checkpoint.read_f32(weight).unwrap(), [2f32.powi(-128); 1024]);
    assert_eq!(checkpoint.read_bits(weight).unwrap(), [0x20; 1024]);
    let checkpoint = open(dir.path(), &mxfp4(15, 251), "{}").unwrap();
    assert_eq!(checkpoint.read_f32(weight).unwrap(), [-6.0 * 2f32.powi(124); 1024]);
    assert_eq!(checkpoint.read_bits(weight).unwrap(), [0xfec0; 1024]);
    let checkpoint = open(dir.path(), &mxfp4(7, 253), "{}").unwrap();
    check_error(checkpoint.bytes(weight), &["'experts.0.up_proj.weight'", "overflows BF16"]);
    assert_eq!(checkpoint.content_hash().unwrap().len(), 32);
    let checkpoint = open(dir.path(), &mxfp4(0, 255), "{}").unwrap();
    assert!(checkpoint.read_f32(weight).unwrap().iter().all(|x| x.is_nan()));
    assert!(checkpoint.read_bits(weight).unwrap().iter().all(|bits| bits & 0x7fff > 0x7f80));
}

/// Parts of a layer are where the index says, in any shard.
#[test]
fn parts_may_be_in_several_shards() {
    let dir = tempfile::tempdir().unwrap();
    let golden = Checkpoint::from_bytes("golden", GOLDEN.to_vec()).unwrap();
    let parts = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
    let mut map = serde_json::Map::new();
    for (k, (name, view)) in parts.tensors().into_iter().enumerate() {
        let file = format!("{k}.safetensors");
        let dtype = if view.dtype() == safetensors::Dtype::U8 { Dtype::U8 } else { Dtype::BF16 };
        let (shape, bytes) = (view.shape().to_vec(), view.data());
        let raw = vec![RawTensor { name: name.clone(), dtype, shape, bytes }];
        let path = dir.path().join(&file);
        write_safetensors_with(path, vec![], FloatType::F32, raw, &Default::default()).unwrap();
        map.insert(name, file.into());
    }
    let index = serde_json::json!({"weight_map": map}).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(checkpoint.content_hash().unwrap(), golden.content_hash().unwrap());
}

/// Other models fuse experts in another layout, without biases.
#[test]
fn fused_experts_without_biases_stay_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let parts = [
        floats("mlp.experts.gate_up_proj", &[2, 4, 3]),
        floats("mlp.experts.down_proj", &[2, 3, 2]),
        // Not of a list of experts.
        floats("mlp.shared.gate_up_proj_bias", &[4]),
    ];
    let checkpoint = open(dir.path(), &parts, "{}").unwrap();
    let names: Vec<&str> = checkpoint.names().collect();
    assert_eq!(names, ["mlp.experts.down_proj", "mlp.experts.gate_up_proj", "mlp.shared.gate_up_proj_bias"]);
}

#[rstest]
#[case::no_scales(|parts: &mut Vec<Part>| drop(parts.remove(1)), "gate_up_proj", "'experts.gate_up_proj_scales' is missing")]
#[case::no_blocks(|parts: &mut Vec<Part>| drop(parts.remove(3)), "down_proj", "'experts.down_proj_blocks' is missing")]
#[case::no_bias(|parts: &mut Vec<Part>| drop(parts.remove(2)), "gate_up_proj", "'experts.gate_up_proj_bias' is missing")]
#[case::no_map(|parts: &mut Vec<Part>| parts.truncate(3), "down_proj", "'experts.down_proj' is missing")]
#[case::types(|parts: &mut Vec<Part>| parts[0].1 = Dtype::I8, "gate_up_proj", "the tensor of blocks is I8 [1, 64, 1, 16]; expected U8 [1, 64, 1, 16]")]
#[case::blocks(|parts: &mut Vec<Part>| parts[0].2 = vec![1, 64, 2, 8], "gate_up_proj", "expected U8 [1, 64, 1, 16]")]
#[case::scales(|parts: &mut Vec<Part>| parts[1].2 = vec![64], "gate_up_proj", "its scales are [64]; expected experts, outputs, blocks")]
#[case::bias(|parts: &mut Vec<Part>| parts[5] = floats("experts.down_proj_bias", &[1, 31]), "down_proj", "its bias is BF16 [1, 31]; expected F64 or F32 or F16 or BF16 [1, 32]")]
#[case::integers(|parts: &mut Vec<Part>| parts[5] = ("experts.down_proj_bias", Dtype::I16, vec![1, 32], vec![0; 64]), "down_proj", "its bias is I16")]
#[case::twice(|parts: &mut Vec<Part>| parts.push(floats("experts.down_proj", &[1, 32, 32])), "down_proj", "is stored both as floats and in MXFP4")]
#[case::separate(|parts: &mut Vec<Part>| parts.push(floats("experts.0.up_proj.bias", &[32])), "gate_up_proj", "'experts.0.up_proj.bias' is there as well")]
#[case::widths(|parts: &mut Vec<Part>| {
    parts[4].2 = vec![1, 16, 2];
    parts[3].2 = vec![1, 16, 2, 16];
    parts[5] = floats("experts.down_proj_bias", &[1, 16]);
}, "gate_up_proj", "has 1 experts, 32 inputs and 64 outputs; down_proj, of 1 experts, 64 inputs and 16 outputs, requires as many experts, 16 inputs and 2·64 outputs")]
#[case::experts(|parts: &mut Vec<Part>| {
    parts[4].2 = vec![2, 16, 1];
    parts[3].2 = vec![2, 16, 1, 16];
    parts[5] = floats("experts.down_proj_bias", &[2, 16]);
}, "gate_up_proj", "down_proj, of 2 experts, 32 inputs and 16 outputs, requires as many")]
#[case::none(|parts: &mut Vec<Part>| {
    parts[0] = ("experts.gate_up_proj_blocks", Dtype::U8, vec![usize::MAX, 64, 0, 16], vec![]);
    parts[1] = ("experts.gate_up_proj_scales", Dtype::U8, vec![usize::MAX, 64, 0], vec![]);
}, "gate_up_proj", "is empty")]
#[case::overflow(|parts: &mut Vec<Part>| {
    parts[0] = ("experts.gate_up_proj_blocks", Dtype::U8, vec![0, 64, usize::MAX, 16], vec![]);
    parts[1] = ("experts.gate_up_proj_scales", Dtype::U8, vec![0, 64, usize::MAX], vec![]);
}, "gate_up_proj", "its shape overflows")]
#[case::matrix(|parts: &mut Vec<Part>| parts.splice(..2, [floats("experts.gate_up_proj", &[32, 64])]).for_each(drop), "gate_up_proj", "is [32, 64]; expected experts, inputs, outputs")]
#[case::integer_weights(|parts: &mut Vec<Part>| parts.splice(..2, [("experts.gate_up_proj", Dtype::U8, vec![1, 32, 64], vec![0; 2048])]).for_each(drop), "gate_up_proj", "the weight is U8 [1, 32, 64]; expected F64")]
#[case::odd(|parts: &mut Vec<Part>| {
    parts.splice(..3, [floats("experts.gate_up_proj", &[1, 32, 63]), floats("experts.gate_up_proj_bias", &[1, 63])]).for_each(drop);
}, "gate_up_proj", "has 1 experts, 32 inputs and 63 outputs")]
fn layers_that_do_not_fit_are_named(
    #[case] change: fn(&mut Vec<Part>),
    #[case] map: &str,
    #[case] reason: &str,
) {
    let dir = tempfile::tempdir().unwrap();
    let mut parts = mxfp4(1, 127);
    change(&mut parts);
    check_error(open(dir.path(), &parts, "{}"), &[&format!("tensor 'experts.{map}'"), reason]);
}

#[test]
fn fusing_is_the_inverse_of_reading() {
    let others = ["embed", "l.mlp.router.weight", "norm"].map(|name| HostTensor::new(name, [1], vec![7.0]));
    let [first, router, last] = others;
    let mut tensors = vec![first.clone()];
    tensors.extend(separate());
    tensors.insert(5, router.clone());
    tensors.push(last.clone());
    let expected = [vec![first], fused(), vec![router, last]].concat();
    let result = fuse_experts(tensors.clone()).unwrap();
    assert_eq!(result, expected);
    // And back through a file.
    let dir = tempfile::tempdir().unwrap();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(read_all(&written(dir.path(), result, FloatType::F32)), tensors);
}

/// A whole layer of the golden file, in several layers of which one's number is a prefix of the other's.
#[test]
fn layers_are_fused_each_by_itself() {
    let golden = Checkpoint::from_bytes("golden", GOLDEN.to_vec()).unwrap();
    let mut tensors = Vec::new();
    for tensor in read_all(&golden).into_iter().filter(|tensor| tensor.name.starts_with("floats")) {
        for layer in ["1", "10"] {
            let name = tensor.name.replace("floats", &format!("model.layers.{layer}"));
            tensors.push(HostTensor { name, ..tensor.clone() });
        }
    }
    tensors.reverse();
    let result = fuse_experts(tensors).unwrap();
    assert_eq!(result.len(), 2 * FUSED.len());
    let stored = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
    for tensor in result {
        let end = tensor.name.rsplit('.').next().unwrap();
        let view = stored.tensor(&format!("floats.mlp.experts.{end}")).unwrap();
        let bytes: Vec<u8> =
            tensor.data.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        assert_eq!(
            (tensor.shape.as_slice(), bytes.as_slice()),
            (view.shape(), view.data()),
            "{}",
            tensor.name
        );
    }
}

/// The tensors to copy beside those that a writer changes.
#[test]
fn untouched_layers_are_copied_as_they_are_stored() {
    let golden = Checkpoint::from_bytes("golden", GOLDEN.to_vec()).unwrap();
    let stored = safetensors::SafeTensors::deserialize(GOLDEN).unwrap();
    let none = BTreeSet::new();
    let mut names: Vec<&str> = golden.unchanged(&none).collect();
    names.sort_unstable();
    let mut expected = stored.names();
    expected.sort_unstable();
    assert_eq!(names, expected);
    for name in names {
        let view = stored.tensor(name).unwrap();
        assert_eq!(golden.info(name).unwrap().shape, view.shape(), "{name}");
        assert_eq!(golden.read_bytes(name).unwrap(), view.data(), "{name}");
    }
    // A change of one expert separates those of its layer, and of no other.
    let changed = BTreeSet::from(["floats.mlp.experts.1.up_proj.weight".to_owned()]);
    let names: BTreeSet<&str> = golden.unchanged(&changed).collect();
    let of_layer = golden.names().filter(|name| name.starts_with("floats.") && !changed.contains(*name));
    let others = expected.into_iter().filter(|name| !name.starts_with("floats."));
    assert_eq!(names, of_layer.chain(others).collect());
    assert!(names.iter().any(|name| name.ends_with("_blocks")), "{names:?}");
}

#[rstest]
#[case::part(|tensors: &mut Vec<HostTensor<'static>>| drop(tensors.remove(4)), "'l.mlp.experts.0.up_proj.bias': is missing")]
#[case::expert(|tensors: &mut Vec<HostTensor<'static>>| tensors.truncate(7), "'l.mlp.experts.1.gate_proj.weight': is missing")]
#[case::first(|tensors: &mut Vec<HostTensor<'static>>| drop(tensors.drain(..6)), "'l.mlp.experts.0.gate_proj.weight': is missing")]
#[case::number(|tensors: &mut Vec<HostTensor<'static>>| tensors[3].name = "l.mlp.experts.00.gate_proj.weight".into(), "'l.mlp.experts.0.gate_proj.weight': is missing")]
#[case::twice(|tensors: &mut Vec<HostTensor<'static>>| tensors.push(tensors[2].clone()), "'l.mlp.experts.0.gate_proj.bias': given twice")]
#[case::shape(|tensors: &mut Vec<HostTensor<'static>>| tensors[9].shape = vec![3, 2], "'l.mlp.experts.1.gate_proj.weight': is [3, 2] with 6 elements; expected [2, 3]")]
#[case::elements(|tensors: &mut Vec<HostTensor<'static>>| tensors[5].data.to_mut().truncate(5), "'l.mlp.experts.0.up_proj.weight': is [2, 3] with 5 elements; expected [2, 3]")]
#[case::bias(|tensors: &mut Vec<HostTensor<'static>>| tensors[6].shape = vec![1, 3], "'l.mlp.experts.1.down_proj.bias': is [1, 3] with 3 elements; expected [3]")]
#[case::vector(|tensors: &mut Vec<HostTensor<'static>>| tensors[3].shape = vec![6], "'l.mlp.experts.0.gate_proj.weight': is [6]; expected (out, in)")]
#[case::empty(|tensors: &mut Vec<HostTensor<'static>>| tensors[3].shape = vec![0, 3], "'l.mlp.experts.0.gate_proj.weight': is [0, 3]; expected (out, in)")]
fn experts_that_cannot_be_fused_are_named(
    #[case] change: fn(&mut Vec<HostTensor<'static>>),
    #[case] reason: &str,
) {
    let mut tensors = separate();
    change(&mut tensors);
    check_error(fuse_experts(tensors), &[reason]);
}

/// Small files of both forms, to be mutated.
pub(crate) fn files() -> Vec<Vec<u8>> {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), &mxfp4(0xb, 130), "{}").unwrap();
    let packed = fs::read(dir.path().join("model.safetensors")).unwrap();
    written(dir.path(), fused(), FloatType::BF16);
    vec![packed, fs::read(dir.path().join("model.safetensors")).unwrap()]
}
