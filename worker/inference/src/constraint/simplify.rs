//! Simplifies schemas that can't be compiled as they are, where the client does not insist on them.
//!
//! llguidance finds some faults only when it combines schemas: contradicting conditions, expressions that
//! it can't intersect, too many alternatives. Each self-contained subschema is tried by itself, from the
//! outside in; where one fails though its parts don't, its keywords are added one after the other,
//! leaving out those that fail. If that is not enough, keywords are removed everywhere, the most
//! expensive first, and in the end the schema allows anything.
//!
//! The result depends on the schema alone and not on time, so that every worker gets the same grammar.

use emberline_protocol::relaxed::Relaxed;
use serde_json::{Map, Value, json};

use super::keywords::PATH;
use super::schema::Schema;
use super::tree::{change_all, definitions_mut, subschemas_mut};

/// Keywords in the order in which they are added: later ones are worth less.
const KEYWORDS: [&str; 26] = [
    "type",
    "const",
    "enum",
    "$ref",
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "prefixItems",
    "items",
    "anyOf",
    "oneOf",
    "allOf",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "multipleOf",
    "minProperties",
    "maxProperties",
];

/// Keywords that are removed together, the most expensive first.
const DEAREST: [&[&str]; 3] = [
    &["pattern", "format", "multipleOf", "patternProperties", "minProperties", "maxProperties"],
    &["allOf", "minLength", "maxLength", "minItems", "maxItems"],
    &["anyOf", "oneOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"],
];

/// Bytes of a schema below which a trial's cost does not depend on its size.
const SMALL_SCHEMA: usize = 16 << 10;

/// Tries whether schemas can be compiled, up to a number of times.
pub(super) struct Trials<'c> {
    compiles: &'c mut dyn FnMut(&Schema) -> bool,
    left: usize,
}

impl<'c> Trials<'c> {
    pub(super) fn new(left: usize, compiles: &'c mut dyn FnMut(&Schema) -> bool) -> Self {
        Self { compiles, left }
    }

    /// Whether a schema can be compiled; `None` once the trials are used up. A large schema counts as
    /// several small ones.
    fn compiles(&mut self, schema: &Schema) -> Option<bool> {
        let size = serde_json::to_string(&schema.0).map_or(0, |text| text.len());
        self.left = self.left.checked_sub(1 + size / SMALL_SCHEMA)?;
        Some((self.compiles)(schema))
    }

    /// Whether a part of a schema can be compiled, whatever it refers to.
    fn compiles_alone(&mut self, part: &Map<String, Value>) -> Option<bool> {
        let mut root = part.clone();
        change_all(&mut root, &mut |schema| drop(schema.shift_remove("$ref")));
        self.compiles(&Schema(root))
    }
}

/// Removes as little as possible from the schema at `path` of the request so that it can be compiled; if
/// nothing helps, it becomes `anything`. Returns what was removed.
pub(super) fn simplify(
    schema: &mut Schema,
    path: &str,
    anything: Schema,
    trials: &mut Trials<'_>,
) -> Relaxed {
    let mut simpler = schema.clone();
    let mut relaxed = Relaxed::default();
    if mend_root(&mut simpler, trials, &mut relaxed).is_some() {
        *schema = simpler;
        return relaxed;
    }
    *schema = anything;
    let mut whole = Relaxed::default();
    whole.push(path);
    whole
}

/// Mends a root and its definitions; `None` if that fails.
fn mend_root(schema: &mut Schema, trials: &mut Trials<'_>, relaxed: &mut Relaxed) -> Option<()> {
    let Schema(root) = schema;
    let mut definitions = objects(definitions_mut(root));
    mend_all(&mut definitions, trials, relaxed)?;
    let definitions = root.shift_remove("$defs").unwrap_or_default();
    let mended = mend(root, trials, relaxed);
    root.insert("$defs".to_owned(), definitions);
    mended?;
    if trials.compiles(schema)? {
        return Some(());
    }
    // A reference that leads back to itself must stand alone.
    let beside = |part: &Map<String, Value>, word: &str| {
        part.contains_key("$ref") && !["$ref", "type"].contains(&word)
    };
    if cut(schema, &beside, relaxed) && trials.compiles(schema)? {
        return Some(());
    }
    for words in DEAREST {
        if cut(schema, &|_, word| words.contains(&word), relaxed) && trials.compiles(schema)? {
            return Some(());
        }
    }
    None
}

fn mend_all(
    parts: &mut [&mut Map<String, Value>],
    trials: &mut Trials<'_>,
    relaxed: &mut Relaxed,
) -> Option<()> {
    match parts {
        [] => Some(()),
        [part] => mend(part, trials, relaxed),
        parts => {
            let members: Vec<Value> = parts.iter().map(|part| Value::Object((*part).clone())).collect();
            let all =
                json!({ "type": "array", "minItems": members.len(), "prefixItems": members, "items": false });
            if trials.compiles_alone(all.as_object()?)? {
                return Some(());
            }
            let (first, second) = parts.split_at_mut(parts.len() / 2);
            mend_all(first, trials, relaxed)?;
            mend_all(second, trials, relaxed)
        }
    }
}

fn mend(part: &mut Map<String, Value>, trials: &mut Trials<'_>, relaxed: &mut Relaxed) -> Option<()> {
    if trials.compiles_alone(part)? {
        return Some(());
    }
    let mut members = objects(subschemas_mut(part));
    mend_all(&mut members, trials, relaxed)?;
    if trials.compiles_alone(part)? {
        return Some(());
    }
    *part = put_together(part, trials, relaxed)?;
    Some(())
}

/// The keywords of a part that can be compiled together.
fn put_together(
    part: &Map<String, Value>,
    trials: &mut Trials<'_>,
    relaxed: &mut Relaxed,
) -> Option<Map<String, Value>> {
    let mut kept = Map::new();
    kept.extend(part.get(PATH).map(|path| (PATH.to_owned(), path.clone())));
    for word in KEYWORDS {
        let Some(value) = part.get(word) else { continue };
        let is_lost = |word: &str| part.contains_key(word) && !kept.contains_key(word);
        // It must not forbid properties that are no longer named.
        let forbids =
            word == "additionalProperties" && (is_lost("properties") || is_lost("patternProperties"));
        kept.insert(word.to_owned(), value.clone());
        if !forbids && trials.compiles_alone(&kept)? {
            continue;
        }
        kept.shift_remove(word);
        match value {
            Value::Array(members) if word == "allOf" => {
                let members = fitting(members, &kept, trials, relaxed)?;
                kept.extend((!members.is_empty()).then(|| (word.to_owned(), members.into())));
            }
            _ => note(part, word, relaxed),
        }
    }
    Some(kept)
}

/// The members of `allOf` that can be compiled together with other keywords.
fn fitting(
    members: &[Value],
    others: &Map<String, Value>,
    trials: &mut Trials<'_>,
    relaxed: &mut Relaxed,
) -> Option<Vec<Value>> {
    let mut fitting = Vec::new();
    for member in members {
        let mut with = others.clone();
        fitting.push(member.clone());
        with.insert("allOf".to_owned(), fitting.clone().into());
        if !trials.compiles_alone(&with)? {
            fitting.pop();
            if let Some(Value::String(path)) = member.get(PATH) {
                relaxed.push(path.as_str());
            }
        }
    }
    Some(fitting)
}

/// Removes keywords everywhere; returns whether there were any.
fn cut(
    schema: &mut Schema,
    is_cut: &dyn Fn(&Map<String, Value>, &str) -> bool,
    relaxed: &mut Relaxed,
) -> bool {
    let mut changed = false;
    change_all(&mut schema.0, &mut |part| {
        let mut words: Vec<&str> = KEYWORDS.into_iter().filter(|word| is_cut(part, word)).collect();
        words.retain(|word| part.contains_key(*word));
        if words.contains(&"patternProperties") && part.contains_key("additionalProperties") {
            words.push("additionalProperties");
        }
        for word in words {
            changed = true;
            part.shift_remove(word);
            note(part, word, relaxed);
        }
    });
    changed
}

/// Reports that a part of a schema has lost a keyword.
fn note(part: &Map<String, Value>, word: &str, relaxed: &mut Relaxed) {
    if let Some(Value::String(path)) = part.get(PATH) {
        relaxed.push(format!("{path}.{word}"));
    }
}

/// Booleans need no mending: what allows nothing is meant to.
fn objects(schemas: Vec<&mut Value>) -> Vec<&mut Map<String, Value>> {
    schemas.into_iter().filter_map(Value::as_object_mut).collect()
}

#[cfg(test)]
#[path = "simplify_tests.rs"]
mod tests;
