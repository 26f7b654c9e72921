//! What a prompt is made of, in the shape in which Hugging Face's `apply_chat_template` gives it to
//! templates.

use emberline_protocol::job::{GenerationRequest, Message, Role, Tool, ToolChoice};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A conversation to render a prompt from.
#[derive(Debug, Clone)]
pub struct Conversation<'a> {
    /// The messages.
    pub messages: &'a [Message],
    /// The functions that it may call.
    pub tools: &'a [Tool],
    /// Whether it may or must call them; with [`ToolChoice::None`] they are not in the prompt.
    pub tool_choice: ToolChoice,
    /// It may call several at once.
    pub parallel_tool_calls: bool,
    /// The template's own variables, such as `enable_thinking`.
    pub variables: Map<String, Value>,
    /// The time that templates see, unix milliseconds: that of the job, so that every worker that
    /// takes it up renders the same prompt.
    pub now: u64,
    /// The prompt ends where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// The prompt ends with the last message's text.
    pub continue_final_message: bool,
}

impl<'a> Conversation<'a> {
    /// Messages and nothing else.
    pub fn new(messages: &'a [Message], now: u64) -> Self {
        Self {
            messages,
            tools: &[],
            tool_choice: ToolChoice::Auto,
            parallel_tool_calls: true,
            variables: Map::new(),
            now,
            add_generation_prompt: true,
            continue_final_message: false,
        }
    }

    /// What a job asks about.
    pub fn of(request: &'a GenerationRequest, now: u64) -> Self {
        Self {
            tools: &request.tools,
            tool_choice: request.tool_choice.clone(),
            parallel_tool_calls: request.allows_several_calls(),
            variables: request.template_variables.clone(),
            add_generation_prompt: request.add_generation_prompt,
            continue_final_message: request.continue_final_message,
            ..Self::new(&request.messages, now)
        }
    }

    /// The functions that are in the prompt.
    pub fn offered(&self) -> &'a [Tool] {
        if self.tool_choice == ToolChoice::None { &[] } else { self.tools }
    }
}

/// What the content of a message is that only calls functions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum NoContent {
    #[default]
    Empty,
    Null,
}

/// A message as templates see it.
#[derive(Debug, Serialize)]
pub(super) struct TemplateMessage<'a> {
    role: Role,
    content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    /// By the name that the templates of models that think read it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tool_call_id: Option<&'a str>,
}

impl<'a> TemplateMessage<'a> {
    pub(super) fn new(message: &'a Message, no_content: NoContent) -> Self {
        let calls = message.tool_calls.iter().map(|call| {
            let function = json!({"name": call.name, "arguments": arguments(&call.arguments)});
            json!({"id": call.id, "type": "function", "function": function})
        });
        let is_null =
            no_content == NoContent::Null && message.content.is_empty() && !message.tool_calls.is_empty();
        Self {
            role: message.role,
            content: (!is_null).then_some(&message.content),
            name: message.name.as_deref(),
            reasoning_content: message.reasoning.as_deref(),
            tool_calls: calls.collect(),
            tool_call_id: message.tool_call_id.as_deref(),
        }
    }
}

/// An object, for templates write it as JSON themselves; text that is none stays text.
fn arguments(text: &str) -> Value {
    match serde_json::from_str::<Map<String, Value>>(text) {
        Ok(arguments) => arguments.into(),
        Err(_) => text.into(),
    }
}

/// A function as templates see it.
pub(super) fn described(tool: &Tool) -> Value {
    let mut function = Map::from_iter([("name".to_owned(), tool.name.clone().into())]);
    if let Some(description) = &tool.description {
        function.insert("description".to_owned(), description.clone().into());
    }
    // Templates look into the properties.
    let parameters = match tool.parameters.is_empty() {
        true => json!({"type": "object", "properties": {}}),
        false => tool.parameters.clone().into(),
    };
    function.insert("parameters".to_owned(), parameters);
    json!({"type": "function", "function": function})
}
