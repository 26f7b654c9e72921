//! Jobs that were given up: the message as it lay in the queue, and in its headers why.

/// Says in words why the message was set aside.
pub const REASON_HEADER: &str = "Emberline-Reason";
/// How many workers have tried.
pub const ATTEMPTS_HEADER: &str = "Emberline-Attempts";
/// The subject on which it was queued.
pub const QUEUED_ON_HEADER: &str = "Emberline-Queued-On";
