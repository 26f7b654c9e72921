//! Chooses the program that runs the function: Spin, if the `spin` on PATH is new enough, or else the
//! project's own host.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context;
use clap::ValueEnum;

use crate::cache::Cache;
use crate::console::Console;
use crate::programs::{on_path, parse_version, sibling};

/// The first Spin with wasi:http 0.3, the interface that the function is compiled for.
const MIN_SPIN_VERSION: (u32, u32) = (4, 1);

/// The kind of program that runs the function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FunctionHost {
    /// `spin up`.
    Spin,
    /// The project's own host.
    Local,
}

/// Why nothing can run the function.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HostError {
    #[error("EMBERLINE_HOST=spin, but {0}; install Spin {major}.{minor} or newer, or set EMBERLINE_HOST=local", major = MIN_SPIN_VERSION.0, minor = MIN_SPIN_VERSION.1)]
    NoSpin(UnusableSpin),
    #[error("the function's host: {0}")]
    NoLocal(#[from] io::Error),
}

/// Why the `spin` on PATH can't be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnusableSpin {
    #[error("there is no spin on PATH")]
    Absent,
    #[error("{} does not print a version of Spin, so it is another program", .0.display())]
    OtherProgram(PathBuf),
    #[error("{} is Spin {version}, which can't run the function", path.display())]
    TooOld { path: PathBuf, version: String },
}

/// Finds the program that runs the function.
pub(crate) fn find(
    wanted: Option<FunctionHost>,
    console: &Console,
) -> Result<(FunctionHost, PathBuf), HostError> {
    if wanted != Some(FunctionHost::Local) {
        match usable_spin(on_path("spin")) {
            Ok(spin) => return Ok((FunctionHost::Spin, spin)),
            Err(unusable) if wanted == Some(FunctionHost::Spin) => return Err(HostError::NoSpin(unusable)),
            Err(UnusableSpin::Absent) => {}
            Err(unusable) => console.print(&format!("{unusable}; using the project's own host")),
        }
    }
    Ok((FunctionHost::Local, sibling("emberline-host")?))
}

/// Writes the wasmtime configuration that makes Spin keep compiled components in our cache folder; Spin has
/// no option for the folder, and would use the user's.
pub(crate) fn write_spin_cache(cache: &Cache) -> anyhow::Result<PathBuf> {
    let folder = cache.folder("wasmtime")?;
    let folder = folder.to_str().with_context(|| format!("{} is not UTF-8", folder.display()))?;
    let file = cache.folder("spin")?.join("wasmtime.toml");
    let text = format!("[cache]\ndirectory = {}\n", toml::Value::from(folder));
    fs::write(&file, text).with_context(|| file.display().to_string())?;
    Ok(file)
}

fn usable_spin(found: Option<PathBuf>) -> Result<PathBuf, UnusableSpin> {
    let path = found.ok_or(UnusableSpin::Absent)?;
    let output = version_output(&path);
    let Some((version, number)) = output.as_deref().and_then(spin_version) else {
        return Err(UnusableSpin::OtherProgram(path));
    };
    if number < MIN_SPIN_VERSION {
        return Err(UnusableSpin::TooOld { version: version.to_owned(), path });
    }
    Ok(path)
}

fn version_output(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Parses `spin 4.1.0-pre0 (94a8fc8 2026-08-21)` into `4.1.0-pre0` and `(4, 1)`.
fn spin_version(output: &str) -> Option<(&str, (u32, u32))> {
    let version = output.strip_prefix("spin ")?.split_whitespace().next()?;
    Some((version, parse_version(version)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_output_of_spin_is_a_version_of_spin() {
        let number = |output| spin_version(output).map(|(_, number)| number);
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
    fn the_configuration_of_spin_names_the_cache_folder() {
        let dir = tempfile::tempdir().unwrap();
        let file = write_spin_cache(&Cache::at(dir.path())).unwrap();
        let read: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
        assert_eq!(read["cache"]["directory"].as_str(), dir.path().join("wasmtime").to_str());
    }

    #[test]
    fn a_spin_that_is_not_a_program_is_refused() {
        assert_eq!(usable_spin(None), Err(UnusableSpin::Absent));
        let dir = tempfile::tempdir().unwrap();
        let text = dir.path().join("spin");
        std::fs::write(&text, "no program").unwrap();
        assert_eq!(usable_spin(Some(text.clone())), Err(UnusableSpin::OtherProgram(text)));
    }
}
