//! Translates the paths by which workers refer to fields into the paths of the client's body.
//!
//! A job does not depend on the endpoint that created it. Workers refer to its fields by their paths in a
//! body of chat completions (`tools[2].function.parameters`, `messages`, `max_tokens`), which may differ from
//! the paths in the body that the client sent.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use emberline_protocol::error::ApiError;
use emberline_protocol::relaxed::Relaxed;

/// Maps workers' paths to the paths of one client's body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Paths {
    /// For each function of the job, its index in the client's `tools`; empty if the indices are the same.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tools: Vec<usize>,
    /// Whether the fields of a function are directly in its tool, as in `tools[2].parameters`.
    #[serde(skip_serializing_if = "is_false")]
    flat_tools: bool,
    /// Pairs of a worker's path prefix and the prefix that replaces it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    renamed: Vec<(String, String)>,
}

/// The path of the messages. If it is renamed, indices after it are dropped, because items of the client's
/// `input` do not correspond to single messages.
const MESSAGES: &str = "messages";

#[allow(clippy::trivially_copy_pass_by_ref)] // serde requires this signature
fn is_false(value: &bool) -> bool {
    !value
}

impl Paths {
    /// Whether all paths are the same in the client's body.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Adds a field whose path in the client's body differs. If the same path is added again, the last one
    /// applies.
    pub(crate) fn rename(&mut self, worker: &str, client: &str) {
        self.renamed.push((worker.to_owned(), client.to_owned()));
    }

    /// Sets each function's index in the client's `tools`, and whether its fields are directly in its tool.
    pub(crate) fn place_tools(&mut self, places: Vec<usize>, flat: bool) {
        self.tools = places;
        self.flat_tools = flat;
    }

    /// Translates a worker's path into the client's.
    pub fn translate<'a>(&self, path: &'a str) -> Cow<'a, str> {
        if let Some(path) = self.tool_path(path) {
            return path.into();
        }
        let begins = |(worker, client): &'_ (String, String)| {
            let rest = path.strip_prefix(worker.as_str())?;
            let is_whole = rest.is_empty() || rest.starts_with(['.', '[']);
            is_whole.then(|| {
                (worker.len(), if worker == MESSAGES { client.clone() } else { format!("{client}{rest}") })
            })
        };
        let longest = self.renamed.iter().filter_map(begins).max_by_key(|(length, _)| *length);
        longest.map_or(path.into(), |(_, path)| path.into())
    }

    /// Translates the path of a tool's field; `None` for other paths.
    fn tool_path(&self, path: &str) -> Option<String> {
        let (index, field) = path.strip_prefix("tools[")?.split_once(']')?;
        let index: usize = index.parse().ok()?;
        let place = self.tools.get(index).copied().unwrap_or(index);
        let flat = field.strip_prefix(".function").filter(|_| self.flat_tools);
        Some(format!("tools[{place}]{}", flat.unwrap_or(field)))
    }

    /// Translates every path in the list.
    pub fn relaxed(&self, relaxed: &Relaxed) -> Relaxed {
        let mut translated = Relaxed::default();
        relaxed.paths().iter().for_each(|path| translated.push(self.translate(path)));
        translated
    }

    /// Translates the error's `param`, and the paths in single quotes in its message.
    pub fn error(&self, error: ApiError) -> ApiError {
        let ApiError { code, param, message } = error;
        let translated = param.as_deref().map(|param| self.translate(param).into_owned());
        let message = match (&param, &translated) {
            // `translate_quoted` does not recognise a path that contains spaces.
            (Some(old), Some(new)) if old != new && old.contains(char::is_whitespace) => {
                message.replace(&format!("'{old}'"), &format!("'{new}'"))
            }
            _ => message,
        };
        ApiError { code, message: self.translate_quoted(&message), param: translated }
    }

    /// Translates each path in single quotes. Quoted text that contains whitespace is not a path, so that
    /// apostrophes are left alone.
    fn translate_quoted(&self, message: &str) -> String {
        let mut text = String::with_capacity(message.len());
        let mut rest = message;
        while let Some((before, after)) = rest.split_once('\'') {
            text.push_str(before);
            text.push('\'');
            rest = after;
            let quoted = after.split_once('\'').filter(|(path, _)| !path.contains(char::is_whitespace));
            if let Some((path, after)) = quoted {
                text.push_str(&self.translate(path));
                text.push('\'');
                rest = after;
            }
        }
        text.push_str(rest);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use emberline_protocol::error::ErrorCode;

    fn responses_paths() -> Paths {
        let mut paths = Paths::default();
        paths.rename("messages", "input");
        paths.rename("max_tokens", "max_output_tokens");
        paths.rename("response_format", "text.format");
        paths.rename("response_format.json_schema.schema", "text.format.schema");
        paths.place_tools(vec![1, 4], true);
        paths
    }

    #[test]
    fn each_path_is_the_clients() {
        let paths = responses_paths();
        for (worker, client) in [
            ("messages", "input"),
            ("messages[3].content", "input"),
            ("messages_of_others", "messages_of_others"),
            ("temperature", "temperature"),
            ("response_format", "text.format"),
            ("response_format.regex", "text.format.regex"),
            ("response_format.json_schema.schema.properties.a b", "text.format.schema.properties.a b"),
            ("tools[0]", "tools[1]"),
            (
                "tools[1].function.parameters.properties.day.format",
                "tools[4].parameters.properties.day.format",
            ),
            ("tools[7].function.name", "tools[7].name"),
            ("tools", "tools"),
            ("tools[x]", "tools[x]"),
        ] {
            assert_eq!(paths.translate(worker), client);
        }
        let plain = Paths::default();
        assert!(plain.is_empty() && !paths.is_empty());
        assert_eq!(plain.translate("tools[2].function.parameters"), "tools[2].function.parameters");
    }

    #[test]
    fn an_errors_text_has_the_clients_paths_too() {
        let error = |param: &str, message: &str| {
            responses_paths().error(ApiError::field(ErrorCode::InvalidValue, param, message))
        };
        let translated = error("messages", "It doesn't fit. Shorten 'messages', or lower 'max_tokens'.");
        assert_eq!(translated.param.as_deref(), Some("input"));
        assert_eq!(translated.message, "It doesn't fit. Shorten 'input', or lower 'max_output_tokens'.");
        let translated = error(
            "response_format.json_schema.schema.a b",
            "'response_format.json_schema.schema.a b': the keyword 'a b' can't be enforced.",
        );
        assert_eq!(translated.message, "'text.format.schema.a b': the keyword 'a b' can't be enforced.");
        let translated =
            error("tools[0].function.parameters.not", "'tools[0].function.parameters.not' is too much.");
        assert_eq!(translated.param.as_deref(), Some("tools[1].parameters.not"));
        assert_eq!(translated.message, "'tools[1].parameters.not' is too much.", "translated once");
        let nothing = ApiError::new(ErrorCode::Timeout, "It's late.");
        assert_eq!(responses_paths().error(nothing.clone()), nothing);
    }

    #[test]
    fn what_is_relaxed_is_named_by_the_clients_paths() {
        let mut relaxed = Relaxed::default();
        relaxed.push("tools[0].function.parameters.not");
        relaxed.push("chat_template_kwargs.enable_thinking");
        let translated = responses_paths().relaxed(&relaxed);
        assert_eq!(translated.paths(), ["tools[1].parameters.not", "chat_template_kwargs.enable_thinking"]);
    }

    #[test]
    fn paths_survive_the_record_of_their_request() {
        let paths = responses_paths();
        let json = serde_json::to_string(&paths).unwrap();
        assert_eq!(serde_json::from_str::<Paths>(&json).unwrap(), paths);
        assert_eq!(serde_json::to_string(&Paths::default()).unwrap(), "{}");
    }
}
