//! Reading event files.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::ControlFlow,
    path::Path,
};

use super::{
    event::{Plugins, event, values},
    frame::{FOOTER, HEADER, masked_crc32c},
    hparams::Session,
};
use crate::{Error, Result};

/// Maximum size of a record; a larger one, such as an image or a graph, is skipped unread.
const LARGEST: u64 = 64 << 20;
/// Bytes read at once.
const CHUNK: usize = 256 << 10;

/// A value of an event.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scalar<'a> {
    /// Its name, e.g. `train/loss`.
    pub tag: &'a str,
    /// The training step.
    pub step: i64,
    /// The number; absent for a value that is not a scalar: an image, a histogram, a text.
    pub value: Option<f64>,
    /// Seconds since 1970.
    pub wall_time: f64,
}

/// The contents of an event file, in sequence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Logged<'a> {
    /// A value.
    Scalar(Scalar<'a>),
    /// The run was started again: every value before this one whose step is `step` or later is void,
    /// including earlier files of the run (`purge_step` of PyTorch's `SummaryWriter`).
    Restart {
        /// The first step that is void.
        step: i64,
    },
    /// The run's hyper-parameters.
    Session(Session),
}

/// Result of reading a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileReport {
    /// Whole records.
    pub records: u64,
    /// Bytes of the file up to the last whole record.
    pub bytes: u64,
    /// Warnings, without the file's name: the byte at which it is cut short, damaged records, ….
    pub warnings: Vec<String>,
}

/// Calls `visit` for everything in an event file, in order, until the file ends or breaks off.
///
/// A file that is cut short, or is still being written, is read up to its last whole record. A record with a
/// wrong checksum is skipped, as is a value that is malformed or whose tag is not text; after a length with a
/// wrong checksum nothing more can be found.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read, or is a pipe or the like. Faults in its contents are in the
/// report's warnings.
pub fn read_events(
    path: impl AsRef<Path>,
    mut visit: impl FnMut(Logged) -> ControlFlow<()>,
) -> Result<FileReport> {
    let path = path.as_ref();
    let mut source = Source::open(path).map_err(Error::io("read", path))?;
    let mut report = FileReport::default();
    let mut damaged = Count::default();
    let mut not_events = Count::default();
    let mut bad_values = Count::default();
    let mut plugins = Plugins::default();
    while source.left() > 0 {
        let at = source.position;
        let data = match source.next_record().map_err(Error::io("read", path))? {
            Record::Data(data) => data,
            Record::Damaged => {
                damaged.add(at);
                continue;
            }
            Record::TooLarge(length) => {
                report.warnings.push(format!("the record of {length} bytes at byte {at} was passed over"));
                continue;
            }
            Record::CutShort => {
                let rest = source.length - at;
                report.warnings.push(format!(
                    "cut short, or still being written: its last {rest} bytes do not make a whole record"
                ));
                break;
            }
            Record::NoLength => {
                let rest = source.length - at;
                report.warnings.push(format!("damaged at byte {at}: its last {rest} bytes cannot be read"));
                break;
            }
        };
        report.records += 1;
        let Ok(event) = event(data) else {
            not_events.add(at);
            continue;
        };
        if event.restarts && visit(Logged::Restart { step: event.step }).is_break() {
            return Ok(report);
        }
        for value in values(&event) {
            let logged = match value {
                Ok(Some(value)) => match value.hparams.map(Session::read) {
                    None => Logged::Scalar(Scalar {
                        tag: value.tag,
                        step: event.step,
                        value: plugins.scalar(&value),
                        wall_time: event.wall_time,
                    }),
                    Some(Ok(Some(session))) => Logged::Session(session),
                    // The plugin's description of the experiment, or of a session's end.
                    Some(Ok(None)) => continue,
                    Some(Err(_)) => {
                        bad_values.add(at);
                        continue;
                    }
                },
                Ok(None) => {
                    bad_values.add(at);
                    continue;
                }
                Err(_) => {
                    not_events.add(at);
                    continue;
                }
            };
            if visit(logged).is_break() {
                return Ok(report);
            }
        }
    }
    report.bytes = source.position;
    if source.length == 0 {
        report.warnings.push("empty".to_owned());
    }
    damaged.warn("records with a wrong checksum", &mut report.warnings);
    not_events.warn("records that are not events", &mut report.warnings);
    bad_values.warn("values that cannot be read", &mut report.warnings);
    Ok(report)
}

/// Number of records or values with a fault, and position of the first record.
#[derive(Default)]
struct Count {
    number: u64,
    first: u64,
}

impl Count {
    fn add(&mut self, at: u64) {
        if self.number == 0 {
            self.first = at;
        }
        self.number += 1;
    }

    fn warn(&self, what: &str, warnings: &mut Vec<String>) {
        if self.number > 0 {
            let Self { number, first } = self;
            warnings.push(format!("{what} passed over: {number}, the first at byte {first}"));
        }
    }
}

/// The finding at the expected start of a record.
enum Record<'a> {
    /// A record's data.
    Data(&'a [u8]),
    /// A whole record whose checksum is wrong.
    Damaged,
    /// A record of more than [`LARGEST`] bytes.
    TooLarge(u64),
    /// The file ends within the record.
    CutShort,
    /// A length whose checksum is wrong.
    NoLength,
}

/// A file read in chunks.
struct Source {
    file: File,
    /// The length of the file when it was opened; later additions are left for the next time.
    length: u64,
    /// Start of the next record.
    position: u64,
    buffer: Vec<u8>,
    /// The unused part of the buffer.
    start: usize,
}

impl Source {
    fn open(path: &Path) -> io::Result<Self> {
        let file = lowrank_spec::open_file(path)?;
        let length = file.metadata()?.len();
        Ok(Self { file, length, position: 0, buffer: Vec::new(), start: 0 })
    }

    fn left(&self) -> u64 {
        self.length - self.position
    }

    /// The next record; `position` moves behind it unless none is complete.
    fn next_record(&mut self) -> io::Result<Record<'_>> {
        if self.left() < HEADER as u64 || !self.fill(HEADER)? {
            return Ok(Record::CutShort);
        }
        let (length, checksum) = self.buffer[self.start..][..HEADER].split_at(8);
        if word(checksum) != masked_crc32c(length) {
            return Ok(Record::NoLength);
        }
        let length = u64::from(word(&length[..4])) | u64::from(word(&length[4..])) << 32;
        let room = self.left() - HEADER as u64;
        if length > room || room - length < FOOTER as u64 {
            return Ok(Record::CutShort);
        }
        if length > LARGEST {
            self.skip(HEADER as u64 + length + FOOTER as u64)?;
            return Ok(Record::TooLarge(length));
        }
        let length = length as usize;
        let whole = HEADER + length + FOOTER;
        if !self.fill(whole)? {
            return Ok(Record::CutShort);
        }
        let record = &self.buffer[self.start..][..whole];
        self.start += whole;
        self.position += whole as u64;
        let (data, checksum) = record[HEADER..].split_at(length);
        Ok(if word(checksum) == masked_crc32c(data) { Record::Data(data) } else { Record::Damaged })
    }

    /// Ensures that the buffer holds `wanted` unused bytes; false if the file has shrunk in the meantime.
    fn fill(&mut self, wanted: usize) -> io::Result<bool> {
        let held = self.buffer.len() - self.start;
        if held >= wanted {
            return Ok(true);
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let more = (wanted - held).max(CHUNK) as u64;
        (&mut self.file).take(more).read_to_end(&mut self.buffer)?;
        Ok(self.buffer.len() >= wanted)
    }

    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        self.position += bytes;
        self.buffer.clear();
        self.start = 0;
        self.file.seek(SeekFrom::Start(self.position))?;
        Ok(())
    }
}

/// Four bytes as a little-endian number.
fn word(bytes: &[u8]) -> u32 {
    bytes.first_chunk().map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;
    use crate::tfevents::{EventWriter, frame::put_record};

    /// A file of three scalars.
    fn sample(dir: &Path) -> PathBuf {
        let mut writer = EventWriter::create(dir).unwrap();
        for (step, value) in [(1, 0.5), (2, f32::NAN), (3, -1.0)] {
            writer.scalar("train/loss", step, value, 1.5).unwrap();
        }
        writer.path().to_owned()
    }

    fn read(path: &Path) -> (Vec<(String, i64, Option<f64>)>, FileReport) {
        let mut found = Vec::new();
        let report = read_events(path, |logged| {
            if let Logged::Scalar(scalar) = logged {
                found.push((scalar.tag.to_owned(), scalar.step, scalar.value));
            }
            ControlFlow::Continue(())
        });
        (found, report.unwrap())
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let (found, report) = read(&path);
        assert_eq!(found[0], ("train/loss".to_owned(), 1, Some(0.5)));
        assert!(found[1].2.unwrap().is_nan());
        assert_eq!(found[2], ("train/loss".to_owned(), 3, Some(-1.0)));
        assert_eq!(report.records, 4);
        assert_eq!(report.bytes, fs::metadata(&path).unwrap().len());
        assert!(report.warnings.is_empty(), "{:?}", report.warnings);
    }

    #[test]
    fn a_file_cut_at_any_byte_gives_its_whole_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let bytes = fs::read(&path).unwrap();
        let record = (bytes.len() - 40) / 3;
        for cut in 0..bytes.len() {
            fs::write(&path, &bytes[..cut]).unwrap();
            let (found, report) = read(&path);
            let whole = cut.saturating_sub(40) / record;
            assert_eq!(found.len(), whole, "cut at {cut}");
            let at_an_end = cut == 40 + whole * record;
            assert_eq!(report.warnings.is_empty(), at_an_end, "cut at {cut}: {:?}", report.warnings);
        }
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let bytes = fs::read(&path).unwrap();
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            fs::write(&path, damaged).unwrap();
            let (found, report) = read(&path);
            assert_eq!(report.warnings.len(), 1, "bit of byte {at}");
            assert!(found.len() <= 3 && (found.len() == 3) == (12..40).contains(&at), "bit of byte {at}");
        }
    }

    #[test]
    fn a_damaged_record_does_not_take_its_neighbours_along() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        let record = (bytes.len() - 40) / 3;
        bytes[40 + record + HEADER] ^= 1;
        fs::write(&path, bytes).unwrap();
        let (found, report) = read(&path);
        assert_eq!(found.iter().map(|scalar| scalar.1).collect::<Vec<_>>(), [1, 3]);
        let expect =
            format!("records with a wrong checksum passed over: 1, the first at byte {}", 40 + record);
        assert_eq!(report.warnings, [expect]);
    }

    #[test]
    fn records_that_are_no_event_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let mut bytes = Vec::new();
        put_record(&mut bytes, &[0xff; 3]);
        bytes.extend(fs::read(&path).unwrap());
        fs::write(&path, bytes).unwrap();
        let (found, report) = read(&path);
        assert_eq!(found.len(), 3);
        assert_eq!(report.warnings, ["records that are not events passed over: 1, the first at byte 0"]);
    }

    #[test]
    fn a_value_that_cannot_be_read_takes_no_other_along() {
        use crate::proto::{put_bytes, put_float};

        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let mut bytes = fs::read(&path).unwrap();
        let at = bytes.len();
        let (mut summary, mut event) = (Vec::new(), Vec::new());
        for tag in [b"a", &[0xff], b"b"] {
            let mut value = Vec::new();
            put_bytes(&mut value, 1, tag);
            put_float(&mut value, 2, 4.0);
            put_bytes(&mut summary, 1, &value);
        }
        put_bytes(&mut summary, 1, &[0x0a, 9]);
        put_bytes(&mut event, 5, &summary);
        put_record(&mut bytes, &event);
        fs::write(&path, bytes).unwrap();
        let (found, report) = read(&path);
        let tags: Vec<_> = found.iter().map(|(tag, ..)| tag.as_str()).collect();
        assert_eq!(tags[3..], ["a", "b"]);
        assert_eq!(
            report.warnings,
            [format!("values that cannot be read passed over: 2, the first at byte {at}")]
        );
    }

    #[test]
    fn restarts_and_hyper_parameters_come_in_their_place() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        let session = Session { group: "g".to_owned(), ..Session::default() };
        writer.session(&session).unwrap();
        writer.scalar("a", 3, 1.0, 0.0).unwrap();
        writer.restart(2).unwrap();
        writer.scalar("a", 2, 2.0, 0.0).unwrap();
        let read = |most: usize| {
            let mut found = Vec::new();
            let report = read_events(writer.path(), |logged| {
                found.push(match logged {
                    Logged::Scalar(scalar) => format!("{} {}", scalar.tag, scalar.step),
                    Logged::Restart { step } => format!("restart {step}"),
                    Logged::Session(session) => session.group,
                });
                if found.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            });
            (found, report.unwrap().warnings)
        };
        assert_eq!(read(9).0, ["g", "a 3", "restart 2", "a 2"]);
        assert_eq!(read(2), (vec!["g".to_owned(), "a 3".to_owned()], Vec::new()));
    }

    #[test]
    fn empty_and_absent_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.out.tfevents.1.h");
        fs::write(&path, "").unwrap();
        assert_eq!(read(&path).1.warnings, ["empty"]);
        fs::write(&path, "this is not an event file").unwrap();
        assert!(read(&path).1.warnings[0].starts_with("damaged at byte 0"));
        assert!(matches!(
            read_events(dir.path().join("absent"), |_| ControlFlow::Continue(())),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn a_length_beyond_the_file_costs_no_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events.out.tfevents.1.h");
        let length = (1_u64 << 60).to_le_bytes();
        fs::write(&path, [&length[..], &masked_crc32c(&length).to_le_bytes()[..], &[0; 100]].concat())
            .unwrap();
        let (found, report) = read(&path);
        assert!(found.is_empty());
        assert!(report.warnings[0].starts_with("cut short"), "{:?}", report.warnings);
    }

    #[test]
    fn records_larger_than_a_chunk_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let mut bytes = Vec::new();
        // An event of an unknown field as large as three chunks.
        let mut event = Vec::new();
        crate::proto::put_bytes(&mut event, 15, &vec![7; 3 * CHUNK]);
        put_record(&mut bytes, &event);
        bytes.extend(fs::read(&path).unwrap());
        fs::write(&path, bytes).unwrap();
        let (found, report) = read(&path);
        assert_eq!((found.len(), report.records, report.warnings.len()), (3, 5, 0));
    }
}
