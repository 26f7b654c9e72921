//! An answer that is told in one piece.

use emberline_shared::answer::Choice;

use super::{Limits, Output};

/// Gathers what a [`super::Relay`] tells.
#[derive(Debug)]
pub struct Whole {
    choices: Vec<Choice>,
}

impl Whole {
    /// Nothing told yet.
    pub fn new(limits: Limits) -> Self {
        let logprobs = limits.logprobs.map(|_| Vec::new());
        let empty = || Choice { logprobs: logprobs.clone(), ..Choice::default() };
        Self { choices: (0..limits.choices).map(|_| empty()).collect() }
    }

    /// Takes the next thing told.
    pub fn push(&mut self, output: Output) {
        match output {
            Output::Text { choice, text, logprobs } => {
                let Some(choice) = self.choice(choice) else { return };
                choice.text.push_str(&text);
                if let Some(known) = &mut choice.logprobs {
                    known.extend(logprobs.unwrap_or_default());
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

    /// The choices; complete once [`Output::Done`] was told.
    pub fn choices_mut(&mut self) -> &mut [Choice] {
        &mut self.choices
    }
}
