//! Narrows dates, times and e-mail addresses to those that every reader accepts.
//!
//! llguidance's formats allow 29 February in any year, the year 0, leap seconds anywhere, and addresses of
//! any length with rare characters; many readers refuse these. A pattern besides the format excludes
//! them.

use std::sync::LazyLock;

use serde_json::{Map, Value};

/// The beginning of a date; the format says the rest.
static DATE: LazyLock<String> = LazyLock::new(|| {
    let year = "[1-9][0-9]{3}";
    let leap = "(?:[1-9][0-9](?:0[48]|[2468][048]|[13579][26])|(?:[2468][048]|[13579][26])00)";
    format!("(?:{year}-(?:0[13-9]|1[0-2])-[0-9]{{2}}|{year}-02-(?:[01][0-9]|2[0-8])|{leap}-02-29)")
});
const TIME: &str = "[0-9]{2}:[0-9]{2}:[0-5][0-9]";
/// Letters, digits and hyphens, in parts that dots divide; no hyphen at the ends of a domain's parts.
const EMAIL: &str =
    "^[A-Za-z0-9_+-]+(\\.[A-Za-z0-9_+-]+)*@[A-Za-z0-9]+(-+[A-Za-z0-9]+)*(\\.[A-Za-z0-9]+(-+[A-Za-z0-9]+)*)+$";
/// RFC 5321 allows 64 characters before the `@` and 63 in each part of a domain.
const LONGEST_EMAIL: u64 = 64;

/// Adds the pattern to a schema that has such a format and no pattern of its own.
pub(super) fn narrow(schema: &mut Map<String, Value>) {
    if ["const", "enum"].iter().any(|word| schema.contains_key(*word)) {
        return;
    }
    let pattern = match schema.get("format").and_then(Value::as_str) {
        Some("date") => format!("^{}$", *DATE),
        Some("date-time") => format!("^{}[tT]{TIME}", *DATE),
        Some("time") => format!("^{TIME}"),
        Some("email") => {
            let least = schema.get("minLength").and_then(Value::as_u64).unwrap_or(0);
            if !schema.contains_key("maxLength") && least <= LONGEST_EMAIL {
                schema.insert("maxLength".to_owned(), LONGEST_EMAIL.into());
            }
            EMAIL.to_owned()
        }
        _ => return,
    };
    schema.entry("pattern").or_insert(pattern.into());
}
