//! What an answer has to obey: `tools`, `tool_choice` and `response_format` of a chat request.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use emberline_protocol::error::ApiError;
use emberline_protocol::job::{self, Constraint};
use emberline_protocol::relaxed::Relaxed;

use crate::offer::{AllowedMode, Form, MAX_TOOLS, Offer, OtherTool, ToolChoiceMode, Wanted};
use crate::parameters::NAME_PATTERN;

/// Something that the model may call.
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
        function: Function,
        /// Asks for nothing: what prompts begin with is shared.
        #[allow(dead_code)]
        cache_control: Option<Map<String, Value>>,
    },
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
    /// Asks for nothing: what prompts begin with is shared.
    #[allow(dead_code)]
    cache_control: Option<Map<String, Value>>,
}

/// Whether the model calls functions.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "ToolChoice")]
pub(crate) enum ToolChoiceBody {
    Mode(ToolChoiceMode),
    Tools(ChosenTools),
}

/// The functions that the model must call, or may.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schemars(inline, deny_unknown_fields, extend("x-unsupported-values" = ["custom"]))]
pub(crate) enum ChosenTools {
    /// It must call this one.
    Function { function: FunctionName },
    /// It calls none but these.
    AllowedTools { allowed_tools: AllowedTools },
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline, deny_unknown_fields)]
pub(crate) struct FunctionName {
    #[schemars(length(min = 1, max = 64), extend("pattern" = NAME_PATTERN))]
    name: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[schemars(inline, deny_unknown_fields)]
pub(crate) struct AllowedTools {
    mode: AllowedMode,
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

impl From<ToolChoiceBody> for Wanted {
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

/// What the model may call, and whether it does.
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
    Offer::read(tools.collect(), choice.map(Wanted::from), &Form::CHAT, relaxed)
}
