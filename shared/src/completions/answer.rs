//! Shapes text completions: whole, or as the parts of a stream.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::{Choice, Envelope, FinishBody, UsageBody, to_json};
use crate::event::{FinishReason, TokenLogprob, TokenLogprobs, Usage};

/// Makes what the client gets of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionAnswer {
    /// What all of it begins with.
    pub envelope: Envelope,
}

/// A `text_completion`, whole or a part of a stream.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Completion<'a> {
    /// `cmpl-` and 32 hexadecimal digits.
    id: String,
    object: &'static str,
    /// Unix seconds.
    created: u64,
    /// As the request has it.
    model: &'a str,
    /// Names weights and engine.
    system_fingerprint: &'a str,
    choices: Vec<CompletionChoice<'a>>,
    /// In a stream with `stream_options.include_usage` only: null but for the last part.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct CompletionChoice<'a> {
    text: &'a str,
    index: u32,
    logprobs: Option<LogprobsBody>,
    finish_reason: Option<FinishBody>,
}

/// Of each token, in four lists.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "CompletionLogprobs")]
struct LogprobsBody {
    /// A token that is no text by itself is `bytes:` and `\x..` for each byte.
    tokens: Vec<String>,
    token_logprobs: Vec<f32>,
    /// Null where no alternatives are asked for.
    top_logprobs: Option<Vec<BTreeMap<String, f32>>>,
    /// Characters of the answer before the token.
    text_offset: Vec<u64>,
}

/// How many characters of a choice's text have been told, for `text_offset`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets(u64);

impl CompletionAnswer {
    /// The whole answer.
    pub fn whole(&self, choices: &[Choice], top_logprobs: Option<u32>, usage: &Usage) -> String {
        let choices = choices.iter().zip(0..).map(|(choice, index)| CompletionChoice {
            text: &choice.text,
            index,
            logprobs: choice
                .logprobs
                .as_deref()
                .map(|tokens| LogprobsBody::new(tokens, top_logprobs.unwrap_or(0), &mut Offsets::default())),
            finish_reason: choice.finish_reason.map(FinishBody::from),
        });
        self.completion(choices.collect(), Some(Some(usage.into())))
    }

    /// More text of a choice.
    pub fn text(
        &self,
        choice: u32,
        text: &str,
        logprobs: Option<(&[TokenLogprobs], u32, &mut Offsets)>,
        include_usage: bool,
    ) -> String {
        let logprobs = logprobs.map(|(tokens, top, offsets)| LogprobsBody::new(tokens, top, offsets));
        let choice = CompletionChoice { text, index: choice, logprobs, finish_reason: None };
        self.completion(vec![choice], include_usage.then_some(None))
    }

    /// The last part of a choice.
    pub fn finish(&self, choice: u32, reason: FinishReason, include_usage: bool) -> String {
        let finish_reason = Some(reason.into());
        let choice = CompletionChoice { text: "", index: choice, logprobs: None, finish_reason };
        self.completion(vec![choice], include_usage.then_some(None))
    }

    /// The last part of a stream whose client asked for usage: no choices.
    pub fn usage(&self, usage: &Usage) -> String {
        self.completion(Vec::new(), Some(Some(usage.into())))
    }

    fn completion(&self, choices: Vec<CompletionChoice<'_>>, usage: Option<Option<UsageBody>>) -> String {
        let Envelope { job, created, model, fingerprint } = &self.envelope;
        to_json(&Completion {
            id: format!("cmpl-{job}"),
            object: "text_completion",
            created: *created,
            model,
            system_fingerprint: fingerprint,
            choices,
            usage,
        })
    }
}

impl LogprobsBody {
    fn new(tokens: &[TokenLogprobs], top: u32, offsets: &mut Offsets) -> Self {
        let mut body = Self { top_logprobs: (top > 0).then(Vec::new), ..Self::default() };
        for TokenLogprobs { token, top } in tokens {
            body.tokens.push(text_of(token));
            body.token_logprobs.push(token.logprob);
            body.text_offset.push(offsets.0);
            offsets.0 += characters(&token.bytes);
            if let Some(alternatives) = &mut body.top_logprobs {
                alternatives.push(top.iter().map(|token| (text_of(token), token.logprob)).collect());
            }
        }
        body
    }
}

/// Characters that begin in these bytes.
fn characters(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count() as u64
}

fn text_of(token: &TokenLogprob) -> String {
    match std::str::from_utf8(&token.bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => token.bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}
