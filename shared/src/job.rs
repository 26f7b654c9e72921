//! A job: one request, normalised, on its way to a worker.

use serde::{Deserialize, Serialize};

use crate::subject::JobId;

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
}

/// What to generate, every default filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GenerationRequest {
    /// The conversation so far; not empty.
    pub messages: Vec<Message>,
    /// Most tokens to generate; `None` for what the context leaves.
    pub max_tokens: Option<u32>,
    /// 0 to 2; 0 is greedy.
    pub temperature: f32,
    /// 0 to 1; the most probable token always counts.
    pub top_p: f32,
    /// Strings that end the text and are not part of it; none is empty.
    pub stop: Vec<String>,
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // as in OpenAI's API
pub enum Role {
    System,
    User,
    Assistant,
}
