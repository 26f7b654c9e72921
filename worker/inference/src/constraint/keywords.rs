//! Reads a client's schema into the one form that is enforced.
//!
//! Every keyword is known: it is enforced, it is an annotation that constrains nothing, or it can't be
//! enforced. A client that insists (`strict: true`) then gets an error that names the keyword. For
//! any other the keyword is dropped and its path noted; that only ever allows more, so an answer still
//! obeys all that is left.
//!
//! The form is that of draft 2020-12 with few ways to say a thing: tuples are `prefixItems`, exclusive
//! bounds are numbers, OpenAPI's `nullable` is the type `null`, annotations are gone, and each `$ref`
//! leads to a definition under the root's `$defs`. Each subschema has its path in the request as
//! [`PATH`], so that what is dropped later can be named, too.

use emberline_protocol::error::ApiError;
use emberline_protocol::relaxed::Relaxed;
use serde_json::{Map, Value, json};

use super::patterns;
use super::values::{
    bound, check_constant, check_strict, count, divisor, format_of_strings, invalid, is_about_strings,
    pattern, too_many, type_of, unenforceable, unsupported,
};

/// The annotation that says where a subschema is in the request.
pub(super) const PATH: &str = "x-path";

/// An object's properties at most: the time to compile them grows with their number's square.
const MOST_PROPERTIES: usize = 1000;
/// Patterns of properties at most: each is compared with each other.
const MOST_PATTERNS: usize = 20;
/// Subschemas at most, each counted as often as definitions repeat it; llguidance takes as many.
const MOST_SUBSCHEMAS: usize = 50_000;
/// Paths at most that are noted of one schema; of one with more faults, the whole is.
const MOST_NOTED: usize = 200;
/// No answer is so long that a greater maximum would matter.
const LARGEST_MAXIMUM: u64 = u32::MAX as u64 / 2;
/// A reference to a reference and so on is followed so far.
const MOST_HOPS: usize = 8;
/// Longest path of a subschema, in bytes.
const LONGEST_PATH: usize = 512;
/// Bytes that the schema of properties may have together that is written once for each of their names.
const MOST_REPEATED: usize = 1 << 18;

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

/// Reads the schema at `path` of the request, and with `strict` checks also that it keeps to the rules
/// of OpenAI's strict mode. The root that comes out is an object.
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

struct Reader<'s> {
    /// The client's schema, and its path.
    root: &'s Value,
    path: &'s str,
    strict: bool,
    relaxed: &'s mut Relaxed,
    /// Pointers to what is referred to. The place of each is its name among the definitions.
    targets: Vec<String>,
    /// Subschemas so far.
    count: usize,
}

/// The path of a part of what is at `path`; that itself where the part's would be very long: each subschema
/// keeps its path.
fn join(path: &str, part: std::fmt::Arguments<'_>) -> String {
    let joined = format!("{path}{part}");
    if joined.len() > LONGEST_PATH { path.to_owned() } else { joined }
}

/// A subschema that is being read.
struct Draft<'d> {
    members: &'d Map<String, Value>,
    path: &'d str,
    read: Map<String, Value>,
    /// What properties must be whose names match a pattern that can't be enforced.
    unmatched: Vec<Value>,
}

impl Draft<'_> {
    /// Whether a keyword is there and is not enforced.
    fn has_lost(&self, word: &str) -> bool {
        self.members.contains_key(word) && !self.read.contains_key(word)
    }
}

impl<'s> Reader<'s> {
    /// The error, if the client insists; otherwise notes that what it names is dropped.
    fn fault(&mut self, error: ApiError) -> Result<(), ApiError> {
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

    /// What is enforced of a keyword, if anything is.
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
                // It is dropped as a whole.
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
            // What they ask for is read together with other keywords.
            "nullable" if value.is_boolean() => return Ok(None),
            "propertyNames" if self.names_of(value) != Names::Other => return Ok(None),
            // Asks for nothing.
            "uniqueItems" | "not" if value == false => return Ok(None),
            "$id" | "id" if draft.path != self.path => return Err(unsupported(word, path)),
            word if is_annotation(word) => return Ok(None),
            word => return Err(unsupported(word, path)),
        };
        Ok(Some(read))
    }

    /// The types that are known, if any is.
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

    /// The values that an answer can have: without the others an answer still has one of them.
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
    fn resolve(&self, reference: &Value) -> Result<String, &'static str> {
        let outside = "but references outside the schema are not followed";
        let fragment = reference.as_str().and_then(|text| text.strip_prefix('#')).ok_or(outside)?;
        match fragment {
            "" | "/" => Ok(String::new()),
            _ if !fragment.starts_with('/') => Err(outside),
            _ => [fragment.to_owned(), percent_decode(fragment)]
                .into_iter()
                .find(|pointer| self.root.pointer(pointer).is_some())
                .ok_or("which is not in the schema"),
        }
    }

    /// Where in the request a pointer leads.
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

    /// Of a list without its first items, the others' schema would be about these.
    fn join_items(&mut self, draft: &mut Draft<'_>) {
        if draft.has_lost("prefixItems") && draft.read.shift_remove("items").is_some() {
            self.relaxed.push(format!("{}.items", draft.path));
        }
    }

    /// A schema without some of the properties that it names must not forbid these.
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

    /// Puts what `propertyNames` asks for into properties, where these are not described otherwise.
    fn name_properties(&mut self, draft: &mut Draft<'_>) -> Result<(), ApiError> {
        let names = match draft.members.get("propertyNames") {
            None => return Ok(()),
            Some(names) => match self.names_of(names) {
                // Other names are dropped already.
                Names::Any | Names::Other => return Ok(()),
                names => names,
            },
        };
        let read = &mut draft.read;
        if ["properties", "patternProperties"].iter().any(|word| draft.members.contains_key(*word)) {
            return self.fault(unsupported("propertyNames", &format!("{}.propertyNames", draft.path)));
        }
        if let Names::Listed(names) = &names {
            let each = read.get("additionalProperties").map_or(0, |member| member.to_string().len());
            if each.saturating_mul(names.len()) > MOST_REPEATED {
                return self.fault(unsupported("propertyNames", &format!("{}.propertyNames", draft.path)));
            }
        }
        let member = read.insert("additionalProperties".to_owned(), false.into());
        let member = member.unwrap_or(Value::Bool(true));
        match names {
            Names::Matching(pattern) => {
                read.insert("patternProperties".to_owned(), json!({ pattern: member }));
            }
            Names::Listed(names) => {
                let members: Map<String, Value> =
                    names.into_iter().map(|name| (name, member.clone())).collect();
                read.insert("properties".to_owned(), members.into());
            }
            Names::Any | Names::Other => {}
        }
        Ok(())
    }

    /// Which names a schema of names allows.
    fn names_of(&self, schema: &Value) -> Names {
        let mut schema = schema;
        for _ in 0..MOST_HOPS {
            let stands_alone = |members: &Map<String, Value>| {
                members.keys().all(|word| word == "$ref" || is_annotation(word))
            };
            let pointer = schema.get("$ref").and_then(|reference| self.resolve(reference).ok());
            let Some(pointer) = pointer.filter(|_| schema.as_object().is_some_and(stands_alone)) else {
                break;
            };
            schema = self.root.pointer(&pointer).unwrap_or(schema);
        }
        let members = match schema {
            Value::Bool(true) => return Names::Any,
            Value::Object(members) => members,
            _ => return Names::Other,
        };
        let asks = |(word, value): &(&String, &Value)| {
            !(is_annotation(word) || *word == "type" && *value == "string")
        };
        let mut conditions = members.iter().filter(asks);
        let only = match (conditions.next(), conditions.next()) {
            (None, _) => return Names::Any,
            (Some((word, value)), None) => (word.as_str(), value),
            _ => return Names::Other,
        };
        match only {
            ("const", Value::String(name)) => Names::Listed(vec![name.clone()]),
            ("enum", Value::Array(values)) if values.len() <= MOST_PROPERTIES => {
                let names = values.iter().map(|name| name.as_str().map(str::to_owned));
                names.collect::<Option<Vec<String>>>().map_or(Names::Other, Names::Listed)
            }
            ("pattern", Value::String(pattern)) if patterns::check(pattern).is_ok() => {
                Names::Matching(pattern.clone())
            }
            _ => Names::Other,
        }
    }

    /// Of properties that the schema does not name, the same could come twice and count once.
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

/// Names of properties that a schema allows.
#[derive(Debug, PartialEq, Eq)]
enum Names {
    Any,
    Listed(Vec<String>),
    Matching(String),
    /// It can't be enforced.
    Other,
}

/// Whether there is nothing in it that a value could break.
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

/// A tuple of older drafts as one of 2020-12.
fn name_tuple(read: &mut Map<String, Value>) {
    let rest = read.shift_remove("additionalItems");
    if read.get("items").is_some_and(Value::is_array)
        && let Some(items) = read.shift_remove("items")
    {
        read.insert("prefixItems".to_owned(), items);
        if let Some(rest) = rest {
            read.insert("items".to_owned(), rest);
        }
    }
}

/// The booleans of draft 4 as numbers.
fn name_exclusive_bounds(read: &mut Map<String, Value>) {
    for (word, inclusive) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        let Some(Value::Bool(is_exclusive)) = read.get(word).cloned() else { continue };
        read.shift_remove(word);
        if is_exclusive && let Some(bound) = read.shift_remove(inclusive) {
            read.insert(word.to_owned(), bound);
        }
    }
}

/// A schema that only says that another holds is that other.
fn unwrap_only_member(mut read: Map<String, Value>) -> Value {
    let only = ["allOf", "anyOf", "oneOf"].into_iter().find(|word| {
        let is_alone = read.keys().all(|other| other == PATH || other == word);
        is_alone && read.get(*word).and_then(Value::as_array).is_some_and(|members| members.len() == 1)
    });
    match only.and_then(|word| read.shift_remove(word)) {
        Some(Value::Array(mut members)) => members.pop().unwrap_or_default(),
        _ => read.into(),
    }
}

/// What `nullable` says in OpenAPI 3.0: null will do, too.
fn or_null(read: Value, path: &str) -> Value {
    let mut members = match read {
        Value::Object(members) => members,
        other => return other,
    };
    let null = || json!({ PATH: path, "type": "null" });
    if ["$ref", "anyOf", "oneOf", "allOf", "const"].iter().any(|word| members.contains_key(*word)) {
        let options = [Value::Object(members), null()];
        return json!({ PATH: path, "anyOf": options });
    }
    for word in ["type", "enum"] {
        let with_null = match members.remove(word) {
            None => continue,
            Some(Value::Array(mut values)) => {
                let other = if word == "type" { Value::from("null") } else { Value::Null };
                if !values.contains(&other) {
                    values.push(other);
                }
                values.into()
            }
            Some(one) => json!([one, "null"]),
        };
        members.insert(word.to_owned(), with_null);
    }
    members.into()
}

/// Characters of a URI's fragment for themselves.
fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).filter(|_| first == b'%').and_then(|code| std::str::from_utf8(code).ok());
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[path = "keywords_tests.rs"]
mod tests;
