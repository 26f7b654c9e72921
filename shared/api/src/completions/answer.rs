//! Shapes text completions: whole, or as the parts of a stream.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use emberline_protocol::event::{FinishReason, TokenLogprobs, Usage};
use emberline_protocol::prompt::{PromptScore, PromptToken};

use crate::answer::{
    Choice, ChunkTokens, ChunkUsage, Envelope, FinishBody, UsageBody, ids_of, name_by_id, to_json,
};
use crate::prompt_logprobs::PromptLogprobsBody;
use crate::token_details::TokenDetails;

/// Makes what the client gets of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionAnswer {
    /// What all of it begins with.
    pub envelope: Envelope,
    /// What is told of tokens.
    pub details: TokenDetails,
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
    /// In a stream with `stream_options.include_usage` only: null but for the last part, unless
    /// `continuous_usage_stats` asks for the counts so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(inline)]
struct CompletionChoice<'a> {
    text: String,
    index: u32,
    logprobs: Option<LogprobsBody>,
    finish_reason: Option<FinishBody>,
    /// With `return_token_ids` only; in a stream with the choice's first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    /// With `return_token_ids` only: of all tokens, one that ends the text included.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
    /// If it is asked for; in a stream with the choice's first part.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobsBody<'a>>,
}

/// Of each token, in four lists.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "CompletionLogprobs")]
struct LogprobsBody {
    /// A token that is no text by itself is `bytes:` and `\x..` for each byte.
    tokens: Vec<String>,
    /// Null for the first token of a prompt.
    token_logprobs: Vec<Option<f32>>,
    /// Null where no alternatives are asked for.
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Characters of the answer before the token.
    text_offset: Vec<u64>,
}

/// How many characters of a choice's text have been told, for `text_offset`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets(u64);

impl CompletionAnswer {
    /// The whole answer; each choice begins with its entry of `echoes`, if there is one.
    pub fn whole(&self, choices: &[Choice], echoes: &[String], usage: &Usage) -> String {
        let choices = choices.iter().zip(0..).map(|(choice, index)| {
            let echo = usize::try_from(index).ok().and_then(|index| echoes.get(index));
            let echo = echo.map_or("", String::as_str);
            let logprobs = choice.logprobs.as_deref().map(|tokens| {
                let (mut body, mut offsets) = (self.logprobs(), Offsets::default());
                self.echo(&mut body, choice.prompt.as_deref(), echo, &mut offsets);
                self.add(&mut body, tokens, &mut offsets);
                body
            });
            CompletionChoice {
                text: format!("{echo}{}", choice.text),
                index,
                logprobs,
                finish_reason: choice.finish_reason.map(FinishBody::from),
                token_ids: choice.ids.as_deref(),
                ..self.prompt(choice.prompt.as_deref())
            }
        });
        self.completion(choices.collect(), ChunkUsage::Counts(*usage))
    }

    /// The first part of a choice that tells of its prompt, and begins with `echo`.
    pub fn first(
        &self,
        choice: u32,
        echo: &str,
        prompt: &[PromptToken],
        offsets: &mut Offsets,
        usage: ChunkUsage,
    ) -> String {
        let logprobs = self.details.echoed_logprobs.map(|_| {
            let mut body = self.logprobs();
            self.echo(&mut body, Some(prompt), echo, offsets);
            body
        });
        let text = echo.to_owned();
        let choice = CompletionChoice { text, index: choice, logprobs, ..self.prompt(Some(prompt)) };
        self.completion(vec![choice], usage)
    }

    /// More text of a choice, and its tokens.
    pub fn text(
        &self,
        choice: u32,
        text: &str,
        tokens: ChunkTokens<'_>,
        offsets: &mut Offsets,
        usage: ChunkUsage,
    ) -> String {
        let logprobs = tokens.logprobs.map(|tokens| {
            let mut body = self.logprobs();
            self.add(&mut body, tokens, offsets);
            body
        });
        let (text, token_ids) = (text.to_owned(), tokens.ids);
        let choice =
            CompletionChoice { text, index: choice, logprobs, token_ids, ..CompletionChoice::default() };
        self.completion(vec![choice], usage)
    }

    /// The last part of a choice.
    pub fn finish(&self, choice: u32, reason: FinishReason, usage: ChunkUsage) -> String {
        let finish_reason = Some(reason.into());
        let choice = CompletionChoice { index: choice, finish_reason, ..CompletionChoice::default() };
        self.completion(vec![choice], usage)
    }

    /// The last part of a stream whose client asked for usage: no choices.
    pub fn usage(&self, usage: &Usage) -> String {
        self.completion(Vec::new(), ChunkUsage::Counts(*usage))
    }

    fn completion(&self, choices: Vec<CompletionChoice<'_>>, usage: ChunkUsage) -> String {
        let Envelope { job, created, model, fingerprint } = &self.envelope;
        to_json(&Completion {
            id: format!("cmpl-{job}"),
            object: "text_completion",
            created: *created,
            model,
            system_fingerprint: fingerprint,
            choices,
            usage: usage.body(),
        })
    }

    /// What of a prompt's tokens is told beside the text.
    fn prompt<'a>(&self, tokens: Option<&'a [PromptToken]>) -> CompletionChoice<'a> {
        let Some(tokens) = tokens else { return CompletionChoice::default() };
        CompletionChoice {
            prompt_token_ids: self.details.ids.then(|| ids_of(tokens)),
            prompt_logprobs: self.details.prompt_logprobs.map(|top| PromptLogprobsBody { tokens, top }),
            ..CompletionChoice::default()
        }
    }

    /// Log-probabilities of no tokens.
    fn logprobs(&self) -> LogprobsBody {
        let has_alternatives = self.details.logprobs.is_some_and(|top| top > 0);
        LogprobsBody { top_logprobs: has_alternatives.then(Vec::new), ..LogprobsBody::default() }
    }

    /// Adds a prompt's tokens, whose text is `echo`, if that is asked for.
    fn echo(
        &self,
        body: &mut LogprobsBody,
        prompt: Option<&[PromptToken]>,
        echo: &str,
        offsets: &mut Offsets,
    ) {
        let (Some(tokens), Some(top)) = (prompt, self.details.echoed_logprobs) else { return };
        let top = usize::try_from(top).unwrap_or(usize::MAX);
        let end = Offsets(offsets.0.saturating_add(characters(echo.as_bytes())));
        for (PromptToken { id, bytes, score }, index) in tokens.iter().zip(0_usize..) {
            body.tokens.push(self.name(*id, bytes));
            body.token_logprobs.push(score.as_ref().map(|score| score.logprob));
            body.text_offset.push(offsets.0);
            // The tokenizer may begin a text with a token of its own.
            if index > 0 || echo.as_bytes().starts_with(bytes) {
                offsets.0 = offsets.0.saturating_add(characters(bytes)).min(end.0);
            }
            if let Some(alternatives) = &mut body.top_logprobs {
                let named = |score: &PromptScore| {
                    let top = score.top.iter().take(top);
                    top.map(|token| (self.name(token.id, &token.bytes), token.logprob)).collect()
                };
                alternatives.push(score.as_ref().map(named));
            }
        }
        *offsets = end;
    }

    /// Adds tokens of the answer.
    fn add(&self, body: &mut LogprobsBody, tokens: &[TokenLogprobs], offsets: &mut Offsets) {
        for TokenLogprobs { token, top } in tokens {
            body.tokens.push(self.name(token.id, &token.bytes));
            body.token_logprobs.push(Some(token.logprob));
            body.text_offset.push(offsets.0);
            offsets.0 = offsets.0.saturating_add(characters(&token.bytes));
            if let Some(alternatives) = &mut body.top_logprobs {
                let named = top.iter().map(|token| (self.name(token.id, &token.bytes), token.logprob));
                alternatives.push(Some(named.collect()));
            }
        }
    }

    /// What a token is called.
    fn name(&self, id: u32, bytes: &[u8]) -> String {
        // One that stands for no text has no other name.
        if self.details.called_by_ids || bytes.is_empty() {
            return name_by_id(id);
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
        }
    }
}

/// Characters that begin in these bytes.
fn characters(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count() as u64
}
