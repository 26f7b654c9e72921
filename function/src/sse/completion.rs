//! The frames of a streamed text completion.

use bytes::Bytes;
use emberline_shared::completions::{CompletionAnswer, Offsets};
use emberline_shared::error::ApiError;
use emberline_shared::event::TokenLogprobs;

use super::{DONE, Narrator, data, error, max_backlog};
use crate::relay::{Limits, Output};

/// Makes the frames of one stream.
#[derive(Debug)]
pub struct CompletionFrames {
    answer: CompletionAnswer,
    include_usage: bool,
    /// Of each choice: what its text begins with.
    echoes: Vec<String>,
    limits: Limits,
    offsets: Vec<Offsets>,
}

impl CompletionFrames {
    /// Frames for an answer within `limits`; each choice begins with its entry of `echoes`, if there
    /// is one.
    pub fn new(answer: CompletionAnswer, include_usage: bool, limits: Limits, echoes: Vec<String>) -> Self {
        let offsets = (0..limits.choices).map(|_| Offsets::default()).collect();
        Self { answer, include_usage, echoes, limits, offsets }
    }

    fn text(&mut self, choice: u32, text: &str, logprobs: Option<&[TokenLogprobs]>) -> Bytes {
        let offsets = usize::try_from(choice).ok().and_then(|choice| self.offsets.get_mut(choice));
        let logprobs = match (logprobs, self.limits.logprobs, offsets) {
            (Some(tokens), Some(top), Some(offsets)) => Some((tokens, top, offsets)),
            _ => None,
        };
        data(&self.answer.text(choice, text, logprobs, self.include_usage))
    }
}

impl Narrator for CompletionFrames {
    fn begin(&mut self) -> Vec<Bytes> {
        let echoes = std::mem::take(&mut self.echoes);
        let echoes = (0..).zip(&echoes).filter(|(_, echo)| !echo.is_empty());
        echoes.map(|(choice, echo)| self.text(choice, echo, None)).collect()
    }

    fn tell(&mut self, output: Output) -> Vec<Bytes> {
        match output {
            Output::Accepted(_) => Vec::new(),
            Output::Text { choice, text, logprobs } => vec![self.text(choice, &text, logprobs.as_deref())],
            Output::Finish { choice, reason } => {
                vec![data(&self.answer.finish(choice, reason, self.include_usage))]
            }
            Output::Done(usage) => {
                let usage = self.include_usage.then(|| data(&self.answer.usage(&usage)));
                usage.into_iter().chain([DONE]).collect()
            }
            Output::Failed(failure) => vec![error(&failure)],
        }
    }

    fn interrupt(&mut self, failure: &ApiError) -> Vec<Bytes> {
        vec![error(failure)]
    }

    fn max_backlog(&self) -> usize {
        let echoes = self.echoes.iter().fold(0, |bytes: usize, echo| bytes.saturating_add(echo.len()));
        max_backlog(self.limits).saturating_add(echoes.saturating_mul(2))
    }
}

#[cfg(test)]
mod tests {
    use emberline_shared::answer::Envelope;
    use emberline_shared::event::{FinishReason, TokenLogprob, Usage};
    use emberline_shared::subject::JobId;
    use serde_json::json;

    use super::super::tests::payload;
    use super::*;

    fn frames(logprobs: Option<u32>, echoes: &[&str]) -> CompletionFrames {
        let job = JobId::from_random(1);
        let envelope = Envelope { job, created: 2, model: "m".into(), fingerprint: "fp".into() };
        let limits = Limits { choices: 2, tokens: 9, logprobs };
        let echoes = echoes.iter().map(|&echo| echo.to_owned()).collect();
        CompletionFrames::new(CompletionAnswer { envelope }, true, limits, echoes)
    }

    #[test]
    fn a_stream_has_the_documented_shape() {
        let mut frames = frames(None, &["Once", ""]);
        let choice = |frame: &Bytes| payload(frame)["choices"][0].clone();
        let opening = frames.begin();
        assert_eq!(opening.len(), 1);
        let part = |text: &str, finish: Option<&str>| json!({"text": text, "index": 0, "logprobs": null, "finish_reason": finish});
        assert_eq!(choice(&opening[0]), part("Once", None));
        let text = frames.tell(Output::Text { choice: 0, text: " upon".into(), logprobs: None });
        assert_eq!(choice(&text[0]), part(" upon", None));
        let finish = frames.tell(Output::Finish { choice: 0, reason: FinishReason::Stop });
        assert_eq!(choice(&finish[0]), part("", Some("stop")));
        let end = frames.tell(Output::Done(Usage::default()));
        assert_eq!(payload(&end[0])["object"], "text_completion");
        assert_eq!(end[1], DONE);
    }

    #[test]
    fn offsets_are_those_of_each_choice() {
        let mut frames = frames(Some(0), &[]);
        let mut offset = |choice| {
            let token = TokenLogprob { bytes: b"ab".into(), logprob: -0.5 };
            let logprobs = Some(vec![TokenLogprobs { token, top: Vec::new() }]);
            let told = frames.tell(Output::Text { choice, text: "ab".into(), logprobs });
            payload(&told[0])["choices"][0]["logprobs"]["text_offset"].clone()
        };
        assert_eq!([offset(0), offset(1), offset(0)], [json!([0]), json!([0]), json!([2])]);
    }
}
