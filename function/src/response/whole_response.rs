//! Whole (non-streaming) responses, and how one is written whose head is sent before it is complete.
//!
//! Until the response is complete, white space is written, which JSON allows in front: a write that fails is how
//! the function notices that the client has disconnected. The status is sent by then, so a failure breaks the
//! transfer off.

use bytes::Bytes;
use emberline_api::answer::Choice;
use emberline_protocol::error::ApiError;
use emberline_protocol::event::Usage;

use super::ResponseWriter;
use crate::relay::{Ending, Output, OutputLimits, Whole};

const WHITE_SPACE: Bytes = Bytes::from_static(b"\n");

/// Gathers the outputs of the relay until the response is complete.
pub trait ResponseBuilder {
    /// Takes the next output, which is no failure; the response's JSON once it is complete.
    fn push(&mut self, output: Output) -> Option<Bytes>;
}

/// Gathers the choices of a completion, of which `write` makes JSON.
pub struct CompletionBuilder<F> {
    whole: Whole,
    write: F,
}

impl<F: FnMut(&[Choice], &Usage) -> String> CompletionBuilder<F> {
    /// Without any output yet.
    pub fn new(limits: OutputLimits, write: F) -> Self {
        Self { whole: Whole::new(limits), write }
    }
}

impl<F: FnMut(&[Choice], &Usage) -> String> ResponseBuilder for CompletionBuilder<F> {
    fn push(&mut self, output: Output) -> Option<Bytes> {
        if let Output::Done(Ending { usage, .. }) = output {
            return Some((self.write)(self.whole.choices(), &usage).into());
        }
        self.whole.push(output);
        None
    }
}

/// Writes a whole response, padded with leading white space while it is pending.
pub struct WholeResponse<B> {
    builder: B,
    failure: Option<ApiError>,
    gathered_bytes: usize,
}

impl<B: ResponseBuilder> WholeResponse<B> {
    /// Without any output yet.
    pub fn new(builder: B) -> Self {
        Self { builder, failure: None, gathered_bytes: 0 }
    }

    /// Takes the next output, which is no failure; the response's JSON once it is complete.
    pub fn push(&mut self, output: Output) -> Option<Bytes> {
        self.gathered_bytes = self.gathered_bytes.saturating_add(output.bytes());
        self.builder.push(output)
    }
}

impl<B: ResponseBuilder> ResponseWriter for WholeResponse<B> {
    fn begin(&mut self) -> Vec<Bytes> {
        vec![WHITE_SPACE]
    }

    fn on_output(&mut self, output: Output) -> Vec<Bytes> {
        match output {
            Output::Failed(error) => self.on_error(&error),
            output => self.push(output).into_iter().collect(),
        }
    }

    fn on_error(&mut self, error: &ApiError) -> Vec<Bytes> {
        self.failure = Some(error.clone());
        Vec::new()
    }

    fn keep_alive(&self) -> Bytes {
        WHITE_SPACE
    }

    fn failure(&self) -> Option<&ApiError> {
        self.failure.as_ref()
    }

    fn max_backlog(&self) -> usize {
        // There is never more than the answer.
        usize::MAX
    }

    fn held_bytes(&self) -> usize {
        self.gathered_bytes
    }
}

/// Writes a response that is complete.
pub struct CompleteResponse(pub Bytes);

impl ResponseWriter for CompleteResponse {
    fn begin(&mut self) -> Vec<Bytes> {
        vec![std::mem::take(&mut self.0)]
    }

    fn on_output(&mut self, _: Output) -> Vec<Bytes> {
        Vec::new()
    }

    fn on_error(&mut self, _: &ApiError) -> Vec<Bytes> {
        Vec::new()
    }

    fn max_backlog(&self) -> usize {
        usize::MAX
    }
}

#[cfg(test)]
mod tests {
    use emberline_protocol::error::ErrorCode;
    use emberline_protocol::event::FinishReason;
    use serde_json::Value;

    use super::*;

    fn text(text: &str) -> Output {
        Output::Text { choice: 0, text: text.into(), logprobs: None, ids: None, tokens: 1 }
    }

    fn completion() -> impl ResponseBuilder {
        let limits = OutputLimits { choices: 1, tokens: 9, ..OutputLimits::default() };
        CompletionBuilder::new(limits, |choices: &[Choice], usage: &Usage| {
            format!("{{\"text\":\"{}\",\"tokens\":{}}}", choices[0].text, usage.completion_tokens)
        })
    }

    #[test]
    fn white_space_before_an_answer_changes_nothing() {
        let mut answer = WholeResponse::new(completion());
        let mut frames = answer.begin();
        frames.extend(answer.on_output(text("a")));
        frames.push(answer.keep_alive());
        frames.extend(answer.on_output(text("b")));
        frames.extend(answer.on_output(Output::Finish { choice: 0, reason: FinishReason::Stop }));
        assert_eq!(frames.concat(), b"\n\n");
        frames.extend(answer.on_output(Output::Done(Ending {
            usage: Usage { completion_tokens: 2, ..Usage::default() },
            at: None,
        })));
        assert_eq!(serde_json::from_slice::<Value>(&frames.concat()).unwrap()["text"], "ab");
        assert!(answer.failure().is_none());
    }

    #[test]
    fn a_failure_adds_nothing_and_breaks_the_answer_off() {
        let error = ApiError::new(ErrorCode::WorkerFailed, "x");
        let mut failed = WholeResponse::new(completion());
        assert!(failed.on_output(Output::Failed(error.clone())).is_empty());
        assert_eq!(failed.failure(), Some(&error));
        let mut late = WholeResponse::new(completion());
        assert!(late.on_error(&error).is_empty());
        assert_eq!(late.failure(), Some(&error));
    }
}
