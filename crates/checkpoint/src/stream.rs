//! Writing a checkpoint tensor by tensor, in any order, larger than memory, interruptible.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use xxhash_rust::xxh3::Xxh3Default;

use crate::{
    Checkpoint, CheckpointError, Dtype, FloatType, StreamOptions, TensorPlan,
    atomic::{sync_folder, write_atomic},
    error::{excerpt, nearest},
    journal::Journal,
    plan::{Layout, Shard, Slot, lay_out},
    write::write_values,
};

/// Writes safetensors files into a folder, one tensor at a time.
///
/// Names, shapes and types are planned first, since the header comes first in the file; the tensors then come
/// in any order, each once. Until [`finish`](Self::finish) the files have hidden temporary names; it syncs
/// and renames them and writes the index of a sharded checkpoint last, so that no reader mistakes a part for
/// the whole. If dropped before, the writer removes its files, unless [`StreamOptions::keep_partial`] asks to
/// keep them for [`resume`](Self::resume).
///
/// ```
/// use lowrank_checkpoint::{Checkpoint, Dtype, StreamOptions, StreamWriter, TensorPlan};
///
/// let folder = tempfile::tempdir()?;
/// let plan = vec![TensorPlan::new("a", [2], Dtype::F32), TensorPlan::new("b", [1, 2], Dtype::BF16)];
/// let mut writer = StreamWriter::create(folder.path(), plan, StreamOptions::default())?;
/// writer.write_f32("b", &[1.0, 2.0])?;
/// writer.write_f32("a", &[3.0, 4.0])?;
/// writer.finish()?;
/// assert_eq!(Checkpoint::open(folder.path())?.read_f32("b")?, [1.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct StreamWriter {
    folder: PathBuf,
    options: StreamOptions,
    layout: Layout,
    /// Open partial files, one for each shard.
    files: Vec<File>,
    journal: Journal,
    written: Vec<bool>,
    /// Whether dropping must keep the files.
    finished: bool,
}

impl StreamWriter {
    /// Starts again in an existing folder; partial files of an earlier attempt are overwritten.
    ///
    /// # Errors
    /// [`DestinationExists`](CheckpointError::DestinationExists) if the folder has a finished checkpoint of this stem;
    /// [`BadTensor`](CheckpointError::BadTensor) for a plan with a repeated name or a shape that overflows;
    /// [`InUse`](CheckpointError::InUse) if another process writes here; [`Io`](CheckpointError::Io).
    pub fn create(
        folder: impl AsRef<Path>,
        plan: Vec<TensorPlan>,
        options: StreamOptions,
    ) -> Result<Self, CheckpointError> {
        Self::start(folder.as_ref(), plan, options, false)
    }

    /// Resumes an interrupted or just finished attempt with the same plan and options; otherwise starts a
    /// new one. Tensors already written, as verified by their hash, are not
    /// [`missing`](Self::missing).
    ///
    /// Put everything that the tensors depend on (the source's hash, the settings) into the metadata: it is
    /// compared.
    ///
    /// # Errors
    /// As [`create`](Self::create), and [`CannotResume`](CheckpointError::CannotResume) if the earlier attempt had
    /// another plan, other shards or other metadata.
    pub fn resume(
        folder: impl AsRef<Path>,
        plan: Vec<TensorPlan>,
        options: StreamOptions,
    ) -> Result<Self, CheckpointError> {
        Self::start(folder.as_ref(), plan, options, true)
    }

    fn start(
        folder: &Path,
        plan: Vec<TensorPlan>,
        options: StreamOptions,
        resume: bool,
    ) -> Result<Self, CheckpointError> {
        let layout = lay_out(folder, plan, &options)?;
        let journal_path = folder.join(format!(".{}.journal", options.stem));
        let (interrupted, finished) = match (resume, journal_path.exists()) {
            (true, true) => (true, false),
            // Nothing to resume, unless the same job has been finished here.
            (true, false) => {
                (false, layout.shards.iter().all(|shard| is_whole(&folder.join(&shard.file_name), shard)))
            }
            (false, _) => (false, false),
        };
        if !interrupted && !finished {
            for name in [format!("{}.safetensors", options.stem), index_name(&options.stem)] {
                let path = folder.join(name);
                if path.exists() {
                    return Err(CheckpointError::DestinationExists { path });
                }
            }
        }
        let (journal, done) = if interrupted {
            Journal::resume(journal_path, &layout.fingerprint)?
        } else {
            (Journal::create(journal_path, &layout.fingerprint)?, Default::default())
        };
        let written = vec![false; layout.tensors.len()];
        let mut writer = Self {
            folder: folder.to_owned(),
            options,
            layout,
            files: Vec::new(),
            journal,
            written,
            finished: false,
        };
        for shard in &writer.layout.shards {
            writer.files.push(writer.open_partial(shard, interrupted || finished)?);
        }
        for (name, hash) in done {
            if let Some(&i) = writer.layout.by_name.get(&name) {
                writer.written[i] = writer.hash_of(writer.layout.slots[i])? == hash;
            }
        }
        if finished {
            for i in 0..writer.written.len() {
                let hash = writer.hash_of(writer.layout.slots[i])?;
                writer.journal.note(&writer.layout.tensors[i].name, hash)?;
                writer.written[i] = true;
            }
        }
        Ok(writer)
    }

    /// Opens the partial file of a shard, with its header in place and at its full length.
    fn open_partial(&self, shard: &Shard, resume: bool) -> Result<File, CheckpointError> {
        let partial = self.partial_path(shard);
        let place = self.folder.join(&shard.file_name);
        // Interrupted between renaming shards: undo the renaming.
        if resume && !partial.exists() && place.exists() {
            fs::rename(&place, &partial).map_err(|e| CheckpointError::io(&place, "rename", e))?;
        }
        let io = |action: &str, e| CheckpointError::io(&partial, action, e);
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(!resume)
            .open(&partial)
            .map_err(|e| io("create", e))?;
        let mut header = Vec::new();
        let limit = shard.header.len() as u64;
        (&mut file).take(limit).read_to_end(&mut header).map_err(|e| io("read", e))?;
        let length = file.metadata().map_err(|e| io("read", e))?.len();
        if header != shard.header || length != shard.file_size {
            let fill = |file: &mut File| {
                file.set_len(0)?;
                file.rewind()?;
                file.write_all(&shard.header)?;
                file.set_len(shard.file_size)
            };
            fill(&mut file).map_err(|e| io("write", e))?;
        }
        Ok(file)
    }

    fn partial_path(&self, shard: &Shard) -> PathBuf {
        self.folder.join(format!(".{}.partial", shard.file_name))
    }

    /// The planned tensors that are not written yet, in the plan's order.
    pub fn missing(&self) -> impl Iterator<Item = &str> {
        self.layout
            .tensors
            .iter()
            .zip(&self.written)
            .filter(|(_, written)| !**written)
            .map(|(t, _)| t.name.as_str())
    }

    /// Whether a tensor has been written, in this attempt or the resumed one.
    #[must_use]
    pub fn is_written(&self, name: &str) -> bool {
        self.layout.by_name.get(name).is_some_and(|&i| self.written[i])
    }

    /// The total bytes of all planned tensors.
    #[must_use]
    pub fn byte_size(&self) -> u64 {
        self.layout.total
    }

    /// Writes a tensor from row-major elements, converted to the planned type: F32, F16 or BF16.
    ///
    /// # Errors
    /// [`BadTensor`](CheckpointError::BadTensor) for a name that is not planned or already written, a wrong number of
    /// elements, another planned type; [`Overflow`](CheckpointError::Overflow) for a finite value that the type cannot
    /// hold; [`Io`](CheckpointError::Io). After an error the tensor is still missing.
    pub fn write_f32(&mut self, name: &str, values: &[f32]) -> Result<(), CheckpointError> {
        let i = self.pending(name)?;
        let plan = &self.layout.tensors[i];
        let float = match plan.dtype {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::BF16,
            other => return Err(self.fault(name, format!("is planned as {other}; write its bytes instead"))),
        };
        if self.layout.slots[i].len != (values.len() * plan.dtype.size()) as u64 {
            return Err(
                self.fault(name, format!("shape {:?} planned, {} elements given", plan.shape, values.len()))
            );
        }
        let path = self.shard_path(i);
        self.fill(i, |sink| write_values(&path, name, values, float, sink))
    }

    /// Writes a tensor from little-endian bytes in the planned type.
    ///
    /// # Errors
    /// As [`write_f32`](Self::write_f32).
    pub fn write_bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), CheckpointError> {
        let i = self.pending(name)?;
        if self.layout.slots[i].len != bytes.len() as u64 {
            let expected = self.layout.slots[i].len;
            return Err(self.fault(name, format!("{expected} bytes planned, {} given", bytes.len())));
        }
        let path = self.shard_path(i);
        self.fill(i, |sink| sink.write_all(bytes).map_err(|e| CheckpointError::io(&path, "write", e)))
    }

    /// Copies a tensor from a checkpoint, unchanged and without holding it in memory. Its type must be the
    /// planned one; its shape may differ if the number of elements is the same.
    ///
    /// # Errors
    /// As [`write_f32`](Self::write_f32), and [`MissingTensor`](CheckpointError::MissingTensor).
    pub fn copy(&mut self, name: &str, from: &Checkpoint, source_name: &str) -> Result<(), CheckpointError> {
        let i = self.pending(name)?;
        let planned = &self.layout.tensors[i];
        match from.info(source_name) {
            Some(info)
                if info.dtype == planned.dtype && info.byte_size() as u64 == self.layout.slots[i].len => {}
            Some(info) => {
                let reason = format!(
                    "{:?} {} planned, '{}' is {:?} {}",
                    planned.shape,
                    planned.dtype,
                    excerpt(source_name),
                    info.shape,
                    info.dtype
                );
                return Err(self.fault(name, reason));
            }
            // The read below reports it as missing, with the nearest name.
            None => {}
        }
        let path = self.shard_path(i);
        self.fill(i, |sink| {
            from.try_each_span(source_name, |span| {
                sink.write_all(span).map_err(|e| CheckpointError::io(&path, "write", e))
            })
        })
    }

    /// Syncs, renames and, for shards, writes the index. Returns the files, the index last.
    ///
    /// # Errors
    /// [`Unfinished`](CheckpointError::Unfinished) if a tensor is missing; [`Io`](CheckpointError::Io).
    pub fn finish(mut self) -> Result<Vec<PathBuf>, CheckpointError> {
        if let Some(first) = self.missing().next() {
            return Err(CheckpointError::Unfinished {
                path: self.folder.clone(),
                missing: self.missing().count(),
                first: excerpt(first),
            });
        }
        for (file, shard) in self.files.iter().zip(&self.layout.shards) {
            file.sync_all().map_err(|e| CheckpointError::io(&self.partial_path(shard), "sync", e))?;
        }
        let mut paths = Vec::new();
        for shard in &self.layout.shards {
            let (partial, place) = (self.partial_path(shard), self.folder.join(&shard.file_name));
            let action = format!("rename to {}", shard.file_name);
            fs::rename(&partial, &place).map_err(|e| CheckpointError::io(&partial, action, e))?;
            paths.push(place);
        }
        sync_folder(&self.folder)?;
        if self.layout.shards.len() > 1 {
            let path = self.folder.join(index_name(&self.options.stem));
            write_atomic(&path, self.layout.index())?;
            paths.push(path);
        }
        self.finished = true;
        fs::remove_file(self.journal.path())
            .map_err(|e| CheckpointError::io(self.journal.path(), "remove", e))?;
        Ok(paths)
    }

    /// The index of a planned tensor that is still to be written.
    fn pending(&self, name: &str) -> Result<usize, CheckpointError> {
        let Some(&i) = self.layout.by_name.get(name) else {
            let names = self.layout.tensors.iter().map(|t| t.name.as_str());
            let near = nearest(name, names).map(|near| format!("; nearest: '{}'", excerpt(near)));
            return Err(self.fault(name, format!("not planned{}", near.unwrap_or_default())));
        };
        if self.written[i] {
            return Err(self.fault(name, "written already".to_owned()));
        }
        Ok(i)
    }

    /// Lets `write` fill a tensor's slot, and records the hash of the written bytes.
    fn fill(
        &mut self,
        i: usize,
        write: impl FnOnce(&mut Hashing<'_>) -> Result<(), CheckpointError>,
    ) -> Result<(), CheckpointError> {
        let path = self.shard_path(i);
        let slot = self.layout.slots[i];
        let file = &mut self.files[slot.shard];
        file.seek(SeekFrom::Start(slot.start)).map_err(|e| CheckpointError::io(&path, "seek in", e))?;
        let mut sink = Hashing { file, hash: Xxh3Default::new() };
        write(&mut sink)?;
        let hash = hex(&sink.hash);
        self.journal.note(&self.layout.tensors[i].name, hash)?;
        self.written[i] = true;
        Ok(())
    }

    /// The hash of a slot of a partial file.
    fn hash_of(&self, slot: Slot) -> Result<String, CheckpointError> {
        let path = self.partial_path(&self.layout.shards[slot.shard]);
        let mut file = &self.files[slot.shard];
        let mut hash = Xxh3Default::new();
        let mut buffer = vec![0; 1 << 20];
        let mut read = || {
            file.seek(SeekFrom::Start(slot.start))?;
            let mut part = file.take(slot.len);
            loop {
                match part.read(&mut buffer)? {
                    0 => return Ok(hex(&hash)),
                    n => hash.update(&buffer[..n]),
                }
            }
        };
        read().map_err(|e: io::Error| CheckpointError::io(&path, "read", e))
    }

    fn shard_path(&self, i: usize) -> PathBuf {
        self.folder.join(&self.layout.shards[self.layout.slots[i].shard].file_name)
    }

    fn fault(&self, name: &str, reason: String) -> CheckpointError {
        CheckpointError::tensor(&self.folder, name, reason)
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        if self.finished || self.options.keep_partial {
            return;
        }
        // No error can be reported from here; files that cannot be removed stay hidden and are overwritten
        // next time.
        for shard in &self.layout.shards {
            let _removed = fs::remove_file(self.partial_path(shard));
        }
        let _removed = fs::remove_file(self.journal.path());
    }
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWriter")
            .field("folder", &self.folder)
            .field("tensors", &self.layout.tensors.len())
            .field("missing", &self.missing().count())
            .finish_non_exhaustive()
    }
}

/// Whether a finished file matches the plan, according to its header.
fn is_whole(path: &Path, shard: &Shard) -> bool {
    let matches = || {
        let file = lowrank_spec::open_file(path)?;
        let length = file.metadata()?.len();
        let mut header = Vec::new();
        file.take(shard.header.len() as u64).read_to_end(&mut header)?;
        io::Result::Ok(length == shard.file_size && header == shard.header)
    };
    matches().unwrap_or(false)
}

/// A file that hashes the bytes written to it.
struct Hashing<'a> {
    file: &'a mut File,
    hash: Xxh3Default,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn hex(hash: &Xxh3Default) -> String {
    format!("{:032x}", hash.digest128())
}

fn index_name(stem: &str) -> String {
    format!("{stem}.safetensors.index.json")
}
