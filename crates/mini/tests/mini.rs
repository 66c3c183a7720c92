//! Mini-GLUE: the committed files are the generator's, train and dev are apart, and no shortcut solves the tasks.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lowrank_data::glue::{Example, GlueDataset, Label, Split, Task};
use lowrank_data::tokenize::TextTokenizer;
use lowrank_mini::{DEFAULT_SEED, corpus, files, instruct, tokenizer_files};

static FILES: LazyLock<BTreeMap<String, String>> =
    LazyLock::new(|| files(DEFAULT_SEED).into_iter().collect());

const TASKS: [Task; 5] = [Task::Cola, Task::Sst2, Task::Mrpc, Task::Stsb, Task::Rte];

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/mini-glue")
}

fn read(task: Task, split: Split) -> GlueDataset {
    GlueDataset::read(&committed(), task, split).unwrap()
}

fn texts(examples: &[Example]) -> impl Iterator<Item = &str> {
    examples.iter().flat_map(|e| std::iter::once(e.text.as_str()).chain(e.pair.as_deref()))
}

/// The words of a text, without its punctuation.
fn words(text: &str) -> BTreeSet<String> {
    text.split([' ', ',', '.']).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
}

#[test]
fn the_committed_files_are_the_generator_s() {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(committed()).unwrap() {
        let path = entry.unwrap().path();
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let inner = std::fs::read_dir(&path).unwrap().map(|f| name(&f.unwrap().path()));
            found.extend(inner.map(|file| format!("{}/{file}", name(&path))));
        } else {
            found.insert(name(&path));
        }
    }
    assert_eq!(found, FILES.keys().cloned().collect::<BTreeSet<_>>());
    for (name, content) in FILES.iter() {
        let on_disk = std::fs::read_to_string(committed().join(name)).unwrap();
        assert!(on_disk == *content, "{name} differs; run `cargo xtask datasets`");
    }
}

#[test]
fn the_committed_instructions_are_the_generator_s() {
    let folder = committed().join("../mini-instruct");
    for (name, content) in instruct::files(DEFAULT_SEED) {
        let on_disk = std::fs::read_to_string(folder.join(&name)).unwrap();
        assert!(on_disk == content, "{name} differs; run `cargo xtask datasets`");
    }
}

#[test]
fn the_committed_tokenizer_is_the_generator_s() {
    let folder = committed().join("../models/mini-bert");
    for (name, content) in tokenizer_files(128) {
        assert!(std::fs::read_to_string(folder.join(&name)).unwrap() == content, "{name} differs");
    }
}

#[test]
fn folders_are_those_of_glue() {
    assert_eq!(lowrank_mini::TASKS, TASKS.map(Task::folder));
}

#[test]
fn another_seed_gives_other_sentences() {
    let other: BTreeMap<String, String> = files(DEFAULT_SEED + 1).into_iter().collect();
    for (name, content) in FILES.iter().filter(|(name, _)| name.ends_with(".tsv")) {
        assert!(other[name] != *content, "{name}");
    }
}

#[test]
fn sizes_are_as_promised() {
    assert!(FILES.values().map(String::len).sum::<usize>() < 2_000_000);
    for task in TASKS {
        let (train, dev) = (read(task, Split::Train), read(task, Split::Dev));
        assert!((2_500..=4_000).contains(&train.examples().len()), "{task}");
        assert!((400..=600).contains(&dev.examples().len()), "{task}");
    }
}

#[test]
fn train_and_dev_share_no_sentence() {
    let dev_sets: Vec<GlueDataset> = TASKS.iter().map(|&task| read(task, Split::Dev)).collect();
    let dev: HashSet<&str> = dev_sets.iter().flat_map(|set| texts(set.examples())).collect();
    for task in TASKS {
        let train = read(task, Split::Train);
        let shared: Vec<&str> = texts(train.examples()).filter(|text| dev.contains(text)).collect();
        assert!(shared.is_empty(), "{task}: {shared:?}");
        let distinct: HashSet<(&str, Option<&str>)> =
            train.examples().iter().map(|e| (e.text.as_str(), e.pair.as_deref())).collect();
        assert_eq!(distinct.len(), train.examples().len(), "{task}: rows repeat");
    }
}

#[test]
fn constant_answers_score_low() {
    for task in TASKS {
        let dev = read(task, Split::Dev);
        let n = dev.examples().len() as f64;
        let ones = dev.examples().iter().filter(|e| e.label == Some(Label::Class(1))).count() as f64 / n;
        match task {
            Task::Cola => assert!((0.65..0.72).contains(&ones), "{ones}"),
            Task::Stsb => {
                let of = |low: f32, high: f32| {
                    let is_in =
                        |e: &&Example| matches!(e.label, Some(Label::Score(s)) if s >= low && s < high);
                    dev.examples().iter().filter(is_in).count() as f64 / n
                };
                // Every point of the scale has its share.
                for low in 0..5u8 {
                    let share = of(f32::from(low), f32::from(low) + 1.01);
                    assert!(share > 0.12, "{low}: {share}");
                }
            }
            _ => assert!((0.47..0.53).contains(&ones), "{task}: {ones}"),
        }
    }
}

/// The mean share of words that two texts have in common, of the rows of a class.
fn overlap(set: &GlueDataset, class: u32) -> f64 {
    let shares: Vec<f64> = set
        .examples()
        .iter()
        .filter(|e| e.label == Some(Label::Class(class)))
        .map(|e| {
            let (a, b) = (words(&e.text), words(e.pair.as_deref().unwrap()));
            a.intersection(&b).count() as f64 / a.union(&b).count() as f64
        })
        .collect();
    shares.iter().sum::<f64>() / shares.len() as f64
}

#[test]
fn words_in_common_do_not_give_the_label_away() {
    for task in [Task::Mrpc, Task::Rte] {
        let train = read(task, Split::Train);
        let (zero, one) = (overlap(&train, 0), overlap(&train, 1));
        assert!((zero - one).abs() < 0.08, "{task}: {zero:.3} {one:.3}");
        assert!(zero > 0.4 && one > 0.4, "{task}: {zero:.3} {one:.3}");
    }
}

#[test]
fn the_tokenizer_knows_every_word_and_refuses_no_text() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in tokenizer_files(64) {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    let tokenizer = TextTokenizer::from_folder(folder.path(), Some(64)).unwrap();
    let special = tokenizer.special_ids();
    assert_eq!((special.pad, special.unk, special.cls), (Some(0), Some(1), Some(2)));
    assert_eq!((special.sep, special.mask), (Some(3), Some(4)));
    assert_eq!(tokenizer.model_max_length(), Some(64));
    assert!((2_000..4_000).contains(&tokenizer.vocab_size()), "{}", tokenizer.vocab_size());
    let corpus = corpus(DEFAULT_SEED, 3_000);
    let lines =
        corpus.iter().flat_map(|line| std::iter::once(line.text.as_str()).chain(line.pair.as_deref()));
    let sets: Vec<GlueDataset> =
        TASKS.iter().flat_map(|&task| [read(task, Split::Train), read(task, Split::Dev)]).collect();
    for text in sets.iter().flat_map(|set| texts(set.examples())).chain(lines) {
        for id in tokenizer.encode(text, None).unwrap().ids {
            let token = tokenizer.id_to_token(id).unwrap();
            assert!(token != "[UNK]" && !token.starts_with("##"), "'{token}' in: {text}");
        }
    }
    let encode = |text: &str| tokenizer.encode(text, None).unwrap().ids;
    assert!(!encode("Zebras & xylophones: 4711 (really), e-mail@host!").contains(&1));
    assert!(encode("東京").contains(&1));
}

/// FNV-1a, 64 bits.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn the_corpus_is_pinned_and_holds_no_dev_sentence() {
    let lines = corpus(DEFAULT_SEED, 2_000);
    assert_eq!(corpus(DEFAULT_SEED, 20), lines[..20]);
    let text: String =
        lines.iter().map(|line| format!("{}\t{}\n", line.text, line.pair.as_deref().unwrap_or(""))).collect();
    // What the committed model was trained on: if this changes, train it again.
    assert_eq!(hash(&text), CORPUS_HASH);
    let dev_sets: Vec<GlueDataset> = TASKS.iter().map(|&task| read(task, Split::Dev)).collect();
    let dev: HashSet<&str> = dev_sets.iter().flat_map(|set| texts(set.examples())).collect();
    assert!(lines.iter().all(|line| !dev.contains(line.text.as_str())));
    assert!(lines.iter().filter(|line| line.pair.is_some()).count() > 800);
}
const CORPUS_HASH: u64 = 2_365_542_702_438_295_170;
