//! The body of `POST /v1/chat/completions`. Only the declaration: [`super::ChatRequest`] is what
//! becomes of it.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::message::MessageBody;
use super::tool::{ResponseFormat, ToolBody, ToolChoiceBody};
use crate::neutral::{Neutral, Only, OnlyAbsent, OnlyEmptyList, OnlyNumber};
use crate::numbers::{Seed, TokenLimit};
use crate::offer::MAX_TOOLS;
use crate::parameters::{
    MAX_CHOICES, MAX_METADATA, MAX_SALT, MAX_TOP_LOGPROBS, Sampling, Stop, StreamOptions,
};
use crate::structured::Structured;
use crate::token_details::TokenParameters;

/// A request for the next message of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(
    rename = "ChatCompletionRequest",
    deny_unknown_fields,
    extend("x-unsupported" = ["audio", "moderation", "prediction", "web_search_options"]),
)]
pub(super) struct ChatBody {
    /// A model or an alias; `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    pub(super) model: String,
    /// The conversation so far.
    #[schemars(length(min = 1))]
    pub(super) messages: Vec<MessageBody>,
    /// Answer as server-sent events. Default false.
    pub(super) stream: Option<bool>,
    /// What a stream carries beside the answer.
    pub(super) stream_options: Option<StreamOptions>,
    /// Most tokens of an answer; -1 for what the context leaves, which is the default.
    pub(super) max_completion_tokens: Option<TokenLimit>,
    /// The older name of `max_completion_tokens`; both given must agree.
    pub(super) max_tokens: Option<TokenLimit>,
    /// Choices to generate; the prompt counts once. Default 1.
    #[schemars(range(min = 1, max = MAX_CHOICES))]
    pub(super) n: Option<u32>,
    /// The same seed gives the same text. Default: drawn.
    pub(super) seed: Option<Seed>,
    /// Strings that end the answer and are not part of it.
    pub(super) stop: Option<Stop>,
    /// Adds the log-probability of each token. Default false.
    pub(super) logprobs: Option<bool>,
    /// So many most probable tokens in each one's place, with `logprobs` only. Default 0.
    #[schemars(range(min = 0, max = MAX_TOP_LOGPROBS))]
    pub(super) top_logprobs: Option<u32>,
    #[serde(flatten)]
    pub(super) tokens: TokenParameters,
    #[serde(flatten)]
    pub(super) sampling: Sampling,
    /// What the answer has to obey. With `tools`, it holds for answers that call none.
    pub(super) response_format: Option<ResponseFormat>,
    #[serde(flatten)]
    pub(super) structured: Structured,
    /// Functions that the model may call.
    #[schemars(length(max = MAX_TOOLS))]
    pub(super) tools: Option<Vec<ToolBody>>,
    /// Whether it calls them. Default `auto`.
    pub(super) tool_choice: Option<ToolChoiceBody>,
    /// It may call several at once. Default true.
    pub(super) parallel_tool_calls: Option<bool>,
    /// For models whose chat template knows it: how much to think, such as `low`.
    #[schemars(length(min = 1, max = 32))]
    pub(super) reasoning_effort: Option<String>,
    /// For models whose chat template knows it: how much to say.
    pub(super) verbosity: Option<Verbosity>,
    /// Extension. Variables for the model's chat template.
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    /// Extension. The prompt ends where the model's chat template has the answer begin. Default: true
    /// unless `continue_final_message` is.
    pub(super) add_generation_prompt: Option<bool>,
    /// Extension. The answer goes on with the last message, which is an assistant's. Default false.
    pub(super) continue_final_message: Option<bool>,
    /// Extension. The answer begins with the last message, if that is an assistant's. Default false.
    pub(super) echo: Option<bool>,
    /// Extension. Only requests with the same salt share the computation of a common beginning.
    #[schemars(length(min = 1, max = MAX_SALT))]
    pub(super) cache_salt: Option<String>,
    /// Returned with the answer: up to 16 pairs of strings.
    #[schemars(with = "Option<BTreeMap<String, String>>", extend("maxProperties" = MAX_METADATA))]
    pub(super) metadata: Option<Map<String, Value>>,
    /// True is not honoured: answers are not stored.
    pub(super) store: Option<bool>,
    #[serde(flatten)]
    #[allow(dead_code)] // it asks for nothing
    pub(super) nothing: AsksNothing,
}

/// Parameters that are accepted because their values ask for nothing to be done.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
pub(super) struct AsksNothing {
    /// Asks for nothing: answers are text.
    modalities: Option<Vec<Modality>>,
    /// There are none; `tools` has functions.
    #[schemars(extend("x-hint" = "Send 'tools'."))]
    functions: Option<OnlyEmptyList>,
    /// Of `functions`.
    #[schemars(extend(
        "enum" = ["auto", "none"], "x-unsupported-others" = true, "x-hint" = "Send 'tool_choice'.",
    ))]
    function_call: Option<Value>,
    /// As many as `n`.
    best_of: Option<OnlyNumber<1>>,
    /// The chat template writes them.
    add_special_tokens: Option<Only<false>>,
    /// The template is the model's.
    chat_template: Option<OnlyAbsent>,
    /// There are none.
    documents: Option<OnlyEmptyList>,
    #[serde(flatten)]
    neutral: Neutral,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline, extend("x-unsupported-values" = ["audio"]))]
pub(super) enum Modality {
    Text,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Verbosity {
    Low,
    Medium,
    High,
}

impl Verbosity {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}
