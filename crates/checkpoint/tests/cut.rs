//! Files that another process changes in place while they are mapped.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::{
    collections::BTreeMap,
    env,
    fs::{self, File},
    io::{Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::Duration,
};

use lowrank_checkpoint::{
    Checkpoint, CheckpointError, Dtype, FloatType, HostTensor, StreamOptions, StreamWriter, TensorPlan,
    report_cut_files, write_safetensors,
};

/// Enough for a file that is mapped and not copied.
const LEN: usize = 5 << 20;

fn large(dir: &Path) -> PathBuf {
    let path = dir.join("large.safetensors");
    let tensors = ["a", "b"].map(|name| HostTensor::new(name, [LEN / 2], vec![1.0; LEN / 2])).to_vec();
    write_safetensors(&path, tensors, FloatType::F32, &BTreeMap::new()).unwrap();
    path
}

#[test]
fn a_file_that_was_changed_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    for change in 0..3 {
        let path = large(dir.path());
        let checkpoint = Checkpoint::open(&path).unwrap();
        assert_eq!(checkpoint.read_f32("a").unwrap(), vec![1.0; LEN / 2]);
        // Longer than the clock of the file system is coarse.
        sleep(Duration::from_millis(30));
        let mut file = File::options().write(true).open(&path).unwrap();
        match change {
            0 => file.set_len(4096).unwrap(),
            1 => {
                file.seek(SeekFrom::Start(1 << 20)).unwrap();
                file.write_all(&[0; 4]).unwrap();
            }
            _ => {
                fs::remove_file(&path).unwrap();
                large(dir.path());
            }
        }
        let read = [
            checkpoint.read_f32("b").map(|_| ()),
            checkpoint.read_f64("a").map(|_| ()),
            checkpoint.bytes("a").map(|_| ()),
        ];
        for read in read {
            // A file in its place is another one.
            if change == 2 {
                read.unwrap();
                continue;
            }
            let error = read.unwrap_err();
            assert!(matches!(error, CheckpointError::Malformed { .. }), "{error}");
            assert!(
                error.to_string().contains("large.safetensors: was changed while it was read"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_source_cut_short_stops_its_copy() {
    let dir = tempfile::tempdir().unwrap();
    let path = large(dir.path());
    let checkpoint = Checkpoint::open(&path).unwrap();
    let plan = ["a", "b"].map(|name| TensorPlan::new(name, [LEN / 2], Dtype::F32)).to_vec();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let mut copy = StreamWriter::create(&out, plan, StreamOptions::default()).unwrap();
    copy.copy("a", &checkpoint, "a").unwrap();
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    let error = copy.copy("b", &checkpoint, "b").unwrap_err();
    assert!(error.to_string().contains("large.safetensors: was changed while it was read"), "{error}");
    // Identity and copies in memory need every byte too.
    for error in
        [checkpoint.content_hash().map(drop), checkpoint.read_bytes("b").map(drop)].map(Result::unwrap_err)
    {
        assert!(error.to_string().contains("was changed"), "{error}");
    }
}

/// The variable that makes this program the one whose file is cut.
const CUT: &str = "LOWRANK_TEST_CUT";

#[test]
fn a_file_cut_short_during_a_read_is_reported() {
    if let Some(path) = env::var_os(CUT) {
        report_cut_files();
        let small = Checkpoint::open(&path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        // Another map, opened and closed.
        drop(small);
        let bytes = checkpoint.bytes("b").unwrap();
        File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
        let sum: u64 = bytes.iter().map(|&byte| u64::from(byte)).sum();
        panic!("the bytes of a file without them were read: {sum}");
    }
    let dir = tempfile::tempdir().unwrap();
    let name = "a_file_cut_short_during_a_read_is_reported";
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CUT, large(dir.path()))
        .output()
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.starts_with("error: ") && error.contains("large.safetensors: was truncated"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}
