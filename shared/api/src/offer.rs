//! Functions that the model may call, and whether it calls them: `tools` and `tool_choice`, both in the form
//! of chat completions and in that of responses.

use std::borrow::Cow;
use std::collections::HashSet;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::{Tool, ToolChoice};
use emberline_protocol::relaxed::Relaxed;

use crate::paths::Paths;

/// Largest number of tools of one request.
pub(crate) const MAX_TOOLS: usize = 128;

/// Types of tools that other servers support and this one does not.
const OTHER_TYPES: &[&str] = &[
    "apply_patch",
    "code_interpreter",
    "computer",
    "computer_use_preview",
    "custom",
    "file_search",
    "image_generation",
    "local_shell",
    "mcp",
    "namespace",
    "programmatic_tool_calling",
    "shell",
    "tool_search",
    "web_search",
    "web_search_2025_08_26",
    "web_search_preview",
    "web_search_preview_2025_03_11",
];

/// A tool of a type that this server does not support. It is left out and listed in the answer's header
/// `x-emberline-relaxed`. If the model must call it, the request is refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct OtherTool(Map<String, Value>);

impl JsonSchema for OtherTool {
    fn schema_name() -> Cow<'static, str> {
        "OtherTool".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "description": "A tool of a type that this server does not support. It is left out and listed in \
                            the answer's header x-emberline-relaxed. If the model must call it, the request is \
                            refused.",
            "properties": {"type": {"type": "string", "enum": OTHER_TYPES}},
            "required": ["type"],
            "additionalProperties": true,
        })
    }
}

/// `none`: the model calls no function. `auto`: the model decides. `required`: the model calls at least one
/// function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum ToolChoiceMode {
    None,
    Auto,
    Required,
}

/// `auto`: the model decides whether to call the allowed functions. `required`: it calls at least one of
/// them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub(crate) enum AllowedMode {
    Auto,
    Required,
}

/// A parsed `tool_choice`, independent of the endpoint's form.
#[derive(Debug)]
pub(crate) enum RequestedChoice {
    Mode(ToolChoiceMode),
    /// The model must call the function of this name.
    Named(String),
    /// The model may call only the functions of these names. `None` stands for a tool that this server does
    /// not support.
    Allowed(AllowedMode, Vec<Option<String>>),
}

/// How an endpoint's body arranges its tools.
#[derive(Debug)]
pub(crate) struct Form {
    /// Path from a tool to its function.
    function: &'static str,
    /// Path of the list of allowed tools.
    allowed: &'static str,
}

impl Form {
    pub(crate) const CHAT: Self = Self { function: ".function", allowed: "tool_choice.allowed_tools.tools" };
    pub(crate) const RESPONSES: Self = Self { function: "", allowed: "tool_choice.tools" };

    fn name_in(&self, place: impl std::fmt::Display) -> String {
        format!("{place}{}.name", self.function)
    }
}

/// The functions that the model may call, and whether it calls them.
#[derive(Debug, Default)]
pub(crate) struct Offer {
    pub(crate) tools: Vec<Tool>,
    pub(crate) choice: ToolChoice,
    /// For each of `tools`, its index in the client's `tools`.
    places: Vec<usize>,
}

impl Offer {
    /// Checks the client's tools and choice. `None` stands for a tool that this server does not support; its
    /// path is added to `relaxed`.
    pub(crate) fn read(
        tools: Vec<Option<Tool>>,
        requested: Option<RequestedChoice>,
        form: &Form,
        relaxed: &mut Relaxed,
    ) -> Result<Self, ApiError> {
        let mut offer = Self::default();
        let mut names = HashSet::new();
        let mut others = Vec::new();
        for (place, tool) in tools.into_iter().enumerate() {
            let Some(tool) = tool else {
                others.push(format!("tools[{place}]"));
                continue;
            };
            if !names.insert(tool.name.clone()) {
                let path = form.name_in(format_args!("tools[{place}]"));
                let message = format!("'{path}': there are two functions '{}'. Rename one.", tool.name);
                return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
            }
            offer.tools.push(tool);
            offer.places.push(place);
        }
        offer.choose(requested, form, !others.is_empty(), relaxed)?;
        others.into_iter().for_each(|path| relaxed.push(path));
        Ok(offer)
    }

    fn choose(
        &mut self,
        requested: Option<RequestedChoice>,
        form: &Form,
        has_others: bool,
        relaxed: &mut Relaxed,
    ) -> Result<(), ApiError> {
        self.choice = match requested {
            None | Some(RequestedChoice::Mode(ToolChoiceMode::Auto)) => ToolChoice::Auto,
            Some(RequestedChoice::Mode(ToolChoiceMode::None)) => ToolChoice::None,
            Some(RequestedChoice::Mode(ToolChoiceMode::Required)) => ToolChoice::Required,
            Some(RequestedChoice::Named(name)) => {
                if self.tools.is_empty() {
                    return Err(nothing_to_call(has_others));
                }
                self.check_name(&name, &form.name_in("tool_choice"))?;
                ToolChoice::Named(name)
            }
            Some(RequestedChoice::Allowed(mode, names)) => {
                self.allow(names, form, relaxed)?;
                match mode {
                    AllowedMode::Auto => ToolChoice::Auto,
                    AllowedMode::Required => ToolChoice::Required,
                }
            }
        };
        if self.tools.is_empty() && self.choice == ToolChoice::Required {
            return Err(nothing_to_call(has_others));
        }
        Ok(())
    }

    /// Removes all functions except those of these names.
    fn allow(
        &mut self,
        names: Vec<Option<String>>,
        form: &Form,
        relaxed: &mut Relaxed,
    ) -> Result<(), ApiError> {
        let mut allowed = HashSet::new();
        for (index, name) in names.into_iter().enumerate() {
            let path = format!("{}[{index}]", form.allowed);
            match name {
                Some(name) => {
                    self.check_name(&name, &form.name_in(&path))?;
                    allowed.insert(name);
                }
                None => relaxed.push(path),
            }
        }
        let all = std::mem::take(&mut self.tools).into_iter().zip(std::mem::take(&mut self.places));
        (self.tools, self.places) = all.filter(|(tool, _)| allowed.contains(&tool.name)).unzip();
        Ok(())
    }

    /// Refuses a name that is not the name of any function.
    fn check_name(&self, name: &str, path: &str) -> Result<(), ApiError> {
        if self.tools.iter().any(|tool| tool.name == name) {
            return Ok(());
        }
        let known: Vec<&str> = self.tools.iter().map(|tool| tool.name.as_str()).collect();
        let known = match known.is_empty() {
            true => "there are no functions".to_owned(),
            false => known.join(", "),
        };
        let message =
            format!("'{path}' is '{name}', which is not in 'tools' ({known}). Add it, or leave it out.");
        Err(ApiError::field(ErrorCode::InvalidValue, path, message))
    }

    /// The functions that the model may call: none if `tool_choice` is `none`.
    pub(crate) fn offered(&self) -> &[Tool] {
        if self.choice == ToolChoice::None { &[] } else { &self.tools }
    }

    /// Adds the positions of the functions in the client's body to `paths`.
    pub(crate) fn place(&self, form: &Form, paths: &mut Paths) {
        let is_moved = self.places.iter().zip(0..).any(|(place, index)| *place != index);
        let places = if is_moved { self.places.clone() } else { Vec::new() };
        paths.place_tools(places, form.function.is_empty());
    }
}

/// The error for a `tool_choice` that requires a function call although there is no function to call.
fn nothing_to_call(has_others: bool) -> ApiError {
    let (code, message) = match has_others {
        true => (
            ErrorCode::UnsupportedParameter,
            "'tool_choice' asks for a call, and there is nothing to call: functions are the only tools here. \
             Add some, or leave it out.",
        ),
        false => (
            ErrorCode::InvalidValue,
            "'tool_choice' asks for a call, and there are no 'tools' that may be called. Add some, or leave it out.",
        ),
    };
    ApiError::field(code, "tool_choice", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tool(name: &str) -> Option<Tool> {
        Some(Tool { name: name.into(), description: None, parameters: Map::new(), strict: false })
    }

    fn read(
        tools: &[Option<&str>],
        requested: Option<RequestedChoice>,
        form: &Form,
    ) -> Result<(Vec<String>, ToolChoice, Vec<String>, Paths), ApiError> {
        let mut relaxed = Relaxed::default();
        let tools = tools.iter().map(|name| name.and_then(tool)).collect();
        let offer = Offer::read(tools, requested, form, &mut relaxed)?;
        let mut paths = Paths::default();
        offer.place(form, &mut paths);
        let names = offer.tools.into_iter().map(|tool| tool.name).collect();
        Ok((names, offer.choice, relaxed.paths().to_vec(), paths))
    }

    fn allowed(mode: AllowedMode, names: &[Option<&str>]) -> Option<RequestedChoice> {
        Some(RequestedChoice::Allowed(mode, names.iter().map(|name| name.map(str::to_owned)).collect()))
    }

    #[test]
    fn tools_that_nobody_has_are_left_out_and_named() {
        let (names, choice, relaxed, paths) =
            read(&[None, Some("f"), None, Some("g")], None, &Form::CHAT).unwrap();
        assert_eq!((names, choice), (vec!["f".into(), "g".into()], ToolChoice::Auto));
        assert_eq!(relaxed, ["tools[0]", "tools[2]"]);
        assert_eq!(paths.translate("tools[1].function.parameters.not"), "tools[3].function.parameters.not");
        let (_, _, _, paths) = read(&[None, Some("f")], None, &Form::RESPONSES).unwrap();
        assert_eq!(paths.translate("tools[0].function.parameters.not"), "tools[1].parameters.not");
        let (names, choice, ..) = read(&[None], None, &Form::CHAT).unwrap();
        assert_eq!((names.len(), choice), (0, ToolChoice::Auto));
        let (.., paths) = read(&[Some("f")], None, &Form::CHAT).unwrap();
        assert!(paths.is_empty());
    }

    #[test]
    fn a_call_that_nothing_can_answer_is_refused() {
        for (tools, requested, form, code, param) in [
            (
                &[][..],
                Some(RequestedChoice::Mode(ToolChoiceMode::Required)),
                Form::CHAT,
                ErrorCode::InvalidValue,
                "tool_choice",
            ),
            (
                &[None],
                Some(RequestedChoice::Mode(ToolChoiceMode::Required)),
                Form::CHAT,
                ErrorCode::UnsupportedParameter,
                "tool_choice",
            ),
            (
                &[Some("f")],
                Some(RequestedChoice::Named("g".into())),
                Form::CHAT,
                ErrorCode::InvalidValue,
                "tool_choice.function.name",
            ),
            (
                &[Some("f")],
                Some(RequestedChoice::Named("g".into())),
                Form::RESPONSES,
                ErrorCode::InvalidValue,
                "tool_choice.name",
            ),
            (
                &[Some("f")],
                allowed(AllowedMode::Auto, &[Some("f"), Some("g")]),
                Form::CHAT,
                ErrorCode::InvalidValue,
                "tool_choice.allowed_tools.tools[1].function.name",
            ),
            (
                &[Some("f"), None],
                allowed(AllowedMode::Required, &[None]),
                Form::RESPONSES,
                ErrorCode::UnsupportedParameter,
                "tool_choice",
            ),
            (&[Some("f"), Some("f")], None, Form::CHAT, ErrorCode::InvalidValue, "tools[1].function.name"),
            (&[Some("f"), None, Some("f")], None, Form::RESPONSES, ErrorCode::InvalidValue, "tools[2].name"),
        ] {
            let error = read(tools, requested, &form).unwrap_err();
            assert_eq!((error.code, error.param.as_deref()), (code, Some(param)), "{error}");
        }
    }

    #[test]
    fn only_allowed_functions_are_offered() {
        let tools = [Some("f"), Some("g"), None, Some("h")];
        let (names, choice, relaxed, paths) =
            read(&tools, allowed(AllowedMode::Required, &[Some("h"), None, Some("g")]), &Form::CHAT).unwrap();
        assert_eq!((names, choice), (vec!["g".into(), "h".into()], ToolChoice::Required));
        assert_eq!(relaxed, ["tool_choice.allowed_tools.tools[1]", "tools[2]"]);
        assert_eq!(paths.translate("tools[0].function.name"), "tools[1].function.name");
        let (names, choice, ..) = read(&tools, allowed(AllowedMode::Auto, &[None]), &Form::CHAT).unwrap();
        assert_eq!((names.len(), choice), (0, ToolChoice::Auto));
    }
}
