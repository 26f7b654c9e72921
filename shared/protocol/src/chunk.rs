//! A chunk of a job's events: one message, live or in the job's log.
//!
//! A worker publishes what each step of its engine brings on the job's live subject at once, as one chunk. In
//! the log it stores larger chunks, each of which sums up several of these, and now and then a snapshot: one
//! chunk with the whole log in it, which replaces all that was stored before.

use serde::{Deserialize, Serialize};

use crate::PROTOCOL_VERSION;
use crate::event::EventKind;
use crate::versioned::{self, Unreadable};

/// Events of one attempt in a row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chunk {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The attempt at the job that wrote it, from 1. [`crate::log`] says which chunks of several attempts count.
    pub attempt: u32,
    /// Index of the first event within its attempt, from 0.
    pub index: u32,
    /// Index after the last event. It may be more than `index` and the number of `events`: [`merge`] sums
    /// events up.
    pub end: u32,
    /// What happened, in order.
    pub events: Vec<EventKind>,
}

impl Chunk {
    /// A chunk whose events are not summed up.
    pub fn new(attempt: u32, index: u32, events: Vec<EventKind>) -> Self {
        let end = index.saturating_add(u32::try_from(events.len()).unwrap_or(u32::MAX));
        Self { v: PROTOCOL_VERSION, attempt, index, end, events }
    }

    /// Reads a chunk of this version.
    pub fn read(payload: &[u8]) -> Result<Self, Unreadable> {
        versioned::read(payload, |chunk: &Self| chunk.v)
    }

    /// A chunk of a single event.
    pub fn of(attempt: u32, index: u32, event: EventKind) -> Self {
        Self::new(attempt, index, vec![event])
    }
}

/// Appends `event` to `events`, or adds its tokens to the event that they continue. Events of different
/// choices are independent, so tokens may move before another choice's.
pub fn merge(events: &mut Vec<EventKind>, event: EventKind) {
    match event {
        EventKind::Tokens { choice, position, ids, text, logprobs } => {
            // Text without tokens was held back; a worker that ends the choice anew writes it again.
            let previous = events.iter_mut().rev().find_map(|event| match event {
                EventKind::Tokens { choice: of, position, ids, text, logprobs } if *of == choice => {
                    Some(Some((position, ids, text, logprobs)))
                }
                EventKind::EndToken { choice: of, .. } | EventKind::Finish { choice: of, .. }
                    if *of == choice =>
                {
                    Some(None)
                }
                EventKind::Taken { .. } | EventKind::HandedBack => Some(None),
                _ => None,
            });
            match previous.flatten() {
                Some((first, known, known_text, known_logprobs))
                    if !ids.is_empty()
                        && !known.is_empty()
                        && u32::try_from(known.len()).ok().and_then(|count| first.checked_add(count))
                            == Some(position) =>
                {
                    known.extend(ids);
                    known_text.push_str(&text);
                    known_logprobs.extend(logprobs);
                }
                _ => events.push(EventKind::Tokens { choice, position, ids, text, logprobs }),
            }
        }
        EventKind::Prompt { position, tokens } => match events.last_mut() {
            Some(EventKind::Prompt { position: first, tokens: known })
                if u32::try_from(known.len()).ok().and_then(|count| first.checked_add(count))
                    == Some(position) =>
            {
                known.extend(tokens);
            }
            _ => events.push(EventKind::Prompt { position, tokens }),
        },
        event => events.push(event),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::FinishReason;

    fn tokens(choice: u32, position: u32, ids: &[u32], text: &str) -> EventKind {
        EventKind::Tokens { choice, position, ids: ids.to_vec(), text: text.into(), logprobs: Vec::new() }
    }

    fn finish(choice: u32) -> EventKind {
        EventKind::Finish { choice, reason: FinishReason::Stop }
    }

    fn merged(events: impl IntoIterator<Item = EventKind>) -> Vec<EventKind> {
        let mut all = Vec::new();
        events.into_iter().for_each(|event| merge(&mut all, event));
        all
    }

    #[test]
    fn a_chunk_is_json_whose_events_are_tagged() {
        let chunk = Chunk::of(1, 3, tokens(0, 2, &[7], "hi"));
        let json = serde_json::to_value(&chunk).unwrap();
        let event = serde_json::json!({"type":"tokens","choice":0,"position":2,"ids":[7],"text":"hi"});
        let expected =
            serde_json::json!({"v":PROTOCOL_VERSION,"attempt":1,"index":3,"end":4,"events":[event]});
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_value::<Chunk>(json).unwrap(), chunk);
    }

    #[test]
    fn tokens_of_each_choice_are_summed_up() {
        let events = [
            tokens(0, 0, &[1], "a"),
            tokens(1, 0, &[5], ""),
            tokens(0, 1, &[2, 3], "bc"),
            finish(0),
            tokens(1, 1, &[6], "é"),
        ];
        assert_eq!(merged(events), [tokens(0, 0, &[1, 2, 3], "abc"), tokens(1, 0, &[5, 6], "é"), finish(0)]);
    }

    #[test]
    fn what_does_not_continue_stays_apart() {
        let taken = || EventKind::Taken { worker: "w".into(), ack: None };
        for events in [
            // Text that was held back.
            vec![tokens(0, 0, &[1], "a"), tokens(0, 1, &[], "b")],
            // A later attempt that goes on from an earlier place.
            vec![tokens(0, 0, &[1, 2], "ab"), tokens(0, 1, &[2], "b")],
            vec![tokens(0, 0, &[1], "a"), taken(), tokens(0, 1, &[2], "b")],
            vec![tokens(0, 0, &[1], "a"), finish(0), tokens(0, 1, &[], "")],
        ] {
            assert_eq!(merged(events.clone()), events);
        }
    }
}
