//! Pictures: the task `images`, the preparation of a model's pictures, folders of them.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use clap::error::ErrorKind;
use lowrank_data::glue::{Label, Task};
use lowrank_data::images::{ImageFolder, ImageProcessor, ImageSet, PatchSize, find_splits};
use lowrank_data::pack::EncodedDataset;
use lowrank_models::{ClassifierConfig, ModelFolder};

/// `--task`: a task of GLUE, or the classes of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TaskName {
    /// One of GLUE.
    Glue(Task),
    /// Folders of pictures.
    Images,
}

impl TaskName {
    /// The task of GLUE.
    pub(crate) fn glue(self) -> Option<Task> {
        match self {
            Self::Glue(task) => Some(task),
            Self::Images => None,
        }
    }
}

impl FromStr for TaskName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        if name.eq_ignore_ascii_case("images") {
            return Ok(Self::Images);
        }
        name.parse().map(Self::Glue).map_err(|error: lowrank_data::DataError| format!("{error}, images"))
    }
}

/// Ends the program with an error of its usage, as clap does.
fn misuse(kind: ErrorKind, message: &str) -> ! {
    clap::Error::raw(kind, format!("{message}\n")).exit()
}

/// Checks that a task of GLUE comes with its root and without rows, as clap cannot by the value of an option.
pub(crate) fn check_task(task: Option<TaskName>, data: Option<&Path>, rows: Option<&Path>, option: &str) {
    match (task, data, rows) {
        (Some(TaskName::Glue(_)), None, None) => misuse(
            ErrorKind::MissingRequiredArgument,
            "the following required arguments were not provided:\n  --data <DATA>",
        ),
        (Some(TaskName::Glue(_)), _, Some(_)) => misuse(
            ErrorKind::ArgumentConflict,
            &format!("the argument '--task <TASK>' cannot be used with '{option}'"),
        ),
        (Some(TaskName::Images), None, None) => misuse(
            ErrorKind::MissingRequiredArgument,
            &format!("--task images needs folders of pictures: give '{option}', or --data <DATA>"),
        ),
        (Some(TaskName::Images), Some(_), Some(_)) => misuse(
            ErrorKind::ArgumentConflict,
            &format!("the argument '--data <DATA>' cannot be used with '{option}'"),
        ),
        _ => {}
    }
}

/// Refuses a task of pictures on a model of texts, and the reverse.
pub(crate) fn check_kind(folder: &ModelFolder, task: Option<TaskName>) -> Result<()> {
    let (path, is_images) = (folder.path().display(), task == Some(TaskName::Images));
    ensure!(
        !is_images || folder.reads_pictures(),
        "{path}: is {}, which reads texts; --task images needs a model of pictures (vit)",
        folder.kind().describe()
    );
    ensure!(
        is_images || !folder.reads_pictures(),
        "{path}: reads pictures; give --task images with folders of pictures"
    );
    Ok(())
}

/// Refuses a model of pictures where texts are read.
pub(crate) fn refuse_pictures(folder: &ModelFolder, what: &str) -> Result<()> {
    ensure!(!folder.reads_pictures(), "{}: reads pictures; {what}", folder.path().display());
    Ok(())
}

/// The preparation of a model's pictures.
#[derive(Clone, Debug)]
pub(crate) struct Pictures {
    processor: ImageProcessor,
    size: PatchSize,
}

impl Pictures {
    /// That of a model's folder.
    pub(crate) fn open(folder: &Path, config: &ClassifierConfig) -> Result<Self> {
        let Some(options) = config.patches() else {
            bail!("{}: reads texts; give a model of pictures (vit)", folder.display());
        };
        ensure!(
            options.channels == 3,
            "{}: num_channels = {} is not supported; expected 3 (RGB)",
            folder.join("config.json").display(),
            options.channels
        );
        let size = PatchSize { picture: options.picture, patch: options.patch };
        Ok(Self { processor: ImageProcessor::from_folder(folder, size.picture)?, size })
    }

    /// Files, all of which are read.
    pub(crate) fn read(&self, files: Vec<PathBuf>, labels: Vec<Option<Label>>) -> Result<EncodedDataset> {
        Ok(EncodedDataset::of_images(ImageSet::read(files, self.processor.clone(), self.size)?, labels)?)
    }

    /// The pictures of a folder with their classes.
    pub(crate) fn read_folder(&self, folder: &ImageFolder) -> Result<Arc<EncodedDataset>> {
        if let Some(first) = folder.others().first() {
            eprintln!(
                "warning: {}: {} files are not pictures in the folder of a class and are left out, the first is {}",
                folder.path().display(),
                folder.others().len(),
                first.display()
            );
        }
        let items = folder.items().iter();
        let (files, labels) = items.map(|item| (item.path.clone(), Some(Label::Class(item.class)))).unzip();
        Ok(Arc::new(self.read(files, labels)?))
    }
}

/// The folder to evaluate on: the given one, or that below `root`.
pub(crate) fn dev_folder(root: Option<&Path>, dev: Option<&Path>) -> Result<PathBuf> {
    match (root, dev) {
        (_, Some(dev)) => Ok(dev.to_path_buf()),
        (Some(root), None) => Ok(find_splits(root)?[1].clone()),
        (None, None) => bail!("--task images needs --dev or --data"),
    }
}
