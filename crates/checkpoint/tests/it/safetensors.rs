//! The safetensors format: beside the reference implementation, and against files that break it.

use std::{borrow::Cow, collections::BTreeMap, fs};

use lowrank_checkpoint::{Checkpoint, CheckpointError, Dtype, FloatType, HostTensor, write_safetensors};
use safetensors::{
    SafeTensors,
    tensor::{Dtype as RefDtype, TensorView},
};

use crate::{check_error, listing, raw_safetensors};

/// Name, type there and here, shape, bytes.
type Case = (&'static str, RefDtype, Dtype, Vec<usize>, Vec<u8>);

/// One tensor of every type.
fn every_type() -> Vec<Case> {
    vec![
        ("f64", RefDtype::F64, Dtype::F64, vec![1, 2], [0.1f64, -3.0].map(f64::to_le_bytes).concat()),
        ("f32", RefDtype::F32, Dtype::F32, vec![2, 1], [1.5f32, -3.0].map(f32::to_le_bytes).concat()),
        ("f16", RefDtype::F16, Dtype::F16, vec![2], vec![0x00, 0x3c, 0x00, 0xc0]),
        ("bf16", RefDtype::BF16, Dtype::BF16, vec![], vec![0x80, 0x3f]),
        ("i64", RefDtype::I64, Dtype::I64, vec![1], (-5i64).to_le_bytes().to_vec()),
        ("i32", RefDtype::I32, Dtype::I32, vec![1], 6i32.to_le_bytes().to_vec()),
        ("i16", RefDtype::I16, Dtype::I16, vec![1], (-7i16).to_le_bytes().to_vec()),
        ("i8", RefDtype::I8, Dtype::I8, vec![1], vec![0xf8]),
        ("u64", RefDtype::U64, Dtype::U64, vec![1], 8u64.to_le_bytes().to_vec()),
        ("u32", RefDtype::U32, Dtype::U32, vec![1], 9u32.to_le_bytes().to_vec()),
        ("u16", RefDtype::U16, Dtype::U16, vec![1], 10u16.to_le_bytes().to_vec()),
        ("u8", RefDtype::U8, Dtype::U8, vec![3], vec![1, 2, 3]),
        ("bool", RefDtype::BOOL, Dtype::Bool, vec![2], vec![0, 1]),
        ("empty", RefDtype::F32, Dtype::F32, vec![3, 0], vec![]),
    ]
}

#[test]
fn files_of_the_reference_implementation_are_read() {
    let tensors = every_type();
    let views = tensors.iter().map(|(name, dtype, _, shape, bytes)| {
        (*name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    let file = safetensors::serialize(views, Some(metadata)).unwrap();
    let checkpoint = Checkpoint::from_bytes("reference", file).unwrap();
    assert_eq!(checkpoint.metadata()["format"], "pt");
    assert_eq!(checkpoint.len(), tensors.len());
    assert!(checkpoint.names().is_sorted());
    for (name, _, dtype, shape, bytes) in &tensors {
        let info = checkpoint.info(name).unwrap();
        assert_eq!((&info.shape, info.dtype), (shape, *dtype), "{name}");
        assert_eq!(checkpoint.bytes(name).unwrap(), *bytes, "{name}");
    }
    let read = |name| checkpoint.read_f32(name).unwrap();
    assert_eq!(read("f64"), [0.1, -3.0]);
    assert_eq!(checkpoint.read_f64("f64").unwrap(), [0.1, -3.0]);
    assert_eq!(read("f32"), [1.5, -3.0]);
    assert_eq!(read("f16"), [1.0, -2.0]);
    assert_eq!(read("bf16"), [1.0]);
    assert_eq!(read("i64"), [-5.0]);
    assert_eq!(read("i8"), [-8.0]);
    assert_eq!(read("bool"), [0.0, 1.0]);
    assert_eq!(read("empty"), [0f32; 0]);
}

#[test]
fn our_files_are_read_by_the_reference_implementation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values = [1.0f32, -2.5, 3.0e4, 0.0, 1.0e-3, 6.0];
    for dtype in [FloatType::F32, FloatType::F16, FloatType::BF16] {
        let tensors = vec![
            HostTensor::new("b", [2, 3], &values[..]),
            HostTensor::new("a", [], vec![7.0]),
            HostTensor::new("none", [0, 2], vec![]),
        ];
        let metadata = BTreeMap::from([("source".to_owned(), "a \"quoted\" one\n".to_owned())]);
        write_safetensors(&path, tensors, dtype, &metadata).unwrap();
        let file = fs::read(&path).unwrap();
        let (header, parsed) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header % 8, 0);
        let strings = parsed.metadata().clone().unwrap();
        assert_eq!((strings["format"].as_str(), strings["source"].as_str()), ("pt", "a \"quoted\" one\n"));
        let reference = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(reference.tensor("b").unwrap().shape(), [2, 3]);
        let expected: Vec<u8> = match dtype {
            FloatType::F32 => values.map(f32::to_le_bytes).concat(),
            FloatType::F16 => values.map(|x| half::f16::from_f32(x).to_le_bytes()).concat(),
            FloatType::BF16 => values.map(|x| half::bf16::from_f32(x).to_le_bytes()).concat(),
        };
        assert_eq!(reference.tensor("b").unwrap().data(), expected, "{dtype}");
        assert_eq!(reference.names().len(), 3);
    }
    assert_eq!(listing(folder.path()), ["model.safetensors"]);
}

#[test]
fn headers_of_other_writers_are_read_as_the_reference_implementation_reads_them() {
    // No metadata as null, and a key that the format does not know.
    let header = r#"{"__metadata__":null,"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"note":"a"}}"#;
    let file = raw_safetensors(header, &[7]);
    assert_eq!(SafeTensors::deserialize(&file).unwrap().tensor("x").unwrap().data(), [7]);
    let checkpoint = Checkpoint::from_bytes("null", file).unwrap();
    assert_eq!((checkpoint.read_f32("x").unwrap(), checkpoint.metadata().len()), (vec![7.0], 0));
}

#[test]
fn tensors_that_save_model_left_out_are_found_under_their_names() {
    // `save_model` keeps the first name of those that share data; the metadata name the others.
    let header = r#"{"__metadata__":{"format":"head.weight","embed.weight":"head.weight","bias":"gone","note":"text"},
        "head.weight":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#;
    let checkpoint = Checkpoint::from_bytes("shared", raw_safetensors(header, &[3, 4])).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["embed.weight", "head.weight"]);
    assert_eq!(checkpoint.read_f32("embed.weight").unwrap(), [3.0, 4.0]);
    // A tensor that the file holds counts, whatever the metadata say.
    let header = r#"{"__metadata__":{"b":"a"},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},
        "b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#;
    let checkpoint = Checkpoint::from_bytes("own", raw_safetensors(header, &[3, 4])).unwrap();
    assert_eq!(checkpoint.read_f32("b").unwrap(), [4.0]);
}

#[test]
fn a_small_file_may_be_written_again_in_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let file = raw_safetensors(r#"{"x":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#, &[7]);
    fs::write(&path, file).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    // Truncated in place, under an open map, it would end the process.
    fs::write(&path, "").unwrap();
    assert_eq!(checkpoint.read_f32("x").unwrap(), [7.0]);
}

#[test]
fn parts_are_those_of_the_whole_tensor() {
    // Several spans of a map, of which none ends with a part.
    let values: Vec<f32> = (0..3_000_000).map(|i| i as f32 * 0.25).collect();
    let dir = tempfile::tempdir().unwrap();
    for float in [FloatType::F32, FloatType::BF16] {
        let path = dir.path().join("x.safetensors");
        let tensor = HostTensor::new("x", [values.len()], values.as_slice());
        write_safetensors(&path, vec![tensor], float, &BTreeMap::new()).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        for len in [0, 1000, 777_777, values.len(), 2 * values.len()] {
            let (mut lens, mut read) = (Vec::new(), Vec::new());
            let result: Result<(), CheckpointError> = checkpoint.try_each_f32("x", len, |part| {
                lens.push(part.len());
                read.extend_from_slice(part);
                Ok(())
            });
            result.unwrap();
            assert!(read == checkpoint.read_f32("x").unwrap(), "{float:?} {len}");
            let (last, others) = lens.split_last().unwrap();
            assert!(others.iter().all(|found| *found == len.max(1)) && *last <= len.max(1), "{lens:?}");
        }
        let mut calls = 0;
        let stopped = checkpoint.try_each_f32("x", 1000, |_| {
            calls += 1;
            Err(CheckpointError::InUse { path: path.clone() })
        });
        assert!(matches!(stopped, Err(CheckpointError::InUse { .. })) && calls == 1);
        let absent: Result<(), CheckpointError> = checkpoint.try_each_f32("y", 1, |_| Ok(()));
        check_error(absent, &["no tensor 'y'"]);
    }
}

#[test]
fn an_odd_header_length_leaves_floats_unaligned_and_readable() {
    let header = r#"{"x":{"dtype":"F32","shape":[2,2],"data_offsets":[1,17]},"y":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let data = [&[9u8][..], &[1.0f32, 2.0, 3.0, 4.0].map(f32::to_le_bytes).concat()].concat();
    for padding in 0..8 {
        let file = raw_safetensors(&(header.to_owned() + &" ".repeat(padding)), &data);
        let checkpoint = Checkpoint::from_bytes("odd", file).unwrap();
        assert_eq!(checkpoint.read_f32("x").unwrap(), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(checkpoint.read_f32_transposed("x").unwrap(), [1.0, 3.0, 2.0, 4.0]);
    }
}

/// A header of one f32 tensor `x` with these parts.
fn one(shape: &str, offsets: &str) -> String {
    format!(r#"{{"x":{{"dtype":"F32","shape":{shape},"data_offsets":{offsets}}}}}"#)
}

#[test]
fn broken_files_are_errors_that_say_where() {
    let cases: Vec<(Vec<u8>, &[&str])> = vec![
        (vec![], &["bad.safetensors", "empty file"]),
        (vec![1, 2, 3], &["truncated"]),
        ((1u64 << 60).to_le_bytes().to_vec(), &["1152921504606846976", "more than"]),
        (100u64.to_le_bytes().to_vec(), &["100 bytes", "truncated"]),
        (raw_safetensors("{", b""), &["header"]),
        (raw_safetensors("[]", b""), &["header"]),
        (raw_safetensors("{}trailing", b""), &["header"]),
        (raw_safetensors("{}", b"1"), &["0 bytes", "has 1"]),
        (raw_safetensors(&one("[2]", "[0,8]"), &[0; 7]), &["'x'", "0..8", "7 bytes"]),
        (raw_safetensors(&one("[2]", "[0,8]"), &[0; 9]), &["8 bytes", "has 9"]),
        (raw_safetensors(&one("[2]", "[8,0]"), &[0; 8]), &["'x'", "8..0"]),
        (raw_safetensors(&one("[3]", "[0,8]"), &[0; 8]), &["'x'", "takes 12", "gives 8"]),
        (raw_safetensors(&one("[2]", "[4,12]"), &[0; 12]), &["'x'", "gap"]),
        (raw_safetensors(&one("[4294967296,4294967296,4294967296]", "[0,0]"), b""), &["'x'", "overflows"]),
        (raw_safetensors(&one("[4611686018427387904]", "[0,0]"), b""), &["'x'", "overflows"]),
        (raw_safetensors(&one("[-1]", "[0,0]"), b""), &["header"]),
        (raw_safetensors(&one("[1.5]", "[0,6]"), &[0; 6]), &["header"]),
        (raw_safetensors(&one("[2]", "[0,18446744073709551616]"), &[0; 8]), &["header"]),
        (raw_safetensors(&one("[2]", "[0,8,8]"), &[0; 8]), &["header"]),
        (
            raw_safetensors(r#"{"x\n":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}"#, &[0]),
            &["'x\\n'", "F8_E4M3", "not supported"],
        ),
        (
            raw_safetensors(
                r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}}"#,
                &[0; 3],
            ),
            &["'b'", "overlaps"],
        ),
        (
            raw_safetensors(
                r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}"#,
                &[0; 2],
            ),
            &["two tensors named 'a'"],
        ),
        (raw_safetensors(r#"{"__metadata__":{"a":"1","a":"2"}}"#, b""), &["two entries named 'a'"]),
        (raw_safetensors(r#"{"__metadata__":{},"__metadata__":{}}"#, b""), &["two __metadata__"]),
        (raw_safetensors(r#"{"__metadata__":{"a":1}}"#, b""), &["header"]),
        (raw_safetensors(&format!("{{\"x\":{}", "[".repeat(100_000)), b""), &["header"]),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), &["git lfs pull"]),
        (b"GGUF............".to_vec(), &["bad.safetensors"]),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.safetensors");
    for (file, parts) in cases {
        fs::write(&path, file).unwrap();
        check_error(Checkpoint::open(&path), parts);
    }
}

#[test]
fn what_cannot_be_written_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let none = BTreeMap::new();
    write_safetensors(&path, vec![HostTensor::new("x", [1], vec![1.0])], FloatType::F32, &none).unwrap();
    let before = fs::read(&path).unwrap();

    let write = |tensors, dtype| write_safetensors(&path, tensors, dtype, &none);
    let x = |data: Vec<f32>| HostTensor { name: "x".to_owned(), shape: vec![1], data: Cow::Owned(data) };
    let overflow = write(vec![x(vec![1.0e5])], FloatType::F16);
    assert!(matches!(overflow, Err(CheckpointError::Overflow { value: 1.0e5, dtype: "f16", .. })));
    check_error(overflow, &["model.safetensors", "'x'", "1e5", "f16", "bf16"]);
    check_error(write(vec![x(vec![])], FloatType::F32), &["'x'", "[1]", "0 elements"]);
    check_error(write(vec![x(vec![1.0]), x(vec![2.0])], FloatType::F32), &["'x'", "twice"]);
    let reserved = HostTensor::new("__metadata__", [0], vec![]);
    check_error(write(vec![reserved], FloatType::F32), &["'__metadata__'", "reserved"]);

    assert_eq!(fs::read(&path).unwrap(), before);
    assert_eq!(listing(folder.path()), ["model.safetensors"]);
    let nowhere = folder.path().join("absent").join("model.safetensors");
    check_error(write_safetensors(nowhere, vec![], FloatType::F32, &none), &["absent"]);
}

#[test]
fn infinities_and_nan_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    let values = vec![f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    for dtype in [FloatType::F32, FloatType::F16, FloatType::BF16] {
        let tensor = HostTensor::new("x", [3], values.clone());
        write_safetensors(&path, vec![tensor], dtype, &BTreeMap::new()).unwrap();
        let read = Checkpoint::open(&path).unwrap().read_f32("x").unwrap();
        assert_eq!(read[..2], values[..2]);
        assert!(read[2].is_nan());
    }
}

#[test]
fn the_same_tensors_give_the_same_file_in_any_order() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (folder.path().join("1"), folder.path().join("2"));
    let tensors = |names: [&str; 3]| {
        names.map(|name| HostTensor::new(name, [1], vec![f32::from(name.as_bytes()[0])])).to_vec()
    };
    write_safetensors(&one, tensors(["c", "a", "b"]), FloatType::F32, &BTreeMap::new()).unwrap();
    write_safetensors(&two, tensors(["a", "b", "c"]), FloatType::F32, &BTreeMap::new()).unwrap();
    assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
}

#[test]
fn the_content_hash_knows_contents_only() {
    let make = |name: &str, dtype: &str, shape: &str, data: &[u8], metadata: &str| {
        let header = format!(
            r#"{{"__metadata__":{{{metadata}}},"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{}]}}}}"#,
            data.len()
        );
        Checkpoint::from_bytes("x", raw_safetensors(&header, data)).unwrap().content_hash().unwrap()
    };
    let base = make("a", "I32", "[1,2]", &[1, 2, 3, 4, 5, 6, 7, 8], "");
    assert_eq!(base, make("a", "I32", "[1,2]", &[1, 2, 3, 4, 5, 6, 7, 8], r#""k":"v""#));
    for other in [
        make("b", "I32", "[1,2]", &[1, 2, 3, 4, 5, 6, 7, 8], ""),
        make("a", "F32", "[1,2]", &[1, 2, 3, 4, 5, 6, 7, 8], ""),
        make("a", "I32", "[2,1]", &[1, 2, 3, 4, 5, 6, 7, 8], ""),
        make("a", "I32", "[2]", &[1, 2, 3, 4, 5, 6, 7, 8], ""),
        make("a", "I32", "[1,2]", &[1, 2, 3, 4, 5, 6, 7, 9], ""),
    ] {
        assert_ne!(base, other);
    }
}

#[test]
fn a_missing_tensor_names_its_nearest() {
    let header = r#"{"layer.0.q_proj.weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    let checkpoint = Checkpoint::from_bytes("m", raw_safetensors(header, &[0])).unwrap();
    check_error(
        checkpoint.read_f32("layer.0.q_porj.weight"),
        &["'layer.0.q_porj.weight'", "nearest: 'layer.0.q_proj.weight'"],
    );
    check_error(checkpoint.read_f32_transposed("layer.0.q_proj.weight"), &["matrix", "1 dimensions"]);
    assert!(!checkpoint.contains("x") && checkpoint.info("x").is_none());
}

#[test]
fn a_checkpoint_is_shared_between_threads() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let values: Vec<f32> = (0..100_000).map(|i| i as f32).collect();
    let tensors = vec![HostTensor::new("x", [250, 400], &values[..])];
    write_safetensors(&path, tensors, FloatType::F32, &BTreeMap::new()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    // Each read lets the pages go that the others read.
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert!(checkpoint.read_f32("x").unwrap() == values);
                    assert_eq!(checkpoint.read_bytes("x").unwrap()[4..8], 1f32.to_le_bytes());
                }
            });
        }
    });
}
