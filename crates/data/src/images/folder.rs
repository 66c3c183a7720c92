//! Folders of pictures: one folder for each class.

use std::path::{Path, PathBuf};

use burn_dataset::Dataset;

use crate::error::{DataError, Result};

/// Extensions of files that are read as pictures.
const READ: [&str; 3] = ["png", "jpg", "jpeg"];

/// Extensions of pictures that are not read.
const NOT_READ: [&str; 16] = [
    "webp", "bmp", "gif", "tif", "tiff", "avif", "heic", "heif", "jp2", "jxl", "ico", "ppm", "pgm", "pbm",
    "tga", "jfif",
];

/// Depth of folders below a class.
const MAX_DEPTH: usize = 16;

/// A file of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageItem {
    /// The file.
    pub path: PathBuf,
    /// Index of its class.
    pub class: u32,
}

/// A folder with a folder of pictures for each class, as a `burn_dataset::Dataset` of files.
///
/// Classes are numbered in the order of their names, and files sorted by their paths. Files below the folder of a class
/// belong to it at any depth; those whose names begin with a dot, and those that are not pictures, are left out.
#[derive(Clone, Debug, Default)]
pub struct ImageFolder {
    path: PathBuf,
    classes: Vec<String>,
    items: Vec<ImageItem>,
    others: Vec<PathBuf>,
}

impl Dataset<ImageItem> for ImageFolder {
    fn get(&self, index: usize) -> Option<ImageItem> {
        self.items.get(index).cloned()
    }

    fn len(&self) -> usize {
        self.items.len()
    }
}

impl ImageFolder {
    /// Lists a folder to train on.
    ///
    /// # Errors
    /// A folder that cannot be listed, that has no folders of classes or only one, a class without pictures, a picture in a
    /// format that is not read.
    pub fn read(path: &Path) -> Result<Self> {
        let folder = Self::list(path)?;
        if let [one] = &folder.classes[..] {
            return Err(fault(
                path,
                format!("has one class, '{one}'; expected a folder for each of two or more"),
            ));
        }
        let has = |class: usize| folder.items.iter().any(|item| item.class as usize == class);
        match (0..folder.classes.len()).find(|&class| !has(class)) {
            Some(class) => Err(fault(
                &path.join(&folder.classes[class]),
                "holds no PNG or JPEG files; remove it or put pictures of the class into it".into(),
            )),
            None => Ok(folder),
        }
    }

    /// Lists a folder whose classes are among `classes`, which number them: `place` gives the place of a name.
    ///
    /// # Errors
    /// As [`read`](Self::read), and a class that is not among them; some of them may be missing.
    pub fn read_known(
        path: &Path,
        classes: &[String],
        place: impl Fn(&str) -> Option<usize>,
    ) -> Result<Self> {
        let mut folder = Self::list(path)?;
        let places: Vec<u32> = folder
            .classes
            .iter()
            .map(|name| {
                place(name).map(|place| place as u32).ok_or_else(|| {
                    let shown: Vec<&str> = classes.iter().take(12).map(String::as_str).collect();
                    let more = if classes.len() > shown.len() { ", …" } else { "" };
                    fault(
                        &path.join(name),
                        format!(
                            "is not a class of the training data or the model; expected one of {}{more}",
                            shown.join(", ")
                        ),
                    )
                })
            })
            .collect::<Result<_>>()?;
        folder.items.iter_mut().for_each(|item| item.class = places[item.class as usize]);
        folder.classes = classes.to_vec();
        if folder.items.is_empty() {
            return Err(fault(
                path,
                "holds no PNG or JPEG files; put pictures into the folders of the classes".into(),
            ));
        }
        Ok(folder)
    }

    /// Names of the folders of classes in a folder.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn class_names(path: &Path) -> Result<Vec<String>> {
        Ok(Self::list(path)?.classes)
    }

    fn list(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            let what = if path.exists() { "is a file" } else { "does not exist" };
            return Err(fault(
                path,
                format!("{what}; expected a folder with a folder of pictures for each class"),
            ));
        }
        let mut folder = Self { path: path.to_path_buf(), ..Self::default() };
        let entries = entries(path)?;
        for class in entries.iter().filter(|entry| entry.is_dir()) {
            let Some(name) = class.file_name().and_then(|name| name.to_str()) else {
                return Err(fault(class, "has a name that is not UTF-8; rename the class".into()));
            };
            let index = folder.classes.len() as u32;
            folder.classes.push(name.to_owned());
            folder.add(class, index, 0)?;
        }
        if folder.classes.is_empty() {
            let loose = entries.iter().filter(|entry| is_of(entry, &READ)).count();
            let found = if loose > 0 { " (pictures are directly in it)" } else { "" };
            return Err(fault(
                path,
                format!("has no folders of classes{found}; put the pictures of each class into one"),
            ));
        }
        folder.others.extend(entries.into_iter().filter(|entry| entry.is_file()));
        Ok(folder)
    }

    fn add(&mut self, folder: &Path, class: u32, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(fault(
                folder,
                format!("is more than {MAX_DEPTH} folders deep; do links lead back to it?"),
            ));
        }
        for path in entries(folder)? {
            if path.is_dir() {
                self.add(&path, class, depth + 1)?;
            } else if is_of(&path, &READ) {
                self.items.push(ImageItem { path, class });
            } else if is_of(&path, &NOT_READ) {
                return Err(fault(
                    &path,
                    "is a picture in a format that is not read; convert it to PNG or JPEG".into(),
                ));
            } else {
                self.others.push(path);
            }
        }
        Ok(())
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The files.
    pub fn items(&self) -> &[ImageItem] {
        &self.items
    }

    /// Files that are not pictures, which are left out.
    pub fn others(&self) -> &[PathBuf] {
        &self.others
    }
}

/// The folders to train on and to evaluate on below a folder: `train`, and `validation`, `val`, `dev` or `test`, the first that
/// exists.
///
/// # Errors
/// One of them is missing.
pub fn find_splits(root: &Path) -> Result<[PathBuf; 2]> {
    let find = |names: &[&str]| {
        let found = names.iter().map(|name| root.join(name)).find(|path| path.is_dir());
        found.ok_or_else(|| {
            let names = names.join(", ");
            fault(root, format!("has no folder {names}; expected train and validation (or val, dev, test)"))
        })
    };
    Ok([find(&["train"])?, find(&["validation", "val", "dev", "test"])?])
}

/// The pictures in a folder and the folders below it.
///
/// # Errors
/// A folder that cannot be listed or holds no pictures, a picture in a format that is not read.
pub fn find_images(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Err(fault(path, "is not a folder; expected a folder of pictures".into()));
    }
    let mut folder = ImageFolder::default();
    folder.add(path, 0, 0)?;
    if folder.items.is_empty() {
        return Err(fault(path, "holds no PNG or JPEG files; put pictures into it".into()));
    }
    Ok(folder.items.into_iter().map(|item| item.path).collect())
}

/// What is in a folder, sorted, without hidden names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = std::fs::read_dir(folder).map_err(DataError::io("list", folder))?;
    let mut paths = Vec::new();
    for entry in read {
        let entry = entry.map_err(DataError::io("list", folder))?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

fn is_of(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    extensions.iter().any(|known| extension.eq_ignore_ascii_case(known))
}

fn fault(path: &Path, message: String) -> DataError {
    DataError::Image { path: path.to_path_buf(), message }
}
