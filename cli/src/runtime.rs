//! The tokio runtime that every command uses.

use std::io;

/// Builds a single-threaded runtime.
///
/// `emberline up` depends on that: a child is tied to the life of the thread that spawned it
/// ([`crate::up::parent_death`]), and a process id may be signalled only while the same thread has not yet
/// reaped it.
pub(crate) fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}
