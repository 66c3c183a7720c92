//! Grids that are killed end as if they had not been.

use std::{
    collections::BTreeMap,
    fs,
    ops::Range,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, SystemTime},
};

use crate::bench::{Bench, assert_success, text};

fn kill(child: &mut Child, with_cells: bool) {
    let target = if with_cells { format!("-{}", child.id()) } else { child.id().to_string() };
    assert!(Command::new("kill").args(["-9", "--", &target]).status().unwrap().success());
    child.wait().unwrap();
}

/// Kills the processes of `command` twenty times, or until it ends by itself, and checks the state each time;
/// returns the number of kills. The milliseconds until a kill count from the moment when `is_under_way`.
fn kill_twenty_times(
    command: impl Fn() -> Command,
    with_cells: bool,
    milliseconds: Range<u64>,
    is_under_way: impl Fn(SystemTime) -> bool,
    mut look: impl FnMut(),
) -> usize {
    // A linear congruential generator: the same moments every time, as far as the machine allows.
    let mut random = 20_240_229_u64;
    for attempt in 0..20 {
        let mut child =
            command().process_group(0).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait = milliseconds.start + (random >> 33) % (milliseconds.end - milliseconds.start);
        let begun = SystemTime::now();
        while !is_under_way(begun) && child.try_wait().unwrap().is_none() {
            thread::sleep(Duration::from_millis(5));
        }
        thread::sleep(Duration::from_millis(wait));
        if child.try_wait().unwrap().is_some() {
            return attempt;
        }
        kill(&mut child, with_cells);
        look();
    }
    20
}

/// Kills a grid twenty times, then lets it finish; returns its table.
fn table_after_kills(with_cells: bool) -> (Bench, String) {
    const GRID: [&str; 2] = ["--seeds", "0,1,2,3,4,5,6,7,8,9"];
    let bench = Bench::new();
    let command = || {
        let mut command = bench.command(&GRID);
        command.env("FAKE_SLEEP", "0.05");
        command
    };
    assert_eq!(kill_twenty_times(command, with_cells, 5..155, |_| true, || ()), 20, "the grid ended before");
    let last = bench.run(&GRID);
    assert_success(&last);
    (bench, text(&last.stdout))
}

fn undisturbed_table() -> String {
    let output = Bench::new().run(&["--seeds", "0,1,2,3,4,5,6,7,8,9"]);
    assert_success(&output);
    text(&output.stdout)
}

#[test]
fn a_grid_killed_with_its_cells_ends_as_if_it_had_not_been() {
    let (_, table) = table_after_kills(true);
    assert_eq!(table.lines().count(), 40);
    assert_eq!(table, undisturbed_table());
}

#[test]
fn a_grid_killed_without_its_cells_waits_for_them() {
    let (bench, table) = table_after_kills(false);
    assert_eq!(table, undisturbed_table());
    // No cell of a killed grid was killed, so none was run twice.
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for name in bench.logged("end") {
        *counts.entry(name).or_default() += 1;
    }
    assert_eq!(counts.len(), 40);
    assert!(counts.values().all(|count| *count == 1), "{counts:?}");
}

/// A table of scores without its last columns, which are times and memory.
fn scores(table: &str) -> Vec<Vec<&str>> {
    let row = |row| {
        let words: Vec<_> = str::split_whitespace(row).collect();
        words[..words.len() - 3].to_vec()
    };
    // Header, a line, and a row for each method; notes follow an empty line.
    table.lines().take_while(|line| !line.is_empty()).filter(|line| !line.starts_with('─')).map(row).collect()
}

#[test]
fn a_grid_of_the_program_itself_survives_kills() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let command = |output: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.current_dir(root).args(["experiment", "glue", "--smoke", "--tasks", "sst2,stsb"]);
        command.args(["--methods", "full,lora,head", "--seeds", "0,1,2,3,4,5,6,7", "--jobs", "2"]);
        command.args(["--max-steps", "12", "--set", "save_every=4", "-o"]).arg(dir.path().join(output));
        command
    };
    let undisturbed = command("undisturbed").output().unwrap();
    assert_success(&undisturbed);
    let undisturbed = text(&undisturbed.stdout);
    assert_eq!(scores(&undisturbed).len(), 4, "{undisturbed}");

    let cells = dir.path().join("killed/cells");
    let status = |path: PathBuf| fs::read_to_string(path.join("run.json")).unwrap_or_default();
    let (mut finished, mut broken_off) = (Vec::new(), 0);
    kill_twenty_times(
        || command("killed"),
        true,
        100..1000,
        // It builds the program first, which may have to wait for another build.
        |begun| {
            let entries = fs::read_dir(&cells).into_iter().flatten().flatten();
            let mut logs = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "log"));
            logs.any(|log| log.metadata().and_then(|data| data.modified()).is_ok_and(|at| at >= begun))
        },
        || {
            let folders = fs::read_dir(&cells).into_iter().flatten().map(|entry| entry.unwrap().path());
            let (done, others): (Vec<_>, Vec<_>) = folders
                .filter(|path| path.is_dir())
                .partition(|path| status(path.clone()).contains(r#""status": "done""#));
            broken_off += others.len();
            assert!(done.len() >= finished.len(), "a finished cell was lost");
            finished = done;
        },
    );
    assert!(!finished.is_empty() && broken_off > 9, "the kills met {broken_off} cells in training");

    let last = command("killed").output().unwrap();
    assert_success(&last);
    assert_eq!(scores(&text(&last.stdout)), scores(&undisturbed));
}
