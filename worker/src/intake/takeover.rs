//! What a job's log says of the attempts before this one.
//!
//! A log is read in the order in which it was stored. An attempt counts up to where the next one
//! begins (what a worker writes that does not know of its successor is no part of the job any more),
//! and within that as far as its events follow each other without a gap, whatever order they were
//! stored in. The function's relay follows the same rules, so both see the same answer.

use std::collections::BTreeMap;

use emberline_inference::engine::ResumedTokens as Written;
use emberline_protocol::event::{Event, EventKind};

/// Attempts in a row that may die without having added a token. The next one is not made: the job
/// seems to kill its workers.
pub const MAX_FRUITLESS: u32 = 3;

/// How far a job has come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Past {
    /// Attempts so far.
    pub attempts: u32,
    /// Of them, the last ones that died without having added a token.
    pub fruitless: u32,
    /// Tokens of the prompt that there are.
    pub prompt: u32,
    /// What there is of each choice.
    pub written: Vec<Written>,
    /// The log is complete, with this event; only the job's acknowledgement was lost.
    pub end: Option<EventKind>,
    /// Nobody waits for the answer.
    pub withdrawn: bool,
}

impl Past {
    /// Reads the log of a job with so many choices, in the order in which it was stored.
    pub fn of(log: impl IntoIterator<Item = Event>, choices: u32) -> Self {
        let mut attempts: BTreeMap<u32, BTreeMap<u32, EventKind>> = BTreeMap::new();
        let (mut newest, mut withdrawn) = (0, false);
        for event in log {
            withdrawn |= event.kind == EventKind::Withdrawn;
            newest = newest.max(event.attempt);
            if event.attempt == newest && newest > 0 {
                attempts.entry(newest).or_default().entry(event.index).or_insert(event.kind);
            }
        }
        let mut answer = Answer { prompt: 0, choices: vec![Choice::default(); choices as usize], end: None };
        let (mut fruitless, mut furthest) = (0, 0);
        for events in attempts.into_values() {
            let contiguous = events.into_iter().zip(0..).take_while(|((index, _), next)| index == next);
            let mut unharmed = false;
            for ((_, kind), _) in contiguous {
                unharmed |= kind == EventKind::HandedBack;
                answer.take(kind);
            }
            let reached = answer.progress();
            fruitless = if unharmed || reached > furthest { 0 } else { fruitless + 1 };
            furthest = furthest.max(reached);
        }
        let Answer { prompt, choices, end } = answer;
        let written = choices.into_iter().map(|choice| choice.written).collect();
        Self { attempts: newest, fruitless, prompt, written, end, withdrawn }
    }
}

struct Answer {
    prompt: u32,
    choices: Vec<Choice>,
    end: Option<EventKind>,
}

impl Answer {
    fn take(&mut self, kind: EventKind) {
        match kind {
            EventKind::Tokens { choice, position, ids, text, .. } => {
                if let Some(choice) = self.choices.get_mut(choice as usize) {
                    choice.write(position as usize, &ids, &text);
                }
            }
            EventKind::Prompt { position, tokens } if position <= self.prompt => {
                let end = position.saturating_add(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
                self.prompt = self.prompt.max(end);
            }
            EventKind::Finish { choice, reason } => {
                if let Some(choice) = self.choices.get_mut(choice as usize) {
                    choice.written.finish = Some(reason);
                }
            }
            EventKind::Done { .. } | EventKind::Error(_) => self.end = Some(kind),
            EventKind::Taken { .. }
            | EventKind::Accepted(_)
            | EventKind::Prompt { .. }
            | EventKind::EndToken { .. }
            | EventKind::HandedBack
            | EventKind::Withdrawn => {}
        }
    }

    /// Grows with every token and every choice that is complete.
    fn progress(&self) -> usize {
        let of = |choice: &Choice| choice.written.ids.len() + usize::from(choice.written.finish.is_some());
        self.choices.iter().map(of).sum()
    }
}

#[derive(Debug, Clone, Default)]
struct Choice {
    written: Written,
    /// How many tokens, and how many bytes of text, there were after each event.
    boundaries: Vec<(usize, usize)>,
}

impl Choice {
    /// Takes in tokens from `position` on, in place of what may be there. An attempt begins where one
    /// before it had come to; if that is not known, less is known than it wrote, and its tokens can't
    /// be placed.
    fn write(&mut self, position: usize, ids: &[u32], text: &str) {
        // Text without tokens is the end of an answer, which whoever ends it writes again.
        if ids.is_empty() {
            return;
        }
        self.boundaries.retain(|(tokens, _)| *tokens <= position);
        let (tokens, bytes) = self.boundaries.last().copied().unwrap_or_default();
        if tokens != position {
            return;
        }
        self.written.ids.truncate(tokens);
        self.written.text.truncate(bytes);
        self.written.ids.extend_from_slice(ids);
        self.written.text.push_str(text);
        self.written.finish = None;
        self.boundaries.push((self.written.ids.len(), self.written.text.len()));
    }
}

#[cfg(test)]
#[path = "takeover_tests.rs"]
mod tests;
