//! The fuzz bodies on a few thousand seeded mutations of valid files: a short run of what `fuzz/` does for hours.

use lowrank_checkpoint::fuzz::{self, Random};

use crate::raw_safetensors;

fn run(seed: u64, rounds: usize, file: &[u8], body: fn(&[u8])) {
    fuzz::on_mutations(seed, rounds, file, |data| {
        body(data);
        fuzz::any(data);
    });
}

/// Every prefix of a file, up to this many.
fn cut(file: &[u8], body: fn(&[u8])) {
    for end in (0..file.len()).step_by(file.len().div_ceil(800)) {
        body(&file[..end]);
    }
}

#[test]
fn safetensors() {
    let header = r#"{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]},"c":{"dtype":"BOOL","shape":[],"data_offsets":[30,31]}}"#;
    let file = raw_safetensors(header, &(0..31).collect::<Vec<u8>>());
    run(1, 4000, &file, fuzz::safetensors);
    cut(&file, fuzz::safetensors);
}

/// Fused experts, which are split at opening.
#[test]
fn experts() {
    for (seed, file) in crate::experts::files().into_iter().enumerate() {
        run(seed as u64, 3000, &file, fuzz::safetensors);
        cut(&file, fuzz::safetensors);
    }
}

#[test]
fn gguf() {
    for (seed, file) in crate::gguf::files().into_iter().enumerate() {
        run(seed as u64, 3000, &file, fuzz::gguf);
        cut(&file, fuzz::gguf);
    }
}

#[test]
fn torch() {
    let files: [&[u8]; 5] = [
        include_bytes!("../fixtures/zip.bin"),
        include_bytes!("../fixtures/zip64.bin"),
        include_bytes!("../fixtures/legacy.bin"),
        include_bytes!("../fixtures/nested.bin"),
        include_bytes!("../fixtures/evil.bin"),
    ];
    for (seed, file) in files.into_iter().enumerate() {
        run(seed as u64, 2000, file, fuzz::torch);
        cut(file, fuzz::torch);
    }
}

#[test]
fn index() {
    let file = br#"{"metadata":{"total_size":8},"weight_map":{"a":"model-1.safetensors","b":"sub/model-2.safetensors"}}"#;
    run(9, 4000, file, fuzz::index);
    cut(file, fuzz::index);
}

#[test]
fn noise() {
    let mut random = Random::new(7);
    for length in 0..300 {
        let bytes: Vec<u8> = (0..length).map(|_| random.draw() as u8).collect();
        for body in [fuzz::safetensors, fuzz::torch, fuzz::any, fuzz::index, fuzz::gguf] {
            body(&bytes);
        }
    }
}
