//! The cache folder: what a start keeps so that the next one need not fetch or create it again.
//!
//! ```text
//! bin/nats-server     the server, when there is none on PATH
//! models/NAME.gguf    verified model files
//! downloads/          unfinished downloads, named by their checksum, and lock files
//! python/             a Python environment with pip, where the system has none
//! api-key             the key that `emberline up` accepts when none is given
//! nats/               JetStream's files
//! spin/               Spin's state, when Spin runs the function
//! run/                the running stack's log, its lock, and how other commands reach it
//! ```

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;

use crate::key_gen::new_api_key;

/// The cache folder.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

/// Why the cache folder can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CacheError {
    #[error("the cache folder is unknown: set EMBERLINE_CACHE (or HOME) to a folder")]
    NoHome,
    #[error("{}: {source}; set EMBERLINE_CACHE to a writable folder", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: the API key in it is empty or has characters that a header can't carry; delete the file to have a new key generated",
        path.display()
    )]
    UnusableKey { path: PathBuf },
}

impl Cache {
    /// `EMBERLINE_CACHE`, or `emberline` in the user's cache folder.
    pub(crate) fn from_env() -> Result<Self, CacheError> {
        Self::locate(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn locate(env: impl Fn(&str) -> Option<OsString>) -> Result<Self, CacheError> {
        let root = env("EMBERLINE_CACHE")
            .map(PathBuf::from)
            .or_else(|| env("XDG_CACHE_HOME").map(|dir| Path::new(&dir).join("emberline")))
            .or_else(|| env("HOME").map(|dir| Path::new(&dir).join(".cache/emberline")))
            .ok_or(CacheError::NoHome)?;
        let root = std::path::absolute(&root).map_err(|source| CacheError::Io { path: root, source })?;
        Ok(Self { root })
    }

    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// The path of `name` in the cache, whether it exists or not.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The folder `name` in the cache, created if it doesn't exist.
    pub(crate) fn folder(&self, name: &str) -> Result<PathBuf, CacheError> {
        let path = self.path(name);
        match fs::create_dir_all(&path) {
            Ok(()) => Ok(path),
            Err(source) => Err(CacheError::Io { path, source }),
        }
    }

    /// The API key that earlier starts used, or a new one that later starts will use.
    pub(crate) fn api_key(&self) -> Result<String, CacheError> {
        match self.existing_api_key()? {
            Some(key) => Ok(key),
            None => {
                self.folder("")?;
                let path = self.root.join("api-key");
                let made = new_api_key().and_then(|key| write_private(&path, &key).map(|()| key));
                made.map_err(|source| CacheError::Io { path, source })
            }
        }
    }

    /// The API key that earlier starts used, if there is one.
    pub(crate) fn existing_api_key(&self) -> Result<Option<String>, CacheError> {
        let path = self.root.join("api-key");
        match fs::read_to_string(&path) {
            Ok(text) => {
                let key = text.trim();
                let sendable = !key.is_empty() && key.bytes().all(|b| b.is_ascii_graphic());
                if sendable { Ok(Some(key.to_owned())) } else { Err(CacheError::UnusableKey { path }) }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(CacheError::Io { path, source }),
        }
    }
}

/// Writes a file that only its owner may read. The file appears complete or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let draft = path.with_extension(format!("{}.tmp", random_hex::<4>()));
    let written = (|| {
        let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
        file.write_all(text.as_bytes())?;
        fs::rename(&draft, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written
}

/// `N` random bytes in hexadecimal, from the thread's generator, which the operating system seeds.
pub(crate) fn random_hex<const N: usize>() -> String {
    let mut bytes = [0; N];
    rand::fill(&mut bytes);
    HEXLOWER.encode(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn located(vars: &[(&str, &str)]) -> Option<PathBuf> {
        let env = |name: &str| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        Cache::locate(env).ok().map(|cache| cache.root)
    }

    #[test]
    fn the_most_specific_variable_names_the_folder() {
        let all = [("EMBERLINE_CACHE", "/e"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(located(&all), Some("/e".into()));
        assert_eq!(located(&all[1..]), Some("/x/emberline".into()));
        assert_eq!(located(&all[2..]), Some("/h/.cache/emberline".into()));
        assert_eq!(located(&[]), None);
    }

    #[test]
    fn the_api_key_is_made_once_and_is_its_owners_secret() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(&dir.path().join("new"));
        assert_eq!(cache.existing_api_key().unwrap(), None);
        let key = cache.api_key().unwrap();
        let secret = key.strip_prefix("sk-emb-").unwrap();
        assert!(secret.len() == 43 && secret.bytes().all(|b| b.is_ascii_alphanumeric()), "{key}");
        assert_eq!(cache.api_key().unwrap(), key);
        let mode = fs::metadata(dir.path().join("new/api-key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path().join("new")).unwrap().count(), 1, "no draft is left");
    }

    #[test]
    fn a_key_of_another_form_goes_on_working() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("api-key"), "ember-0123\n").unwrap();
        assert_eq!(Cache::at(dir.path()).api_key().unwrap(), "ember-0123");
    }

    #[test]
    fn a_key_that_no_header_can_carry_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for bad in ["", "\n", "two words", "schlüssel"] {
            fs::write(dir.path().join("api-key"), bad).unwrap();
            assert!(
                matches!(Cache::at(dir.path()).api_key(), Err(CacheError::UnusableKey { .. })),
                "{bad:?}"
            );
        }
    }
}
