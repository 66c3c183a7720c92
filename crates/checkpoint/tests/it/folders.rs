//! Which file of a folder counts, and what an index may name.

use std::{collections::BTreeMap, fs, path::Path};

use lowrank_checkpoint::{Checkpoint, CheckpointError, FloatType, HostTensor, write_safetensors};

use crate::check_error;

/// Writes one tensor `x` of one value.
fn write(path: &Path, name: &str, value: f32) {
    let tensor = HostTensor::new(name, [1], vec![value]);
    write_safetensors(path, vec![tensor], FloatType::F32, &BTreeMap::new()).unwrap();
}

#[test]
fn the_best_file_of_a_folder_counts() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let value = || Checkpoint::open(folder.path()).unwrap().read_f32("x").unwrap()[0];
    let index = |shard: &str| format!(r#"{{"weight_map":{{"x":"{shard}"}}}}"#);

    write(&at("adapter_model.bin"), "x", 6.0);
    assert_eq!(value(), 6.0);
    write(&at("adapter_model.safetensors"), "x", 5.0);
    assert_eq!(value(), 5.0);
    write(&at("4"), "x", 4.0);
    fs::write(at("pytorch_model.bin.index.json"), index("4")).unwrap();
    assert_eq!(value(), 4.0);
    write(&at("pytorch_model.bin"), "x", 3.0);
    assert_eq!(value(), 3.0);
    write(&at("2"), "x", 2.0);
    fs::write(at("model.safetensors.index.json"), index("2")).unwrap();
    assert_eq!(value(), 2.0);
    write(&at("model.safetensors"), "x", 1.0);
    assert_eq!(value(), 1.0);

    assert_eq!(Checkpoint::open_adapter(folder.path()).unwrap().read_f32("x").unwrap(), [5.0]);
    assert_eq!(Checkpoint::open(at("4")).unwrap().read_f32("x").unwrap(), [4.0]);
    assert_eq!(Checkpoint::open(at("model.safetensors.index.json")).unwrap().read_f32("x").unwrap(), [2.0]);
}

#[test]
fn what_was_looked_for_is_listed() {
    let folder = tempfile::tempdir().unwrap();
    check_error(
        Checkpoint::open(folder.path()),
        &["model.safetensors, model.safetensors.index.json, pytorch_model.bin, pytorch_model.bin.index.json"],
    );
    fs::write(folder.path().join("lora.bin"), "").unwrap();
    check_error(Checkpoint::open(folder.path()), &["to open 'lora.bin'"]);
    let absent = Checkpoint::open(folder.path().join("absent"));
    assert!(matches!(absent, Err(CheckpointError::NoCheckpoint { .. })));
    // A folder in the place of a file is not passed over.
    fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    check_error(Checkpoint::open(folder.path()), &["model.safetensors", "not a regular file"]);
}

#[test]
fn shards_are_one_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    write(&at("one.safetensors"), "a", 1.0);
    write(&at("two.safetensors"), "b", 2.0);
    let map = r#""weight_map":{"a":"one.safetensors","b":"two.safetensors"}"#;
    fs::write(at("model.safetensors.index.json"), format!(r#"{{"metadata":{{"total_size":8}},{map}}}"#))
        .unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(
        (checkpoint.read_f32("a").unwrap(), checkpoint.read_f32("b").unwrap()),
        (vec![1.0], vec![2.0])
    );
    assert_eq!(checkpoint.metadata()["total_size"], "8");
    assert_eq!(checkpoint.byte_size(), 8);

    // The same tensors in one file have the same hash.
    let both = vec![HostTensor::new("a", [1], vec![1.0]), HostTensor::new("b", [1], vec![2.0])];
    write_safetensors(at("whole.safetensors"), both, FloatType::F32, &BTreeMap::new()).unwrap();
    assert_eq!(
        Checkpoint::open(at("whole.safetensors")).unwrap().content_hash().unwrap(),
        checkpoint.content_hash().unwrap()
    );
}

#[test]
fn an_index_names_nothing_but_its_folder() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("model");
    fs::create_dir(&folder).unwrap();
    write(&outside.path().join("secret.safetensors"), "x", 1.0);
    write(&folder.join("here.safetensors"), "y", 1.0);
    let absolute = outside.path().join("secret.safetensors");
    for (shard, part) in [
        ("../secret.safetensors", "outside its folder"),
        ("a/../../secret.safetensors", "outside its folder"),
        (absolute.to_str().unwrap(), "outside its folder"),
        ("gone.safetensors", "missing"),
        ("here.safetensors", "lacks it"),
    ] {
        let index = format!(r#"{{"weight_map":{{"x":"{shard}"}}}}"#);
        fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        check_error(Checkpoint::open(&folder), &[part]);
    }
    for text in ["", "[]", "{}", r#"{"weight_map":{"x":"a","x":"b"}}"#] {
        fs::write(folder.join("model.safetensors.index.json"), text).unwrap();
        check_error(Checkpoint::open(&folder), &["index"]);
    }
}
