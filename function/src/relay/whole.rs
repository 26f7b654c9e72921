//! An answer that is sent as a whole.

use std::sync::Arc;

use emberline_api::answer::Choice;

use super::{Output, OutputLimits};

/// Gathers the outputs of a [`super::Relay`].
#[derive(Debug)]
pub struct Whole {
    choices: Vec<Choice>,
}

impl Whole {
    /// Nothing yet.
    pub fn new(limits: OutputLimits) -> Self {
        let empty = || Choice {
            logprobs: limits.logprobs.map(|_| Vec::new()),
            ids: limits.ids.then(Vec::new),
            ..Choice::default()
        };
        Self { choices: (0..limits.choices).map(|_| empty()).collect() }
    }

    /// Takes the next output.
    pub fn push(&mut self, output: Output) {
        match output {
            Output::Prompt { first, choices, tokens } => {
                for choice in first..first.saturating_add(choices) {
                    let Some(choice) = self.choice(choice) else { return };
                    choice.prompt = Some(Arc::clone(&tokens));
                }
            }
            Output::Text { choice, text, logprobs, ids, .. } => {
                let Some(choice) = self.choice(choice) else { return };
                choice.text.push_str(&text);
                if let Some(known) = &mut choice.logprobs {
                    known.extend(logprobs.unwrap_or_default());
                }
                if let Some(known) = &mut choice.ids {
                    known.extend(ids.unwrap_or_default());
                }
            }
            Output::Finish { choice, reason } => {
                let Some(choice) = self.choice(choice) else { return };
                choice.finish_reason = Some(reason);
            }
            Output::Accepted(_) | Output::Done(_) | Output::Failed(_) => {}
        }
    }

    fn choice(&mut self, choice: u32) -> Option<&mut Choice> {
        usize::try_from(choice).ok().and_then(|choice| self.choices.get_mut(choice))
    }

    /// The choices; complete once [`Output::Done`] has come.
    pub fn choices(&self) -> &[Choice] {
        &self.choices
    }
}
