//! How far a job has come: what a worker that takes it over goes on from.

use super::EventLog;
use crate::event::{Event, EventKind, FinishReason};

/// How far a job has come.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogState {
    /// Attempts so far.
    pub attempts: u32,
    /// The number of last attempts, one after the other, that died without having added a token.
    pub fruitless: u32,
    /// Tokens of the prompt that are written.
    pub prompt: u32,
    /// What is written of each choice.
    pub choices: Vec<ResumedTokens>,
    /// The log is complete, with this event; only the job's acknowledgement was lost.
    pub end: Option<EventKind>,
    /// Nobody waits for the answer.
    pub withdrawn: bool,
}

/// What is written of a choice that another worker goes on with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResumedTokens {
    /// Its tokens, without the one that ended it if that is not part of the text.
    pub ids: Vec<u32>,
    /// The text that they complete.
    pub text: String,
    /// Why it ended, if it has.
    pub finish: Option<FinishReason>,
}

impl LogState {
    /// That of a stored log, in the order of storage, of a job with so many choices; `has_prompt` if it asks
    /// for its prompt's tokens.
    pub fn of(stored: &[Event], choices: u32, has_prompt: bool) -> Self {
        let mut log = EventLog::new(choices, has_prompt);
        log.read(stored, |_, _| {});
        let is_fruitless = |number: &&u32| {
            log.attempts.get(number).is_some_and(|attempt| !attempt.has_progress && !attempt.is_handed_back)
        };
        let numbers: Vec<u32> = log.attempts.keys().copied().filter(|number| *number > 0).collect();
        let fruitless = numbers.iter().rev().take_while(is_fruitless).count();
        let choices = log.choices.iter().map(|choice| ResumedTokens {
            ids: choice.ids().to_vec(),
            text: choice.text_of_tokens().to_owned(),
            finish: choice.finish(),
        });
        Self {
            attempts: stored.iter().map(|event| event.attempt).max().unwrap_or(0),
            fruitless: u32::try_from(fruitless).unwrap_or(u32::MAX),
            prompt: log.prompt_tokens(),
            choices: choices.collect(),
            withdrawn: log.withdrawn,
            end: log.end,
        }
    }
}
