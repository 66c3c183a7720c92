//! Input that is not what it seems: refused at once, in one line, by every command.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{copy, fixture, lowrank, s};
use serde_json::{Value, json};

/// Runs a command that must fail within seconds with one line that contains `part`.
#[track_caller]
fn refused(args: &[&str], part: &str) {
    let output = lowrank(args).timeout(Duration::from_secs(20)).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
    let (last, before) = error.trim_end().rsplit_once('\n').map_or((error.trim_end(), ""), |(a, b)| (b, a));
    assert!(last.starts_with("error: ") && last.contains(part), "{args:?}: {error}");
    assert!(before.lines().all(|line| line.starts_with("warning: ")), "{args:?}: {error}");
    assert!(!error.contains('\x1b'), "{args:?}: {error:?}");
}

fn pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn devices_pipes_and_folders_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let [fifo, folder, loose, looped] =
        ["fifo", "folder", "loose", "looped"].map(|name| dir.path().join(name));
    pipe(&fifo);
    fs::create_dir(&folder).unwrap();
    symlink("absent", &loose).unwrap();
    symlink(&looped, &looped).unwrap();
    let (bert, llama, out) = (fixture("bert-cls"), fixture("small-llama"), dir.path().join("out"));
    let (bert, llama, out) = (s(&bert), s(&llama), s(&out));
    for (path, part) in [
        (Path::new("/dev/zero"), "not a regular file"),
        (&fifo, "not a regular file"),
        (&folder, "not a regular file"),
        (&loose, "missing"),
        (&looped, "links"),
        (Path::new("/proc/self/mem"), ""),
    ] {
        let path = s(path);
        for command in ["predict", "embed"] {
            refused(&[command, "--model", bert, "--file", path], part);
        }
        refused(&["perplexity", "--model", llama, "--file", path], part);
        // Their names have to end in .jsonl.
        refused(&["perplexity", "--model", llama, "--rows", path], "");
        refused(&["generate", "--model", llama, "--messages", path], part);
        refused(&["evaluate", "--model", bert, "--dev", path], "");
        let train = ["finetune", "--model", bert, "--train", path, "--dev", path, "--max-steps", "1"];
        refused(&[&train[..], &["--method", "head", "-o", out]].concat(), "");
        refused(
            &[
                "compress",
                "--model",
                llama,
                "--method",
                "whitened",
                "--ratio",
                "0.5",
                "--calibration",
                path,
                "-o",
                out,
            ],
            part,
        );
        for model in [
            &["inspect", path][..],
            &["generate", "--prompt", "x", "--model", path],
            &["generate", "--prompt", "x", "--model", llama, "--adapter", path],
            &["merge", "--model", llama, "--adapter", path, "-o", out],
            &["resize", "--rank", "1", "--adapter", path, "-o", out],
            &["extract", "--base", llama, "--rank", "1", "--tuned", path, "-o", out],
            &["logs", path, "x.csv"],
            &["report", path, "-o", "x.html"],
        ] {
            refused(model, "");
        }
    }
    assert!(!Path::new(out).exists());
}

/// A file of a model that is a pipe, a device or a folder is refused, not passed over as if it were missing.
#[test]
fn files_of_a_folder_must_be_files() {
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"] {
        let model = copy("bert-cls");
        let file = model.path().join(name);
        let path = s(model.path());
        for kind in 0..4 {
            let _ = fs::remove_file(&file).or_else(|_| fs::remove_dir(&file));
            match kind {
                0 => pipe(&file),
                1 => symlink("/dev/zero", &file).unwrap(),
                2 => fs::create_dir(&file).unwrap(),
                _ => symlink("absent", &file).unwrap(),
            }
            let part = if kind == 3 { "absent" } else { "not a regular file" };
            refused(&["predict", "--model", path, "--text", "x"], part);
            if !name.starts_with("tokenizer") {
                refused(&["inspect", path], part);
            }
        }
    }
    for name in ["chat_template.jinja", "generation_config.json"] {
        let model = copy("small-llama");
        let _ = fs::remove_file(model.path().join(name));
        pipe(&model.path().join(name));
        let messages = model.path().join("m.json");
        fs::write(&messages, r#"[{"role": "user", "content": "hi"}]"#).unwrap();
        let text = if name.ends_with("json") { ["--prompt", "x"] } else { ["--messages", s(&messages)] };
        let args = ["generate", "--model", s(model.path())];
        refused(&[&args[..], &text[..]].concat(), "not a regular file");
    }
    let adapter = copy("peft-bert-lora");
    let labels = adapter.path().join("labels.json");
    pipe(&labels);
    refused(
        &["resize", "--adapter", s(adapter.path()), "--rank", "1", "-o", s(&adapter.path().join("out"))],
        "not a regular file",
    );
    let base = fixture("bert-cls");
    let args = ["predict", "--text", "x", "--model", s(&base), "--adapter", s(adapter.path())];
    refused(&args, "not a regular file");
}

/// The hub's cache is a folder of links.
#[test]
fn a_folder_of_links_is_a_model() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture("bert-cls")).unwrap() {
        let path = entry.unwrap().path();
        symlink(fs::canonicalize(&path).unwrap(), dir.path().join(path.file_name().unwrap())).unwrap();
    }
    common::run(&["predict", "--model", s(dir.path()), "--text", "x"]);
}

#[test]
fn deep_json_is_refused() {
    let deep = "[".repeat(100_000);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        let model = copy("bert-cls");
        fs::write(model.path().join(name), &deep).unwrap();
        let part = if name == "config.json" { "recursion limit" } else { name };
        refused(&["predict", "--model", s(model.path()), "--text", "x"], part);
    }
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    fs::write(&rows, format!("{{\"prompt\": {deep}")).unwrap();
    refused(&["perplexity", "--model", s(&fixture("small-llama")), "--rows", s(&rows)], "rows.jsonl:1");
    fs::write(dir.path().join("run.json"), &deep).unwrap();
    refused(&["report", s(dir.path()), "-o", s(&dir.path().join("x.md"))], "run.json");
}

#[test]
fn control_characters_do_not_reach_the_terminal() {
    let model = copy("bert-cls");
    let config = model.path().join("config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let labels = ["\x1b[31mred\x07", "a\nb\u{202e}", "c"];
    value["id2label"] = json!({"0": labels[0], "1": labels[1], "2": labels[2]});
    value["label2id"] = json!({(labels[0]): 0, (labels[1]): 1, (labels[2]): 2});
    fs::write(&config, value.to_string()).unwrap();
    for text in ["x", "the film was good", "no", "a b c d e f"] {
        let (out, _) = common::run(&["predict", "--model", s(model.path()), "--text", text]);
        assert_eq!(out.lines().count(), 1, "{out:?}");
        assert!(!out.contains(['\x1b', '\x07', '\u{202e}']), "{out:?}");
    }
    value["model_type"] = json!("\x1b[2J\nerror");
    fs::write(&config, value.to_string()).unwrap();
    refused(&["predict", "--model", s(model.path()), "--text", "x"], "\\u{1b}[2J error");
    refused(&["inspect", "no\x1b]0;title\x07"], "\\u{1b}]0;title\\u{7}");
    let template = copy("small-llama");
    fs::write(template.path().join("chat_template.jinja"), "{{ raise_exception('\x1b[31mred') }}").unwrap();
    let messages = template.path().join("m.json");
    fs::write(&messages, r#"[{"role": "user", "content": "hi"}]"#).unwrap();
    refused(&["generate", "--model", s(template.path()), "--messages", s(&messages)], "\\u{1b}[31mred");
}

#[test]
fn names_that_are_paths_are_not_looked_up() {
    let cache = tempfile::tempdir().unwrap();
    for name in
        ["../../etc", "a/../b", "a\\b/c", "a b/c", "a/b/c/d", "a//b", "a/.", "org/a\nb", "~/x", "http://x/y"]
    {
        let output = lowrank(&["generate", "--prompt", "x", "--model", name])
            .env_remove("HF_HUB_OFFLINE")
            .env("HF_HOME", cache.path())
            .timeout(Duration::from_secs(20))
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && error.lines().count() == 1, "{name}: {error}");
        assert!(error.contains("no such folder"), "{name}: {error}");
    }
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 0);
}

#[test]
fn a_full_disk_is_an_error_of_one_line() {
    let (bert, llama) = (fixture("bert-cls"), fixture("small-llama"));
    for args in [
        &["predict", "--model", s(&bert), "--text", "x"][..],
        &["predict", "--model", s(&bert), "--text", "x", "--json"],
        &["inspect", s(&bert)],
        &["generate", "--model", s(&llama), "--prompt", "x", "--max-new-tokens", "2"],
    ] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_lowrank"))
            .args(args)
            .stdout(full)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains("cannot write to standard output: No space left"), "{args:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{args:?}: {error}");
    }
}

#[test]
fn a_text_that_cannot_be_tokenized_is_named_by_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("texts.txt");
    fs::write(&file, format!("the cat\n{}\n", "the cat ".repeat((8 << 20) / 8 + 1))).unwrap();
    let tagger = fixture("bert-token-cls");
    refused(
        &["predict", "--model", s(&tagger), "--file", s(&file)],
        "texts.txt:2: the text cannot be tokenized: it has 8388616 bytes; split it into parts of at most 8388608",
    );
}

/// What another process holds is left alone.
#[test]
fn two_processes_do_not_write_to_one_output() {
    let (llama, adapter) = (fixture("small-llama"), fixture("peft-small-llama-lora-head"));
    let dir = tempfile::tempdir().unwrap();
    let [rows, out, partial] = ["rows.jsonl", "out", ".out.partial"].map(|name| dir.path().join(name));
    fs::write(&rows, "{\"prompt\":\"hi\",\"completion\":\"x y z\"}\n".repeat(8)).unwrap();
    fs::create_dir(&partial).unwrap();
    let lock = fs::File::create(dir.path().join(".out.partial.lock")).unwrap();
    lock.lock().unwrap();
    fs::write(partial.join("work"), "mine").unwrap();
    for args in [
        &["compress", "--model", s(&llama), "--method", "svd", "--ratio", "0.5"][..],
        &["compress", "--model", s(&llama), "--method", "svd", "--ratio", "0.5", "--resume"],
        &["compress", "--model", s(&llama), "--method", "quant", "--bits", "4"],
        &["merge", "--model", s(&llama), "--adapter", s(&adapter)],
        &["resize", "--rank", "1", "--adapter", s(&adapter)],
    ] {
        refused(&[args, &["-o", s(&out)]].concat(), "another process is writing here");
    }
    assert_eq!(fs::read(partial.join("work")).unwrap(), b"mine");
    // The parts of the data sets are staged like everything else.
    let data = dir.path().join("data");
    fs::create_dir_all(&data).unwrap();
    let other = fs::File::create(data.join(".mini-glue.partial.lock")).unwrap();
    other.lock().unwrap();
    refused(&["datasets", "--texts-only", "-o", s(&data)], "another process is writing here");
    drop(other);
    common::run(&["datasets", "--texts-only", "-o", s(&data)]);
    for notes in ["mini-instruct/notes.txt", "mini-glue/CoLA/notes.txt"].map(|name| data.join(name)) {
        fs::write(&notes, "mine").unwrap();
        refused(&["datasets", "--texts-only", "-o", s(&data)], "notes.txt: would be lost");
        assert_eq!(fs::read(&notes).unwrap(), b"mine");
        fs::remove_file(notes).unwrap();
    }

    fs::create_dir(&out).unwrap();
    let lock = fs::File::open(&out).unwrap();
    lock.lock().unwrap();
    let train =
        ["finetune", "--model", s(&llama), "--train", s(&rows), "--dev", s(&rows), "--method", "lora"];
    let output = lowrank(&[&train[..], &["--max-steps", "1", "-o", s(&out)]].concat()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.trim_end().ends_with("another process is writing here; wait for it or choose another path")
    );
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "{error}");
}

#[test]
fn a_run_whose_folder_is_removed_ends() {
    let llama = fixture("small-llama");
    let dir = tempfile::tempdir().unwrap();
    let [rows, out] = ["rows.jsonl", "out"].map(|name| dir.path().join(name));
    fs::write(&rows, "{\"prompt\":\"hi\",\"completion\":\"x y z\"}\n".repeat(8)).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_lowrank"))
        .args(["finetune", "--model", s(&llama), "--train", s(&rows), "--dev", s(&rows), "--method", "lora"])
        .args(["--max-steps", "10000000", "--save-every", "100000", "-o", s(&out)])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The event file is the last one before the first step.
    let begun = std::time::Instant::now();
    let has_events = || {
        fs::read_dir(&out).is_ok_and(|mut files| {
            files.any(|file| file.unwrap().file_name().to_string_lossy().starts_with("events"))
        })
    };
    while !has_events() && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(500));
    while out.exists() {
        // A file may be added meanwhile.
        let _removed = fs::remove_dir_all(&out);
    }
    let waited = std::time::Instant::now();
    while child.try_wait().unwrap().is_none() {
        if waited.elapsed() > Duration::from_secs(20) {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    let last = error.lines().last().unwrap_or_default();
    assert!(last.starts_with("error: ") && last.contains("was removed or replaced"), "{error}");
    assert!(!out.exists());
}

/// The limit on the size of files stands for a full disk: a write fails in the middle of a file.
#[test]
fn a_write_that_fails_leaves_nothing() {
    let (llama, adapter) = (fixture("small-llama"), fixture("peft-small-llama-lora-head"));
    let rows = "{\"prompt\":\"hi\",\"completion\":\"x y z\"}\n".repeat(8);
    for args in [
        &["compress", "--method", "svd", "--ratio", "0.5"][..],
        &["compress", "--method", "quant", "--bits", "4"],
        &["merge", "--adapter", s(&adapter)],
        &["convert", "--to", "gguf"],
        &["finetune", "--method", "full", "--train", "rows.jsonl", "--dev", "rows.jsonl", "--max-steps", "1"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("rows.jsonl"), &rows).unwrap();
        let output = Command::new("bash")
            .args(["-c", "ulimit -f 8; exec \"$@\"", "bash", env!("CARGO_BIN_EXE_lowrank")])
            .args(args)
            .args(["--model", s(&llama), "-o", if args[0] == "convert" { "out.gguf" } else { "out" }])
            .current_dir(dir.path())
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        let last = error.lines().last().unwrap_or_default();
        assert!(last.starts_with("error: ") && last.contains("File too large"), "{args:?}: {error}");
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        if args[0] == "finetune" {
            // The run's record says that it failed; the weights are not there.
            assert!(!dir.path().join("out/model.safetensors").exists(), "{left:?}");
        } else {
            // A compression is kept, to be resumed.
            let is_kept = |name: &std::ffi::OsString| args[0] == "compress" && name == ".out.partial";
            assert!(left.iter().all(|name| name == "rows.jsonl" || is_kept(name)), "{args:?}: {left:?}");
        }
    }
}
