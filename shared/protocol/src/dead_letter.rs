//! Headers of a dead letter: the unchanged message of a job that workers gave up, in the `DEAD` stream.

/// Why the job was given up, in words.
pub const REASON_HEADER: &str = "Emberline-Reason";
/// Number of attempts at the job.
pub const ATTEMPTS_HEADER: &str = "Emberline-Attempts";
/// Subject on which the job was queued.
pub const QUEUED_ON_HEADER: &str = "Emberline-Queued-On";
