//! `tools` and `tool_choice` of a request for a response.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use emberline_protocol::error::ApiError;
use emberline_protocol::job;
use emberline_protocol::relaxed::Relaxed;

use super::answer::ToolEcho;
use crate::offer::{AllowedMode, Form, MAX_TOOLS, Offer, OtherTool, RequestedChoice, ToolChoiceMode};
use crate::parameters::NAME_PATTERN;

/// A tool that the model may call.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ResponseTool")]
pub(super) enum Tool {
    Known(KnownTool),
    Other(#[allow(dead_code)] OtherTool),
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields)]
pub(super) enum KnownTool {
    /// A function.
    Function {
        /// Name of the function. It must be unique in `tools`.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
        /// Description of the function for the model. Default: none.
        description: Option<String>,
        /// JSON schema of the function's arguments, which are a JSON object. Default: the function takes no
        /// arguments.
        parameters: Option<Map<String, Value>>,
        /// Whether the schema follows OpenAI's strict mode. If so, a schema that can't be enforced completely
        /// is refused. Otherwise, keywords that can't be enforced are left out and listed in the header
        /// `x-emberline-relaxed`. Default: false.
        strict: Option<bool>,
        /// Accepted for compatibility; has no effect, because all functions are part of the prompt.
        #[allow(dead_code)]
        defer_loading: Option<bool>,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
}

/// Whether the model calls functions, and which.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ResponseToolChoice")]
pub(super) enum Choice {
    Mode(ToolChoiceMode),
    Tools(ChosenTools),
}

/// Limits the model to certain functions.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields, extend("x-unsupported-values" = [
    "apply_patch", "code_interpreter", "computer", "computer_use", "computer_use_preview", "custom", "file_search",
    "image_generation", "mcp", "programmatic_tool_calling", "shell", "web_search_preview",
    "web_search_preview_2025_03_11",
]))]
pub(super) enum ChosenTools {
    /// The model must call this function.
    Function {
        /// Name of the function, which must be in `tools`.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
    },
    /// The model may call only these functions.
    AllowedTools {
        /// Whether the model must call one of the functions.
        mode: AllowedMode,
        /// The functions that the model may call, which must be in the request's `tools`.
        #[schemars(length(min = 1, max = MAX_TOOLS))]
        tools: Vec<AllowedTool>,
    },
}

#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
pub(super) enum AllowedTool {
    Known(AllowedFunction),
    Other(OtherTool),
}

#[derive(Debug, Clone, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields)]
pub(super) enum AllowedFunction {
    Function {
        /// Name of the function, which must be in `tools`.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
    },
}

impl Tool {
    /// The function in the form in which a response returns it; `None` for a tool that is left out.
    pub(super) fn echo(&self) -> Option<ToolEcho> {
        let Self::Known(KnownTool::Function { name, description, parameters, strict, .. }) = self else {
            return None;
        };
        Some(ToolEcho {
            r#type: "function".to_owned(),
            name: name.clone(),
            description: description.clone(),
            parameters: parameters.clone().unwrap_or_default(),
            strict: strict.unwrap_or(false),
        })
    }
}

impl Choice {
    pub(super) fn echo(&self) -> Value {
        json!(self)
    }
}

impl From<Choice> for RequestedChoice {
    fn from(choice: Choice) -> Self {
        match choice {
            Choice::Mode(mode) => Self::Mode(mode),
            Choice::Tools(ChosenTools::Function { name }) => Self::Named(name),
            Choice::Tools(ChosenTools::AllowedTools { mode, tools }) => {
                let name = |tool| match tool {
                    AllowedTool::Known(AllowedFunction::Function { name }) => Some(name),
                    AllowedTool::Other(_) => None,
                };
                Self::Allowed(mode, tools.into_iter().map(name).collect())
            }
        }
    }
}

/// Parses the functions that the model may call, and whether it calls them.
pub(super) fn read(
    tools: Option<Vec<Tool>>,
    choice: Option<Choice>,
    relaxed: &mut Relaxed,
) -> Result<Offer, ApiError> {
    let tools = tools.unwrap_or_default().into_iter().map(|tool| match tool {
        Tool::Other(_) => None,
        Tool::Known(KnownTool::Function { name, description, parameters, strict, .. }) => {
            let parameters = parameters.unwrap_or_default();
            Some(job::Tool { name, description, parameters, strict: strict.unwrap_or(false) })
        }
    });
    Offer::read(tools.collect(), choice.map(RequestedChoice::from), &Form::RESPONSES, relaxed)
}
