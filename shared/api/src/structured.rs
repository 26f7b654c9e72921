//! vLLM's ways to say what an answer has to obey: `structured_outputs`, and the older `guided_…`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::Constraint;
use emberline_protocol::relaxed::Relaxed;

use crate::neutral::OnlyAbsent;
use crate::paths::Paths;

/// Most texts to choose from.
const MAX_CHOICES: usize = 1024;

/// What an answer has to obey. At most one of all of these.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct Structured {
    /// Extension. What the answer has to obey.
    structured_outputs: Option<StructuredOutputs>,
    /// Extension. The older name of `structured_outputs.json`.
    guided_json: Option<SchemaText>,
    /// Extension. The older name of `structured_outputs.regex`.
    #[schemars(length(min = 1))]
    guided_regex: Option<String>,
    /// Extension. The older name of `structured_outputs.choice`.
    #[schemars(length(min = 1, max = MAX_CHOICES), inner(length(min = 1)))]
    guided_choice: Option<Vec<String>>,
    /// Extension. The older name of `structured_outputs.grammar`.
    #[schemars(length(min = 1))]
    guided_grammar: Option<String>,
    /// Extension. The older name of `structured_outputs.json_object`.
    guided_json_object: Option<bool>,
    /// Not honoured: there is one engine that enforces.
    guided_decoding_backend: Option<String>,
    /// Not honoured: white space is as it always is.
    guided_whitespace_pattern: Option<String>,
}

/// What an answer has to obey: at most one of `json`, `regex`, `choice`, `grammar` and `json_object`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct StructuredOutputs {
    /// JSON that this schema allows; it is not strict.
    json: Option<SchemaText>,
    /// A regular expression matches all of it.
    #[schemars(length(min = 1))]
    regex: Option<String>,
    /// It is one of these texts.
    #[schemars(length(min = 1, max = MAX_CHOICES), inner(length(min = 1)))]
    choice: Option<Vec<String>>,
    /// A context-free grammar in llguidance's variant of Lark allows it.
    #[schemars(length(min = 1))]
    grammar: Option<String>,
    /// It is a JSON object.
    json_object: Option<bool>,
    /// Formats within a text are not supported.
    #[schemars(extend("x-hint" = "Send 'tools', or 'grammar'."))]
    #[allow(dead_code)]
    structural_tag: Option<OnlyAbsent>,
    /// True is not honoured: white space is as it always is.
    disable_any_whitespace: Option<bool>,
    /// Asks for nothing: an object that names its properties gets no others.
    #[allow(dead_code)]
    disable_additional_properties: Option<bool>,
    /// Asks for nothing: there is one engine that enforces.
    #[allow(dead_code)]
    disable_fallback: Option<bool>,
    /// Not honoured: white space is as it always is.
    whitespace_pattern: Option<String>,
}

/// A JSON schema, or the same as text.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum SchemaText {
    Schema(Map<String, Value>),
    Text(#[schemars(length(min = 1))] String),
}

impl Structured {
    /// The constraint; `other` is what the body's own parameter, called `other_name`, asks for.
    pub(crate) fn constraint(
        self,
        other: Option<Constraint>,
        other_name: &str,
        relaxed: &mut Relaxed,
        paths: &mut Paths,
    ) -> Result<Option<Constraint>, ApiError> {
        let Self { structured_outputs, guided_decoding_backend, guided_whitespace_pattern, .. } = &self;
        let outputs = structured_outputs.as_ref();
        let is_tight = outputs.and_then(|outputs| outputs.disable_any_whitespace).unwrap_or(false);
        for (path, is_given) in [
            ("guided_decoding_backend", guided_decoding_backend.is_some()),
            ("guided_whitespace_pattern", guided_whitespace_pattern.is_some()),
            ("structured_outputs.disable_any_whitespace", is_tight),
            (
                "structured_outputs.whitespace_pattern",
                outputs.is_some_and(|outputs| outputs.whitespace_pattern.is_some()),
            ),
        ] {
            if is_given {
                relaxed.push(path);
            }
        }
        let mut wanted = self.wanted().into_iter();
        let Some((path, asked)) = wanted.next() else { return Ok(other) };
        // Some clients send the same by its old and its new name.
        let second = wanted.find(|(_, other)| *other != asked).map(|(path, _)| path);
        let second = second.or(other.map(|_| other_name));
        if let Some(second) = second {
            let message =
                format!("'{path}' and '{second}' both say what the answer has to obey. Send one of them.");
            return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
        }
        let (constraint, called) = asked.into_constraint(path)?;
        // The one that is known last counts.
        paths.rename("response_format", path);
        paths.rename(called, path);
        Ok(Some(constraint))
    }

    /// Everything that is asked for, with its path.
    fn wanted(self) -> Vec<(&'static str, Asked)> {
        let outputs = self.structured_outputs.unwrap_or_default();
        let object = |wanted: Option<bool>| wanted.filter(|wanted| *wanted).map(|_| Asked::Object);
        let all = [
            ("structured_outputs.json", outputs.json.map(Asked::Json)),
            ("structured_outputs.regex", outputs.regex.map(Asked::Regex)),
            ("structured_outputs.choice", outputs.choice.map(Asked::Choice)),
            ("structured_outputs.grammar", outputs.grammar.map(Asked::Grammar)),
            ("structured_outputs.json_object", object(outputs.json_object)),
            ("guided_json", self.guided_json.map(Asked::Json)),
            ("guided_regex", self.guided_regex.map(Asked::Regex)),
            ("guided_choice", self.guided_choice.map(Asked::Choice)),
            ("guided_grammar", self.guided_grammar.map(Asked::Grammar)),
            ("guided_json_object", object(self.guided_json_object)),
        ];
        all.into_iter().filter_map(|(path, asked)| Some((path, asked?))).collect()
    }
}

#[derive(PartialEq)]
enum Asked {
    Json(SchemaText),
    Regex(String),
    Choice(Vec<String>),
    Grammar(String),
    Object,
}

impl Asked {
    /// The constraint of the field at `path`, and what workers call that field.
    fn into_constraint(self, path: &str) -> Result<(Constraint, &'static str), ApiError> {
        let schema = |schema| Constraint::JsonSchema { schema: Value::Object(schema), strict: false };
        Ok(match self {
            Self::Json(SchemaText::Schema(object)) => (schema(object), "response_format.json_schema.schema"),
            Self::Json(SchemaText::Text(text)) => {
                let refused = |why: &str| {
                    let message = format!("'{path}' is not a JSON schema as text: {why} Send an object.");
                    ApiError::field(ErrorCode::InvalidValue, path, message)
                };
                match crate::schema::parse_json(text.as_bytes()).map_err(|error| refused(&error.message))? {
                    Value::Object(object) => (schema(object), "response_format.json_schema.schema"),
                    _ => return Err(refused("It is no object.")),
                }
            }
            Self::Regex(regex) => (Constraint::Regex(regex), "response_format.regex"),
            Self::Choice(texts) => (Constraint::Grammar(one_of(&texts)), "response_format.grammar"),
            Self::Grammar(grammar) if is_ebnf(&grammar) => {
                let message = format!(
                    "'{path}' is in EBNF ('::='). Send llguidance's variant of Lark, such as 'start: \"yes\" | \"no\"'."
                );
                return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
            }
            Self::Grammar(grammar) => (Constraint::Grammar(grammar), "response_format.grammar"),
            Self::Object => (Constraint::JsonObject, "response_format"),
        })
    }
}

/// Whether a rule is written as xgrammar and llama.cpp have it.
fn is_ebnf(grammar: &str) -> bool {
    let is_name = |name: &str| name.trim().chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    grammar.lines().any(|line| line.split_once("::=").is_some_and(|(name, _)| is_name(name)))
}

/// A grammar of these texts. Lark's strings are JSON's.
fn one_of(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| Value::from(text.as_str()).to_string()).collect();
    format!("start: {}", texts.join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(
        body: Value,
        other: Option<Constraint>,
    ) -> Result<(Option<Constraint>, Relaxed, Paths), ApiError> {
        let structured: Structured = serde_json::from_value(body).unwrap();
        let (mut relaxed, mut paths) = (Relaxed::default(), Paths::default());
        let constraint = structured.constraint(other, "response_format", &mut relaxed, &mut paths)?;
        Ok((constraint, relaxed, paths))
    }

    #[test]
    fn each_way_becomes_the_constraint_that_it_means() {
        let schema = json!({"type": "object"});
        let json = Constraint::JsonSchema { schema: schema.clone(), strict: false };
        let choice = Constraint::Grammar(r#"start: "yes" | "no\n\"é\"""#.into());
        for (value, older, constraint) in [
            (json!({"json": schema}), json!({"guided_json": schema}), json.clone()),
            (json!({"json": schema.to_string()}), json!({"guided_json": schema.to_string()}), json),
            (json!({"regex": "a+"}), json!({"guided_regex": "a+"}), Constraint::Regex("a+".into())),
            (json!({"choice": ["yes", "no\n\"é\""]}), json!({"guided_choice": ["yes", "no\n\"é\""]}), choice),
            (
                json!({"grammar": "start: \"a\""}),
                json!({"guided_grammar": "start: \"a\""}),
                Constraint::Grammar("start: \"a\"".into()),
            ),
            (json!({"json_object": true}), json!({"guided_json_object": true}), Constraint::JsonObject),
        ] {
            for body in [json!({"structured_outputs": value}), older] {
                assert_eq!(read(body.clone(), None).unwrap().0, Some(constraint.clone()), "{body}");
            }
        }
    }

    #[test]
    fn what_asks_for_nothing_changes_nothing() {
        for body in [
            json!({}),
            json!({"structured_outputs": {}}),
            json!({"structured_outputs": {"json_object": false, "disable_any_whitespace": false,
                                          "disable_additional_properties": true, "disable_fallback": false}}),
            json!({"guided_json_object": false}),
        ] {
            let (constraint, relaxed, paths) = read(body, Some(Constraint::JsonObject)).unwrap();
            assert_eq!(
                (constraint, relaxed.is_empty(), paths.is_empty()),
                (Some(Constraint::JsonObject), true, true)
            );
        }
    }

    #[test]
    fn two_that_say_it_are_refused_by_name() {
        for (body, other, param) in [
            (json!({"structured_outputs": {"json": {}, "regex": "a"}}), None, "structured_outputs.json"),
            (
                json!({"structured_outputs": {"regex": "a"}, "guided_json": {}}),
                None,
                "structured_outputs.regex",
            ),
            (json!({"guided_choice": ["a"]}), Some(Constraint::JsonObject), "guided_choice"),
            (json!({"guided_json": "{"}), None, "guided_json"),
            (
                json!({"structured_outputs": {"grammar": "root ::= \"a\""}}),
                None,
                "structured_outputs.grammar",
            ),
        ] {
            let error = read(body.clone(), other).unwrap_err();
            assert_eq!(
                (error.code, error.param.as_deref()),
                (ErrorCode::InvalidValue, Some(param)),
                "{body}"
            );
        }
    }

    #[test]
    fn the_same_by_its_old_and_its_new_name_is_said_once() {
        // As guidance sends it.
        let body =
            json!({"structured_outputs": {"grammar": "start: \"a\""}, "guided_grammar": "start: \"a\""});
        let (constraint, _, _) = read(body, None).unwrap();
        assert_eq!(constraint, Some(Constraint::Grammar("start: \"a\"".to_owned())));
    }

    #[test]
    fn what_only_tunes_is_left_out_and_named() {
        let (_, relaxed, _) = read(
            json!({"guided_decoding_backend": "xgrammar", "guided_whitespace_pattern": " ", "structured_outputs":
                   {"regex": "a", "disable_any_whitespace": true, "whitespace_pattern": " "}}),
            None,
        )
        .unwrap();
        assert_eq!(
            relaxed.paths(),
            [
                "guided_decoding_backend",
                "guided_whitespace_pattern",
                "structured_outputs.disable_any_whitespace",
                "structured_outputs.whitespace_pattern",
            ]
        );
    }

    #[test]
    fn errors_of_workers_name_the_field_that_was_sent() {
        for (body, worker, client) in [
            (
                json!({"structured_outputs": {"json": {}}}),
                "response_format.json_schema.schema.properties.a",
                "structured_outputs.json.properties.a",
            ),
            (json!({"guided_regex": "("}), "response_format.regex", "guided_regex"),
            (json!({"guided_choice": ["a"]}), "response_format.grammar", "guided_choice"),
            (json!({"guided_json_object": true}), "response_format", "guided_json_object"),
        ] {
            let (_, _, paths) = read(body, None).unwrap();
            assert_eq!(paths.translate(worker), client);
        }
    }
}
