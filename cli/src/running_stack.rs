//! The stack that runs on this machine: `emberline up` records it in the cache folder, other commands find
//! it there.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError, write_private};

/// How to reach the running stack. The file is readable by its owner only, since it holds secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunningStack {
    pub(crate) pid: u32,
    /// The function's URL.
    pub(crate) url: String,
    pub(crate) api_key: String,
    /// The address of nats-server.
    pub(crate) nats: String,
    /// The seeds of the users' NKEYs.
    pub(crate) worker_seed: String,
    pub(crate) admin_seed: String,
}

/// The right to run a stack with this cache folder, held until this value is dropped; dropping it also
/// removes the recorded [`RunningStack`].
///
/// It is a lock of the operating system, so a stack that was killed holds none.
#[derive(Debug)]
pub(crate) struct StackLock {
    _lock: File,
    record: PathBuf,
}

/// Why the cache folder's stack can't be started or found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunningStackError {
    #[error(
        "another `emberline up` (process {pid}) runs with this cache folder; stop it, or set EMBERLINE_CACHE to another folder"
    )]
    AlreadyRunning { pid: String },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl StackLock {
    /// Takes the lock; an error if another stack holds it.
    pub(crate) fn acquire(cache: &Cache) -> Result<Self, RunningStackError> {
        let folder = cache.folder("run")?;
        let path = folder.join("up.lock");
        let record = folder.join("up.json");
        let lock = match try_lock(&path) {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                let pid = read(&record).map_or_else(|| "not ready yet".to_owned(), |s| s.pid.to_string());
                return Err(RunningStackError::AlreadyRunning { pid });
            }
            Err(source) => return Err(RunningStackError::Io { path, source }),
        };
        Ok(Self { _lock: lock, record })
    }

    /// Records how other commands reach the stack.
    pub(crate) fn publish(&self, stack: &RunningStack) -> Result<(), RunningStackError> {
        let text = serde_json::to_string(stack).unwrap_or_default();
        write_private(&self.record, &text)
            .map_err(|source| RunningStackError::Io { path: self.record.clone(), source })
    }
}

impl Drop for StackLock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.record);
    }
}

/// The stack that runs with this cache folder and is ready, if there is one.
pub(crate) fn find(cache: &Cache) -> Result<Option<RunningStack>, RunningStackError> {
    let folder = cache.folder("run")?;
    let path = folder.join("up.lock");
    match try_lock(&path) {
        Ok(Some(_)) => Ok(None),
        Ok(None) => Ok(read(&folder.join("up.json"))),
        Err(source) => Err(RunningStackError::Io { path, source }),
    }
}

fn read(record: &Path) -> Option<RunningStack> {
    serde_json::from_str(&std::fs::read_to_string(record).ok()?).ok()
}

fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack() -> RunningStack {
        RunningStack {
            pid: 7,
            url: "http://127.0.0.1:1".into(),
            api_key: "k".into(),
            nats: "127.0.0.1:2".into(),
            worker_seed: "p".into(),
            admin_seed: "q".into(),
        }
    }

    #[test]
    fn a_running_stack_is_found_and_a_stopped_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        assert_eq!(find(&cache).unwrap(), None);
        let lock = StackLock::acquire(&cache).unwrap();
        assert_eq!(find(&cache).unwrap(), None, "it is not ready yet");
        lock.publish(&stack()).unwrap();
        assert_eq!(find(&cache).unwrap(), Some(stack()));
        drop(lock);
        assert_eq!(find(&cache).unwrap(), None);
    }

    #[test]
    fn two_stacks_do_not_share_a_cache_folder() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let first = StackLock::acquire(&cache).unwrap();
        first.publish(&stack()).unwrap();
        let error = StackLock::acquire(&cache).unwrap_err().to_string();
        assert!(error.contains("process 7"), "{error}");
        drop(first);
        StackLock::acquire(&cache).unwrap();
    }

    #[test]
    fn the_record_of_a_killed_stack_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let left = serde_json::to_string(&stack()).unwrap();
        std::fs::write(cache.folder("run").unwrap().join("up.json"), left).unwrap();
        assert_eq!(find(&cache).unwrap(), None);
    }
}
