//! Files and folders that appear whole or not at all.

use std::{fs, io::Write, path::Path};

#[cfg(unix)]
use lowrank_checkpoint::FolderLock;
use lowrank_checkpoint::{
    CheckpointError, StagedDir, replace_dir_atomic, replace_file_atomic, write_atomic, write_dir_atomic,
    write_together,
};

use crate::{check_error, listing};

fn write(path: &Path) -> Result<(), CheckpointError> {
    write_atomic(path.join("a"), "new")
}

#[test]
fn a_file_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.json");
    write_atomic(&path, "old").unwrap();
    write_atomic(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!(listing(folder.path()), ["run.json"]);
    check_error(write_atomic(folder.path().join("absent/x"), ""), &["absent"]);
    check_error(write_atomic(folder.path().join(".."), ""), &["ends in a name"]);
    // A folder cannot be replaced by a file; nothing is left of the attempt.
    fs::create_dir(folder.path().join("taken")).unwrap();
    check_error(write_atomic(folder.path().join("taken"), ""), &["taken", "not a regular file"]);
    assert_eq!(listing(folder.path()), ["run.json", "taken"]);
}

/// A rename would replace it, and whoever listens at it would hear nothing.
#[cfg(unix)]
#[test]
fn a_special_file_is_refused_and_stays() {
    use lowrank_checkpoint::{FloatType, write_safetensors};
    use std::collections::BTreeMap;
    use std::os::unix::{fs::FileTypeExt, net::UnixListener};
    let folder = tempfile::tempdir().unwrap();
    let [socket, link] = ["socket", "link"].map(|name| folder.path().join(name));
    let _listener = UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::symlink(&socket, &link).unwrap();
    for path in [&socket, &link] {
        check_error(write_atomic(path, "new"), &["not a regular file", "choose another output"]);
        let written = write_safetensors(path, Vec::new(), FloatType::F32, &BTreeMap::new());
        check_error(written, &["not a regular file"]);
    }
    assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(listing(folder.path()), ["link", "socket"], "nothing is left of the attempts");
}

#[cfg(unix)]
#[test]
fn files_have_the_permissions_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    fs::write(folder.path().join("plain"), "").unwrap();
    fs::create_dir(folder.path().join("plain_dir")).unwrap();
    write_atomic(folder.path().join("ours"), "").unwrap();
    write_dir_atomic(folder.path().join("our_dir"), write).unwrap();
    assert_eq!(mode(&folder.path().join("ours")), mode(&folder.path().join("plain")));
    assert_eq!(mode(&folder.path().join("our_dir")), mode(&folder.path().join("plain_dir")));
}

#[test]
fn a_folder_is_built_aside_and_renamed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("deep/out");
    let seen = write_dir_atomic(&out, |path| {
        assert!(!out.exists());
        write(path)?;
        fs::create_dir(path.join("sub")).unwrap();
        Ok::<_, CheckpointError>(path.to_owned())
    });
    assert!(!seen.unwrap().exists());
    assert_eq!(listing(&out), ["a", "sub"]);
    assert_eq!(listing(&folder.path().join("deep")), ["out"]);
}

#[test]
fn a_failure_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let failed = write_dir_atomic(&out, |path| {
        write(path)?;
        write_atomic(path.join("absent/x"), "")
    });
    check_error(failed, &["absent"]);
    assert_eq!(listing(folder.path()), [""; 0]);
}

#[test]
fn a_folder_with_contents_is_refused_unless_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    // Empty is as good as absent.
    fs::create_dir(&out).unwrap();
    write_dir_atomic(&out, write).unwrap();
    fs::write(out.join("b"), "mine").unwrap();

    let refused = write_dir_atomic(&out, |_| -> Result<(), CheckpointError> {
        unreachable!("refused before the work")
    });
    assert!(matches!(refused, Err(CheckpointError::DestinationExists { .. })));
    assert_eq!(listing(&out), ["a", "b"]);

    let failed = replace_dir_atomic(&out, |path| write_atomic(path.join("absent/x"), ""));
    check_error(failed, &["absent"]);
    assert_eq!(listing(&out), ["a", "b"]);

    replace_dir_atomic(&out, write).unwrap();
    assert_eq!(listing(&out), ["a"]);
    assert_eq!(listing(folder.path()), ["out"]);

    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    check_error(write_dir_atomic(&file, write), &["file"]);
}

#[test]
fn a_destination_that_fills_up_meanwhile_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let late = write_dir_atomic(&out, |path| {
        write(path)?;
        fs::create_dir(&out).unwrap();
        write_atomic(out.join("other"), "")
    });
    assert!(matches!(late, Err(CheckpointError::DestinationExists { .. })));
    assert_eq!(listing(&out), ["other"]);
    assert_eq!(listing(folder.path()), ["out"]);
}

#[test]
fn a_staged_folder_is_removed_kept_or_committed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    drop(StagedDir::create(&out, false).unwrap());
    assert_eq!(listing(folder.path()), [""; 0]);

    // A killed process leaves its file, unlocked.
    fs::write(folder.path().join(".out.partial.lock"), "").unwrap();
    let mut staged = StagedDir::create(&out, false).unwrap();
    assert_eq!(listing(folder.path()), [".out.partial", ".out.partial.lock"]);
    write(staged.path()).unwrap();
    check_error(StagedDir::resume(&out, false), &["another process"]);
    staged.keep();
    drop(staged);
    assert_eq!(listing(folder.path()), [".out.partial"]);

    let staged = StagedDir::resume(&out, false).unwrap();
    assert_eq!(fs::read(staged.path().join("a")).unwrap(), b"new");
    staged.commit().unwrap();
    assert_eq!(listing(folder.path()), ["out"]);
    assert_eq!(listing(&out), ["a"]);

    check_error(StagedDir::create(&out, false), &["not empty"]);
    let mut staged = StagedDir::create(&out, true).unwrap();
    staged.keep();
    write_atomic(staged.path().join("stale"), "").unwrap();
    fs::create_dir(staged.path().join("stale_dir")).unwrap();
    drop(staged);
    let staged = StagedDir::create(&out, true).unwrap();
    write_atomic(staged.path().join("b"), "").unwrap();
    staged.commit().unwrap();
    assert_eq!(listing(&out), ["b"]);
    assert_eq!(listing(folder.path()), ["out"]);
}

#[test]
fn what_a_killed_writer_left_is_not_part_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    let mut staged = StagedDir::create(&out, false).unwrap();
    staged.keep();
    fs::create_dir_all(staged.path().join("part/.b.tmp-1")).unwrap();
    for name in ["a", ".a.tmp-x9", "part/.a.tmp-x9", "part/.b.tmp-1/c", "part/.hidden"] {
        fs::write(staged.path().join(name), "").unwrap();
    }
    drop(staged);
    StagedDir::resume(&out, false).unwrap().commit().unwrap();
    assert_eq!(listing(&out), ["a", "part"]);
    assert_eq!(listing(&out.join("part")), [".hidden"]);
}

#[cfg(unix)]
#[test]
fn a_staged_folder_is_locked_until_it_has_its_name() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..50 {
        let out = folder.path().join(format!("out{round}"));
        let staged = StagedDir::create(&out, false).unwrap();
        write(staged.path()).unwrap();
        let others = std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                // As another process: it may come too early or too late, but not in between.
                loop {
                    match StagedDir::create(&out, false) {
                        Ok(staged) => return staged.commit(),
                        Err(CheckpointError::InUse { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
            });
            staged.commit().unwrap();
            other.join().unwrap()
        });
        // Its folder may have moved while it was at it; the finished one has all of its files.
        others.unwrap_err();
        assert_eq!(listing(&out), ["a"], "round {round}");
    }
}

#[cfg(unix)]
#[test]
fn a_locked_folder_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join(".model.tmp-1"), "").unwrap();
    let lock = FolderLock::take(&out).unwrap();
    assert_eq!(listing(&out), [""; 0]);
    assert!(lock.is_in_place());
    check_error(FolderLock::take(&out), &["another process"]);
    fs::remove_dir(&out).unwrap();
    assert!(!lock.is_in_place());
    fs::create_dir(&out).unwrap();
    assert!(!lock.is_in_place());
    FolderLock::take(&out).unwrap();
    drop(lock);
}

#[test]
fn files_are_written_together_or_not() {
    let dir = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| dir.path().join(name));
    check_error(write_together(&[(&one, "1"), (&dir.path().join("absent/other"), "2")]), &["absent"]);
    fs::create_dir(dir.path().join("folder")).unwrap();
    check_error(write_together(&[(&one, "1"), (&dir.path().join("folder"), "2")]), &["not a regular file"]);
    assert_eq!(listing(dir.path()), ["folder"]);
    write_together(&[(&one, "1"), (&other, "2")]).unwrap();
    assert_eq!(listing(dir.path()), ["folder", "one", "other"]);
    assert_eq!(fs::read_to_string(one).unwrap(), "1");
}

#[test]
fn a_file_is_replaced_when_it_is_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("table");
    fs::write(&path, "old").unwrap();
    let failed = replace_file_atomic(&path, |mut file| {
        file.write_all(b"ne").unwrap();
        Err::<(), _>(CheckpointError::InUse { path: path.clone() })
    });
    assert!(failed.is_err() && fs::read(&path).unwrap() == b"old");
    let written = replace_file_atomic(&path, |mut file| {
        file.write_all(b"new").unwrap();
        Ok::<_, CheckpointError>(3)
    });
    assert_eq!((written.unwrap(), fs::read_to_string(&path).unwrap()), (3, "new".to_owned()));
    assert_eq!(listing(dir.path()), ["table"]);
}
