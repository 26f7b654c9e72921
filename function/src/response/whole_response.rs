//! An answer in one piece that takes so long that its head goes out ahead of it.
//!
//! Until it is complete, white space is written, which JSON allows in front: that is how a client
//! is noticed that has gone. The status is told by then, so a failure breaks the transfer off.

use bytes::Bytes;
use emberline_api::answer::Choice;
use emberline_protocol::error::ApiError;
use emberline_protocol::event::Usage;

use crate::endpoints::responses::Story;
use crate::relay::{Ending, Limits, Output, Whole};
use crate::response::sse::Narrator;

const WHITE_SPACE: Bytes = Bytes::from_static(b"\n");

/// Puts an answer together.
pub trait Compose {
    /// Takes the next thing told, which is no failure; the answer's JSON once it is complete.
    fn take(&mut self, output: Output) -> Option<Bytes>;
}

/// The choices of a completion, which `write` makes JSON of.
pub struct Completion<F> {
    whole: Whole,
    write: F,
}

impl<F: FnMut(&[Choice], &Usage) -> String> Completion<F> {
    /// Nothing told yet.
    pub fn new(limits: Limits, write: F) -> Self {
        Self { whole: Whole::new(limits), write }
    }
}

impl<F: FnMut(&[Choice], &Usage) -> String> Compose for Completion<F> {
    fn take(&mut self, output: Output) -> Option<Bytes> {
        if let Output::Done(Ending { usage, .. }) = output {
            return Some((self.write)(self.whole.choices(), &usage).into());
        }
        self.whole.push(output);
        None
    }
}

impl Compose for Story {
    fn take(&mut self, output: Output) -> Option<Bytes> {
        self.push(output);
        self.is_over().then(|| serde_json::to_vec(&self.response()).unwrap_or_default().into())
    }
}

/// Tells an answer in one piece, after white space.
pub struct OnePiece<C> {
    answer: C,
    failure: Option<ApiError>,
}

impl<C: Compose> OnePiece<C> {
    /// Nothing told yet.
    pub fn new(answer: C) -> Self {
        Self { answer, failure: None }
    }
}

impl<C: Compose> Narrator for OnePiece<C> {
    fn begin(&mut self) -> Vec<Bytes> {
        vec![WHITE_SPACE]
    }

    fn tell(&mut self, output: Output) -> Vec<Bytes> {
        match output {
            Output::Failed(error) => self.interrupt(&error),
            output => self.answer.take(output).into_iter().collect(),
        }
    }

    fn interrupt(&mut self, error: &ApiError) -> Vec<Bytes> {
        self.failure = Some(error.clone());
        Vec::new()
    }

    fn keep_alive(&self) -> Bytes {
        WHITE_SPACE
    }

    fn broken_off(&self) -> Option<&ApiError> {
        self.failure.as_ref()
    }

    fn max_backlog(&self) -> usize {
        // There is never more than the answer.
        usize::MAX
    }
}

#[cfg(test)]
mod tests {
    use emberline_api::responses::Outline;
    use emberline_protocol::error::ErrorCode;
    use emberline_protocol::event::FinishReason;
    use emberline_protocol::subject::JobId;
    use serde_json::Value;

    use super::*;
    use crate::relay::Acceptance;

    fn text(text: &str) -> Output {
        Output::Text { choice: 0, text: text.into(), logprobs: None, ids: None, tokens: 1 }
    }

    fn completion() -> impl Compose {
        let limits = Limits { choices: 1, tokens: 9, ..Limits::default() };
        Completion::new(limits, |choices: &[Choice], usage: &Usage| {
            format!("{{\"text\":\"{}\",\"tokens\":{}}}", choices[0].text, usage.completion_tokens)
        })
    }

    #[test]
    fn white_space_before_an_answer_changes_nothing() {
        let mut answer = OnePiece::new(completion());
        let mut frames = answer.begin();
        frames.extend(answer.tell(text("a")));
        frames.push(answer.keep_alive());
        frames.extend(answer.tell(text("b")));
        frames.extend(answer.tell(Output::Finish { choice: 0, reason: FinishReason::Stop }));
        assert_eq!(frames.concat(), b"\n\n");
        frames.extend(answer.tell(Output::Done(Ending {
            usage: Usage { completion_tokens: 2, ..Usage::default() },
            at: None,
        })));
        assert_eq!(serde_json::from_slice::<Value>(&frames.concat()).unwrap()["text"], "ab");
        assert!(answer.broken_off().is_none());
    }

    #[test]
    fn a_response_is_complete_with_its_end() {
        let mut story = Story::new(JobId::from_random(1), 0, "m".into(), Outline::default());
        for output in [
            Output::Accepted(Acceptance::default()),
            text("x"),
            Output::Finish { choice: 0, reason: FinishReason::Stop },
        ] {
            assert_eq!(story.take(output), None);
        }
        let json = story.take(Output::Done(Ending::default())).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&json).unwrap()["status"], "completed");
    }

    #[test]
    fn a_failure_adds_nothing_and_breaks_the_answer_off() {
        let error = ApiError::new(ErrorCode::WorkerFailed, "x");
        let mut failed = OnePiece::new(completion());
        assert!(failed.tell(Output::Failed(error.clone())).is_empty());
        assert_eq!(failed.broken_off(), Some(&error));
        let mut late = OnePiece::new(completion());
        assert!(late.interrupt(&error).is_empty());
        assert_eq!(late.broken_off(), Some(&error));
    }
}
