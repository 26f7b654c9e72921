//! The messages of a chat request.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Message, Role, ToolCall};

use crate::parameters::NAME_PATTERN;

/// One turn of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "role", rename_all = "snake_case")]
#[schemars(rename = "ChatMessage", deny_unknown_fields, extend("x-unsupported-values" = ["function"]))]
pub(crate) enum MessageBody {
    /// What the model is to be.
    System {
        /// What is said.
        content: Content,
        /// The speaker's name.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// As `system`.
    Developer {
        /// What is said.
        content: Content,
        /// The speaker's name.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// The human's turn.
    User {
        /// What is said.
        content: Content,
        /// The speaker's name.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// An answer, as the API gave it.
    #[schemars(extend("x-unsupported" = ["audio", "function_call"]))]
    Assistant {
        /// What was said; may be absent where functions are called.
        content: Option<AssistantContent>,
        /// The speaker's name.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// What was said where the model refused.
        refusal: Option<String>,
        /// Functions that were called.
        #[schemars(length(max = 128))]
        tool_calls: Option<Vec<ToolCallBody>>,
        /// What it thought before, for models whose chat template reads it.
        reasoning_content: Option<String>,
        /// Another name of `reasoning_content`.
        reasoning: Option<String>,
        /// Asks for nothing: sources of what was said.
        #[allow(dead_code)]
        annotations: Option<Vec<Value>>,
        /// Asks for nothing: whether it was the answer or on the way to it.
        #[allow(dead_code)]
        phase: Option<Phase>,
        /// As it came with the answer.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// What litellm's client notes of an answer; asks for nothing.
        #[allow(dead_code)]
        provider_specific_fields: Option<Map<String, Value>>,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// The result of a call.
    Tool {
        /// The result.
        content: Content,
        /// The call that it is the result of.
        #[schemars(length(min = 1, max = 256))]
        tool_call_id: String,
        /// The function's name.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
}

/// Whether an assistant's message was the answer.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Phase {
    Commentary,
    FinalAnswer,
}

/// What is said: a string, or parts that are joined.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<Part>),
}

/// A part of what is said.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(
    rename = "ContentPart",
    deny_unknown_fields,
    extend(
        "x-unsupported-values" = ["audio_url", "file", "image_url", "input_audio", "thinking", "video_url"],
        "x-instead" = {"thinking": THINKING},
    ),
)]
pub(crate) enum Part {
    Text {
        text: String,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
}

/// What to do instead of a part that is thinking.
const THINKING: &str = "Send it as the message's 'reasoning_content', or leave it out.";

/// What an assistant said: a string, or parts that are joined.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum AssistantContent {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<AssistantPart>),
}

/// A part of what an assistant said.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(
    rename = "AssistantContentPart",
    deny_unknown_fields,
    extend(
        "x-unsupported-values" = ["audio_url", "file", "image_url", "input_audio", "thinking", "video_url"],
        "x-instead" = {"thinking": THINKING},
    ),
)]
pub(crate) enum AssistantPart {
    Text {
        text: String,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    Refusal {
        refusal: String,
    },
}

/// A call of a function.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "ToolCall", deny_unknown_fields, extend("x-unsupported-values" = ["custom"]))]
pub(crate) enum ToolCallBody {
    Function {
        /// Names the call; its result refers to it.
        #[schemars(length(min = 1, max = 256))]
        id: String,
        function: CalledFunction,
    },
}

/// The called function and its arguments.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct CalledFunction {
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    name: String,
    /// A JSON object as text.
    arguments: String,
}

impl Content {
    fn into_text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(|Part::Text { text, .. }| text).collect(),
        }
    }
}

impl AssistantContent {
    fn into_text(self) -> String {
        let text = |part| match part {
            AssistantPart::Text { text, .. } | AssistantPart::Refusal { refusal: text } => text,
        };
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(text).collect(),
        }
    }
}

/// The job's messages. A tool's message must follow the call that it refers to.
pub(crate) fn read(messages: Vec<MessageBody>) -> Result<Vec<Message>, ApiError> {
    let mut calls = HashSet::new();
    let mut read = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let path = format!("messages[{i}]");
        let message = read_message(message, &path)?;
        calls.extend(message.tool_calls.iter().map(|call| call.id.clone()));
        if let Some(id) = message.tool_call_id.as_ref().filter(|id| !calls.contains(*id)) {
            let path = format!("{path}.tool_call_id");
            let message = format!(
                "'{path}' is '{id}', which no earlier message calls. Send the assistant's message with its tool_calls before the tool's."
            );
            return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
        }
        read.push(message);
    }
    Ok(read)
}

fn read_message(message: MessageBody, path: &str) -> Result<Message, ApiError> {
    let plain = |role, content: Content, name| Message { name, ..Message::new(role, content.into_text()) };
    Ok(match message {
        MessageBody::System { content, name, .. } | MessageBody::Developer { content, name, .. } => {
            plain(Role::System, content, name)
        }
        MessageBody::User { content, name, .. } => plain(Role::User, content, name),
        MessageBody::Tool { content, tool_call_id, name, .. } => {
            Message { tool_call_id: Some(tool_call_id), ..plain(Role::Tool, content, name) }
        }
        MessageBody::Assistant {
            content, name, refusal, tool_calls, reasoning_content, reasoning, ..
        } => {
            let calls = tool_calls.unwrap_or_default();
            let reasoning = read_thoughts(reasoning_content, reasoning, path)?;
            if content.is_none() && refusal.is_none() && calls.is_empty() && reasoning.is_none() {
                let path = format!("{path}.content");
                let message = format!("'{path}' is required where 'tool_calls' is absent. Add it.");
                return Err(ApiError::field(ErrorCode::MissingField, path, message));
            }
            let mut text = content.map(AssistantContent::into_text).unwrap_or_default();
            text.push_str(&refusal.unwrap_or_default());
            let calls = calls.into_iter().enumerate();
            let calls = calls.map(|(i, call)| read_call(call, &format!("{path}.tool_calls[{i}]")));
            let tool_calls = calls.collect::<Result<_, _>>()?;
            Message { name, tool_calls, reasoning, ..Message::new(Role::Assistant, text) }
        }
    })
}

/// What the assistant thought, by either of its names; `None` if that is nothing.
fn read_thoughts(
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    path: &str,
) -> Result<Option<String>, ApiError> {
    let is_told = |text: &String| !text.is_empty();
    match (reasoning_content.filter(is_told), reasoning.filter(is_told)) {
        (Some(one), Some(other)) if one != other => {
            let path = format!("{path}.reasoning");
            let message =
                format!("'{path}' and 'reasoning_content' mean the same and differ. Send one of them.");
            Err(ApiError::field(ErrorCode::InvalidValue, path, message))
        }
        (one, other) => Ok(one.or(other)),
    }
}

fn read_call(call: ToolCallBody, path: &str) -> Result<ToolCall, ApiError> {
    let ToolCallBody::Function { id, function: CalledFunction { name, arguments } } = call;
    let arguments = check_arguments(arguments, &format!("{path}.function.arguments"))?;
    Ok(ToolCall { id, name, arguments })
}

/// The arguments of a call, found at `path`: a JSON object as text.
pub(crate) fn check_arguments(arguments: String, path: &str) -> Result<String, ApiError> {
    // Some clients send no text where a function takes no arguments.
    let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
    if serde_json::from_str::<Map<String, Value>>(&arguments).is_err() {
        let message = format!("'{path}' must be a JSON object as text. Send what the model answered.");
        return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
    }
    Ok(arguments)
}
