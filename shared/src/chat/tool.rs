//! What an answer has to obey: `tools`, `tool_choice` and `response_format` of a chat request.

use std::collections::HashSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{ApiError, ErrorCode};
use crate::job::{Constraint, Tool, ToolChoice};
use crate::parameters::NAME_PATTERN;

/// Most functions.
pub(crate) const MAX_TOOLS: usize = 128;

/// Something that the model may call.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(rename = "Tool", deny_unknown_fields, extend("x-unsupported-values" = ["custom"]))]
pub(crate) enum ToolBody {
    Function { function: Function },
}

/// A function that the model may call.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Function {
    /// Its name, by which it is called.
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    name: String,
    /// What it does, for the model to read.
    description: Option<String>,
    /// JSON schema of its arguments, an object. Default: it takes none.
    parameters: Option<Map<String, Value>>,
    /// The schema follows OpenAI's strict mode. Default false.
    strict: Option<bool>,
}

/// Whether the model calls functions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ToolChoice")]
pub(crate) enum ToolChoiceBody {
    Mode(ToolChoiceMode),
    Named(NamedTool),
}

/// `none`: it calls none; `auto`: as it likes; `required`: at least one.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum ToolChoiceMode {
    None,
    Auto,
    Required,
}

/// The function that the model must call.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields, extend("x-unsupported-values" = ["allowed_tools", "custom"]))]
pub(crate) enum NamedTool {
    Function { function: FunctionName },
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline, deny_unknown_fields)]
pub(crate) struct FunctionName {
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    name: String,
}

/// What the answer's text has to obey.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// Nothing.
    Text,
    /// It is a JSON object.
    JsonObject,
    /// It is JSON that a schema allows.
    JsonSchema { json_schema: NamedSchema },
    /// Extension. A context-free grammar in llguidance's variant of Lark allows it.
    Grammar {
        #[schemars(length(min = 1))]
        grammar: String,
    },
    /// Extension. A regular expression matches all of it.
    Regex {
        #[schemars(length(min = 1))]
        regex: String,
    },
}

/// A schema with a name.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct NamedSchema {
    /// What the answer is called.
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    #[allow(dead_code)] // OpenAI's API asks for it
    name: String,
    /// What the answer is for.
    #[allow(dead_code)]
    description: Option<String>,
    /// The JSON schema.
    schema: Map<String, Value>,
    /// It follows OpenAI's strict mode. Default false.
    strict: Option<bool>,
}

impl ResponseFormat {
    pub(crate) fn into_constraint(self) -> Option<Constraint> {
        match self {
            Self::Text => None,
            Self::JsonObject => Some(Constraint::JsonObject),
            Self::JsonSchema { json_schema: NamedSchema { schema, strict, .. } } => {
                Some(Constraint::JsonSchema {
                    schema: Value::Object(schema),
                    strict: strict.unwrap_or(false),
                })
            }
            Self::Grammar { grammar } => Some(Constraint::Grammar(grammar)),
            Self::Regex { regex } => Some(Constraint::Regex(regex)),
        }
    }
}

/// The job's functions, no two of the same name.
pub(crate) fn read_tools(tools: Vec<ToolBody>) -> Result<Vec<Tool>, ApiError> {
    let mut names = HashSet::new();
    let mut read = Vec::with_capacity(tools.len());
    for (i, ToolBody::Function { function }) in tools.into_iter().enumerate() {
        let Function { name, description, parameters, strict } = function;
        if !names.insert(name.clone()) {
            let path = format!("tools[{i}].function.name");
            let message = format!("'{path}': there are two functions '{name}'. Rename one.");
            return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
        }
        let parameters = parameters.unwrap_or_default();
        read.push(Tool { name, description, parameters, strict: strict.unwrap_or(false) });
    }
    Ok(read)
}

/// The job's choice among `tools`.
pub(crate) fn read_tool_choice(
    choice: Option<ToolChoiceBody>,
    tools: &[Tool],
) -> Result<ToolChoice, ApiError> {
    let invalid = |path: &str, message: String| Err(ApiError::field(ErrorCode::InvalidValue, path, message));
    match choice {
        None | Some(ToolChoiceBody::Mode(ToolChoiceMode::Auto)) => Ok(ToolChoice::Auto),
        Some(ToolChoiceBody::Mode(ToolChoiceMode::None)) => Ok(ToolChoice::None),
        Some(_) if tools.is_empty() => invalid(
            "tool_choice",
            "'tool_choice' asks for a call, and there are no 'tools'. Add some, or leave it out.".to_owned(),
        ),
        Some(ToolChoiceBody::Mode(ToolChoiceMode::Required)) => Ok(ToolChoice::Required),
        Some(ToolChoiceBody::Named(NamedTool::Function { function: FunctionName { name } })) => {
            if tools.iter().any(|tool| tool.name == name) {
                return Ok(ToolChoice::Named(name));
            }
            let path = "tool_choice.function.name";
            let known: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
            let known = known.join(", ");
            invalid(path, format!("'{path}' is '{name}', which is not in 'tools' ({known})."))
        }
    }
}
