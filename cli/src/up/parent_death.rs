//! Ties a child's life to its parent's: even `kill -9` of `emberline up` leaves nothing running.
//!
//! The kernel is told, by the child itself and before it becomes the program, to send it SIGTERM
//! when its parent dies. Only the child can ask for that, and between fork and exec that needs
//! unsafe code; so `emberline up` runs `emberline tether … PROGRAM`, which asks and then turns
//! into the program. Where the kernel has no such thing (macOS) it only turns into the program.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

#[derive(Args)]
pub(crate) struct TetherArgs {
    /// The parent's process id.
    #[arg(long)]
    parent: u32,
    /// The program and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// A command for `program`, tied to this process; arguments and environment may be added.
pub(crate) fn command(program: &Path) -> io::Result<Command> {
    let emberline: PathBuf = std::env::current_exe()?;
    let mut command = Command::new(emberline);
    command.args(["tether", "--parent", &std::process::id().to_string(), "--"]).arg(program);
    Ok(command)
}

/// Becomes the program; returns only if that fails.
pub(crate) fn run(args: &TetherArgs) -> io::Error {
    let [program, rest @ ..] = args.command.as_slice() else {
        return io::Error::other("no program given");
    };
    if let Err(error) = tie_to(args.parent) {
        return error;
    }
    let error = Command::new(program).args(rest).exec();
    io::Error::new(error.kind(), format!("{}: {error}", program.to_string_lossy()))
}

#[cfg(target_os = "linux")]
fn tie_to(parent: u32) -> io::Result<()> {
    use rustix::process::{Signal, getppid, set_parent_process_death_signal};
    set_parent_process_death_signal(Some(Signal::TERM))?;
    // A parent that died before that sends no signal any more.
    let now = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    if now == Some(parent) { Ok(()) } else { Err(io::Error::other("emberline up is gone")) }
}

#[cfg(not(target_os = "linux"))]
fn tie_to(_parent: u32) -> io::Result<()> {
    Ok(())
}
