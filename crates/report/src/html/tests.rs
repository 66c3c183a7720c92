//! Reports of hand-made runs.

use std::{collections::BTreeSet, fs};

use super::*;
use crate::{
    LogKey, log_path,
    run::{Evaluation, FILE_NAME, MetaInfo, RunInfo, RunRecord, Status},
    tfevents::EventWriter,
};

/// Writes a finished run with two evaluations and a training loss in the grid's log tree.
fn run(root: &Path, method: &str, rank: u64, task: &str, seed: u64, score: f64) {
    let meta = MetaInfo {
        model: "models/tiny".into(),
        task: task.into(),
        method: method.into(),
        ..MetaInfo::default()
    };
    let command = vec!["/somewhere/bin/lowrank".into(), "finetune".into()];
    let mut record = RunRecord::new(RunInfo { command, ..RunInfo::default() }, meta);
    let config = &mut record.run_info.config;
    config.insert("lr".into(), 1e-3.into());
    config.insert("seed".into(), seed.into());
    if rank > 0 {
        config.insert("rank".into(), rank.into());
    }
    let info = &mut record.train_info;
    (info.status, info.metric_name, info.metric) = (Status::Done, "accuracy".into(), Some(score));
    (info.trainable, info.ms_per_step_median) = (1000 * (rank + 1), Some(10.0));
    for (step, part) in [(10, 0.5), (20, 1.0)] {
        let metrics = [("accuracy".to_owned(), Some(score * part))].into();
        info.evals.push(Evaluation { step, metrics, ..Evaluation::default() });
    }
    let folder = root.join("cells").join(format!("{task}-{seed}-{rank}-{}", method.len()));
    fs::create_dir_all(&folder).unwrap();
    record.write_atomic(folder.join(FILE_NAME)).unwrap();
    let key = LogKey { model: "models/tiny", method, task, lr: 1e-3, rank, seed };
    let mut events = EventWriter::create(log_path(root.join("logs"), &key)).unwrap();
    for step in 1..=20 {
        events.scalar("train/loss", step, 1.0 / step as f32, 0.0).unwrap();
    }
}

/// Two tasks, two methods (one with two ranks), two seeds; full fine-tuning is better by 10 and by 20.
fn sample(root: &Path) {
    for (seed, gain) in [(0, 0.1), (1, 0.2)] {
        for task in ["rte", "sst2"] {
            run(root, "full", 0, task, seed, 0.6 + gain);
            run(root, "lora", 1, task, seed, 0.55);
            run(root, "lora", 8, task, seed, 0.6);
        }
    }
}

fn html_of(root: &Path) -> String {
    let output = root.join("report.html");
    write_report(root, &output, &ReportOptions::default()).unwrap();
    fs::read_to_string(output).unwrap()
}

/// The names of a page's elements, each closed where it must be.
fn elements(html: &str) -> Vec<String> {
    let (mut open, mut all) = (Vec::new(), Vec::new());
    let body = html.split_once("<!DOCTYPE html>").unwrap().1;
    for piece in body.split('<').skip(1) {
        let tag = piece.split_once('>').unwrap_or_else(|| panic!("a < that begins nothing: {piece}")).0;
        let name = tag.trim_start_matches('/').split([' ', '\n', '/']).next().unwrap().to_owned();
        if tag.starts_with('/') {
            assert_eq!(open.pop().as_ref(), Some(&name), "</{name}> closes another element");
            continue;
        }
        if !tag.ends_with('/') && !["meta", "link"].contains(&name.as_str()) {
            open.push(name.clone());
        }
        all.push(name);
    }
    assert!(open.is_empty(), "left open: {open:?}");
    all
}

/// The values of an attribute.
fn attributes<'a>(html: &'a str, name: &str) -> Vec<&'a str> {
    let begin = format!(" {name}=\"");
    html.match_indices(&begin).map(|(at, _)| html[at + begin.len()..].split('"').next().unwrap()).collect()
}

#[test]
fn the_page_is_whole_and_needs_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let html = html_of(dir.path());
    let elements = elements(&html);
    let count = |name: &str| elements.iter().filter(|element| *element == name).count();
    assert_eq!((count("h1"), count("main"), count("style"), count("script")), (1, 1, 1, 0));
    for outside in ["http:", "https:", "//", "url(", "@import", " src=", "<img"] {
        assert!(!html.replace("</", "").contains(outside), "{outside}");
    }
    assert!(attributes(&html, "href").iter().all(|link| link.starts_with("data:")));
    assert!(!html.contains("NaN") && !html.contains("inf<"));
}

#[test]
fn every_part_has_a_name_that_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let html = html_of(dir.path());
    let ids = attributes(&html, "id");
    let different: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(ids.len(), different.len(), "an id occurs twice: {ids:?}");
    let labels = attributes(&html, "aria-labelledby");
    assert!(labels.iter().all(|label| different.contains(label)), "{labels:?}");
    // A picture says what it shows; what scrolls can be reached by keyboard.
    let pictures = html.matches("role=\"img\"").count();
    assert_eq!(pictures, 6, "three figures for each of two tasks");
    assert_eq!(html.matches("<svg viewBox=\"0 0 360 240\" role=\"img\" aria-labelledby=").count(), pictures);
    assert_eq!(
        html.matches("class=\"scroll\" role=\"region\" tabindex=\"0\"").count(),
        html.matches("<table").count()
    );
}

#[test]
fn sections_show_what_they_promise() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let html = html_of(dir.path());
    for heading in [
        "Scores",
        "Score against trainable parameters",
        "Training",
        "Time and memory",
        "Does one method beat another?",
        "How they were run",
    ] {
        assert!(html.contains(&format!("<h2>{heading}</h2>")), "{heading}");
    }
    assert!(html.contains("<td class=\"best\">75.0 ± 7.1</td>"));
    // Differences to lora r=1 are 15 and 25 on both tasks.
    assert!(html.contains("<td class=\"best\">+20.0 <small>[+15.0, +25.0]</small></td>"), "{html}");
    assert!(html.contains("<title>lora r=8: 60.0 with 9000 parameters</title>"));
    assert!(html.contains("<title>full, step 10: 37.500</title>"));
    assert!(html.contains("66.1") && html.contains("† published by others"));
    assert!(html.contains("<code>lowrank finetune</code>"));
}

#[test]
fn a_perplexity_stands_against_all_parameters() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "whitened", 0, "text", 0, 15.4);
    let file = dir.path().join("cells/text-0-0-8").join(FILE_NAME);
    let mut record = RunRecord::read(&file).unwrap();
    record.train_info.metric_name = "perplexity".into();
    (record.train_info.trainable, record.train_info.total) = (0, 260_032);
    record.write_atomic(&file).unwrap();
    let html = html_of(dir.path());
    assert!(html.contains("text: perplexity against parameters</title>"), "{html}");
    assert!(html.contains("<title>whitened: 15.4 with 260032 parameters</title>"), "{html}");
}

/// A plot of the training of a perplexity that has `first` and 10 as its values.
fn perplexity_plot(first: f64) -> String {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "whitened", 0, "text", 0, 10.0);
    let file = dir.path().join("cells/text-0-0-8").join(FILE_NAME);
    let mut record = RunRecord::read(&file).unwrap();
    record.train_info.metric_name = "perplexity".into();
    for (evaluation, value) in record.train_info.evals.iter_mut().zip([first, 10.0]) {
        evaluation.metrics = [("perplexity".to_owned(), Some(value))].into();
    }
    record.write_atomic(&file).unwrap();
    let html = html_of(dir.path());
    html.split("text: perplexity over the optimizer steps</title>").nth(1).unwrap().to_owned()
}

#[test]
fn a_perplexity_falls_on_a_logarithmic_axis() {
    let plot = perplexity_plot(1e6);
    let numbers = [">10<", ">100<", ">1k<", ">10k<", ">100k<", ">1M<"];
    assert!(numbers.iter().filter(|number| plot.contains(*number)).count() >= 3, "{plot}");
    assert!(plot.contains(">100<"), "{plot}");
    // There a zero has no place.
    let plot = perplexity_plot(0.0);
    assert!(plot.contains("<title>whitened, step 10: 0.000</title>"), "{plot}");
}

#[test]
fn curves_of_one_point_differ_by_their_markers() {
    let dir = tempfile::tempdir().unwrap();
    for rank in [1, 8] {
        run(dir.path(), "lora", rank, "rte", 0, 0.7);
        let file = dir.path().join(format!("cells/rte-0-{rank}-4")).join(FILE_NAME);
        let mut record = RunRecord::read(&file).unwrap();
        record.train_info.evals.truncate(1);
        record.write_atomic(&file).unwrap();
    }
    let html = html_of(dir.path());
    // The beginning of a marker's path up to its place, and its shape.
    let shape = |rank: u64| {
        let before = html.split(&format!("<title>lora r={rank}, step 10: ")).next().unwrap();
        let path = before.rsplit(" d=\"").next().unwrap();
        path.split_once(['a', 'h', 'l']).unwrap().1.to_owned()
    };
    assert_ne!(shape(1), shape(8));
}

#[test]
fn perplexities_are_compared_apart_from_points() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let html = html_of(dir.path());
    assert!(
        html.contains("tiny: mean difference")
            && html.contains("interval; positive: the row is better; bold")
    );
    for (seed, gain) in [(0, 1.0), (1, 2.0)] {
        for (method, score) in [("full", 10.0 - gain), ("lora", 10.0)] {
            run(dir.path(), method, 0, "text", seed, score);
            let file = dir.path().join(format!("cells/text-{seed}-0-4")).join(FILE_NAME);
            let mut record = RunRecord::read(&file).unwrap();
            record.train_info.metric_name = "perplexity".into();
            record.run_info.config.insert("rank".into(), if method == "full" { 0 } else { 8 }.into());
            let folder = dir.path().join(format!("cells/text-{seed}-{method}"));
            fs::create_dir_all(&folder).unwrap();
            record.write_atomic(folder.join(FILE_NAME)).unwrap();
            fs::remove_file(&file).unwrap();
        }
    }
    let html = html_of(dir.path());
    assert!(html.contains("tiny, sst2, rte: mean difference"), "{html}");
    assert!(html.contains("<td class=\"best\">+15.0 <small>[+10.0, +20.0]</small></td>"), "{html}");
    assert!(html.contains("tiny, text: mean difference"), "{html}");
    assert_eq!(html.matches("<th scope=\"col\">− lora r=1</th>").count(), 1, "it has no perplexity");
    assert!(html.contains("positive: the row is better, the sign turned since less is better"), "{html}");
    assert!(html.contains("<td class=\"best\">+1.50 <small>[+1.00, +2.00]</small></td>"), "{html}");
}

#[test]
fn a_run_shows_its_own_events_alone() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "lora", 8, "rte", 0, 0.7);
    let key = LogKey { model: "tiny", method: "lora", task: "rte", lr: 1e-3, rank: 8, seed: 0 };
    let folder = log_path(dir.path().join("logs"), &key);
    let own = fs::read_dir(&folder).unwrap().next().unwrap().unwrap().file_name();
    // A run of another alpha, in the same folder.
    let mut other = EventWriter::create(&folder).unwrap();
    for step in 1..=30 {
        other.scalar("train/loss", step, 9.0, 0.0).unwrap();
    }
    let file = dir.path().join("cells/rte-0-8-4").join(FILE_NAME);
    let mut record = RunRecord::read(&file).unwrap();
    let losses = |record: &RunRecord| {
        let run = LoadedRun { folder: dir.path().join("cells/rte-0-8-4"), record: record.clone() };
        curves::losses(dir.path(), &[run])
    };
    assert_eq!(losses(&record).last(), Some(&(30.0, 9.0)));
    record.train_info.event_files = vec![own.into_string().unwrap()];
    record.write_atomic(&file).unwrap();
    let record = RunRecord::read(&file).unwrap();
    assert_eq!(losses(&record).last(), Some(&(20.0, f64::from(0.05_f32))));
}

#[test]
fn of_a_step_that_was_logged_twice_the_loss_of_the_later_file_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    for (name, loss) in [("9.0", 1.0), ("10.0", 2.0)] {
        let written = dir.path().join("written");
        let mut events = EventWriter::create(&written).unwrap();
        events.scalar("train/loss", 1, loss, 0.0).unwrap();
        fs::rename(events.path(), dir.path().join(format!("events.out.tfevents.7.host.{name}"))).unwrap();
    }
    let record = RunRecord::new(RunInfo::default(), MetaInfo::default());
    let run = LoadedRun { folder: dir.path().to_owned(), record };
    assert_eq!(curves::losses(dir.path(), &[run]), [(1.0, 2.0)]);
}

#[test]
fn one_seed_allows_no_comparison() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "full", 0, "rte", 0, 0.7);
    run(dir.path(), "lora", 8, "rte", 0, 0.6);
    let html = html_of(dir.path());
    assert!(html.contains("nothing can be said about chance"));
}

#[test]
fn names_from_records_are_text() {
    let dir = tempfile::tempdir().unwrap();
    run(dir.path(), "<script>alert(1)</script>", 0, "a&b\"", 0, 0.7);
    let html = html_of(dir.path());
    assert_eq!(elements(&html).iter().filter(|element| *element == "script").count(), 0);
    assert!(html.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
    let ids = attributes(&html, "id");
    assert!(ids.iter().all(|id| id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')), "{ids:?}");
}

#[test]
fn formats_follow_the_name() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let write = |name: &str| {
        let summary = write_report(dir.path(), dir.path().join(name), &ReportOptions::default()).unwrap();
        summary
            .written
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(write("a.html"), ["a.html", "a.md", "a.csv", "a.tex"]);
    assert_eq!(write("b.csv"), ["b.csv"]);
    assert_eq!(write("b.tex"), ["b.tex"]);
    let markdown = fs::read_to_string(dir.path().join("a.md")).unwrap();
    assert!(markdown.contains("lora r=8") && markdown.contains("†"), "{markdown}");
    let plain = ReportOptions { without_published: true, title: Some("Mine & yours".into()) };
    write_report(dir.path(), dir.path().join("c.html"), &plain).unwrap();
    assert!(!fs::read_to_string(dir.path().join("c.md")).unwrap().contains('†'));
    assert!(fs::read_to_string(dir.path().join("c.html")).unwrap().contains("<h1>Mine &amp; yours</h1>"));
}

#[test]
fn a_report_is_written_whole_or_not_at_all() {
    for blocked in ["a.html", "a.md", "a.tex"] {
        let dir = tempfile::tempdir().unwrap();
        sample(dir.path());
        fs::create_dir(dir.path().join(blocked)).unwrap();
        let before = fs::read_dir(dir.path()).unwrap().count();
        let error = write_report(dir.path(), dir.path().join("a.html"), &ReportOptions::default());
        let error = error.unwrap_err().to_string();
        let expected = format!("{blocked}: exists and is not a regular file; choose another output");
        assert!(error.ends_with(&expected), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), before, "something was left behind");
    }
}

#[test]
fn wrong_use_and_bad_records() {
    let dir = tempfile::tempdir().unwrap();
    let refused = |root: &Path, name: &str| {
        write_report(root, dir.path().join(name), &ReportOptions::default()).unwrap_err().to_string()
    };
    assert!(refused(dir.path(), "a.pdf").contains("does not end in"));
    assert!(refused(dir.path(), "a.html").starts_with("no run.json below"));
    assert!(refused(&dir.path().join("absent"), "a.html").starts_with("cannot read"));
    let broken = dir.path().join("broken");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join(FILE_NAME), r#"{"format":99}"#).unwrap();
    assert!(refused(dir.path(), "a.html").contains("has format 99"));
    sample(dir.path());
    let summary = write_report(dir.path(), dir.path().join("a.html"), &ReportOptions::default()).unwrap();
    assert_eq!(summary.warnings.len(), 1);
    assert!(fs::read_to_string(dir.path().join("a.html")).unwrap().contains("has format 99"));
}
