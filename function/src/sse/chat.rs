//! The frames of a streamed chat completion.

use bytes::Bytes;
use emberline_shared::chat::{ChatAnswer, Delta};
use emberline_shared::error::ApiError;
use emberline_shared::event::{FinishReason, TokenLogprobs};
use emberline_shared::tools::{Piece, ToolCallReader};

use super::{DONE, Narrator, data, error, max_backlog};
use crate::relay::{Limits, Output};

/// Makes the frames of one stream.
#[derive(Debug)]
pub struct ChatFrames {
    answer: ChatAnswer,
    include_usage: bool,
    limits: Limits,
    choices: Vec<Choice>,
}

/// What is on its way of one choice.
#[derive(Debug)]
struct Choice {
    /// If the text may have calls of functions.
    reader: Option<ToolCallReader>,
    /// Of tokens whose text the reader holds back, if they are asked for.
    logprobs: Option<Vec<TokenLogprobs>>,
}

impl ChatFrames {
    /// Frames for an answer with so many choices.
    pub fn new(answer: ChatAnswer, include_usage: bool, limits: Limits) -> Self {
        let choice = |_| Choice {
            reader: answer.tool_format.map(ToolCallReader::new),
            logprobs: limits.logprobs.map(|_| Vec::new()),
        };
        let choices = (0..limits.choices).map(choice).collect();
        Self { answer, include_usage, limits, choices }
    }

    fn choice(&mut self, choice: u32) -> Option<&mut Choice> {
        usize::try_from(choice).ok().and_then(|choice| self.choices.get_mut(choice))
    }

    fn text(&mut self, choice: u32, text: String, logprobs: Option<Vec<TokenLogprobs>>) -> Vec<Bytes> {
        let Some(known) = self.choice(choice) else { return Vec::new() };
        if let Some(known) = &mut known.logprobs {
            known.extend(logprobs.unwrap_or_default());
        }
        let pieces = match &mut known.reader {
            Some(reader) => reader.push(&text),
            None => vec![Piece::Content(text)],
        };
        self.pieces(choice, &pieces)
    }

    fn pieces(&mut self, choice: u32, pieces: &[Piece]) -> Vec<Bytes> {
        let mut frames = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let delta = match piece {
                Piece::Content(text) => Delta::Content(text),
                Piece::CallStart { index, name } => Delta::CallStart { index: *index, name },
                Piece::Arguments { index, text } => Delta::Arguments { index: *index, text },
                Piece::CallEnd { .. } => continue,
            };
            // The first chunk has the log-probabilities of all tokens so far, the others have none.
            let logprobs =
                self.choice(choice).and_then(|known| Some(std::mem::take(known.logprobs.as_mut()?)));
            frames.push(self.chunk(choice, delta, logprobs.as_deref()));
        }
        frames
    }

    fn finish(&mut self, choice: u32, reason: FinishReason) -> Vec<Bytes> {
        let Some(known) = self.choice(choice) else { return Vec::new() };
        let mut pieces = known.reader.as_mut().map(ToolCallReader::finish).unwrap_or_default();
        let calls = known.reader.as_ref().map_or(0, ToolCallReader::calls);
        pieces.retain(|piece| !matches!(piece, Piece::CallEnd { .. }));
        if pieces.is_empty() && known.logprobs.as_ref().is_some_and(|tokens| !tokens.is_empty()) {
            pieces.push(Piece::Content(String::new()));
        }
        let mut frames = self.pieces(choice, &pieces);
        frames.push(self.chunk(choice, Delta::Finish { reason, calls }, None));
        frames
    }

    fn chunk(&self, choice: u32, delta: Delta<'_>, logprobs: Option<&[TokenLogprobs]>) -> Bytes {
        data(&self.answer.chunk(choice, delta, logprobs, self.include_usage))
    }
}

impl Narrator for ChatFrames {
    fn begin(&mut self) -> Vec<Bytes> {
        (0..).zip(&self.choices).map(|(choice, _)| self.chunk(choice, Delta::Role, None)).collect()
    }

    fn tell(&mut self, output: Output) -> Vec<Bytes> {
        match output {
            Output::Accepted(_) => Vec::new(),
            Output::Text { choice, text, logprobs } => self.text(choice, text, logprobs),
            Output::Finish { choice, reason } => self.finish(choice, reason),
            Output::Done(usage) => {
                let usage = self.include_usage.then(|| data(&self.answer.usage_chunk(&usage)));
                usage.into_iter().chain([DONE]).collect()
            }
            Output::Failed(failure) => vec![error(&failure)],
        }
    }

    fn interrupt(&mut self, failure: &ApiError) -> Vec<Bytes> {
        vec![error(failure)]
    }

    fn max_backlog(&self) -> usize {
        max_backlog(self.limits)
    }
}

#[cfg(test)]
#[path = "chat_tests.rs"]
mod tests;
