//! The kernel's requests.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::{
    lock,
    state::{Node, Rename, Result, State},
};

/// Names and attributes are never cached.
const TTL: Duration = Duration::ZERO;
const BLOCK: u32 = 4096;
/// Blocks of the disk, all of them free: 64 GiB.
const BLOCKS: u64 = 1 << 24;

/// The file system as FUSE sees it.
#[derive(Debug)]
pub(crate) struct Volatile {
    state: Arc<Mutex<State>>,
    /// The entries of open folders, as of their opening.
    listings: Mutex<HashMap<u64, Vec<Entry>>>,
    opened: AtomicU64,
}

/// A number, its kind, its name.
type Entry = (u64, FileType, OsString);

impl Volatile {
    pub(crate) fn new(state: Arc<Mutex<State>>) -> Self {
        Self { state, listings: Mutex::default(), opened: AtomicU64::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut State) -> Result<T>) -> Result<T> {
        act(&mut lock(&self.state))
    }

    /// Creates an empty file or folder with the bits of a mode that are not in the umask.
    fn make(
        &self,
        request: &Request,
        (parent, name): (INodeNo, &OsStr),
        node: Node,
        (bits, umask): (u32, u32),
    ) -> Result<FileAttr> {
        self.with(|state| {
            let number = state.create(parent.0, name, node, (bits & !umask & 0o7777) as u16)?;
            attributes(state, number, request)
        })
    }
}

fn attributes(state: &State, number: u64, request: &Request) -> Result<FileAttr> {
    let (kind, size, links) = match state.node(number)? {
        Node::File(bytes) => (FileType::RegularFile, bytes.len() as u64, state.links(number)),
        Node::Folder(_) => (FileType::Directory, u64::from(BLOCK), 2),
    };
    let time = state.times.get(&number).copied().unwrap_or(SystemTime::UNIX_EPOCH);
    Ok(FileAttr {
        ino: INodeNo(number),
        size,
        blocks: size.div_ceil(512),
        atime: time,
        mtime: time,
        ctime: time,
        crtime: time,
        kind,
        perm: state.modes.get(&number).copied().unwrap_or(0o644),
        nlink: links,
        uid: request.uid(),
        gid: request.gid(),
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    })
}

fn entry(reply: ReplyEntry, result: Result<FileAttr>) {
    match result {
        Ok(attributes) => reply.entry(&TTL, &attributes, Generation(0)),
        Err(error) => reply.error(error),
    }
}

fn empty(reply: ReplyEmpty, result: Result<()>) {
    match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(error),
    }
}

fn attr(reply: ReplyAttr, result: Result<FileAttr>) {
    match result {
        Ok(attributes) => reply.attr(&TTL, &attributes),
        Err(error) => reply.error(error),
    }
}

impl Filesystem for Volatile {
    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        entry(reply, self.with(|state| attributes(state, state.child(parent.0, name)?, request)));
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        attr(reply, self.with(|state| attributes(state, ino.0, request)));
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = |state: &mut State| {
            if let Some(mode) = mode {
                state.modes.insert(ino.0, (mode & 0o7777) as u16);
            }
            if let Some(size) = size {
                state.bytes_mut(ino.0)?.resize(size as usize, 0);
            }
            match mtime {
                Some(TimeOrNow::SpecificTime(time)) => state.times.insert(ino.0, time),
                Some(TimeOrNow::Now) => state.times.insert(ino.0, SystemTime::now()),
                None => None,
            };
            attributes(state, ino.0, request)
        };
        attr(reply, self.with(change));
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        bits: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        entry(reply, self.make(request, (parent, name), Node::folder(), (bits, umask)));
    }

    fn unlink(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.with(|state| state.remove(parent.0, name, false)));
    }

    fn rmdir(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        empty(reply, self.with(|state| state.remove(parent.0, name, true)));
    }

    fn rename(
        &self,
        _request: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let kind = match flags {
            RenameFlags::RENAME_NOREPLACE => Rename::Free,
            RenameFlags::RENAME_EXCHANGE => Rename::Exchange,
            flags if flags.is_empty() => Rename::Replace,
            _ => return reply.error(Errno::EINVAL),
        };
        empty(reply, self.with(|state| state.rename((parent.0, name), (newparent.0, newname), kind)));
    }

    fn link(&self, request: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let make = |state: &mut State| {
            state.link(ino.0, newparent.0, newname)?;
            attributes(state, ino.0, request)
        };
        entry(reply, self.with(make));
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.with(|state| state.bytes(ino.0).cloned()) {
            Ok(bytes) => {
                let from = bytes.len().min(offset as usize);
                let to = bytes.len().min(from + size as usize);
                reply.data(&bytes[from..to]);
            }
            Err(error) => reply.error(error),
        }
    }

    fn write(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let write = |state: &mut State| {
            let bytes = state.bytes_mut(ino.0)?;
            let (from, to) = (offset as usize, offset as usize + data.len());
            if bytes.len() < to {
                bytes.resize(to, 0);
            }
            bytes[from..to].copy_from_slice(data);
            Ok(())
        };
        match self.with(write) {
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error),
        }
    }

    fn flush(
        &self,
        _request: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        empty(reply, self.with(|state| state.sync(ino.0)));
    }

    fn fsyncdir(
        &self,
        _request: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        empty(reply, self.with(|state| state.sync(ino.0)));
    }

    fn opendir(&self, _request: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let list = |state: &mut State| {
            let mut entries: Vec<Entry> =
                [".", ".."].map(|dot| (ino.0, FileType::Directory, dot.into())).into();
            for (name, &number) in state.names(ino.0)?.iter() {
                let kind = match state.node(number)? {
                    Node::File(_) => FileType::RegularFile,
                    Node::Folder(_) => FileType::Directory,
                };
                entries.push((number, kind, name.clone()));
            }
            Ok(entries)
        };
        match self.with(list) {
            Ok(entries) => {
                let handle = self.opened.fetch_add(1, Ordering::Relaxed);
                lock(&self.listings).insert(handle, entries);
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }

    fn readdir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listings = lock(&self.listings);
        let entries = listings.get(&fh.0).into_iter().flatten();
        for (index, (number, kind, name)) in entries.enumerate().skip(offset as usize) {
            if reply.add(INodeNo(*number), index as u64 + 1, *kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(
        &self,
        _request: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        lock(&self.listings).remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCKS, BLOCK, 255, BLOCK);
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        bits: u32,
        umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(request, (parent, name), Node::file(), (bits, umask)) {
            Ok(attributes) => {
                reply.created(&TTL, &attributes, Generation(0), FileHandle(0), FopenFlags::empty());
            }
            Err(error) => reply.error(error),
        }
    }
}
