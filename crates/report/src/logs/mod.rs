//! A tree of event files as one table: a column per segment of the path, then `tag`, `step` and `value`.
//!
//! The tree is `<root>/<name 1>/…/<name n>/events.out.tfevents.*`, whoever wrote the files. Runs are read in
//! parallel and written in the order of the table, which is sorted by the columns from left to right; what is
//! held in memory at a time are a few runs, not the tree.

mod csv;
#[cfg(feature = "parquet")]
mod parquet;
mod pipeline;
mod run;
mod tags;
mod tree;

#[cfg(test)]
mod tests;

use std::{
    fs::{self, File},
    io::BufWriter,
    path::Path,
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

/// How to convert a tree.
#[derive(Clone, Debug, Default)]
pub struct LogsOptions {
    /// Names of the columns that the segments of a run's path become, from the root down.
    pub names: Vec<String>,
    /// Which tags to take.
    pub tags: TagFilter,
    /// What to do with a step that occurs twice.
    pub duplicates: Duplicates,
    /// Threads that read; one per core where it is not given.
    pub threads: Option<usize>,
}

/// What was converted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LogsSummary {
    /// The columns and their types, `tag`, `step` and `value` last.
    pub columns: Vec<(String, ColumnType)>,
    /// Folders with event files.
    pub runs: u64,
    /// Event files.
    pub files: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Rows of the table.
    pub rows: u64,
    /// Values that are no scalar and were left out.
    pub no_scalars: u64,
    /// What a user should know, each naming the file or folder that it is about.
    pub warnings: Vec<String>,
}

/// How far a conversion is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogsProgress {
    /// Runs that are written.
    pub runs: u64,
    /// Runs that there are.
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
/// columns, for a tree without a single event file at the depth that the names give, and for patterns of which none
/// matches a tag; [`Error::Io`] when the root cannot be read or the table cannot be written. A file or folder below
/// the root that is damaged, cut short, foreign or cannot be read is no error but a warning.
pub fn convert(
    root: impl AsRef<Path>,
    output: impl AsRef<Path>,
    options: &LogsOptions,
    mut progress: impl FnMut(LogsProgress),
) -> Result<LogsSummary> {
    let (root, output) = (root.as_ref(), output.as_ref());
    let format = Format::of(output)?;
    check_names(&options.names)?;
    let mut summary = LogsSummary::default();
    let tree = Tree::walk(root, &options.names, &mut summary.warnings)?;
    summary.columns = tree.columns.iter().map(|column| (column.name.clone(), column.kind)).collect();
    for (name, kind) in
        [("tag", ColumnType::Text), ("step", ColumnType::Integer), ("value", ColumnType::Float)]
    {
        summary.columns.push((name.to_owned(), kind));
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
        Format::Csv => Box::new(csv::CsvTable::new(file, path, &tree.columns)?),
        #[cfg(feature = "parquet")]
        Format::Parquet => Box::new(parquet::ParquetTable::new(file, path, &tree.columns)?),
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

fn check_names(names: &[String]) -> Result<()> {
    for (index, name) in names.iter().enumerate() {
        let fault = match name.as_str() {
            "" => "is empty",
            "tag" | "step" | "value" => "is a column of its own",
            _ if names[..index].contains(name) => "occurs twice",
            _ => continue,
        };
        return Err(Error::Logs(format!("the column name {name:?} {fault}")));
    }
    Ok(())
}
