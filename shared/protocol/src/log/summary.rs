//! What a log says, in as few events as possible.

use super::{EventLog, Fresh};
use crate::chunk::{Chunk, merge};
use crate::event::EventKind;

/// The events of `stored`, in storage order, that count: each token, acceptance and end once, whoever wrote it, and
/// no attempts. A worker that takes the job over begins its snapshots with them.
pub fn summary(stored: &[Chunk], choices: u32, has_prompt: bool) -> Vec<EventKind> {
    let mut events = Vec::new();
    EventLog::new(choices, has_prompt).read(stored, |_, event, fresh| {
        if let Some(event) = new_part(event, fresh)
            && !(is_said_once(&event) && events.iter().any(|known| is_same_kind(known, &event)))
        {
            merge(&mut events, event);
        }
    });
    events
}

/// The part of `event` that was not known; `None` if that is nothing.
fn new_part(event: &EventKind, fresh: Fresh) -> Option<EventKind> {
    match event.clone() {
        EventKind::Taken { .. } | EventKind::HandedBack => None,
        EventKind::Tokens { choice, position, mut ids, text, mut logprobs } => {
            let skipped = fresh.first_token.min(ids.len());
            ids.drain(..skipped);
            logprobs.drain(..skipped.min(logprobs.len()));
            let text = text.get(fresh.first_byte..).unwrap_or_default().to_owned();
            let position = position.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
            let is_new = !ids.is_empty() || !text.is_empty();
            is_new.then_some(EventKind::Tokens { choice, position, ids, text, logprobs })
        }
        EventKind::Prompt { position, mut tokens } => {
            let skipped = fresh.first_token.min(tokens.len());
            tokens.drain(..skipped);
            let position = position.saturating_add(u32::try_from(skipped).unwrap_or(u32::MAX));
            (!tokens.is_empty()).then_some(EventKind::Prompt { position, tokens })
        }
        EventKind::EndToken { .. } if fresh.first_token > 0 => None,
        event => Some(event),
    }
}

/// Whether later attempts repeat what an earlier one has said.
fn is_said_once(event: &EventKind) -> bool {
    matches!(event, EventKind::Accepted(_) | EventKind::Finish { .. })
}

fn is_same_kind(known: &EventKind, event: &EventKind) -> bool {
    match (known, event) {
        (EventKind::Accepted(_), EventKind::Accepted(_)) => true,
        (EventKind::Finish { choice: known, .. }, EventKind::Finish { choice, .. }) => known == choice,
        _ => false,
    }
}
