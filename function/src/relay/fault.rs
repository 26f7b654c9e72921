//! What makes an answer unusable.

use emberline_protocol::log::Conflict;
use emberline_protocol::malformed::Malformed;

/// Events that no correct worker writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages are the documentation
pub enum Fault {
    #[error("a chunk of events can't be read: {0}")]
    Unreadable(Malformed),
    #[error("a chunk of events can't be read: {}", emberline_protocol::upgrade(*.0, "worker", "function"))]
    Version(u32),
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error("attempt {0} writes more than the job allows")]
    TooLong(u32),
    #[error(
        "chunk {index} of attempt {attempt} lacks the log-probabilities that the job asks for, or has others"
    )]
    Logprobs { attempt: u32, index: u32 },
    #[error("the job is done, but not all of its choices or not its prompt are")]
    Unfinished,
    #[error("too many chunks wait for a gap to be closed")]
    TooManyWaiting,
}
