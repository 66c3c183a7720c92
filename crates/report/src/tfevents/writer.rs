//! Writing event files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use super::{
    frame::put_record,
    hparams::{Session, TAG},
};
use crate::{
    Error, Result,
    proto::{put_bytes, put_double, put_float, put_int64},
};

/// Distinguishes the files that one process opens within a second.
static FILES: AtomicU32 = AtomicU32::new(0);

/// Seconds since 1970, the wall time of an event.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Writes scalars to a new event file.
///
/// Each event is written in one write, so that a killed process leaves complete records behind.
///
/// ```
/// # fn main() -> lowrank_report::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// use lowrank_report::tfevents::{EventWriter, now};
///
/// let mut events = EventWriter::create(dir.path())?;
/// events.scalar("train/loss", 10, 0.5, now())?;
/// events.flush()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: PathBuf,
    event: Vec<u8>,
    record: Vec<u8>,
}

impl EventWriter {
    /// Creates a new event file in `dir`, which is created if missing.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder or the file cannot be created.
    pub fn create(dir: impl AsRef<Path>) -> Result<Self> {
        let dir = dir.as_ref();
        fs::create_dir_all(dir).map_err(Error::io("create", dir))?;
        let (file, path) = create_file(dir)?;
        let mut writer = Self { file, path, event: Vec::new(), record: Vec::new() };
        put_double(&mut writer.event, 1, now());
        put_bytes(&mut writer.event, 3, b"brain.Event:2");
        writer.write_event()?;
        Ok(writer)
    }

    /// The event file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes one value; tags are named as in Hugging Face's trainer: `train/loss`, `eval/accuracy`.
    ///
    /// # Errors
    /// [`Error::Tag`] for an empty tag or one with control characters, [`Error::Io`] if the file cannot be
    /// written.
    pub fn scalar(&mut self, tag: &str, step: i64, value: f32, wall_time: f64) -> Result<()> {
        if tag.is_empty() || tag.contains(char::is_control) {
            return Err(Error::Tag { tag: tag.to_owned() });
        }
        let mut value_message = Vec::with_capacity(tag.len() + 8);
        put_bytes(&mut value_message, 1, tag.as_bytes());
        put_float(&mut value_message, 2, value);
        let mut summary = Vec::with_capacity(value_message.len() + 4);
        put_bytes(&mut summary, 1, &value_message);

        self.event.clear();
        put_double(&mut self.event, 1, wall_time);
        put_int64(&mut self.event, 2, step);
        put_bytes(&mut self.event, 5, &summary);
        self.write_event()
    }

    /// Writes the run's hyper-parameters, which TensorBoard shows under HPARAMS and which distinguish runs
    /// that log into one folder.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn session(&mut self, session: &Session) -> Result<()> {
        let (mut plugin, mut metadata, mut value, mut summary) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        put_bytes(&mut plugin, 1, b"hparams");
        put_bytes(&mut plugin, 2, &session.content());
        put_bytes(&mut metadata, 1, &plugin);
        put_bytes(&mut value, 1, TAG.as_bytes());
        put_bytes(&mut value, 9, &metadata);
        put_bytes(&mut summary, 1, &value);

        self.event.clear();
        put_double(&mut self.event, 1, now());
        put_bytes(&mut self.event, 5, &summary);
        self.write_event()
    }

    /// Voids the values logged so far for `step` and later ones, for a run that is resumed from a
    /// checkpoint before them.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be written.
    pub fn restart(&mut self, step: i64) -> Result<()> {
        let mut session_log = Vec::new();
        put_int64(&mut session_log, 1, 1);
        self.event.clear();
        put_double(&mut self.event, 1, now());
        put_int64(&mut self.event, 2, step);
        put_bytes(&mut self.event, 7, &session_log);
        self.write_event()
    }

    /// Waits until all data are on disk.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk refuses.
    pub fn flush(&mut self) -> Result<()> {
        self.file.sync_data().map_err(Error::io("write", &self.path))
    }

    fn write_event(&mut self) -> Result<()> {
        self.record.clear();
        put_record(&mut self.record, &self.event);
        self.file.write_all(&self.record).map_err(Error::io("write", &self.path))
    }
}

/// A new file under the name that TensorBoard expects; another process's file is never appended to.
fn create_file(dir: &Path) -> Result<(File, PathBuf)> {
    let seconds = now() as u64;
    let host = host_name();
    loop {
        let number = FILES.fetch_add(1, Ordering::Relaxed);
        let name = format!("events.out.tfevents.{seconds}.{host}.{}.{number}", process::id());
        let path = dir.join(name);
        match OpenOptions::new().append(true).create_new(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            opened => return opened.map(|file| (file, path.clone())).map_err(Error::io("create", path)),
        }
    }
}

/// The machine's name, without the dots that separate the parts of a file name.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .or_else(|| std::env::var("COMPUTERNAME").ok())
        .unwrap_or_default();
    let name: String = name.trim().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tfevents::frame::{FOOTER, HEADER, masked_crc32c};

    #[test]
    fn file_begins_with_its_version_and_holds_the_scalar() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        writer.scalar("a/b", 150, 1.0, 1.0).unwrap();
        let bytes = fs::read(writer.path()).unwrap();

        let (version, scalar) = bytes.split_at(HEADER + 24 + FOOTER);
        assert!(version[HEADER..].windows(13).any(|window| window == b"brain.Event:2"));
        let data: &[u8] = &[
            0x09, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f, // wall_time = 1.0
            0x10, 0x96, 0x01, // step = 150
            0x2a, 12, // summary
            0x0a, 10, // its one value
            0x0a, 3, b'a', b'/', b'b', // tag
            0x15, 0, 0, 0x80, 0x3f, // simple_value = 1.0
        ];
        assert_eq!(scalar[..8], (data.len() as u64).to_le_bytes());
        assert_eq!(&scalar[HEADER..scalar.len() - FOOTER], data);
        assert_eq!(scalar[scalar.len() - FOOTER..], masked_crc32c(data).to_le_bytes());
    }

    #[test]
    fn files_of_one_process_have_names_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let one = EventWriter::create(dir.path()).unwrap();
        let two = EventWriter::create(dir.path()).unwrap();
        assert_ne!(one.path(), two.path());
        let name = one.path().file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents."));
        assert_eq!(name.split('.').count(), 7, "{name}");
    }

    #[test]
    fn a_tag_without_a_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path()).unwrap();
        let before = fs::read(writer.path()).unwrap();
        assert!(matches!(writer.scalar("", 0, 0.0, 0.0), Err(Error::Tag { .. })));
        assert!(matches!(writer.scalar("a\nb", 0, 0.0, 0.0), Err(Error::Tag { .. })));
        assert_eq!(fs::read(writer.path()).unwrap(), before);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = EventWriter::create(file.join("logs")).unwrap_err();
        assert!(error.to_string().starts_with("cannot create "), "{error}");
    }
}
