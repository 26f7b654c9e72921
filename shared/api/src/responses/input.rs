//! The input of a request for a response: a text, or items.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Message, Role, ToolCall};
use emberline_protocol::relaxed::Relaxed;

use crate::chat::{Phase, check_arguments};
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
        /// Asks for nothing: whether it was the answer or on the way to it.
        #[allow(dead_code)]
        phase: Option<Phase>,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// What the model thought before what follows, for models whose chat template reads it.
    Reasoning {
        /// The thoughts.
        content: Option<Vec<Thought>>,
        /// Not part of the prompt.
        #[allow(dead_code)]
        summary: Option<Vec<Summary>>,
        /// Not part of the prompt: there is no key to it here.
        #[allow(dead_code)]
        encrypted_content: Option<String>,
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

/// What to do instead of a reference.
const ITEM_REFERENCE: &str = "Items are not stored: send the item itself.";

fn without_required_type(schema: &mut schemars::Schema) {
    if let Some(Value::Array(required)) = schema.get_mut("required") {
        required.retain(|name| name != "type");
    }
}

/// A part of what the model thought.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields)]
pub(super) enum Thought {
    ReasoningText { text: String },
}

/// A summary of what the model thought.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields)]
pub(super) enum Summary {
    SummaryText {
        #[allow(dead_code)]
        text: String,
    },
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
    InputText {
        text: String,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// What the model said, as the API gave it.
    OutputText {
        text: String,
        /// As they came with a response.
        #[allow(dead_code)]
        annotations: Option<Vec<Value>>,
        /// As they came with a response.
        #[allow(dead_code)]
        logprobs: Option<Vec<Value>>,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
    /// What was said where a model refused.
    Refusal { refusal: String },
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

/// The job's messages. Calls belong to the assistant's message before them, thoughts to the one after
/// them, without which they are left out; an output must follow its call.
pub(super) fn read(input: Input, relaxed: &mut Relaxed) -> Result<Vec<Message>, ApiError> {
    let items = match input {
        Input::Text(text) => return Ok(vec![Message::new(Role::User, text)]),
        Input::Items(items) => items,
    };
    let mut messages: Vec<Message> = Vec::with_capacity(items.len());
    let mut calls = HashSet::new();
    let mut thoughts = Thoughts::default();
    for (i, item) in items.into_iter().enumerate() {
        match item {
            Item::Message { role, content, .. } => {
                let role = match role {
                    Speaker::System | Speaker::Developer => Role::System,
                    Speaker::User => Role::User,
                    Speaker::Assistant => Role::Assistant,
                };
                let reasoning = match role {
                    Role::Assistant => thoughts.take(),
                    _ => None,
                };
                if reasoning.is_none() {
                    thoughts.drop(relaxed);
                }
                messages.push(Message { reasoning, ..Message::new(role, content.into_text()) });
            }
            Item::Reasoning { content, .. } => {
                let text = content.into_iter().flatten().map(|Thought::ReasoningText { text }| text);
                thoughts.add(i, &text.collect::<String>());
            }
            Item::FunctionCall { call_id: id, name, arguments, .. } => {
                let arguments = check_arguments(arguments, &format!("input[{i}].arguments"))?;
                calls.insert(id.clone());
                let call = ToolCall { id, name, arguments };
                match messages.last_mut() {
                    Some(message) if message.role == Role::Assistant && thoughts.is_empty() => {
                        message.tool_calls.push(call);
                    }
                    _ => messages.push(Message {
                        tool_calls: vec![call],
                        reasoning: thoughts.take(),
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
                thoughts.drop(relaxed);
                let message = Message::new(Role::Tool, output.into_text());
                messages.push(Message { tool_call_id: Some(call_id), ..message });
            }
        }
    }
    if messages.is_empty() {
        return Err(ApiError::field(ErrorCode::InvalidValue, "input", "'input' has no message. Add one."));
    }
    thoughts.drop(relaxed);
    Ok(messages)
}

/// What the model thought before what comes next.
#[derive(Default)]
struct Thoughts {
    text: String,
    items: Vec<usize>,
}

impl Thoughts {
    fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    fn add(&mut self, item: usize, text: &str) {
        if !text.is_empty() {
            self.text.push_str(text);
            self.items.push(item);
        }
    }

    /// Hands them to the assistant's message that follows them.
    fn take(&mut self) -> Option<String> {
        self.items.clear();
        Some(std::mem::take(&mut self.text)).filter(|text| !text.is_empty())
    }

    /// Leaves them out: no message of the assistant follows them.
    fn drop(&mut self, relaxed: &mut Relaxed) {
        self.text.clear();
        self.items.drain(..).for_each(|item| relaxed.push(format!("input[{item}]")));
    }
}
