//! The official file formats, and the line that each broken file gets.

#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

use std::path::Path;

use burn_dataset::Dataset;
use lowrank_data::DataError;
use lowrank_data::glue::{Example, GlueDataset, Label, Split, Task};

fn root(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    root
}

fn example(text: &str, pair: Option<&str>, label: Option<Label>) -> Example {
    Example { text: text.to_owned(), pair: pair.map(str::to_owned), label }
}

#[track_caller]
fn reads(task: Task, split: Split, file: &str, content: &[u8], expected: &[Example]) {
    let root = root(&[(file, content)]);
    let set = GlueDataset::read(root.path(), task, split).unwrap();
    assert_eq!(set.examples(), expected);
    assert_eq!(set.len(), expected.len());
    assert_eq!(set.get(0).as_ref(), expected.first());
    assert_eq!(set.get(expected.len()), None);
}

const ZERO: Option<Label> = Some(Label::Class(0));
const ONE: Option<Label> = Some(Label::Class(1));

#[test]
fn sst2() {
    let content = b"sentence\tlabel\r\na \"raw\" quote \t1\r\n\"open quote\t0\r\n\t1\r\n";
    let expected =
        [example("a \"raw\" quote ", None, ONE), example("\"open quote", None, ZERO), example("", None, ONE)];
    reads(Task::Sst2, Split::Train, "SST-2/train.tsv", content, &expected);
    reads(Task::Sst2, Split::Test, "SST-2/test.tsv", b"index\tsentence\n0\ta\n", &[example("a", None, None)]);
}

#[test]
fn cola_has_a_header_in_its_test_file_only() {
    let content = b"gj04\t1\t\tIt runs.\nks08\t0\t*\tRuns it the.";
    let expected = [example("It runs.", None, ONE), example("Runs it the.", None, ZERO)];
    reads(Task::Cola, Split::Dev, "CoLA/dev.tsv", content, &expected);
    reads(Task::Cola, Split::Test, "CoLA/test.tsv", b"index\tsentence\n0\ta\n", &[example("a", None, None)]);
}

#[test]
fn mrpc_may_begin_with_a_byte_order_mark() {
    let content = "\u{feff}Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tÉté\t\"x\r\n".as_bytes();
    reads(Task::Mrpc, Split::Train, "MRPC/train.tsv", content, &[example("Été", Some("\"x"), ONE)]);
    let test = "\u{feff}index\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n0\t7\t8\ta\tb\r\n".as_bytes();
    reads(Task::Mrpc, Split::Test, "MRPC/test.tsv", test, &[example("a", Some("b"), None)]);
}

#[test]
fn stsb_scores() {
    let content = b"index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n\
        0\tg\tf\ty\t1\tnone\tnone\tA man.\tA plane.\t5.000\n1\tg\tf\ty\t2\tnone\tnone\ta\tb\t0.25\n";
    let expected = [
        example("A man.", Some("A plane."), Some(Label::Score(5.0))),
        example("a", Some("b"), Some(Label::Score(0.25))),
    ];
    reads(Task::Stsb, Split::Dev, "STS-B/dev.tsv", content, &expected);
}

#[test]
fn qqp() {
    let content = b"id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n1\t2\t3\tHow?\tWhy?\t0\n";
    reads(Task::Qqp, Split::Dev, "QQP/dev.tsv", content, &[example("How?", Some("Why?"), ZERO)]);
    let test = b"id\tquestion1\tquestion2\n1\tHow?\tWhy?\n";
    reads(Task::Qqp, Split::Test, "QQP/test.tsv", test, &[example("How?", Some("Why?"), None)]);
}

#[test]
fn mnli_has_two_dev_files_and_its_label_last() {
    let head = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\t\
                sentence2_parse\tsentence1\tsentence2\tlabel1\tgold_label\n";
    let rows = format!("{head}0\tp\tq\tg\t( a )\t( b )\tx\ty\tA.\tB.\tneutral\tcontradiction\n");
    let expected = [example("A.", Some("B."), Some(Label::Class(2)))];
    reads(Task::Mnli, Split::Dev, "MNLI/dev_matched.tsv", rows.as_bytes(), &expected);
    reads(Task::Mnli, Split::DevMismatched, "MNLI/dev_mismatched.tsv", rows.as_bytes(), &expected);
}

#[test]
fn qnli_rte_wnli() {
    let qnli =
        b"index\tquestion\tsentence\tlabel\n0\tWhen?\tThen.\tentailment\n1\tWhen?\tNo.\tnot_entailment\n";
    let expected = [example("When?", Some("Then."), ZERO), example("When?", Some("No."), ONE)];
    reads(Task::Qnli, Split::Train, "QNLI/train.tsv", qnli, &expected);
    let rte = b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tnot_entailment\n";
    reads(Task::Rte, Split::Train, "RTE/train.tsv", rte, &[example("a", Some("b"), ONE)]);
    let wnli = b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\t1\n";
    reads(Task::Wnli, Split::Dev, "WNLI/dev.tsv", wnli, &[example("a", Some("b"), ONE)]);
}

#[test]
fn qqp_s_few_broken_rows_are_left_out_and_counted() {
    let mut content = String::from("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n");
    for row in 0..1_000 {
        content.push_str(&format!("{row}\t1\t2\ta\tb\t1\n"));
    }
    content.push_str("7\t1\t2\tbroken\n");
    let few = root(&[("QQP/train.tsv", content.as_bytes())]);
    let set = GlueDataset::read(few.path(), Task::Qqp, Split::Train).unwrap();
    assert_eq!((set.len(), set.skipped()), (1_000, 1));
    content.push_str("7\t1\t2\tbroken\n");
    let many = root(&[("QQP/train.tsv", content.as_bytes())]);
    let error = GlueDataset::read(many.path(), Task::Qqp, Split::Train).unwrap_err().to_string();
    assert!(error.contains("train.tsv:1002: 4 tab-separated column(s), at least 6 expected"), "{error}");
}

/// Reads the dev split and expects one line that holds `part`.
#[track_caller]
fn refused(task: Task, file: &str, content: &[u8], part: &str) {
    let root = root(&[(file, content)]);
    let error = GlueDataset::read(root.path(), task, Split::Dev).unwrap_err().to_string();
    assert!(error.contains(part), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[test]
fn bad_files_are_named_with_row_and_remedy() {
    refused(
        Task::Sst2,
        "SST-2/dev.tsv",
        b"sentence\tlabel\na\t1\nb\n",
        "dev.tsv:3: 1 tab-separated column(s), at least 2 expected; complete or remove this row",
    );
    refused(Task::Sst2, "SST-2/dev.tsv", b"sentence\tlabel\na\t1\n\nb\t1\n", "dev.tsv:3: 1 tab-separated");
    refused(
        Task::Sst2,
        "SST-2/dev.tsv",
        b"sentence\tlabel\na\t2\n",
        "dev.tsv:2: unknown label '2'; expected 0 (negative) or 1 (positive)",
    );
    refused(Task::Sst2, "SST-2/dev.tsv", b"sentence\tlabel\nok\t1\n\xff\t1\n", "dev.tsv:3: not valid UTF-8");
    refused(
        Task::Sst2,
        "SST-2/dev.tsv",
        b"a\t1\n",
        "dev.tsv:1: no column 'label' in the header (a, 1); this should be the official SST-2 file",
    );
    refused(Task::Sst2, "SST-2/dev.tsv", b"sentence\tlabel\n\n\n", "holds no rows");
    refused(Task::Sst2, "SST-2/dev.tsv", b"", "no column 'label'");
    refused(
        Task::Cola,
        "CoLA/dev.tsv",
        b"gj04\t1\tIt runs.\n",
        "dev.tsv:1: 3 tab-separated column(s), at least 4",
    );
    refused(
        Task::Rte,
        "RTE/dev.tsv",
        b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n",
        "unknown label 'maybe'; expected entailment or not_entailment",
    );
    let stsb = b"sentence1\tsentence2\tscore\na\tb\tNaN\n";
    refused(Task::Stsb, "STS-B/dev.tsv", stsb, "unknown label 'NaN'; expected a score from 0 to 5");
    refused(Task::Stsb, "STS-B/dev.tsv", b"sentence1\tsentence2\tscore\na\tb\t5.1\n", "'5.1'");
}

#[test]
fn missing_folders_say_what_was_looked_for() {
    let message = |root: &Path, task| GlueDataset::read(root, task, Split::Dev).unwrap_err().to_string();
    let some = root(&[("CoLA/train.tsv", b""), ("RTE/x", b"")]);
    let error = message(some.path(), Task::Sst2);
    assert!(error.contains("no folder of task sst2 at '"), "{error}");
    assert!(error.ends_with("a GLUE root holds 'SST-2/dev.tsv'; here are CoLA, RTE"), "{error}");
    let error = message(some.path(), Task::Cola);
    assert!(error.contains("no file of task cola at '") && error.contains("dev.tsv"), "{error}");
    let error = message(&some.path().join("absent"), Task::Cola);
    assert!(error.starts_with("no data folder at '"), "{error}");
    let inside = root(&[("dev.tsv", b"x")]);
    assert!(message(inside.path(), Task::Cola).contains("is itself a task's folder"));
    let error = GlueDataset::read(some.path(), Task::Rte, Split::DevMismatched).unwrap_err();
    assert!(matches!(error, DataError::NoSuchSplit { .. }), "{error}");
}
