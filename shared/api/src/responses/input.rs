//! The input of a request for a response: text, or items.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Message, Role, ToolCall};
use emberline_protocol::relaxed::Relaxed;

use crate::chat::{Phase, check_arguments};
use crate::parameters::NAME_PATTERN;

/// The user's message as text, or the items of a conversation.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ResponseInput")]
pub(super) enum Input {
    Text(String),
    Items(#[schemars(length(min = 1))] Vec<Item>),
}

/// An item of a conversation. An item without a `type` is a message.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(
    rename = "ResponseInputItem",
    deny_unknown_fields,
    extend("x-instead" = {"item_reference": ITEM_REFERENCE}, "x-unsupported-values" = [
        "additional_tools", "apply_patch_call", "apply_patch_call_output", "code_interpreter_call", "compaction",
        "compaction_trigger", "computer_call", "computer_call_output", "custom_tool_call", "custom_tool_call_output",
        "file_search_call", "image_generation_call", "item_reference", "local_shell_call",
        "local_shell_call_output", "mcp_approval_request", "mcp_approval_response", "mcp_call",
        "mcp_list_tools", "program", "program_output", "shell_call", "shell_call_output", "tool_search_call",
        "tool_search_output", "web_search_call",
    ]),
)]
pub(super) enum Item {
    /// A message.
    #[schemars(transform = without_required_type)]
    Message {
        /// Role of the message's author.
        role: AuthorRole,
        /// The message's text.
        content: Content,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[allow(dead_code)]
        status: Option<Status>,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[allow(dead_code)]
        phase: Option<Phase>,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// The model's reasoning before the assistant's message or function call that follows. It is part of the
    /// prompt if the model's chat template reads it.
    Reasoning {
        /// The text of the reasoning.
        content: Option<Vec<ReasoningPart>>,
        /// Accepted for compatibility; has no effect, because summaries are not part of the prompt.
        #[allow(dead_code)]
        summary: Option<Vec<Summary>>,
        /// Accepted for compatibility; has no effect, because the server can't decrypt it.
        #[allow(dead_code)]
        encrypted_content: Option<String>,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[allow(dead_code)]
        status: Option<Status>,
    },
    /// A function call of the assistant.
    FunctionCall {
        /// Id of the call, to which its output refers.
        #[schemars(length(min = 1, max = 256))]
        call_id: String,
        /// Name of the function.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
        /// The arguments, as the text of a JSON object. Empty text counts as `{}`.
        arguments: String,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[allow(dead_code)]
        status: Option<Status>,
    },
    /// The result of a function call.
    FunctionCallOutput {
        /// Id of the function call that has this result. An earlier item must contain the call.
        #[schemars(length(min = 1, max = 256))]
        call_id: String,
        /// The result's text.
        output: Content,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[schemars(length(max = 256))]
        #[allow(dead_code)]
        id: Option<String>,
        /// Accepted for compatibility; has no effect, because it is not part of the prompt.
        #[allow(dead_code)]
        status: Option<Status>,
    },
}

/// What a client should do instead of sending a reference.
const ITEM_REFERENCE: &str = "Items are not stored: send the item itself.";

fn without_required_type(schema: &mut schemars::Schema) {
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|name| name != "type");
    }
}

/// A part of the model's reasoning.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields)]
pub(super) enum ReasoningPart {
    ReasoningText { text: String },
}

/// A part of the summary of the model's reasoning.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields)]
pub(super) enum Summary {
    SummaryText {
        #[allow(dead_code)]
        text: String,
    },
}

/// Role of a message's author. `developer` is the same as `system`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(super) enum AuthorRole {
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

/// The text of a message or a result: a string, or an array of parts, which are concatenated.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ResponseContent")]
pub(super) enum Content {
    Text(String),
    Parts(#[schemars(length(min = 1))] Vec<Part>),
}

/// A part of a text.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(
    rename = "ResponseContentPart",
    deny_unknown_fields,
    extend("x-unsupported-values" = ["input_audio", "input_file", "input_image"]),
)]
pub(super) enum Part {
    /// Text that the model did not generate.
    InputText {
        /// The text.
        text: String,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// Text that the model generated.
    OutputText {
        /// The text.
        text: String,
        /// Accepted for compatibility; has no effect, because annotations are not part of the prompt.
        #[allow(dead_code)]
        annotations: Option<Vec<Value>>,
        /// Accepted for compatibility; has no effect, because log-probabilities are not part of the prompt.
        #[allow(dead_code)]
        logprobs: Option<Vec<Value>>,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// The text with which the model refused.
    Refusal {
        /// The text.
        refusal: String,
    },
}

impl Content {
    fn into_text(self) -> String {
        let text = |part| match part {
            Part::InputText { text, .. }
            | Part::OutputText { text, .. }
            | Part::Refusal { refusal: text } => text,
        };
        match self {
            Self::Text(text) => text,
            Self::Parts(parts) => parts.into_iter().map(text).collect(),
        }
    }
}

/// Converts the input to the job's messages. A function call is added to the assistant's message before it,
/// and reasoning to the assistant's message or function call after it. Reasoning that no such item follows is
/// left out and added to `relaxed`. Fails if an output refers to a function call that no earlier item
/// contains.
pub(super) fn read(input: Input, relaxed: &mut Relaxed) -> Result<Vec<Message>, ApiError> {
    let items = match input {
        Input::Text(text) => return Ok(vec![Message::new(Role::User, text)]),
        Input::Items(items) => items,
    };
    let mut messages: Vec<Message> = Vec::with_capacity(items.len());
    let mut calls = HashSet::new();
    let mut reasoning_before = PendingReasoning::default();
    for (i, item) in items.into_iter().enumerate() {
        match item {
            Item::Message { role, content, .. } => {
                let role = match role {
                    AuthorRole::System | AuthorRole::Developer => Role::System,
                    AuthorRole::User => Role::User,
                    AuthorRole::Assistant => Role::Assistant,
                };
                let reasoning = match role {
                    Role::Assistant => reasoning_before.take(),
                    _ => None,
                };
                if reasoning.is_none() {
                    reasoning_before.drop(relaxed);
                }
                messages.push(Message { reasoning, ..Message::new(role, content.into_text()) });
            }
            Item::Reasoning { content, .. } => {
                let text = content.into_iter().flatten().map(|ReasoningPart::ReasoningText { text }| text);
                reasoning_before.add(i, &text.collect::<String>());
            }
            Item::FunctionCall { call_id: id, name, arguments, .. } => {
                let arguments = check_arguments(arguments, &format!("input[{i}].arguments"))?;
                calls.insert(id.clone());
                let call = ToolCall { id, name, arguments };
                match messages.last_mut() {
                    Some(message) if message.role == Role::Assistant && reasoning_before.is_empty() => {
                        message.tool_calls.push(call);
                    }
                    _ => messages.push(Message {
                        tool_calls: vec![call],
                        reasoning: reasoning_before.take(),
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
                reasoning_before.drop(relaxed);
                let message = Message::new(Role::Tool, output.into_text());
                messages.push(Message { tool_call_id: Some(call_id), ..message });
            }
        }
    }
    if messages.is_empty() {
        return Err(ApiError::field(ErrorCode::InvalidValue, "input", "'input' has no message. Add one."));
    }
    reasoning_before.drop(relaxed);
    Ok(messages)
}

/// Reasoning that precedes the next item.
#[derive(Default)]
struct PendingReasoning {
    text: String,
    items: Vec<usize>,
}

impl PendingReasoning {
    fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    fn add(&mut self, item: usize, text: &str) {
        if !text.is_empty() {
            self.text.push_str(text);
            self.items.push(item);
        }
    }

    /// Returns the reasoning for the assistant's message that follows it.
    fn take(&mut self) -> Option<String> {
        self.items.clear();
        Some(std::mem::take(&mut self.text)).filter(|text| !text.is_empty())
    }

    /// Drops the reasoning, because no assistant's message follows it, and adds its items to `relaxed`.
    fn drop(&mut self, relaxed: &mut Relaxed) {
        self.text.clear();
        self.items.drain(..).for_each(|item| relaxed.push(format!("input[{item}]")));
    }
}
