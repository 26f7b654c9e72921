//! The events that report a prompt's tokens.

use emberline_protocol::event::{EventKind, TokenLogprob};
use emberline_protocol::prompt::{PromptScore, PromptToken};

use crate::engine::PreparedRequest;
use crate::sampling::Scores;
use crate::tokenizer::ModelTokenizer;

/// Most tokens of an event with log-probabilities; far below a message's maximum size.
const SCORED_PIECE: usize = 32;
/// Most tokens of an event with ids alone.
const PIECE: usize = 4096;

/// Log-probabilities of consecutive tokens of a prompt.
#[derive(Debug)]
pub(super) struct PromptLogprobs {
    /// Position of the first token.
    pub(super) position: u32,
    /// Of each token: its own log-probability, the alternatives', and its rank.
    pub(super) scores: Vec<(Scores, u32)>,
}

/// A prompt whose tokens are sent as events.
#[derive(Debug)]
pub(super) struct PromptOutput {
    tokens: Vec<u32>,
    /// How many of them the log has already.
    known: usize,
    is_scored: bool,
    first_with_text: Option<usize>,
}

impl PromptOutput {
    /// A job's prompt, if the job asks for its tokens.
    pub(super) fn of(prepared: &PreparedRequest, tokenizer: &ModelTokenizer) -> Option<Self> {
        let request = &prepared.job.request;
        request.logs_prompt().then(|| Self {
            tokens: prepared.prompt.clone(),
            known: prepared.resumed_prompt as usize,
            is_scored: request.prompt_logprobs.is_some(),
            first_with_text: tokenizer.first_with_text(&prepared.prompt),
        })
    }

    /// The events that need no computing: all ids, or only the first token, which has no
    /// log-probability.
    pub(super) fn opening(&self, tokenizer: &ModelTokenizer) -> Vec<EventKind> {
        let end = if self.is_scored { 1 } else { self.tokens.len() };
        let unscored = (self.known..end).map(|position| self.token(position, None, tokenizer));
        self.events(self.known, &unscored.collect::<Vec<_>>())
    }

    /// The events that report these log-probabilities.
    pub(super) fn scored(&self, scores: PromptLogprobs, tokenizer: &ModelTokenizer) -> Vec<EventKind> {
        let first = scores.position as usize;
        let tokens = scores.scores.into_iter().zip(first..);
        let tokens = tokens.map(|(score, position)| self.token(position, Some(score), tokenizer));
        self.events(first, &tokens.collect::<Vec<_>>())
    }

    fn events(&self, first: usize, tokens: &[PromptToken]) -> Vec<EventKind> {
        let most = if self.is_scored { SCORED_PIECE } else { PIECE };
        let pieces = tokens.chunks(most).zip((first..).step_by(most));
        let event = |(tokens, position): (&[PromptToken], usize)| EventKind::Prompt {
            position: u32::try_from(position).unwrap_or(u32::MAX),
            tokens: tokens.to_vec(),
        };
        pieces.map(event).collect()
    }

    fn token(
        &self,
        position: usize,
        score: Option<(Scores, u32)>,
        tokenizer: &ModelTokenizer,
    ) -> PromptToken {
        let id = self.tokens.get(position).copied().unwrap_or(0);
        let is_first = Some(position) == self.first_with_text;
        let bytes = self.is_scored.then(|| tokenizer.bytes_in_text(id, is_first).into_owned());
        let alternative = |(id, logprob)| {
            let bytes = tokenizer.bytes_in_text(id, is_first).into_owned();
            TokenLogprob { id, bytes, logprob }
        };
        let score = score.map(|(scores, rank)| PromptScore {
            logprob: scores.logprob,
            rank,
            top: scores.top.into_iter().map(alternative).collect(),
        });
        PromptToken { id, bytes: bytes.unwrap_or_default(), score }
    }
}
