//! What a running stack leaves in the cache folder, so that other commands find it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, CacheError, write_private};

/// How to reach the running stack. Only its owner may read it: it holds a password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) pid: u32,
    /// The function's.
    pub(crate) url: String,
    pub(crate) api_key: String,
    /// nats-server's address.
    pub(crate) nats: String,
    pub(crate) worker_password: String,
    pub(crate) admin_password: String,
}

/// The right to run a stack with this cache folder; its end takes [`State`] away.
///
/// A lock of the operating system, so that a stack that was killed leaves none.
#[derive(Debug)]
pub(crate) struct Running {
    _lock: File,
    state: PathBuf,
}

/// A stack can't be started with this cache folder.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error(
        "another `emberline up` (process {pid}) runs with this cache folder; stop it, or set EMBERLINE_CACHE to another folder"
    )]
    AlreadyRunning { pid: String },
    #[error(transparent)]
    Cache(#[from] CacheError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl Running {
    /// Takes the lock.
    pub(crate) fn acquire(cache: &Cache) -> Result<Self, StateError> {
        let folder = cache.folder("run")?;
        let path = folder.join("up.lock");
        let state = folder.join("up.json");
        let lock = match try_lock(&path) {
            Ok(Some(lock)) => lock,
            Ok(None) => {
                let pid = read(&state).map_or_else(|| "not ready yet".to_owned(), |s| s.pid.to_string());
                return Err(StateError::AlreadyRunning { pid });
            }
            Err(source) => return Err(StateError::Io { path, source }),
        };
        Ok(Self { _lock: lock, state })
    }

    /// Tells other commands how to reach the stack.
    pub(crate) fn announce(&self, state: &State) -> Result<(), StateError> {
        let text = serde_json::to_string(state).unwrap_or_default();
        write_private(&self.state, &text)
            .map_err(|source| StateError::Io { path: self.state.clone(), source })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.state);
    }
}

/// The stack that runs now with this cache folder and is ready.
pub(crate) fn running(cache: &Cache) -> Result<Option<State>, StateError> {
    let folder = cache.folder("run")?;
    let path = folder.join("up.lock");
    match try_lock(&path) {
        Ok(Some(_)) => Ok(None),
        Ok(None) => Ok(read(&folder.join("up.json"))),
        Err(source) => Err(StateError::Io { path, source }),
    }
}

fn read(state: &Path) -> Option<State> {
    serde_json::from_str(&std::fs::read_to_string(state).ok()?).ok()
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

    fn state() -> State {
        State {
            pid: 7,
            url: "http://127.0.0.1:1".into(),
            api_key: "k".into(),
            nats: "127.0.0.1:2".into(),
            worker_password: "p".into(),
            admin_password: "q".into(),
        }
    }

    #[test]
    fn a_running_stack_is_found_and_a_stopped_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        assert_eq!(running(&cache).unwrap(), None);
        let stack = Running::acquire(&cache).unwrap();
        assert_eq!(running(&cache).unwrap(), None, "it is not ready yet");
        stack.announce(&state()).unwrap();
        assert_eq!(running(&cache).unwrap(), Some(state()));
        drop(stack);
        assert_eq!(running(&cache).unwrap(), None);
    }

    #[test]
    fn two_stacks_do_not_share_a_cache_folder() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let first = Running::acquire(&cache).unwrap();
        first.announce(&state()).unwrap();
        let error = Running::acquire(&cache).unwrap_err().to_string();
        assert!(error.contains("process 7"), "{error}");
        drop(first);
        Running::acquire(&cache).unwrap();
    }

    #[test]
    fn what_a_killed_stack_left_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        let left = serde_json::to_string(&state()).unwrap();
        std::fs::write(cache.folder("run").unwrap().join("up.json"), left).unwrap();
        assert_eq!(running(&cache).unwrap(), None);
    }
}
