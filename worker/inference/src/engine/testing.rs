//! What the attempts at a job have written together, for tests that continue an answer.

use emberline_protocol::chunk::Chunk;
use emberline_protocol::event::EventKind;
use emberline_protocol::log::LogState;

/// The state of a log of these events, as if one attempt wrote them, of a job with so many choices.
pub(crate) fn log_state<'a>(events: impl IntoIterator<Item = &'a EventKind>, choices: u32) -> LogState {
    let log = Chunk::new(1, 0, events.into_iter().cloned().collect());
    let has_prompt = log.events.iter().any(|event| matches!(event, EventKind::Prompt { .. }));
    LogState::of(&[log], choices, has_prompt)
}
