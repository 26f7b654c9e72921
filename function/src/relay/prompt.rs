//! The prompt's tokens, as far as they are written.
//!
//! A worker that takes a job over goes on with them where the log ends, so they lie behind each other
//! whoever wrote them. What is known already counts, and must not differ.

use emberline_protocol::chunk::Chunk;
use emberline_protocol::log::{Conflict, Fresh};
use emberline_protocol::prompt::{MAX_PROMPT_LOGPROBS, PromptToken};

use super::fault::Fault;
use super::held::prompt_bytes;
use super::sound::{MAX_TOKEN_BYTES, is_sound_alone};

/// Most tokens of a prompt; no context is as long.
const MAX_PROMPT_TOKENS: u64 = 1 << 22;

/// What is sent of a job's prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptLimits {
    /// Most alternatives beside each token's log-probability; `None` for ids alone.
    pub logprobs: Option<u32>,
}

/// The tokens that were not sent: all of them, or none.
#[derive(Debug, Default)]
pub(super) struct PromptTokens {
    tokens: Vec<PromptToken>,
    bytes: usize,
    is_sent: bool,
}

impl PromptTokens {
    /// Takes tokens in, of which those from `fresh` on were not known.
    pub(super) fn write(
        &mut self,
        chunk: &Chunk,
        position: u32,
        tokens: &[PromptToken],
        fresh: Fresh,
        limits: PromptLimits,
    ) -> Result<(), Fault> {
        let (attempt, index) = (chunk.attempt, chunk.index);
        if !tokens.iter().zip(position..).all(|(token, position)| is_sound(token, position, limits)) {
            return Err(Fault::Logprobs { attempt, index });
        }
        let end = position.saturating_add(u32::try_from(tokens.len()).unwrap_or(u32::MAX));
        let each = limits.logprobs.map(|top| u64::from(top).saturating_add(1));
        let most = each.map_or(MAX_PROMPT_TOKENS, |each| MAX_PROMPT_LOGPROBS.div_ceil(each));
        if u64::from(end) > most {
            return Err(Fault::TooLong(attempt));
        }
        let first = usize::try_from(position).unwrap_or(usize::MAX);
        let written = self.tokens.get(first..).unwrap_or_default();
        if written.iter().zip(tokens).any(|(known, token)| known.id != token.id) {
            return Err(Conflict::Differs { attempt, position }.into());
        }
        if !self.is_sent {
            let fresh = tokens.get(fresh.first_token..).unwrap_or_default();
            self.bytes = self.bytes.saturating_add(prompt_bytes(fresh));
            self.tokens.extend_from_slice(fresh);
        }
        Ok(())
    }

    /// How much memory they take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Hands out the tokens, once.
    pub(super) fn take(&mut self) -> Option<Vec<PromptToken>> {
        self.bytes = 0;
        (!std::mem::replace(&mut self.is_sent, true)).then(|| std::mem::take(&mut self.tokens))
    }
}

/// Whether a token at this position has what is asked for, all of it finite and no longer than tokens are.
fn is_sound(token: &PromptToken, position: u32, limits: PromptLimits) -> bool {
    let is_scored = limits.logprobs.is_some() && position > 0;
    let top = limits.logprobs.unwrap_or(0);
    token.bytes.len() <= MAX_TOKEN_BYTES
        && token.score.is_some() == is_scored
        && token.score.as_ref().is_none_or(|score| {
            score.logprob.is_finite()
                && u32::try_from(score.top.len()).is_ok_and(|count| count <= top)
                && score.top.iter().all(is_sound_alone)
        })
}

#[cfg(test)]
#[path = "prompt_tests.rs"]
mod tests;
