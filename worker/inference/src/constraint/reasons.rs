//! Why something can't be enforced, in words for clients.

/// Longest reason, in characters.
const LONGEST: usize = 400;

const TOO_COMPLEX: &str = "it is too complex to enforce";
const UNFULFILLABLE: &str = "nothing can fulfil it";

/// llguidance's errors about schemas and what they mean. Its own words are about the grammar that it
/// makes, which the client has not written.
const OF_SCHEMAS: [(&str, &str); 8] = [
    (
        "oneOf constraints",
        "alternatives of a 'oneOf' may overlap; name a property that tells them apart, or use 'anyOf'",
    ),
    ("min/maxProperties only", "'minProperties' and 'maxProperties' need all 'properties' to be required"),
    ("circular references with sibling", "a '$ref' that leads back to itself has other keywords beside it"),
    ("patternProperty regexes", "patterns of 'patternProperties' may match the same name"),
    ("'multipleOf'", "a 'multipleOf' has too many digits"),
    (
        "Unable to determine if regex is empty",
        "a 'pattern' is too complex, alone or with the 'format' or length beside it",
    ),
    ("nsatisfiable", UNFULFILLABLE),
    (NOTHING, UNFULFILLABLE),
];

/// Not even a first token is possible.
pub(super) const NOTHING: &str = "no token fits";

/// Why a schema can't be enforced.
pub(super) fn of_schema(error: &str) -> String {
    let found = OF_SCHEMAS.iter().find(|(mark, _)| error.contains(mark));
    let reason = found.map_or(TOO_COMPLEX, |(_, reason)| *reason);
    match contradiction(error) {
        Some(detail) if reason == UNFULFILLABLE => format!("{UNFULFILLABLE}: {detail}"),
        _ => reason.to_owned(),
    }
}

/// Two bounds that leave nothing between them, such as `minimum (2) is greater than maximum (1)`.
fn contradiction(error: &str) -> Option<String> {
    let (before, after) = error.split_once(" is greater than ")?;
    let (mut before, mut after) = (before.rsplit(' '), after.split_whitespace());
    let (low, lower) = (before.next()?, before.next()?);
    let (upper, high) = (after.next()?, after.next()?);
    let is_bound = |word: &str| ["min", "max", "exclusive"].iter().any(|mark| word.starts_with(mark));
    let bare = |value: &str| value.trim_matches(['(', ')']).to_owned();
    let detail = format!("'{lower}' is {}, '{upper}' is {}", bare(low), bare(high));
    (is_bound(lower) && is_bound(upper)).then_some(detail)
}

/// Why a well-formed regular expression can't be enforced.
pub(super) fn of_regex(error: &str) -> String {
    let reason = if error.contains(NOTHING) { UNFULFILLABLE } else { TOO_COMPLEX };
    reason.to_owned()
}

/// Why a client's grammar can't be enforced: in llguidance's words, which are about that grammar, on one
/// line and without the backtraces and states that follow.
pub(super) fn of_grammar(error: &str) -> String {
    let end = ["\n<", "panic:"].iter().filter_map(|mark| error.find(mark)).min().unwrap_or(error.len());
    let line = error.get(..end).unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches('.');
    match line.char_indices().nth(LONGEST) {
        _ if line.is_empty() => TOO_COMPLEX.to_owned(),
        _ if line.contains(NOTHING) => UNFULFILLABLE.to_owned(),
        Some((end, _)) => format!("{}…", line.get(..end).unwrap_or_default()),
        None => line.to_owned(),
    }
}

/// Why an answer can't continue.
pub(super) fn of_answer(error: &str) -> &'static str {
    let is_long =
        ["fuel", "too many", "max is", "too complex", "limit"].iter().any(|mark| error.contains(mark));
    if is_long { "it takes too long to follow" } else { "none is allowed" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemas_are_refused_in_words_of_the_schema() {
        for (error, reason) in [
            (
                "Unsatisfiable schema: minimum (2) is greater than maximum (1)\n<state>",
                "nothing can fulfil it: 'minimum' is 2, 'maximum' is 1",
            ),
            (
                "Unsatisfiable schema: minProperties (5) is greater than number of properties (2)",
                UNFULFILLABLE,
            ),
            ("Unsatisfiable schema: Regex is empty: (And (Literal \"a\"))", UNFULFILLABLE),
            ("initial lexer configuration (grammar) too big (limit for this grammar: 1000000)", TOO_COMPLEX),
            ("", TOO_COMPLEX),
        ] {
            assert_eq!(of_schema(error), reason, "{error}");
        }
    }

    #[test]
    fn reasons_about_grammars_are_one_line() {
        assert_eq!(of_grammar("no start  rule.\n<lark>\n1 | x"), "no start rule");
        assert_eq!(of_grammar(NOTHING), UNFULFILLABLE);
        assert_eq!(of_grammar("\n<lark>"), TOO_COMPLEX);
        let long = of_grammar(&"é".repeat(LONGEST + 1));
        assert_eq!(long.chars().count(), LONGEST + 1);
        assert!(long.ends_with("é…"));
    }
}
