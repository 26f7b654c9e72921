//! A job: one request, normalised, on its way to a worker.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::key::KeyId;
use crate::lane::Lane;
use crate::subject::{self, JobId};

/// Most choices of a request.
pub const MAX_CHOICES: u32 = 16;

/// One generation, as it lies in the `JOBS` stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Job {
    /// [`crate::PROTOCOL_VERSION`] of the writer.
    pub v: u32,
    /// Also the message's `Nats-Msg-Id`.
    pub id: JobId,
    /// The model's own name, aliases resolved.
    pub model: String,
    /// When the function accepted the request, unix milliseconds.
    pub created: u64,
    /// When an answer is of no more use, unix milliseconds.
    pub deadline: u64,
    /// What to generate.
    pub request: GenerationRequest,
    /// Drawn by the function when the client gave none.
    pub seed: u64,
    /// It runs to its end though nobody listens, its log is kept for so many seconds after its
    /// deadline at least, and the `requests` bucket has its [`crate::record::Record`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<u32>,
    /// Whom it is charged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<Account>,
}

impl Job {
    /// The stream and the subject of its event log.
    pub fn log(&self) -> (&'static str, String) {
        match self.background {
            None => (subject::EVENTS_STREAM, subject::events(&self.id)),
            Some(_) => (subject::KEPT_STREAM, subject::kept_events(&self.id)),
        }
    }

    /// The lane of its model's queue that it waits in.
    pub fn lane(&self) -> Lane {
        self.account.as_ref().map(|account| account.lane).unwrap_or_default()
    }

    /// How long after `now_ms` (unix milliseconds) what is kept of it is kept, in seconds;
    /// nothing is kept of most.
    pub fn kept_for_s(&self, now_ms: u64) -> Option<u64> {
        let running = self.deadline.saturating_sub(now_ms).div_ceil(1000);
        self.background.map(|after| running.saturating_add(after.into()).max(1))
    }
}

/// Whom a job is charged to, and what has been counted for it in advance. The worker that ends the
/// job corrects these counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// The key that the request came with.
    pub key: KeyId,
    /// Tokens counted in advance.
    pub reserved_tokens: u64,
    /// Subjects of the counters that they were added to.
    #[serde(default)]
    pub token_counters: Vec<String>,
    /// Subjects of the counters of jobs, to each of which this job added one: its key's and its
    /// model's.
    #[serde(default)]
    pub job_counters: Vec<String>,
    /// Its place in the queue, by how many jobs its key has.
    #[serde(default)]
    pub lane: Lane,
}

/// What to generate, every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GenerationRequest {
    /// The conversation so far; empty if there is a `prompt`.
    pub messages: Vec<Message>,
    /// A prompt that no chat template is applied to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt: Option<RawPrompt>,
    /// `Accepted` brings the prompt's text.
    pub echo: bool,
    /// The chat template begins the assistant's answer.
    pub add_generation_prompt: bool,
    /// The answer goes on with the last message, which is an assistant's.
    pub continue_final_message: bool,
    /// Only prompts with the same salt share what the cache has of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_salt: Option<String>,
    /// The log has the prompt's tokens.
    pub return_token_ids: bool,
    /// The log has the prompt's tokens with their log-probabilities, and those of so many most probable
    /// ones in each place, 0 to 20; `None` for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<u32>,
    /// Functions that the model may call; empty if it may call none.
    pub tools: Vec<Tool>,
    /// Whether it calls them.
    pub tool_choice: ToolChoice,
    /// It may call several at once.
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
    /// How tokens are picked.
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
    /// Whether an answer may call more than one function: if one is named, it is called once.
    pub fn allows_several_calls(&self) -> bool {
        self.parallel_tool_calls && !matches!(self.tool_choice, ToolChoice::Named(_))
    }

    /// Most alternatives that come with each token's log-probability; `None` where none is wanted.
    pub fn alternatives(&self) -> Option<u32> {
        self.logprobs.map(|most_probable| match self.logprob_token_ids.len() {
            0 => most_probable,
            named => u32::try_from(named).unwrap_or(u32::MAX),
        })
    }

    /// Whether the log has the token that ends a choice.
    pub fn tells_end(&self) -> bool {
        self.return_token_ids || self.tells_ends_logprobs()
    }

    /// Whether it has its log-probability, too: as in OpenAI's APIs, that of a conversation's answer is no
    /// part of it.
    pub fn tells_ends_logprobs(&self) -> bool {
        self.prompt.is_some() && self.logprobs.is_some()
    }

    /// Whether the log has the prompt's tokens.
    pub fn tells_prompt(&self) -> bool {
        self.return_token_ids || self.prompt_logprobs.is_some()
    }
}

/// A prompt as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RawPrompt {
    /// To be encoded; special tokens are recognised.
    Text(String),
    /// Token ids.
    Tokens(Vec<u32>),
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tool {
    /// 1 to 64 of `a-z A-Z 0-9 _ -`.
    pub name: String,
    /// What it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON schema of its arguments.
    pub parameters: Map<String, Value>,
    /// The schema is one of OpenAI's strict mode.
    #[serde(default)]
    pub strict: bool,
}

/// Whether the model calls functions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolChoice {
    /// It calls none.
    None,
    /// As it likes.
    #[default]
    Auto,
    /// It calls at least one.
    Required,
    /// It calls this one.
    Named(String),
}

/// What an answer has to obey.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// JSON that the schema allows.
    JsonSchema {
        /// The schema.
        schema: Value,
        /// Properties that the schema does not name are refused, as in OpenAI's strict mode.
        strict: bool,
    },
    /// A context-free grammar in llguidance's variant of Lark.
    Grammar(String),
    /// A regular expression that the whole answer matches.
    Regex(String),
}

/// How tokens are picked, and which of them end the answer. What an older job lacks has its
/// default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingOptions {
    /// 0 to 2; 0 is greedy.
    pub temperature: f32,
    /// 0 to 1; the most probable token always counts.
    pub top_p: f32,
    /// Only so many most probable tokens count; 0 for all.
    pub top_k: u32,
    /// 0 to 1; tokens less probable than this share of the most probable one's probability don't
    /// count.
    pub min_p: f32,
    /// -2 to 2; taken from the logit of each token that the answer has.
    pub presence_penalty: f32,
    /// -2 to 2; taken from a token's logit for each time that the answer has it.
    pub frequency_penalty: f32,
    /// Above 0; weakens (above 1) or strengthens tokens that prompt or answer have.
    pub repetition_penalty: f32,
    /// Added to the logits of these tokens, each -100 to 100; every token at most once.
    // Pairs and not a map: serde reads no integer keys in a flattened struct.
    pub logit_bias: Vec<(u32, f32)>,
    /// Until the answer has so many tokens, none is picked that would end it.
    pub min_tokens: u32,
    /// The model's own end tokens don't end the answer.
    pub ignore_eos: bool,
    /// Tokens that end the answer, on top of the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Words whose tokens never follow one another in the answer; none is empty.
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
    /// Who speaks.
    pub role: Role,
    /// What is said; empty where an assistant only calls functions.
    pub content: String,
    /// The speaker's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the assistant thought before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<String>,
    /// Functions that the assistant calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// The call whose result a tool's message is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
}

impl Message {
    /// Plain text.
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
    /// Names the call; the result refers to it.
    pub id: String,
    /// The function's name.
    pub name: String,
    /// Its arguments, a JSON object as text.
    pub arguments: String,
}

/// Who speaks.
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
        assert!(request.add_generation_prompt && !request.continue_final_message && !request.tells_prompt());
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
