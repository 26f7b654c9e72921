//! Which JSON schemas can be enforced, and how they are put to llguidance.
//!
//! llguidance refuses most of what it can't enforce, but takes words that it does not know for
//! annotations. Here every keyword is known: it is enforced, it is an annotation that constrains
//! nothing, or the schema is refused with the keyword's name. Subschemas are then narrowed where an
//! answer could be of no use, which keeps every answer valid:
//!
//! - Numbers stay within ±(2^53 - 1), so that every reader of JSON takes them for the same number,
//!   and no digits run on for ever.
//! - Objects whose `properties` are named, and that say nothing of others, get no others.
//! - Dates and times are those that every reader takes.
//!
//! Schemas that put several conditions on the same value (`allOf`, `$ref` beside other keywords) are
//! left open as they are: one condition may rely on what another would forbid.

use emberline_shared::error::{ApiError, ErrorCode};
use serde_json::{Map, Value, json};

use super::dates;
use super::disjoint::are_disjoint;

/// What white space may stand between two tokens of JSON: one space, or a line end and indentation.
/// Its length is bounded and it is never repeated, so that a model can't lose itself in it.
const WHITE_SPACE: &str = " |\\n {0,16}";
/// Escapes in strings. Characters stand for themselves and not as `\u0061`, which keeps names of
/// properties from being written in another way.
const ESCAPES: &str = "nrbtf\\\"";
/// Numbers beyond it are not exact in every reader (RFC 7493, section 2.2).
const LARGEST: i64 = (1 << 53) - 1;

/// An object's properties at most: the time to compile them grows with their number's square.
const MOST_PROPERTIES: usize = 1000;
/// Patterns of properties at most: each is compared with each other.
const MOST_PATTERNS: usize = 20;

/// Where the schema of any value is among the definitions.
const ANY: &str = "any JSON value";

/// Keywords by what is in them.
const SUBSCHEMA: [&str; 3] = ["items", "additionalItems", "additionalProperties"];
const SUBSCHEMAS: [&str; 4] = ["anyOf", "oneOf", "allOf", "prefixItems"];
const NAMED_SUBSCHEMAS: [&str; 4] = ["properties", "patternProperties", "$defs", "definitions"];
const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];
const ENFORCED: [&str; 13] = [
    "type",
    "const",
    "enum",
    "required",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "multipleOf",
];
const ANNOTATIONS: [&str; 15] = [
    "title",
    "description",
    "default",
    "examples",
    "example",
    "deprecated",
    "readOnly",
    "writeOnly",
    "$comment",
    "$schema",
    "$anchor",
    "contentMediaType",
    "contentEncoding",
    "discriminator",
    "externalDocs",
];

/// A schema that can be enforced.
#[derive(Debug, Clone)]
pub(super) struct Schema(Value);

impl Schema {
    /// Checks the schema at `path` of the request, and with `strict` also that it keeps to the rules
    /// of OpenAI's strict mode.
    pub(super) fn new(mut schema: Value, strict: bool, path: &str) -> Result<Self, ApiError> {
        let mut combines = false;
        check(&schema, strict, true, path, &mut combines)?;
        let root = schema.clone();
        adapt(&mut schema, &root, combines);
        let Value::Object(mut schema) = schema else {
            return Err(invalid(path, "allows nothing", "Describe what is allowed."));
        };
        let definitions = schema.entry("$defs").or_insert_with(|| json!({}));
        if let Value::Object(definitions) = definitions {
            definitions.insert(ANY.to_owned(), any_value());
        }
        let options = json!({ "whitespace_pattern": WHITE_SPACE, "json_allowed_escapes": ESCAPES });
        schema.insert("x-guidance".to_owned(), options);
        Ok(Self(Value::Object(schema)))
    }

    /// As an expression of llguidance's grammars.
    pub(super) fn to_lark(&self) -> String {
        format!("%json {}", self.0)
    }
}

/// An object schema of a function's arguments; one without properties allows none.
pub(super) fn of_arguments(parameters: &Map<String, Value>, path: &str) -> Result<Value, ApiError> {
    let mut schema = parameters.clone();
    match schema.get("type") {
        None => drop(schema.insert("type".to_owned(), "object".into())),
        Some(kind) if kind == "object" => {}
        Some(kind) => {
            let what = format!("has the type {kind}, but arguments are an object");
            return Err(invalid(&format!("{path}.type"), &what, "Make it \"object\"."));
        }
    }
    let open = ["properties", "additionalProperties", "patternProperties", "$ref", "allOf", "anyOf", "oneOf"];
    if !open.iter().any(|keyword| schema.contains_key(*keyword)) {
        schema.insert("additionalProperties".to_owned(), false.into());
    }
    Ok(Value::Object(schema))
}

/// Checks a schema and those in it; `combines` becomes true if one puts several conditions on the
/// same value.
fn check(
    schema: &Value,
    strict: bool,
    is_root: bool,
    path: &str,
    combines: &mut bool,
) -> Result<(), ApiError> {
    let schema = match schema {
        Value::Bool(_) => return Ok(()),
        Value::Object(schema) => schema,
        _ => return Err(invalid(path, "is no JSON schema", "Give an object or a boolean.")),
    };
    for (keyword, value) in schema {
        let path = format!("{path}.{keyword}");
        match keyword.as_str() {
            "items" if value.is_array() => check_each(value, strict, &path, combines)?,
            word if SUBSCHEMA.contains(&word) => check(value, strict, false, &path, combines)?,
            word if SUBSCHEMAS.contains(&word) => check_each(value, strict, &path, combines)?,
            word if NAMED_SUBSCHEMAS.contains(&word) => {
                let Value::Object(members) = value else {
                    return Err(invalid(&path, "is not an object", "Give an object of schemas."));
                };
                for (name, member) in members {
                    check(member, strict, false, &format!("{path}.{name}"), combines)?;
                }
            }
            word if BOUNDS.contains(&word) || word == "multipleOf" => check_number(value, &path)?,
            "const" | "enum" => check_constant(value, &path)?,
            "$ref" => check_reference(value, &path)?,
            // Asks for nothing.
            "uniqueItems" if value == false => {}
            "$id" | "id" if is_root => {}
            word if ENFORCED.contains(&word) => {}
            word if ANNOTATIONS.contains(&word) => {}
            word if word.starts_with("x-") && word != "x-guidance" => {}
            word => return Err(unsupported(word, &path)),
        }
    }
    check_size(schema, path)?;
    check_least_properties(schema, path)?;
    *combines |= combines_conditions(schema);
    if strict { check_strict(schema, path) } else { Ok(()) }
}

fn check_each(value: &Value, strict: bool, path: &str, combines: &mut bool) -> Result<(), ApiError> {
    let Value::Array(members) = value else {
        return Err(invalid(path, "is not an array", "Give an array of schemas."));
    };
    for (index, member) in members.iter().enumerate() {
        check(member, strict, false, &format!("{path}[{index}]"), combines)?;
    }
    Ok(())
}

/// Takes only numbers that are exact.
fn check_number(value: &Value, path: &str) -> Result<(), ApiError> {
    let exact = value.as_f64().is_none_or(|number| number.abs() <= LARGEST as f64);
    if exact {
        return Ok(());
    }
    let what = format!("is {value}, but numbers beyond ±{LARGEST} are not exact in JSON");
    Err(invalid(path, &what, "Choose a smaller one, or a string."))
}

fn check_constant(value: &Value, path: &str) -> Result<(), ApiError> {
    match value {
        Value::Number(_) => check_number(value, path),
        Value::String(text) if text.chars().any(is_unwritable) => {
            let what = "has a control character, which answers can't have";
            Err(invalid(path, what, "Leave it out."))
        }
        Value::Array(members) => {
            let mut members = members.iter().enumerate();
            members.try_for_each(|(index, member)| check_constant(member, &format!("{path}[{index}]")))
        }
        Value::Object(members) => {
            members.iter().try_for_each(|(name, member)| check_constant(member, &format!("{path}.{name}")))
        }
        _ => Ok(()),
    }
}

/// Whether it would take an escape that is not among [`ESCAPES`].
fn is_unwritable(character: char) -> bool {
    character.is_ascii_control() && !"\u{8}\u{c}\n\r\t".contains(character)
}

fn check_reference(value: &Value, path: &str) -> Result<(), ApiError> {
    match value.as_str() {
        Some(reference) if reference == "#" || reference.starts_with("#/") => Ok(()),
        _ => {
            let what = format!("is {value}, but references outside the schema are not followed");
            Err(invalid(path, &what, "Put the definition under '$defs' and refer to it as \"#/$defs/name\"."))
        }
    }
}

fn check_size(schema: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    for (keyword, most) in
        [("properties", MOST_PROPERTIES), ("required", MOST_PROPERTIES), ("patternProperties", MOST_PATTERNS)]
    {
        let count = match schema.get(keyword) {
            Some(Value::Array(names)) => names.len(),
            Some(Value::Object(members)) => members.len(),
            _ => 0,
        };
        if count > most {
            let what = format!("has {count} entries, of {most} that are allowed");
            return Err(invalid(&format!("{path}.{keyword}"), &what, "Use fewer."));
        }
    }
    Ok(())
}

/// Of properties that the schema does not name, the same could come twice and count once.
fn check_least_properties(schema: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    let required = schema.get("required").and_then(Value::as_array).map_or(0, |names| names.len() as u64);
    match schema.get("minProperties").and_then(Value::as_u64) {
        Some(least) if least > required + 1 => {
            let path = format!("{path}.minProperties");
            let what =
                format!("is {least}, which can be enforced only up to one more than there are required");
            Err(invalid(&path, &what, "Name the properties under 'required'."))
        }
        _ => Ok(()),
    }
}

/// Whether conditions on a value are spread over several schemas.
fn combines_conditions(schema: &Map<String, Value>) -> bool {
    let has = |keyword: &str| schema.contains_key(keyword);
    let conditions = schema.keys().map(String::as_str).filter(|word| !is_annotation(word));
    let others = conditions.filter(|word| !matches!(*word, "anyOf" | "oneOf" | "type")).count();
    let alternatives = usize::from(has("anyOf")) + usize::from(has("oneOf"));
    has("allOf")
        || (has("$ref") && others + alternatives > 1)
        || (alternatives > 0 && others + alternatives > 1)
        || (has("properties") && (has("const") || has("enum")))
}

/// OpenAI's strict mode: every property is required and there are no others.
fn check_strict(schema: &Map<String, Value>, path: &str) -> Result<(), ApiError> {
    if !has_type(schema, "object") && !schema.contains_key("properties") {
        return Ok(());
    }
    if schema.get("additionalProperties") != Some(&Value::Bool(false)) {
        let remedy = "Set it to false, or 'strict' to false.";
        return Err(invalid(
            &format!("{path}.additionalProperties"),
            "must be false in each object of a strict schema",
            remedy,
        ));
    }
    let required = schema.get("required").and_then(Value::as_array);
    let properties = schema.get("properties").and_then(Value::as_object);
    let is_optional = |name: &&String| required.is_none_or(|names| !names.iter().any(|other| other == *name));
    match properties.and_then(|properties| properties.keys().find(is_optional)) {
        None => Ok(()),
        Some(name) => {
            let what = format!("must name every property of a strict schema, but lacks '{name}'");
            let remedy = "Add it; a property that may be left out has \"null\" among its types.";
            Err(invalid(&format!("{path}.required"), &what, remedy))
        }
    }
}

/// Narrows a schema and those in it as the module says, and leaves out what llguidance would read
/// otherwise: the drafts that it knows differ in what they ignore.
fn adapt(schema: &mut Value, root: &Value, combines: bool) {
    if !combines && allows_anything(schema) {
        *schema = reference_to_any();
        return;
    }
    let Value::Object(schema) = schema else { return };
    schema.remove("$schema");
    schema.remove("uniqueItems");
    if !combines {
        close(schema);
        name_any(schema);
    }
    bound_numbers(schema);
    dates::narrow(schema);
    for keyword in SUBSCHEMA {
        match schema.get_mut(keyword) {
            Some(Value::Array(members)) => {
                members.iter_mut().for_each(|member| adapt(member, root, combines));
            }
            Some(member) => adapt(member, root, combines),
            None => {}
        }
    }
    for keyword in SUBSCHEMAS {
        let members = schema.get_mut(keyword).and_then(Value::as_array_mut);
        members.into_iter().flatten().for_each(|member| adapt(member, root, combines));
    }
    for keyword in NAMED_SUBSCHEMAS {
        let members = schema.get_mut(keyword).and_then(Value::as_object_mut);
        members.into_iter().flatten().for_each(|(_, member)| adapt(member, root, combines));
    }
    // llguidance knows of fewer alternatives that they exclude each other.
    if let Some(Value::Array(options)) = schema.get("oneOf")
        && !schema.contains_key("anyOf")
        && are_disjoint(options, root)
        && let Some(options) = schema.remove("oneOf")
    {
        schema.insert("anyOf".to_owned(), options);
    }
}

/// Any value: what llguidance takes for any number, not every reader does.
fn any_value() -> Value {
    let value = reference_to_any();
    json!({ "anyOf": [
        { "type": ["null", "boolean", "string"] },
        { "type": "number", "minimum": -LARGEST, "maximum": LARGEST },
        { "type": "array", "items": value },
        { "type": "object", "additionalProperties": value },
    ] })
}

fn reference_to_any() -> Value {
    json!({ "$ref": format!("#/$defs/{ANY}") })
}

/// Refers to [`any_value`] where a schema leaves open what members are.
fn name_any(schema: &mut Map<String, Value>) {
    for (kind, members) in [("array", "items"), ("object", "additionalProperties")] {
        if has_type(schema, kind) && !schema.contains_key(members) {
            schema.insert(members.to_owned(), true.into());
        }
    }
}

/// Whether there is nothing in it that a value could break.
fn allows_anything(schema: &Value) -> bool {
    match schema {
        Value::Bool(anything) => *anything,
        Value::Object(schema) => schema.keys().all(|word| is_annotation(word)),
        _ => false,
    }
}

fn is_annotation(word: &str) -> bool {
    ANNOTATIONS.contains(&word)
        || matches!(word, "$id" | "id" | "$defs" | "definitions")
        || word.starts_with("x-")
}

fn has_type(schema: &Map<String, Value>, name: &str) -> bool {
    match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == name),
        Some(kind) => kind == name,
        None => false,
    }
}

fn bound_numbers(schema: &mut Map<String, Value>) {
    if !has_type(schema, "number") && !has_type(schema, "integer") {
        return;
    }
    for (bound, exclusive, number) in
        [("minimum", "exclusiveMinimum", -LARGEST), ("maximum", "exclusiveMaximum", LARGEST)]
    {
        if !schema.contains_key(bound) && !schema.contains_key(exclusive) {
            schema.insert(bound.to_owned(), number.into());
        }
    }
}

fn close(schema: &mut Map<String, Value>) {
    let says = ["additionalProperties", "patternProperties", "minProperties"];
    if schema.contains_key("properties") && !says.iter().any(|keyword| schema.contains_key(*keyword)) {
        let declared = schema.get("properties").and_then(Value::as_object);
        let required = schema.get("required").and_then(Value::as_array);
        let is_declared = |name: &Value| {
            name.as_str().is_none_or(|name| declared.is_some_and(|members| members.contains_key(name)))
        };
        // One that is required but not described may be anything.
        if required.is_none_or(|names| names.iter().all(is_declared)) {
            schema.insert("additionalProperties".to_owned(), false.into());
        }
    }
}

fn unsupported(keyword: &str, path: &str) -> ApiError {
    let remedy = match keyword {
        "nullable" => "Add \"null\" to the types instead.",
        "uniqueItems" | "contains" | "minContains" | "maxContains" => {
            "Leave it out and check the items yourself."
        }
        _ => "Leave it out.",
    };
    let message = format!("'{path}': the keyword '{keyword}' can't be enforced. {remedy}");
    ApiError::field(ErrorCode::UnsupportedParameter, path, message)
}

fn invalid(path: &str, what: &str, remedy: &str) -> ApiError {
    ApiError::field(ErrorCode::InvalidValue, path, format!("'{path}' {what}. {remedy}"))
}

#[cfg(test)]
#[path = "schema_tests.rs"]
mod tests;
