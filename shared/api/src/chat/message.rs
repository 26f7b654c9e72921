//! The messages of a chat request.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Message, Role, ToolCall};

use crate::parameters::NAME_PATTERN;

/// A message of the conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "role", rename_all = "snake_case")]
#[schemars(rename = "ChatMessage", deny_unknown_fields, extend("x-unsupported-values" = ["function"]))]
pub(crate) enum MessageBody {
    /// Instructions for the model.
    System {
        /// The message's text.
        content: Content,
        /// Name of the participant.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// The same as a message with the role `system`.
    Developer {
        /// The message's text.
        content: Content,
        /// Name of the participant.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// A message of the user.
    User {
        /// The message's text.
        content: Content,
        /// Name of the participant.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// A message of the assistant, in the form in which the API returns it.
    #[schemars(extend("x-unsupported" = ["audio", "function_call"]))]
    Assistant {
        /// The message's text. Optional if the message contains `tool_calls`, `refusal` or reasoning.
        content: Option<AssistantContent>,
        /// Name of the participant.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// The text with which the model refused. It is appended to `content`.
        refusal: Option<String>,
        /// The function calls of the assistant.
        #[schemars(length(max = 128))]
        tool_calls: Option<Vec<ToolCallBody>>,
        /// The assistant's reasoning before the content. It is part of the prompt if the model's chat
        /// template reads it.
        reasoning_content: Option<String>,
        /// Another name of `reasoning_content`. If both are given, they must be equal.
        reasoning: Option<String>,
        /// Accepted for compatibility; has no effect, because annotations are not part of the prompt.
        #[allow(dead_code)]
        annotations: Option<Vec<Value>>,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[allow(dead_code)]
        phase: Option<Phase>,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// Accepted for compatibility with LiteLLM's client; has no effect, because it is not part of the
        /// prompt.
        #[allow(dead_code)]
        provider_specific_fields: Option<Map<String, Value>>,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// The result of a function call.
    Tool {
        /// The result's text.
        content: Content,
        /// Id of the function call that has this result. An earlier message must contain the call.
        #[schemars(length(min = 1, max = 256))]
        tool_call_id: String,
        /// Name of the function.
        #[schemars(length(min = 1, max = 64))]
        name: Option<String>,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
}

/// Whether an assistant's message is the final answer or an intermediate comment.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum Phase {
    Commentary,
    FinalAnswer,
}

/// The text of a message: a string, or an array of parts, which are concatenated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<Part>),
}

/// A part of a message's text.
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
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
}

/// What a client should do instead of sending a part of the type `thinking`.
const THINKING: &str = "Send it as the message's 'reasoning_content', or leave it out.";

/// The text of an assistant's message: a string, or an array of parts, which are concatenated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum AssistantContent {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<AssistantPart>),
}

/// A part of the text of an assistant's message.
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
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    Refusal {
        refusal: String,
    },
}

/// A function call.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "ToolCall", deny_unknown_fields, extend("x-unsupported-values" = ["custom"]))]
pub(crate) enum ToolCallBody {
    Function {
        /// Id of the call, to which its result refers.
        #[schemars(length(min = 1, max = 256))]
        id: String,
        /// The function and its arguments.
        function: CalledFunction,
    },
}

/// The called function and its arguments.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct CalledFunction {
    /// Name of the function.
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    name: String,
    /// The arguments, as the text of a JSON object. Empty text counts as `{}`.
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

/// Converts the client's messages to the job's. Fails if a tool's message refers to a function call that no
/// earlier message contains.
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
            let reasoning = read_reasoning(reasoning_content, reasoning, path)?;
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

/// The assistant's reasoning, by either of its names; `None` if it is absent or empty. Fails if both names
/// are given and differ.
fn read_reasoning(
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    path: &str,
) -> Result<Option<String>, ApiError> {
    let is_given = |text: &String| !text.is_empty();
    match (reasoning_content.filter(is_given), reasoning.filter(is_given)) {
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

/// Checks that the arguments of a function call, found at `path`, are the text of a JSON object.
pub(crate) fn check_arguments(arguments: String, path: &str) -> Result<String, ApiError> {
    // Some clients send empty text for a function without arguments.
    let arguments = if arguments.trim().is_empty() { "{}".to_owned() } else { arguments };
    if serde_json::from_str::<Map<String, Value>>(&arguments).is_err() {
        let message = format!("'{path}' must be a JSON object as text. Send what the model answered.");
        return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
    }
    Ok(arguments)
}
