//! Validates a body against its schema, for the subset of JSON Schema that schemars generates.
//!
//! This is not a general validator. It returns this API's own errors and treats `null` as absent. It selects
//! one of several alternatives before it validates the contents, so that an error refers to the alternative
//! that the client meant. If alternatives are distinguished by a tag and one of them does not require the
//! tag, an object without the tag is that alternative; the validator adds the tag.
//!
//! [`tests::assert_enforceable`] fails for schemas with keywords that are not enforced here.

mod bounds;

use std::fmt;

use serde_json::{Map, Value};

use emberline_protocol::error::{ApiError, ErrorCode};

use self::bounds::{check_length, check_range, is_integer_beyond, matches, out_of_range};
use super::json::kind;

type Object = Map<String, Value>;

/// Largest number of characters of the client's text that an error repeats.
const MAX_ECHO: usize = 64;

/// Validates `body`, and removes null fields from objects that refuse unknown fields.
pub(super) fn check(schema: &Value, body: &mut Value) -> Result<(), ApiError> {
    Validator { root: schema }.check(schema, body, Path::Root)
}

/// The path of a value in the body.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>, usize),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(&shortened(name)),
            Self::Field(parent, name) => write!(f, "{parent}.{}", shortened(name)),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

impl Path<'_> {
    fn error(self, code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError::field(code, self.to_string(), message)
    }

    fn invalid(self, wrong: &str, hint: &str) -> ApiError {
        self.error(ErrorCode::InvalidValue, format!("'{self}' {wrong}. {hint}").trim_end())
    }

    fn missing(self) -> ApiError {
        self.error(ErrorCode::MissingField, format!("'{self}' is required. Add it."))
    }

    fn wrong_type(self, wanted: &str, got: &Value) -> ApiError {
        let message = format!("'{self}' must be {wanted}, got {}.", kind(got));
        self.error(ErrorCode::InvalidType, message)
    }

    /// The error for an unsupported field, or an unsupported `value` of it; `instead` is what the client
    /// should do.
    fn unsupported(self, value: Option<&Value>, instead: Option<&str>) -> ApiError {
        let message = match value {
            Some(value) => {
                let instead = instead.unwrap_or("Choose another value.");
                format!("'{self}' does not support {}. {instead}", shown(value))
            }
            None => format!("'{self}' is not supported. {}", instead.unwrap_or("Leave it out.")),
        };
        self.error(ErrorCode::UnsupportedParameter, message)
    }
}

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(MAX_ECHO).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => format!("'{}'", shortened(text)),
        other => shortened(&other.to_string()),
    }
}

/// A schema with its references resolved and its unions flattened.
#[derive(Default)]
struct Shape<'s> {
    alternatives: Vec<&'s Object>,
    unsupported: Vec<&'s str>,
    unsupported_values: Vec<&'s Value>,
    /// Maps unsupported names and values to what the client should do instead.
    instead: Vec<&'s Object>,
    hint: Option<&'s str>,
}

impl<'s> Shape<'s> {
    fn instead(&self, name: &str) -> Option<&'s str> {
        self.instead.iter().find_map(|instead| instead.get(name)?.as_str())
    }

    fn instead_of(&self, value: &Value) -> Option<&'s str> {
        value.as_str().and_then(|name| self.instead(name))
    }
}

struct Validator<'s> {
    root: &'s Value,
}

impl<'s> Validator<'s> {
    fn shape(&self, schema: &'s Value) -> Shape<'s> {
        let mut shape = Shape::default();
        self.collect(schema, &mut shape);
        shape
    }

    fn collect(&self, schema: &'s Value, shape: &mut Shape<'s>) {
        let Value::Object(schema) = schema else { return };
        let listed = |name: &str| schema.get(name).and_then(Value::as_array).into_iter().flatten();
        shape.unsupported.extend(listed("x-unsupported").filter_map(Value::as_str));
        shape.unsupported_values.extend(listed("x-unsupported-values"));
        shape.instead.extend(schema.get("x-instead").and_then(Value::as_object));
        shape.hint = shape.hint.or_else(|| schema.get("x-hint").and_then(Value::as_str));
        let unions = listed("anyOf").chain(listed("oneOf"));
        let reference = schema.get("$ref").and_then(Value::as_str).and_then(|target| self.resolve(target));
        let mut parts = unions.chain(reference).peekable();
        if parts.peek().is_none() {
            shape.alternatives.push(schema);
        }
        parts.for_each(|part| self.collect(part, shape));
    }

    fn resolve(&self, reference: &str) -> Option<&'s Value> {
        self.root.pointer(reference.strip_prefix('#')?)
    }

    fn check(&self, schema: &'s Value, value: &mut Value, path: Path<'_>) -> Result<(), ApiError> {
        if *schema == Value::Bool(true) {
            return Ok(());
        }
        let shape = self.shape(schema);
        if shape.unsupported_values.contains(&&*value) {
            return Err(path.unsupported(Some(value), shape.instead_of(value)));
        }
        let chosen = self.choose(&shape, value, path)?;
        self.check_bounds(chosen, shape.hint.unwrap_or_default(), value, path)?;
        match value {
            Value::Array(items) => {
                let Some(schema) = chosen.get("items") else { return Ok(()) };
                let mut items = items.iter_mut().enumerate();
                items.try_for_each(|(i, item)| self.check(schema, item, Path::Item(&path, i)))
            }
            Value::Object(object) => self.check_object(chosen, &shape, object, path),
            _ => Ok(()),
        }
    }

    /// Selects the alternative that the client means by `value`.
    fn choose(&self, shape: &Shape<'s>, value: &Value, path: Path<'_>) -> Result<&'s Object, ApiError> {
        let of_type: Vec<&Object> =
            shape.alternatives.iter().copied().filter(|one| has_type(one, value)).collect();
        let first = *of_type.first().ok_or_else(|| {
            let beyond = shape.alternatives.iter().copied().find(|one| is_integer_beyond(one, value));
            beyond.map_or_else(
                || path.wrong_type(&types(&shape.alternatives), value),
                |one| out_of_range(one, shape.hint.unwrap_or_default(), value, path),
            )
        })?;
        match value {
            Value::Object(object) => match tag_of(&of_type) {
                Some(tag) => choose_by_tag(&of_type, tag, shape, object, path),
                None => Ok(first),
            },
            Value::Array(items) if of_type.len() > 1 => {
                let Some(item) = items.first() else { return Ok(first) };
                let shapes: Vec<Shape<'_>> =
                    of_type.iter().filter_map(|one| Some(self.shape(one.get("items")?))).collect();
                let fits = |shape: &Shape<'_>| shape.alternatives.iter().any(|one| has_type(one, item));
                let found = of_type.iter().zip(&shapes).find(|(_, shape)| fits(shape));
                found.map(|(one, _)| *one).ok_or_else(|| {
                    let all: Vec<&Object> = shapes.iter().flat_map(|s| s.alternatives.clone()).collect();
                    Path::Item(&path, 0).wrong_type(&types(&all), item)
                })
            }
            _ if of_type.len() > 1 => {
                let allows = |one: &&&Object| allowed(one).is_none_or(|values| is_one_of(value, &values));
                of_type.iter().find(allows).copied().ok_or_else(|| not_one_of(&of_type, shape, value, path))
            }
            _ => Ok(first),
        }
    }

    fn check_bounds(
        &self,
        schema: &Object,
        hint: &str,
        value: &Value,
        path: Path<'_>,
    ) -> Result<(), ApiError> {
        if let Some(values) = allowed(schema)
            && !is_one_of(value, &values)
        {
            if schema.get("x-unsupported-others") == Some(&Value::Bool(true)) {
                let instead = match any_of(&values) {
                    _ if !hint.is_empty() => hint.to_owned(),
                    none if none.is_empty() => "Leave it out.".to_owned(),
                    values => format!("Leave it out, or send {values}."),
                };
                return Err(path.unsupported(Some(value), Some(&instead)));
            }
            let message = format!("must be {}, got {}", one_of(&values), shown(value));
            return Err(path.invalid(&message, hint));
        }
        let bound = |name: &str| schema.get(name);
        let length = |name: &str| bound(name).and_then(Value::as_u64);
        match value {
            Value::Number(_) => check_range(schema, hint, value, path),
            Value::String(text) => {
                let chars = text.chars().count() as u64;
                check_length(chars, length("minLength"), length("maxLength"), "characters", hint, path)?;
                match bound("pattern").and_then(Value::as_str) {
                    Some(pattern) if !matches(pattern, text) => {
                        Err(path.invalid(&format!("must match {pattern}, got {}", shown(value)), hint))
                    }
                    _ => Ok(()),
                }
            }
            Value::Array(items) => {
                let count = items.len() as u64;
                check_length(count, length("minItems"), length("maxItems"), "entries", hint, path)
            }
            Value::Object(fields) => {
                let count = fields.len() as u64;
                check_length(count, None, length("maxProperties"), "entries", hint, path)
            }
            _ => Ok(()),
        }
    }

    fn check_object(
        &self,
        schema: &'s Object,
        shape: &Shape<'s>,
        object: &mut Object,
        path: Path<'_>,
    ) -> Result<(), ApiError> {
        let rest = schema.get("additionalProperties").unwrap_or(&Value::Bool(true));
        let properties = schema.get("properties").and_then(Value::as_object);
        let is_known = |name: &str| properties.is_some_and(|known| known.contains_key(name));
        if *rest == Value::Bool(false) {
            object.retain(|_, value| !value.is_null());
            if let Some(name) = object.keys().find(|name| !is_known(name)) {
                let field = Path::Field(&path, name);
                return Err(match shape.unsupported.contains(&name.as_str()) {
                    true => field.unsupported(None, shape.instead(name)),
                    false => unknown(field),
                });
            }
        }
        let mut required = required(schema);
        if let Some(name) = required.find(|name| object.get(*name).is_none_or(Value::is_null)) {
            return Err(Path::Field(&path, name).missing());
        }
        for (name, schema) in properties.into_iter().flatten() {
            if let Some(value) = object.get_mut(name) {
                self.check(schema, value, Path::Field(&path, name))?;
            } else if let Some(constant) = schema.get("const") {
                // Adds the tag of the alternative that an object without a tag is.
                object.insert(name.clone(), constant.clone());
            }
        }
        if !rest.is_object() {
            return Ok(());
        }
        for (name, value) in object.iter_mut().filter(|(name, _)| !is_known(name)) {
            let path = Path::Field(&path, name);
            if let Some(names) = schema.get("propertyNames").and_then(Value::as_object) {
                let hint = names.get("x-hint").and_then(Value::as_str).unwrap_or_default();
                self.check_bounds(names, hint, &Value::String(name.clone()), path)?;
            }
            self.check(rest, value, path)?;
        }
        Ok(())
    }
}

fn unknown(path: Path<'_>) -> ApiError {
    let message =
        format!("'{path}' is not a parameter of this endpoint. Check its spelling or leave it out.");
    path.error(ErrorCode::UnknownParameter, message)
}

/// Whether the value's JSON type is one of the schema's; 1.0 is not an integer.
fn has_type(schema: &Object, value: &Value) -> bool {
    let is = |name: &str| match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(number) => name == "number" || name == "integer" && !number.is_f64(),
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    };
    match schema.get("type") {
        Some(Value::String(name)) => is(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

/// Names the types of these schemas for an error; omits `null`.
fn types(schemas: &[&Object]) -> String {
    let mut words: Vec<&str> = Vec::new();
    for schema in schemas {
        let names = match schema.get("type") {
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
            one => one.and_then(Value::as_str).into_iter().collect::<Vec<_>>(),
        };
        for name in names {
            let word = match name {
                "boolean" => "a boolean",
                "integer" => "an integer",
                "number" => "a number",
                "string" => "a string",
                "array" => "an array",
                "object" => "an object",
                _ => continue,
            };
            if !words.contains(&word) {
                words.push(word);
            }
        }
    }
    words.join(" or ")
}

/// The values that a schema allows by `const` or `enum`; `None` if it has neither.
fn allowed(schema: &Object) -> Option<Vec<&Value>> {
    let constant = schema.get("const").map(|value| vec![value]);
    constant.or_else(|| Some(schema.get("enum")?.as_array()?.iter().collect()))
}

/// Whether `value` is in the list; 1.0 equals 1.
fn is_one_of(value: &Value, values: &[&Value]) -> bool {
    let equals = |one: &&Value| match (one.as_f64(), value.as_f64()) {
        (Some(one), Some(value)) => one == value,
        _ => **one == *value,
    };
    values.iter().any(equals)
}

fn one_of(values: &[&Value]) -> String {
    let values: Vec<String> = values.iter().filter(|v| !v.is_null()).map(|v| shown(v)).collect();
    match &values[..] {
        [one] => one.clone(),
        all => format!("one of {}", all.join(", ")),
    }
}

fn any_of(values: &[&Value]) -> String {
    let values: Vec<String> = values.iter().filter(|v| !v.is_null()).map(|v| shown(v)).collect();
    values.join(" or ")
}

fn not_one_of(schemas: &[&Object], shape: &Shape<'_>, value: &Value, path: Path<'_>) -> ApiError {
    let values: Vec<&Value> = schemas.iter().filter_map(|one| allowed(one)).flatten().collect();
    let message = format!("must be {}, got {}", one_of(&values), shown(value));
    path.invalid(&message, shape.hint.unwrap_or_default())
}

/// Name of the property whose constants distinguish these objects.
fn tag_of<'s>(schemas: &[&'s Object]) -> Option<&'s str> {
    let properties = schemas.first()?.get("properties")?.as_object()?;
    let mut names = properties.keys().map(String::as_str);
    let is_tag = |name: &&str| {
        let has_constant = |schema: &&Object| property(schema, name).is_some_and(|p| p.contains_key("const"));
        // An alternative may list several values of the tag, but at least one has a constant.
        schemas.iter().any(has_constant) && schemas.iter().all(|schema| tag_values(schema, name).is_some())
    };
    names.find(is_tag)
}

fn property<'s>(schema: &'s Object, name: &str) -> Option<&'s Object> {
    schema.get("properties")?.get(name)?.as_object()
}

/// The values that this schema allows for the tag `name`.
fn tag_values<'s>(schema: &'s Object, name: &str) -> Option<Vec<&'s Value>> {
    allowed(property(schema, name)?)
}

fn required(schema: &Object) -> impl Iterator<Item = &str> {
    let names = schema.get("required").and_then(Value::as_array).into_iter().flatten();
    names.filter_map(Value::as_str)
}

fn choose_by_tag<'s>(
    schemas: &[&'s Object],
    tag: &str,
    shape: &Shape<'_>,
    object: &Object,
    path: Path<'_>,
) -> Result<&'s Object, ApiError> {
    let path = Path::Field(&path, tag);
    match object.get(tag) {
        None | Some(Value::Null) => {
            let untagged = schemas.iter().find(|schema| required(schema).all(|name| name != tag));
            untagged.copied().ok_or_else(|| path.missing())
        }
        Some(value @ Value::String(_)) => {
            if shape.unsupported_values.contains(&value) {
                return Err(path.unsupported(Some(value), shape.instead_of(value)));
            }
            let has_value =
                |schema: &&&Object| tag_values(schema, tag).is_some_and(|values| values.contains(&value));
            schemas.iter().find(has_value).copied().ok_or_else(|| {
                let known: Vec<&Value> =
                    schemas.iter().filter_map(|one| tag_values(one, tag)).flatten().collect();
                path.invalid(&format!("must be {}, got {}", one_of(&known), shown(value)), "")
            })
        }
        Some(other) => Err(path.wrong_type("a string", other)),
    }
}

#[cfg(test)]
#[path = "validate_tests.rs"]
pub(super) mod tests;
