//! What came of a job, as far as it must not depend on anything but the job.

use std::collections::BTreeMap;

use emberline_protocol::event::{EventKind, FinishReason, TokenLogprobs};
use tokio::sync::mpsc::UnboundedReceiver;

/// An answer, complete or until it was cancelled.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Answer {
    pub(crate) choices: BTreeMap<u32, Choice>,
    pub(crate) prompt_tokens: u32,
    /// Of a complete one.
    pub(crate) completion_tokens: Option<u32>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Choice {
    pub(crate) ids: Vec<u32>,
    pub(crate) text: String,
    pub(crate) logprobs: Vec<TokenLogprobs>,
    pub(crate) finish: Option<FinishReason>,
}

impl Answer {
    /// Takes in what has come; whether the answer is complete.
    pub(crate) fn read(&mut self, events: &mut UnboundedReceiver<EventKind>) -> bool {
        while let Ok(kind) = events.try_recv() {
            if self.add(kind) {
                return true;
            }
        }
        false
    }

    fn add(&mut self, kind: EventKind) -> bool {
        match kind {
            EventKind::Accepted(acceptance) => self.prompt_tokens = acceptance.prompt_tokens,
            EventKind::Tokens { choice, position, ids, text, logprobs } => {
                let choice = self.choices.entry(choice).or_default();
                assert_eq!(position as usize, choice.ids.len(), "tokens are missing or come twice");
                choice.ids.extend(ids);
                choice.text.push_str(&text);
                choice.logprobs.extend(logprobs);
            }
            EventKind::Finish { choice, reason } => {
                let finish = &mut self.choices.entry(choice).or_default().finish;
                assert_eq!(finish.replace(reason), None, "a choice ends twice");
            }
            EventKind::Done { usage, .. } => {
                self.completion_tokens = Some(usage.completion_tokens);
                return true;
            }
            EventKind::Taken { .. }
            | EventKind::Prompt { .. }
            | EventKind::EndToken { .. }
            | EventKind::HandedBack => {}
            EventKind::Error(error) => panic!("a job failed: {error:?}"),
        }
        false
    }

    /// Whether this is where `whole` begins.
    pub(crate) fn begins(&self, whole: &Self) -> bool {
        self.choices.iter().all(|(number, choice)| {
            whole.choices.get(number).is_some_and(|other| {
                other.ids.starts_with(&choice.ids)
                    && other.text.starts_with(&choice.text)
                    && other.logprobs.starts_with(&choice.logprobs)
            })
        })
    }
}
