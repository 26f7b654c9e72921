//! Declares the body of `POST /v1/chat/completions`, which [`super::ChatRequest`] parses.

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

/// A request to generate the next message of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(
    rename = "ChatCompletionRequest",
    deny_unknown_fields,
    extend("x-unsupported" = ["audio", "moderation", "prediction", "web_search_options"]),
)]
pub(super) struct ChatBody {
    /// Name of a model or an alias. `GET /v1/models` lists them.
    #[schemars(length(min = 1, max = 256), extend("x-hint" = "GET /v1/models lists the names."))]
    pub(super) model: String,
    /// The messages of the conversation so far.
    #[schemars(length(min = 1))]
    pub(super) messages: Vec<MessageBody>,
    /// Whether to stream the answer as server-sent events. Default: false.
    pub(super) stream: Option<bool>,
    /// Options for streaming.
    pub(super) stream_options: Option<StreamOptions>,
    /// Maximum number of tokens to generate for each choice; -1 for as many as the model's context allows.
    /// Default: -1.
    pub(super) max_completion_tokens: Option<TokenLimit>,
    /// Older name of `max_completion_tokens`. If both are given, they must be equal.
    pub(super) max_tokens: Option<TokenLimit>,
    /// Number of choices to generate. `usage` counts the prompt's tokens once. Default: 1.
    #[schemars(range(min = 1, max = MAX_CHOICES))]
    pub(super) n: Option<u32>,
    /// Seed for sampling. On the same kind of device, a request with the same seed generates the same text.
    /// Default: random.
    pub(super) seed: Option<Seed>,
    /// Up to 4 stop sequences. Each ends the choice in which it occurs, and is not part of the text.
    pub(super) stop: Option<Stop>,
    /// Whether to return the log-probability of each generated token. Default: false.
    pub(super) logprobs: Option<bool>,
    /// Number of most probable tokens to return at each position, with their log-probabilities; requires
    /// `logprobs`. Default: 0.
    #[schemars(range(min = 0, max = MAX_TOP_LOGPROBS))]
    pub(super) top_logprobs: Option<u32>,
    #[serde(flatten)]
    pub(super) tokens: TokenParameters,
    #[serde(flatten)]
    pub(super) sampling: Sampling,
    /// The format that the generated text must have. With `tools`, it applies to answers without function
    /// calls. Default: any text.
    pub(super) response_format: Option<ResponseFormat>,
    #[serde(flatten)]
    pub(super) structured: Structured,
    /// Functions that the model may call. Default: none.
    #[schemars(length(max = MAX_TOOLS))]
    pub(super) tools: Option<Vec<ToolBody>>,
    /// Whether the model calls functions, and which. Default: `auto`.
    pub(super) tool_choice: Option<ToolChoiceBody>,
    /// Whether an answer may contain more than one function call. Default: true.
    pub(super) parallel_tool_calls: Option<bool>,
    /// How much the model reasons before it answers, such as `low`. It is a variable of the model's chat
    /// template; if the template does not read it, it is left out and listed in the header
    /// `x-emberline-relaxed`.
    #[schemars(length(min = 1, max = 32))]
    pub(super) reasoning_effort: Option<String>,
    /// How long the answer should be. It is a variable of the model's chat template; if the template does not
    /// read it, it is left out and listed in the header `x-emberline-relaxed`.
    pub(super) verbosity: Option<Verbosity>,
    /// Extension to OpenAI's API. Variables for the model's chat template, such as `enable_thinking`.
    /// Variables that the template does not read are left out and listed in the header `x-emberline-relaxed`.
    /// Default: none.
    pub(super) chat_template_kwargs: Option<Map<String, Value>>,
    /// Extension to OpenAI's API. Whether the chat template adds the beginning of the assistant's turn to the
    /// prompt. Default: true, unless `continue_final_message` is true.
    pub(super) add_generation_prompt: Option<bool>,
    /// Extension to OpenAI's API. Whether the answer continues the last message, which must be an assistant's
    /// message without function calls. Default: false.
    pub(super) continue_final_message: Option<bool>,
    /// Extension to OpenAI's API. Whether each choice begins with the content of the last message, if that is
    /// an assistant's. Default: false.
    pub(super) echo: Option<bool>,
    /// Extension to OpenAI's API. Only requests with the same salt share entries of the prefix cache.
    /// Default: no salt; requests without one share entries with each other.
    #[schemars(length(min = 1, max = MAX_SALT))]
    pub(super) cache_salt: Option<String>,
    /// Up to 16 pairs of strings, which the answer returns unchanged. Default: none.
    #[schemars(with = "Option<BTreeMap<String, String>>", extend("maxProperties" = MAX_METADATA))]
    pub(super) metadata: Option<Map<String, Value>>,
    /// `true` is accepted but not honoured (listed in the header `x-emberline-relaxed`), because answers are
    /// not stored. Default: false.
    pub(super) store: Option<bool>,
    #[serde(flatten)]
    #[allow(dead_code)] // it has no effect
    pub(super) no_effect: NoEffect,
}

/// Parameters that are accepted if their value has no effect.
#[derive(Debug, Deserialize, JsonSchema)]
#[allow(dead_code)]
pub(super) struct NoEffect {
    /// Accepted for compatibility; `text` has no effect, because answers always contain text.
    modalities: Option<Vec<Modality>>,
    /// Only `[]` is accepted; use `tools` instead.
    #[schemars(extend("x-hint" = "Send 'tools'."))]
    functions: Option<OnlyEmptyList>,
    /// Only `auto` and `none` are accepted, which have no effect; use `tool_choice` instead.
    #[schemars(extend(
        "enum" = ["auto", "none"], "x-unsupported-others" = true, "x-hint" = "Send 'tool_choice'.",
    ))]
    function_call: Option<Value>,
    /// Only 1 is accepted, because the server does not select the best of several choices.
    best_of: Option<OnlyNumber<1>>,
    /// Only `false` is accepted, because the chat template adds the special tokens.
    add_special_tokens: Option<Only<false>>,
    /// Only null is accepted, because the model's own chat template is always used.
    chat_template: Option<OnlyAbsent>,
    /// Only `[]` is accepted, because documents are not supported.
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
