//! Search for event files.

use std::{
    fs::{self, DirEntry},
    io,
    path::{Path, PathBuf},
};

use crate::{Error, Result, files::natural_order, tfevents::is_event_file};

/// The event files of a folder, by the numbers in their names: the time, followed by a writer's counter.
pub(super) type Files = Vec<PathBuf>;

/// A folder with event files.
#[derive(Debug)]
pub(super) struct Found {
    /// The names of the folders from the root down.
    pub(super) segments: Vec<String>,
    /// Its event files.
    pub(super) files: Files,
}

/// Entries that were skipped.
#[derive(Default)]
struct LeftOut {
    /// Files of any other kind.
    foreign: Vec<PathBuf>,
    /// Entries that cannot be read, and why.
    warnings: Vec<String>,
}

/// The folders with event files in `root` and below it, in no particular order; links are followed. Entries
/// that are not event files or cannot be read are left out with a warning, one for all files of other kinds.
pub(super) fn walk(root: &Path, warnings: &mut Vec<String>) -> Result<Vec<Found>> {
    let (mut found, mut passed) = (Vec::new(), LeftOut::default());
    let real = root.canonicalize().map_err(Error::io("read", root))?;
    fs::read_dir(root).map_err(Error::io("read", root))?;
    let mut open = vec![Folder { path: root.to_owned(), segments: Vec::new(), real: vec![real] }];
    while let Some(folder) = open.pop() {
        let files = folder.list(&mut open, &mut passed);
        if !files.is_empty() {
            found.push(Found { segments: folder.segments, files });
        }
    }
    warnings.append(&mut passed.warnings);
    warnings.extend(together(passed.foreign, "left out, not an event file", "left out, not event files"));
    Ok(found)
}

/// One warning about files with a common fault, which names the first of them.
pub(super) fn together(mut files: Vec<PathBuf>, one: &str, several: &str) -> Option<String> {
    files.sort();
    let (first, others) = files.split_first()?;
    Some(match others.len() {
        0 => format!("{}: {one}", first.display()),
        count => format!("{} and {count} more: {several}", first.display()),
    })
}

/// A folder of the tree that is yet to be visited.
struct Folder {
    path: PathBuf,
    /// The names from the root down.
    segments: Vec<String>,
    /// The real paths of it and of the folders above it: a link may lead elsewhere.
    real: Vec<PathBuf>,
}

impl Folder {
    /// Its event files; the folders in it are added to `open`.
    fn list(&self, open: &mut Vec<Self>, passed: &mut LeftOut) -> Files {
        let mut files = Vec::new();
        let unreadable =
            |path: &Path, error| format!("{}: left out, it cannot be read: {error}", path.display());
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) => {
                passed.warnings.push(unreadable(&self.path, error));
                return files;
            }
        };
        for entry in entries {
            match entry {
                Ok(entry) => self.sort_in(&entry, &mut files, open, passed).unwrap_or_else(|why| {
                    passed.warnings.push(format!("{}: left out, {why}", entry.path().display()));
                }),
                Err(error) => passed.warnings.push(unreadable(&self.path, error)),
            }
        }
        files.sort_by(|a, b| natural_order(a, b));
        files
    }

    /// Classifies an entry; the error is the reason for leaving it out.
    fn sort_in(
        &self,
        entry: &DirEntry,
        files: &mut Files,
        open: &mut Vec<Self>,
        passed: &mut LeftOut,
    ) -> Result<(), String> {
        let path = entry.path();
        let name = entry.file_name().into_string().map_err(|_| "its name is not UTF-8")?;
        let cannot = |error: io::Error| format!("it cannot be read: {error}");
        let what = fs::metadata(&path).map_err(cannot)?;
        if what.is_dir() {
            let is_link = entry.file_type().map_err(cannot)?.is_symlink();
            let parent = self.real.last().unwrap_or(&self.path);
            let real = if is_link { path.canonicalize().map_err(cannot)? } else { parent.join(&name) };
            if is_link && self.real.iter().any(|above| above.starts_with(&real)) {
                return Err("it leads back to a folder above it".to_owned());
            }
            let segments = [&self.segments[..], &[name]].concat();
            open.push(Self { path, segments, real: [&self.real[..], &[real]].concat() });
        } else if !is_event_file(&name) {
            passed.foreign.push(path);
        } else if !what.is_file() {
            return Err("it is not a regular file".to_owned());
        } else {
            files.push(path);
        }
        Ok(())
    }
}
