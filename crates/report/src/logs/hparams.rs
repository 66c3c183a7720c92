//! Hyper-parameters as columns, and runs of one folder that only they distinguish.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::ControlFlow,
    path::Path,
    thread,
};

use super::{
    HparamColumns, LogsOptions, TAKEN,
    tree::{ColumnType, Run, SUB_RUN, Value},
    walk::{Files, Found},
};
use crate::{
    Error, Result,
    tfevents::{Hparam, Logged, Session, read_events},
};

/// A hyper-parameter of a run.
pub(super) type Cell = Hparam;

type Hparams = BTreeMap<String, Hparam>;

/// A run of a folder.
#[derive(Debug, Default)]
struct Group {
    /// Contents of its sessions; absent if its files have none.
    session: Option<Session>,
    files: Files,
}

/// Splits the folders into runs: event files of a folder with different hyper-parameters belong to different
/// runs, unless both name one session group. Returns the names of the columns needed for this, and of the
/// requested ones.
///
/// A folder without hyper-parameters inherits those of the nearest folder above it that has some.
pub(super) fn tell_apart(
    found: Vec<Found>,
    options: &LogsOptions,
    warnings: &mut Vec<String>,
) -> Result<(Vec<String>, Vec<Run>)> {
    let wanted = options.hparams != HparamColumns::None;
    let mut sessions = read(&found, options, |folder| wanted || folder.files.len() > 1, wanted);
    let mut folders: Vec<Vec<Group>> =
        found.iter().zip(&sessions).map(|(folder, sessions)| groups(&folder.files, sessions)).collect();
    let telling: BTreeSet<String> = folders.iter().flat_map(|groups| differing(groups)).collect();
    if !wanted && !telling.is_empty() {
        // The columns need a value from every other run too.
        sessions = read(&found, options, |_| true, false);
        folders =
            found.iter().zip(&sessions).map(|(folder, sessions)| groups(&folder.files, sessions)).collect();
    }
    let known: BTreeSet<&String> = folders
        .iter()
        .flatten()
        .filter_map(|group| group.session.as_ref())
        .flat_map(|s| s.hparams.keys())
        .collect();
    let names: Vec<String> = match &options.hparams {
        HparamColumns::None => telling.iter().cloned().collect(),
        HparamColumns::All => known.iter().map(|name| (*name).clone()).collect(),
        HparamColumns::Named(names) => {
            if let Some(name) = names.iter().find(|name| !known.contains(name)) {
                let some: Vec<&str> = known.iter().take(20).map(|name| name.as_str()).collect();
                let have = if some.is_empty() { "no run has any".to_owned() } else { some.join(", ") };
                return Err(Error::Logs(format!("no run has the hyper-parameter {name:?}; known: {have}")));
            }
            let others = telling.iter().filter(|name| !names.contains(name));
            names.iter().chain(others).cloned().collect()
        }
    };
    for (folder, groups) in found.iter().zip(&folders).filter(|(_, groups)| groups.len() > 1) {
        let columns: Vec<String> = differing(groups).into_iter().collect();
        let path = folder.files[0].parent().unwrap_or(Path::new("")).display();
        warnings.push(match columns.as_slice() {
            [] => format!(
                "{path}: some of its event files do not say which of its runs they belong to; kept apart"
            ),
            _ => format!("{path}: {} runs that differ in {}; kept apart", groups.len(), columns.join(", ")),
        });
    }
    let above = inherited(&found, &folders);
    let mut runs = Vec::new();
    for (index, (folder, groups)) in found.iter().zip(folders).enumerate() {
        for group in groups {
            let own = group.session.map(|session| session.hparams);
            let hparams = own.as_ref().or(above[index].as_ref());
            let cells = names.iter().map(|name| hparams.and_then(|hparams| hparams.get(name)).cloned());
            runs.push(Run {
                segments: folder.segments.clone(),
                hparams: cells.collect(),
                files: group.files,
            });
        }
    }
    let column = |name: String| {
        let taken = options.names.contains(&name) || TAKEN.contains(&name.as_str()) || name == SUB_RUN;
        if taken { format!("hparams/{name}") } else { name }
    };
    Ok((names.into_iter().map(column).collect(), runs))
}

/// The session of each event file in the folders that `look` selects: the first in the file, or with `whole`
/// unset the first before its scalars.
fn read(
    found: &[Found],
    options: &LogsOptions,
    look: impl Fn(&Found) -> bool + Sync,
    whole: bool,
) -> Vec<Vec<Option<Session>>> {
    let read = |folder: &Found| -> Vec<Option<Session>> {
        let look = look(folder);
        folder.files.iter().map(|file| if look { session(file, whole) } else { None }).collect()
    };
    let each = found.len().div_ceil(options.threads()).max(1);
    thread::scope(|scope| {
        let parts: Vec<_> = found
            .chunks(each)
            .map(|part| scope.spawn(|| part.iter().map(&read).collect::<Vec<_>>()))
            .collect();
        // A reader does not panic; without its result each folder holds one run.
        let joined = parts.into_iter().zip(found.chunks(each)).map(|(thread, part)| {
            thread
                .join()
                .unwrap_or_else(|_| part.iter().map(|folder| vec![None; folder.files.len()]).collect())
        });
        joined.flatten().collect()
    })
}

fn session(file: &Path, whole: bool) -> Option<Session> {
    let mut found = None;
    // A file that cannot be read is reported when its values are.
    let _ = read_events(file, |logged| match logged {
        Logged::Session(session) => {
            found = Some(session);
            ControlFlow::Break(())
        }
        Logged::Scalar(scalar) if scalar.value.is_some() && !whole => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    found
}

/// The runs of a folder. Files without a session belong to its only run that has one, or else form a run by
/// themselves.
fn groups(files: &Files, sessions: &[Option<Session>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut silent = Files::new();
    for (file, session) in files.iter().zip(sessions) {
        let Some(session) = session else {
            silent.push(file.clone());
            continue;
        };
        let is_same = |group: &&mut Group| {
            group.session.as_ref().is_some_and(|known| {
                let one_group = !session.group.is_empty() && session.group == known.group;
                one_group || session.hparams == known.hparams
            })
        };
        match groups.iter_mut().find(is_same) {
            Some(group) => {
                group.files.push(file.clone());
                // A run resumed with other settings has the last ones.
                group.session = Some(session.clone());
            }
            None => groups.push(Group { session: Some(session.clone()), files: vec![file.clone()] }),
        }
    }
    if groups.len() < 2 {
        let session = groups.pop().and_then(|group| group.session);
        return vec![Group { session, files: files.clone() }];
    }
    if !silent.is_empty() {
        groups.push(Group { session: None, files: silent });
    }
    groups
}

/// The hyper-parameters in which the runs of a folder differ.
fn differing(groups: &[Group]) -> BTreeSet<String> {
    let known: Vec<&Hparams> =
        groups.iter().filter_map(|group| group.session.as_ref()).map(|session| &session.hparams).collect();
    let names: BTreeSet<&String> = known.iter().flat_map(|hparams| hparams.keys()).collect();
    let differs = |name: &&String| known.iter().any(|hparams| hparams.get(*name) != known[0].get(*name));
    names.into_iter().filter(differs).cloned().collect()
}

/// For each folder the hyper-parameters of the nearest folder above it that holds one run with some.
fn inherited(found: &[Found], folders: &[Vec<Group>]) -> Vec<Option<Hparams>> {
    let mut known: HashMap<&[String], &Hparams> = HashMap::new();
    for (folder, groups) in found.iter().zip(folders) {
        if let [Group { session: Some(session), .. }] = groups.as_slice() {
            known.insert(&folder.segments, &session.hparams);
        }
    }
    let above = |folder: &Found| {
        let segments = &folder.segments;
        (0..segments.len())
            .rev()
            .find_map(|depth| known.get(&segments[..depth]).map(|hparams| (*hparams).clone()))
    };
    found.iter().map(above).collect()
}

/// The largest integer below which every integer is a double.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// The kind of all values of a hyper-parameter.
pub(super) fn kind<'a>(cells: impl Iterator<Item = &'a Cell> + Clone) -> ColumnType {
    let number = |cell: &Cell| if let Hparam::Number(number) = cell { Some(*number) } else { None };
    let is_integer = |number: f64| number.fract() == 0.0 && number.abs() <= EXACT;
    if cells.clone().all(|cell| number(cell).is_some_and(is_integer)) {
        ColumnType::Integer
    } else if cells.clone().all(|cell| number(cell).is_some()) {
        ColumnType::Float
    } else {
        ColumnType::Text
    }
}

impl Hparam {
    /// The value in a column of type `kind`.
    pub(super) fn value(self, kind: ColumnType) -> Value {
        match (self, kind) {
            (Self::Number(number), ColumnType::Integer) => Value::Integer(number as i64),
            (Self::Number(number), ColumnType::Float) => Value::Float(number),
            (Self::Number(number), ColumnType::Text) => Value::Text(number.to_string()),
            (Self::Bool(truth), _) => Value::Text(truth.to_string()),
            (Self::Text(text), _) => Value::Text(text),
        }
    }
}
