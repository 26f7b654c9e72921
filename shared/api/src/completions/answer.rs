//! Builds text completions: whole, or as the chunks of a stream.

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

/// Builds the answer, or the chunks of its stream, for one request.
#[derive(Debug, Clone, PartialEq)]
pub struct CompletionAnswer {
    /// The metadata that the answer and every chunk contain.
    pub envelope: Envelope,
    /// Which details of tokens the answer contains.
    pub details: TokenDetails,
}

/// A `text_completion` object: the whole answer, or a chunk of its stream.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Completion<'a> {
    /// `cmpl-` and 32 hexadecimal digits.
    id: String,
    /// Always `text_completion`.
    object: &'static str,
    /// When the request was accepted, in Unix seconds.
    created: u64,
    /// The model's name or alias, as in the request.
    model: &'a str,
    /// Names and versions of weights and engine.
    system_fingerprint: &'a str,
    /// The choices: `n` for each prompt, in the order of the prompts. A chunk contains the next part of one
    /// choice; the additional last chunk with `usage` contains no choice.
    choices: Vec<CompletionChoice<'a>>,
    /// Token counts. In a stream, only with `stream_options`: with `include_usage`, null in all chunks but
    /// the last; with `continuous_usage_stats`, the counts so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(inline)]
struct CompletionChoice<'a> {
    /// The generated text, after the prompt's text with `echo`.
    text: String,
    /// Index of the choice, from 0, over all prompts.
    index: u32,
    /// Log-probabilities of the tokens; null without `logprobs`.
    logprobs: Option<LogprobsBody>,
    /// Why the choice ended; in a stream, null in all chunks of the choice but the last.
    finish_reason: Option<FinishBody>,
    /// Ids of the prompt's tokens; only with `return_token_ids`, in a stream only in the first chunk of the
    /// choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    /// Ids of the generated tokens, including the token that ends the text; only with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
    /// Log-probabilities of the prompt's tokens; only with `prompt_logprobs`, in a stream only in the first
    /// chunk of the choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobsBody<'a>>,
}

/// Log-probabilities of tokens, as four arrays with an entry for each token.
#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "CompletionLogprobs")]
struct LogprobsBody {
    /// The token's text. A token that is not valid UTF-8 by itself is written as `bytes:` and `\x..` for each
    /// byte.
    tokens: Vec<String>,
    /// Natural logarithm of the token's probability; null for the first token of an echoed prompt.
    token_logprobs: Vec<Option<f32>>,
    /// Maps the most probable tokens at the position to their log-probabilities; null if `logprobs` is 0.
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
    /// Number of characters of the choice's text before the token.
    text_offset: Vec<u64>,
}

/// Number of characters of a choice's text in earlier chunks, from which `text_offset` continues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offsets(u64);

impl CompletionAnswer {
    /// The whole, non-streamed answer. Each choice's text begins with its entry in `echoes`, if it has one.
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

    /// The first chunk of a choice, which contains the details of the prompt's tokens and the text `echo`.
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

    /// A chunk with more text of a choice and the details of its tokens.
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

    /// The last chunk of a choice.
    pub fn finish(&self, choice: u32, reason: FinishReason, usage: ChunkUsage) -> String {
        let finish_reason = Some(reason.into());
        let choice = CompletionChoice { index: choice, finish_reason, ..CompletionChoice::default() };
        self.completion(vec![choice], usage)
    }

    /// The additional last chunk, which contains the token counts and no choices.
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

    /// The details of the prompt's tokens that the client asks for beside the text.
    fn prompt<'a>(&self, tokens: Option<&'a [PromptToken]>) -> CompletionChoice<'a> {
        let Some(tokens) = tokens else { return CompletionChoice::default() };
        CompletionChoice {
            prompt_token_ids: self.details.ids.then(|| ids_of(tokens)),
            prompt_logprobs: self.details.prompt_logprobs.map(|top| PromptLogprobsBody { tokens, top }),
            ..CompletionChoice::default()
        }
    }

    /// Log-probabilities without entries.
    fn logprobs(&self) -> LogprobsBody {
        let has_alternatives = self.details.logprobs.is_some_and(|top| top > 0);
        LogprobsBody { top_logprobs: has_alternatives.then(Vec::new), ..LogprobsBody::default() }
    }

    /// Adds the tokens of the prompt, whose text is `echo`, if the log-probabilities include them.
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
            // The tokenizer may prepend a token that is not part of the text.
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

    /// Adds generated tokens.
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

    /// The name that represents a token.
    fn name(&self, id: u32, bytes: &[u8]) -> String {
        // A token without text can only be represented by its id.
        if self.details.called_by_ids || bytes.is_empty() {
            return name_by_id(id);
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => text.to_owned(),
            Err(_) => bytes.iter().fold("bytes:".to_owned(), |text, byte| text + &format!("\\x{byte:02x}")),
        }
    }
}

/// Number of UTF-8 characters that begin in these bytes.
fn characters(bytes: &[u8]) -> u64 {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count() as u64
}
