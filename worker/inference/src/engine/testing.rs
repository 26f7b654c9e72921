//! What the attempts at a job have written together, for tests that continue an answer.

use emberline_protocol::PROTOCOL_VERSION;
use emberline_protocol::event::{Event, EventKind};
use emberline_protocol::log::LogState;

/// The state of a log of these events, as if one attempt wrote them, of a job with so many choices.
pub(crate) fn log_state<'a>(events: impl IntoIterator<Item = &'a EventKind>, choices: u32) -> LogState {
    let event = |(kind, index): (&EventKind, u32)| Event {
        v: PROTOCOL_VERSION,
        attempt: 1,
        index,
        kind: kind.clone(),
    };
    let log: Vec<Event> = events.into_iter().zip(0..).map(event).collect();
    let has_prompt = log.iter().any(|event| matches!(event.kind, EventKind::Prompt { .. }));
    LogState::of(&log, choices, has_prompt)
}
