//! Arrays of Slurm, with a stand-in for `sbatch`.

use std::{
    env, fs,
    process::{Command, Output},
};

use crate::bench::{Bench, assert_success, text};

/// An `sbatch` that notes how it is called, for `PATH`.
fn fake_sbatch(bench: &Bench, status: i32) -> String {
    use std::os::unix::fs::PermissionsExt;

    let bin = bench.dir.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    let script =
        format!("#!/bin/sh\n[ \"$1\" = --version ] || echo \"sbatch $*\" >> \"$FAKE_LOG\"\nexit {status}\n");
    fs::write(bin.join("sbatch"), script).unwrap();
    fs::set_permissions(bin.join("sbatch"), fs::Permissions::from_mode(0o755)).unwrap();
    bin.to_string_lossy().into_owned()
}

/// The element `index` of a grid's array, without Slurm; begun in another folder, by a launcher of processes.
fn element(bench: &Bench, grid: &str, index: usize) -> Output {
    let mut command = Command::new("bash");
    command.arg(bench.dir.path().join(grid).join("grid.sbatch")).current_dir("/");
    command.env("SLURM_ARRAY_TASK_ID", index.to_string()).env("SLURM_STEP_NUM_TASKS", "2");
    command.env("FAKE_LOG", bench.dir.path().join("fake.log")).output().unwrap()
}

#[test]
fn slurm_gets_a_script_whose_elements_run_one_cell() {
    let bench = Bench::new();
    let path = format!("{}:{}", fake_sbatch(&bench, 0), env::var("PATH").unwrap());
    let submit = || {
        let mut command = bench.command(&["--launcher", "slurm", "--sbatch-option", "--partition=x"]);
        command.env("PATH", &path).output().unwrap()
    };
    let output = submit();
    assert_success(&output);
    assert!(text(&output.stdout).contains("the same command again"), "{}", text(&output.stdout));
    assert_eq!(bench.logged("sbatch"), ["grid/grid.sbatch"]);
    let script = fs::read_to_string(bench.grid().join("grid.sbatch")).unwrap();
    let logs = format!("#SBATCH --output=\"{}/slurm/%A_%a.log\"\n", bench.grid().display());
    for directive in ["#SBATCH --array=0-3%2\n", "#SBATCH --requeue\n", "#SBATCH --partition=x\n", &logs] {
        assert!(script.contains(directive), "{directive}: {script}");
    }
    let cells: Vec<&str> = script.lines().filter_map(|line| line.strip_prefix("  ")).collect();
    for (index, cell) in cells.iter().enumerate() {
        assert_success(&element(&bench, "grid", index));
        let started = bench.logged("start");
        assert_eq!(started.len(), index + 1, "{started:?}");
        assert_eq!(started[index].split(' ').next(), Some(*cell));
    }
    assert!(bench.logged("launched").is_empty(), "a cell took itself for one of several processes");
    // Nothing is left to submit.
    let table = submit();
    assert_success(&table);
    assert_eq!(text(&table.stdout), text(&bench.run(&[]).stdout));
    assert_eq!(text(&table.stdout).matches("\"status\":\"done\"").count(), 4, "{}", text(&table.stdout));
    assert_eq!(bench.logged("sbatch").len(), 1);
}

#[test]
fn slurm_runs_a_single_cell_in_a_folder_of_any_name() {
    let bench = Bench::new();
    let plan = text(&bench.run(&["--dry-run"]).stdout);
    let id = plan.lines().find_map(|line| line.strip_prefix("todo  ")).unwrap().split(' ').next().unwrap();
    let folder = "it's 100%A \"grid\"";
    let mut command = bench.command_in(folder, &["--launcher", "slurm", "--cell", id]);
    assert_success(&command.env("PATH", fake_sbatch(&bench, 0)).output().unwrap());
    assert_eq!(bench.logged("sbatch"), [format!("{folder}/grid.sbatch")]);
    assert_success(&element(&bench, folder, 0));
    assert_eq!(bench.logged("end"), [id]);
    assert!(bench.dir.path().join(folder).join("cells").join(id).join("run.json").is_file());
}

#[test]
fn without_slurm_the_script_is_written_all_the_same() {
    let bench = Bench::new();
    let output = bench.command(&["--launcher", "slurm"]).env("PATH", "").output().unwrap();
    assert_success(&output);
    assert!(text(&output.stdout).contains("sbatch was not found"), "{}", text(&output.stdout));
    assert!(bench.grid().join("grid.sbatch").is_file());
    let refused =
        bench.command(&["--launcher", "slurm"]).env("PATH", fake_sbatch(&bench, 3)).output().unwrap();
    let error = text(&refused.stderr);
    assert!(!refused.status.success(), "{}", text(&refused.stdout));
    assert_eq!(error, "error: sbatch grid/grid.sbatch failed with exit status: 3\n");
}
