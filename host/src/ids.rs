//! The names in a manifest, by Spin's rules (its `crates/serde/src/id.rs`).

use std::fmt;

use serde::Deserialize;

/// A name of words separated by `DELIMITER`. A word consists of ASCII letters and digits, begins with a letter,
/// and has letters of one case only: lower case, if `LOWER` is set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Id<const DELIMITER: char, const LOWER: bool>(String);

/// The name of a component: `my-function`.
pub type KebabId = Id<'-', false>;
/// The name of a store: `my_store`. A [`KebabId`] is allowed too.
pub type SnakeId = Id<'_', false>;
/// The name of a variable: `nats_server`.
pub type LowerSnakeId = Id<'_', true>;

/// Why a text is not a name.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidId {
    /// A word is empty: there are two delimiters in a row, or one at an end.
    #[error("'{id}' has a word without characters between its '{delimiter}'")]
    EmptyWord {
        /// The name.
        id: String,
        /// The delimiter between words.
        delimiter: char,
    },
    /// A word does not begin with a letter: `a_2`, `2a`.
    #[error("'{word}' in '{id}' does not begin with a letter. Words between '{delimiter}' must")]
    FirstCharacter {
        /// The name.
        id: String,
        /// The word.
        word: String,
        /// The delimiter between words.
        delimiter: char,
    },
    /// A character is not allowed, such as the delimiter of another kind of name.
    #[error("'{id}' has {character:?}. Use letters a to z and digits, with '{delimiter}' between words")]
    Character {
        /// The name.
        id: String,
        /// The first such character.
        character: char,
        /// The delimiter between words.
        delimiter: char,
    },
    /// A word mixes cases (`aB`), or has upper case where only lower case is allowed.
    #[error("'{word}' in '{id}' has letters of the wrong case. Use lower case")]
    Case {
        /// The name.
        id: String,
        /// The word.
        word: String,
    },
}

impl<const DELIMITER: char, const LOWER: bool> TryFrom<String> for Id<DELIMITER, LOWER> {
    type Error = InvalidId;

    fn try_from(id: String) -> Result<Self, InvalidId> {
        for word in id.split(DELIMITER) {
            if let Err(problem) = check_word(word, LOWER) {
                return Err(problem.into_error(id.clone(), word.to_owned(), DELIMITER));
            }
        }
        Ok(Self(id))
    }
}

enum WordProblem {
    Empty,
    FirstCharacter,
    Character(char),
    Case,
}

impl WordProblem {
    fn into_error(self, id: String, word: String, delimiter: char) -> InvalidId {
        match self {
            Self::Empty => InvalidId::EmptyWord { id, delimiter },
            Self::FirstCharacter => InvalidId::FirstCharacter { id, word, delimiter },
            Self::Character(character) => InvalidId::Character { id, character, delimiter },
            Self::Case => InvalidId::Case { id, word },
        }
    }
}

fn check_word(word: &str, lower: bool) -> Result<(), WordProblem> {
    let first = word.chars().next().ok_or(WordProblem::Empty)?;
    if let Some(character) = word.chars().find(|c| !c.is_ascii_alphanumeric()) {
        return Err(WordProblem::Character(character));
    }
    if !first.is_ascii_alphabetic() {
        return Err(WordProblem::FirstCharacter);
    }
    let is_upper = first.is_ascii_uppercase();
    let other_case = |c: char| c.is_ascii_alphabetic() && c.is_ascii_uppercase() != is_upper;
    if (lower && is_upper) || word.chars().any(other_case) { Err(WordProblem::Case) } else { Ok(()) }
}

impl<const DELIMITER: char, const LOWER: bool> fmt::Display for Id<DELIMITER, LOWER> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<const DELIMITER: char, const LOWER: bool> AsRef<str> for Id<DELIMITER, LOWER> {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl<const DELIMITER: char, const LOWER: bool> From<Id<DELIMITER, LOWER>> for String {
    fn from(id: Id<DELIMITER, LOWER>) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(name: &str) -> String {
        LowerSnakeId::try_from(name.to_owned()).unwrap_err().to_string()
    }

    // Which names are refused is tested in tests/manifests; this tests the messages.
    #[test]
    fn an_error_names_the_word_and_the_rule() {
        assert!(refused("nats_host_2").contains("'2' in 'nats_host_2' does not begin with a letter"));
        assert!(refused("a-b").contains("has '-'"));
        assert!(refused("a__b").contains("without characters"));
        assert!(refused("").contains("without characters"));
        assert!(refused("aB").contains("wrong case"));
        assert!(refused("AB").contains("wrong case"));
    }
}
