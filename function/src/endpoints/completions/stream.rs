//! The frames of a streamed text completion.

use std::ops::Range;

use bytes::Bytes;
use emberline_api::answer::ChunkTokens;
use emberline_api::completions::{CompletionAnswer, Offsets};
use emberline_protocol::error::ApiError;
use emberline_protocol::prompt::PromptToken;

use crate::relay::{Ending, Output, OutputLimits};
use crate::response::ResponseWriter;
use crate::response::sse::{DONE, data, error, max_backlog};
use crate::response::usage::UsageCounter;

/// Writes the chunks of one stream.
#[derive(Debug)]
pub struct CompletionStream {
    answer: CompletionAnswer,
    usage: UsageCounter,
    /// Of each choice: what its text begins with.
    echoes: Vec<String>,
    limits: OutputLimits,
    offsets: Vec<Offsets>,
}

impl CompletionStream {
    /// Frames for an answer within `limits`; each choice begins with its entry of `echoes`, if there
    /// is one.
    pub fn new(
        answer: CompletionAnswer,
        usage: UsageCounter,
        limits: OutputLimits,
        echoes: Vec<String>,
    ) -> Self {
        let offsets = (0..limits.choices).map(|_| Offsets::default()).collect();
        Self { answer, usage, echoes, limits, offsets }
    }

    fn text(&mut self, choice: u32, text: &str, tokens: ChunkTokens<'_>) -> Option<Bytes> {
        let offsets = usize::try_from(choice).ok().and_then(|choice| self.offsets.get_mut(choice))?;
        Some(data(&self.answer.text(choice, text, tokens, offsets, self.usage.of_chunk())))
    }

    /// The first chunks of the choices that follow a prompt whose tokens are asked for.
    fn prompt(&mut self, choices: Range<u32>, tokens: &[PromptToken]) -> Vec<Bytes> {
        let mut frames = Vec::new();
        for choice in choices {
            let index = usize::try_from(choice).unwrap_or(usize::MAX);
            let Some(offsets) = self.offsets.get_mut(index) else { break };
            let echo = self.echoes.get(index).map_or("", String::as_str);
            frames.push(data(&self.answer.first(choice, echo, tokens, offsets, self.usage.of_chunk())));
        }
        frames
    }
}

impl ResponseWriter for CompletionStream {
    fn begin(&mut self) -> Vec<Bytes> {
        if self.limits.prompt.is_some() {
            return Vec::new();
        }
        let echoes = std::mem::take(&mut self.echoes);
        let echoes = (0..).zip(&echoes).filter(|(_, echo)| !echo.is_empty());
        echoes.filter_map(|(choice, echo)| self.text(choice, echo, ChunkTokens::default())).collect()
    }

    fn on_output(&mut self, output: Output) -> Vec<Bytes> {
        match output {
            Output::Accepted(_) => Vec::new(),
            Output::Prompt { first, choices, tokens } => {
                self.prompt(first..first.saturating_add(choices), &tokens)
            }
            Output::Text { choice, text, logprobs, ids, tokens: count } => {
                self.usage.add(count);
                let tokens = ChunkTokens { logprobs: logprobs.as_deref(), ids: ids.as_deref() };
                self.text(choice, &text, tokens).into_iter().collect()
            }
            Output::Finish { choice, reason } => {
                vec![data(&self.answer.finish(choice, reason, self.usage.of_chunk()))]
            }
            Output::Done(Ending { usage, .. }) => {
                let usage = self.usage.has_last_chunk().then(|| data(&self.answer.usage(&usage)));
                usage.into_iter().chain([DONE]).collect()
            }
            Output::Failed(failure) => vec![error(&failure)],
        }
    }

    fn on_error(&mut self, failure: &ApiError) -> Vec<Bytes> {
        vec![error(failure)]
    }

    fn max_backlog(&self) -> usize {
        let echoes = self.echoes.iter().fold(0, |bytes: usize, echo| bytes.saturating_add(echo.len()));
        max_backlog(self.limits).saturating_add(echoes.saturating_mul(2))
    }
}

#[cfg(test)]
mod tests {
    use emberline_api::answer::Envelope;
    use emberline_api::parameters::StreamUsage;
    use emberline_api::token_details::TokenDetails;
    use emberline_protocol::event::{FinishReason, TokenLogprob, TokenLogprobs};
    use emberline_protocol::prompt::PromptScore;
    use emberline_protocol::subject::JobId;
    use serde_json::json;

    use super::*;
    use crate::relay::PromptLimits;
    use crate::response::sse::tests::payload;

    fn frames(logprobs: Option<u32>, echoes: &[&str]) -> CompletionStream {
        let limits = OutputLimits { choices: 2, tokens: 9, logprobs, ..OutputLimits::default() };
        frames_within(limits, TokenDetails { logprobs, ..TokenDetails::default() }, echoes)
    }

    fn frames_within(limits: OutputLimits, details: TokenDetails, echoes: &[&str]) -> CompletionStream {
        let job = JobId::from_random(1);
        let envelope = Envelope { job, created: 2, model: "m".into(), fingerprint: "fp".into() };
        let echoes = echoes.iter().map(|&echo| echo.to_owned()).collect();
        let count = UsageCounter::new(StreamUsage::Last, &[]);
        CompletionStream::new(CompletionAnswer { envelope, details }, count, limits, echoes)
    }

    #[test]
    fn a_stream_has_the_documented_shape() {
        let mut frames = frames(None, &["Once", ""]);
        let choice = |frame: &Bytes| payload(frame)["choices"][0].clone();
        let opening = frames.begin();
        assert_eq!(opening.len(), 1);
        let part = |text: &str, finish: Option<&str>| json!({"text": text, "index": 0, "logprobs": null, "finish_reason": finish});
        assert_eq!(choice(&opening[0]), part("Once", None));
        let text = frames.on_output(Output::Text {
            choice: 0,
            text: " upon".into(),
            logprobs: None,
            ids: None,
            tokens: 1,
        });
        assert_eq!(choice(&text[0]), part(" upon", None));
        let finish = frames.on_output(Output::Finish { choice: 0, reason: FinishReason::Stop });
        assert_eq!(choice(&finish[0]), part("", Some("stop")));
        let end = frames.on_output(Output::Done(Ending::default()));
        assert_eq!(payload(&end[0])["object"], "text_completion");
        assert_eq!(end[1], DONE);
    }

    fn scored(bytes: &[u8]) -> TokenLogprobs {
        let token = TokenLogprob { id: 7, bytes: bytes.into(), logprob: -0.5 };
        TokenLogprobs { token, top: Vec::new() }
    }

    #[test]
    fn a_prompt_that_is_told_begins_its_choices() {
        let prompt = Some(PromptLimits { logprobs: Some(0) });
        let limits = OutputLimits { choices: 2, tokens: 9, logprobs: Some(0), ids: true, prompt };
        let details = TokenDetails {
            logprobs: Some(0),
            echoed_logprobs: Some(0),
            prompt_logprobs: Some(0),
            ids: true,
            called_by_ids: false,
        };
        let mut frames = frames_within(limits, details, &["éa", "b"]);
        assert!(frames.begin().is_empty(), "the prompt comes first");
        let score = |logprob| Some(PromptScore { logprob, rank: 1, top: Vec::new() });
        let token = |id, text: &str, score| PromptToken { id, bytes: text.into(), score };
        let tokens = vec![token(1, "<s>", None), token(2, "é", score(-1.0)), token(3, "a", score(-2.0))];
        let told = frames.on_output(Output::Prompt { first: 0, choices: 1, tokens: tokens.into() });
        assert_eq!(told.len(), 1, "the second choice has another prompt");
        let choice = payload(&told[0])["choices"][0].clone();
        assert_eq!(choice["text"], "éa");
        assert_eq!(choice["prompt_token_ids"], json!([1, 2, 3]));
        assert_eq!(
            choice["logprobs"],
            json!({
                "tokens": ["<s>", "é", "a"], "token_logprobs": [null, -1.0, -2.0],
                "top_logprobs": null, "text_offset": [0, 0, 1],
            })
        );
        assert_eq!(choice["prompt_logprobs"][2]["3"]["logprob"], -2.0);
        let logprobs = Some(vec![scored(b"x")]);
        let told = frames.on_output(Output::Text {
            choice: 0,
            text: "x".into(),
            logprobs,
            ids: Some(vec![7]),
            tokens: 1,
        });
        let choice = payload(&told[0])["choices"][0].clone();
        assert_eq!((&choice["token_ids"], &choice["logprobs"]["text_offset"]), (&json!([7]), &json!([2])));
        assert_eq!(choice.get("prompt_token_ids"), None);
    }

    #[test]
    fn offsets_are_those_of_each_choice() {
        let mut frames = frames(Some(0), &[]);
        let mut offset = |choice| {
            let logprobs = Some(vec![scored(b"ab")]);
            let told =
                frames.on_output(Output::Text { choice, text: "ab".into(), logprobs, ids: None, tokens: 1 });
            payload(&told[0])["choices"][0]["logprobs"]["text_offset"].clone()
        };
        assert_eq!([offset(0), offset(1), offset(0)], [json!([0]), json!([0]), json!([2])]);
    }
}
