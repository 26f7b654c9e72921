//! Which regular expressions can be enforced, and why others can't.

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;

/// Longest message about an expression, in characters.
const LONGEST: usize = 200;

/// Checks a schema's `pattern`, which is searched for; in its syntax `\d` and `\w` are of ASCII.
pub(super) fn check(pattern: &str) -> Result<(), String> {
    RegexBuilder::new()
        .mk_regex_for_serach(&regex_to_lark(pattern, "dw"))
        .map(|_| ())
        .map_err(|error| reason(&error.to_string()))
}

/// Checks an expression that the whole answer matches.
pub(super) fn check_whole(regex: &str) -> Result<(), String> {
    RegexBuilder::new().mk_regex(regex).map(|_| ()).map_err(|error| reason(&error.to_string()))
}

/// What regex-syntax says after it has drawn the expression, or derivre before it.
fn reason(error: &str) -> String {
    if error.starts_with("lookarounds") {
        return "'^' and '$' stand at its beginning and its end only, and there is no '\\b'".to_owned();
    }
    let message = error.rsplit("error: ").next().unwrap_or(error);
    let line = message.lines().next().unwrap_or_default();
    line.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_of_ecmascript_are_taken_where_they_can_be_followed() {
        for pattern in
            ["^[a-z]+\\d?$", "a\\/b", "^(?:x|y){2,3}$", "\\p{L}", "[\\w.-]+@", "^$|^a$", "\\u00e9", ""]
        {
            assert_eq!(check(pattern), Ok(()), "{pattern}");
        }
    }

    #[test]
    fn others_are_refused_in_words() {
        let nested = "(".repeat(10_000) + &")".repeat(10_000);
        for (pattern, words) in [
            ("^(?=.*[0-9]).+$", "look-around"),
            ("(?<!a)b", "look-around"),
            ("(a)\\1", "backreferences"),
            ("\\bword\\b", "no '\\b'"),
            ("a^b", "'^' and '$'"),
            ("(", "unclosed group"),
            ("[z-a]", "range"),
            (nested.as_str(), "nest"),
        ] {
            let reason = check(pattern).unwrap_err();
            assert!(reason.contains(words) && !reason.contains('\n'), "{reason}");
        }
    }
}
