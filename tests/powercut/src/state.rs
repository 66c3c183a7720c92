//! What is on the disk, now and for good.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{OsStr, OsString},
    fmt,
    sync::Arc,
    time::SystemTime,
};

use fuser::Errno;

/// Number of the root.
pub(crate) const ROOT: u64 = 1;

/// A file's bytes or a folder's names.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    File(Arc<Vec<u8>>),
    Folder(Arc<BTreeMap<OsString, u64>>),
}

impl Node {
    pub(crate) fn file() -> Self {
        Self::File(Arc::default())
    }

    pub(crate) fn folder() -> Self {
        Self::Folder(Arc::default())
    }
}

/// Nodes by their numbers. A node stays when its last name goes: it may be open, or have a durable name.
type Nodes = BTreeMap<u64, Node>;

/// What a power cut loses of the changes that were not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of them.
    All,
    /// Bytes, not names: files that were never synced are empty.
    Bytes,
    /// Names, not bytes: what was created or renamed is where it was.
    Names,
    /// Of each file and each folder everything or nothing, as drawn from a seed.
    Some(u64),
    /// Nothing is lost, as by a kill.
    None,
}

impl Loss {
    const EACH: [Self; 6] = [Self::All, Self::Bytes, Self::Names, Self::None, Self::Some(1), Self::Some(2)];
}

/// The state at one moment, present and durable.
#[derive(Clone, Debug)]
struct Moment {
    now: Nodes,
    durable: Nodes,
}

/// Files with their bytes, and folders, by their paths from the root: `/a/b`.
pub type Tree = BTreeMap<String, Option<Arc<Vec<u8>>>>;

/// What a power cut leaves.
#[derive(Clone)]
pub struct Cut {
    /// How many changes of names and syncs came before.
    pub after: usize,
    /// What was lost.
    pub loss: Loss,
    /// Files and folders.
    pub tree: Tree,
}

impl fmt::Debug for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "a cut after {} changes that loses {:?} leaves", self.after, self.loss)?;
        for (path, bytes) in &self.tree {
            match bytes {
                Some(bytes) => writeln!(f, "  {path} ({} bytes)", bytes.len())?,
                None => writeln!(f, "  {path}/")?,
            }
        }
        Ok(())
    }
}

/// The disk.
#[derive(Debug)]
pub(crate) struct State {
    now: Nodes,
    durable: Nodes,
    /// Modes and times, which are not a matter of durability here.
    pub(crate) modes: HashMap<u64, u16>,
    pub(crate) times: HashMap<u64, SystemTime>,
    moments: Vec<Moment>,
    next: u64,
}

impl Default for State {
    fn default() -> Self {
        let nodes = Nodes::from([(ROOT, Node::folder())]);
        Self {
            now: nodes.clone(),
            durable: nodes,
            modes: HashMap::from([(ROOT, 0o755)]),
            times: HashMap::new(),
            moments: Vec::new(),
            next: ROOT + 1,
        }
    }
}

/// The result of an operation.
pub(crate) type Result<T> = std::result::Result<T, Errno>;

impl State {
    pub(crate) fn settle(&mut self) {
        self.durable = self.now.clone();
        self.moments.clear();
    }

    /// The cuts at every moment so far and now, one of each state.
    pub(crate) fn cuts(&self) -> Vec<Cut> {
        let present = self.present();
        let (mut seen, mut cuts) = (HashSet::new(), Vec::new());
        for (after, moment) in self.moments.iter().chain([&present]).enumerate() {
            for loss in Loss::EACH {
                let tree = moment.tree(loss);
                if seen.insert(tree.clone()) {
                    cuts.push(Cut { after, loss, tree });
                }
            }
        }
        cuts
    }

    /// What a cut now would leave.
    pub(crate) fn cut(&self, loss: Loss) -> Cut {
        Cut { after: self.moments.len(), loss, tree: self.present().tree(loss) }
    }

    fn present(&self) -> Moment {
        Moment { now: self.now.clone(), durable: self.durable.clone() }
    }

    /// Records the moment before a change.
    fn record(&mut self) {
        self.moments.push(self.present());
    }

    /// Replaces everything by a tree.
    ///
    /// # Errors
    /// For a tree without the parent of a path.
    pub(crate) fn restore(&mut self, tree: &Tree) -> Result<()> {
        self.now = Nodes::from([(ROOT, Node::folder())]);
        // Parents come before their children. Numbers go on: the kernel may hold pages under the old ones.
        for (path, bytes) in tree {
            let (parent, name) = path.rsplit_once('/').ok_or(Errno::EINVAL)?;
            let mut folder = ROOT;
            for name in parent.split('/').skip(1) {
                folder = self.child(folder, OsStr::new(name))?;
            }
            match bytes {
                Some(bytes) => self.create(folder, OsStr::new(name), Node::File(Arc::clone(bytes)), 0o644)?,
                None => self.create(folder, OsStr::new(name), Node::folder(), 0o755)?,
            };
        }
        self.settle();
        Ok(())
    }

    pub(crate) fn node(&self, number: u64) -> Result<&Node> {
        self.now.get(&number).ok_or(Errno::ENOENT)
    }

    pub(crate) fn bytes(&self, number: u64) -> Result<&Arc<Vec<u8>>> {
        match self.node(number)? {
            Node::File(bytes) => Ok(bytes),
            Node::Folder(_) => Err(Errno::EISDIR),
        }
    }

    /// The bytes of a file, to be changed.
    pub(crate) fn bytes_mut(&mut self, number: u64) -> Result<&mut Vec<u8>> {
        self.times.insert(number, SystemTime::now());
        match self.now.get_mut(&number).ok_or(Errno::ENOENT)? {
            Node::File(bytes) => Ok(Arc::make_mut(bytes)),
            Node::Folder(_) => Err(Errno::EISDIR),
        }
    }

    pub(crate) fn names(&self, number: u64) -> Result<&Arc<BTreeMap<OsString, u64>>> {
        match self.node(number)? {
            Node::Folder(names) => Ok(names),
            Node::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn names_mut(&mut self, number: u64) -> Result<&mut BTreeMap<OsString, u64>> {
        self.times.insert(number, SystemTime::now());
        match self.now.get_mut(&number).ok_or(Errno::ENOENT)? {
            Node::Folder(names) => Ok(Arc::make_mut(names)),
            Node::File(_) => Err(Errno::ENOTDIR),
        }
    }

    pub(crate) fn child(&self, parent: u64, name: &OsStr) -> Result<u64> {
        self.names(parent)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// How many names a node has.
    pub(crate) fn links(&self, number: u64) -> u32 {
        let of = |node: &Node| match node {
            Node::Folder(names) => names.values().filter(|child| **child == number).count() as u32,
            Node::File(_) => 0,
        };
        self.now.values().map(of).sum()
    }

    pub(crate) fn create(&mut self, parent: u64, name: &OsStr, node: Node, mode: u16) -> Result<u64> {
        if self.names(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.record();
        self.next += 1;
        let number = self.next;
        let empty = match node {
            Node::File(_) => Node::file(),
            Node::Folder(_) => Node::folder(),
        };
        self.durable.insert(number, empty);
        self.now.insert(number, node);
        self.modes.insert(number, mode);
        self.names_mut(parent)?.insert(name.to_owned(), number);
        Ok(number)
    }

    pub(crate) fn link(&mut self, number: u64, parent: u64, name: &OsStr) -> Result<()> {
        if self.names(parent)?.contains_key(name) {
            return Err(Errno::EEXIST);
        }
        self.record();
        self.names_mut(parent)?.insert(name.to_owned(), number);
        Ok(())
    }

    /// Removes the name of a file, or of an empty folder.
    pub(crate) fn remove(&mut self, parent: u64, name: &OsStr, is_folder: bool) -> Result<()> {
        match (self.node(self.child(parent, name)?)?, is_folder) {
            (Node::Folder(_), false) => return Err(Errno::EISDIR),
            (Node::File(_), true) => return Err(Errno::ENOTDIR),
            (Node::Folder(names), true) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
            _ => {}
        }
        self.record();
        self.names_mut(parent)?.remove(name);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: (u64, &OsStr), to: (u64, &OsStr), kind: Rename) -> Result<()> {
        let moved = self.child(from.0, from.1)?;
        let target = self.names(to.0)?.get(to.1).copied();
        match (target, kind) {
            (Some(_), Rename::Free) => return Err(Errno::EEXIST),
            (None, Rename::Exchange) => return Err(Errno::ENOENT),
            (Some(target), Rename::Replace) if target != moved => {
                match (self.node(moved)?, self.node(target)?) {
                    (Node::Folder(_), Node::File(_)) => return Err(Errno::ENOTDIR),
                    (Node::File(_), Node::Folder(_)) => return Err(Errno::EISDIR),
                    (_, Node::Folder(names)) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
                    _ => {}
                }
            }
            _ => {}
        }
        self.record();
        self.names_mut(from.0)?.remove(from.1);
        self.names_mut(to.0)?.insert(to.1.to_owned(), moved);
        if let (Some(target), Rename::Exchange) = (target, kind) {
            self.names_mut(from.0)?.insert(from.1.to_owned(), target);
        }
        Ok(())
    }

    pub(crate) fn sync(&mut self, number: u64) -> Result<()> {
        self.record();
        let node = self.node(number)?.clone();
        self.durable.insert(number, node);
        Ok(())
    }
}

/// What a rename does with a name that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rename {
    Replace,
    Free,
    Exchange,
}

impl Moment {
    fn tree(&self, loss: Loss) -> Tree {
        let mut tree = Tree::new();
        let mut open = vec![(ROOT, String::new())];
        while let Some((number, path)) = open.pop() {
            let Some(Node::Folder(names)) = self.of(number, loss) else { continue };
            for (name, &child) in names.iter() {
                let path = format!("{path}/{}", name.to_string_lossy());
                match self.of(child, loss) {
                    Some(Node::File(bytes)) => {
                        tree.insert(path, Some(bytes));
                    }
                    // A folder has one name, but lost renames can leave it two.
                    Some(Node::Folder(_)) if path.len() < 4096 => {
                        tree.insert(path.clone(), None);
                        open.push((child, path));
                    }
                    _ => {}
                }
            }
        }
        tree
    }

    /// A node after the cut.
    fn of(&self, number: u64, loss: Loss) -> Option<Node> {
        let (now, durable) = (self.now.get(&number), self.durable.get(&number));
        let is_folder = matches!(now.or(durable), Some(Node::Folder(_)));
        let is_kept = match loss {
            Loss::All => false,
            Loss::Bytes => is_folder,
            Loss::Names => !is_folder,
            Loss::Some(seed) => mixed(seed ^ number) & 1 == 0,
            Loss::None => true,
        };
        if is_kept { now.or(durable).cloned() } else { durable.cloned() }
    }
}

/// The bits of a number, mixed (the finalizer of SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may end on the first surprise")]
mod tests {
    use super::*;

    fn name(name: &str) -> &OsStr {
        OsStr::new(name)
    }

    fn paths(state: &State, loss: Loss) -> Vec<(String, usize)> {
        let size = |bytes: Option<Arc<Vec<u8>>>| bytes.map_or(0, |bytes| bytes.len());
        state.cut(loss).tree.into_iter().map(|(path, bytes)| (path, size(bytes))).collect()
    }

    fn of(expected: &[(&str, usize)]) -> Vec<(String, usize)> {
        expected.iter().map(|&(path, size)| (path.to_owned(), size)).collect()
    }

    #[test]
    fn bytes_are_durable_when_the_file_is_synced_and_names_when_the_folder_is() {
        let mut state = State::default();
        let file = state.create(ROOT, name("a"), Node::file(), 0o644).unwrap();
        state.bytes_mut(file).unwrap().extend(b"abc");
        assert_eq!(paths(&state, Loss::All), []);
        assert_eq!(paths(&state, Loss::Bytes), of(&[("/a", 0)]));
        state.sync(file).unwrap();
        assert_eq!(paths(&state, Loss::All), []);
        assert_eq!(paths(&state, Loss::Bytes), of(&[("/a", 3)]));
        state.sync(ROOT).unwrap();
        state.bytes_mut(file).unwrap().extend(b"def");
        assert_eq!(paths(&state, Loss::All), of(&[("/a", 3)]));
        assert_eq!(paths(&state, Loss::Names), of(&[("/a", 6)]));
        state.rename((ROOT, name("a")), (ROOT, name("b")), Rename::Replace).unwrap();
        assert_eq!(paths(&state, Loss::All), of(&[("/a", 3)]));
        assert_eq!(paths(&state, Loss::Bytes), of(&[("/b", 3)]));
        assert_eq!(paths(&state, Loss::None), of(&[("/b", 6)]));
        let mut cuts: Vec<String> =
            state.cuts().iter().map(|cut| format!("{:?}", cut.tree.keys().collect::<Vec<_>>())).collect();
        cuts.dedup();
        assert_eq!(cuts, ["[]", "[\"/a\"]", "[\"/b\"]"]);
        assert_eq!(state.cuts().len(), 6, "none, /a of 0, 3 and 6 bytes, /b of 3 and 6");
    }

    #[test]
    fn a_removed_name_comes_back_until_its_folder_is_synced() {
        let mut state = State::default();
        let folder = state.create(ROOT, name("d"), Node::folder(), 0o755).unwrap();
        let file = state.create(folder, name("f"), Node::file(), 0o644).unwrap();
        for number in [file, folder, ROOT] {
            state.sync(number).unwrap();
        }
        assert!(state.remove(ROOT, name("d"), true).is_err(), "it is not empty");
        state.remove(folder, name("f"), false).unwrap();
        state.remove(ROOT, name("d"), true).unwrap();
        assert_eq!(paths(&state, Loss::All), of(&[("/d", 0), ("/d/f", 0)]));
        assert_eq!(paths(&state, Loss::None), []);
        state.sync(folder).unwrap();
        assert_eq!(paths(&state, Loss::All), of(&[("/d", 0)]));
        state.sync(ROOT).unwrap();
        assert_eq!(paths(&state, Loss::All), []);
    }

    #[test]
    fn what_a_cut_leaves_is_restored_and_durable() {
        let mut state = State::default();
        let folder = state.create(ROOT, name("d"), Node::folder(), 0o755).unwrap();
        let file = state.create(folder, name("f"), Node::file(), 0o644).unwrap();
        state.bytes_mut(file).unwrap().extend(b"abc");
        let cut = state.cut(Loss::None);
        state.remove(folder, name("f"), false).unwrap();
        state.restore(&cut.tree).unwrap();
        assert_eq!(paths(&state, Loss::All), of(&[("/d", 0), ("/d/f", 3)]));
        assert_eq!(state.cuts().len(), 1);
    }

    #[test]
    fn names_are_exchanged() {
        let mut state = State::default();
        let [a, b] = ["a", "b"].map(|file| state.create(ROOT, name(file), Node::file(), 0o644).unwrap());
        assert!(state.rename((ROOT, name("a")), (ROOT, name("b")), Rename::Free).is_err());
        state.rename((ROOT, name("a")), (ROOT, name("b")), Rename::Exchange).unwrap();
        assert_eq!((state.child(ROOT, name("a")).unwrap(), state.child(ROOT, name("b")).unwrap()), (b, a));
    }
}
