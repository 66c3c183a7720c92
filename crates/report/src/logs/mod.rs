//! A tree of event files as one table: a column per segment of the path, then `tag`, `step` and `value`.
//!
//! The tree is `<root>/<name 1>/…/<name n>/events.out.tfevents.*`, whoever wrote the files. A run that is less deep has
//! no value in the last columns; one that is deeper, as those of `add_scalars` and `add_hparams`, has the rest of its
//! path in a column `sub_run`. Files of one folder whose hyper-parameters differ are different runs, which columns of
//! those hyper-parameters tell apart. What a restart declares void (`purge_step`) is left out, as TensorBoard leaves it
//! out: for every tag the values logged before it whose step is that of the restart or a later one.
//!
//! Runs are read in parallel and written in the order of the table, which is sorted by the columns from left to right,
//! missing values first; a few runs are held in memory at a time, not the tree.

mod csv;
mod hparams;
#[cfg(feature = "parquet")]
mod parquet;
mod pipeline;
mod run;
mod tags;
mod tree;
mod walk;

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::BufWriter,
    path::Path,
    thread,
};

use self::{run::RunLog, tree::Tree};
pub use self::{tags::TagFilter, tree::ColumnType};
use crate::{Error, Result, files::temporary_name};

/// What to do with several values of a tag at one step, as a run leaves them that was resumed or started again
/// in the same folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// Keep them all, in the order in which they were written.
    #[default]
    Keep,
    /// Keep the one that was written last.
    Last,
}

/// Which hyper-parameters of the runs become columns. Those that runs of one folder differ in always do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HparamColumns {
    /// No others.
    #[default]
    None,
    /// All that some run has.
    All,
    /// These.
    Named(Vec<String>),
}

/// How to convert a tree.
#[derive(Clone, Debug, Default)]
pub struct LogsOptions {
    /// Names of the columns that the segments of a run's path become, from the root down.
    pub names: Vec<String>,
    /// Which tags to take.
    pub tags: TagFilter,
    /// What to do with a step that occurs twice.
    pub duplicates: Duplicates,
    /// Hyper-parameters as columns, before `tag`; one whose name is taken is called `hparams/NAME`.
    pub hparams: HparamColumns,
    /// Whether a column `wall_time`, in seconds since 1970, follows `value`.
    pub wall_time: bool,
    /// Threads that read; one per core where it is not given.
    pub threads: Option<usize>,
}

impl LogsOptions {
    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

/// What was converted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogsSummary {
    /// The columns and their types.
    pub columns: Vec<(String, ColumnType)>,
    /// Folders with event files.
    pub runs: u64,
    /// Event files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Values that are not scalars and were left out.
    pub no_scalars: u64,
    /// What a user should know, each naming the file or folder that it is about.
    pub warnings: Vec<String>,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogsProgress {
    /// Runs that are written.
    pub runs: u64,
    /// Runs of the tree.
    pub of: u64,
    /// Bytes of event files that were read for them.
    pub bytes: u64,
}

/// Converts the tree at `root` into `output`, whose extension says the format: `.parquet` or `.csv`.
///
/// The table appears under its name when it is whole. `progress` is called from time to time.
///
/// # Errors
/// [`Error::Logs`] for an unknown extension, names that are empty, repeated or those of the table's own
/// columns, for a tree without a single event file at the depth that the names give, for hyper-parameters that no run
/// has, and for patterns of which none matches a tag; [`Error::Io`] when the root cannot be read or the table cannot be
/// written. A file or folder below the root that is damaged, cut short, foreign or unreadable is a warning only.
pub fn convert(
    root: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &LogsOptions,
    mut progress: impl FnMut(LogsProgress),
) -> Result<LogsSummary> {
    let (root, output) = (root.as_ref(), output.as_ref());
    let format = Format::of(output)?;
    check_names(options.names.iter().map(String::as_str))?;
    let mut summary = LogsSummary::default();
    let tree = Tree::read(root, options, &mut summary.warnings)?;
    summary.columns = tree.columns.iter().map(|column| (column.name.clone(), column.kind)).collect();
    for (name, kind) in
        [("tag", ColumnType::Text), ("step", ColumnType::Integer), ("value", ColumnType::Float)]
    {
        summary.columns.push((name.to_owned(), kind));
    }
    if options.wall_time {
        summary.columns.push((TAKEN[3].to_owned(), ColumnType::Float));
    }
    let temporary = temporary_name(output);
    let written = write_table(&tree, format, &temporary, options, &mut summary, &mut progress)
        .and_then(|()| fs::rename(&temporary, output).map_err(Error::io("write", output)));
    written.inspect_err(|_| {
        // The error that is reported is the first one.
        let _ = fs::remove_file(&temporary);
    })?;
    Ok(summary)
}

fn write_table(
    tree: &Tree,
    format: Format,
    path: &Path,
    options: &LogsOptions,
    summary: &mut LogsSummary,
    progress: &mut impl FnMut(LogsProgress),
) -> Result<()> {
    let file = BufWriter::new(File::create(path).map_err(Error::io("create", path))?);
    let mut table: Box<dyn Table> = match format {
        Format::Csv => Box::new(csv::CsvTable::new(file, path, tree, options.wall_time)?),
        #[cfg(feature = "parquet")]
        Format::Parquet => Box::new(parquet::ParquetTable::new(file, path, tree, options.wall_time)?),
    };
    let seen = pipeline::run(tree, options, table.as_mut(), summary, progress)?;
    summary.warnings.extend(seen.check(&options.tags)?);
    table.finish()
}

/// A table that takes the runs in order.
trait Table {
    /// Adds the rows of the `index`-th run of the tree.
    fn add(&mut self, index: usize, run: &RunLog) -> Result<()>;

    /// Writes what is left.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// A format of the table.
#[derive(Clone, Copy)]
enum Format {
    Csv,
    #[cfg(feature = "parquet")]
    Parquet,
}

impl Format {
    fn of(output: &Path) -> Result<Self> {
        match output.extension().and_then(|extension| extension.to_str()) {
            Some("csv") => Ok(Self::Csv),
            #[cfg(feature = "parquet")]
            Some("parquet") => Ok(Self::Parquet),
            _ => {
                let formats = if cfg!(feature = "parquet") { ".parquet or .csv" } else { ".csv" };
                Err(Error::Logs(format!("{} does not end in {formats}", output.display())))
            }
        }
    }
}

/// The names of the table's own columns.
const TAKEN: [&str; 4] = ["tag", "step", "value", "wall_time"];

fn check_names<'a>(names: impl Iterator<Item = &'a str> + Clone) -> Result<()> {
    for (index, name) in names.clone().enumerate() {
        let fault = match name {
            "" => "is empty",
            _ if TAKEN.contains(&name) => "is taken by the table itself",
            _ if names.clone().take(index).any(|before| before == name) => "occurs twice",
            _ => continue,
        };
        return Err(Error::Logs(format!("the column name {name:?} {fault}")));
    }
    Ok(())
}
