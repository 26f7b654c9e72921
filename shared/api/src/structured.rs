//! vLLM's parameters that constrain the generated text: `structured_outputs`, and the older `guided_…`.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};
use emberline_protocol::job::Constraint;
use emberline_protocol::relaxed::Relaxed;

use crate::neutral::OnlyAbsent;
use crate::paths::Paths;

/// Largest number of alternatives in `choice`.
const MAX_CHOICES: usize = 1024;

/// Constraints on the generated text. A request may contain at most one.
#[derive(Debug, Default, Deserialize, JsonSchema)]
pub(crate) struct Structured {
    /// Extension to OpenAI's API. A constraint on the generated text. Default: any text.
    structured_outputs: Option<StructuredOutputs>,
    /// Extension to OpenAI's API. Older name of `structured_outputs.json`.
    guided_json: Option<SchemaText>,
    /// Extension to OpenAI's API. Older name of `structured_outputs.regex`.
    #[schemars(length(min = 1))]
    guided_regex: Option<String>,
    /// Extension to OpenAI's API. Older name of `structured_outputs.choice`.
    #[schemars(length(min = 1, max = MAX_CHOICES), inner(length(min = 1)))]
    guided_choice: Option<Vec<String>>,
    /// Extension to OpenAI's API. Older name of `structured_outputs.grammar`.
    #[schemars(length(min = 1))]
    guided_grammar: Option<String>,
    /// Extension to OpenAI's API. Older name of `structured_outputs.json_object`.
    guided_json_object: Option<bool>,
    /// Accepted but not honoured (listed in the header `x-emberline-relaxed`), because there is only one
    /// backend.
    guided_decoding_backend: Option<String>,
    /// Accepted but not honoured (listed in the header `x-emberline-relaxed`), because the whitespace between
    /// the parts of JSON can't be configured.
    guided_whitespace_pattern: Option<String>,
}

/// A constraint on the generated text: at most one of `json`, `regex`, `choice`, `grammar` and `json_object`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct StructuredOutputs {
    /// The text is JSON that conforms to this schema. Keywords that can't be enforced are left out and listed
    /// in the header `x-emberline-relaxed`.
    json: Option<SchemaText>,
    /// This regular expression matches the whole text.
    #[schemars(length(min = 1))]
    regex: Option<String>,
    /// The text is one of these strings.
    #[schemars(length(min = 1, max = MAX_CHOICES), inner(length(min = 1)))]
    choice: Option<Vec<String>>,
    /// The text conforms to this context-free grammar, written in llguidance's variant of Lark.
    #[schemars(length(min = 1))]
    grammar: Option<String>,
    /// If `true`, the text is a JSON object. Default: false.
    json_object: Option<bool>,
    /// Only null is accepted, because constraints on parts of a text are not supported.
    #[schemars(extend("x-hint" = "Send 'tools', or 'grammar'."))]
    #[allow(dead_code)]
    structural_tag: Option<OnlyAbsent>,
    /// `true` is accepted but not honoured (listed in the header `x-emberline-relaxed`), because the
    /// whitespace between the parts of JSON can't be configured. Default: false.
    disable_any_whitespace: Option<bool>,
    /// Accepted for compatibility; has no effect, because objects whose schema lists properties contain no
    /// others unless the schema allows them.
    #[allow(dead_code)]
    disable_additional_properties: Option<bool>,
    /// Accepted for compatibility; has no effect, because there is only one backend.
    #[allow(dead_code)]
    disable_fallback: Option<bool>,
    /// Accepted but not honoured (listed in the header `x-emberline-relaxed`), because the whitespace between
    /// the parts of JSON can't be configured.
    whitespace_pattern: Option<String>,
}

/// A JSON schema, as an object or as its JSON text.
#[derive(Debug, Clone, PartialEq, Deserialize, JsonSchema)]
#[serde(untagged)]
#[schemars(inline)]
enum SchemaText {
    Schema(Map<String, Value>),
    Text(#[schemars(length(min = 1))] String),
}

impl Structured {
    /// The constraint of the request. `other` is the constraint that the endpoint's own parameter
    /// `other_name` specifies. Fails if there are two different constraints.
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
        let mut constraints = self.constraints().into_iter();
        let Some((path, given)) = constraints.next() else { return Ok(other) };
        // Some clients send the same constraint by its old and its new name.
        let second = constraints.find(|(_, other)| *other != given).map(|(path, _)| path);
        let second = second.or(other.map(|_| other_name));
        if let Some(second) = second {
            let message = format!("'{path}' and '{second}' both constrain the answer. Send one of them.");
            return Err(ApiError::field(ErrorCode::InvalidValue, path, message));
        }
        let (constraint, worker_path) = given.into_constraint(path)?;
        // A later path replaces an earlier one.
        paths.rename("response_format", path);
        paths.rename(worker_path, path);
        Ok(Some(constraint))
    }

    /// All constraints in the body, with their paths.
    fn constraints(self) -> Vec<(&'static str, BodyConstraint)> {
        let outputs = self.structured_outputs.unwrap_or_default();
        let object = |is_on: Option<bool>| is_on.filter(|is_on| *is_on).map(|_| BodyConstraint::Object);
        let all = [
            ("structured_outputs.json", outputs.json.map(BodyConstraint::Json)),
            ("structured_outputs.regex", outputs.regex.map(BodyConstraint::Regex)),
            ("structured_outputs.choice", outputs.choice.map(BodyConstraint::Choice)),
            ("structured_outputs.grammar", outputs.grammar.map(BodyConstraint::Grammar)),
            ("structured_outputs.json_object", object(outputs.json_object)),
            ("guided_json", self.guided_json.map(BodyConstraint::Json)),
            ("guided_regex", self.guided_regex.map(BodyConstraint::Regex)),
            ("guided_choice", self.guided_choice.map(BodyConstraint::Choice)),
            ("guided_grammar", self.guided_grammar.map(BodyConstraint::Grammar)),
            ("guided_json_object", object(self.guided_json_object)),
        ];
        all.into_iter().filter_map(|(path, given)| Some((path, given?))).collect()
    }
}

#[derive(PartialEq)]
enum BodyConstraint {
    Json(SchemaText),
    Regex(String),
    Choice(Vec<String>),
    Grammar(String),
    Object,
}

impl BodyConstraint {
    /// The job's constraint for the field at `path`, and the path by which workers refer to that field.
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

/// Whether the grammar contains a rule in the EBNF syntax of xgrammar and llama.cpp.
fn is_ebnf(grammar: &str) -> bool {
    let is_name = |name: &str| name.trim().chars().all(|c| c.is_ascii_alphanumeric() || "_-".contains(c));
    grammar.lines().any(|line| line.split_once("::=").is_some_and(|(name, _)| is_name(name)))
}

/// A Lark grammar that generates exactly these texts. Strings in Lark have the syntax of JSON strings.
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
        // The client library guidance sends this.
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
