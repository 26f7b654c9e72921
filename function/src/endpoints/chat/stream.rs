//! The frames of a streamed chat completion.

use bytes::Bytes;
use emberline_api::answer::ChunkTokens;
use emberline_api::chat::{ChatAnswer, Delta};
use emberline_protocol::error::ApiError;
use emberline_protocol::event::{FinishReason, TokenLogprobs};
use emberline_protocol::prompt::PromptToken;
use emberline_protocol::tools::{AnswerPart, ToolCallReader};

use crate::relay::{Ending, Output, OutputLimits};
use crate::response::ResponseWriter;
use crate::response::sse::{DONE, data, error, max_backlog};
use crate::response::usage::UsageCounter;

/// Writes the chunks of one stream.
#[derive(Debug)]
pub struct ChatStream {
    answer: ChatAnswer,
    usage: UsageCounter,
    limits: OutputLimits,
    choices: Vec<ChatChoice>,
}

/// What is on its way of one choice.
#[derive(Debug)]
struct ChatChoice {
    /// If the text may have calls of functions.
    reader: Option<ToolCallReader>,
    /// Of tokens whose text the reader holds back, if they are asked for.
    logprobs: Option<Vec<TokenLogprobs>>,
    /// The same tokens' ids, if they are asked for.
    ids: Option<Vec<u32>>,
}

impl ChatChoice {
    fn holds_tokens(&self) -> bool {
        self.logprobs.as_ref().is_some_and(|tokens| !tokens.is_empty())
            || self.ids.as_ref().is_some_and(|ids| !ids.is_empty())
    }
}

impl ChatStream {
    /// Frames for an answer within `limits`, whose tokens are counted.
    pub fn new(answer: ChatAnswer, usage: UsageCounter, limits: OutputLimits) -> Self {
        let choice = |_| ChatChoice {
            reader: answer.call_reader(),
            logprobs: limits.logprobs.map(|_| Vec::new()),
            ids: limits.ids.then(Vec::new),
        };
        let choices = (0..limits.choices).map(choice).collect();
        Self { answer, usage, limits, choices }
    }

    fn choice(&mut self, choice: u32) -> Option<&mut ChatChoice> {
        usize::try_from(choice).ok().and_then(|choice| self.choices.get_mut(choice))
    }

    fn text(
        &mut self,
        choice: u32,
        text: String,
        logprobs: Option<Vec<TokenLogprobs>>,
        ids: Option<Vec<u32>>,
    ) -> Vec<Bytes> {
        let Some(known) = self.choice(choice) else { return Vec::new() };
        if let Some(known) = &mut known.logprobs {
            known.extend(logprobs.unwrap_or_default());
        }
        if let Some(known) = &mut known.ids {
            known.extend(ids.unwrap_or_default());
        }
        let pieces = match &mut known.reader {
            Some(reader) => reader.push(&text),
            None => vec![AnswerPart::Content(text)],
        };
        self.pieces(choice, &pieces)
    }

    fn pieces(&mut self, choice: u32, pieces: &[AnswerPart]) -> Vec<Bytes> {
        let mut frames = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let delta = match piece {
                AnswerPart::Content(text) => Delta::Content(text),
                AnswerPart::CallStart { index, name } => Delta::CallStart { index: *index, name },
                AnswerPart::Arguments { index, text } => Delta::Arguments { index: *index, text },
                AnswerPart::CallEnd { .. } => continue,
            };
            // The first chunk has all tokens so far, the others have none.
            let Some(known) = self.choice(choice) else { continue };
            let (logprobs, ids) =
                (known.logprobs.as_mut().map(std::mem::take), known.ids.as_mut().map(std::mem::take));
            let tokens = ChunkTokens { logprobs: logprobs.as_deref(), ids: ids.as_deref() };
            frames.push(self.chunk(choice, delta, tokens));
        }
        frames
    }

    fn finish(&mut self, choice: u32, reason: FinishReason) -> Vec<Bytes> {
        let Some(known) = self.choice(choice) else { return Vec::new() };
        let mut pieces = known.reader.as_mut().map(ToolCallReader::finish).unwrap_or_default();
        let calls = known.reader.as_ref().map_or(0, ToolCallReader::calls);
        pieces.retain(|piece| !matches!(piece, AnswerPart::CallEnd { .. }));
        if pieces.is_empty() && known.holds_tokens() {
            pieces.push(AnswerPart::Content(String::new()));
        }
        let mut frames = self.pieces(choice, &pieces);
        frames.push(self.chunk(choice, Delta::Finish { reason, calls }, ChunkTokens::default()));
        frames
    }

    /// How each choice begins: with its role, and what is put before the answer. The very first chunk also
    /// has the `prompt`, if that is asked for.
    fn opening(&self, prompt: Option<&[PromptToken]>) -> Vec<Bytes> {
        let none = ChunkTokens::default();
        let mut frames = Vec::new();
        for (choice, _) in (0..).zip(&self.choices) {
            frames.push(match prompt {
                Some(prompt) if choice == 0 => data(&self.answer.first_chunk(prompt, self.usage.of_chunk())),
                _ => self.chunk(choice, Delta::Role, none),
            });
            let echo = self.answer.echo.as_deref().filter(|echo| !echo.is_empty());
            frames.extend(echo.map(|echo| self.chunk(choice, Delta::Content(echo), none)));
        }
        frames
    }

    fn chunk(&self, choice: u32, delta: Delta<'_>, tokens: ChunkTokens<'_>) -> Bytes {
        data(&self.answer.chunk(choice, delta, tokens, self.usage.of_chunk()))
    }
}

impl ResponseWriter for ChatStream {
    fn begin(&mut self) -> Vec<Bytes> {
        if self.limits.prompt.is_some() { Vec::new() } else { self.opening(None) }
    }

    fn on_output(&mut self, output: Output) -> Vec<Bytes> {
        match output {
            Output::Accepted(_) => Vec::new(),
            Output::Prompt { tokens, .. } => self.opening(Some(&tokens)),
            Output::Text { choice, text, logprobs, ids, tokens } => {
                self.usage.add(tokens);
                self.text(choice, text, logprobs, ids)
            }
            Output::Finish { choice, reason } => self.finish(choice, reason),
            Output::Done(Ending { usage, .. }) => {
                let usage = self.usage.has_last_chunk().then(|| data(&self.answer.usage_chunk(&usage)));
                usage.into_iter().chain([DONE]).collect()
            }
            Output::Failed(failure) => vec![error(&failure)],
        }
    }

    fn on_error(&mut self, failure: &ApiError) -> Vec<Bytes> {
        vec![error(failure)]
    }

    fn max_backlog(&self) -> usize {
        max_backlog(self.limits)
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
