//! The processes that tests start, and what a process holds as Linux reports it.

use std::fs;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::{Child, Command};

/// Sets `command` up to read no input, to log only when EMBERLINE_TEST_LOGS is set, and to end with its handle.
pub(crate) fn quiet(command: &mut Command) -> &mut Command {
    let log =
        || if std::env::var_os("EMBERLINE_TEST_LOGS").is_some() { Stdio::inherit() } else { Stdio::null() };
    command.stdin(Stdio::null()).stdout(log()).stderr(log()).kill_on_drop(true)
}

/// A process and those that it starts itself, as `spin up` does; all end when this is dropped.
pub(crate) struct ProcessGroup(pub(crate) Child);

impl ProcessGroup {
    pub(crate) fn spawn(command: &mut Command) -> Result<Self> {
        Ok(Self(command.process_group(0).spawn().context("the function's host")?))
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let group = self.0.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        if let Some(group) = group {
            // Fails only if all of them have ended.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Resident memory in bytes; `None` where it is not known.
pub fn resident_bytes(id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// Number of open file descriptors; `None` where it is not known.
pub fn open_files(id: u32) -> Option<u64> {
    fs::read_dir(format!("/proc/{id}/fd")).ok().map(|files| files.count() as u64)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn this_process_holds_something() {
        let id = std::process::id();
        let before = open_files(id).unwrap();
        let held: Vec<_> = (0..20).map(|_| fs::File::open("/proc/self/status").unwrap()).collect();
        assert!(open_files(id).unwrap() >= before + 10, "{} files", held.len());
        assert!(resident_bytes(id).unwrap() > 0);
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
