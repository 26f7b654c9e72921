//! How much memory an answer takes while it is relayed, about.

use emberline_protocol::prompt::PromptToken;

use super::{Output, Relay};

/// A token of a text: its characters, its id and its place, and its share of the answer that is made of it.
pub const TOKEN_BYTES: usize = 48;
/// A log-probability with its token, and its share of the answer.
pub const LOGPROB_BYTES: usize = 128;
/// A token's id and its place in the text.
const ID_BYTES: usize = 16;

impl Output {
    /// What it takes in an answer that is gathered before it is sent.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Text { text, logprobs, ids, .. } => {
                let scores = logprobs.iter().flatten().map(|token| token.top.len().saturating_add(1));
                let scores = scores.fold(0, usize::saturating_add).saturating_mul(LOGPROB_BYTES);
                let ids = ids.as_ref().map_or(0, Vec::len).saturating_mul(ID_BYTES);
                text.len().saturating_mul(2).saturating_add(scores).saturating_add(ids)
            }
            Self::Prompt { choices, tokens, .. } => {
                let repeats = usize::try_from(*choices).unwrap_or(usize::MAX).saturating_add(1);
                prompt_bytes(tokens).saturating_mul(repeats)
            }
            Self::Accepted(acceptance) => acceptance.prompt_text.as_ref().map_or(0, String::len),
            Self::Finish { .. } | Self::Done(_) | Self::Failed(_) => 0,
        }
    }
}

impl Relay {
    /// What it holds: the text so far, which the writer of the answer may hold once more, and a prompt's tokens that
    /// are not complete yet.
    pub fn held_bytes(&self) -> usize {
        let choices = self.log.choices().iter().map(|choice| {
            let ids = choice.ids().len().saturating_mul(ID_BYTES);
            choice.text().len().saturating_mul(2).saturating_add(ids)
        });
        choices.fold(self.sent.prompt.bytes(), usize::saturating_add)
    }
}

/// What tokens of a prompt take.
pub(super) fn prompt_bytes(tokens: &[PromptToken]) -> usize {
    let each = tokens.iter().map(|token| match &token.score {
        Some(score) => score.top.len().saturating_add(1).saturating_mul(LOGPROB_BYTES),
        None => TOKEN_BYTES,
    });
    each.fold(0, usize::saturating_add)
}
