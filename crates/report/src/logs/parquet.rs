//! The table as Parquet, compressed with zstd.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow_array::{
    ArrayRef, DictionaryArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray,
    types::Int32Type,
};
use arrow_schema::{DataType, Field, Schema};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, Encoding, ZstdLevel},
    errors::ParquetError,
    file::{metadata::SortingColumn, properties::WriterProperties},
    schema::types::ColumnPath,
};

use super::{
    TAKEN, Table,
    run::RunLog,
    tree::{Column, ColumnType, Tree, Value},
};
use crate::{Error, Result};

/// Rows per row group: the unit that a reader decodes.
const ROW_GROUP: usize = 1 << 20;
/// Rows passed to the writer at a time.
const BATCH: usize = 1 << 16;

/// A Parquet file whose text columns are dictionaries.
pub(super) struct ParquetTable<W: Write + Send> {
    writer: ArrowWriter<W>,
    path: PathBuf,
    schema: Arc<Schema>,
    columns: Vec<PerRun>,
    wall_time: bool,
    rows: Rows,
}

/// A column with one value per run.
struct PerRun {
    values: PerRunValues,
    /// Which runs have a value; absent if all have.
    valid: Option<Vec<bool>>,
}

/// The value per run, texts as indices into the dictionary.
enum PerRunValues {
    Integer(Vec<i64>),
    Float(Vec<f64>),
    Text { keys: Vec<i32>, texts: Arc<StringArray> },
}

/// Rows not written yet.
#[derive(Default)]
struct Rows {
    /// The run of each row, as pairs of run and count.
    runs: Vec<(usize, usize)>,
    tags: Dictionary,
    steps: Vec<i64>,
    values: Vec<f64>,
    wall_times: Vec<f64>,
}

/// Texts, in the order of their first use.
#[derive(Default)]
struct Dictionary {
    places: BTreeMap<String, i32>,
    texts: Vec<String>,
    keys: Vec<i32>,
}

impl<W: Write + Send> ParquetTable<W> {
    pub(super) fn new(file: W, path: &Path, tree: &Tree, wall_time: bool) -> Result<Self> {
        let text = || DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
        let kind = |kind| match kind {
            ColumnType::Integer => DataType::Int64,
            ColumnType::Float => DataType::Float64,
            ColumnType::Text => text(),
        };
        let columns: Vec<PerRun> = tree.columns.iter().map(PerRun::new).collect();
        let mut fields: Vec<Field> = tree
            .columns
            .iter()
            .zip(&columns)
            .map(|(column, per_run)| Field::new(&column.name, kind(column.kind), per_run.valid.is_some()))
            .collect();
        fields.push(Field::new("tag", text(), false));
        fields.push(Field::new("step", DataType::Int64, false));
        fields.push(Field::new("value", DataType::Float64, false));
        if wall_time {
            fields.push(Field::new(TAKEN[3], DataType::Float64, false));
        }
        let schema = Arc::new(Schema::new(fields));
        let sorting = |column| SortingColumn { column_idx: column, descending: false, nulls_first: true };
        let sorted = (0..columns.len() as i32 + 2).map(sorting).collect();
        let zstd = ZstdLevel::try_new(3).map_err(failed(path))?;
        let [step, value, time] = ["step", "value", TAKEN[3]].map(ColumnPath::from);
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(zstd))
            .set_max_row_group_row_count(Some(ROW_GROUP))
            .set_sorting_columns(Some(sorted))
            .set_created_by("lowrank logs".to_owned())
            // Steps increase by a constant, and values rarely repeat: a dictionary would only add cost.
            .set_column_dictionary_enabled(step.clone(), false)
            .set_column_encoding(step, Encoding::DELTA_BINARY_PACKED)
            .set_column_dictionary_enabled(value.clone(), false)
            .set_column_encoding(value, Encoding::BYTE_STREAM_SPLIT)
            .set_column_dictionary_enabled(time.clone(), false)
            .set_column_encoding(time, Encoding::BYTE_STREAM_SPLIT)
            .build();
        let writer =
            ArrowWriter::try_new(file, Arc::clone(&schema), Some(properties)).map_err(failed(path))?;
        Ok(Self { writer, path: path.to_owned(), schema, columns, wall_time, rows: Rows::default() })
    }

    fn write(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.rows);
        let mut arrays: Vec<ArrayRef> = self.columns.iter().map(|column| column.array(&rows.runs)).collect();
        let tags = StringArray::from(rows.tags.texts);
        arrays.push(dictionary(rows.tags.keys.into(), Arc::new(tags)));
        arrays.push(Arc::new(Int64Array::from(rows.steps)));
        arrays.push(Arc::new(Float64Array::from(rows.values)));
        if self.wall_time {
            arrays.push(Arc::new(Float64Array::from(rows.wall_times)));
        }
        let batch = RecordBatch::try_new(Arc::clone(&self.schema), arrays)
            .map_err(|error| failed(&self.path)(ParquetError::from(error)))?;
        self.writer.write(&batch).map_err(failed(&self.path))
    }
}

/// Converts an error of the Parquet writer.
fn failed(path: &Path) -> impl FnOnce(ParquetError) -> Error {
    move |error| Error::io("write", path)(std::io::Error::other(error))
}

fn dictionary(keys: Int32Array, texts: Arc<StringArray>) -> ArrayRef {
    // The keys are indices into the texts: nothing to check.
    Arc::new(DictionaryArray::<Int32Type>::new(keys, texts))
}

impl PerRun {
    fn new(column: &Column) -> Self {
        let values = column.values.iter().map(Option::as_ref);
        let valid = column.values.iter().any(Option::is_none);
        let valid = valid.then(|| column.values.iter().map(Option::is_some).collect());
        let values = match column.kind {
            ColumnType::Integer => PerRunValues::Integer(values.map(integer).collect()),
            ColumnType::Float => PerRunValues::Float(values.map(float).collect()),
            ColumnType::Text => {
                let mut dictionary = Dictionary::default();
                values.for_each(|value| dictionary.add(text(value), 1));
                let texts = Arc::new(StringArray::from(dictionary.texts));
                PerRunValues::Text { keys: dictionary.keys, texts }
            }
        };
        Self { values, valid }
    }

    /// The column of rows that belong to runs.
    fn array(&self, runs: &[(usize, usize)]) -> ArrayRef {
        let valid = self.valid.as_ref().map(|valid| repeat(valid, runs).into());
        match &self.values {
            PerRunValues::Integer(values) => Arc::new(Int64Array::new(repeat(values, runs).into(), valid)),
            PerRunValues::Float(values) => Arc::new(Float64Array::new(repeat(values, runs).into(), valid)),
            PerRunValues::Text { keys, texts } => {
                dictionary(Int32Array::new(repeat(keys, runs).into(), valid), Arc::clone(texts))
            }
        }
    }
}

fn integer(value: Option<&Value>) -> i64 {
    if let Some(Value::Integer(number)) = value { *number } else { 0 }
}

fn float(value: Option<&Value>) -> f64 {
    if let Some(Value::Float(number)) = value { *number } else { f64::NAN }
}

fn text(value: Option<&Value>) -> &str {
    if let Some(Value::Text(text)) = value { text } else { "" }
}

fn repeat<T: Copy>(values: &[T], runs: &[(usize, usize)]) -> Vec<T> {
    runs.iter().flat_map(|(run, count)| std::iter::repeat_n(values[*run], *count)).collect()
}

impl Dictionary {
    fn add(&mut self, text: &str, count: usize) {
        let key = match self.places.get(text) {
            Some(key) => *key,
            None => {
                let key = self.texts.len() as i32;
                self.texts.push(text.to_owned());
                self.places.insert(text.to_owned(), key);
                key
            }
        };
        self.keys.extend(std::iter::repeat_n(key, count));
    }
}

impl<W: Write + Send> Table for ParquetTable<W> {
    fn add(&mut self, index: usize, run: &RunLog) -> Result<()> {
        for tag in &run.tags {
            for points in tag.points.chunks(BATCH) {
                self.rows.runs.push((index, points.len()));
                self.rows.tags.add(&tag.tag, points.len());
                self.rows.steps.extend(points.iter().map(|point| point.step));
                self.rows.values.extend(points.iter().map(|point| point.value));
                if self.wall_time {
                    self.rows.wall_times.extend(points.iter().map(|point| point.wall_time));
                }
                if self.rows.steps.len() >= BATCH {
                    self.write()?;
                }
            }
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        if !self.rows.steps.is_empty() {
            self.write()?;
        }
        let path = self.path;
        self.writer.close().map_err(failed(&path))?;
        Ok(())
    }
}
