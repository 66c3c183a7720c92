//! Streaming: any order, shards, interruption and resumption.

use std::{collections::BTreeMap, fs, path::Path};

use lowrank_checkpoint::{
    Checkpoint, CheckpointError, Dtype, FloatType, HostTensor, StreamOptions, StreamWriter, TensorPlan,
    write_safetensors,
};

use crate::{check_error, listing};

fn plan() -> Vec<TensorPlan> {
    vec![
        TensorPlan::new("a", [2, 2], Dtype::F32),
        TensorPlan::new("b", [3], FloatType::BF16),
        TensorPlan::new("c", [2], Dtype::I64),
        TensorPlan::new("d", [], FloatType::F16),
    ]
}

fn keeping() -> StreamOptions {
    StreamOptions { keep_partial: true, ..StreamOptions::default() }
}

fn write_all(writer: &mut StreamWriter, names: &[&str]) {
    for name in names {
        match *name {
            "a" => writer.write_f32("a", &[1.0, 2.0, 3.0, 4.0]).unwrap(),
            "b" => writer.write_f32("b", &[5.0, 6.0, 7.0]).unwrap(),
            "c" => writer.write_bytes("c", &[8i64, 9].map(i64::to_le_bytes).concat()).unwrap(),
            _ => writer.write_f32("d", &[10.0]).unwrap(),
        }
    }
}

fn check(path: &Path) {
    let checkpoint = Checkpoint::open(path).unwrap();
    let read = |name| checkpoint.read_f32(name).unwrap();
    assert_eq!(read("a"), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(read("b"), [5.0, 6.0, 7.0]);
    assert_eq!(read("c"), [8.0, 9.0]);
    assert_eq!(read("d"), [10.0]);
    assert_eq!(checkpoint.info("b").unwrap().dtype, Dtype::BF16);
    assert_eq!(checkpoint.len(), 4);
}

#[test]
fn any_order_gives_the_same_file() {
    let mut files = Vec::new();
    for order in [["a", "b", "c", "d"], ["d", "b", "c", "a"]] {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = StreamWriter::create(folder.path(), plan(), StreamOptions::default()).unwrap();
        write_all(&mut writer, &order);
        let path = folder.path().join("model.safetensors");
        assert_eq!(writer.finish().unwrap(), std::slice::from_ref(&path));
        check(folder.path());
        assert_eq!(listing(folder.path()), ["model.safetensors"]);
        files.push(fs::read(&path).unwrap());
        safetensors::SafeTensors::deserialize(&files[0]).unwrap();
    }
    assert_eq!(files[0], files[1]);
}

#[test]
fn shards_and_their_index() {
    let folder = tempfile::tempdir().unwrap();
    let options = StreamOptions { max_shard_bytes: Some(22), ..StreamOptions::default() };
    let mut writer = StreamWriter::create(folder.path(), plan(), options).unwrap();
    assert_eq!(writer.byte_size(), 16 + 6 + 16 + 2);
    write_all(&mut writer, &["c", "a", "d", "b"]);
    // Nothing that a reader would take for a checkpoint is there before the end.
    assert!(Checkpoint::open(folder.path()).is_err());
    writer.finish().unwrap();
    check(folder.path());
    assert_eq!(
        listing(folder.path()),
        [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json"
        ]
    );
    let index = fs::read_to_string(folder.path().join("model.safetensors.index.json")).unwrap();
    let expected = r#"{
  "metadata": {
    "total_size": 40
  },
  "weight_map": {
    "a": "model-00001-of-00002.safetensors",
    "b": "model-00001-of-00002.safetensors",
    "c": "model-00002-of-00002.safetensors",
    "d": "model-00002-of-00002.safetensors"
  }
}
"#;
    assert_eq!(index, expected);
}

#[test]
fn misuse_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = StreamWriter::create(folder.path(), plan(), StreamOptions::default()).unwrap();
    check_error(writer.write_f32("aa", &[]), &["'aa'", "not planned", "nearest: 'a'"]);
    check_error(writer.write_f32("a", &[1.0]), &["'a'", "[2, 2]", "1 elements"]);
    check_error(writer.write_f32("c", &[1.0, 2.0]), &["'c'", "I64"]);
    check_error(writer.write_bytes("c", &[1]), &["16 bytes planned, 1"]);
    check_error(writer.write_f32("d", &[1e6]), &["'d'", "1e6", "f16"]);
    // What failed is still to be written.
    assert_eq!(writer.missing().collect::<Vec<_>>(), ["a", "b", "c", "d"]);
    write_all(&mut writer, &["a", "d"]);
    check_error(writer.write_f32("a", &[0.0; 4]), &["written already"]);
    assert!(writer.is_written("a") && !writer.is_written("b") && !writer.is_written("x"));
    let unfinished = writer.finish();
    assert!(
        matches!(&unfinished, Err(CheckpointError::Unfinished { missing: 2, first, .. }) if first == "b")
    );
    assert_eq!(listing(folder.path()), [""; 0]);

    let twice = [plan(), plan()].concat();
    check_error(StreamWriter::create(folder.path(), twice, StreamOptions::default()), &["'a'", "twice"]);
    let huge = vec![TensorPlan::new("x", [usize::MAX, 2], Dtype::F32)];
    check_error(StreamWriter::create(folder.path(), huge, StreamOptions::default()), &["'x'", "overflows"]);
    let stem = StreamOptions { stem: "../model".to_owned(), ..StreamOptions::default() };
    check_error(StreamWriter::create(folder.path(), plan(), stem), &["../model"]);
    assert_eq!(listing(folder.path()), [""; 0]);
    let absent = folder.path().join("absent");
    check_error(StreamWriter::create(&absent, plan(), StreamOptions::default()), &["absent"]);
}

#[test]
fn a_finished_checkpoint_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("model.safetensors"), "mine").unwrap();
    for start in [StreamWriter::create, StreamWriter::resume] {
        let refused = start(folder.path(), plan(), StreamOptions::default());
        assert!(matches!(refused, Err(CheckpointError::DestinationExists { .. })));
    }
    assert_eq!(listing(folder.path()), ["model.safetensors"]);
}

#[test]
fn an_interrupted_job_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = StreamWriter::create(folder.path(), plan(), keeping()).unwrap();
    write_all(&mut writer, &["c", "a"]);
    drop(writer);
    assert!(Checkpoint::open(folder.path()).is_err());

    let mut writer = StreamWriter::resume(folder.path(), plan(), keeping()).unwrap();
    assert_eq!(writer.missing().collect::<Vec<_>>(), ["b", "d"]);
    write_all(&mut writer, &["d"]);
    drop(writer);
    let mut writer = StreamWriter::resume(folder.path(), plan(), keeping()).unwrap();
    assert_eq!(writer.missing().collect::<Vec<_>>(), ["b"]);
    write_all(&mut writer, &["b"]);
    writer.finish().unwrap();
    check(folder.path());
    assert_eq!(listing(folder.path()), ["model.safetensors"]);
}

#[test]
fn resuming_trusts_hashes_and_not_the_journal() {
    let folder = tempfile::tempdir().unwrap();
    let partial = folder.path().join(".model.safetensors.partial");
    let journal = folder.path().join(".model.journal");
    let mut writer = StreamWriter::create(folder.path(), plan(), keeping()).unwrap();
    write_all(&mut writer, &["a", "b", "c"]);
    drop(writer);

    // The elements of `a`, after those of the wider `c`, did not reach the disk.
    let mut bytes = fs::read(&partial).unwrap();
    let at = bytes.len() - (16 + 6 + 2);
    bytes[at..at + 16].fill(0);
    fs::write(&partial, &bytes).unwrap();
    // The last line of the journal did so in part.
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, &text[..text.len() - 3]).unwrap();

    let mut writer = StreamWriter::resume(folder.path(), plan(), keeping()).unwrap();
    assert_eq!(writer.missing().collect::<Vec<_>>(), ["a", "c", "d"]);
    write_all(&mut writer, &["a"]);
    drop(writer);
    let writer = StreamWriter::resume(folder.path(), plan(), keeping()).unwrap();
    assert_eq!(writer.missing().collect::<Vec<_>>(), ["c", "d"]);
    drop(writer);

    // A partial file cut short, or gone, has none of its tensors.
    fs::write(&partial, &bytes[..bytes.len() - 1]).unwrap();
    let writer = StreamWriter::resume(folder.path(), plan(), keeping()).unwrap();
    assert_eq!(writer.missing().count(), 4);
    drop(writer);
    fs::write(&journal, "not json\n").unwrap();
    let mut writer = StreamWriter::resume(folder.path(), plan(), keeping()).unwrap();
    write_all(&mut writer, &["a", "b", "c", "d"]);
    writer.finish().unwrap();
    check(folder.path());
}

#[test]
fn another_job_does_not_resume() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = StreamWriter::create(folder.path(), plan(), keeping()).unwrap();
    write_all(&mut writer, &["a"]);
    check_error(StreamWriter::resume(folder.path(), plan(), keeping()), &["another process"]);
    check_error(StreamWriter::create(folder.path(), plan(), keeping()), &["another process"]);
    drop(writer);
    let metadata = BTreeMap::from([("source".to_owned(), "other".to_owned())]);
    let other = StreamWriter::resume(folder.path(), plan(), StreamOptions { metadata, ..keeping() });
    check_error(other, &["cannot resume", "other settings"]);
    // It has not been harmed by the attempt; and starting anew is possible.
    assert!(StreamWriter::resume(folder.path(), plan(), keeping()).unwrap().is_written("a"));
    assert!(!StreamWriter::create(folder.path(), plan(), StreamOptions::default()).unwrap().is_written("a"));
    assert_eq!(listing(folder.path()), [""; 0]);
}

#[test]
fn an_interruption_between_the_renames_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let options = StreamOptions { max_shard_bytes: Some(22), ..keeping() };
    let mut writer = StreamWriter::create(folder.path(), plan(), options.clone()).unwrap();
    write_all(&mut writer, &["a", "b", "c", "d"]);
    drop(writer);
    let first = "model-00001-of-00002.safetensors";
    fs::rename(folder.path().join(format!(".{first}.partial")), folder.path().join(first)).unwrap();
    let writer = StreamWriter::resume(folder.path(), plan(), options).unwrap();
    assert_eq!(writer.missing().count(), 0);
    writer.finish().unwrap();
    check(folder.path());
    assert_eq!(listing(folder.path()).len(), 3);
}

#[test]
fn a_finished_job_is_resumed_as_finished() {
    for limit in [None, Some(22)] {
        let folder = tempfile::tempdir().unwrap();
        let options = StreamOptions { max_shard_bytes: limit, ..keeping() };
        let mut writer = StreamWriter::create(folder.path(), plan(), options.clone()).unwrap();
        write_all(&mut writer, &["a", "b", "c", "d"]);
        let files = writer.finish().unwrap();
        // Killed before the folder around it was complete, and then once more.
        let writer = StreamWriter::resume(folder.path(), plan(), options.clone()).unwrap();
        assert_eq!(writer.missing().count(), 0);
        drop(writer);
        let writer = StreamWriter::resume(folder.path(), plan(), options).unwrap();
        assert_eq!(writer.missing().count(), 0);
        assert_eq!(writer.finish().unwrap(), files);
        check(folder.path());
        // Another job's output it leaves alone.
        let other = StreamWriter::resume(folder.path(), plan()[1..].to_vec(), keeping());
        assert!(matches!(other, Err(CheckpointError::DestinationExists { .. })));
        check(folder.path());
    }
}

#[test]
fn tensors_are_copied_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source.safetensors");
    let tensors = vec![HostTensor::new("x", [4], vec![1.0, 2.0, 3.0, f32::NAN])];
    write_safetensors(&source, tensors, FloatType::F16, &BTreeMap::new()).unwrap();
    let source = Checkpoint::open(&source).unwrap();
    let plan = vec![TensorPlan::new("y", [2, 2], Dtype::F16), TensorPlan::new("z", [4], Dtype::F32)];
    let mut writer = StreamWriter::create(folder.path(), plan, StreamOptions::default()).unwrap();
    check_error(writer.copy("z", &source, "x"), &["'z'", "F32", "'x' is [4] F16"]);
    check_error(writer.copy("z", &source, "w"), &["no tensor 'w'"]);
    writer.copy("y", &source, "x").unwrap();
    writer.write_f32("z", &[0.0; 4]).unwrap();
    writer.finish().unwrap();
    let copied = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(copied.bytes("y").unwrap(), source.bytes("x").unwrap());
    assert_eq!(copied.info("y").unwrap().shape, [2, 2]);
}

#[test]
fn an_empty_plan_is_an_empty_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    StreamWriter::create(folder.path(), vec![], StreamOptions::default()).unwrap().finish().unwrap();
    assert!(Checkpoint::open(folder.path()).unwrap().is_empty());
}
