//! A response as OpenAI's API has it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use emberline_protocol::error::ApiError;
use emberline_protocol::event::{TokenLogprob, TokenLogprobs, Usage};

use super::decimal;

/// A `response`.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Response<'a> {
    /// `resp_` and 32 hexadecimal digits.
    pub id: String,
    /// What this is.
    pub object: &'static str,
    /// Unix seconds.
    pub created_at: u64,
    /// Unix seconds; null unless it is completed.
    pub completed_at: Option<u64>,
    /// How it stands.
    pub status: Status,
    /// It runs to its end though nobody listens.
    pub background: bool,
    /// Why it failed.
    pub error: Option<Failure>,
    /// Why it is incomplete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As the request has it.
    pub model: &'a str,
    /// What the model wrote.
    pub output: &'a [OutputItem],
    /// Known at its end.
    pub usage: Option<ResponseUsage>,
    /// It can be had by its id for some time.
    pub store: bool,
    /// Parameters of the request.
    #[serde(flatten)]
    pub echo: &'a Echo,
}

/// How a response stands.
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
    code: FailureCode,
    message: String,
}

/// OpenAI has few codes for a response that failed; the message says more.
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
    reason: &'static str,
}

impl IncompleteDetails {
    /// The tokens are used up.
    pub const MAX_OUTPUT_TOKENS: Self = Self { reason: "max_output_tokens" };
}

/// A part of the output.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// A text.
    Message {
        /// Names the item.
        id: String,
        /// How it stands.
        status: ItemStatus,
        /// Always `assistant`.
        role: &'static str,
        /// The text; nothing before it begins.
        content: Vec<OutputText>,
    },
    /// A call of a function.
    FunctionCall {
        /// Names the item.
        id: String,
        /// How it stands.
        status: ItemStatus,
        /// Names the call; its output refers to it.
        call_id: String,
        /// The function's name.
        name: String,
        /// A JSON object as text.
        arguments: String,
    },
}

/// How a part of the output stands.
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
    r#type: &'static str,
    /// The text.
    pub text: String,
    /// Always empty.
    annotations: [(); 0],
    /// Of the text's tokens, if they are asked for.
    pub logprobs: Vec<TextLogprob>,
}

impl OutputText {
    /// A part that says this.
    pub fn new(text: impl Into<String>) -> Self {
        Self { r#type: "output_text", text: text.into(), annotations: [], logprobs: Vec::new() }
    }
}

/// The log-probability of a token, and of the most probable ones in its place.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(inline)]
pub struct TextLogprob {
    #[serde(flatten)]
    token: TextToken,
    top_logprobs: Vec<TextToken>,
}

#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
#[schemars(inline)]
struct TextToken {
    token: String,
    logprob: f64,
    /// Empty for a token that stands for no bytes.
    bytes: Vec<u8>,
}

impl TextLogprob {
    /// How many bytes of the text the token is.
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

/// What was computed for a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct ResponseUsage {
    input_tokens: u32,
    input_tokens_details: InputTokensDetails,
    output_tokens: u32,
    output_tokens_details: OutputTokensDetails,
    total_tokens: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
struct InputTokensDetails {
    /// Tokens of the input that were computed for an earlier request.
    cached_tokens: u32,
    /// Always 0: writing to the cache costs nothing.
    cache_write_tokens: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(inline)]
struct OutputTokensDetails {
    /// Always 0: thinking is not told apart.
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

/// Parameters of the request that its response returns, every default filled in.
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

/// What deleting a response answers with.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeletedResponse {
    /// The response's id.
    pub id: String,
    /// What was deleted.
    pub object: &'static str,
    /// Always true.
    pub deleted: bool,
}

/// What every event of a response's stream has; the rest depends on its type.
#[derive(Debug, JsonSchema)]
#[schemars(rename = "ResponseEvent")]
#[allow(dead_code)] // it only describes
pub struct ResponseEvent {
    r#type: String,
    /// Grows from event to event.
    sequence_number: u64,
}
