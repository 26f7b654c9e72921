//! Builds chat answers: whole `chat.completion` objects, and the chunks of a stream.

use std::borrow::Cow;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use emberline_protocol::event::{FinishReason, TokenLogprob, TokenLogprobs, Usage};
use emberline_protocol::job::ToolChoice;
use emberline_protocol::prompt::PromptToken;
use emberline_protocol::tools::{AnswerPart, TextBesideCalls, ToolCallReader, ToolFormat, call_id};

use crate::answer::{
    Choice, ChunkTokens, ChunkUsage, Envelope, FinishBody, UsageBody, ids_of, name_by_id, to_json,
};
use crate::prompt_logprobs::PromptLogprobsBody;
use crate::token_details::TokenDetails;

/// Builds the answer, or the chunks of its stream, for one request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatAnswer {
    /// The metadata that the answer and every chunk contain.
    pub envelope: Envelope,
    /// The request's metadata, which the answer returns unchanged.
    pub metadata: Option<Map<String, Value>>,
    /// How the generated text encodes function calls; `None` if it cannot contain any.
    pub tool_format: Option<ToolFormat>,
    /// Which text the answer may contain beside function calls.
    pub beside_calls: TextBesideCalls,
    /// The request's `tool_choice`.
    pub tool_choice: ToolChoice,
    /// Text that precedes the generated text of each choice.
    pub echo: Option<String>,
    /// Which details of tokens the answer contains.
    pub details: TokenDetails,
}

/// The answer to a chat request: a `chat.completion` object.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatCompletion<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    /// The `n` choices.
    choices: Vec<CompletionChoice<'a>>,
    /// Token counts of the whole request.
    usage: UsageBody,
    #[serde(flatten)]
    prompt: PromptBody<'a>,
    /// The request's `metadata`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    metadata: Option<&'a Map<String, Value>>,
}

/// A chunk of a streamed chat answer: a `chat.completion.chunk` object.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatCompletionChunk<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    /// The next part of one choice; empty in the additional last chunk with `usage`.
    choices: &'a [ChunkChoice<'a>],
    #[serde(flatten)]
    prompt: PromptBody<'a>,
    /// Token counts; only with `stream_options`. With `include_usage`, null in all chunks but the last. With
    /// `continuous_usage_stats`, the counts so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Head<'a> {
    /// `chatcmpl-` and 32 hexadecimal digits.
    id: String,
    /// `chat.completion`, or in a stream `chat.completion.chunk`.
    object: &'static str,
    /// When the request was accepted, in Unix seconds.
    created: u64,
    /// The model's name or alias, as in the request.
    model: &'a str,
    /// Names and versions of weights and engine.
    system_fingerprint: &'a str,
    /// Always `default`.
    service_tier: &'static str,
}

/// Details of the prompt's tokens. In a stream, the first chunk contains them.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct PromptBody<'a> {
    /// Ids of the prompt's tokens; only with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    /// Log-probabilities of the prompt's tokens; only with `prompt_logprobs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobsBody<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct CompletionChoice<'a> {
    /// Index of the choice, from 0.
    index: usize,
    /// The generated message.
    message: AssistantMessage,
    /// Log-probabilities of the generated tokens; null without `logprobs`.
    logprobs: Option<LogprobsBody<'a>>,
    /// Why the choice ended.
    finish_reason: Option<FinishBody>,
    /// Ids of all generated tokens, including the token that ends the turn; only with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(inline)]
struct AssistantMessage {
    /// Always `assistant`.
    role: &'static str,
    /// The message's text; null if the message contains only function calls.
    content: Option<String>,
    /// Always null.
    refusal: Option<()>,
    /// The function calls; absent if there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCallBody>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ToolCallBody {
    /// Id of the call, to which its result refers.
    id: String,
    /// Always `function`.
    r#type: &'static str,
    /// The function and its arguments.
    function: CalledFunction,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct CalledFunction {
    /// Name of the function.
    name: String,
    /// The arguments, as the text of a JSON object.
    arguments: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ChunkChoice<'a> {
    /// Index of the choice, from 0.
    index: u32,
    /// The part of the message that the chunk adds.
    delta: DeltaBody<'a>,
    /// Log-probabilities of the chunk's tokens; null without `logprobs`.
    logprobs: Option<LogprobsBody<'a>>,
    /// Why the choice ended; null in all chunks of the choice but the last.
    finish_reason: Option<FinishBody>,
    /// Ids of the chunk's tokens; only with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(inline)]
struct DeltaBody<'a> {
    /// `assistant`; only in the first chunk of a choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    /// More text.
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    /// The beginning of a function call, or more of its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCallDelta<'a>; 1]>,
}

/// The beginning of a function call, or more of its arguments.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ToolCallDelta<'a> {
    /// Index of the call within the message, from 0.
    index: u32,
    /// Id of the call; only at its beginning.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// `function`; only at the beginning of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    /// The function's name, or more of the arguments.
    function: FunctionDelta<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct FunctionDelta<'a> {
    /// Name of the function; only at the beginning of the call.
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// More of the arguments' text.
    arguments: &'a str,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatLogprobs")]
struct LogprobsBody<'a> {
    /// One entry for each token.
    content: Vec<TokenBody<'a>>,
    /// Always null.
    refusal: Option<()>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct TokenBody<'a> {
    #[serde(flatten)]
    token: LogprobBody<'a>,
    /// The most probable tokens at the same position, or those of `logprob_token_ids`.
    top_logprobs: Vec<LogprobBody<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct LogprobBody<'a> {
    /// The token's text. U+FFFD replaces bytes that are only part of a character.
    token: Cow<'a, str>,
    /// Natural logarithm of the token's probability before penalties, bias, temperature and filters; -9999
    /// for an impossible token.
    logprob: f32,
    /// The token's bytes; null for a control token, which has none.
    bytes: Option<&'a [u8]>,
}

/// The part of a choice that a chunk adds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Delta<'a> {
    /// The first chunk, which contains the role.
    Role,
    /// More text; empty if the chunk's tokens complete no character.
    Content(&'a str),
    /// The beginning of a function call.
    CallStart {
        /// Index of the call, from 0.
        index: u32,
        /// The function's name.
        name: &'a str,
    },
    /// More of the arguments of a function call.
    Arguments {
        /// Index of the call, from 0.
        index: u32,
        /// The arguments' next characters.
        text: &'a str,
    },
    /// The last chunk of a choice.
    Finish {
        /// Why it ended.
        reason: FinishReason,
        /// Number of function calls in the choice.
        calls: u32,
    },
}

impl ChatAnswer {
    fn head(&self, object: &'static str) -> Head<'_> {
        let Envelope { job, created, model, fingerprint } = &self.envelope;
        Head {
            id: format!("chatcmpl-{job}"),
            object,
            created: *created,
            model,
            system_fingerprint: fingerprint,
            service_tier: "default",
        }
    }

    /// The whole, non-streamed answer.
    pub fn completion(&self, choices: &[Choice], usage: &Usage) -> String {
        let prompt = self.prompt(choices.first().and_then(|choice| choice.prompt.as_deref()));
        let choices = choices.iter().zip(0..).map(|(choice, index)| {
            let message = self.message(index, &choice.text);
            let calls = u32::try_from(message.tool_calls.len()).unwrap_or(u32::MAX);
            CompletionChoice {
                index: index as usize,
                message,
                logprobs: choice.logprobs.as_deref().map(|tokens| self.logprobs(tokens)),
                finish_reason: choice.finish_reason.map(|reason| self.finish(reason, calls)),
                token_ids: choice.ids.as_deref(),
            }
        });
        to_json(&ChatCompletion {
            head: self.head("chat.completion"),
            choices: choices.collect(),
            usage: usage.into(),
            prompt,
            metadata: self.metadata.as_ref(),
        })
    }

    /// The details of the prompt's tokens that the client asks for.
    fn prompt<'a>(&self, tokens: Option<&'a [PromptToken]>) -> PromptBody<'a> {
        let Some(tokens) = tokens else { return PromptBody::default() };
        PromptBody {
            prompt_token_ids: self.details.ids.then(|| ids_of(tokens)),
            prompt_logprobs: self.details.prompt_logprobs.map(|top| PromptLogprobsBody { tokens, top }),
        }
    }

    fn logprobs<'a>(&self, tokens: &'a [TokenLogprobs]) -> LogprobsBody<'a> {
        let by_id = self.details.called_by_ids;
        let content = tokens.iter().map(|token| TokenBody {
            token: LogprobBody::new(&token.token, by_id),
            top_logprobs: token.top.iter().map(|token| LogprobBody::new(token, by_id)).collect(),
        });
        LogprobsBody { content: content.collect(), refusal: None }
    }

    fn message(&self, choice: u32, text: &str) -> AssistantMessage {
        let content = self.echo.clone().filter(|echo| !echo.is_empty());
        let mut message = AssistantMessage { role: "assistant", content, ..AssistantMessage::default() };
        let Some(mut reader) = self.call_reader() else {
            message.content.get_or_insert_default().push_str(text);
            return message;
        };
        let mut pieces = reader.push(text);
        pieces.extend(reader.finish());
        for piece in pieces {
            match piece {
                AnswerPart::Content(text) => message.content.get_or_insert_default().push_str(&text),
                AnswerPart::CallStart { index, name } => message.tool_calls.push(ToolCallBody {
                    id: call_id(&self.envelope.job, choice, index),
                    r#type: "function",
                    function: CalledFunction { name, arguments: String::new() },
                }),
                AnswerPart::Arguments { text, .. } => {
                    if let Some(call) = message.tool_calls.last_mut() {
                        call.function.arguments.push_str(&text);
                    }
                }
                AnswerPart::CallEnd { .. } => {}
            }
        }
        if message.tool_calls.is_empty() {
            message.content.get_or_insert_default();
        }
        message
    }

    /// A reader that separates function calls from text in one choice; `None` if the choice cannot contain
    /// any.
    pub fn call_reader(&self) -> Option<ToolCallReader> {
        self.tool_format.map(|format| ToolCallReader::new(format, self.beside_calls))
    }

    /// As in OpenAI's API, the reason is `stop` instead of `tool_calls` if `tool_choice` names the function.
    fn finish(&self, reason: FinishReason, calls: u32) -> FinishBody {
        let may_end_with_calls = !matches!(self.tool_choice, ToolChoice::Named(_));
        match FinishBody::from(reason) {
            FinishBody::Stop if calls > 0 && may_end_with_calls => FinishBody::ToolCalls,
            other => other,
        }
    }

    /// A chunk of the stream, with the details of its tokens.
    pub fn chunk(&self, choice: u32, delta: Delta<'_>, tokens: ChunkTokens<'_>, usage: ChunkUsage) -> String {
        self.chunk_after(None, choice, delta, tokens, usage)
    }

    /// The first chunk of a stream that contains details of the prompt's tokens.
    pub fn first_chunk(&self, prompt: &[PromptToken], usage: ChunkUsage) -> String {
        self.chunk_after(Some(prompt), 0, Delta::Role, ChunkTokens::default(), usage)
    }

    fn chunk_after(
        &self,
        prompt: Option<&[PromptToken]>,
        choice: u32,
        delta: Delta<'_>,
        tokens: ChunkTokens<'_>,
        usage: ChunkUsage,
    ) -> String {
        let mut body = DeltaBody::default();
        let mut finish_reason = None;
        match delta {
            Delta::Role => body = DeltaBody { role: Some("assistant"), content: Some(""), tool_calls: None },
            Delta::Content(text) => body.content = Some(text),
            Delta::CallStart { index, name } => {
                body.tool_calls = Some([ToolCallDelta {
                    index,
                    id: Some(call_id(&self.envelope.job, choice, index)),
                    r#type: Some("function"),
                    function: FunctionDelta { name: Some(name), arguments: "" },
                }]);
            }
            Delta::Arguments { index, text } => {
                let function = FunctionDelta { name: None, arguments: text };
                body.tool_calls = Some([ToolCallDelta { index, id: None, r#type: None, function }]);
            }
            Delta::Finish { reason, calls } => finish_reason = Some(self.finish(reason, calls)),
        }
        let logprobs = tokens.logprobs.map(|tokens| self.logprobs(tokens));
        let choice =
            ChunkChoice { index: choice, delta: body, logprobs, finish_reason, token_ids: tokens.ids };
        self.chunk_of(&[choice], self.prompt(prompt), usage)
    }

    /// The additional last chunk, which contains the token counts and no choices.
    pub fn usage_chunk(&self, usage: &Usage) -> String {
        self.chunk_of(&[], PromptBody::default(), ChunkUsage::Counts(*usage))
    }

    fn chunk_of(&self, choices: &[ChunkChoice<'_>], prompt: PromptBody<'_>, usage: ChunkUsage) -> String {
        let usage = usage.body();
        to_json(&ChatCompletionChunk { head: self.head("chat.completion.chunk"), choices, prompt, usage })
    }
}

impl<'a> LogprobBody<'a> {
    fn new(token: &'a TokenLogprob, by_id: bool) -> Self {
        let bytes = Some(&token.bytes[..]).filter(|bytes| !bytes.is_empty());
        let name = match by_id {
            true => name_by_id(token.id).into(),
            false => String::from_utf8_lossy(&token.bytes),
        };
        Self { token: name, logprob: token.logprob, bytes }
    }
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
