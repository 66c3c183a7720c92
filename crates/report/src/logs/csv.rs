//! The table as CSV.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
};

use super::{
    Table,
    run::RunLog,
    tree::{Column, Value},
};
use crate::{Error, Result, table::csv_field};

/// A CSV file with a header.
pub(super) struct CsvTable<W> {
    file: W,
    path: PathBuf,
    /// What every row of a run begins with.
    prefixes: Vec<String>,
    line: String,
}

impl<W: Write> CsvTable<W> {
    pub(super) fn new(mut file: W, path: &Path, columns: &[Column]) -> Result<Self> {
        let names: Vec<String> = columns.iter().map(|column| csv_field(&column.name)).collect();
        let header = [&names[..], &["tag", "step", "value"].map(str::to_owned)].concat().join(",");
        writeln!(file, "{header}").map_err(Error::io("write", path))?;
        let runs = columns.first().map_or(1, |column| column.values.len());
        let prefix = |run: usize| columns.iter().map(|column| field(&column.values[run]) + ",").collect();
        let prefixes = (0..runs).map(prefix).collect();
        Ok(Self { file, path: path.to_owned(), prefixes, line: String::new() })
    }
}

fn field(value: &Value) -> String {
    match value {
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:e}"),
        Value::Text(text) => csv_field(text),
    }
}

impl<W: Write> Table for CsvTable<W> {
    fn add(&mut self, index: usize, run: &RunLog) -> Result<()> {
        for tag in &run.tags {
            self.line.clear();
            self.line.push_str(&self.prefixes[index]);
            self.line.push_str(&csv_field(&tag.tag));
            let prefix = self.line.len();
            for (step, value) in &tag.points {
                self.line.truncate(prefix);
                // Writing to a string cannot fail.
                let _ = writeln!(self.line, ",{step},{value}");
                self.file.write_all(self.line.as_bytes()).map_err(Error::io("write", &self.path))?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }
}
