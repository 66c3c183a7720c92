//! Trees on disk, and the tables they become.

use std::{cell::Cell, fs, path::PathBuf};

use super::*;
use crate::tfevents::{EventWriter, Hparam, Session};

/// Writes values of a tag into a separate file in a run's folder.
fn write(dir: &Path, run: &str, tag: &str, points: &[(i64, f32)]) -> PathBuf {
    let mut writer = EventWriter::create(dir.join(run)).unwrap();
    for (step, value) in points {
        writer.scalar(tag, *step, *value, 0.0).unwrap();
    }
    writer.path().to_owned()
}

fn options(names: &[&str]) -> LogsOptions {
    LogsOptions { names: names.iter().map(|name| (*name).to_owned()).collect(), ..LogsOptions::default() }
}

fn to_csv(dir: &Path, options: &LogsOptions) -> (String, LogsSummary) {
    let output = dir.with_extension("csv");
    let summary = convert(dir, &output, options, |_| {}).unwrap();
    (fs::read_to_string(output).unwrap(), summary)
}

/// A tree of two methods, three learning rates and two tags.
fn sample(dir: &Path) {
    write(dir, "lora/1e-3/10", "train/loss", &[(1, 0.5), (2, 0.25)]);
    write(dir, "lora/1e-3/9", "train/loss", &[(2, 1.5), (1, 2.0)]);
    write(dir, "lora/5e-4/9", "train/loss", &[(1, -1.0)]);
    write(dir, "full, best/5e-5/9", "eval/accuracy", &[(4, 1.0)]);
    write(dir, "full, best/5e-5/9", "train/loss", &[(3, f32::NAN)]);
}

const SAMPLE: &str = r#"method,lr,seed,tag,step,value
"full, best",5e-5,9,eval/accuracy,4,1
"full, best",5e-5,9,train/loss,3,NaN
lora,5e-4,9,train/loss,1,-1
lora,1e-3,9,train/loss,1,2
lora,1e-3,9,train/loss,2,1.5
lora,1e-3,10,train/loss,1,0.5
lora,1e-3,10,train/loss,2,0.25
"#;

#[test]
fn the_table_is_sorted_by_its_columns() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    sample(&tree);
    for threads in [1, 4] {
        let options = LogsOptions { threads: Some(threads), ..options(&["method", "lr", "seed"]) };
        let (csv, summary) = to_csv(&tree, &options);
        assert_eq!(csv, SAMPLE);
        assert_eq!((summary.runs, summary.files, summary.rows), (4, 5, 7));
        assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
        use ColumnType::{Float, Integer, Text};
        let kinds: Vec<_> = summary.columns.iter().map(|(_, kind)| *kind).collect();
        assert_eq!(kinds, [Text, Float, Integer, Text, Integer, Float]);
    }
}

#[test]
fn tags_can_be_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    sample(&tree);
    let tags = TagFilter::new::<_, &str>(&["eval/*"], &[]).unwrap();
    let (csv, summary) = to_csv(&tree, &LogsOptions { tags, ..options(&["method", "lr", "seed"]) });
    assert_eq!(csv.lines().count(), 2);
    assert_eq!(summary.rows, 1);
}

#[test]
fn patterns_that_no_tag_matches_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    sample(&tree);
    for tag in ["f", "e", "d", "c", "b", "a"] {
        write(&tree, "lora/1e-3/9", tag, &[(1, 1.0)]);
    }
    let with = |globs: &[&str], regexes: &[&str]| LogsOptions {
        tags: TagFilter::new(globs, regexes).unwrap(),
        ..options(&["method", "lr", "seed"])
    };
    let output = dir.path().join("out.csv");
    let error = convert(&tree, &output, &with(&["evl/*"], &["x+"]), |_| {}).unwrap_err().to_string();
    assert_eq!(error, r#"no tag matches "evl/*", "x+"; the tags include a, b, c, d, e"#);
    assert!(!output.exists());
    let (csv, summary) = to_csv(&tree, &with(&["evl/*"], &["eval/.*"]));
    assert_eq!(csv.lines().count(), 2);
    assert_eq!(summary.warnings, [r#"no tag matches "evl/*""#]);
}

#[test]
fn folders_of_the_same_numbers_are_one_run() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "0.001/1", "t", &[(2, 2.0)]);
    write(&tree, "5e-4/1", "t", &[(1, 5.0)]);
    write(&tree, "1e-3/1", "t", &[(1, 1.0)]);
    write(&tree, "1e-3/1", "a", &[(1, 3.0)]);
    let (csv, summary) = to_csv(&tree, &options(&["lr", "seed"]));
    assert_eq!(csv, "lr,seed,tag,step,value\n5e-4,1,t,1,5\n1e-3,1,a,1,3\n1e-3,1,t,1,1\n1e-3,1,t,2,2\n");
    assert_eq!((summary.runs, summary.files), (2, 4));
    let [one, other] = ["0.001/1", "1e-3/1"].map(|run| tree.join(run).display().to_string());
    assert_eq!(summary.warnings, [format!("{one} and {other}: the same run by their numbers, read as one")]);
}

#[test]
fn a_tag_of_two_kinds_is_noticed_in_any_order() {
    use crate::{proto::put_bytes, tfevents::put_record};

    // A text in a separate file.
    let mut text = Vec::new();
    let (mut value, mut summary, mut event) = (Vec::new(), Vec::new(), Vec::new());
    put_bytes(&mut value, 1, b"t");
    put_bytes(&mut value, 8, &[0x08, 7]);
    put_bytes(&mut summary, 1, &value);
    put_bytes(&mut event, 5, &summary);
    put_record(&mut text, &event);
    for name in ["events.out.tfevents.0", "events.out.tfevents.z"] {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        write(&tree, "a", "t", &[(1, 1.0)]);
        let file = tree.join("a").join(name);
        fs::write(&file, &text).unwrap();
        let (_, summary) = to_csv(&tree, &options(&["run"]));
        let expect = format!("{}: t is a scalar and something else; using the scalars", file.display());
        assert!(summary.warnings.contains(&expect), "{:?}", summary.warnings);
    }
}

#[test]
fn another_depth_is_hinted_at() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "b/c", "t", &[(1, 1.0)]);
    let file = write(&tree, "a/c", "t", &[(1, 1.0)]);
    write(&tree, "a", "t", &[(1, 1.0)]);
    for names in [&["x", "y", "z"][..], &[]] {
        let error = convert(&tree, dir.path().join("out.csv"), &options(names), |_| {}).unwrap_err();
        let expect =
            format!("; most are 2 folders below it, as {}: give 2 names with --names", file.display());
        assert!(error.to_string().ends_with(&expect), "{error}");
    }
    let root = tree.join("b/c");
    let error = convert(&root, dir.path().join("out.csv"), &options(&["x"]), |_| {}).unwrap_err();
    assert!(error.to_string().ends_with("give the folder above, and --names run"), "{error}");
}

#[test]
fn runs_of_several_depths_share_a_table() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "", "t", &[(1, 0.0)]);
    write(&tree, "lora", "t", &[(1, 1.0)]);
    write(&tree, "lora/8", "t", &[(1, 2.0)]);
    // As `add_scalars("loss", {"train": …, "dev": …})` of PyTorch, and a deeper one.
    write(&tree, "lora/8/loss_train", "loss", &[(1, 3.0)]);
    write(&tree, "lora/8/loss_dev", "loss", &[(1, 4.0)]);
    write(&tree, "lora/16/a/b", "t", &[(1, 5.0)]);
    let (csv, summary) = to_csv(&tree, &options(&["method", "rank"]));
    let expect = "method,rank,sub_run,tag,step,value\n,,,t,1,0\nlora,,,t,1,1\nlora,8,,t,1,2\nlora,8,loss_dev,loss,1,4\n\
                  lora,8,loss_train,loss,1,3\nlora,16,a/b,t,1,5\n";
    assert_eq!((csv.as_str(), summary.warnings), (expect, Vec::new()));
    use ColumnType::{Float, Integer, Text};
    let kinds: Vec<_> = summary.columns.iter().map(|(_, kind)| *kind).collect();
    assert_eq!(kinds, [Text, Integer, Text, Text, Integer, Float]);
    let error =
        convert(&tree, dir.path().join("out.csv"), &options(&["method", "sub_run"]), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "the column name \"sub_run\" occurs twice");
}

#[test]
fn what_a_restart_declares_void_is_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let points: Vec<(i64, f32)> = (0..6).map(|step| (step, step as f32)).collect();
    write(&tree, "a", "t", &points);
    write(&tree, "a", "u", &[(5, 1.0)]);
    write(&tree, "a", "v", &[(2, 1.0)]);
    // As `SummaryWriter(purge_step=3)` of PyTorch.
    let mut again = EventWriter::create(tree.join("a")).unwrap();
    again.restart(3).unwrap();
    again.scalar("t", 3, 30.0, 0.0).unwrap();
    // A sub-run is a separate run.
    write(&tree, "a/sub", "t", &[(4, 4.0)]);
    let expect =
        "run,sub_run,tag,step,value\na,,t,0,0\na,,t,1,1\na,,t,2,2\na,,t,3,30\na,,v,2,1\na,sub,t,4,4\n";
    let path = again.path().display().to_string();
    let warning = format!("{path}: its restart at step 3 voids 4 earlier values, which are left out");
    for duplicates in [Duplicates::Keep, Duplicates::Last] {
        let (csv, summary) = to_csv(&tree, &LogsOptions { duplicates, ..options(&["run"]) });
        assert_eq!((csv.as_str(), summary.warnings), (expect, vec![warning.clone()]));
    }
    // One within a file, and one of which nothing is void.
    again.restart(9).unwrap();
    again.restart(0).unwrap();
    again.scalar("t", 0, 7.0, 0.0).unwrap();
    let (csv, summary) = to_csv(&tree, &options(&["run"]));
    assert_eq!(csv, "run,sub_run,tag,step,value\na,,t,0,7\na,sub,t,4,4\n");
    let warning = format!("{path}: 2 restarts, the first at step 3, void 9 values, which are left out");
    assert_eq!(summary.warnings, [warning]);
}

/// Writes a run with hyper-parameters into a separate file, in a separate group unless `group` names one.
fn write_session(dir: &Path, run: &str, group: &str, hparams: &[(&str, Hparam)], value: f32) {
    let mut writer = EventWriter::create(dir.join(run)).unwrap();
    let hparams = hparams.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    writer.session(&Session { group: group.to_owned(), hparams }).unwrap();
    writer.scalar("t", 1, value, 12.5).unwrap();
}

#[test]
fn runs_of_one_folder_that_differ_in_a_setting_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let alpha = |alpha: f64| [("alpha", Hparam::Number(alpha)), ("steps", Hparam::Number(3.0))];
    write_session(&tree, "lora/8", "one", &alpha(16.0), 1.0);
    write_session(&tree, "lora/8", "two", &alpha(4.0), 2.0);
    // Resumed, and again from the start in another place.
    write_session(&tree, "lora/8", "one", &alpha(16.0), 3.0);
    write_session(&tree, "lora/8", "three", &alpha(4.0), 4.0);
    write_session(&tree, "full/0", "four", &[("steps", Hparam::Number(9.0))], 5.0);
    let last = LogsOptions { duplicates: Duplicates::Last, ..options(&["method", "rank"]) };
    let (csv, summary) = to_csv(&tree, &last);
    assert_eq!(csv, "method,rank,alpha,tag,step,value\nfull,0,,t,1,5\nlora,8,4,t,1,4\nlora,8,16,t,1,3\n");
    assert_eq!(summary.runs, 3);
    let warning = format!("{}: 2 runs that differ in alpha; kept apart", tree.join("lora/8").display());
    assert!(summary.warnings.contains(&warning), "{:?}", summary.warnings);
    // A resumed run that was given more steps is one run.
    let more = [("alpha", Hparam::Number(16.0)), ("steps", Hparam::Number(6.0))];
    write_session(&tree, "lora/8", "one", &more, 6.0);
    let all = LogsOptions { hparams: HparamColumns::All, ..last.clone() };
    let (csv, _) = to_csv(&tree, &all);
    assert_eq!(
        csv,
        "method,rank,alpha,steps,tag,step,value\nfull,0,,9,t,1,5\nlora,8,4,3,t,1,4\nlora,8,16,6,t,1,6\n"
    );
    // A file of a writer that tells nothing.
    write(&tree, "lora/8", "t", &[(1, 7.0)]);
    let (csv, _) = to_csv(&tree, &last);
    assert!(csv.contains("\nlora,8,,,t,1,7\nlora,8,4,3,t,1,4\n"), "{csv}");
}

#[test]
fn hyper_parameters_and_wall_time_become_columns() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let hparams = |lr: f64| {
        [("lr", Hparam::Number(lr)), ("bn", Hparam::Bool(true)), ("opt", Hparam::Text("sgd".to_owned()))]
    };
    // As `add_hparams` of PyTorch, in a folder by itself; as Keras, above the folders of the scalars.
    write_session(&tree, "a/1700000000.25", "", &hparams(0.5), 1.0);
    write(&tree, "a", "t", &[(1, 2.0)]);
    write_session(&tree, "b", "", &hparams(1.0), 3.0);
    write(&tree, "b/train", "t", &[(1, 4.0)]);
    let named = |names: &[&str]| LogsOptions {
        hparams: HparamColumns::Named(names.iter().map(|name| (*name).to_owned()).collect()),
        wall_time: true,
        ..options(&["lr"])
    };
    let (csv, summary) = to_csv(&tree, &named(&["opt", "lr"]));
    let expect = "lr,sub_run,opt,hparams/lr,tag,step,value,wall_time\na,,,,t,1,2,0\na,1700000000.25,sgd,5e-1,t,1,1,12.5\n\
                  b,,sgd,1e0,t,1,3,12.5\nb,train,sgd,1e0,t,1,4,0\n";
    assert_eq!((csv.as_str(), summary.warnings), (expect, Vec::new()));
    assert_eq!(summary.no_scalars, 0);
    let error = convert(&tree, dir.path().join("out.csv"), &named(&["momentum"]), |_| {}).unwrap_err();
    assert_eq!(error.to_string(), "no run has the hyper-parameter \"momentum\"; known: bn, lr, opt");
}

#[cfg(unix)]
#[test]
fn links_are_followed_pipes_are_not_read_and_what_is_closed_is_named() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "a", "t", &[(1, 1.0)]);
    let elsewhere = dir.path().join("elsewhere");
    let linked = write(&elsewhere, "", "t", &[(1, 2.0)]);
    symlink(&elsewhere, tree.join("b")).unwrap();
    fs::create_dir(tree.join("c")).unwrap();
    symlink(&linked, tree.join("c/events.out.tfevents.1")).unwrap();
    // Back up, both ways round, and to nowhere.
    symlink(&tree, tree.join("a/up")).unwrap();
    symlink(tree.join("a"), elsewhere.join("round")).unwrap();
    symlink(tree.join("b"), tree.join("a/round")).unwrap();
    symlink("nowhere", tree.join("d")).unwrap();
    let pipe = tree.join("a/events.out.tfevents.pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let closed = tree.join("e");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();

    let (csv, summary) = to_csv(&tree, &options(&["run"]));
    let expect = "run,sub_run,tag,step,value\na,,t,1,1\na,round,t,1,2\nb,,t,1,2\nb,round,t,1,1\nc,,t,1,2\n";
    assert_eq!(csv, expect);
    let warned = |path: &str, why: &str| {
        let begin = format!("{}: left out, {why}", tree.join(path).display());
        summary.warnings.iter().any(|warning| warning.starts_with(&begin))
    };
    assert!(warned("a/events.out.tfevents.pipe", "it is not a regular file"), "{:#?}", summary.warnings);
    assert!(warned("a/up", "it leads back to a folder above it"), "{:#?}", summary.warnings);
    assert!(warned("a/round/round", "it leads back to a folder above it"), "{:#?}", summary.warnings);
    assert!(warned("d", "it cannot be read: "), "{:#?}", summary.warnings);
    // Whoever may read everything has read the folder.
    assert!(warned("e", "it cannot be read: ") || fs::read_dir(&closed).is_ok(), "{:#?}", summary.warnings);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_tree_may_be_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "", "a", &[(1, 2.0)]);
    let (csv, _) = to_csv(&tree, &options(&[]));
    assert_eq!(csv, "tag,step,value\na,1,2\n");
}

#[test]
fn what_does_not_belong_is_named_and_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "a", "t", &[(1, 1.0)]);
    let foreign = tree.join("a/notes.txt");
    fs::write(&foreign, "notes").unwrap();
    fs::write(tree.join("plot.png"), "picture").unwrap();
    let empty = tree.join("a/events.out.tfevents.9.empty");
    fs::write(&empty, "").unwrap();
    let noise = tree.join("a/events.out.tfevents.8.noise");
    fs::write(&noise, "this is not an event file").unwrap();
    let bare = EventWriter::create(tree.join("a")).unwrap().path().to_owned();
    EventWriter::create(tree.join("b")).unwrap();
    let (csv, summary) = to_csv(&tree, &options(&["run"]));
    assert_eq!(csv, "run,tag,step,value\na,t,1,1\n");
    let expect = [
        (foreign, " and 1 more: left out, not event files"),
        (empty, ": empty"),
        (noise, ": damaged at byte 0"),
        (bare, " and 1 more: hold no scalars"),
    ];
    for (path, text) in &expect {
        let begin = format!("{}{text}", path.display());
        assert!(
            summary.warnings.iter().any(|warning| warning.starts_with(&begin)),
            "{begin}\n{:#?}",
            summary.warnings
        );
    }
    assert_eq!(summary.warnings.len(), expect.len(), "{:#?}", summary.warnings);
}

#[test]
fn repeated_steps_are_kept_or_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let first = write(&tree, "a", "t", &[(1, 1.0), (2, 2.0), (3, 3.0)]);
    write(&tree, "a", "t", &[(2, 20.0), (3, 30.0)]);
    let (csv, summary) = to_csv(&tree, &options(&["run"]));
    assert_eq!(csv, "run,tag,step,value\na,t,1,1\na,t,2,2\na,t,2,20\na,t,3,3\na,t,3,30\n");
    assert!(summary.warnings[0].contains(&first.display().to_string()), "{:?}", summary.warnings);
    assert!(summary.warnings[0].ends_with("t has 2 steps more than once; all are kept"));
    let (csv, _) = to_csv(&tree, &LogsOptions { duplicates: Duplicates::Last, ..options(&["run"]) });
    assert_eq!(csv, "run,tag,step,value\na,t,1,1\na,t,2,20\na,t,3,30\n");
}

#[test]
fn files_of_one_second_are_read_in_the_order_of_their_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    // Of one process, and of one that began after it.
    let names = ["9.8", "9.10", "10.0"];
    for run in ["a", "1", "1.0"] {
        for (value, name) in names.iter().enumerate() {
            let file = write(&tree, run, "t", &[(1, value as f32)]);
            fs::rename(file, tree.join(run).join(format!("events.out.tfevents.1700000000.host.{name}")))
                .unwrap();
        }
    }
    let last = LogsOptions { duplicates: Duplicates::Last, ..options(&["run"]) };
    assert_eq!(to_csv(&tree, &last).0, "run,tag,step,value\n1,t,1,2\n1.0,t,1,2\na,t,1,2\n");
    // Two folders of one number.
    fs::remove_dir_all(tree.join("a")).unwrap();
    assert_eq!(to_csv(&tree, &last).0, "run,tag,step,value\n1e0,t,1,2\n");
}

#[test]
fn large_seeds_stay_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "18446744073709551614", "t", &[(1, 1.0)]);
    write(&tree, "18446744073709551615", "t", &[(1, 2.0)]);
    let (csv, summary) = to_csv(&tree, &options(&["seed"]));
    assert_eq!(csv, "seed,tag,step,value\n18446744073709551614,t,1,1\n18446744073709551615,t,1,2\n");
    assert!(summary.warnings.is_empty(), "{:?}", summary.warnings);
}

#[track_caller]
fn check_refused(names: &[&str], output: &str, expect: &str) {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "a", "t", &[(1, 1.0)]);
    let error = convert(&tree, dir.path().join(output), &options(names), |_| {}).unwrap_err().to_string();
    assert!(error.contains(expect), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "something was left behind");
}

#[test]
fn wrong_use() {
    check_refused(&["run"], "out.txt", "out.txt does not end in ");
    check_refused(&["run", "seed"], "out.csv", "no event file 2 folders below");
    check_refused(&["tag"], "out.csv", "\"tag\" is taken by the table itself");
    check_refused(&["wall_time"], "out.csv", "\"wall_time\" is taken by the table itself");
    check_refused(&[""], "out.csv", "\"\" is empty");
    check_refused(&["a", "a"], "out.csv", "\"a\" occurs twice");
    check_refused(&["run"], "absent/out.csv", "cannot create");
    assert!(convert("absent", "out.csv", &options(&["run"]), |_| {}).is_err());
}

#[test]
fn progress_ends_at_all_runs() {
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    sample(&tree);
    let last = Cell::new(LogsProgress::default());
    let summary =
        convert(&tree, dir.path().join("out.csv"), &options(&["m", "l", "s"]), |progress| last.set(progress))
            .unwrap();
    assert_eq!(last.get(), LogsProgress { runs: 4, of: 4, bytes: summary.bytes });
    assert!(summary.bytes > 0);
}

#[cfg(feature = "parquet")]
#[test]
fn parquet_holds_what_csv_holds() {
    use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use arrow_array::{Array, StringArray, cast::AsArray, types::*};
    use arrow_schema::DataType;

    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    sample(&tree);
    let output = dir.path().join("out.parquet");
    convert(&tree, &output, &options(&["method", "lr", "seed"]), |_| {}).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(output).unwrap()).unwrap();
    let text = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let kinds: Vec<_> = builder.schema().fields().iter().map(|field| field.data_type().clone()).collect();
    let (float, integer) = (DataType::Float64, DataType::Int64);
    assert_eq!(kinds, [text.clone(), float.clone(), integer.clone(), text, integer, float]);
    let mut csv = String::from("method,lr,seed,tag,step,value\n");
    for batch in builder.build().unwrap() {
        let batch = batch.unwrap();
        let words = |column: usize, row: usize| {
            let column = batch.column(column).as_dictionary::<Int32Type>();
            let texts: &StringArray = column.values().as_string();
            texts.value(column.keys().value(row) as usize).to_owned()
        };
        for row in 0..batch.num_rows() {
            assert!((0..6).all(|column| batch.column(column).is_valid(row)));
            csv += &format!(
                "{},{:e},{},{},{},{}\n",
                lowrank_spec::text::csv_field(&words(0, row)),
                batch.column(1).as_primitive::<Float64Type>().value(row),
                batch.column(2).as_primitive::<Int64Type>().value(row),
                words(3, row),
                batch.column(4).as_primitive::<Int64Type>().value(row),
                batch.column(5).as_primitive::<Float64Type>().value(row),
            );
        }
    }
    assert_eq!(csv, SAMPLE);
}

#[cfg(feature = "parquet")]
#[test]
fn runs_of_many_batches_stay_in_order() {
    use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use arrow_array::{cast::AsArray, types::Int64Type};

    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    let points: Vec<(i64, f32)> = (0..50_000).map(|step| (step, step as f32)).collect();
    for run in ["0", "1", "2"] {
        write(&tree, run, "t", &points);
    }
    let output = dir.path().join("out.parquet");
    let summary = convert(&tree, &output, &options(&["seed"]), |_| {}).unwrap();
    assert_eq!(summary.rows, 150_000);
    let reader =
        ParquetRecordBatchReaderBuilder::try_new(File::open(output).unwrap()).unwrap().build().unwrap();
    let mut expect = (0..3_i64).flat_map(|seed| (0..50_000_i64).map(move |step| (seed, step)));
    for batch in reader {
        let batch = batch.unwrap();
        let (seeds, steps) =
            (batch.column(0).as_primitive::<Int64Type>(), batch.column(2).as_primitive::<Int64Type>());
        for row in 0..batch.num_rows() {
            assert_eq!(Some((seeds.value(row), steps.value(row))), expect.next());
        }
    }
    assert_eq!(expect.next(), None);
}

#[cfg(feature = "parquet")]
#[test]
fn missing_values_are_null_in_parquet() {
    use ::parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    use arrow_array::{Array, cast::AsArray, types::*};

    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    write(&tree, "a", "t", &[(1, 1.0)]);
    write_session(&tree, "a/8", "", &[("alpha", Hparam::Number(0.5))], 2.0);
    write_session(&tree, "b/9/sub", "", &[("alpha", Hparam::Number(2.0))], 3.0);
    let output = dir.path().join("out.parquet");
    let options =
        LogsOptions { hparams: HparamColumns::All, wall_time: true, ..options(&["method", "rank"]) };
    convert(&tree, &output, &options, |_| {}).unwrap();
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(output).unwrap()).unwrap();
    let nullable: Vec<_> = builder.schema().fields().iter().map(|field| field.is_nullable()).collect();
    assert_eq!(nullable, [false, true, true, true, false, false, false, false]);
    let batch = builder.build().unwrap().next().unwrap().unwrap();
    let ranks: Vec<_> = batch.column(1).as_primitive::<Int64Type>().iter().collect();
    assert_eq!(ranks, [None, Some(8), Some(9)]);
    let alphas: Vec<_> = batch.column(3).as_primitive::<Float64Type>().iter().collect();
    assert_eq!(alphas, [None, Some(0.5), Some(2.0)]);
    let sub_runs = batch.column(2).as_dictionary::<Int32Type>();
    assert_eq!((sub_runs.null_count(), sub_runs.is_valid(2)), (2, true));
    let times: Vec<_> = batch.column(7).as_primitive::<Float64Type>().values().to_vec();
    assert_eq!(times, [0.0, 12.5, 12.5]);
}
