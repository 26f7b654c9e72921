//! Optional fields of a request that the answer does not honour.
//!
//! Each entry is the path of a field as the client wrote it, such as
//! `tools[2].function.parameters.properties.day.format`. The function finds some of them while it reads the
//! body. The worker finds the others while it renders the prompt, and reports them in
//! [`Accepted`](crate::event::EventKind::Accepted).

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use serde::{Deserialize, Serialize};

/// The response header that lists the paths, separated by `, `.
pub const RELAXED_HEADER: &str = "x-emberline-relaxed";

/// Longest value of the header, in bytes; proxies take lines of 8 KiB.
const MAX_HEADER_BYTES: usize = 4096;

/// Besides what is not ASCII: what a header can't hold, `%`, and the list's own `,`.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%').add(b',');

/// Most paths, and the longest in bytes: an event and a header have to hold them. Of what is more, only the
/// fields of the body are told that it is part of.
const MAX_PATHS: usize = 256;
const MAX_PATH_BYTES: usize = 512;

/// Paths of fields that are not honoured, in the order in which they were found, without duplicates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Relaxed(Vec<String>);

impl Relaxed {
    /// Whether every field is honoured.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the path of a field.
    pub fn push(&mut self, path: impl Into<String>) {
        let mut path = path.into();
        if self.0.contains(&path) {
            return;
        }
        if self.0.len() >= MAX_PATHS || path.len() > MAX_PATH_BYTES {
            let field = path.find(['.', '[']).unwrap_or(path.len()).min(MAX_PATH_BYTES);
            path.truncate(path.floor_char_boundary(field));
        }
        if !self.0.contains(&path) {
            self.0.push(path);
        }
    }

    /// Adds what `other` lists.
    pub fn extend(&mut self, other: &Self) {
        other.0.iter().for_each(|path| self.push(path.as_str()));
    }

    /// The paths.
    pub fn paths(&self) -> &[String] {
        &self.0
    }

    /// The value of [`RELAXED_HEADER`]; `None` if there are no paths. Characters that a header cannot contain
    /// are percent-encoded. A list that is too long ends with `and N more`.
    pub fn header_value(&self) -> Option<String> {
        if self.is_empty() {
            return None;
        }
        let mut value = String::new();
        for (index, path) in self.0.iter().enumerate() {
            let path = utf8_percent_encode(path, ENCODED).to_string();
            let separator = if index == 0 { "" } else { ", " };
            if value.len().saturating_add(path.len()) > MAX_HEADER_BYTES {
                let rest = self.0.len().saturating_sub(index);
                value.push_str(&format!("{separator}and {rest} more"));
                break;
            }
            value.push_str(separator);
            value.push_str(&path);
        }
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn relaxed(paths: &[&str]) -> Relaxed {
        let mut relaxed = Relaxed::default();
        paths.iter().for_each(|path| relaxed.push(*path));
        relaxed
    }

    #[test]
    fn nothing_to_tell_is_no_header() {
        assert_eq!(Relaxed::default().header_value(), None);
    }

    #[test]
    fn each_path_is_told_once_and_in_order() {
        let mut all = relaxed(&["b", "a", "b"]);
        all.extend(&relaxed(&["a", "c"]));
        assert_eq!(all.header_value().as_deref(), Some("b, a, c"));
    }

    #[test]
    fn of_very_many_and_very_long_paths_the_field_is_told() {
        let mut relaxed = Relaxed::default();
        (0..10_000).for_each(|number| relaxed.push(format!("chat_template_kwargs.{number}")));
        relaxed.push(format!("tools[0].{}", "x".repeat(1000)));
        assert_eq!(relaxed.paths().len(), MAX_PATHS + 2);
        assert_eq!(relaxed.paths()[MAX_PATHS..], ["chat_template_kwargs", "tools"]);
    }

    #[test]
    fn a_header_has_only_characters_that_it_may_have() {
        let value = relaxed(&["tools[0].p.a b,c\n%ü"]).header_value().unwrap();
        assert_eq!(value, "tools[0].p.a%20b%2Cc%0A%25%C3%BC");
    }

    #[test]
    fn a_list_that_is_too_long_says_how_much_is_missing() {
        let paths: Vec<String> = (0..200).map(|n| format!("tools[{n}].function.parameters")).collect();
        let mut all = Relaxed::default();
        paths.iter().for_each(|path| all.push(path.as_str()));
        let value = all.header_value().unwrap();
        assert!(value.len() < MAX_HEADER_BYTES + 40, "{}", value.len());
        let told = value.split(", ").count() - 1;
        assert!(value.ends_with(&format!(", and {} more", 200 - told)), "{value}");
        // Each byte takes three in the header.
        let longest = relaxed(&[&"\u{e4}".repeat(MAX_PATH_BYTES)]);
        assert_eq!(longest.paths()[0].len(), MAX_PATH_BYTES);
        assert_eq!(longest.header_value().map(|value| value.len()), Some(3 * MAX_PATH_BYTES));
    }
}
