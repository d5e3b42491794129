//! What the journal asks of the file system: a file for its owner alone, a lock, a copy.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::JournalError;

/// For the owner alone.
pub(super) fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).append(true).create(true).mode(0o600);
    options
}

/// The path with something behind it.
pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Makes the file and its folders where they are missing. Returns the path of the file itself: behind a symbolic link it is the file
/// that is locked and replaced, not the link.
pub(super) fn make(path: &Path) -> io::Result<PathBuf> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    if !options().open(path)?.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    fs::canonicalize(path)
}

/// Takes the lock. It is on a file of its own, because the journal is replaced now and then. One that is held is asked for again for
/// half a second: its holder may be about to end, or to start a program, which holds everything for a moment.
pub(super) fn lock(path: &Path) -> Result<File, JournalError> {
    let failed = |error| JournalError::Io(path.to_owned(), error);
    let lock = options().open(beside(path, ".lock")).map_err(failed)?;
    for _ in 0..50 {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => return Err(failed(error.into())),
        }
    }
    Err(JournalError::Locked(path.to_owned()))
}

pub(super) fn keep_copy(path: &Path, line: usize) {
    let copy = beside(path, ".damaged");
    let outcome = match fs::copy(path, &copy) {
        Ok(_) => "a copy is kept",
        Err(_) => "and could not be copied",
    };
    tracing::warn!(
        path = %path.display(),
        line,
        copy = %copy.display(),
        "the usage journal is damaged in this line: what stands before it is sent, what was counted after it is lost; {outcome}"
    );
}
