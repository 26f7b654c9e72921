//! A job: one normalised generation request, as the function queues it for a worker.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::key::KeyId;
use crate::lane::Lane;
use crate::subject::{self, JobId};

/// Largest number of choices of a request.
pub const MAX_CHOICES: u32 = 16;

/// One generation, as a message in the `JOBS` stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// The job's id, also the message's `Nats-Msg-Id`.
    pub id: JobId,
    /// The model's own name, aliases resolved.
    pub model: String,
    /// When the function accepted the request, in Unix milliseconds.
    pub created: u64,
    /// When the job expires, in Unix milliseconds.
    pub deadline: u64,
    /// What to generate.
    pub request: GenerationRequest,
    /// Seed of sampling; random if the client gives none.
    pub seed: u64,
    /// If set, the job runs to completion even without a connected client, the `requests` bucket holds the
    /// function's `stored_request` of it, and its log is kept for at least this many seconds after its
    /// deadline.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<u32>,
    /// The key to which the job is charged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
}

impl Job {
    /// The stream and the subject of its event log.
    pub fn log(&self) -> (&'static str, String) {
        log_of(&self.id, self.background.is_some())
    }

    /// The lane of its model's queue in which it waits.
    pub fn lane(&self) -> Lane {
        self.account.as_ref().map(|account| account.lane).unwrap_or_default()
    }
}

/// The stream and the subject of a job's event log.
pub fn log_of(job: &JobId, is_background: bool) -> (&'static str, String) {
    if is_background {
        (subject::KEPT_STREAM, subject::kept_events(job))
    } else {
        (subject::EVENTS_STREAM, subject::events(job))
    }
}

/// The key to which a job is charged, and the counters to which the function added in advance. The worker
/// that ends the job corrects these counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The key that authorised the request.
    pub key: KeyId,
    /// Tokens counted in advance.
    pub reserved_tokens: u64,
    /// Subjects of the counters to which they were added.
    #[serde(default)]
    pub token_counters: Vec<String>,
    /// Subjects of the job counters, of its key and of its model, each of which this job incremented by one.
    #[serde(default)]
    pub job_counters: Vec<String>,
    /// Its lane in the queue, from how many jobs its key has.
    #[serde(default)]
    pub lane: Lane,
    /// What the message ids of its corrections and of its usage are made of; the job's id where it is missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admission: Option<AdmissionId>,
}

/// What a job was counted under: a random number. Each try to have a request served draws another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AdmissionId(u64);

impl AdmissionId {
    /// An id made of 64 random bits.
    pub fn from_random(bits: u64) -> Self {
        Self(bits)
    }

    /// The id of the `n`th job of a request whose first one has this id.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        Self(self.0.wrapping_add(n))
    }
}

impl fmt::Display for AdmissionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What to generate, with every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationRequest {
    /// The conversation so far; empty if there is a `prompt`.
    pub messages: Vec<Message>,
    /// A raw prompt, to which no chat template is applied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<RawPrompt>,
    /// Whether `Accepted` contains the prompt's text.
    pub echo: bool,
    /// Whether the prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Whether the answer continues the last message, which is the assistant's.
    pub continue_final_message: bool,
    /// Only prompts with the same salt share entries of the prefix cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// Whether the log contains the prompt's tokens and the tokens that end choices.
    pub return_token_ids: bool,
    /// If set, the log contains the prompt's tokens with their log-probabilities, and this many most probable
    /// alternatives at each position, 0 to 20.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<u32>,
    /// Functions that the model may call; empty if it may call none.
    pub tools: Vec<Tool>,
    /// Whether the model calls them.
    pub tool_choice: ToolChoice,
    /// Whether the model may call several in one answer.
    pub parallel_tool_calls: bool,
    /// What every answer that is complete obeys; not together with `tools`, except for answers
    /// that call none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraint: Option<Constraint>,
    /// Variables of the chat template, such as `enable_thinking` and `reasoning_effort`.
    pub template_variables: Map<String, Value>,
    /// Most tokens to generate; `None` for what the context leaves.
    pub max_tokens: Option<u32>,
    /// Strings that end the text and are not part of it; none is empty.
    pub stop: Vec<String>,
    /// Choices to generate, 1 to 16; they share the prompt.
    pub n: u32,
    /// Log-probabilities of each token and of so many most probable ones, 0 to 20; `None` for none.
    pub logprobs: Option<u32>,
    /// Tokens whose log-probabilities are wanted instead of those of the most probable ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub logprob_token_ids: Vec<u32>,
    /// How tokens are sampled.
    #[serde(flatten)]
    pub sampling: SamplingOptions,
}

impl Default for GenerationRequest {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            prompt: None,
            echo: false,
            add_generation_prompt: true,
            continue_final_message: false,
            cache_salt: None,
            return_token_ids: false,
            prompt_logprobs: None,
            tools: Vec::new(),
            tool_choice: ToolChoice::default(),
            parallel_tool_calls: true,
            constraint: None,
            template_variables: Map::new(),
            max_tokens: None,
            stop: Vec::new(),
            n: 1,
            logprobs: None,
            logprob_token_ids: Vec::new(),
            sampling: SamplingOptions::default(),
        }
    }
}

impl GenerationRequest {
    /// Whether an answer may contain more than one call. A function that `tool_choice` names is called once.
    pub fn allows_several_calls(&self) -> bool {
        self.parallel_tool_calls && !matches!(self.tool_choice, ToolChoice::Named(_))
    }

    /// Largest number of alternatives to each token; `None` if the job asks for no log-probabilities.
    pub fn alternatives(&self) -> Option<u32> {
        self.logprobs.map(|most_probable| match self.logprob_token_ids.len() {
            0 => most_probable,
            named => u32::try_from(named).unwrap_or(u32::MAX),
        })
    }

    /// Whether the log contains the token that ends a choice.
    pub fn logs_end_token(&self) -> bool {
        self.return_token_ids || self.logs_end_token_logprobs()
    }

    /// Whether the log contains the log-probability of the token that ends a choice. As in OpenAI's APIs,
    /// only answers to raw prompts have it.
    pub fn logs_end_token_logprobs(&self) -> bool {
        self.prompt.is_some() && self.logprobs.is_some()
    }

    /// Whether the log contains the prompt's tokens.
    pub fn logs_prompt(&self) -> bool {
        self.return_token_ids || self.prompt_logprobs.is_some()
    }
}

/// A prompt that is not a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RawPrompt {
    /// Text; special tokens in it are recognised.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// 1 to 64 of `a-z A-Z 0-9 _ -`.
    pub name: String,
    /// Its description for the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Map<String, Value>,
    /// Whether the schema is in OpenAI's strict mode.
    #[serde(default)]
    pub strict: bool,
}

/// Whether the model calls functions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// It calls no function.
    None,
    /// It decides.
    #[default]
    Auto,
    /// It calls at least one function.
    Required,
    /// It calls the function of this name.
    Named(String),
}

/// A constraint on the answer's text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that conforms to a schema.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Whether properties that the schema does not name are refused, as in OpenAI's strict mode.
        strict: bool,
    },
    /// A context-free grammar in llguidance's variant of Lark.
    Grammar(String),
    /// A regular expression that matches the whole answer.
    Regex(String),
}

/// How tokens are sampled, and which of them end the answer. A field that a job lacks has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// 0 to 2; 0 is greedy.
    pub temperature: f32,
    /// 0 to 1; nucleus sampling. The most probable token is always kept.
    pub top_p: f32,
    /// Number of most probable tokens that are kept; 0 keeps all.
    pub top_k: u32,
    /// 0 to 1; drops tokens less probable than `min_p` times the most probable token.
    pub min_p: f32,
    /// -2 to 2; subtracted from the logit of each token that the answer contains.
    pub presence_penalty: f32,
    /// -2 to 2; subtracted from a token's logit once for each time that the answer contains it.
    pub frequency_penalty: f32,
    /// Above 0; values above 1 make tokens of prompt and answer less probable, values below 1 more probable.
    pub repetition_penalty: f32,
    /// Pairs of token id and the value added to its logit, -100 to 100; each token at most once.
    // Pairs and not a map: serde cannot read integer keys in a flattened struct.
    pub logit_bias: Vec<(u32, f32)>,
    /// Number of tokens that the answer contains before a token may end it.
    pub min_tokens: u32,
    /// The model's own end tokens don't end the answer.
    pub ignore_eos: bool,
    /// Tokens that end the answer, in addition to the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Non-empty words whose token sequences never occur in the answer.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub bad_words: Vec<String>,
}

impl Default for SamplingOptions {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            min_tokens: 0,
            ignore_eos: false,
            stop_token_ids: Vec::new(),
            bad_words: Vec::new(),
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The speaker's role.
    pub role: Role,
    /// The text; empty if an assistant only calls functions.
    pub content: String,
    /// The speaker's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The assistant's reasoning before the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Functions that the assistant calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call that a tool's message answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// A message that consists of text only.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self {
            role,
            content: content.into(),
            name: None,
            reasoning: None,
            tool_calls: Vec::new(),
            tool_call_id: None,
        }
    }
}

/// A call of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    /// The call's id, to which its result refers.
    pub id: String,
    /// The function's name.
    pub name: String,
    /// Its arguments, a JSON object as text.
    pub arguments: String,
}

/// The role of a speaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // as in OpenAI's API
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_of_an_older_function_is_read() {
        let old = r#"{"messages":[],"max_tokens":5,"temperature":0.5,"top_p":0.25,"stop":["x"]}"#;
        let request: GenerationRequest = serde_json::from_str(old).unwrap();
        let sampling = SamplingOptions { temperature: 0.5, top_p: 0.25, ..SamplingOptions::default() };
        assert_eq!(request.sampling, sampling);
        assert_eq!((request.max_tokens, &request.stop[..]), (Some(5), &["x".to_owned()][..]));
        assert!(request.add_generation_prompt && !request.continue_final_message && !request.logs_prompt());
    }

    #[test]
    fn every_option_survives_the_queue() {
        let sampling = SamplingOptions {
            temperature: 0.7,
            top_p: 0.9,
            top_k: 40,
            min_p: 0.05,
            presence_penalty: -0.1,
            frequency_penalty: 0.3,
            repetition_penalty: 1.1,
            logit_bias: vec![(0, -100.0), (u32::MAX, 0.1)],
            min_tokens: 3,
            ignore_eos: true,
            stop_token_ids: vec![7, 2],
            bad_words: vec!["no".into()],
        };
        let request = GenerationRequest {
            n: 3,
            logprobs: Some(5),
            logprob_token_ids: vec![3],
            prompt_logprobs: Some(0),
            return_token_ids: true,
            cache_salt: Some("s".into()),
            add_generation_prompt: false,
            continue_final_message: true,
            sampling,
            tools: vec![Tool {
                name: "f".into(),
                description: None,
                parameters: Map::from_iter([("type".to_owned(), "object".into())]),
                strict: true,
            }],
            tool_choice: ToolChoice::Named("f".into()),
            constraint: Some(Constraint::Regex("a+".into())),
            prompt: Some(RawPrompt::Tokens(vec![1, 2])),
            ..GenerationRequest::default()
        };
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<GenerationRequest>(&json).unwrap(), request);
    }
}
