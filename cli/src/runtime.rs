//! The async runtime of every command.

use std::io;

/// One thread: children are tethered to the thread that starts them, and a process id is
/// signalled only as long as the same thread has not reaped it.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
