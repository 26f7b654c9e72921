//! Parts that the answers of several endpoints share.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::Serialize;

use emberline_protocol::event::{FinishReason, TokenLogprobs, Usage};
use emberline_protocol::prompt::PromptToken;
use emberline_protocol::subject::JobId;

/// The metadata that every answer and every chunk for one request contains.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// The job's id, from which the answer's id is derived.
    pub job: JobId,
    /// When the request was accepted, in Unix seconds.
    pub created: u64,
    /// The model's name, as the client wrote it.
    pub model: String,
    /// Names and versions of weights and engine.
    pub fingerprint: String,
}

/// One complete choice, as the worker generated it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// Its whole text.
    pub text: String,
    /// The log-probabilities of its tokens, if the client asks for them.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// The ids of its tokens, if the client asks for them.
    pub ids: Option<Vec<u32>>,
    /// The tokens of its prompt, if the client asks for them.
    pub prompt: Option<Arc<[PromptToken]>>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
}

/// The tokens of a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ChunkTokens<'a> {
    /// Their log-probabilities, if the client asks for them.
    pub logprobs: Option<&'a [TokenLogprobs]>,
    /// Their ids, if the client asks for them.
    pub ids: Option<&'a [u32]>,
}

/// Why a choice ended: `stop` (the model ended it, or a stop sequence did), `length` (a token limit), or
/// `tool_calls`.
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
            // No client reads the answer of a cancelled job.
            FinishReason::Length | FinishReason::Cancelled => Self::Length,
        }
    }
}

/// Token counts of the whole request, over all choices.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Usage")]
pub(crate) struct UsageBody {
    /// Tokens of the prompt, or of all prompts. A prompt is counted once, however many choices it has.
    prompt_tokens: u32,
    /// Generated tokens, including the token that ends a choice.
    completion_tokens: u32,
    /// `prompt_tokens` plus `completion_tokens`.
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
    completion_tokens_details: CompletionTokensDetails,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct PromptTokensDetails {
    /// Tokens of the prompt that the prefix cache already held.
    cached_tokens: u32,
}

#[derive(Debug, Serialize, JsonSchema)]
#[schemars(inline)]
struct CompletionTokensDetails {
    /// Always 0, because reasoning tokens are not counted separately.
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

/// The `usage` field of a chunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ChunkUsage {
    /// The chunk has no such field.
    #[default]
    Absent,
    /// The field is null, because a later chunk contains the counts.
    Null,
    /// The token counts so far.
    Counts(Usage),
}

impl ChunkUsage {
    /// The value to serialise: `None` omits the field, `Some(None)` is null.
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

/// The name that represents a token by its id.
pub(crate) fn name_by_id(id: u32) -> String {
    format!("token_id:{id}")
}

/// Serialises a value whose serialisation cannot fail, because its keys are strings and it contains no
/// foreign `Serialize` implementation.
pub(crate) fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
