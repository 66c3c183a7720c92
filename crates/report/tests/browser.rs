//! A report as a browser shows it: no complaint on its console, no wider than a phone, and not empty.
//!
//! `CHROME` names the browser; without it, chromium, chromium-browser and google-chrome are looked for. Where there is
//! none, the test says so and passes.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may end on the first surprise, and says so"
)]

use std::{
    env,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use lowrank_report::{
    LogKey,
    html::{ReportOptions, write_report},
    log_path,
    run::{Evaluation, FILE_NAME, MetaInfo, RunInfo, RunRecord, Status},
    tfevents::EventWriter,
};

/// Widths of a desk's window and of a phone.
const WIDTHS: [u32; 2] = [1280, 390];

/// How long a page may take; a browser that starts for the first time takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

fn browser() -> Option<PathBuf> {
    if let Some(given) = env::var_os("CHROME").filter(|given| !given.is_empty()) {
        return Some(given.into());
    }
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH")?).collect();
    let names = ["chromium", "chromium-browser", "google-chrome"];
    names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)))
        .find(|path| path.is_file())
}

/// A finished run with its evaluations and its training loss.
fn write_run(root: &Path, method: &str, rank: u64, task: &str, seed: u64, score: f64) {
    let model = "models/a-model-of-a-rather-long-name-as-hubs-have-them";
    let meta =
        MetaInfo { model: model.into(), task: task.into(), method: method.into(), ..MetaInfo::default() };
    let command =
        ["lowrank", "finetune", "--data", "/a/path/without/a/single/place/at/which/to/break/a/line"];
    let info = RunInfo { command: command.map(str::to_owned).to_vec(), ..RunInfo::default() };
    let mut record = RunRecord::new(info, meta);
    let config = &mut record.run_info.config;
    config.insert("lr".into(), 1e-3.into());
    config.insert("seed".into(), seed.into());
    if rank > 0 {
        config.insert("rank".into(), rank.into());
    }
    let info = &mut record.train_info;
    (info.status, info.metric_name, info.metric) = (Status::Done, "accuracy".into(), Some(score));
    (info.trainable, info.total) = (1000 * (rank + 1), 22_713_216);
    (info.ms_per_step_median, info.peak_rss_mb, info.wall_s) = (Some(10.0), Some(300.0), Some(60.0));
    info.text = Some("Once upon a time there was a line that went on and on. ".repeat(5));
    for (step, part) in [(10, 0.5), (20, 1.0)] {
        let metrics = [("accuracy".to_owned(), Some(score * part))].into();
        info.evals.push(Evaluation { step, metrics, ..Evaluation::default() });
    }
    let folder = root.join("cells").join(format!("{method}-{rank}-{task}-{seed}"));
    fs::create_dir_all(&folder).unwrap();
    record.write_atomic(folder.join(FILE_NAME)).unwrap();
    let key = LogKey { model, method, task, lr: 1e-3, rank, seed };
    let mut events = EventWriter::create(log_path(root.join("logs"), &key)).unwrap();
    for step in 1..=20 {
        events.scalar("train/loss", step, 1.0 / step as f32, 0.0).unwrap();
    }
}

/// A report with every section: many methods, every task of GLUE, two seeds, a run that failed.
fn report(folder: &Path) -> PathBuf {
    let tasks = ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"];
    for (index, task) in tasks.into_iter().enumerate() {
        for seed in [0, 1] {
            let score = 0.5 + 0.03 * index as f64 + 0.01 * seed as f64;
            for (method, rank) in [("full", 0), ("lora", 1), ("lora", 8), ("lotr", 32), ("head", 0)] {
                write_run(folder, method, rank, task, seed, score + 0.001 * rank as f64);
            }
        }
    }
    let failed = folder.join("cells/full-0-cola-0").join(FILE_NAME);
    let mut record = RunRecord::read(&failed).unwrap();
    (record.train_info.status, record.train_info.error) = (Status::Failed, Some("loss is NaN".into()));
    record.write_atomic(&failed).unwrap();
    let output = folder.join("report.html");
    write_report(folder, &output, &ReportOptions::default()).unwrap();
    output
}

/// What a browser makes of a page.
struct Shown {
    /// Its own width and that of its window.
    widths: (u32, u32),
    /// What came to the console.
    console: Vec<String>,
    screenshot: Vec<u8>,
}

/// Opens a page at a width. A window cannot be as narrow as a phone: the page stands in a frame.
fn show(browser: &Path, folder: &Path, html: &str, width: u32) -> Shown {
    const REPORT_WIDTH: &str =
        "<script>parent.postMessage(`${document.scrollingElement.scrollWidth}/${innerWidth}`, '*')</script>";
    // Within the body: what stands behind it would be moved there.
    let inner = html.replace("</body>", &format!("{REPORT_WIDTH}</body>"));
    assert_ne!(inner, html, "the page has no body");
    fs::write(folder.join("inner.html"), inner).unwrap();
    let outer = format!(
        "<!DOCTYPE html><html><head><meta charset=\"utf-8\"><link rel=\"icon\" href=\"data:,\"></head>\
         <body style=\"margin: 0\"><script>onmessage = event => document.body.id = 'width-' + event.data</script>\
         <iframe src=\"inner.html\" style=\"width: {width}px; height: 900px; border: 0\"></iframe></body></html>"
    );
    let page = folder.join("outer.html");
    fs::write(&page, outer).unwrap();
    let picture = folder.join("page.png");
    let (dom, mut console) = open(browser, folder, &page, width, "--dump-dom");
    let (_, more) = open(browser, folder, &page, width, &format!("--screenshot={}", picture.display()));
    console.extend(more);
    let widths = dom.split("id=\"width-").nth(1).and_then(|rest| rest.split('"').next());
    let (own, window) = widths.and_then(|widths| widths.split_once('/')).unwrap_or_else(|| panic!("{dom}"));
    let screenshot = fs::read(&picture).unwrap();
    fs::remove_file(&picture).unwrap();
    Shown { widths: (own.parse().unwrap(), window.parse().unwrap()), console, screenshot }
}

/// Runs the browser; what it prints, and what it logs of the page's console.
fn open(browser: &Path, folder: &Path, page: &Path, width: u32, action: &str) -> (String, Vec<String>) {
    let [printed, logged] = ["printed", "logged"].map(|name| folder.join(name));
    let mut child = Command::new(browser)
        .args(["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"])
        .args(["--no-first-run", "--hide-scrollbars", "--virtual-time-budget=2000", action])
        .arg(format!("--window-size={width},900"))
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("file://{}", page.display()))
        .stdin(Stdio::null())
        .stdout(File::create(&printed).unwrap())
        .stderr(File::create(&logged).unwrap())
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{} is still busy after {PATIENCE:?}", browser.display());
        }
        thread::sleep(Duration::from_millis(50));
    };
    let log = String::from_utf8_lossy(&fs::read(&logged).unwrap()).into_owned();
    assert!(status.success(), "{} ended with {status}\n{log}", browser.display());
    let console = log.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8_lossy(&fs::read(&printed).unwrap()).into_owned(), console)
}

#[test]
fn a_browser_shows_the_report() {
    let Some(browser) = browser() else {
        eprintln!("skipped: no browser; CHROME may name one");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let html = fs::read_to_string(report(dir.path())).unwrap();
    // What is folded away must fit too.
    let unfolded = html.replace("<details>", "<details open>");
    for width in WIDTHS {
        let shown = show(&browser, dir.path(), &unfolded, width);
        assert_eq!(shown.console, Vec::<String>::new(), "at {width}");
        let (own, window) = shown.widths;
        assert_eq!(window, width);
        assert!(own <= window, "the page is {own} wide in a window of {window}");
        let size = shown.screenshot.get(16..20).map(|bytes| u32::from_be_bytes(bytes.try_into().unwrap()));
        assert!(shown.screenshot.starts_with(b"\x89PNG") && size == Some(width), "{size:?}");
        // An empty page of this size has less than 4 kB.
        assert!(shown.screenshot.len() > 15_000, "{} bytes at {width}", shown.screenshot.len());
    }

    // That the faults above would be seen.
    let faulty =
        html.replace("<main>", "<main><p style=\"width: 2000px\">wide</p><script>nothing()</script>");
    let shown = show(&browser, dir.path(), &faulty, WIDTHS[1]);
    assert!(!shown.console.is_empty());
    assert!(shown.widths.0 > shown.widths.1, "{:?}", shown.widths);
}
