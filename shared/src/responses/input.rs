//! The input of a request for a response: a text, or items.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::chat::check_arguments;
use crate::error::{ApiError, ErrorCode};
use crate::job::{Message, Role, ToolCall};
use crate::parameters::NAME_PATTERN;

/// What is said: the user's text, or the items of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ResponseInput")]
pub(super) enum Input {
    Text(String),
    Items(#[schemars(length(min = 1))] Vec<Item>),
}

/// A part of a conversation; one without a type is a message.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(
    rename = "ResponseInputItem",
    deny_unknown_fields,
    extend("x-unsupported-values" = [
        "additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction",
        "computer_call", "computer_call_output", "custom_tool_call", "custom_tool_call_output",
        "file_search_call", "image_generation_call", "item_reference", "local_shell_call",
        "local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call",
        "mcp_list_tools", "reasoning", "shell_call", "shell_call_output", "tool_search_call",
        "tool_search_output", "web_search_call",
    ]),
)]
pub(super) enum Item {
    /// A turn of somebody.
    #[schemars(transform = without_required_type)]
    Message {
        /// Who speaks.
        role: Speaker,
        /// What is said.
        content: Content,
        /// As it came with a response.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// As it came with a response.
        #[allow(dead_code)]
        status: Option<Status>,
    },
    /// A call of a function, as the API gave it.
    FunctionCall {
        /// Names the call; its output refers to it.
        #[schemars(length(min = 1, max = 256))]
        call_id: String,
        /// The function's name.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
        /// A JSON object as text.
        arguments: String,
        /// As it came with a response.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// As it came with a response.
        #[allow(dead_code)]
        status: Option<Status>,
    },
    /// The result of a call.
    FunctionCallOutput {
        /// The call that it is the result of.
        #[schemars(length(min = 1, max = 256))]
        call_id: String,
        /// The result.
        output: Content,
        /// Any.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// Any.
        #[allow(dead_code)]
        status: Option<Status>,
    },
}

fn without_required_type(schema: &mut schemars::Schema) {
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|name| name != "type");
    }
}

/// Who speaks; `developer` is as `system`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum Speaker {
    System,
    Developer,
    User,
    Assistant,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum Status {
    InProgress,
    Completed,
    Incomplete,
}

/// What is said: a string, or parts that are joined.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ResponseContent")]
pub(super) enum Content {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<Part>),
}

/// A part of what is said.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(
    rename = "ResponseContentPart",
    deny_unknown_fields,
    extend("x-unsupported-values" = ["input_audio", "input_file", "input_image"]),
)]
pub(super) enum Part {
    /// What somebody else than the model said.
    InputText { text: String },
    /// What the model said, as the API gave it.
    OutputText {
        text: String,
        /// Always empty in our responses.
        #[schemars(length(max = 0))]
        #[allow(dead_code)]
        annotations: Option<Vec<Value>>,
        /// Always empty in our responses.
        #[schemars(length(max = 0))]
        #[allow(dead_code)]
        logprobs: Option<Vec<Value>>,
    },
    /// What was said where a model refused.
    Refusal { refusal: String },
}

impl Content {
    fn into_text(self) -> String {
        let text = |part| match part {
            Part::InputText { text } | Part::OutputText { text, .. } | Part::Refusal { refusal: text } => {
                text
            }
        };
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(text).collect(),
        }
    }
}

/// The job's messages. Calls belong to the assistant's message before them; an output must follow
/// its call.
pub(super) fn read(input: Input) -> Result<Vec<Message>, ApiError> {
    let items = match input {
        Input::Text(text) => return Ok(vec![Message::new(Role::User, text)]),
        Input::Items(items) => items,
    };
    let mut messages: Vec<Message> = Vec::with_capacity(items.len());
    let mut calls = HashSet::new();
    for (i, item) in items.into_iter().enumerate() {
        match item {
            Item::Message { role, content, .. } => {
                let role = match role {
                    Speaker::System | Speaker::Developer => Role::System,
                    Speaker::User => Role::User,
                    Speaker::Assistant => Role::Assistant,
                };
                messages.push(Message::new(role, content.into_text()));
            }
            Item::FunctionCall { call_id: id, name, arguments, .. } => {
                let arguments = check_arguments(arguments, &format!("input[{i}].arguments"))?;
                calls.insert(id.clone());
                let call = ToolCall { id, name, arguments };
                match messages.last_mut() {
                    Some(message) if message.role == Role::Assistant => message.tool_calls.push(call),
                    _ => messages.push(Message {
                        tool_calls: vec![call],
                        ..Message::new(Role::Assistant, String::new())
                    }),
                }
            }
            Item::FunctionCallOutput { call_id, output, .. } => {
                if !calls.contains(&call_id) {
                    let path = format!("input[{i}].call_id");
                    let message = format!(
                        "'{path}' is '{call_id}', which no earlier item calls. Send the function_call before its output."
                    );
                    return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
                }
                let message = Message::new(Role::Tool, output.into_text());
                messages.push(Message { tool_call_id: Some(call_id), ..message });
            }
        }
    }
    Ok(messages)
}
