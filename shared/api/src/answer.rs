//! What answers of several endpoints have in common.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use emberline_protocol::event::{FinishReason, TokenLogprobs, Usage};
use emberline_protocol::prompt::PromptToken;
use emberline_protocol::subject::JobId;

/// What every answer to one request begins with.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// Makes the answer's id.
    pub job: JobId,
    /// Unix seconds.
    pub created: u64,
    /// As the client wrote it.
    pub model: String,
    /// Names weights and engine.
    pub fingerprint: String,
}

/// One complete choice, as the worker wrote it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// The whole text.
    pub text: String,
    /// Of each token, if the client asked for them.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// Its tokens' ids, if the client asked for them.
    pub ids: Option<Vec<u32>>,
    /// The tokens of its prompt, if the client asked for them.
    pub prompt: Option<Arc<[PromptToken]>>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
}

/// The tokens that a chunk carries.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ChunkTokens<'a> {
    /// Their log-probabilities, if they are asked for.
    pub logprobs: Option<&'a [TokenLogprobs]>,
    /// Their ids, if they are asked for.
    pub ids: Option<&'a [u32]>,
}

/// Why a choice ended, in the API's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum FinishBody {
    Stop,
    Length,
    ToolCalls,
}

impl From<FinishReason> for FinishBody {
    fn from(reason: FinishReason) -> Self {
        match reason {
            FinishReason::Stop => Self::Stop,
            // Nobody waits for an answer that was cancelled.
            FinishReason::Length | FinishReason::Cancelled => Self::Length,
        }
    }
}

/// Token counts of all choices together.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
pub(crate) struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
    completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct PromptTokensDetails {
    /// Tokens of the prompt that were computed for an earlier request.
    cached_tokens: u32,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct CompletionTokensDetails {
    /// Always 0: thinking is not told apart.
    reasoning_tokens: u32,
}

impl From<&Usage> for UsageBody {
    fn from(usage: &Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: u64::from(usage.prompt_tokens) + u64::from(usage.completion_tokens),
            prompt_tokens_details: PromptTokensDetails { cached_tokens: usage.cached_tokens },
            completion_tokens_details: CompletionTokensDetails { reasoning_tokens: 0 },
        }
    }
}

/// What a chunk of a stream says of usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChunkUsage {
    /// Nothing: there is no such field.
    #[default]
    Absent,
    /// That another chunk has it.
    Null,
    /// The counts so far.
    Counts(Usage),
}

impl ChunkUsage {
    /// As a field that is left out, null, or counts.
    pub(crate) fn body(self) -> Option<Option<UsageBody>> {
        match self {
            Self::Absent => None,
            Self::Null => Some(None),
            Self::Counts(usage) => Some(Some((&usage).into())),
        }
    }
}

/// The ids of these tokens.
pub(crate) fn ids_of(tokens: &[PromptToken]) -> Vec<u32> {
    tokens.iter().map(|token| token.id).collect()
}

/// What a token is called by its id.
pub(crate) fn name_by_id(id: u32) -> String {
    format!("token_id:{id}")
}

/// Serialises a value that cannot fail: string keys, no foreign `Serialize`.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
