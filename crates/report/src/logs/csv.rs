//! The table as CSV.

use std::{
    fmt::Write as _,
    io::Write,
    path::{Path, PathBuf},
};

use lowrank_spec::text::csv_field;

use super::{
    TAKEN, Table,
    run::{Point, RunLog},
    tree::{Tree, Value},
};
use crate::{Error, Result};

/// A CSV file with a header.
pub(super) struct CsvTable<W> {
    file: W,
    path: PathBuf,
    /// The beginning of every row of a run.
    prefixes: Vec<String>,
    wall_time: bool,
    line: String,
}

impl<W: Write> CsvTable<W> {
    pub(super) fn new(mut file: W, path: &Path, tree: &Tree, wall_time: bool) -> Result<Self> {
        let names = tree.columns.iter().map(|column| csv_field(&column.name));
        let values = TAKEN[..if wall_time { 4 } else { 3 }].iter().map(|name| (*name).to_owned());
        let header = names.chain(values).collect::<Vec<_>>().join(",");
        writeln!(file, "{header}").map_err(Error::io("write", path))?;
        let prefix = |run: usize| {
            let fields =
                tree.columns.iter().map(|column| column.values[run].as_ref().map_or(String::new(), field));
            fields.map(|field| field + ",").collect()
        };
        let prefixes = (0..tree.runs.len()).map(prefix).collect();
        Ok(Self { file, path: path.to_owned(), prefixes, wall_time, line: String::new() })
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
            for Point { step, value, wall_time } in &tag.points {
                self.line.truncate(prefix);
                // Writing to a string cannot fail.
                let _ = write!(self.line, ",{step},{value}");
                if self.wall_time {
                    let _ = write!(self.line, ",{wall_time}");
                }
                self.line.push('\n');
                self.file.write_all(self.line.as_bytes()).map_err(Error::io("write", &self.path))?;
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.file.flush().map_err(Error::io("write", &self.path))
    }
}
