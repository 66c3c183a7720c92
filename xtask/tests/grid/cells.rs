//! What is run, skipped, waited for and refused.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use crate::bench::{Bench, assert_success, text, without_hashes};

#[test]
fn the_plan() {
    let bench = Bench::new();
    let output = bench.run(&["--dry-run"]);
    assert_success(&output);
    let expect = "\
glue: A test.
4 cells in grid, 0 done, 2 at once

todo  tiny-full-cola-lr5e-5-s0-HASH  (time unknown)
      lowrank finetune --model org/tiny --task cola --data data --method full --seed 0 --batch-size 32 --lr 5e-5 \
--max-steps 5
todo  tiny-lora-cola-r8-lr1e-3-s0-HASH  (time unknown)
      lowrank finetune --model org/tiny --task cola --data data --method lora --seed 0 --batch-size 32 --lr 1e-3 \
--max-steps 5 --rank 8 --rslora --targets query,value
todo  tiny-full-rte-lr5e-5-s0-HASH  (time unknown)
      lowrank finetune --model org/tiny --task rte --data data --method full --seed 0 --batch-size 32 --lr 5e-5 \
--max-steps 5
todo  tiny-lora-rte-r8-lr1e-3-s0-HASH  (time unknown)
      lowrank finetune --model org/tiny --task rte --data data --method lora --seed 0 --batch-size 32 --lr 1e-3 \
--max-steps 5 --rank 8 --rslora --targets query,value

left: unknown until the first cells are done
";
    assert_eq!(without_hashes(&text(&output.stdout)), expect);
    assert!(!bench.grid().exists(), "a plan leaves no trace");
}

#[test]
fn a_reader_that_has_enough_is_no_failure() {
    let bench = Bench::new();
    let mut command = bench.command(&["--dry-run"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn without_results_there_is_no_table() {
    let bench = Bench::new();
    let output = bench.command(&[]).env("FAKE_FAIL", "--task").output().unwrap();
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(1), String::new()), "{error}");
    assert!(error.contains("0 cells done, 0 done before, 4 failed") && !error.contains("report"), "{error}");
}

#[test]
fn what_is_done_is_not_run_again() {
    let bench = Bench::new();
    let first = bench.run(&[]);
    assert_success(&first);
    assert_eq!(bench.logged("start").len(), 4);
    let second = bench.run(&["--resume"]);
    assert_success(&second);
    assert_eq!(bench.logged("start").len(), 4, "a finished cell was run again");
    assert_eq!(first.stdout, second.stdout);
    assert!(text(&second.stderr).contains("4 of 4 cells are done already"), "{}", text(&second.stderr));

    let plan = text(&bench.run(&["--dry-run", "--seeds", "0,1"]).stdout);
    assert!(plan.contains("8 cells in grid, 4 done"), "{plan}");
    assert!(plan.contains("(30 s, 1000 trainable)") && plan.contains("(about 30 s)"), "{plan}");
    assert!(plan.ends_with("left: about 1.0 minutes\n"), "{plan}");
}

#[test]
fn another_setting_is_another_cell() {
    let bench = Bench::new();
    assert_success(&bench.run(&["--methods", "lora", "--tasks", "rte"]));
    assert_success(&bench.run(&["--methods", "lora", "--tasks", "rte", "--set", "alpha=4"]));
    assert_success(&bench.run(&["--methods", "lora:8", "--tasks", "rte", "--set", "lora.alpha=4"]));
    let started = bench.logged("start");
    assert_eq!(started.len(), 2, "{started:?}");
    assert_ne!(started[0], started[1]);
}

#[test]
fn a_failure_is_reported_and_stops_nothing() {
    let bench = Bench::new();
    let failing =
        bench.command(&[]).env("FAKE_FAIL", "--task rte --data data --method lora").output().unwrap();
    let error = text(&failing.stderr);
    assert_eq!(failing.status.code(), Some(1), "{error}");
    assert!(error.contains("3 cells done, 0 done before, 1 failed"), "{error}");
    assert!(error.contains("exit status 1: error: told to fail (log: grid/cells/tiny-lora-rte-"), "{error}");
    assert_eq!(text(&failing.stdout).lines().count(), 3, "the table shows what there is");
    let mended = bench.run(&[]);
    assert_success(&mended);
    assert_eq!(text(&mended.stdout).lines().count(), 4);
    assert_eq!(bench.logged("start").len(), 5, "only the failed cell is tried again");
}

#[test]
fn a_killed_cell_goes_on_from_its_checkpoints_and_a_failed_one_begins_anew() {
    let bench = Bench::new();
    let only = ["--methods", "full", "--tasks", "rte"];
    assert_success(&bench.run(&only));
    let id = bench.logged("end").remove(0);
    let cells = bench.grid().join("cells");
    let kept = cells.join(&id).join("checkpoints/step-3/kept");
    for failed in [false, true] {
        fs::remove_file(cells.join(&id).join("run.json")).unwrap();
        fs::create_dir_all(&kept).unwrap();
        if failed {
            fs::write(cells.join(format!("{id}.failed")), "exit status 1").unwrap();
        }
        assert_success(&bench.run(&only));
        assert_eq!(kept.exists(), !failed);
    }
}

#[test]
fn a_cell_killed_alone_goes_on_from_its_checkpoints() {
    let bench = Bench::new();
    let only = ["--methods", "full", "--tasks", "rte"];
    let killed = bench.command(&only).env("FAKE_KILL", "TERM").output().unwrap();
    let error = text(&killed.stderr);
    assert_eq!(killed.status.code(), Some(1), "{error}");
    assert!(error.contains("1 failed") && error.contains("SIGTERM"), "{error}");
    let crashed = bench.command(&only).env("FAKE_KILL", "ABRT").output().unwrap();
    assert!(!crashed.status.success());
    assert_eq!(bench.logged("resume").len(), 1, "a cell killed from outside did not resume");
    assert_success(&bench.run(&only));
    assert_eq!(bench.logged("resume").len(), 1, "a cell that crashed did not begin anew");
}

const ELSEWHERE: &str = "another process runs it";

/// Two commands of one cell, of which the second waits while the first runs it: how the first ended, and what the second
/// wrote to standard error.
fn both_of_one_cell(bench: &Bench, signal: &str) -> [(bool, String); 2] {
    let hold = bench.dir.path().join("hold");
    fs::write(&hold, "").unwrap();
    let start = || {
        let mut command = bench.command(&["--methods", "full", "--tasks", "rte"]);
        command.env("FAKE_HOLD", &hold).env("FAKE_KILL", signal);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let first = start();
    let deadline = Instant::now() + Duration::from_secs(120);
    while bench.logged("start").is_empty() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let mut second = start();
    let mut log = BufReader::new(second.stderr.take().unwrap());
    // A second process that says nothing must not hold the test up.
    let guard = thread::spawn({
        let hold = hold.clone();
        move || {
            while hold.exists() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(50));
            }
            fs::remove_file(hold).unwrap_or_default();
        }
    });
    let mut said = String::new();
    while !said.contains(ELSEWHERE) && log.read_line(&mut said).unwrap() > 0 {}
    fs::remove_file(&hold).unwrap_or_default();
    log.read_to_string(&mut said).unwrap();
    let ended = second.wait().unwrap().success();
    guard.join().unwrap();
    let first = first.wait_with_output().unwrap();
    [(first.status.success(), text(&first.stderr)), (ended, said)]
}

#[test]
fn a_cell_that_runs_elsewhere_is_named_once() {
    let bench = Bench::new();
    let [first, (ended, log)] = both_of_one_cell(&bench, "");
    assert!(first.0 && ended, "{}\n{log}", first.1);
    assert_eq!(log.matches(ELSEWHERE).count(), 1, "{log}");
    assert_eq!(bench.logged("start").len(), 1);
}

#[test]
fn a_killed_cell_is_left_by_those_that_waited_for_it() {
    let bench = Bench::new();
    for (ended, log) in both_of_one_cell(&bench, "KILL") {
        assert!(!ended && log.contains("SIGKILL"), "{log}");
    }
    assert_eq!(bench.logged("start").len(), 1, "the cell was tried again at once");
    assert_success(&bench.run(&["--methods", "full", "--tasks", "rte"]));
    assert_eq!(bench.logged("resume").len(), 1);
}

#[test]
fn two_grids_share_the_cells() {
    let bench = Bench::new();
    let start = || {
        let mut command = bench.command(&["--seeds", "0,1,2"]);
        command.env("FAKE_SLEEP", "0.1").stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap()
    };
    let both = [start(), start()].map(|child| child.wait_with_output().unwrap());
    for output in &both {
        assert!(output.status.success());
        assert_eq!(text(&output.stdout).lines().count(), 12);
    }
    let mut started = bench.logged("start");
    started.sort();
    started.dedup();
    assert_eq!(started.len(), 12);
    assert_eq!(bench.logged("start").len(), 12, "a cell was run by both");
}

#[test]
fn cores_are_shared_among_the_cells() {
    let bench = Bench::new();
    let cores = thread::available_parallelism().unwrap().get();
    assert_success(&bench.run(&["--tasks", "rte", "--methods", "full", "--jobs", "0"]));
    assert_success(&bench.run(&["--tasks", "rte", "--methods", "lora", "--jobs", "1"]));
    assert_success(&bench.run(&["--tasks", "cola", "--methods", "lora", "--threads", "3"]));
    let threads: Vec<_> =
        bench.logged("start").iter().map(|line| line.split(' ').next_back().unwrap().to_owned()).collect();
    assert_eq!(threads, ["1".to_owned(), cores.to_string(), "3".to_owned()]);
}

#[test]
fn wrong_use_is_one_line() {
    let bench = Bench::new();
    for (args, expect) in [
        (vec!["--methods", "lorra"], "no method \"lorra\" in this experiment; known: bitfit, dora, full"),
        (vec!["--methods", "full:8"], "\"full:8\": the method full has no rank"),
        (vec!["--methods", "lora:0"], "with ranks from 1 on"),
        (vec!["--ranks", "0"], "--ranks 0: ranks begin at 1"),
        (vec!["--lrs", "nan"], "--lrs NaN: a learning rate is a positive number"),
        (vec!["--set", "alpha"], "--set alpha: no KEY=VALUE"),
        (vec!["--set", "lorra.alpha=1"], "no method \"lorra\""),
        (vec!["--data", "nowhere"], "--data nowhere: no such folder"),
        (vec!["--cell", "nothing"], "no cell \"nothing\" in this grid"),
    ] {
        let output = bench.run(&args);
        let error = text(&output.stderr);
        assert!(!output.status.success() && error.contains(expect), "{args:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(!bench.grid().exists(), "{args:?} left a folder");
    }
    fs::remove_file(bench.dir.path().join("mine.json")).unwrap();
    assert!(text(&bench.run(&[]).stderr).contains("cannot read mine.json"));
}

#[test]
fn a_cell_waits_for_the_one_it_needs() {
    let bench = Bench::new();
    let over = r#"{
        "about": "", "models": ["org/tiny"], "data": "data", "tasks": ["rte"], "seeds": [0],
        "methods": ["over", "bad"],
        "method": {
            "first": { "method": "head", "lr": 1e-3 },
            "over": { "method": "lora", "init_from": "@first/adapter", "lr": 1e-3 },
            "small": { "command": "compress", "method": "svd", "ratio": [0.1, 0.2] },
            "bad": { "model": "@small", "method": "head", "lr": 1e-3 }
        }
    }"#;
    fs::write(bench.dir.path().join("mine.json"), over).unwrap();
    let failing = bench.command(&[]).env("FAKE_FAIL", "--ratio 0.2").output().unwrap();
    let error = text(&failing.stderr);
    assert!(error.contains("it needs tiny-small-") && error.contains("2 failed"), "{error}");
    let ended = bench.logged("end");
    let at = |part: &str| ended.iter().position(|name| name.starts_with(part)).unwrap();
    assert!(at("tiny-first-rte") < at("tiny-over-rte"), "{ended:?}");
    assert!(at("tiny-small") < at("tiny-bad-rte"), "{ended:?}");
    assert_eq!(ended.len(), 4, "{ended:?}");
    let plan = text(&bench.run(&["--dry-run"]).stdout);
    assert!(plan.contains(&format!("--init-from grid/cells/{}/adapter", ended[at("tiny-first")])), "{plan}");
}

#[test]
fn cells_without_a_record_are_estimated_by_what_they_took() {
    let bench = Bench::new();
    let over = r#"{
        "about": "", "models": ["org/tiny"], "data": "data", "tasks": ["rte"], "seeds": [0], "methods": ["score"],
        "method": {
            "tuned": { "method": "full", "lr": 1e-3 },
            "small": { "command": "compress", "model": "@tuned/model", "ratio": [0.1] },
            "score": { "command": "evaluate", "model": "@small", "task": "{task}" }
        }
    }"#;
    fs::write(bench.dir.path().join("mine.json"), over).unwrap();
    assert_success(&bench.run(&["--methods", "tuned"]));
    let plan = text(&bench.run(&["--dry-run"]).stdout);
    assert_eq!(plan.matches("(time unknown)").count(), 2, "tuning says nothing of them: {plan}");
    assert_success(&bench.run(&[]));
    let mut seconds = 100;
    for entry in fs::read_dir(bench.grid().join("cells")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "seconds") {
            let took: f64 = fs::read_to_string(&path).unwrap().trim().parse().unwrap();
            assert!((0.0..60.0).contains(&took), "{took}");
            fs::write(&path, seconds.to_string()).unwrap();
            seconds += 1;
        }
    }
    assert_eq!(seconds, 103, "one for each cell");
    let over = over.replace("[0.1]", "[0.1, 0.2]");
    fs::write(bench.dir.path().join("mine.json"), over).unwrap();
    let plan = text(&bench.run(&["--dry-run"]).stdout);
    assert!(plan.contains("(30 s, 1000 trainable)"), "{plan}");
    let times =
        |begin: &str| plan.lines().filter(|line| line.contains(begin) && line.contains("(about 10")).count();
    assert_eq!((times("todo  tiny-small-"), times("todo  tiny-score-")), (1, 1), "{plan}");
    assert!(plan.ends_with("left: about 1.7 minutes\n"), "{plan}");
}

#[test]
fn references_in_a_circle_are_refused() {
    let bench = Bench::new();
    let over = r#"{"methods": ["a"], "method": {"a": {"init_from": "@b"}, "b": {"init_from": "@a"}}}"#;
    fs::write(bench.dir.path().join("mine.json"), over).unwrap();
    let started = Instant::now();
    let error = text(&bench.run(&["--dry-run"]).stderr);
    assert!(error.contains("circle: a → b → a"), "{error}");
    assert!(started.elapsed() < Duration::from_secs(10));
}
