//! Which program runs the function: Spin, if what is called `spin` is one that can; the project's
//! own host otherwise.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use clap::ValueEnum;

use crate::cache::Cache;
use crate::console::Console;
use crate::programs::{on_path, parse_version, sibling};

/// The first Spin with the HTTP interface that the function is compiled for, wasi:http 0.3.
const MIN_SPIN_VERSION: (u32, u32) = (4, 1);

/// What runs the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Host {
    /// `spin up`.
    Spin,
    /// The project's own.
    Local,
}

/// Nothing can run the function.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("EMBERLINE_HOST=spin, but {0}; install Spin {major}.{minor} or newer, or set EMBERLINE_HOST=local", major = MIN_SPIN_VERSION.0, minor = MIN_SPIN_VERSION.1)]
    NoSpin(Unfit),
    #[error("the function's host: {0}")]
    NoLocal(#[from] io::Error),
}

/// Why there is no Spin to use.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unfit {
    #[error("there is no spin on PATH")]
    Absent,
    #[error("{} does not say which version of Spin it is, so it is another program", .0.display())]
    OtherProgram(PathBuf),
    #[error("{} is Spin {version}, which can't run the function", path.display())]
    TooOld { path: PathBuf, version: String },
}

/// The program that runs the function, and which kind it is.
pub(crate) fn find(wanted: Option<Host>, console: &Console) -> Result<(Host, PathBuf), HostError> {
    if wanted != Some(Host::Local) {
        match usable_spin(on_path("spin")) {
            Ok(spin) => return Ok((Host::Spin, spin)),
            Err(unfit) if wanted == Some(Host::Spin) => return Err(HostError::NoSpin(unfit)),
            Err(Unfit::Absent) => {}
            Err(unfit) => console.say(&format!("{unfit}; using the project's own host")),
        }
    }
    Ok((Host::Local, sibling("emberline-host")?))
}

/// Writes the file that tells Spin to keep compiled components in the cache folder: it takes no
/// folder itself, and would keep them in the user's.
pub(crate) fn write_spin_cache(cache: &Cache) -> anyhow::Result<PathBuf> {
    let folder = cache.folder("wasmtime")?;
    let folder = folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))?;
    let file = cache.folder("spin")?.join("wasmtime.toml");
    let text = format!("[cache]\ndirectory = {}\n", toml::Value::from(folder));
    fs::write(&file, text).with_context(|| file.display().to_string())?;
    Ok(file)
}

fn usable_spin(found: Option<PathBuf>) -> Result<PathBuf, Unfit> {
    let path = found.ok_or(Unfit::Absent)?;
    let said = ask_version(&path);
    let Some((version, number)) = said.as_deref().and_then(spin_version) else {
        return Err(Unfit::OtherProgram(path));
    };
    if number < MIN_SPIN_VERSION {
        return Err(Unfit::TooOld { version: version.to_owned(), path });
    }
    Ok(path)
}

fn ask_version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Finds `4.1.0-pre0`, and in it 4.1, in `spin 4.1.0-pre0 (94a8fc8 2026-08-21)`.
fn spin_version(said: &str) -> Option<(&str, (u32, u32))> {
    let version = said.strip_prefix("spin ")?.split_whitespace().next()?;
    Some((version, parse_version(version)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_spin_itself_has_a_version_of_spin() {
        let number = |said| spin_version(said).map(|(_, number)| number);
        assert_eq!(number("spin 4.1.0 (abc 2026-09-01)\n"), Some((4, 1)));
        assert_eq!(number("spin 4.1.0-pre0 (94a8fc8a 2026-08-21)"), Some((4, 1)));
        assert_eq!(number("spin 3.4.1"), Some((3, 4)));
        for other in
            ["Spin Version 6.5.2 -- 6 December 2019", "spin", "spin unknown 4.1", "spinner 4.1.0", ""]
        {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn spin_is_told_the_cache_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = write_spin_cache(&Cache::at(dir.path())).unwrap();
        let read: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
        assert_eq!(read["cache"]["directory"].as_str(), dir.path().join("wasmtime").to_str());
    }

    #[test]
    fn what_is_called_spin_must_be_a_program() {
        assert_eq!(usable_spin(None), Err(Unfit::Absent));
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("spin");
        std::fs::write(&text, "no program").unwrap();
        assert_eq!(usable_spin(Some(text.clone())), Err(Unfit::OtherProgram(text)));
    }
}
