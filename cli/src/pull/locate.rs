//! Finds the URL of a source's file: asks pip, or builds it from the repository's name.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use url::Url;

use crate::catalogue::{HubSource, PipSource};

/// Where to read a wheel from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Location {
    Url(String),
    /// A file on this machine: pip can be configured to find wheels in a folder.
    File(PathBuf),
    /// A URL that pip does not reveal, because it holds a password.
    PipOnly,
}

/// Why the URL of a file can't be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocateError {
    #[error("pip was not found (tried python3 -m pip, pip3 and pip); install Python with pip")]
    NoPip,
    #[error("pip: {0}")]
    Pip(String),
    #[error("the index that pip uses has no {0}")]
    NoWheel(String),
    #[error("the repository's URL can't be built: {0}")]
    Hub(String),
}

/// The commands that may run pip on this machine, in the order in which they are tried.
#[derive(Debug, Clone)]
pub(crate) struct Pip {
    commands: Vec<Vec<OsString>>,
}

impl Pip {
    /// That of the Python environment in which this program is installed, if `python` is its interpreter; else the
    /// user's own, or the one of the environment that `deploy/setup.sh pip` makes in `venv`.
    pub(crate) fn new(python: Option<PathBuf>, venv: &Path) -> Self {
        let module = |python: PathBuf| vec![python.into_os_string(), "-m".into(), "pip".into()];
        let own = [&["python3", "-m", "pip"][..], &["pip3"], &["pip"]];
        let own = own.iter().map(|words| words.iter().map(OsString::from).collect());
        let last = module(venv.join("bin/python"));
        Self { commands: python.map(module).into_iter().chain(own).chain([last]).collect() }
    }

    #[cfg(test)]
    pub(crate) fn with_command(words: &[&str]) -> Self {
        Self { commands: vec![words.iter().map(OsString::from).collect()] }
    }

    /// Asks pip for a wheel's URL; pip uses the index, mirror and credentials that the user has configured.
    ///
    /// The URL is read from pip's log. `pip install --report` would be tidier, but pip writes that report only
    /// after it has downloaded the whole wheel, without resuming and without showing progress.
    pub(crate) fn locate(&self, source: &PipSource) -> Result<Location, LocateError> {
        let args =
            ["index", "versions", "-vvv", "--no-color", "--no-input", "--only-binary=:all:", &source.package];
        let log = self.run(&args)?;
        let url = find_link(&log, &source.wheel).ok_or_else(|| LocateError::NoWheel(source.wheel.clone()))?;
        if url.contains("****") {
            return Ok(Location::PipOnly);
        }
        location(url)
    }

    /// Lets pip itself download the wheel to `folder`.
    pub(crate) fn download(&self, source: &PipSource, folder: &Path) -> Result<PathBuf, LocateError> {
        let wanted = format!("{}=={}", source.package, source.version);
        let dest = folder.to_string_lossy();
        self.run(&["download", "--no-input", "--no-deps", "--only-binary=:all:", "--dest", &dest, &wanted])?;
        let wheel = folder.join(&source.wheel);
        if wheel.is_file() { Ok(wheel) } else { Err(LocateError::NoWheel(source.wheel.clone())) }
    }

    /// Runs the first pip that this machine has, and returns its standard output.
    fn run(&self, args: &[&str]) -> Result<String, LocateError> {
        for words in &self.commands {
            let [program, before @ ..] = words.as_slice() else { continue };
            let mut command = Command::new(program);
            command.args(before).args(args).env("PIP_DISABLE_PIP_VERSION_CHECK", "1").stdin(Stdio::null());
            let output = match command.output() {
                Ok(output) => output,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(LocateError::Pip(e.to_string())),
            };
            if output.status.success() {
                return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
            }
            let stderr = String::from_utf8_lossy(&output.stderr);
            if !stderr.contains("No module named pip") {
                // The error comes before the traceback that -vvv adds.
                let reason =
                    stderr.lines().find(|line| line.contains("ERROR")).or(stderr.lines().next_back());
                return Err(LocateError::Pip(reason.unwrap_or("no reason given").trim().to_owned()));
            }
        }
        Err(LocateError::NoPip)
    }
}

/// The URL of a file in a Hugging Face repository; HF_ENDPOINT changes the host.
pub(crate) fn hub_file(source: &HubSource) -> Result<String, LocateError> {
    let api =
        hf_hub::api::sync::ApiBuilder::from_env().build().map_err(|e| LocateError::Hub(e.to_string()))?;
    Ok(api.model(source.repo.clone()).url(&source.path))
}

/// The URL of the file `name` in pip's log, without the checksum that may follow it.
fn find_link<'a>(log: &'a str, name: &str) -> Option<&'a str> {
    log.lines()
        .filter_map(|line| line.trim_start().strip_prefix("Found link "))
        .filter_map(|rest| rest.split([' ', '#']).next())
        .find(|url| url.rsplit('/').next() == Some(name))
}

/// The place that a URL names; a URL of the scheme `file` becomes a path.
fn location(url: &str) -> Result<Location, LocateError> {
    if !url.starts_with("file:") {
        return Ok(Location::Url(url.to_owned()));
    }
    let path = Url::parse(url).ok().and_then(|url| url.to_file_path().ok());
    path.map(Location::File)
        .ok_or_else(|| LocateError::Pip(format!("'{url}' is not the URL of a file on this machine")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
Fetched page https://index.example/simple/x/ as application/vnd.pypi.simple.v1+json
  Found link https://files.example/a/x-1.0.tar.gz (from https://index.example/simple/x/), version: 1.0
  Found link https://files.example/b/x-1.0-py3-none-any.whl#sha256=ab (from https://index.example/simple/x/) (requires-python:>=3.9), version: 1.0
  Skipping link: wrong platform: https://files.example/c/x-2.0-py3-none-any.whl (from https://index.example/simple/x/)
x (1.0)
";

    #[test]
    fn pips_log_gives_the_url_of_the_named_wheel() {
        let found = find_link(LOG, "x-1.0-py3-none-any.whl");
        assert_eq!(found, Some("https://files.example/b/x-1.0-py3-none-any.whl"));
        assert_eq!(find_link(LOG, "x-2.0-py3-none-any.whl"), None, "pip skips it");
        assert_eq!(find_link(LOG, "1.0-py3-none-any.whl"), None);
        assert_eq!(find_link("", ""), None);
    }

    #[test]
    fn a_missing_pip_is_followed_by_the_next() {
        let words = |words: &[&str]| words.iter().map(OsString::from).collect();
        let mut pip = Pip::with_command(&["/no-such-pip"]);
        assert!(matches!(pip.run(&[]), Err(LocateError::NoPip)));
        pip.commands.push(words(&["sh", "-c", "echo 'python3: No module named pip' >&2; exit 1"]));
        assert!(matches!(pip.run(&[]), Err(LocateError::NoPip)));
        pip.commands.push(words(&["echo", "pip"]));
        assert_eq!(pip.run(&["x"]).unwrap(), "pip x\n");
        let pip = Pip::new(Some("/env/bin/python3".into()), Path::new("/venv"));
        assert!(pip.commands.first().unwrap()[0] == "/env/bin/python3");
        assert!(pip.commands.last().unwrap()[0] == "/venv/bin/python");
    }

    #[test]
    fn file_urls_become_paths() {
        let file = |path: &str| Location::File(path.into());
        for (url, expected) in [
            ("file:///opt/my%20wheels/x%2By.whl", file("/opt/my wheels/x+y.whl")),
            ("file://localhost/x.whl", file("/x.whl")),
            // What is not an escape stands for itself, as in the WHATWG's URL standard.
            ("file:///a%zz", file("/a%zz")),
            ("https://files.example/x%2By.whl", Location::Url("https://files.example/x%2By.whl".into())),
        ] {
            assert_eq!(location(url).unwrap(), expected);
        }
        assert!(matches!(location("file://other-machine/x.whl"), Err(LocateError::Pip(_))));
    }

    #[test]
    fn a_hub_file_is_addressed_by_repository_and_path() {
        let digest = crate::catalogue::FileDigest { size: 1, sha256: String::new() };
        let source = HubSource { repo: "a/b".into(), path: "c.gguf".into(), digest };
        let url = hub_file(&source).unwrap();
        assert!(url.ends_with("/a/b/resolve/main/c.gguf"), "{url}");
    }
}
