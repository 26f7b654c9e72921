//! `tools`, `tool_choice` and `response_format` of a chat request.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use emberline_protocol::error::ApiError;
use emberline_protocol::job::{self, Constraint};
use emberline_protocol::relaxed::Relaxed;

use crate::offer::{AllowedMode, Form, MAX_TOOLS, Offer, OtherTool, RequestedChoice, ToolChoiceMode};
use crate::parameters::NAME_PATTERN;

/// A tool that the model may call.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "Tool")]
pub(crate) enum ToolBody {
    Known(KnownTool),
    Other(#[allow(dead_code)] OtherTool),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields)]
pub(crate) enum KnownTool {
    Function {
        /// The function.
        function: Function,
        /// Accepted for compatibility; has no effect, because the prefix cache is always on.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
}

/// A function that the model may call.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct Function {
    /// Name of the function. It must be unique in `tools`.
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    name: String,
    /// Description of the function for the model. Default: none.
    description: Option<String>,
    /// JSON schema of the function's arguments, which are a JSON object. Default: the function takes no
    /// arguments.
    parameters: Option<Map<String, Value>>,
    /// Whether the schema follows OpenAI's strict mode. If so, a schema that can't be enforced completely is
    /// refused. Otherwise, keywords that can't be enforced are left out and listed in the header
    /// `x-emberline-relaxed`. Default: false.
    strict: Option<bool>,
    /// Accepted for compatibility; has no effect, because the prefix cache is always on.
    #[allow(dead_code)]
    cache_control: Option<Map<String, Value>>,
}

/// Whether the model calls functions, and which.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ToolChoice")]
pub(crate) enum ToolChoiceBody {
    Mode(ToolChoiceMode),
    Tools(ChosenTools),
}

/// Limits the model to certain functions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields, extend("x-unsupported-values" = ["custom"]))]
pub(crate) enum ChosenTools {
    /// The model must call this function.
    Function { function: FunctionName },
    /// The model may call only these functions.
    AllowedTools { allowed_tools: AllowedTools },
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline, deny_unknown_fields)]
pub(crate) struct FunctionName {
    /// Name of the function, which must be in `tools`.
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    name: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline, deny_unknown_fields)]
pub(crate) struct AllowedTools {
    /// Whether the model must call one of the functions.
    mode: AllowedMode,
    /// The functions that the model may call, which must be in the request's `tools`.
    #[schemars(length(min = 1, max = MAX_TOOLS))]
    tools: Vec<AllowedTool>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum AllowedTool {
    Known(AllowedFunction),
    Other(#[allow(dead_code)] OtherTool),
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields)]
enum AllowedFunction {
    Function { function: FunctionName },
}

/// The format that the generated text must have.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(deny_unknown_fields)]
pub(crate) enum ResponseFormat {
    /// Any text.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that conforms to a schema.
    JsonSchema { json_schema: NamedSchema },
    /// Extension to OpenAI's API. Text that conforms to a context-free grammar.
    Grammar {
        /// The grammar, in llguidance's variant of Lark.
        #[schemars(length(min = 1))]
        grammar: String,
    },
    /// Extension to OpenAI's API. Text that a regular expression matches completely.
    Regex {
        /// The regular expression, in the syntax of Rust's regex crate.
        #[schemars(length(min = 1))]
        regex: String,
    },
}

/// A JSON schema with a name.
#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(crate) struct NamedSchema {
    /// Name of the format. It has no effect.
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    #[allow(dead_code)] // OpenAI's API requires it
    name: String,
    /// Accepted for compatibility; has no effect, because it is not part of the prompt.
    #[allow(dead_code)]
    description: Option<String>,
    /// The JSON schema.
    schema: Map<String, Value>,
    /// Whether the schema follows OpenAI's strict mode. If so, a schema that can't be enforced completely is
    /// refused. Otherwise, keywords that can't be enforced are left out and listed in the header
    /// `x-emberline-relaxed`. Default: false.
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

impl From<ToolChoiceBody> for RequestedChoice {
    fn from(choice: ToolChoiceBody) -> Self {
        match choice {
            ToolChoiceBody::Mode(mode) => Self::Mode(mode),
            ToolChoiceBody::Tools(ChosenTools::Function { function }) => Self::Named(function.name),
            ToolChoiceBody::Tools(ChosenTools::AllowedTools {
                allowed_tools: AllowedTools { mode, tools },
            }) => {
                let name = |tool| match tool {
                    AllowedTool::Known(AllowedFunction::Function { function }) => Some(function.name),
                    AllowedTool::Other(_) => None,
                };
                Self::Allowed(mode, tools.into_iter().map(name).collect())
            }
        }
    }
}

/// Parses the functions that the model may call, and whether it calls them.
pub(crate) fn read(
    tools: Option<Vec<ToolBody>>,
    choice: Option<ToolChoiceBody>,
    relaxed: &mut Relaxed,
) -> Result<Offer, ApiError> {
    let tools = tools.unwrap_or_default().into_iter().map(|tool| match tool {
        ToolBody::Other(_) => None,
        ToolBody::Known(KnownTool::Function { function, .. }) => {
            let Function { name, description, parameters, strict, .. } = function;
            let parameters = parameters.unwrap_or_default();
            Some(job::Tool { name, description, parameters, strict: strict.unwrap_or(false) })
        }
    });
    Offer::read(tools.collect(), choice.map(RequestedChoice::from), &Form::CHAT, relaxed)
}
