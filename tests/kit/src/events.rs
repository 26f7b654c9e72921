//! Events as tests look at them: one by one, whichever chunks brought them.

use emberline_protocol::chunk::Chunk;
use emberline_protocol::event::EventKind;

/// One event of a chunk.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The attempt that wrote it.
    pub attempt: u32,
    /// Its index within the attempt.
    pub index: u32,
    /// The index of the event after it: more than `index + 1` after events that are summed up.
    pub next: u32,
    /// What happened.
    pub kind: EventKind,
}

/// The events of `chunk`, in order.
pub fn events_of(chunk: Chunk) -> Vec<Event> {
    let Chunk { attempt, index, end, events, .. } = chunk;
    let mut all: Vec<Event> = events
        .into_iter()
        .zip(index..)
        .map(|(kind, index)| Event { attempt, index, next: index + 1, kind })
        .collect();
    if let Some(last) = all.last_mut() {
        last.next = end;
    }
    all
}
