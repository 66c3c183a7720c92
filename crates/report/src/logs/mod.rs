//! A tree of event files as one table: one column per segment of the path, followed by `tag`, `step` and
//! `value`.
//!
//! The tree is `<root>/<name 1>/…/<name n>/events.out.tfevents.*`, by any writer. A run at a smaller depth
//! has no value in the last columns; one at a larger depth, as from `add_scalars` and `add_hparams`, has the
//! rest of its path in a column `sub_run`. Files of one folder with different hyper-parameters are different
//! runs, distinguished by columns of those hyper-parameters. Values voided by a restart (`purge_step`) are
//! left out, as in TensorBoard: for every tag the values logged before it whose step is that of the restart
//! or a later one.
//!
//! Runs are read in parallel and written in the order of the table, which is sorted by the columns from left to right,
//! missing values first; only a few runs are in memory at a time.

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

use std::{fs::File, io::BufWriter, path::Path, thread};

use lowrank_checkpoint::replace_file_atomic;

use self::{run::RunLog, tree::Tree};
pub use self::{tags::TagFilter, tree::ColumnType};
use crate::{Error, Result};

/// Treatment of several values of a tag at one step, as from a run that was resumed or started again
/// in the same folder.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Duplicates {
    /// Keep them all, in the order of writing.
    #[default]
    Keep,
    /// Keep the last one.
    Last,
}

/// The hyper-parameters of the runs that become columns. Those in which runs of one folder differ always do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HparamColumns {
    /// No others.
    #[default]
    None,
    /// All that any run has.
    All,
    /// These.
    Named(Vec<String>),
}

/// Options of a conversion.
#[derive(Clone, Debug, Default)]
pub struct LogsOptions {
    /// Names of the columns that the segments of a run's path become, from the root down.
    pub names: Vec<String>,
    /// The tags to select.
    pub tags: TagFilter,
    /// Treatment of a step that occurs twice.
    pub duplicates: Duplicates,
    /// Hyper-parameters as columns, before `tag`; one whose name is already used is called `hparams/NAME`.
    pub hparams: HparamColumns,
    /// Whether a column `wall_time`, in seconds since 1970, follows `value`.
    pub wall_time: bool,
    /// Number of reading threads; one per core by default.
    pub threads: Option<usize>,
}

impl LogsOptions {
    fn threads(&self) -> usize {
        self.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, usize::from)).max(1)
    }
}

/// The result of a conversion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogsSummary {
    /// The columns and their types.
    pub columns: Vec<(String, ColumnType)>,
    /// Folders with event files.
    pub runs: u64,
    /// Event files.
    pub files: u64,
    /// Their total bytes.
    pub bytes: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Number of values that are not scalars and were left out.
    pub no_scalars: u64,
    /// Warnings, each naming the file or folder concerned.
    pub warnings: Vec<String>,
}

/// Progress of a conversion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogsProgress {
    /// Runs written so far.
    pub runs: u64,
    /// Runs of the tree.
    pub of: u64,
    /// Bytes of event files read for them.
    pub bytes: u64,
}

/// Converts the tree at `root` into `output`, whose extension selects the format: `.parquet` or `.csv`.
///
/// The table appears under its name when it is complete. `progress` is called from time to time.
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
    replace_file_atomic(output, |file| {
        write_table(&tree, format, (file, output), options, &mut summary, &mut progress)
    })?;
    Ok(summary)
}

fn write_table(
    tree: &Tree,
    format: Format,
    (file, path): (File, &Path),
    options: &LogsOptions,
    summary: &mut LogsSummary,
    progress: &mut impl FnMut(LogsProgress),
) -> Result<()> {
    let file = BufWriter::new(file);
    let mut table: Box<dyn Table> = match format {
        Format::Csv => Box::new(csv::CsvTable::new(file, path, tree, options.wall_time)?),
        #[cfg(feature = "parquet")]
        Format::Parquet => Box::new(parquet::ParquetTable::new(file, path, tree, options.wall_time)?),
    };
    let seen = pipeline::run(tree, options, table.as_mut(), summary, progress)?;
    summary.warnings.extend(seen.check(&options.tags)?);
    table.finish()
}

/// A table that receives the runs in order.
trait Table {
    /// Adds the rows of the `index`-th run of the tree.
    fn add(&mut self, index: usize, run: &RunLog) -> Result<()>;

    /// Writes the remaining rows.
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
