//! The real Spin, where there is one.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use super::fixture::fixture;

/// The program.
pub(crate) struct Spin(PathBuf);

/// It runs.
pub(crate) struct Serving {
    pub(crate) address: SocketAddr,
    group: Group,
    _folder: tempfile::TempDir,
}

impl Spin {
    /// Looks for it on the PATH; says so if there is none.
    pub(crate) fn find() -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let found =
            std::env::split_paths(&path).map(|folder| folder.join("spin")).find(|spin| spin.is_file());
        if found.is_none() {
            println!("NOT RUN on the real Spin: there is none on PATH");
        }
        found.map(Self)
    }

    /// Runs a manifest, beside which is the fixture as `fixture.wasm`, until it serves; if it does
    /// not, what Spin says.
    pub(crate) fn serve(&self, manifest: &str) -> Result<Serving, String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("spin.toml"), manifest).unwrap();
        std::os::unix::fs::symlink(fixture(), folder.path().join("fixture.wasm")).unwrap();
        let mut command = Command::new(&self.0);
        command.args(["up", "--listen", "127.0.0.1:0", "--from"]).arg(folder.path());
        command.arg("--state-dir").arg(folder.path().join("state")).arg("--disable-pooling");
        command.current_dir(folder.path()).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut group = Group(command.spawn().unwrap());
        let mut lines = BufReader::new(group.0.stdout.take().unwrap()).lines().map_while(Result::ok);
        let address = lines.find_map(|line| line.split_once("Serving http://")?.1.trim().parse().ok());
        let Some(address) = address else {
            group.kill();
            let mut said = String::new();
            group.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
            return Err(said);
        };
        // Keeps its output from filling the pipes.
        std::thread::spawn(move || lines.for_each(drop));
        let stderr = group.0.stderr.take().unwrap();
        std::thread::spawn(move || BufReader::new(stderr).lines().map_while(Result::ok).for_each(drop));
        Ok(Serving { address, group, _folder: folder })
    }
}

impl Serving {
    /// Sends a signal to `spin up`, which hands it on.
    pub(crate) fn signal(&self, name: &str) {
        let status = Command::new("kill").args([name, &self.group.0.id().to_string()]).status().unwrap();
        assert!(status.success());
    }
}

/// `spin up` and its trigger, which does not end with it.
struct Group(Child);

impl Group {
    fn kill(&mut self) {
        let group = Pid::from_raw(self.0.id().try_into().unwrap()).unwrap();
        // Fails only if all of them have ended.
        let _ = kill_process_group(group, Signal::KILL);
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
        _ = self.0.wait();
    }
}
