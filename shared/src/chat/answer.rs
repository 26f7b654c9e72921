//! Shapes answers as OpenAI's API has them: whole, or as the chunks of a stream.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::event::{FinishReason, TokenLogprob, TokenLogprobs, Usage};
use crate::subject::JobId;

/// What every answer to one request has in common.
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
    /// Returned as it came.
    pub metadata: Option<Map<String, Value>>,
}

#[derive(Serialize)]
struct Head<'a> {
    id: String,
    object: &'static str,
    created: u64,
    model: &'a str,
    system_fingerprint: &'a str,
    service_tier: &'static str,
}

impl Envelope {
    fn head(&self, object: &'static str) -> Head<'_> {
        Head {
            id: format!("chatcmpl-{}", self.job),
            object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            service_tier: "default",
        }
    }

    /// The whole answer, as `chat.completion`.
    pub fn completion(&self, choices: &[Choice], usage: &Usage) -> String {
        #[derive(Serialize)]
        struct Completion<'a> {
            #[serde(flatten)]
            head: Head<'a>,
            choices: Vec<CompletionChoice<'a>>,
            usage: UsageBody,
            #[serde(skip_serializing_if = "Option::is_none")]
            metadata: Option<&'a Map<String, Value>>,
        }
        #[derive(Serialize)]
        struct CompletionChoice<'a> {
            index: usize,
            message: AssistantMessage<'a>,
            logprobs: Option<LogprobsBody<'a>>,
            finish_reason: Option<FinishReason>,
        }
        #[derive(Serialize)]
        struct AssistantMessage<'a> {
            role: &'static str,
            content: &'a str,
            refusal: Option<()>,
        }
        let choices = choices.iter().enumerate().map(|(index, choice)| CompletionChoice {
            index,
            message: AssistantMessage { role: "assistant", content: &choice.text, refusal: None },
            logprobs: choice.logprobs.as_deref().map(LogprobsBody::from),
            finish_reason: choice.finish_reason,
        });
        to_json(&Completion {
            head: self.head("chat.completion"),
            choices: choices.collect(),
            usage: usage.into(),
            metadata: self.metadata.as_ref(),
        })
    }

    /// One `chat.completion.chunk` of a stream; `include_usage` puts `usage: null` on it.
    pub fn chunk(
        &self,
        choice: u32,
        delta: &Delta<'_>,
        finish: Option<FinishReason>,
        include_usage: bool,
    ) -> String {
        let (role, content, logprobs) = match *delta {
            Delta::Role => (Some("assistant"), Some(""), None),
            Delta::Content { text, logprobs } => (None, Some(text), logprobs.map(LogprobsBody::from)),
            Delta::Empty => (None, None, None),
        };
        let delta = DeltaBody { role, content };
        let choice = ChunkChoice { index: choice, delta, logprobs, finish_reason: finish };
        self.chunk_of(&[choice], include_usage.then_some(None))
    }

    /// The last chunk of a stream whose client asked for usage: no choices.
    pub fn usage_chunk(&self, usage: &Usage) -> String {
        self.chunk_of(&[], Some(Some(usage.into())))
    }

    /// `usage` is absent, or null, or counts.
    fn chunk_of(&self, choices: &[ChunkChoice<'_>], usage: Option<Option<UsageBody>>) -> String {
        #[derive(Serialize)]
        struct Chunk<'a> {
            #[serde(flatten)]
            head: Head<'a>,
            choices: &'a [ChunkChoice<'a>],
            #[serde(skip_serializing_if = "Option::is_none")]
            usage: Option<Option<UsageBody>>,
        }
        to_json(&Chunk { head: self.head("chat.completion.chunk"), choices, usage })
    }
}

#[derive(Serialize)]
struct ChunkChoice<'a> {
    index: u32,
    delta: DeltaBody<'a>,
    logprobs: Option<LogprobsBody<'a>>,
    finish_reason: Option<FinishReason>,
}

#[derive(Serialize)]
struct DeltaBody<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct LogprobsBody<'a> {
    content: Vec<TokenBody<'a>>,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct TokenBody<'a> {
    #[serde(flatten)]
    token: LogprobBody<'a>,
    top_logprobs: Vec<LogprobBody<'a>>,
}

#[derive(Serialize)]
struct LogprobBody<'a> {
    token: Cow<'a, str>,
    logprob: f32,
    /// Null for a token that stands for no bytes.
    bytes: Option<&'a [u8]>,
}

impl<'a> From<&'a [TokenLogprobs]> for LogprobsBody<'a> {
    fn from(tokens: &'a [TokenLogprobs]) -> Self {
        let content = tokens.iter().map(|token| TokenBody {
            token: LogprobBody::from(&token.token),
            top_logprobs: token.top.iter().map(LogprobBody::from).collect(),
        });
        Self { content: content.collect(), refusal: None }
    }
}

impl<'a> From<&'a TokenLogprob> for LogprobBody<'a> {
    fn from(token: &'a TokenLogprob) -> Self {
        let bytes = Some(&token.bytes[..]).filter(|bytes| !bytes.is_empty());
        Self { token: String::from_utf8_lossy(&token.bytes), logprob: token.logprob, bytes }
    }
}

#[derive(Serialize)]
struct UsageBody {
    prompt_tokens: u32,
    completion_tokens: u32,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
    completion_tokens_details: CompletionTokensDetails,
}

#[derive(Serialize)]
struct PromptTokensDetails {
    cached_tokens: u32,
}

#[derive(Serialize)]
struct CompletionTokensDetails {
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

/// One complete choice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// The whole text.
    pub text: String,
    /// Of each token, if the client asked for them.
    pub logprobs: Option<Vec<TokenLogprobs>>,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
}

/// What a chunk adds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Delta<'a> {
    /// The first chunk: who speaks.
    Role,
    /// More of the answer.
    Content {
        /// The text; may be empty where tokens complete no character.
        text: &'a str,
        /// Of the tokens that the chunk carries, if the client asked for them.
        logprobs: Option<&'a [TokenLogprobs]>,
    },
    /// The last chunk of a choice.
    Empty,
}

/// Serialises a value that cannot fail: string keys, no foreign `Serialize`.
fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}
