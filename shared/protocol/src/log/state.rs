//! The progress of a job, from which a worker that takes it over continues.

use super::{ChoiceLog, EventLog};
use crate::chunk::Chunk;
use crate::event::{EventKind, FinishReason, Usage};

/// The progress of a job.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LogState {
    /// Number of attempts so far.
    pub attempts: u32,
    /// Number of consecutive attempts at the end that died without progress: without a new token or completed
    /// choice.
    pub fruitless: u32,
    /// Number of the prompt's tokens that are written.
    pub prompt: u32,
    /// The tokens of each choice.
    pub choices: Vec<ResumedTokens>,
    /// The event that ended the job, if it has ended. Then only the job's acknowledgement was lost.
    pub end: Option<EventKind>,
    /// The tokens that are written. A token that ended a choice and is not logged is missing.
    pub usage: Usage,
}

/// The tokens of a choice from which another worker continues.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResumedTokens {
    /// Its token ids, without an end token that is not part of the text.
    pub ids: Vec<u32>,
    /// The text that they complete.
    pub text: String,
    /// Why it ended; `None` if it has not.
    pub finish: Option<FinishReason>,
}

impl LogState {
    /// The progress of a job with `choices` choices whose log, in storage order, is `stored`; `has_prompt` if
    /// the job asks for its prompt's tokens.
    pub fn of(stored: &[Chunk], choices: u32, has_prompt: bool) -> Self {
        let mut log = EventLog::new(choices, has_prompt);
        log.read(stored, |_, _, _| {});
        let is_fruitless = |number: &&u32| {
            log.attempts.get(number).is_some_and(|attempt| !attempt.has_progress && !attempt.is_handed_back)
        };
        let numbers: Vec<u32> = log.attempts.keys().copied().filter(|number| *number > 0).collect();
        let fruitless = numbers.iter().rev().take_while(is_fruitless).count();
        let prompt = log.acceptance.as_ref();
        let usage = Usage {
            prompt_tokens: prompt.map_or(0, |prompt| prompt.prompt_tokens),
            cached_tokens: prompt.map_or(0, |prompt| prompt.cached_tokens),
            completion_tokens: log.choices.iter().map(ChoiceLog::token_count).fold(0, u32::saturating_add),
        };
        let choices = log.choices.iter().map(|choice| ResumedTokens {
            ids: choice.ids().to_vec(),
            text: choice.text_of_tokens().to_owned(),
            finish: choice.finish(),
        });
        Self {
            attempts: stored.iter().map(|chunk| chunk.attempt).max().unwrap_or(0),
            fruitless: u32::try_from(fruitless).unwrap_or(u32::MAX),
            prompt: log.prompt_tokens(),
            choices: choices.collect(),
            usage,
            end: log.end,
        }
    }
}

impl LogState {
    /// The same after tokens and ends of choices that the client has beyond the log.
    #[must_use]
    pub fn with(mut self, sent: &[EventKind]) -> Self {
        for event in sent {
            let (EventKind::Tokens { choice, .. } | EventKind::Finish { choice, .. }) = event else {
                continue;
            };
            let known = usize::try_from(*choice).ok().and_then(|choice| self.choices.get_mut(choice));
            match (event, known) {
                (EventKind::Tokens { ids, text, .. }, Some(known)) => {
                    let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
                    self.usage.completion_tokens = self.usage.completion_tokens.saturating_add(count);
                    known.ids.extend(ids);
                    known.text.push_str(text);
                }
                (EventKind::Finish { reason, .. }, Some(known)) => {
                    known.finish.get_or_insert(*reason);
                }
                _ => {}
            }
        }
        self
    }
}

impl ResumedTokens {
    /// Number of its tokens.
    pub fn count(&self) -> u32 {
        u32::try_from(self.ids.len()).unwrap_or(u32::MAX)
    }

    /// Whether nothing is written.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty() && self.finish.is_none()
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
