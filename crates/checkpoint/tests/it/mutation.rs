//! The fuzz bodies on a few thousand seeded mutations of valid files: a short run of what `fuzz/` does for hours.

use lowrank_checkpoint::fuzz;

use crate::raw_safetensors;

/// SplitMix64 (Steele, Lea & Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Bytes that parsers treat specially, more telling than arbitrary ones.
const TELLING: [u8; 12] = [0, 1, 0x7f, 0x80, 0xff, b'0', b'9', b'"', b'}', b'.', b'(', b'R'];

/// One to four changes: flips, telling bytes, cuts, insertions, repeated or moved pieces.
fn mutate(file: &[u8], random: &mut Random) -> Vec<u8> {
    let mut file = file.to_vec();
    for _ in 0..=random.below(4) {
        let at = random.below(file.len());
        match random.below(8) {
            0 | 1 => file[at] ^= 1 << random.below(8),
            2 | 3 => file[at] = TELLING[random.below(TELLING.len())],
            4 => file.truncate(at.max(1)),
            5 => file.insert(at, random.next() as u8),
            6 => drop(file.remove(at)),
            _ => {
                let piece = file[at..file.len().min(at + random.below(16))].to_vec();
                let to = random.below(file.len() - piece.len() + 1);
                file[to..to + piece.len()].copy_from_slice(&piece);
            }
        }
        if file.is_empty() {
            file.push(0);
        }
    }
    file
}

fn run(seed: u64, rounds: usize, file: &[u8], body: fn(&[u8])) {
    body(file);
    let mut random = Random(seed);
    for _ in 0..rounds {
        let mutated = mutate(file, &mut random);
        body(&mutated);
        fuzz::any(&mutated);
    }
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
    let mut random = Random(7);
    for length in 0..300 {
        let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
        for body in [fuzz::safetensors, fuzz::torch, fuzz::any, fuzz::index] {
            body(&bytes);
        }
    }
}
