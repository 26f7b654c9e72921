//! Holds a body against its schema, for that part of JSON Schema that schemars writes.
//!
//! Of alternatives that a tag tells apart, one whose tag is not required is what an object without
//! the tag is; it gets the tag.
//!
//! Not a general validator: it says what is wrong in the words of our errors, takes `null` for
//! absent, and picks one of several alternatives before it looks inside, so that a complaint is
//! about the alternative that was meant. [`tests::assert_enforceable`] refuses schemas with
//! keywords that are not enforced here.

use std::fmt;

use serde_json::{Map, Value};

use super::json::kind;
use crate::error::{ApiError, ErrorCode};

type Object = Map<String, Value>;

/// Most characters of a client's own text that an error repeats.
const MAX_ECHO: usize = 64;

/// Checks `body` and takes out of its closed objects what is `null`.
pub(super) fn check(schema: &Value, body: &mut Value) -> Result<(), ApiError> {
    Validator { root: schema }.check(schema, body, Path::Root)
}

/// Where a value is in the body.
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

    fn unsupported(self, value: Option<&Value>) -> ApiError {
        let message = match value {
            Some(value) => format!("'{self}' does not support {}. Choose another value.", shown(value)),
            None => format!("'{self}' is not supported. Leave it out."),
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

/// What a schema allows, references followed.
#[derive(Default)]
struct Shape<'s> {
    alternatives: Vec<&'s Object>,
    unsupported: Vec<&'s str>,
    unsupported_values: Vec<&'s Value>,
    hint: Option<&'s str>,
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
        let shape = self.shape(schema);
        if shape.unsupported_values.contains(&&*value) {
            return Err(path.unsupported(Some(value)));
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

    /// Picks the alternative that `value` is meant to be.
    fn choose(&self, shape: &Shape<'s>, value: &Value, path: Path<'_>) -> Result<&'s Object, ApiError> {
        let of_type: Vec<&Object> =
            shape.alternatives.iter().copied().filter(|one| has_type(one, value)).collect();
        let first = *of_type.first().ok_or_else(|| path.wrong_type(&types(&shape.alternatives), value))?;
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
                let allows = |one: &&&Object| allowed(one).is_none_or(|values| values.contains(&value));
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
            && !values.contains(&value)
        {
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
                    true => field.unsupported(None),
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
                // The tag of an alternative that is meant where there is none.
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

/// Whether the value's JSON type is one of the schema's; 1.0 is no integer.
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

/// The types of these schemas in words; `null` is not worth a word.
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

/// The values of a schema that has a list of them.
fn allowed(schema: &Object) -> Option<Vec<&Value>> {
    let constant = schema.get("const").map(|value| vec![value]);
    constant.or_else(|| Some(schema.get("enum")?.as_array()?.iter().collect()))
}

fn one_of(values: &[&Value]) -> String {
    let values: Vec<String> = values.iter().filter(|v| !v.is_null()).map(|v| shown(v)).collect();
    match &values[..] {
        [one] => one.clone(),
        all => format!("one of {}", all.join(", ")),
    }
}

fn not_one_of(schemas: &[&Object], shape: &Shape<'_>, value: &Value, path: Path<'_>) -> ApiError {
    let values: Vec<&Value> = schemas.iter().filter_map(|one| allowed(one)).flatten().collect();
    let message = format!("must be {}, got {}", one_of(&values), shown(value));
    path.invalid(&message, shape.hint.unwrap_or_default())
}

/// The property whose constant tells these objects apart.
fn tag_of<'s>(schemas: &[&'s Object]) -> Option<&'s str> {
    let constant = |schema: &Object, name: &str| constant_of(schema, name).is_some();
    let properties = schemas.first()?.get("properties")?.as_object()?;
    let mut names = properties.keys().map(String::as_str);
    names.find(|name| schemas.iter().all(|schema| constant(schema, name)))
}

fn constant_of<'s>(schema: &'s Object, name: &str) -> Option<&'s Value> {
    schema.get("properties")?.get(name)?.get("const")
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
            let tacit = schemas.iter().find(|schema| required(schema).all(|name| name != tag));
            tacit.copied().ok_or_else(|| path.missing())
        }
        Some(value @ Value::String(_)) => {
            if shape.unsupported_values.contains(&value) {
                return Err(path.unsupported(Some(value)));
            }
            let found = schemas.iter().find(|schema| constant_of(schema, tag) == Some(value));
            found.copied().ok_or_else(|| {
                let known: Vec<&Value> = schemas.iter().filter_map(|one| constant_of(one, tag)).collect();
                path.invalid(&format!("must be {}, got {}", one_of(&known), shown(value)), "")
            })
        }
        Some(other) => Err(path.wrong_type("a string", other)),
    }
}

fn check_range(schema: &Object, hint: &str, value: &Value, path: Path<'_>) -> Result<(), ApiError> {
    let (low, high) = (schema.get("minimum"), schema.get("maximum"));
    let above = schema.get("exclusiveMinimum");
    let is_below = |a: &Value, b: &Value| match (integer(a), integer(b)) {
        (Some(a), Some(b)) => a < b,
        _ => a.as_f64() < b.as_f64(),
    };
    let fits = low.is_none_or(|low| !is_below(value, low))
        && high.is_none_or(|high| !is_below(high, value))
        && above.is_none_or(|above| is_below(above, value));
    if fits {
        return Ok(());
    }
    let an_integer = if types(&[schema]) == "an integer" { " an integer" } else { "" };
    let range = match (low, high, above) {
        (Some(low), Some(high), _) => format!("from {low} to {high}"),
        (_, _, Some(above)) => format!("greater than {above}"),
        (Some(low), ..) => format!("of at least {low}"),
        (.., high, _) => format!("of at most {}", high.unwrap_or(&Value::Null)),
    };
    let hint = if hint.is_empty() { "Choose a value in that range." } else { hint };
    Err(path.invalid(&format!("must be{an_integer} {range}, got {value}"), hint))
}

fn integer(value: &Value) -> Option<i128> {
    value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from))
}

fn check_length(
    length: u64,
    min: Option<u64>,
    max: Option<u64>,
    what: &str,
    hint: &str,
    path: Path<'_>,
) -> Result<(), ApiError> {
    let fits = min.is_none_or(|min| length >= min) && max.is_none_or(|max| length <= max);
    match (min, max) {
        _ if fits => Ok(()),
        (Some(1), _) if length == 0 && what == "entries" => {
            Err(path.invalid("must not be empty", "Add at least one entry."))
        }
        (Some(1), None) => Err(path.invalid("must not be empty", hint)),
        (Some(min), Some(max)) => {
            Err(path.invalid(&format!("must have {min} to {max} {what}, got {length}"), hint))
        }
        (None, Some(max)) => {
            Err(path.invalid(&format!("has {length} {what}; at most {max} are allowed"), hint))
        }
        (min, None) => {
            let min = min.unwrap_or_default();
            Err(path.invalid(&format!("has {length} {what}; at least {min} are needed"), hint))
        }
    }
}

/// Whether all of a non-empty text is of one class: patterns are of the form `^[a-z_]+$`, with
/// a dash at the end of the class where that is meant.
fn matches(pattern: &str, text: &str) -> bool {
    let Some(class) = pattern.strip_prefix("^[").and_then(|rest| rest.strip_suffix("]+$")) else {
        return false;
    };
    let is_of_class = |wanted: char| {
        let mut class = class.chars();
        while let Some(low) = class.next() {
            let mut ahead = class.clone();
            let high = match (ahead.next(), ahead.next()) {
                (Some('-'), Some(high)) => {
                    class = ahead;
                    high
                }
                _ => low,
            };
            if (low..=high).contains(&wanted) {
                return true;
            }
        }
        false
    };
    !text.is_empty() && text.chars().all(is_of_class)
}

#[cfg(test)]
#[path = "validate_tests.rs"]
pub(super) mod tests;
