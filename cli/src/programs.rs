//! Other programs on this machine: where they are, their versions, and how they exited.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// The path at which a shell would find a program.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// The major and minor version that `PROGRAM --version` prints.
pub(crate) fn version_of(program: &Path) -> Option<(u32, u32)> {
    let output = Command::new(program).arg("--version").output().ok()?;
    parse_version(&String::from_utf8_lossy(&output.stdout))
}

/// Parses the first version in a text: `(2, 15)` of `nats-server: v2.15.1`.
pub(crate) fn parse_version(text: &str) -> Option<(u32, u32)> {
    text.split_whitespace().find_map(|word| {
        let mut numbers = word.trim_start_matches('v').split('.').map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
            _ => None,
        }
    })
}

/// `exit status 1`, `killed by signal 9`.
pub(crate) fn describe_exit(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

/// The path of another program of this project, which lies beside this one.
pub(crate) fn sibling(name: &str) -> io::Result<PathBuf> {
    let path = own_folder()?.join(name);
    if path.is_file() {
        return Ok(path);
    }
    Err(io::Error::new(
        io::ErrorKind::NotFound,
        format!(
            "{} is missing; run `cargo build --workspace` in a checkout, or install the package again",
            path.display()
        ),
    ))
}

/// The path of a program of others that lies beside this one, as in a Python environment.
pub(crate) fn beside(name: &str) -> Option<PathBuf> {
    own_folder().ok().map(|folder| folder.join(name)).filter(|path| path.is_file())
}

/// The folder with spin.toml, build/function.wasm and deploy/nats.conf that a package installed with this program:
/// `share/emberline` beside `bin`. `None` in a checkout.
pub(crate) fn installed_root() -> Option<PathBuf> {
    root_of(&own_folder().ok()?)
}

fn root_of(programs: &Path) -> Option<PathBuf> {
    let root = programs.parent()?.join("share/emberline");
    root.join("spin.toml").is_file().then_some(root)
}

/// The folder that this program really lies in, whatever link it was started by.
fn own_folder() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?.canonicalize()?;
    Ok(own.parent().unwrap_or(Path::new("")).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_has_its_files_beside_the_folder_of_its_programs() {
        let prefix = tempfile::tempdir().unwrap();
        let (programs, root) = (prefix.path().join("bin"), prefix.path().join("share/emberline"));
        std::fs::create_dir_all(&root).unwrap();
        assert_eq!(root_of(&programs), None);
        std::fs::write(root.join("spin.toml"), "").unwrap();
        assert_eq!(root_of(&programs), Some(root));
    }

    #[test]
    fn versions_are_found_in_the_output_of_programs() {
        assert_eq!(parse_version("nats-server: v2.15.1\n"), Some((2, 15)));
        assert_eq!(parse_version("2.9"), Some((2, 9)));
        assert_eq!(parse_version("2.12.0-RC.1"), Some((2, 12)));
        assert_eq!(parse_version("version unknown"), None);
    }
}
