//! Fuzz bodies: arbitrary bytes as an event file or a record cause no panic; errors are one line.
//!
//! Run for hours by cargo-fuzz (`fuzz/`), and for seconds on mutated files by the tests.

use std::ops::ControlFlow;
use std::path::Path;

use crate::run::RunRecord;
use crate::tfevents::{Logged, read_events};

/// An event file: what it contains is within its bytes.
pub fn events(path: &Path) {
    let len = std::fs::metadata(path).map_or(0, |meta| meta.len() as usize);
    let mut seen = 0usize;
    let report = read_events(path, |logged| {
        if let Logged::Scalar(scalar) = logged {
            assert!(scalar.tag.len() <= len);
        }
        seen += 1;
        if seen > len { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    match report {
        Ok(report) => {
            assert!(report.bytes <= len as u64 && report.records <= report.bytes);
            report.warnings.iter().for_each(|warning| check(warning));
        }
        Err(error) => check(&error.to_string()),
    }
}

/// A `run.json`: one that is read is read back the same.
pub fn record(path: &Path) {
    match RunRecord::read(path) {
        Ok(record) => {
            record.write_atomic(path).expect("what was read can be written");
            assert_eq!(RunRecord::read(path).expect("what was written can be read"), record);
        }
        Err(error) => check(&error.to_string()),
    }
}

/// A message is one line.
fn check(message: &str) {
    assert!(!message.contains('\n'), "{message:?}");
}

#[cfg(test)]
mod tests {
    use std::fs;

    use lowrank_checkpoint::fuzz::{on_file, on_mutations};
    use serde_json::json;

    use super::*;
    use crate::run::{MetaInfo, RunInfo};
    use crate::tfevents::{EventWriter, Session};

    fn run(rounds: usize, file: &[u8], body: fn(&Path)) {
        on_mutations(7, rounds, file, |data| on_file("file", data, body));
    }

    #[test]
    fn mutated_event_files_are_read_or_reported() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        let settings = json!({"lr": 1e-3, "method": "lora", "rank": 8}).as_object().unwrap().clone();
        writer.session(&Session::from_settings("group", &settings)).unwrap();
        for step in 0..4 {
            writer.scalar("train/loss", step, 0.5, 1e9).unwrap();
        }
        writer.restart(2).unwrap();
        writer.flush().unwrap();
        let file = fs::read(writer.path()).unwrap();
        run(4000, &file, events);
    }

    #[test]
    fn mutated_records_are_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.json");
        let info = RunInfo { version: "0.1.0".into(), ..RunInfo::default() };
        RunRecord::new(info, MetaInfo::default()).write_atomic(&path).unwrap();
        run(500, &fs::read(&path).unwrap(), record);
    }
}
