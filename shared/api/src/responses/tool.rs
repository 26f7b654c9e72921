//! `tools` and `tool_choice` of a request for a response.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use emberline_protocol::error::ApiError;
use emberline_protocol::job;
use emberline_protocol::relaxed::Relaxed;

use super::answer::ToolEcho;
use crate::offer::{AllowedMode, Form, MAX_TOOLS, Offer, OtherTool, ToolChoiceMode, Wanted};
use crate::parameters::NAME_PATTERN;

/// Something that the model may call.
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
        /// Its name, by which it is called.
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
        /// What it does, for the model to read.
        description: Option<String>,
        /// JSON schema of its arguments, an object. Default: it takes none.
        parameters: Option<Map<String, Value>>,
        /// The schema follows OpenAI's strict mode. Default false.
        strict: Option<bool>,
        /// Asks for nothing: every function is there from the beginning.
        #[allow(dead_code)]
        defer_loading: Option<bool>,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
}

/// Whether the model calls functions.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ResponseToolChoice")]
pub(super) enum Choice {
    Mode(ToolChoiceMode),
    Tools(ChosenTools),
}

/// The functions that the model must call, or may.
#[derive(Debug, Deserialize, Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields, extend("x-unsupported-values" = [
    "apply_patch", "code_interpreter", "computer", "computer_use", "computer_use_preview", "custom", "file_search",
    "image_generation", "mcp", "programmatic_tool_calling", "shell", "web_search_preview",
    "web_search_preview_2025_03_11",
]))]
pub(super) enum ChosenTools {
    /// It must call this one.
    Function {
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
    },
    /// It calls none but these.
    AllowedTools {
        mode: AllowedMode,
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
        #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
        name: String,
    },
}

impl Tool {
    /// A function as a response returns it; tools that are left out are not part of the response.
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

impl From<Choice> for Wanted {
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

/// What the model may call, and whether it does.
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
    Offer::read(tools.collect(), choice.map(Wanted::from), &Form::RESPONSES, relaxed)
}
