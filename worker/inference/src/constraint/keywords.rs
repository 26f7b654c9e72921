//! Reads a client's JSON schema into the one form that is enforced.
//!
//! Every keyword is either enforced, or an annotation without effect, or can't be enforced. The last is an
//! error that names the keyword if the client insists (`strict: true`). Otherwise the keyword is dropped
//! and its path reported; dropping only ever allows more, so an answer still obeys everything that is
//! left.
//!
//! The form is draft 2020-12 with few ways to say a thing: tuples are `prefixItems`, exclusive bounds are
//! numbers, OpenAPI's `nullable` is the type `null`, annotations are removed, and each `$ref` leads to a
//! definition under the root's `$defs`. Each subschema carries its path in the request as [`PATH`], so
//! that what is dropped later can be named, too.

use emberline_protocol::error::ApiError;
use emberline_protocol::relaxed::Relaxed;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};

use super::drafts::{name_exclusive_bounds, name_tuple, or_null, unwrap_only_member};
use super::patterns;
use super::property_names::PropertyNames;
use super::values::{
    bound, check_constant, check_strict, count, divisor, format_of_strings, invalid, is_about_strings,
    pattern, too_many, type_of, unenforceable, unsupported,
};

/// The annotation that holds a subschema's path in the request.
pub(super) const PATH: &str = "x-path";

/// Most properties of an object: the time to compile them grows with the square of their number.
pub(super) const MOST_PROPERTIES: usize = 1000;
/// Most patterns of properties: each is compared with each other.
const MOST_PATTERNS: usize = 20;
/// Most subschemas, each counted as often as definitions repeat it; llguidance has the same limit.
const MOST_SUBSCHEMAS: usize = 50_000;
/// Most paths that are reported for one schema; if there are more, the whole schema is reported.
const MOST_NOTED: usize = 200;
/// Larger maximums are dropped: no answer is long enough for them to matter.
const LARGEST_MAXIMUM: u64 = u32::MAX as u64 / 2;
/// Longest path of a subschema, in bytes.
const LONGEST_PATH: usize = 512;

const ANNOTATIONS: [&str; 19] = [
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
    "$defs",
    "definitions",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "discriminator",
    "externalDocs",
    "xml",
];

/// Reads the schema at `path` of the request; with `strict` also checks the rules of OpenAI's strict mode.
/// The result is always an object.
pub(super) fn read(
    schema: &Value,
    strict: bool,
    path: &str,
    relaxed: &mut Relaxed,
) -> Result<Map<String, Value>, ApiError> {
    let mut reader = Reader { root: schema, path, strict, relaxed, targets: Vec::new(), count: 0 };
    let mut root = match reader.subschema(schema, path)? {
        Value::Object(root) => root,
        Value::Bool(true) => Map::new(),
        _ => {
            reader.fault(invalid(path, "allows nothing", "Describe what is allowed."))?;
            Map::new()
        }
    };
    let mut definitions = Map::new();
    while let Some(pointer) = reader.targets.get(definitions.len()).cloned() {
        let path = reader.path_of(&pointer);
        let target = schema.pointer(&pointer).unwrap_or(&Value::Bool(true));
        definitions.insert(definitions.len().to_string(), reader.subschema(target, &path)?);
    }
    root.insert(PATH.to_owned(), path.into());
    root.insert("$defs".to_owned(), definitions.into());
    Ok(root)
}

/// Whether a keyword constrains nothing.
pub(super) fn is_annotation(word: &str) -> bool {
    ANNOTATIONS.contains(&word) || matches!(word, "$id" | "id") || word.starts_with("x-")
}

pub(super) struct Reader<'s> {
    /// The client's schema, and its path.
    pub(super) root: &'s Value,
    path: &'s str,
    strict: bool,
    relaxed: &'s mut Relaxed,
    /// Pointers to the targets of references; a target's index is its name among the definitions.
    targets: Vec<String>,
    /// Number of subschemas so far.
    count: usize,
}

/// Appends a part to a path. A path that would become very long is left as it is: each subschema keeps
/// its own.
fn join(path: &str, part: std::fmt::Arguments<'_>) -> String {
    let joined = format!("{path}{part}");
    if joined.len() > LONGEST_PATH { path.to_owned() } else { joined }
}

/// A subschema that is being read.
pub(super) struct Draft<'d> {
    pub(super) members: &'d Map<String, Value>,
    pub(super) path: &'d str,
    pub(super) read: Map<String, Value>,
    /// Schemas of properties whose name patterns can't be enforced.
    unmatched: Vec<Value>,
}

impl Draft<'_> {
    /// Whether a keyword is present but not enforced.
    fn has_lost(&self, word: &str) -> bool {
        self.members.contains_key(word) && !self.read.contains_key(word)
    }
}

impl<'s> Reader<'s> {
    /// Returns the error if the client insists; otherwise reports that what it names is dropped.
    pub(super) fn fault(&mut self, error: ApiError) -> Result<(), ApiError> {
        match error.param {
            Some(path) if !self.strict => {
                let is_full = self.relaxed.paths().len() >= MOST_NOTED;
                self.relaxed.push(if is_full { self.path.to_owned() } else { path });
                Ok(())
            }
            _ => Err(error),
        }
    }

    fn subschema(&mut self, schema: &'s Value, path: &str) -> Result<Value, ApiError> {
        self.count += 1;
        match schema {
            _ if self.count > MOST_SUBSCHEMAS => {
                let what = format!("has more than the {MOST_SUBSCHEMAS} parts that a schema may have");
                self.fault(invalid(self.path, &what, "Make it smaller."))?;
                Ok(Value::Bool(true))
            }
            Value::Bool(_) => Ok(schema.clone()),
            Value::Object(members) => self.object(members, path),
            _ => {
                self.fault(invalid(path, "is no JSON schema", "Give an object or a boolean."))?;
                Ok(Value::Bool(true))
            }
        }
    }

    fn object(&mut self, members: &'s Map<String, Value>, path: &str) -> Result<Value, ApiError> {
        if members.get("not").is_some_and(allows_anything) {
            return Ok(Value::Bool(false));
        }
        let mut draft = Draft { members, path, read: Map::new(), unmatched: Vec::new() };
        draft.read.insert(PATH.to_owned(), path.into());
        for (word, value) in members {
            let path = join(path, format_args!(".{word}"));
            match self.keyword(word, value, &path, &mut draft) {
                Ok(None) => {}
                Ok(Some(value)) => drop(draft.read.insert(word.clone(), value)),
                Err(error) => self.fault(error)?,
            }
        }
        self.join_items(&mut draft);
        self.join_properties(&mut draft);
        self.name_properties(&mut draft)?;
        self.count_properties(&mut draft)?;
        let mut read = draft.read;
        name_tuple(&mut read);
        name_exclusive_bounds(&mut read);
        if self.strict {
            check_strict(members, path)?;
        }
        let read = unwrap_only_member(read);
        Ok(if members.get("nullable") == Some(&Value::Bool(true)) { or_null(read, path) } else { read })
    }

    /// What is enforced of a keyword, if anything.
    fn keyword(
        &mut self,
        word: &str,
        value: &'s Value,
        path: &str,
        draft: &mut Draft<'_>,
    ) -> Result<Option<Value>, ApiError> {
        let read = match word {
            "type" => self.types(value, path)?,
            "enum" => self.constants(value, path)?,
            "const" => match check_constant(value, path) {
                Ok(()) => value.clone(),
                // Dropped as a whole.
                Err(error) if !self.strict => return Err(ApiError { param: Some(path.to_owned()), ..error }),
                Err(error) => return Err(error),
            },
            "$ref" => self.reference(value, path)?,
            "items" if value.is_array() => self.each(value, path)?,
            "items" | "additionalItems" | "additionalProperties" => self.subschema(value, path)?,
            "prefixItems" => self.each(value, path)?,
            "anyOf" | "oneOf" | "allOf" => self.alternatives(value, path)?,
            "properties" => self.properties(value, path)?,
            "patternProperties" => self.pattern_properties(value, path, draft)?,
            "required" => self.names(value, path)?,
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => bound(word, value, path)?,
            "multipleOf" => divisor(value, path)?,
            "minLength" | "minItems" | "minProperties" => count(value, path)?.into(),
            "maxLength" | "maxItems" | "maxProperties" => match count(value, path)? {
                most if most > LARGEST_MAXIMUM => return Ok(None),
                most => most.into(),
            },
            "pattern" => pattern(value, path)?,
            "format" if is_about_strings(draft.members) => format_of_strings(value, path)?,
            "format" => return Ok(None),
            // Read together with other keywords.
            "nullable" if value.is_boolean() => return Ok(None),
            "propertyNames" if self.names_of(value) != PropertyNames::Other => return Ok(None),
            // Without effect.
            "uniqueItems" | "not" if value == false => return Ok(None),
            "$id" | "id" if draft.path != self.path => return Err(unsupported(word, path)),
            word if is_annotation(word) => return Ok(None),
            word => return Err(unsupported(word, path)),
        };
        Ok(Some(read))
    }

    /// The known types, if there is any.
    fn types(&mut self, value: &Value, path: &str) -> Result<Value, ApiError> {
        let strict = self.strict;
        let Value::Array(kinds) = value else { return type_of(value, strict, path).map(Value::from) };
        let mut known = Vec::with_capacity(kinds.len());
        for kind in kinds {
            match type_of(kind, strict, path) {
                Ok(kind) => known.push(Value::from(kind)),
                Err(error) => self.fault(error)?,
            }
        }
        match &known[..] {
            [] => Err(invalid(path, "names no type", "Name one, or leave it out.")),
            [one] => Ok(one.clone()),
            _ => Ok(known.into()),
        }
    }

    /// The values that an answer can have; without the others an answer still has one of them.
    fn constants(&mut self, value: &Value, path: &str) -> Result<Value, ApiError> {
        let Value::Array(values) = value else {
            return Err(invalid(path, "is not an array", "Give an array of values."));
        };
        let mut possible = Vec::with_capacity(values.len());
        for (index, value) in values.iter().enumerate() {
            match check_constant(value, &join(path, format_args!("[{index}]"))) {
                Ok(()) => possible.push(value.clone()),
                Err(error) => self.fault(error)?,
            }
        }
        if possible.is_empty() {
            return Err(invalid(path, "has no value that an answer can have", "Add one."));
        }
        Ok(possible.into())
    }

    fn each(&mut self, value: &'s Value, path: &str) -> Result<Value, ApiError> {
        let Value::Array(members) = value else {
            return Err(invalid(path, "is not an array", "Give an array of schemas."));
        };
        let members = members.iter().enumerate();
        members
            .map(|(index, member)| self.subschema(member, &join(path, format_args!("[{index}]"))))
            .collect()
    }

    fn alternatives(&mut self, value: &'s Value, path: &str) -> Result<Value, ApiError> {
        match value.as_array() {
            Some(members) if members.is_empty() => {
                Err(invalid(path, "has no schema in it", "Add one, or leave it out."))
            }
            _ => self.each(value, path),
        }
    }

    fn properties(&mut self, value: &'s Value, path: &str) -> Result<Value, ApiError> {
        let members = named(value, MOST_PROPERTIES, path)?;
        let mut read = Map::new();
        for (name, member) in members {
            read.insert(name.clone(), self.subschema(member, &join(path, format_args!(".{name}")))?);
        }
        Ok(read.into())
    }

    fn pattern_properties(
        &mut self,
        value: &'s Value,
        path: &str,
        draft: &mut Draft<'_>,
    ) -> Result<Value, ApiError> {
        let members = named(value, MOST_PATTERNS, path)?;
        let mut read = Map::new();
        for (pattern, member) in members {
            let path = join(path, format_args!(".{pattern}"));
            let member = self.subschema(member, &path)?;
            match patterns::check(pattern) {
                Ok(()) => drop(read.insert(pattern.clone(), member)),
                Err(reason) => {
                    self.fault(unenforceable(&path, &reason))?;
                    draft.unmatched.push(member);
                }
            }
        }
        Ok(read.into())
    }

    fn names(&mut self, value: &Value, path: &str) -> Result<Value, ApiError> {
        let Value::Array(names) = value else {
            return Err(invalid(path, "is not an array", "Give an array of names."));
        };
        if names.len() > MOST_PROPERTIES {
            return Err(too_many(names.len(), MOST_PROPERTIES, path));
        }
        let mut read = Vec::with_capacity(names.len());
        for (index, name) in names.iter().enumerate() {
            match name {
                Value::String(_) => read.push(name.clone()),
                _ => {
                    let path = format!("{path}[{index}]");
                    self.fault(invalid(&path, "is not a string", "Give the name of a property."))?;
                }
            }
        }
        Ok(read.into())
    }

    fn reference(&mut self, value: &Value, path: &str) -> Result<Value, ApiError> {
        let remedy = "Put the definition under '$defs' and refer to it as \"#/$defs/name\".";
        let pointer = match self.resolve(value) {
            Ok(pointer) => pointer,
            Err(what) => return Err(invalid(path, &format!("is {value}, {what}"), remedy)),
        };
        let known = self.targets.iter().position(|target| *target == pointer);
        let name = known.unwrap_or_else(|| {
            self.targets.push(pointer);
            self.targets.len() - 1
        });
        Ok(format!("#/$defs/{name}").into())
    }

    /// The pointer into the root that a reference stands for.
    pub(super) fn resolve(&self, reference: &Value) -> Result<String, &'static str> {
        let outside = "but references outside the schema are not followed";
        let fragment = reference.as_str().and_then(|text| text.strip_prefix('#')).ok_or(outside)?;
        match fragment {
            "" | "/" => Ok(String::new()),
            _ if !fragment.starts_with('/') => Err(outside),
            _ => [fragment.to_owned(), percent_decode_str(fragment).decode_utf8_lossy().into_owned()]
                .into_iter()
                .find(|pointer| self.root.pointer(pointer).is_some())
                .ok_or("which is not in the schema"),
        }
    }

    /// The path in the request that a pointer leads to.
    fn path_of(&self, pointer: &str) -> String {
        let mut path = self.path.to_owned();
        let mut parent = String::new();
        for segment in pointer.split('/').skip(1) {
            let is_list = self.root.pointer(&parent).is_some_and(Value::is_array);
            parent = format!("{parent}/{segment}");
            let segment = segment.replace("~1", "/").replace("~0", "~");
            path = match is_list {
                true => join(&path, format_args!("[{segment}]")),
                false => join(&path, format_args!(".{segment}")),
            };
        }
        path
    }

    /// Without `prefixItems`, `items` would describe the first items, too.
    fn join_items(&mut self, draft: &mut Draft<'_>) {
        if draft.has_lost("prefixItems") && draft.read.shift_remove("items").is_some() {
            self.relaxed.push(format!("{}.items", draft.path));
        }
    }

    /// A schema that has lost properties that it names must not forbid them.
    fn join_properties(&mut self, draft: &mut Draft<'_>) {
        let is_lost = draft.has_lost("properties") || draft.has_lost("patternProperties");
        let Draft { path, read, unmatched, .. } = draft;
        let Some(rest) = read.get("additionalProperties").filter(|rest| **rest != Value::Bool(true)) else {
            return;
        };
        if is_lost {
            read.shift_remove("additionalProperties");
            self.relaxed.push(format!("{path}.additionalProperties"));
        } else if !unmatched.is_empty() {
            let rest = Some(rest).filter(|rest| **rest != Value::Bool(false)).cloned();
            let mut options = std::mem::take(unmatched);
            options.extend(rest);
            let path = format!("{path}.additionalProperties");
            read.insert("additionalProperties".to_owned(), json!({ PATH: path, "anyOf": options }));
        }
    }

    /// A property that the schema does not name could be written twice and would count once.
    fn count_properties(&mut self, draft: &mut Draft<'_>) -> Result<(), ApiError> {
        let read = &mut draft.read;
        let required = read.get("required").and_then(Value::as_array).map_or(0, |names| names.len() as u64);
        match read.get("minProperties").and_then(Value::as_u64) {
            Some(least) if least > required + 1 => {
                read.shift_remove("minProperties");
                let path = format!("{}.minProperties", draft.path);
                let what =
                    format!("is {least}, which can be enforced only up to one more than there are required");
                self.fault(invalid(&path, &what, "Name the properties under 'required'."))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the schema has no keyword that a value could violate.
pub(super) fn allows_anything(schema: &Value) -> bool {
    match schema {
        Value::Bool(anything) => *anything,
        Value::Object(schema) => schema.keys().all(|word| is_annotation(word)),
        _ => false,
    }
}

/// An object of schemas.
fn named<'s>(value: &'s Value, most: usize, path: &str) -> Result<&'s Map<String, Value>, ApiError> {
    match value {
        Value::Object(members) if members.len() > most => Err(too_many(members.len(), most, path)),
        Value::Object(members) => Ok(members),
        _ => Err(invalid(path, "is not an object", "Give an object of schemas.")),
    }
}

#[cfg(test)]
#[path = "keywords_tests.rs"]
mod tests;
