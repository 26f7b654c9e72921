//! Shapes answers as OpenAI's API has them: whole, or as the chunks of a stream.

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

/// Makes what the client gets of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatAnswer {
    /// What all of it begins with.
    pub envelope: Envelope,
    /// Returned as it came.
    pub metadata: Option<Map<String, Value>>,
    /// How calls of functions are written in the text, if it may have any.
    pub tool_format: Option<ToolFormat>,
    /// Which text there may be beside calls.
    pub beside_calls: TextBesideCalls,
    /// As it was asked for.
    pub tool_choice: ToolChoice,
    /// What each choice begins with, apart from what is generated.
    pub echo: Option<String>,
    /// What is told of tokens.
    pub details: TokenDetails,
}

/// A `chat.completion`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatCompletion<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    choices: Vec<CompletionChoice<'a>>,
    usage: UsageBody,
    #[serde(flatten)]
    prompt: PromptBody<'a>,
    /// As it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<BTreeMap<String, String>>")]
    metadata: Option<&'a Map<String, Value>>,
}

/// A `chat.completion.chunk`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct ChatCompletionChunk<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    choices: &'a [ChunkChoice<'a>],
    #[serde(flatten)]
    prompt: PromptBody<'a>,
    /// With `stream_options.include_usage` only: null but for the last chunk, unless
    /// `continuous_usage_stats` asks for the counts so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<UsageBody>>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Head<'a> {
    /// `chatcmpl-` and 32 hexadecimal digits.
    id: String,
    object: &'static str,
    /// Unix seconds.
    created: u64,
    /// As the request has it.
    model: &'a str,
    /// Names weights and engine.
    system_fingerprint: &'a str,
    service_tier: &'static str,
}

/// What is told of the prompt: in a stream by the first chunk.
#[derive(Debug, Default, Serialize, JsonSchema)]
struct PromptBody<'a> {
    /// With `return_token_ids` only.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_token_ids: Option<Vec<u32>>,
    /// If it is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<PromptLogprobsBody<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct CompletionChoice<'a> {
    index: usize,
    message: AssistantMessage,
    logprobs: Option<LogprobsBody<'a>>,
    finish_reason: Option<FinishBody>,
    /// With `return_token_ids` only: of all tokens, one that ends the turn included.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(inline)]
struct AssistantMessage {
    role: &'static str,
    /// Null where functions are called and nothing is said.
    content: Option<String>,
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCallBody>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ToolCallBody {
    id: String,
    r#type: &'static str,
    function: CalledFunction,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct CalledFunction {
    name: String,
    /// A JSON object as text.
    arguments: String,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ChunkChoice<'a> {
    index: u32,
    delta: DeltaBody<'a>,
    logprobs: Option<LogprobsBody<'a>>,
    finish_reason: Option<FinishBody>,
    /// With `return_token_ids` only: of the tokens that the chunk carries.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [u32]>,
}

#[derive(Debug, Default, Serialize, JsonSchema)]
#[schemars(inline)]
struct DeltaBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_calls: Option<[ToolCallDelta<'a>; 1]>,
}

/// The beginning of a call, or more of its arguments.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct ToolCallDelta<'a> {
    index: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta<'a>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct FunctionDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    arguments: &'a str,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ChatLogprobs")]
struct LogprobsBody<'a> {
    content: Vec<TokenBody<'a>>,
    refusal: Option<()>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct TokenBody<'a> {
    #[serde(flatten)]
    token: LogprobBody<'a>,
    top_logprobs: Vec<LogprobBody<'a>>,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct LogprobBody<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    /// Null for a token that stands for no bytes.
    bytes: Option<&'a [u8]>,
}

/// What a chunk adds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Delta<'a> {
    /// The first chunk: who speaks.
    Role,
    /// More text; may be empty where tokens complete no character.
    Content(&'a str),
    /// A call begins.
    CallStart {
        /// Which call, from 0.
        index: u32,
        /// The function's name.
        name: &'a str,
    },
    /// More of a call's arguments.
    Arguments {
        /// Which call, from 0.
        index: u32,
        /// The text.
        text: &'a str,
    },
    /// The last chunk of a choice.
    Finish {
        /// Why it ended.
        reason: FinishReason,
        /// So many functions are called.
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

    /// The whole answer.
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

    /// What of a prompt's tokens is told.
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

    /// Tells calls from text in one choice; `None` if it may have none.
    pub fn call_reader(&self) -> Option<ToolCallReader> {
        self.tool_format.map(|format| ToolCallReader::new(format, self.beside_calls))
    }

    /// As in OpenAI's API, a call that the client has named itself is no reason of its own.
    fn finish(&self, reason: FinishReason, calls: u32) -> FinishBody {
        let may_end_with_calls = !matches!(self.tool_choice, ToolChoice::Named(_));
        match FinishBody::from(reason) {
            FinishBody::Stop if calls > 0 && may_end_with_calls => FinishBody::ToolCalls,
            other => other,
        }
    }

    /// One chunk of a stream, with its tokens.
    pub fn chunk(&self, choice: u32, delta: Delta<'_>, tokens: ChunkTokens<'_>, usage: ChunkUsage) -> String {
        self.chunk_after(None, choice, delta, tokens, usage)
    }

    /// The first chunk of a stream that tells of its prompt.
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

    /// The last chunk of a stream whose client asked for usage: no choices.
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
