//! Reading a checkpoint keeps one copy of it in memory: the pages of the file are let go behind each read.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test may")]

use lowrank_checkpoint::{Checkpoint, Dtype, StreamOptions, StreamWriter, TensorPlan};

/// A line of /proc/self/status, in bytes.
fn status(field: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

// One test in this binary: the peak is the whole process's.
#[test]
fn reading_everything_peaks_at_one_copy() {
    const ROWS: usize = 512;
    const COLUMNS: usize = 8192;
    let folder = tempfile::tempdir().unwrap();
    let plan = ["a", "b", "c"].map(|name| TensorPlan::new(name, [ROWS, COLUMNS], Dtype::BF16));
    let mut source = StreamWriter::create(folder.path(), plan.to_vec(), StreamOptions::default()).unwrap();
    {
        let values: Vec<f32> = (0..ROWS * COLUMNS).map(|i| (i % 251) as f32).collect();
        for name in ["a", "b", "c"] {
            source.write_f32(name, &values).unwrap();
        }
    }
    source.finish().unwrap();
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    let bytes = checkpoint.byte_size();
    assert_eq!(bytes, 3 * 2 * ROWS * COLUMNS);

    // Nothing is kept: the peak may grow by no more than a few spans.
    let (before, peak) = (status("VmRSS"), status("VmHWM"));
    assert_eq!(checkpoint.content_hash().unwrap().len(), 32);
    let mut copy = StreamWriter::create(
        folder.path(),
        plan.to_vec(),
        StreamOptions { stem: "copy".to_owned(), ..StreamOptions::default() },
    )
    .unwrap();
    for name in ["a", "b", "c"] {
        copy.copy(name, &checkpoint, name).unwrap();
    }
    copy.finish().unwrap();
    let after = status("VmRSS");
    assert!(
        after < before + (10 << 20),
        "{before} bytes resident before, {after} after hashing and copying {bytes}"
    );
    assert!(status("VmHWM") <= peak.max(before + (20 << 20)), "the peak grew from {peak}");

    // Everything is kept as f32, twice the bytes of the file: a second copy of the file would be half as much again.
    let before = status("VmRSS");
    let kept = [
        checkpoint.read_f32("a").unwrap(),
        checkpoint.read_f32_transposed("b").unwrap(),
        checkpoint.read_f32("c").unwrap(),
    ];
    let peak = status("VmHWM");
    assert_eq!(kept[0][ROWS * COLUMNS - 1], ((ROWS * COLUMNS - 1) % 251) as f32);
    assert_eq!(kept[1][1], (COLUMNS % 251) as f32);
    let kept_bytes = kept.iter().map(|tensor| 4 * tensor.len()).sum::<usize>();
    assert!(
        peak < before + kept_bytes + kept_bytes / 10 + (4 << 20),
        "{peak} at the peak, {before} before, {kept_bytes} kept"
    );
}
