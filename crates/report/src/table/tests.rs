//! Tables of hand-made runs, whole, as a reader sees them.

use super::*;
use crate::run::{MetaInfo, RunInfo, RunRecord, Status};

/// A finished run; `task` carries the metric as `task:metric`.
fn run(method: &str, rank: u64, task: &str, lr: f64, seed: u64, score: f64) -> LoadedRun {
    let (task, metric) = task.split_once(':').unwrap_or((task, "accuracy"));
    let meta = MetaInfo {
        model: "models/mini-bert".into(),
        task: task.into(),
        method: method.into(),
        ..MetaInfo::default()
    };
    let mut record = RunRecord::new(RunInfo { version: "0.1.0".into(), ..RunInfo::default() }, meta);
    let config = &mut record.run_info.config;
    if rank > 0 {
        config.insert("rank".into(), rank.into());
    }
    config.insert("lr".into(), lr.into());
    config.insert("seed".into(), seed.into());
    let info = &mut record.train_info;
    info.status = Status::Done;
    info.metric_name = metric.into();
    info.metric = Some(score);
    info.trainable = 1000 * (rank + 1);
    info.ms_per_step_median = Some(10.0 + seed as f64);
    info.peak_rss_mb = Some(100.0 + seed as f64);
    info.wall_s = Some(2.0);
    LoadedRun { folder: format!("{method}-{rank}-{task}-{lr:e}-{seed}").into(), record }
}

fn sample() -> Vec<LoadedRun> {
    vec![
        run("head", 0, "sst2", 1e-3, 0, 0.60),
        run("head", 0, "cola:matthews", 1e-3, 0, 0.10),
        run("full", 0, "sst2", 5e-5, 0, 0.90),
        run("full", 0, "sst2", 5e-5, 1, 0.94),
        run("full", 0, "cola:matthews", 5e-5, 0, 0.50),
        run("full", 0, "cola:matthews", 5e-5, 1, 0.52),
        run("lora", 8, "sst2", 5e-4, 0, 0.93),
        run("lora", 8, "sst2", 1e-3, 0, 0.70),
        run("lora", 1, "sst2", 5e-4, 0, 0.9199),
    ]
}

#[track_caller]
fn check(actual: String, expect: &str) {
    assert_eq!(actual.trim(), expect.trim(), "\n{actual}");
}

#[test]
fn a_table_in_which_nothing_is_trained_shows_the_size_of_the_models() {
    let runs = [("dense", 4_000_000), ("svd", 3_000_000)].map(|(method, total)| {
        let mut run = run(method, 0, "text:perplexity", 0.0, 0, 4.5);
        let info = &mut run.record.train_info;
        (info.trainable, info.total) = (0, total);
        (info.ms_per_step_median, info.peak_rss_mb) = (None, None);
        run
    });
    check(
        GridTable::from_runs(&runs).to_text(),
        "
method   text   parameters   s/run
──────────────────────────────────
dense    4.50*   4,000,000     2.0
svd      4.50*   3,000,000     2.0

text: perplexity; one seed
* best of the column
",
    );
}

#[test]
fn text() {
    check(
        GridTable::from_runs(&sample()).to_text(),
        "
method           cola         sst2   average   trainable   ms/step   peak MB   s/run
────────────────────────────────────────────────────────────────────────────────────
full       51.0 ± 1.4*  92.0 ± 2.8      71.5*      1,000      10.5       101     2.0
lora r=1            –         92.0         –       2,000      10.0       100     2.0
lora r=8            –         93.0*        –       9,000      10.0       100     2.0
head             10.0         60.0      35.0       1,000      10.0       100     2.0

cola: matthews; sst2: accuracy; scores × 100; mean ± standard deviation over the seeds at hand
* best of the column
of several learning rates, the one with the best mean is shown
",
    );
}

#[test]
fn markdown() {
    check(
        GridTable::from_runs(&sample()[..3]).to_markdown(),
        "
| method | cola | sst2 | average | trainable | ms/step | peak MB | s/run |
| :-- | --: | --: | --: | --: | --: | --: | --: |
| full | – | **90.0** | – | 1,000 | 10.0 | 100 | 2.0 |
| head | **10.0** | 60.0 | **35.0** | 1,000 | 10.0 | 100 | 2.0 |

cola: matthews; sst2: accuracy; scores × 100; one seed
",
    );
}

#[test]
fn csv_has_plain_numbers() {
    let mut runs = sample();
    runs.truncate(4);
    runs[2].record.train_info.metric = Some(0.5);
    runs[3].record.train_info.metric = Some(1.0);
    runs[2].record.run_info.config.insert("note".into(), "a,\"b\"".into());
    runs[3].record.run_info.config.insert("note".into(), "a,\"b\"".into());
    let mut other = run("full", 0, "sst2", 5e-5, 0, 0.5);
    other.record.train_info.wall_s = None;
    runs.push(other);
    check(
        GridTable::from_runs(&runs[2..]).to_csv(),
        "
source,model,method,rank,settings,sst2_mean,sst2_std,sst2_seeds,sst2_lr,average,trainable,parameters,ms_per_step,peak_rss_mb,wall_s
measured,mini-bert,full,,,50,,1,5e-5,50,1000,,10,100,
measured,mini-bert,full,,\"note=a,\"\"b\"\"\",75,35.35533905932738,2,5e-5,75,1000,,10.5,101,2
",
    );
}

#[test]
fn latex() {
    let mut runs = vec![run("low_rank", 2, "rte", 1e-3, 0, 0.5), run("low_rank", 4, "rte", 1e-3, 0, 0.6)];
    runs.push(run("low_rank", 2, "rte", 1e-3, 1, 0.5));
    check(
        GridTable::from_runs(&runs).to_latex(),
        r"
% rte: accuracy; scores × 100; mean ± standard deviation over the seeds at hand
\begin{tabular}{lrrrrr}
\toprule
method & rte & trainable & ms/step & peak MB & s/run \\
\midrule
low\_rank r=2 & 50.0 $\pm$ 0.0 & 3,000 & 10.5 & 101 & 2.0 \\
low\_rank r=4 & \textbf{60.0} & 5,000 & 10.0 & 100 & 2.0 \\
\bottomrule
\end{tabular}
",
    );
}

#[test]
fn names_are_no_markup() {
    let mut runs =
        vec![run("*a_[`b`](c)&\\", 8, "rte", 1e-3, 0, 0.5), run("[<b>|\"", 0, "rte", 1e-3, 0, 0.7)];
    for run in &mut runs {
        run.record.train_info.trainable = 1_245_570;
    }
    let table = GridTable::from_runs(&runs);
    let markdown = table.to_markdown();
    let cells = "| 50.0 | 1,245,570 | 10.0 | 100 | 2.0 |";
    assert!(markdown.contains(&format!(r"| \*a\_\[\`b\`\](c)&amp;\\ r=8 {cells}")), "{markdown}");
    assert!(markdown.contains(r#"| \[&lt;b>\|" | **70.0** | 1,245,570 |"#), "{markdown}");
    let latex = table.to_latex();
    assert!(latex.contains("\n{}*a\\_[`b`](c)\\&\\textbackslash{} r=8 & 50.0"), "{latex}");
    let row = "\n{}[\\textless{}b\\textgreater{}\\textbar{}\\textquotedblright{} & \\textbf{70.0}";
    assert!(latex.contains(row), "{latex}");
}

#[test]
fn a_smaller_perplexity_is_better_and_not_a_percentage() {
    let runs =
        [run("svd", 0, "lm:perplexity", 0.0, 0, 61.8), run("whitened", 0, "lm:perplexity", 0.0, 0, 15.44)];
    let table = GridTable::from_runs(&runs);
    let cells: Vec<_> = table.rows.iter().map(|row| row.cells[0].clone().unwrap()).collect();
    assert_eq!((cells[0].score.mean, cells[0].best), (61.8, false));
    assert_eq!((cells[1].score.mean, cells[1].best), (15.44, true));
    assert!(table.to_text().contains("15.44*"));
}

#[test]
fn percentages_and_perplexities_have_no_average() {
    let header = |second: &str| {
        let runs = [run("lora", 8, "sst2", 0.0, 0, 0.9), run("lora", 8, second, 0.0, 0, 0.5)];
        GridTable::from_runs(&runs).to_markdown().lines().next().unwrap().to_owned()
    };
    assert!(header("cola").contains("| average |"));
    assert!(!header("lm:perplexity").contains("average"));
}

#[test]
fn settings_that_differ_make_rows_of_their_own() {
    let mut runs = vec![run("lora", 8, "rte", 1e-3, 0, 0.5), run("lora", 8, "rte", 1e-3, 0, 0.7)];
    runs[0].record.run_info.config.insert("alpha".into(), 8.into());
    runs[1].record.run_info.config.insert("alpha".into(), 16.into());
    for run in &mut runs {
        run.record.run_info.config.insert("dropout".into(), 0.1.into());
    }
    let table = GridTable::from_runs(&runs);
    let settings: Vec<_> = table.rows.iter().map(|row| row.settings.as_str()).collect();
    assert_eq!(settings, ["alpha=16", "alpha=8"]);
}

#[test]
fn a_switch_that_an_older_version_did_not_have_is_off() {
    let mut runs = vec![run("lora", 8, "rte", 1e-3, 0, 0.5), run("lora", 8, "rte", 1e-3, 1, 0.7)];
    runs[1].record.run_info.config.insert("zero_head".into(), false.into());
    let table = GridTable::from_runs(&runs);
    assert_eq!((table.rows.len(), table.rows[0].settings.as_str()), (1, ""));
    runs[1].record.run_info.config.insert("zero_head".into(), true.into());
    let table = GridTable::from_runs(&runs);
    let settings: Vec<_> = table.rows.iter().map(|row| row.settings.as_str()).collect();
    assert_eq!(settings, ["", "zero_head=true"]);
}

#[test]
fn the_same_run_twice_counts_once() {
    let mut runs = vec![run("lora", 8, "rte", 1e-3, 0, 0.5), run("lora", 8, "rte", 1e-3, 0, 0.7)];
    runs[0].record.run_info.finished = Some("2026-01-02T00:00:00Z".into());
    runs[1].record.run_info.finished = Some("2026-01-01T00:00:00Z".into());
    runs[1].folder = "older".into();
    let table = GridTable::from_runs(&runs);
    assert_eq!(table.rows[0].cells[0].as_ref().unwrap().score.mean, 50.0);
    assert!(table.notes[0].starts_with("older is left out"), "{:?}", table.notes);
}

#[test]
fn what_did_not_finish_is_named_and_not_shown() {
    let mut runs = sample();
    runs[0].record.train_info.status = Status::Failed;
    runs[0].record.train_info.error = Some("loss is NaN".into());
    runs[1].record.train_info.status = Status::Running;
    runs[8].record.train_info.metric = None;
    let table = GridTable::from_runs(&runs);
    assert!(table.rows.iter().all(|row| row.method != "head"));
    let notes = table.notes.join("\n");
    assert!(notes.contains("head-0-sst2-1e-3-0 failed: loss is NaN"), "{notes}");
    assert!(notes.contains("head-0-cola-1e-3-0 has not finished"), "{notes}");
    assert!(notes.contains("lora-1-sst2-5e-4-0 ended without a finite score"), "{notes}");
}

#[test]
fn an_empty_grid_says_so() {
    let table = GridTable::from_runs(&[]);
    assert_eq!(table.to_text(), "no run has finished\n");
    assert_eq!(table.to_markdown(), "no run has finished\n");
    assert_eq!(
        table.to_csv(),
        "source,model,method,rank,settings,average,trainable,parameters,ms_per_step,peak_rss_mb,wall_s\n"
    );
    assert!(table.to_latex().contains("\\end{tabular}"));
}

#[test]
fn models_are_compared_apart_and_versions_noted() {
    let mut runs = vec![run("full", 0, "rte", 1e-3, 0, 0.5), run("full", 0, "rte", 1e-3, 0, 0.7)];
    runs[1].record.meta_info.model = "other".into();
    runs[1].record.run_info.version = "0.2.0".into();
    let table = GridTable::from_runs(&runs);
    assert_eq!(table.rows.len(), 2);
    assert!(table.rows.iter().all(|row| !row.cells[0].clone().unwrap().best));
    assert!(table.to_text().starts_with("model"));
    let note = "runs of several versions are compared: 0.1.0 (full-0-rte-1e-3-0), 0.2.0 (full-0-rte-1e-3-0)";
    assert!(table.notes.contains(&note.to_owned()), "{:?}", table.notes);
}

/// Names of the rows' models for runs of models given by path and hash, a seed each.
fn names_of(models: &[(&str, &str)]) -> (Vec<String>, Vec<String>) {
    let given = |(seed, (path, hash)): (usize, &(&str, &str))| {
        let mut run = run("full", 0, "rte", 1e-3, seed as u64, 0.5);
        (run.record.meta_info.model, run.record.meta_info.model_hash) = ((*path).into(), (*hash).into());
        run
    };
    let table = GridTable::from_runs(&models.iter().enumerate().map(given).collect::<Vec<_>>());
    (table.rows.into_iter().map(|row| row.model).collect(), table.notes)
}

#[test]
fn other_weights_of_the_same_last_part_are_another_model() {
    let names = |models: &[(&str, &str)]| names_of(models).0;
    assert_eq!(names(&[("a/base/m", "1"), ("b/large/m", "2")]), ["base/m", "large/m"]);
    assert_eq!(names(&[("a/base/m", "1"), ("b/base/m", "2"), ("c/n", "3")]), ["a/base/m", "b/base/m", "n"]);
    assert_eq!(names(&[("m", "1"), ("a/m", "2"), ("/a/m", "3")]), ["/a/m", "a/m", "m"]);
    // Nothing says that they are the same.
    for hash in ["", "random"] {
        assert_eq!(names(&[("a/m", hash), ("b/m", hash)]), ["a/m", "b/m"]);
    }
    assert_eq!(names_of(&[("a/m", "1"), ("b/m", "2")]).1, Vec::<String>::new());
}

#[test]
fn spellings_of_a_path_are_one_model() {
    assert_eq!(names_of(&[("a/m", "1"), ("/x/a/m", "1"), ("b/m", "1")]), (vec!["m".to_owned()], vec![]));
    assert_eq!(names_of(&[("a/m", "1"), ("./a//m/", "random")]).0, ["m"]);
    // The same weights by the path or by the hash, beside others.
    let models = [("a/m", "1"), ("c/m", "1"), ("c/m", "random"), ("b/m", "2")];
    assert_eq!(names_of(&models).0, ["a/m", "b/m"]);
}

#[test]
fn what_was_given_a_name_keeps_it() {
    let mut runs = [run("full", 0, "rte", 1e-3, 0, 0.5), run("lora", 0, "rte", 1e-3, 0, 0.7)];
    for (run, (model, hash)) in runs.iter_mut().zip([("a/m", "1"), ("m", "2")]) {
        (run.record.meta_info.model, run.record.meta_info.model_hash) = (model.into(), hash.into());
    }
    runs[1].record.run_info.config.insert("model_name".into(), "m".into());
    let rows = GridTable::from_runs(&runs).rows;
    assert_eq!(rows.iter().map(|row| row.model.as_str()).collect::<Vec<_>>(), ["m", "m"]);
}

#[test]
fn published_rows_stand_at_the_end_and_win_nothing() {
    let runs = [run("full", 0, "rte", 1e-3, 0, 0.1), run("lora", 8, "rte", 1e-3, 0, 0.2)];
    let table = GridTable::from_runs(&runs).with_published();
    let rows: Vec<_> =
        table.rows.iter().map(|row| (row.published, row.cells[0].as_ref().unwrap().best)).collect();
    assert_eq!(
        rows,
        [(false, false), (false, true), (true, false), (true, false), (true, false), (true, false)]
    );
    let markdown = table.to_markdown();
    assert!(markdown.contains("| roberta-base | lotr r=32 † | 66.8 | 75,264 | – | – | – |"), "{markdown}");
    assert!(markdown.contains("scores × 100; one seed"), "{markdown}");
    assert!(
        table.to_csv().contains("published,roberta-base,lora,1,,66.1,,1,,66.1,38400,,,"),
        "{}",
        table.to_csv()
    );
    assert!(table.to_latex().contains("lora r=1 $\\dagger$ & 66.1"), "{}", table.to_latex());
}

#[test]
fn nothing_published_for_other_tasks() {
    let table = GridTable::from_runs(&[run("svd", 0, "sst2:perplexity", 0.0, 0, 9.0)]);
    assert_eq!(table.clone().with_published(), table);
}

#[test]
fn other_data_under_the_same_name_are_noted() {
    let mut runs = [run("full", 0, "rte", 1e-3, 0, 0.1), run("lora", 8, "rte", 1e-3, 0, 0.2)];
    runs[1].record.meta_info.data_hash = "other".into();
    let table = GridTable::from_runs(&runs);
    let note = "the rows of rte are not the same in all runs: unknown (full-0-rte-1e-3-0), other (lora-8-rte-1e-3-0)";
    assert_eq!(table.notes, [note]);
}

#[test]
fn weights_that_were_to_differ_are_no_other_version_of_the_model() {
    let mut runs = [run("full", 0, "rte", 1e-3, 0, 0.2), run("head", 0, "rte", 1e-3, 0, 0.1)];
    runs[1].record.meta_info.model_hash = "random".into();
    assert_eq!(
        GridTable::from_runs(&runs).notes,
        [
            "the weights of mini-bert are not the same in all runs: unknown (full-0-rte-1e-3-0), random (head-0-rte-1e-3-0)"
        ]
    );
    for (key, value) in [("random_init", serde_json::json!(true)), ("model_name", "mini-bert".into())] {
        let mut runs = runs.clone();
        runs[1].record.run_info.config.insert(key.into(), value);
        assert_eq!(GridTable::from_runs(&runs).notes, Vec::<String>::new(), "{key}");
    }
}

#[test]
fn a_start_per_seed_makes_no_row_per_seed() {
    let from = |task: &str, lr: &str, seed: u64, score: f64| {
        let mut run = run("lora", 8, task, 1e-3, seed, score);
        let path = format!("g/cells/mini-bert-head-{task}-lr{lr}-s{seed}-01234abcd{seed}/adapter");
        run.record.run_info.config.insert("init_from".into(), path.into());
        run
    };
    let mut runs = vec![from("rte", "1", 0, 0.5), from("rte", "1", 1, 0.7), from("cola", "1", 0, 0.2)];
    let table = GridTable::from_runs(&runs);
    assert_eq!(table.rows.len(), 1, "{}", table.to_text());
    assert_eq!(table.rows[0].settings, "");
    assert_eq!(table.rows[0].cells[1].as_ref().unwrap().score.count, 2);

    runs.extend([from("rte", "2", 0, 0.1), from("rte", "2", 1, 0.1), from("cola", "2", 0, 0.1)]);
    let table = GridTable::from_runs(&runs);
    let settings: Vec<_> = table.rows.iter().map(|row| row.settings.as_str()).collect();
    let start = |lr| format!("init_from=g/cells/mini-bert-head-lr{lr}/adapter");
    assert_eq!(settings, [start(1), start(2)]);
    assert!(table.rows.iter().all(|row| row.cells[1].as_ref().unwrap().score.count == 2));

    // Two starts of one seed that the name does not tell apart.
    let mut other = from("rte", "2", 0, 0.3);
    let path = "g/cells/mini-bert-head-rte-lr2-s0-ffffffffff/adapter";
    other.record.run_info.config.insert("init_from".into(), path.into());
    other.folder = "other".into();
    runs.push(other);
    let rows = GridTable::from_runs(&runs).rows;
    assert!(rows.iter().any(|row| row.settings == format!("init_from={path}")));
    assert_eq!(rows.iter().flat_map(|row| row.cells.iter().flatten()).flat_map(|cell| &cell.runs).count(), 7);
}

#[test]
fn a_run_that_names_no_metric_does_not_empty_its_column() {
    let mut runs = vec![run("full", 0, "rte", 1e-3, 0, 0.5), run("lora", 1, "rte:f1", 1e-3, 0, 0.6)];
    runs.extend([run("lora", 2, "rte", 1e-3, 0, 0.7), run("lora", 4, "rte", 1e-3, 0, 0.8)]);
    runs[0].record.train_info.metric_name.clear();
    let table = GridTable::from_runs(&runs);
    assert_eq!(table.columns[0].metric.name(), "accuracy");
    assert_eq!(table.rows.iter().filter(|row| row.cells[0].is_some()).count(), 2);
    assert_eq!(
        table.notes,
        [
            "full-0-rte-1e-3-0 is left out: its metric has no name, the column's is accuracy",
            "lora-1-rte-1e-3-0 is left out: its metric is f1, the column's is accuracy"
        ]
    );
}

#[test]
fn a_seed_without_a_score_is_counted_and_leaves_the_costs() {
    let mut runs: Vec<_> = (0..3).map(|seed| run("lora", 8, "rte", 1e-3, seed, 0.5)).collect();
    runs[1].record.train_info.metric = None;
    let table = GridTable::from_runs(&runs);
    assert!(table.rows[0].cells[0].is_none());
    assert_eq!((table.rows[0].cost.trainable, table.rows[0].cost.ms_per_step), (9000, Some(11.0)));
    let note = "lora-8-rte-1e-3-1 ended without a finite score; 2 other seeds are left out with it";
    assert_eq!(table.notes, [note]);
}

#[test]
fn published_perplexities_stand_beside_perplexities_alone() {
    let rows = |runs: &[LoadedRun]| {
        let rows = GridTable::from_runs(runs).with_published().rows;
        rows.into_iter().filter(|row| row.published).map(|row| row.model).collect::<Vec<_>>()
    };
    let table = GridTable::from_runs(&[run("svd", 0, "wikitext2:perplexity", 0.0, 0, 9.0)]).with_published();
    assert_eq!(table.rows.iter().filter(|row| row.published).count(), 7);
    assert!(
        table.to_markdown().contains("| llama-7b | whitened (ratio=0.4) † | 13.73 |"),
        "{}",
        table.to_text()
    );
    assert!(!table.notes[0].contains("roberta"), "{:?}", table.notes);
    assert!(rows(&[run("svd", 0, "wikitext2", 0.0, 0, 0.9)]).is_empty());
    let sst2 = rows(&[run("full", 0, "sst2", 1e-3, 0, 0.9)]);
    assert_eq!(sst2.iter().filter(|model| *model == "bert-base-uncased").count(), 6);
    assert_eq!(sst2.iter().filter(|model| *model == "all-MiniLM-L6-v2").count(), 1);
}
