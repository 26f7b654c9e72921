//! What the attempts at a job have written together, for tests that continue an answer.

use emberline_protocol::event::EventKind;

use super::ResumedTokens;

/// The sum of a job's events: of one attempt, or of several that each go on where the one before ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WrittenSoFar {
    /// Tokens of the prompt.
    pub(crate) prompt: u32,
    /// Of each choice.
    pub(crate) choices: Vec<ResumedTokens>,
    /// Whether the last event is there.
    pub(crate) is_complete: bool,
}

impl WrittenSoFar {
    /// Sums up `events`, in their order, of a job with so many choices.
    pub(crate) fn of<'a>(events: impl IntoIterator<Item = &'a EventKind>, choices: u32) -> Self {
        let choices = vec![ResumedTokens::default(); choices as usize];
        let mut all = Self { prompt: 0, choices, is_complete: false };
        events.into_iter().for_each(|kind| all.add(kind));
        all
    }

    fn add(&mut self, kind: &EventKind) {
        match kind {
            EventKind::Tokens { choice, position, ids, text, .. } => {
                let choice = &mut self.choices[*choice as usize];
                // Text without tokens is the end of an answer, which whoever ends it writes again.
                if !ids.is_empty() {
                    assert_eq!(*position as usize, choice.ids.len(), "tokens follow each other");
                    choice.ids.extend(ids);
                    choice.text.push_str(text);
                }
            }
            EventKind::Prompt { position, tokens } => {
                self.prompt = self.prompt.max(position + u32::try_from(tokens.len()).unwrap());
            }
            EventKind::Finish { choice, reason } => {
                self.choices[*choice as usize].finish = Some(*reason);
            }
            EventKind::Done { .. } | EventKind::Error(_) => self.is_complete = true,
            _ => {}
        }
    }
}
