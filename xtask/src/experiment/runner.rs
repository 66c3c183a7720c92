//! Running the cells of a grid.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context, Result};

use super::{files::put, plan::Cell, progress::Progress, state::Grid};

/// Polling interval of a running cell.
const POLL: Duration = Duration::from_millis(100);

/// State of a cell in this invocation.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Not taken, as far as we know.
    Waiting,
    /// Taken by another process; to be checked again at this time.
    Elsewhere(Instant),
    /// Taken by one of our threads.
    Ours,
    /// Finished, now or earlier.
    Done,
    /// Failed, or cannot be tried, with the reason.
    Failed(String),
}

/// Result of a grid.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// Cells that were finished before.
    pub(crate) skipped: usize,
    /// Cells that finished now, here or in another process.
    pub(crate) done: usize,
    /// Cells that failed, with the reason.
    pub(crate) failed: Vec<(String, String)>,
}

/// State shared by the threads that run cells.
pub(crate) struct Runner<'a> {
    /// The `lowrank` executable.
    pub(crate) lowrank: &'a Path,
    /// The grid's folder.
    pub(crate) grid: &'a Grid,
    /// Number of concurrent processes.
    pub(crate) jobs: usize,
    /// Threads per process.
    pub(crate) threads: usize,
}

impl Runner<'_> {
    /// Runs the unfinished ones of `cells`; a failing cell does not stop the others.
    ///
    /// # Errors
    /// If the grid's folder cannot be written.
    pub(crate) fn run(&self, cells: &[Cell]) -> Result<Outcome> {
        self.grid.create()?;
        let states: Vec<State> = cells
            .iter()
            .map(|cell| if self.grid.is_done(cell) { State::Done } else { State::Waiting })
            .collect();
        let skipped = states.iter().filter(|state| **state == State::Done).count();
        let progress = Progress::new(cells.len(), skipped);
        let failed_before = cells.iter().map(|cell| self.grid.failed_at(cell)).collect();
        let queue = Queue { cells, failed_before, states: Mutex::new(states) };
        let worked: Vec<Result<()>> = thread::scope(|scope| {
            let workers: Vec<_> = (0..self.jobs.min(cells.len() - skipped))
                .map(|_| scope.spawn(|| self.work(&queue, &progress)))
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a worker panicked"))))
                .collect()
        });
        progress.finish();
        worked.into_iter().collect::<Result<()>>()?;

        let mut outcome = Outcome { skipped, ..Outcome::default() };
        for (cell, state) in
            cells.iter().zip(queue.states.into_inner().unwrap_or_else(|broken| broken.into_inner()))
        {
            match state {
                State::Done => outcome.done += 1,
                State::Failed(why) => outcome.failed.push((cell.id.clone(), why)),
                state => outcome.failed.push((cell.id.clone(), format!("left {state:?}"))),
            }
        }
        outcome.done -= skipped;
        Ok(outcome)
    }

    /// The loop of a thread: takes cells until none is left.
    fn work(&self, queue: &Queue, progress: &Progress) -> Result<()> {
        while let Some(next) = queue.take() {
            let Next::Cell(index) = next else {
                thread::sleep(POLL);
                continue;
            };
            let cell = &queue.cells[index];
            // An error here concerns the whole grid, such as a full disk: every thread stops when its cell
            // has ended.
            let state =
                self.attempt(cell, queue.failed_before[index], progress).inspect_err(|_| queue.stop())?;
            match &state {
                State::Done => progress.done(cell),
                State::Failed(why) => progress.failed(cell, why),
                State::Elsewhere(_) => progress.waits(cell),
                State::Waiting | State::Ours => {}
            }
            queue.put(index, state);
        }
        Ok(())
    }

    /// Runs a cell, unless another process has taken it or has just finished it.
    fn attempt(&self, cell: &Cell, failed_before: Option<SystemTime>, progress: &Progress) -> Result<State> {
        let Some(lock) = self.grid.lock(cell)? else {
            return Ok(State::Elsewhere(Instant::now() + 5 * POLL));
        };
        if self.grid.is_done(cell) {
            return Ok(State::Done);
        }
        if self.grid.failed_at(cell).is_some_and(|at| Some(at) != failed_before) {
            return Ok(State::Failed(self.grid.failure(cell)));
        }
        let resume = self.grid.can_resume(cell);
        if resume {
            self.grid.resume(cell)?;
        } else {
            self.grid.clear(cell)?;
        }
        let printed = self.grid.printed(cell).with_extension("json.tmp");
        let started = Instant::now();
        let status = self.spawn(cell, resume, &lock, &printed, progress)?;
        let seconds = started.elapsed().as_secs_f64();
        let failure = if !status.success() {
            let last = self.grid.reason(cell).unwrap_or_else(|| "nothing was printed".to_owned());
            let failure = format!("{}: {last}", describe(status));
            if was_killed(status) {
                // Its checkpoints are sound: the next attempt resumes from them.
                self.grid.kill(cell, &failure)?;
                return Ok(self.failed(cell, &failure));
            }
            failure
        } else {
            put(&printed, &self.grid.printed(cell))?;
            if self.grid.is_done(cell) {
                self.grid.keep_seconds(cell, seconds)?;
                return Ok(State::Done);
            }
            "it ended well, but its run.json does not say that it is done".to_owned()
        };
        self.grid.fail(cell, &failure)?;
        Ok(self.failed(cell, &failure))
    }

    fn failed(&self, cell: &Cell, failure: &str) -> State {
        State::Failed(format!("{failure} (log: {})", self.grid.log(cell).display()))
    }

    fn spawn(
        &self,
        cell: &Cell,
        resume: bool,
        lock: &File,
        printed: &Path,
        progress: &Progress,
    ) -> Result<ExitStatus> {
        let log_path = self.grid.log(cell);
        let mut command = Command::new(self.lowrank);
        command.args(&cell.args).arg("--json");
        if cell.has_folder() {
            command.arg("-o").arg(self.grid.folder(cell));
        }
        if cell.is_finetuning() {
            command.arg("--log-dir").arg(self.grid.logs());
        }
        if resume {
            command.arg("--resume");
        }
        command.env("RAYON_NUM_THREADS", self.threads.to_string());
        let create =
            |path: &Path| File::create(path).with_context(|| format!("cannot write {}", path.display()));
        // The lock stays with the cell's process if this one is killed.
        command.stdin(lock.try_clone().context("cannot share a lock")?);
        command.stdout(create(printed)?).stderr(create(&log_path)?);
        let mut child = command.spawn().with_context(|| format!("cannot run {}", self.lowrank.display()))?;
        let bar = progress.start(cell);
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            bar.show(self.grid.last_line(cell));
            thread::sleep(POLL);
        }
    }
}

fn describe(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}

/// Whether a process was ended from outside: by a user, a scheduler or for want of memory.
#[cfg(unix)]
fn was_killed(status: ExitStatus) -> bool {
    use std::os::unix::process::ExitStatusExt;

    // SIGHUP, SIGINT, SIGKILL, SIGTERM, SIGXCPU
    matches!(status.signal(), Some(1 | 2 | 9 | 15 | 24))
}

#[cfg(not(unix))]
fn was_killed(_: ExitStatus) -> bool {
    false
}

/// The cells, shared by the threads.
struct Queue<'a> {
    cells: &'a [Cell],
    /// Failure times of the cells before this grid began; a later failure is that of another process of the
    /// same grid.
    failed_before: Vec<Option<SystemTime>>,
    states: Mutex<Vec<State>>,
}

/// The next action of a thread.
enum Next {
    Cell(usize),
    Wait,
}

impl Queue<'_> {
    /// The next cell to try; `None` if every cell is finished or taken by another thread and none waits
    /// for those.
    fn take(&self) -> Option<Next> {
        let mut states = self.states.lock().unwrap_or_else(|broken| broken.into_inner());
        self.fail_the_orphaned(&mut states);
        let now = Instant::now();
        let ready = |index: &usize| match states[*index] {
            State::Waiting => self.needs_are_done(&states, *index),
            State::Elsewhere(again) => again <= now,
            _ => false,
        };
        if let Some(index) = (0..states.len()).find(ready) {
            states[index] = State::Ours;
            return Some(Next::Cell(index));
        }
        let unsettled = |state: &State| matches!(state, State::Waiting | State::Elsewhere(_));
        states.iter().any(unsettled).then_some(Next::Wait)
    }

    fn put(&self, index: usize, state: State) {
        self.states.lock().unwrap_or_else(|broken| broken.into_inner())[index] = state;
    }

    /// Discards the remaining cells.
    fn stop(&self) {
        let mut states = self.states.lock().unwrap_or_else(|broken| broken.into_inner());
        for state in states.iter_mut().filter(|state| matches!(state, State::Waiting | State::Elsewhere(_))) {
            *state = State::Failed("the grid was stopped".to_owned());
        }
    }

    fn position(&self, id: &str) -> Option<usize> {
        self.cells.iter().position(|cell| cell.id == id)
    }

    fn needs_are_done(&self, states: &[State], index: usize) -> bool {
        self.cells[index].needs.iter().all(|id| self.position(id).is_some_and(|at| states[at] == State::Done))
    }

    /// A cell whose prerequisite has failed cannot be tried.
    fn fail_the_orphaned(&self, states: &mut [State]) {
        for (index, cell) in self.cells.iter().enumerate() {
            if states[index] != State::Waiting {
                continue;
            }
            let failed =
                |id: &&String| self.position(id).is_none_or(|at| matches!(states[at], State::Failed(_)));
            if let Some(id) = cell.needs.iter().find(failed) {
                states[index] = State::Failed(format!("it needs {id}, which failed"));
            }
        }
    }
}

/// Durations of the finished cells, to estimate those of the others.
pub(crate) struct Estimates {
    /// By command, method and task: total seconds and number of cells.
    by_kind: BTreeMap<[String; 3], (f64, usize)>,
}

impl Estimates {
    pub(crate) fn new(grid: &Grid, cells: &[Cell]) -> Self {
        let mut by_kind = BTreeMap::new();
        for cell in cells {
            if let Some((seconds, _)) = grid.cost(cell).filter(|_| grid.is_done(cell)) {
                let kind = [&cell.args[0], &cell.method, &cell.task].map(String::clone);
                let entry = by_kind.entry(kind).or_insert((0.0, 0));
                *entry = (entry.0 + seconds, entry.1 + 1);
            }
        }
        Self { by_kind }
    }

    /// Expected seconds of a cell: from its method and task, otherwise its method, otherwise its command.
    /// Other commands are not comparable: scoring takes seconds where tuning takes hours.
    pub(crate) fn seconds(&self, cell: &Cell) -> Option<f64> {
        let mean = |method: Option<&str>, task: Option<&str>| {
            let found = self.by_kind.iter().filter(|([of_command, of_method, of_task], _)| {
                *of_command == cell.args[0]
                    && method.is_none_or(|method| method == of_method)
                    && task.is_none_or(|task| task == of_task)
            });
            let (sum, count) = found.fold((0.0, 0), |(sum, count), (_, one)| (sum + one.0, count + one.1));
            (count > 0).then(|| sum / count as f64)
        };
        let (method, task) = (Some(cell.method.as_str()), Some(cell.task.as_str()));
        mean(method, task).or_else(|| mean(method, None)).or_else(|| mean(None, None))
    }
}

/// Number of cells and threads for a machine's cores: `jobs` of 0 stands for one per core.
pub(crate) fn share_cores(jobs: usize) -> (usize, usize) {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let jobs = if jobs == 0 { cores } else { jobs };
    (jobs, (cores / jobs).max(1))
}

/// Whether a program of this name can be started.
pub(crate) fn can_start(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    !matches!(command.status(), Err(error) if error.kind() == io::ErrorKind::NotFound)
}
