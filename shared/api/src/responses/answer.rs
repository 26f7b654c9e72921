//! The types of a response, as OpenAI's API defines it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use emberline_protocol::error::ApiError;
use emberline_protocol::event::{TokenLogprob, TokenLogprobs, Usage};

use super::decimal;

/// A response, whole or as far as it has been generated.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Response<'a> {
    /// `resp_` and 32 hexadecimal digits.
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// When the request was accepted, in Unix seconds.
    pub created_at: u64,
    /// When the response was completed, in Unix seconds; null unless its status is `completed`.
    pub completed_at: Option<u64>,
    /// Status of the response.
    pub status: Status,
    /// Whether it runs to completion even without a connected client.
    pub background: bool,
    /// Why the response failed; null unless its status is `failed`.
    pub error: Option<Failure>,
    /// Why the response is incomplete; null unless its status is `incomplete`.
    pub incomplete_details: Option<IncompleteDetails>,
    /// The model's name or alias, as in the request.
    pub model: &'a str,
    /// The generated messages and function calls.
    pub output: &'a [OutputItem],
    /// Token counts; null until the response ends.
    pub usage: Option<ResponseUsage>,
    /// Whether the response can be retrieved by its id for a limited time.
    pub store: bool,
    /// The request's parameters.
    #[serde(flatten)]
    pub echo: &'a Echo,
}

/// Status of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[allow(missing_docs)] // as in OpenAI's API
pub enum Status {
    Queued,
    InProgress,
    Completed,
    Incomplete,
    Cancelled,
    Failed,
}

/// Why a response failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct Failure {
    /// The kind of the failure.
    code: FailureCode,
    /// What is wrong and what to do about it.
    message: String,
}

/// OpenAI's codes for failed responses. They are few; the message contains the details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
enum FailureCode {
    ServerError,
    RateLimitExceeded,
    InvalidPrompt,
}

impl From<&ApiError> for Failure {
    fn from(error: &ApiError) -> Self {
        let code = match error.code.status() {
            429 => FailureCode::RateLimitExceeded,
            400..=499 => FailureCode::InvalidPrompt,
            _ => FailureCode::ServerError,
        };
        Self { code, message: error.message.clone() }
    }
}

/// Why a response is incomplete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct IncompleteDetails {
    /// Always `max_output_tokens`.
    reason: &'static str,
}

impl IncompleteDetails {
    /// A token limit was reached.
    pub const MAX_OUTPUT_TOKENS: Self = Self { reason: "max_output_tokens" };
}

/// An item of the output.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// A message.
    Message {
        /// Id of the item.
        id: String,
        /// Status of the item.
        status: ItemStatus,
        /// Always `assistant`.
        role: &'static str,
        /// The message's text; empty before the text begins.
        content: Vec<OutputText>,
    },
    /// A function call.
    FunctionCall {
        /// Id of the item.
        id: String,
        /// Status of the item.
        status: ItemStatus,
        /// Id of the call, to which its output refers.
        call_id: String,
        /// Name of the function.
        name: String,
        /// The arguments, as the text of a JSON object.
        arguments: String,
    },
}

/// Status of an item of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
#[allow(missing_docs)] // as in OpenAI's API
pub enum ItemStatus {
    InProgress,
    Completed,
    Incomplete,
}

/// The text of a message.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct OutputText {
    /// Always `output_text`.
    r#type: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
    annotations: [(); 0],
    /// Log-probabilities of the text's tokens; empty if the request does not ask for them.
    pub logprobs: Vec<TextLogprob>,
}

impl OutputText {
    /// A part with this text, without log-probabilities.
    pub fn new(text: impl Into<String>) -> Self {
        Self { r#type: "output_text", text: text.into(), annotations: [], logprobs: Vec::new() }
    }
}

/// The log-probability of a token, and those of the most probable tokens at its position.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct TextLogprob {
    #[serde(flatten)]
    token: TextToken,
    /// The most probable tokens at the same position.
    top_logprobs: Vec<TextToken>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(inline)]
struct TextToken {
    /// The token's text. U+FFFD replaces bytes that are only part of a character.
    token: String,
    /// Natural logarithm of the token's probability before penalties, bias, temperature and filters; -9999
    /// for an impossible token.
    logprob: f64,
    /// The token's bytes; empty for a control token.
    bytes: Vec<u8>,
}

impl TextLogprob {
    /// Length of the token's text in bytes.
    pub fn text_bytes(&self) -> usize {
        self.token.bytes.len()
    }
}

impl From<&TokenLogprobs> for TextLogprob {
    fn from(logprobs: &TokenLogprobs) -> Self {
        let top_logprobs = logprobs.top.iter().map(TextToken::from).collect();
        Self { token: (&logprobs.token).into(), top_logprobs }
    }
}

impl From<&TokenLogprob> for TextToken {
    fn from(token: &TokenLogprob) -> Self {
        let text = String::from_utf8_lossy(&token.bytes).into_owned();
        Self { token: text, logprob: decimal(token.logprob), bytes: token.bytes.clone() }
    }
}

/// Token counts of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ResponseUsage {
    /// Tokens in the prompt.
    input_tokens: u32,
    /// How the prompt's tokens were computed.
    input_tokens_details: InputTokensDetails,
    /// Generated tokens, including the token that ends the output.
    output_tokens: u32,
    /// Kinds of generated tokens.
    output_tokens_details: OutputTokensDetails,
    /// `input_tokens` plus `output_tokens`.
    total_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
struct InputTokensDetails {
    /// Tokens of the prompt that the prefix cache already held.
    cached_tokens: u32,
    /// Always 0, because writing to the prefix cache is not charged.
    cache_write_tokens: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
struct OutputTokensDetails {
    /// Always 0, because reasoning tokens are not counted separately.
    reasoning_tokens: u32,
}

impl From<&Usage> for ResponseUsage {
    fn from(usage: &Usage) -> Self {
        Self {
            input_tokens: usage.prompt_tokens,
            input_tokens_details: InputTokensDetails {
                cached_tokens: usage.cached_tokens,
                cache_write_tokens: 0,
            },
            output_tokens: usage.completion_tokens,
            output_tokens_details: OutputTokensDetails { reasoning_tokens: 0 },
            total_tokens: u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
        }
    }
}

/// The request's parameters that a response returns, with every default filled in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Echo {
    pub(super) conversation: (),
    pub(super) frequency_penalty: f64,
    pub(super) instructions: Option<String>,
    pub(super) max_output_tokens: Option<u32>,
    pub(super) max_tool_calls: (),
    #[schemars(with = "BTreeMap<String, String>")]
    pub(super) metadata: Map<String, Value>,
    pub(super) parallel_tool_calls: bool,
    pub(super) presence_penalty: f64,
    pub(super) previous_response_id: (),
    pub(super) prompt_cache_key: Option<String>,
    pub(super) reasoning: ReasoningEcho,
    pub(super) safety_identifier: Option<String>,
    pub(super) service_tier: String,
    pub(super) temperature: f64,
    pub(super) text: TextEcho,
    pub(super) tool_choice: Value,
    pub(super) tools: Vec<ToolEcho>,
    pub(super) top_logprobs: u32,
    pub(super) top_p: f64,
    pub(super) truncation: String,
    pub(super) user: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct ReasoningEcho {
    pub(super) effort: Option<String>,
    pub(super) summary: (),
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct TextEcho {
    pub(super) format: Map<String, Value>,
    pub(super) verbosity: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub(super) struct ToolEcho {
    pub(super) r#type: String,
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) parameters: Map<String, Value>,
    pub(super) strict: bool,
}

/// The answer to the deletion of a response.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeletedResponse {
    /// The response's id.
    pub id: String,
    /// Always `response`.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// The fields that all events in the stream of a response share. Further fields depend on the event's type.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "ResponseEvent")]
#[allow(dead_code)] // only its schema is used
pub struct ResponseEvent {
    /// The event's type, such as `response.output_text.delta`.
    r#type: String,
    /// Number of the event. Numbers increase throughout the stream, but not by one.
    sequence_number: u64,
}
