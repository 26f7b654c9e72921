//! Runs the real Spin, if it is installed.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::fixture::fixture;

/// How long Spin may take to serve or to end; only a failure takes so long.
const TIMEOUT: Duration = Duration::from_secs(120);

/// The program `spin`.
pub(crate) struct Spin(PathBuf);

/// A running Spin.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    group: Group,
    _folder: tempfile::TempDir,
}

impl Spin {
    /// Looks for Spin on PATH; prints a note if there is none.
    pub(crate) fn find() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found =
            std::env::split_paths(&path).map(|folder| folder.join("spin")).find(|spin| spin.is_file());
        if found.is_none() {
            println!("NOT RUN on the real Spin: there is none on PATH");
        }
        found.map(Self)
    }

    /// Runs a manifest, with the fixture beside it as `fixture.wasm`, and waits until it serves; an error with
    /// Spin's output if it does not.
    pub(crate) fn serve(&self, manifest: &str) -> Result<Serving, String> {
        let folder = tempfile::tempdir().unwrap();
        // A shared cache, since compiling the fixture takes longer than the rest of Spin's start.
        let compiled = Path::new(env!("CARGO_TARGET_TMPDIR")).join("spin-cache");
        let cache = folder.path().join("cache.toml");
        std::fs::write(&cache, format!("[cache]\ndirectory = {compiled:?}\n")).unwrap();
        std::fs::write(folder.path().join("spin.toml"), manifest).unwrap();
        std::os::unix::fs::symlink(fixture(), folder.path().join("fixture.wasm")).unwrap();
        let mut command = Command::new(&self.0);
        command.args(["up", "--listen", "127.0.0.1:0", "--from"]).arg(folder.path());
        command.arg("--state-dir").arg(folder.path().join("state")).arg("--disable-pooling");
        command.arg("--cache").arg(cache);
        command.current_dir(folder.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = Group(command.spawn().unwrap());
        // Threads read all output, so that no pipe fills up.
        let (sender, addresses) = mpsc::channel();
        let stdout = BufReader::new(group.0.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                let address =
                    line.split_once("Serving http://").and_then(|(_, rest)| rest.trim().parse().ok());
                address.into_iter().for_each(|address: SocketAddr| _ = sender.send(address));
            }
        });
        let mut stderr = group.0.stderr.take().unwrap();
        let errors = std::thread::spawn(move || {
            let mut errors = Vec::new();
            _ = stderr.read_to_end(&mut errors);
            String::from_utf8_lossy(&errors).into_owned()
        });
        match addresses.recv_timeout(TIMEOUT) {
            Ok(address) => Ok(Serving { address, group, _folder: folder }),
            Err(error) => {
                group.kill();
                let errors = errors.join().unwrap();
                assert!(
                    error == RecvTimeoutError::Disconnected,
                    "Spin did not serve within {TIMEOUT:?}: {errors}"
                );
                Err(errors)
            }
        }
    }
}

impl Serving {
    /// Sends a signal to `spin up`, which passes it on.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.group.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

/// The process group of `spin up` and its trigger, which does not end with it.
struct Group(Child);

impl Group {
    fn kill(&mut self) {
        let group = Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        // Fails only if all processes of the group have ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        _ = self.0.wait();
    }
}
