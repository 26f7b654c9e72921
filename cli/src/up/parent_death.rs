//! Ends child processes when their parent dies: even `kill -9` of `emberline up` leaves nothing running.
//!
//! Linux sends a process a signal when its parent dies, if the process has asked for it (`prctl`,
//! `PR_SET_PDEATHSIG`). To ask between fork and exec takes unsafe code; so `emberline up` runs `emberline
//! end-with-parent … PROGRAM`, which asks for SIGTERM and then executes the program. Where the kernel has no
//! such request (macOS), it only executes the program.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

#[derive(Args)]
pub(crate) struct EndWithParentArgs {
    /// The process id of the parent.
    #[arg(long)]
    parent: u32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// A command that runs `program` until this process dies; arguments and environment may be added.
pub(crate) fn command(program: &Path) -> io::Result<Command> {
    let emberline: PathBuf = std::env::current_exe()?;
    let mut command = Command::new(emberline);
    command.args(["end-with-parent", "--parent", &std::process::id().to_string(), "--"]).arg(program);
    Ok(command)
}

/// Executes the program in place of this one; returns only if that fails.
pub(crate) fn run(args: &EndWithParentArgs) -> io::Error {
    let [program, rest @ ..] = args.command.as_slice() else {
        return io::Error::other("no program given");
    };
    if let Err(error) = request_signal_at_death_of(args.parent) {
        return error;
    }
    let error = Command::new(program).args(rest).exec();
    io::Error::new(error.kind(), format!("{}: {error}", program.to_string_lossy()))
}

#[cfg(target_os = "linux")]
fn request_signal_at_death_of(parent: u32) -> io::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // A parent that died before the request sends no signal.
    let now = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now == Some(parent) { Ok(()) } else { Err(io::Error::other("emberline up has already ended")) }
}

#[cfg(not(target_os = "linux"))]
fn request_signal_at_death_of(_parent: u32) -> io::Result<()> {
    Ok(())
}
