//! `tools` and `tool_choice` of a request for a response.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::answer::ToolEcho;
use crate::chat::ToolChoiceMode;
use crate::error::{ApiError, ErrorCode};
use crate::job::{self, ToolChoice};
use crate::parameters::NAME_PATTERN;

/// Something that the model may call.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(
    rename = "ResponseTool",
    deny_unknown_fields,
    extend("x-unsupported-values" = [
        "apply_patch", "code_interpreter", "computer", "computer_use_preview", "custom", "file_search",
        "image_generation", "local_shell", "mcp", "shell", "web_search", "web_search_preview",
    ]),
)]
pub(super) enum Tool {
    /// A function.
    Function {
        /// Its name, by which it is called.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
        /// What it does, for the model to read.
        description: Option<String>,
        /// JSON schema of its arguments, an object. Default: it takes none.
        parameters: Option<Map<String, Value>>,
        /// The schema follows OpenAI's strict mode. Default false.
        strict: Option<bool>,
    },
}

/// Whether the model calls functions.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ResponseToolChoice")]
pub(super) enum Choice {
    Mode(ToolChoiceMode),
    Named(Named),
}

/// The function that the model must call.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields, extend("x-unsupported-values" = [
    "allowed_tools", "apply_patch", "code_interpreter", "computer_use_preview", "custom", "file_search",
    "image_generation", "mcp", "shell", "web_search_preview",
]))]
pub(super) enum Named {
    Function {
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
    },
}

impl Tool {
    pub(super) fn echo(&self) -> ToolEcho {
        let Self::Function { name, description, parameters, strict } = self;
        ToolEcho {
            r#type: "function".to_owned(),
            name: name.clone(),
            description: description.clone(),
            parameters: parameters.clone().unwrap_or_default(),
            strict: strict.unwrap_or(false),
        }
    }
}

impl Choice {
    pub(super) fn echo(&self) -> Value {
        json!(self)
    }
}

/// The job's functions, no two of the same name.
pub(super) fn read(tools: Vec<Tool>) -> Result<Vec<job::Tool>, ApiError> {
    let mut names = HashSet::new();
    let mut read = Vec::with_capacity(tools.len());
    for (i, Tool::Function { name, description, parameters, strict }) in tools.into_iter().enumerate() {
        if !names.insert(name.clone()) {
            let path = format!("tools[{i}].name");
            let message = format!("'{path}': there are two functions '{name}'. Rename one.");
            return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
        }
        let parameters = parameters.unwrap_or_default();
        read.push(job::Tool { name, description, parameters, strict: strict.unwrap_or(false) });
    }
    Ok(read)
}

/// The job's choice among `tools`.
pub(super) fn read_choice(choice: Option<Choice>, tools: &[job::Tool]) -> Result<ToolChoice, ApiError> {
    let invalid = |path: &str, message: String| Err(ApiError::field(ErrorCode::InvalidValue, path, message));
    match choice {
        None | Some(Choice::Mode(ToolChoiceMode::Auto)) => Ok(ToolChoice::Auto),
        Some(Choice::Mode(ToolChoiceMode::None)) => Ok(ToolChoice::None),
        Some(_) if tools.is_empty() => invalid(
            "tool_choice",
            "'tool_choice' asks for a call, and there are no 'tools'. Add some, or leave it out.".to_owned(),
        ),
        Some(Choice::Mode(ToolChoiceMode::Required)) => Ok(ToolChoice::Required),
        Some(Choice::Named(Named::Function { name })) if tools.iter().any(|tool| tool.name == name) => {
            Ok(ToolChoice::Named(name))
        }
        Some(Choice::Named(Named::Function { name })) => {
            let known: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
            let known = known.join(", ");
            let path = "tool_choice.name";
            invalid(path, format!("'{path}' is '{name}', which is not in 'tools' ({known})."))
        }
    }
}
